"""Where a run keeps its rounds, and what of them is there.

    RUN/ratings.db                    pairs and votes, as everywhere
    RUN/rounds/settings.json          what the loop was started with last
    RUN/rounds/status.json            what it does now, for whoever looks
    RUN/rounds/loop.lock, loop.log    one loop a run, and what it printed
    RUN/rounds/start.json             what the exam says of the start
    RUN/rounds/v001/votes.jsonl       the pairs that version 1 learns from
    RUN/rounds/v001/lock              who trains it now
    RUN/rounds/v001/{dpo | reward, ppo}/   its stages: checkpoints, model, done.json

Nothing else is remembered: which version is there, and what comes next, follows from these files
and the votes. So there is no moment at which a kill could leave two of them that do not agree.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common import disk
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock
from ondevice.common.files import write_file
from ondevice.common.json_files import read_json
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.rounds import RoundsConfig
from ondevice.runs.folder import RunFolder, StageFolder

FOLDER = "rounds"
STAGES: Mapping[str, tuple[str, ...]] = {"dpo": ("dpo",), "ppo": ("reward", "ppo")}
"""Method → the stages of a version, the last of which makes its model."""
_OF_A_CALL = ("show", "headless", "until", "repeat_share")
"""Settings that are of one call and say nothing of the loop."""


@dataclass(frozen=True)
class Version:
    """`RUN/rounds/v001`: a run folder of its own, whose stages train one version."""

    number: int
    path: Path

    @property
    def name(self) -> str:
        """What the answers' source is called."""
        return name_of(self.number)

    @property
    def votes(self) -> Path:
        return self.path / "votes.jsonl"

    @property
    def failed(self) -> Path:
        return self.path / "failed.json"

    @property
    def stages(self) -> list[StageFolder]:
        """Those that were begun, in their order."""
        return RunFolder(self.path).stages()

    @property
    def last(self) -> StageFolder | None:
        """The stage whose model is the version's, once it is complete."""
        for names in STAGES.values():
            stage = StageFolder(self.path / names[-1])
            if stage.done_record() is not None and stage.has_model:
                return stage
        return None

    @property
    def trainer(self) -> StageFolder:
        """Whose lock the process that trains it holds all the time: while it reads its settings,
        while the start is measured, and between two stages too."""
        return StageFolder(self.path)

    @property
    def working(self) -> bool:
        """Whether a process trains it now."""
        return any(place.holder() is not None for place in (self.trainer, *self.stages))

    def why_failed(self) -> str:
        """Why there will be no such version; empty where it is there or still comes."""
        return str(read_json(self.failed).get("why", ""))


class RoundsFolder:
    """`RUN/rounds`: names, and what is there."""

    def __init__(self, run: str | Path) -> None:
        self.run = RunFolder(run)
        self.path = self.run.path / FOLDER

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def start(self) -> Path:
        return self.path / "start.json"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def log(self) -> Path:
        return self.path / "loop.log"

    def version(self, number: int) -> Version:
        return Version(number, self.path / f"v{number:03d}")

    def versions(self) -> list[Version]:
        """Those that were begun, whose votes are on the disk."""
        found = []
        if self.path.is_dir():
            for place in self.path.iterdir():
                match = re.fullmatch(r"v([0-9]{3,6})", place.name)
                if match and (place / "votes.jsonl").is_file():
                    found.append(Version(int(match[1]), place))
        return sorted(found, key=lambda version: version.number)

    def keep_settings(self, cfg: RoundsConfig) -> None:
        """Writes what the loop is started with."""
        kept = {name: value for name, value in to_mapping(cfg).items() if name not in _OF_A_CALL}
        disk.until_written(self.path, lambda: self.path.mkdir(parents=True, exist_ok=True))
        if read_json(self.settings) != kept:
            write_file(self.settings, json.dumps(kept, indent=1) + "\n")

    def kept_settings(self) -> RoundsConfig:
        """What the loop was started with last. Raises UserError where it never was."""
        if not self.settings.is_file():
            raise UserError(
                "has no rounds yet",
                where=str(self.run.path),
                hint=f"ondevice rounds {self.run.path} begins them",
            )
        kept = {**read_json(self.settings), "run": str(self.run.path)}
        return from_mapping(RoundsConfig, kept, str(self.settings))

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process is the run's loop now: there is one at a time. The kernel frees the
        lock when the process ends in any way."""
        disk.until_written(self.path, lambda: self.path.mkdir(parents=True, exist_ok=True))
        descriptor = os.open(self.path / "loop.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield try_lock(descriptor)
        finally:
            os.close(descriptor)

    @property
    def busy(self) -> bool:
        """Whether a loop is at work."""
        if not (self.path / "loop.lock").is_file():
            return False
        with self.locked() as free:
            return not free


def name_of(number: int) -> str:
    """What a version's answers are called as a source; 0 is the start."""
    return "start" if not number else f"version {number}"


def batch_of(cfg: RoundsConfig) -> str:
    """What the pairs of the rounds are queued under."""
    return f"rounds-{cfg.seed}"


def start_model(cfg: RoundsConfig) -> Path:
    """The folder of the model that every version is trained from. Raises UserError where none is
    named and the run has no stage sft."""
    from ondevice.runs.resolve import find_model

    if cfg.model:
        return find_model(cfg.model)
    if not Path(cfg.run).is_dir():
        raise UserError("there is no such run folder", where=cfg.run)
    stage = RunFolder(cfg.run).stage("sft")
    if not stage.has_model:
        raise UserError(
            "has no tuned model to begin with",
            where=cfg.run,
            hint="train a stage sft there, or give --model FOLDER",
        )
    return stage.model


def status_of(folder: RoundsFolder) -> dict[str, Any]:
    """What the loop said last; empty where none is at work."""
    return read_json(folder.status) if folder.busy else {}
