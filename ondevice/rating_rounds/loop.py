"""The loop behind a person who rates: it keeps pairs waiting, has a version trained after every so
many votes, and takes the next pairs from what that made.

    python -P launch.py ondevice.rating_rounds.loop RUN      in the background, until who started it is gone

`Loop.turn` looks at the disk and the votes and does the next thing; nothing between two turns is
remembered but the models in memory. So the person never waits for it, and a loop that is killed, or
that finds the disk full, goes on where it was. A version's training is a process of its own: it
outlives the loop, which finds it by the lock of its stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ondevice.common import disk, processes
from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.sanitize import to_stderr
from ondevice.config.rounds import RoundsConfig
from ondevice.data.context import DataContext
from ondevice.datasets.prompts import Prompt, prompts
from ondevice.datasets.spec import DataSpec
from ondevice.models.load import load_generative
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.terminal import login
from ondevice.preferences.votes import Item
from ondevice.rating_rounds.choice import TAUGHT, kind_of_place
from ondevice.rating_rounds.places import RoundsFolder, Version, batch_of, start_model
from ondevice.rating_rounds.standing import Rounds, standing
from ondevice.rating_rounds.trainer import corpus_of_run, prompts_of
from ondevice.rating_rounds.writer import Said, Writer, Written
from ondevice.runs.folder import StopRequest
from ondevice.runs.logs import log_tail
from ondevice.seam.select import load_backend

IDLE_S = 1.0  # between two looks at whether there is something to do
WAIT_S = 5.0  # after a full or busy disk
BARREN = 5  # turns without a pair after which it is said that there are none
DIED = 2  # times that training may end without a word before the version is given up


class Training(Protocol):
    """A version that is being trained."""

    def poll(self) -> int | None:
        """Its exit code; None while it works."""
        ...


def start_process(folder: RoundsFolder, version: Version) -> subprocess.Popen[bytes]:
    """Trains the version in a process that outlives this one."""
    words = ("ondevice.rating_rounds.trainer", str(folder.run.path.absolute()), str(version.number))
    with (version.path / "train.log").open("ab") as out:
        return processes.start(
            processes.command(*words),
            processes.Access.OWN,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


class Loop:
    """One run's loop. `train` starts the training of a version; a person is told by `say`."""

    def __init__(
        self,
        cfg: RoundsConfig,
        *,
        train: Callable[[RoundsFolder, Version], Training] = start_process,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        self.cfg = cfg
        self.folder = RoundsFolder(cfg.run)
        self.start = start_model(cfg)
        self.batch = batch_of(cfg)
        self.rater = cfg.rater or login()
        self._train = train
        self._say = say
        self._training: Training | None = None
        self._deaths = 0
        self._barren = 0
        self._told = ""
        self._backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
        self._prompts: Sequence[Prompt] = self._read_prompts()
        self._writer = Writer(cfg, self._backend, self.start, self._prompts)

    def _read_prompts(self) -> Sequence[Prompt]:
        model = load_generative(self.start, self._backend)
        data = DataContext(self.folder.path / "prompts", corpus_of_run(self.folder))
        spec = DataSpec(prompts_of(self.cfg, self.folder), seed=self.cfg.seed)
        found = prompts(spec, "all", model, self.cfg.max_new_tokens, data)
        if not len(found):
            raise UserError("holds no prompt", where=spec.data, hint="give a file of prompts")
        return found

    def turn(self) -> bool:
        """Does what is next; whether there was something to do. Raises UserError for a database
        that cannot be used now, DiskFull among them."""
        with Ratings.open(self.folder.run.path / FILE, create=True) as ratings:
            now = standing(self.folder, ratings, simulated=self.cfg.simulated)
            trained = self._look_at_training(now, ratings)
            written = self._fill(now, ratings)
        return trained or written

    # training

    def _look_at_training(self, now: Rounds, ratings: Ratings) -> bool:
        """Begins a version that is due, and one whose process is gone; True where one was begun."""
        versions = self.folder.versions()
        newest = versions[-1] if versions else None
        if newest is not None and newest.last is None and not newest.why_failed():
            return self._go_on(newest)
        if self._training is not None and newest is not None and newest.last is not None:
            self._say(f"version {newest.number} is there: the next pairs are its own")
        self._training = None
        if now.since < self.cfg.every:
            self._tell(f"{max(self.cfg.every - now.since, 0)} votes until the next version")
            return False
        number = 1 if newest is None else newest.number + 1
        version = self.folder.version(number)
        write_votes(version, ratings, simulated=self.cfg.simulated)
        self._deaths = 0
        return self._go_on(version)

    def _go_on(self, version: Version) -> bool:
        """Sees to it that a process trains this version; True where one was started."""
        if self._training is not None:
            code = self._training.poll()
            if code is None:
                self._tell(f"version {version.number} is being trained")
                return False
            self._training = None
            if code and code != 130:
                self._deaths += 1
        if version.working:  # one that an earlier loop has started, maybe
            self._tell(f"version {version.number} is being trained")
            return False
        if self._deaths >= DIED:
            why = log_tail(version.path / "train.log", 1).strip() or "its process ended"
            write_file(version.failed, json.dumps({"why": why}) + "\n")
            return True
        self._tell(f"version {version.number} is being trained")
        self._training = self._train(self.folder, version)
        return True

    # pairs

    def _fill(self, now: Rounds, ratings: Ratings) -> bool:
        """Writes further pairs where few wait; True where some were queued."""
        waiting = sum(not one.skipped for one in ratings.waiting(self.rater, self.batch))
        if waiting > self.cfg.ahead // 2:
            return False
        items = [item for item in ratings.items(self.batch) if item.kind == "normal"]
        first = 1 + max((int(item.meta.get("place", -1)) for item in items), default=-1)
        if now.current:
            version = self.folder.version(now.current)
        else:
            version = None
        places = []
        for place in range(first, first + self.cfg.ahead - waiting):
            why = kind_of_place(
                place,
                self.cfg.seed,
                self.cfg.measure_share,
                self.cfg.random_share,
                version=now.current,
                active=self.cfg.choose == TAUGHT,
            )
            places.append((place, why))
        used = {int(item.meta["number"]) for item in items if "number" in item.meta}
        lately = [str(item.messages[-1].get("content", "")) for item in items[-20:]]
        written = self._writer.write(version, places, used, lately, self._said(items, ratings))
        self._barren = 0 if written else self._barren + 1
        if self._barren == BARREN:
            self._say("the answers to every prompt are alike: raise --temperature")
        self._queue(written, ratings, now.current)
        return bool(written)

    def _said(self, items: Sequence[Item], ratings: Ratings) -> list[Said]:
        """What the choice goes by: the usable votes, and the ties on pairs of the rounds."""
        simulated = self.cfg.simulated
        found = []
        for pair in pairs_of(ratings, simulated=simulated):
            found.append((pair.item, Said(pair.prompt, pair.chosen, pair.rejected, 1.0)))
        known = {item.id: item for item in items}
        for vote in ratings.live_votes(simulated=simulated):
            item = known.get(vote.item)
            if vote.outcome == "tie" and item is not None and len(item.responses) == 2:
                one, other = (response.text for response in item.responses)
                found.append((item.id, Said(item.messages, one, other, 0.5)))
        return [said for _, said in sorted(found, key=lambda one: one[0])]

    def _queue(self, written: Sequence[Written], ratings: Ratings, version: int) -> None:
        """All of them or none, in the order of their places."""
        with ratings.transaction():
            for one in sorted(written, key=lambda one: one.place):
                known: dict[str, Any] = {}
                for name in ("kind", "answer"):
                    if isinstance(one.prompt.known.get(name), str):
                        known[name] = one.prompt.known[name]
                meta: dict[str, Any] = {
                    **known,
                    "number": one.number,
                    "place": one.place,
                    "why": one.why,
                }
                meta["version"] = version
                if one.bits is not None:
                    meta["bits"] = round(one.bits, 4)
                ratings.add(
                    self.batch, one.prompt.messages, one.responses, meta=meta, seed=self.cfg.seed
                )

    # what is told

    def _tell(self, what: str) -> None:
        """What it does now, for whoever looks; a full disk is no reason to do nothing."""
        if what == self._told:
            return
        self._told = what
        record = {"pid": os.getpid(), "at": round(clock(), 3), "now": what}
        write_file(self.folder.status, json.dumps(record) + "\n")

    def run(self, ended: Callable[[], bool]) -> None:
        """Turn after turn until `ended`. What the disk or the database refuse is tried again."""
        said = ""
        while not ended():
            try:
                busy = self.turn()
                said = ""
            except (UserError, OSError) as error:
                full = disk.as_full(error, self.folder.path)
                if full is None and not isinstance(error, UserError):
                    raise
                problem = str(full or error)
                if problem != said:
                    self._say(f"{problem}: trying again")
                said = problem
                _sleep(WAIT_S, ended)
                continue
            if not busy:
                _sleep(IDLE_S, ended)


def write_votes(version: Version, ratings: Ratings, *, simulated: bool) -> None:
    """The pairs that a version learns from: all that are usable now. From here on there is such a
    version, whatever happens to this process."""
    lines = []
    for pair in pairs_of(ratings, simulated=simulated):
        row: dict[str, Any] = {
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "raters": list(pair.raters),
        }
        if pair.strength != 1:
            row["strength"] = pair.strength
        lines.append(json.dumps(row, ensure_ascii=True))
    disk.until_written(version.path, lambda: version.path.mkdir(parents=True, exist_ok=True))
    write_file(version.votes, "\n".join(lines) + "\n")


def _sleep(seconds: float, ended: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ended():
        time.sleep(0.1)


def main(words: list[str]) -> int:
    """The loop of a run, in the background: it ends with who started it, or by `rounds/stop`."""
    folder = RoundsFolder(words[0])
    parent = os.getppid()
    with folder.locked() as free, StopRequest() as stop:
        if not free:
            to_stderr("another process is this run's loop")
            return 0
        folder.stop.unlink(missing_ok=True)

        def ended() -> bool:
            return stop.requested or folder.stop.exists() or os.getppid() != parent

        try:
            Loop(folder.kept_settings()).run(ended)
        except UserError as error:
            to_stderr(str(error))
            write_file(folder.status, json.dumps({"pid": os.getpid(), "now": str(error)}) + "\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
