"""Pushes, as this app starts them: `ondevice push` in processes of its own, whose lines are read.

What would be sent is asked of `--dry-run --json`; a push writes `--lines` to `<run>/push.log` and
outlives the app. This process loads no client of the Hub and never sees a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ondevice.common import processes
from ondevice.common.json_files import parse_json
from ondevice.config.hub import PushConfig
from ondevice.preferences.sqlite_store import FILE as RATINGS
from ondevice.runs.folder import RunFolder
from ondevice_tui import stage_processes

EVERY, VOTES = "every stage", "the ratings"  # what can be sent beside a stage's model
PENDING = "pending-push.json"


class PlanFailed(Exception):
    """Nothing can be sent as it stands; the text says why."""


def choices(run: RunFolder | None) -> list[str]:
    """What of a run can be sent: finished stages with a model, the last one first; all of them; its
    ratings.
    """
    if run is None:
        return []
    stages = [s.name for s in run.stages() if s.done.is_file() and s.has_model][::-1]
    return [
        *stages,
        *([EVERY] if len(stages) > 1 else []),
        *([VOTES] if (run.path / RATINGS).is_file() else []),
    ]


def repo_name(run: RunFolder) -> str:
    """A run's name as the Hub takes it."""
    plain = re.sub(r"[^A-Za-z0-9_.]+|[.]{2,}", "-", run.path.name)
    return re.sub(r"[-.]*-[-.]*", "-", plain)[:90].strip("-._").removesuffix(".git") or "model"


def settings(
    run: RunFolder,
    what: str,
    repo: str,
    *,
    public: bool = False,
    optimizer: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Fields of `PushConfig` for a choice."""
    if resume:
        return {"model": str(run.path), "resume": True, "dataset": what == VOTES}
    return {
        "model": str(run.path),
        "repo_id": repo,
        "public": public,
        "all_stages": what == EVERY,
        "dataset": what == VOTES,
        "stage": "" if what in (EVERY, VOTES) else what,
        "with_optimizer": optimizer and what not in (EVERY, VOTES),
    }


async def ask_plan(values: Mapping[str, Any]) -> dict[str, Any]:
    """What would be sent, where to, and who is logged in. Raises PlanFailed."""
    words = stage_processes.words_for("push", PushConfig, {**values, "dry_run": True})
    try:
        return await stage_processes.json_of([*words, "--json"], processes.Access.HUB)
    except stage_processes.NoAnswer as error:
        # the command's flag for what stands in the app's field
        why = str(error).replace("--repo-id:", "the name:", 1)
        raise PlanFailed(why or "the plan's process said nothing") from None


@dataclass
class Push:
    """A push under way: its process, and what its log told so far."""

    child: stage_processes.Child
    offset: int
    sent: int = 0
    of: int = 0
    stage: str = "beginning"
    url: str = ""
    commit: str = ""
    private: bool = True
    said: list[str] = field(default_factory=list)
    code: int | None = None
    _rest: bytes = b""

    def read(self) -> bool:
        """Takes in what the log says by now; whether anything is new."""
        ended = self.child.process.poll()
        try:
            with open(self.child.log, "rb") as log:
                log.seek(self.offset)
                found = log.read()
        except OSError:
            found = b""
        self.offset += len(found)
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", "replace"))
        new = bool(lines) or ended != self.code
        self.code = ended
        return new

    def _take(self, line: str) -> None:
        try:
            event = parse_json(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            if line.strip():
                self.said = [*self.said[-5:], line.removeprefix("ondevice: ")]
            return
        if kind == "plan":
            self.of = int(event.get("bytes") or 0)
        elif kind == "file":
            self.sent, self.stage = int(event.get("sent") or 0), f"sent {event.get('path')}"
        elif kind == "done":
            self.sent, self.stage = self.of, "done"
            self.url, self.commit = str(event.get("url")), str(event.get("commit"))
            self.private = bool(event.get("private"))
        else:
            self.stage = {
                "wait": f"waiting: {event.get('reason')}",
                "commit": "committing",
                "landed": "it had landed",
                "verify": "comparing hashes",
            }.get(kind, str(kind))


def begin(run: RunFolder, values: Mapping[str, Any]) -> Push:
    """Starts the push; it goes on when this app is closed. Raises OSError."""
    log = run.path / "push.log"
    if log.is_file():
        offset = log.stat().st_size
    else:
        offset = 0
    words = stage_processes.words_for("push", PushConfig, {**values, "lines": True, "yes": True})
    return Push(stage_processes.start(words, run.path), offset)
