"""Starts and stops what trains: processes of their own, exactly the command line, that outlive this
app.

A stage is detached (`start_new_session`), so that neither the app's end, nor the terminal's, nor a
kill -9 reaches it; its output goes to `<run>/<stage>.log` (`run.log` for a recipe). Whether it
lives is asked of its lock, never of a process number. A stop is the file `<stage>/stop`, the same
wish as Ctrl-C: the step is finished and saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common import processes
from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.config.earlier import upgraded
from ondevice.config.lists import list_text
from ondevice.config.load import read_yaml, to_mapping
from ondevice.config.recipe import STAGES
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.logs import log_tail
from ondevice_tui import access


@dataclass
class Child:
    """A process that this app started. It may outlive the app."""

    what: str
    process: subprocess.Popen[bytes]
    log: Path
    told: bool = field(default=False)
    begun: bool = field(default=False)  # a stage of it has been seen at work since
    at: float = field(default_factory=clock)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.log.parent

    @property
    def stage(self) -> str:
        """The stage that it runs; empty for a recipe, which runs several."""
        if self.log.stem in STAGES:
            return self.log.stem
        return ""

    def look(self, run: Mapping[str, Any] | None) -> None:
        """Whether what was read of its run shows that it has begun."""
        for stage in run["stages"] if run else ():
            newer = stage["last"] is not None and stage["last"] >= self.at
            if (stage["state"] == "training" or newer) and self.stage in ("", stage["stage"]):
                self.begun = True

    def starts(self, run: Mapping[str, Any] | None) -> str:
        """The stage that is being started; empty once something has begun."""
        if self.begun:
            return ""
        if run:
            done = {stage["stage"] for stage in run["stages"] if stage["state"] == "done"}
        else:
            done = set()
        recipe = [name for name in (run["recipe"] if run else ()) if name not in done]
        return self.stage or next(iter(recipe), "init")

    def ended(self) -> tuple[int, str] | None:
        """(exit code, the end of its log), once and only once it has ended. Asking also buries the
        process.
        """
        code = self.process.poll()
        if code is None or self.told:
            return None
        self.told = True
        return code, log_tail(self.log)


def start(words: Sequence[str], run: Path) -> Child:
    """`ondevice WORDS…`, detached; `run` is the run folder that the words name."""
    run.mkdir(parents=True, exist_ok=True)
    if words[0] != "runs":
        log = run / f"{words[0]}.log"
    else:
        log = run / "run.log"
    with open(log, "ab") as out:
        process = processes.start(
            processes.command("ondevice", *words),
            access.of_command(words, run),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return Child(shown(words), process, log)


def stop(stage: StageFolder) -> bool:
    """Asks the process that trains this stage to finish its step, save and leave; False where
    nobody trains.
    """
    holder = stage.holder()
    if holder is None:
        return False
    try:
        stage.stop.touch()
    except OSError:
        # a full disk: the process itself can be told where it runs on this machine
        if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
            raise
        os.kill(holder["pid"], signal.SIGTERM)
    return True


def save(stage: StageFolder) -> bool:
    """Asks the process that trains this stage for a checkpoint; False where nobody trains."""
    if stage.holder() is None:
        return False
    stage.save.touch()
    return True


def shown(words: Sequence[str]) -> str:
    """The command line as a person would type it."""
    return shlex.join(["ondevice", *words])


def words_for(
    verb: str,
    cls: type,
    values: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    recipe: str = "",
) -> list[str]:
    """The command line of a verb: positional words first, then a flag for each value that differs
    from the default (or from `base`, what `--recipe` fills in)."""
    from ondevice.config.verbs import VERBS

    plain = base if base is not None else _defaults(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    words, given = [verb], dict(values)
    if verb in VERBS:
        for name in VERBS[verb].positional:
            value = given.get(name)
            if value in (None, "", plain.get(name)) or str(value).startswith("-"):
                break  # a later word would stand in its place
            words.append(str(given.pop(name)))
    if recipe:
        words.append(f"--recipe={recipe}")
    for name, value in given.items():
        if name in known and value != plain.get(name):
            words += _flag(name, value)
    return words


def resume_words(run: RunFolder, stage: StageFolder) -> list[str]:
    """What goes on with an unfinished stage: its recipe where it is of the run's recipe, else its
    own command.

    Raises UserError where the stage has left no settings.
    """
    if run.recipe.is_file() and stage.name in (read_yaml(run.recipe).get("stages") or {}):
        return ["runs", "resume", str(run.path)]
    first = next(iter(read(stage.events)), {})
    config, cls = first.get("config"), STAGES.get(stage.name)
    if not isinstance(config, dict) or cls is None:
        raise UserError(
            "left no settings to go on with", where=str(stage.path), hint="start the stage anew"
        )
    config = upgraded(stage.name, config)
    return words_for(stage.name, cls, {**config, "out": str(run.path), "resume": True})


def _defaults(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.default_factory is not dataclasses.MISSING:
            made = f.default_factory()
        else:
            made = None
        if f.default is dataclasses.MISSING:
            found[f.name] = made
        else:
            found[f.name] = f.default
    return found


def _flag(name: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    if isinstance(value, (list, tuple)):
        return [f"--{name}={list_text(value)}"]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_mapping(value)
    if isinstance(value, Mapping):
        return ["--set", f"{name}={json.dumps(value)}"]  # JSON is YAML
    return [f"--{name}={value}"]


class NoAnswer(Exception):
    """A command printed no JSON; the text is its last line of complaint, empty where it has none."""


async def json_of(words: Sequence[str], may: processes.Access) -> dict[str, Any]:
    """The JSON object that `ondevice WORDS…` prints, in a process that ends with whoever waits for it.
    Raises NoAnswer."""
    pipe = asyncio.subprocess.PIPE
    process = await processes.start_async(
        processes.command("ondevice", *words),
        may,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    try:
        printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            end(process)
            await process.wait()  # else its pipes are closed after the app's event loop
    try:
        answer: dict[str, Any] = parse_json(printed)
        return answer
    except ValueError:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        raise NoAnswer(lines[-1].removeprefix("ondevice: ") if lines else "") from None


def end(process: asyncio.subprocess.Process) -> None:
    """At once. One that has ended between the look and the kill is no mistake."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.kill()
