"""The run folder: where things lie in it, its locks, the clock, and requests to stop.

    runs/<name>/recipe.yaml
    runs/<name>/<stage>/{lock, events.jsonl, samples.jsonl, stop, save, redo, settings.json,
                         checkpoints/, model/, done.json}

A stage is locked with `flock` for as long as the process that trains it lives. The kernel frees the
lock when that process dies in any way, kill -9 included, so there is no stale lock to remove.
Python opens files so that started programs do not inherit them; a *forked* child would inherit the
lock and hold it after its parent's death, which is why helpers are spawned, never forked.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ondevice.common import disk
from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.file_lock import lock, try_lock
from ondevice.common.json_files import load_json
from ondevice.runs.order import ordered

HOLDER_BYTES = 2048  # of a lock's text: within one block of any disk
LOCK_PATIENCE_S = 0.5  # `runs` looks at a lock by taking it for an instant: a start waits that out


class RunFolder:
    """`runs/<name>`; made when a stage is locked or something is written, not before."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                "is a file, not a run folder", where=str(self.path), hint="give another --out"
            )

    @classmethod
    def new(cls, kind: str, parent: str | Path = "runs") -> RunFolder:
        """A folder that does not exist yet: `<parent>/<kind>-<date and time>`, numbered where that
        is taken.
        """
        base = Path(parent) / f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(clock()))}"
        path, number = base, 2
        while path.exists():
            path, number = base.with_name(f"{base.name}-{number}"), number + 1
        return cls(path)

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """`{"seconds": {stage: seconds that it is to take}}`, where that was known at the start."""
        return self.path / "plan.json"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    def stage(self, name: str) -> StageFolder:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"{name!r} cannot be the name of a stage", hint="letters, digits, - and _"
            )
        return StageFolder(self.path / name)

    def stages(self) -> list[StageFolder]:
        """The stages begun here, each after those whose models it began with (`order`)."""
        if not self.path.is_dir():
            return []
        begun = [
            p for p in self.path.iterdir() if (p / "lock").is_file() or (p / "done.json").is_file()
        ]
        return [StageFolder(p) for p in ordered(self.path, begun)]

    def create(self) -> RunFolder:
        _make_folder(self.path)
        return self


def holds_model(folder: Path) -> bool:
    """Whether a folder looks like a model's, or an adapter's."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


@dataclass(frozen=True)
class StageFolder:
    """`runs/<name>/<stage>`: names only; nothing is made before `create` or `locked`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def has_model(self) -> bool:
        """Whether its model is there: whole, or an adapter."""
        return holds_model(self.model)

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def groups(self) -> Path:
        return self.path / "groups.jsonl"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def save(self) -> Path:
        return self.path / "save"

    @property
    def redo(self) -> Path:
        """Its presence asks for the stage to be run again, from its beginning: a stage before it is."""
        return self.path / "redo"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stands(self) -> bool:
        """Whether it is complete, or was begun and can go on: another cannot begin in its place."""
        return self.done.is_file() or any(self.checkpoints.glob("step-*"))

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    def create(self) -> StageFolder:
        _make_folder(self.path)
        return self

    @contextmanager
    def locked(self) -> Iterator[StageFolder]:
        """Makes the folder and holds its lock. Raises UserError naming the process that holds it
        already.
        """
        self.create()
        descriptor = _take(self.lock)
        try:
            yield self
        finally:
            os.close(descriptor)  # closing the last descriptor frees the lock

    def holder(self) -> dict[str, Any] | None:
        """Who trains this stage now ({"pid","host","since"}, or {} where it has not yet said so);
        None: nobody.
        """
        try:
            # a pipe in its place is not waited for
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not try_lock(descriptor, shared=True):
                return _read_holder(self.lock)
        except OSError:
            return None  # a file system without locks: nothing can hold one
        finally:
            os.close(descriptor)
        return None

    def note(self, **fields: str | None) -> None:
        """Says more in the lock of who holds it, for whom `holder` is asked: by the process that
        holds it. The few bytes are written over in place, which needs no room on the disk."""
        record = {**_read_holder(self.lock), **fields}
        kept = {name: value for name, value in record.items() if value is not None}
        try:
            descriptor = os.open(self.lock, os.O_WRONLY)
        except OSError:
            return  # the folder was removed: whoever writes there says so
        try:
            # a disk that copies what is written over may have no room: the terminal is told, too
            with suppress(OSError):
                os.pwrite(descriptor, _holder_text(kept), 0)
        finally:
            os.close(descriptor)

    def stopped_in_pause(self) -> str:
        """Why a process that has ended could write no event of its end; empty where it could."""
        return str(_read_holder(self.lock).get("stopped") or "")

    @property
    def begun(self) -> bool:
        """Whether a stage of ours began here: not where a folder merely has a file `lock`."""
        known = self.events.is_file() or self.done.is_file()
        return known or {"pid", "host", "since"} <= _read_holder(self.lock).keys()

    def done_record(self) -> dict[str, Any] | None:
        """What done.json holds; None where the stage is not complete or the file is damaged."""
        return _read_object(self.done)

    def settings_record(self) -> dict[str, Any]:
        """What settings.json holds: {"settings", "why", "epochs", "rows"}, the settings that a rule
        may decide with their values; {} where a stage does not train, has not come so far, or was
        begun by an earlier version, or the file is damaged."""
        record = _read_object(self.settings) or {}
        if isinstance(record.get("settings"), dict):
            return record
        return {}


class StopRequest:
    """A person's wish to stop, looked at between steps.

        with StopRequest() as stop:
            stop.begin(stage_folder)          # forgets an old stop file
            while … and not stop.requested: …

    The first SIGINT, SIGTERM or SIGHUP, or a file `<stage>/stop`, sets `requested`. A file
    `<stage>/save` asks for a checkpoint, and is removed by `save_requested`, which tells of it
    once. A second SIGINT ends the process at once with exit code 130: nothing is saved then, and
    nothing half-written counts (checkpoints are renamed in place). The handlers are those of the
    main thread; entered in another thread, only the stop file is watched. `silent`: another process
    tells the person.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.reason = ""
        self.silent = silent
        self.paused = False  # it waits for room on the disk, where nothing could be saved
        self._interrupts = 0
        self._file: Path | None = None
        self._save: Path | None = None
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the terminal's end is not to stop it
            self._replaced[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._replaced.items():
            # None stands for a handler that was not made in Python and cannot be put back from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._replaced.clear()

    def begin(self, stage: StageFolder) -> None:
        """Watch this stage's stop and save files from now on; what an earlier run left of them is
        removed.
        """
        for file in (stage.stop, stage.save):
            file.unlink(missing_ok=True)
        self._file, self._save = stage.stop, stage.save

    def save_requested(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        if self._save is None or not self._save.exists():
            return False
        self._save.unlink(missing_ok=True)
        return True

    @property
    def requested(self) -> bool:
        if not self.reason and self._file is not None and self._file.exists():
            self.reason = "stop file"
        return bool(self.reason)

    def request(self, reason: str) -> None:
        """Ask from within the program, as a first Ctrl-C does."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                _leave_at_once(self.silent)
        first = not self.reason
        self.request("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        if first and number == signal.SIGINT and not self.silent:
            what = "leaving: the last checkpoint is whole"
            if not self.paused:
                what = "finishing the step, then saving"
            _say(f"\n{what}; Ctrl-C again leaves at once\n")


def _leave_at_once(silent: bool) -> None:
    # no cleaning up: a second Ctrl-C means that the first one took too long. A progress bar hides
    # the cursor.
    if not silent:
        _say(
            ("\x1b[?25h" if os.isatty(2) else "")
            + "\nleft at once; --resume goes on from the newest checkpoint\n"
        )
    os._exit(130)


def _say(text: str) -> None:
    """Straight to the descriptor: sys.stderr may be in the middle of a write when a signal comes."""
    try:
        os.write(2, text.encode())
    except OSError:
        return  # the terminal is gone (SIGHUP): nobody is left to be told


def _take(file: Path) -> int:
    """An open, locked descriptor with this process's name written in the file."""
    descriptor = disk.until_written(file, lambda: os.open(file, os.O_RDWR | os.O_CREAT, 0o644))
    try:
        _flock(descriptor, file)
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": round(clock(), 3),
            "command": sys.argv[0],
        }
        os.ftruncate(descriptor, 0)
        disk.until_written(file, lambda: os.pwrite(descriptor, _holder_text(me), 0))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder_text(record: Mapping[str, Any]) -> bytes:
    """Always of one length, so that it can be written over where there is no room."""
    text = json.dumps(record).encode()
    if len(text) >= HOLDER_BYTES:
        cut = {name: str(value)[:200] for name, value in record.items()}
        text = json.dumps(cut).encode()[: HOLDER_BYTES - 1]
    return text.ljust(HOLDER_BYTES - 1) + b"\n"


def _flock(descriptor: int, file: Path) -> None:
    try:
        locked = lock(descriptor, patience_s=LOCK_PATIENCE_S)
    except OSError as error:
        raise UserError(
            f"this file system cannot lock files ({error.strerror})",
            where=str(file),
            hint="give --out a folder on a local disk",
        ) from error
    if not locked:
        raise _held(file)


def _held(file: Path) -> UserError:
    holder = _read_holder(file)
    who = f"process {holder['pid']}" if "pid" in holder else "another process"
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        who += f" on {holder['host']}"
    return UserError(
        f"{who} trains here",
        where=str(file.parent),
        hint="wait for it, stop it, or give another --out",
    )


def _read_holder(file: Path) -> dict[str, Any]:
    return _read_object(file) or {}


def _read_object(file: Path) -> dict[str, Any] | None:
    try:
        if not file.is_file():  # reading from a pipe would wait for ever
            return None
        value = load_json(file)
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return value
    return None


def _make_folder(path: Path) -> None:
    try:
        disk.until_written(path, lambda: path.mkdir(parents=True, exist_ok=True))
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            "a file is in the way", where=str(path), hint="give another --out"
        ) from None
    except OSError as error:
        raise UserError(f"cannot make this folder ({error.strerror})", where=str(path)) from error
