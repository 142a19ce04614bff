"""What a stage emits: one JSON object a line, `{"t", "event", "step", …}`, appended to
`<stage>/events.jsonl`.

Readers may look at any moment, and the writer may die at any moment: a last line without its
newline is torn, readers leave it out and the next writer cuts it off. Losing the last second of
step lines in a crash is harmless, because a resume goes back to a checkpoint and emits those steps
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ondevice.common import bounded, disk
from ondevice.common.clock import clock, ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.common.json_files import parse_json, to_json

FLUSH_S = 1.0
ONCE = ("step", "eval")
"""Events of which each step has one."""
_BLOCK = 1 << 16


class LineFile:
    """A file to which whole lines of JSON are appended; a torn last line is cut off when it is
    opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = disk.until_written(path, self._open)
        self._end = _cut_torn_line(self._descriptor)
        self._waiting = bytearray()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Mapping[str, Any]) -> int:
        """Adds a line (written at the next `flush`); returns its byte offset in the file."""
        offset = self._end + len(self._waiting)
        self._waiting += to_json(record).encode() + b"\n"
        return offset

    def flush(self, *, sync: bool = False) -> None:
        """Writes what waits. What a full disk refuses goes on waiting, here or until the next flush,
        which continues in mid-line. Raises DiskFull where nobody waits for room.
        """

        def write() -> None:
            if self._waiting:
                self._check_place()
            while self._waiting:
                written = os.write(self._descriptor, self._waiting)
                self._end += written
                del self._waiting[:written]
            if sync:
                os.fsync(self._descriptor)

        disk.until_written(self.path, write)

    def _check_place(self) -> None:
        """Raises UserError where the file is not there any more, or another one is: what is written
        would be seen by nobody, and the lock beside it would keep nobody out."""
        own = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            self._waiting.clear()
            raise UserError(
                "was removed or replaced while this process wrote to it",
                where=str(self.path),
                hint="begin anew, or put the folder back and give --resume",
            )

    def close(self) -> None:
        if self._descriptor >= 0:
            try:
                self.flush()
                if self._waiting:  # that there was no room for a while
                    self.flush()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, kind: object, *raised: object) -> None:
        close_after(kind, self)


def close_after(error: object, file: LineFile | EventWriter) -> None:
    """Closes at the end of a `with`. After an error a full disk is not told of: the error is, and
    may well be the same."""
    try:
        file.close()
    except (disk.DiskFull, Interrupted):
        if error is None:
            raise


class EventWriter:
    """Appends a stage's events. Steps are written in batches, at least once a second while steps
    come; every other event is written at once, together with what waits. Call `flush` before
    something long that emits nothing."""

    def __init__(self, path: Path, *, now: Callable[[], float] = clock) -> None:
        self._file = LineFile(path)
        self._now = now
        self._flushed = ticks()
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._unheard: list[Mapping[str, Any]] = []  # for the listeners, once it is written

    def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
        """Adds {"t", "event", "step", …fields}; numbers that are not finite become null. numpy
        scalars are welcome.
        """
        head = {"t": round(self._now(), 3), "event": event}
        if step is not None:
            head["step"] = int(step)
        self._append({**head, **fields})
        if event != "step" or ticks() - self._flushed >= FLUSH_S:
            self.flush()

    def note(self, event: str, **fields: Any) -> None:
        """Adds an event that is written with the next one."""
        self._append({"t": round(self._now(), 3), "event": event, **fields})

    def listen(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Hands each event over once it is written."""
        self._listeners.append(listener)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.append(record)
        if self._listeners:
            self._unheard.append(record)

    def flush(self, *, sync: bool = False) -> None:
        self._file.flush(sync=sync)
        self._flushed = ticks()
        self._hand_over()

    def _hand_over(self) -> None:
        heard, self._unheard = self._unheard, []  # a listener may emit an event of its own
        for record in heard:
            for listener in self._listeners:
                listener(record)

    def close(self) -> None:
        self._file.close()
        self._hand_over()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, kind: object, *raised: object) -> None:
        close_after(kind, self)


class ForwardedEvents(EventWriter):
    """Those of a process that writes none: what a person is to be warned of is handed to `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
        if event == "warning":
            self._say(str(fields.get("message", "")))

    def note(self, event: str, **fields: Any) -> None:
        """Nobody reads it."""

    def flush(self, *, sync: bool = False) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def read(path: Path, *, tail: int = 0) -> Iterator[dict[str, Any]]:
    """The events that hold: after {"event": "resume", "step": k} nothing counts that came before it
    with a step > k, and of two steps or measurements of one number the last counts.

    A missing file has no events; a torn last line is left out; a damaged line in the middle (a
    disk's doing) becomes a "warning" event that names it, so that what is around it can still be
    read. `tail` reads only the whole lines within that many last bytes: enough for a glance at a
    long file. Raises OSError where the file cannot be read.
    """
    kept: list[dict[str, Any]] = []
    for event in lines(path, tail=tail):
        if event.get("event") == "resume":
            last = _step(event)
            kept = [old for old in kept if _step(old) <= last]
        kept.append(event)
    yield from _once(kept)


def _once(kept: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the steps, and of the measurements, of one number the last: a process that was killed
    between a checkpoint and the end measures anew, and finds the same."""
    last = {}
    for place, event in enumerate(kept):
        if event.get("event") in ONCE:
            last[str(event["event"]), _step(event)] = place
    for place, event in enumerate(kept):
        if event.get("event") in ONCE and last[str(event["event"]), _step(event)] != place:
            continue
        yield event


def _step(event: Mapping[str, Any]) -> float:
    """An event's step; 0 where it has none, or one that is not a number."""
    step = event.get("step")
    if isinstance(step, (int, float)):
        return step
    return 0


def first_event(events: Path) -> dict[str, Any]:
    """The first event of a stage, its start with its settings; empty where the file does not begin
    with one. Raises OSError where it cannot be read."""
    if not events.is_file():  # reading from a pipe would wait for ever
        return {}
    try:
        with bounded.open_plain(events) as file:
            event = parse_json(next(bounded.lines(file), None) or b"")
    except (ValueError, RecursionError):
        return {}
    if isinstance(event, dict):
        return event
    return {}


def read_at(path: Path, offset: int) -> dict[str, Any]:
    """The line that begins at this byte offset, as `LineFile.append` returned it. Raises ValueError
    if none does.
    """
    with bounded.open_plain(path) as file:
        file.seek(offset)
        value = parse_json(next(bounded.lines(file), None) or b"")
    if not isinstance(value, dict):
        raise ValueError(f"{path} has no record at byte {offset}")
    return value


def lines(path: Path, *, tail: int = 0) -> Iterator[dict[str, Any]]:
    """Every event that was ever written, in that order, also what a resume has undone; else as
    `read`."""
    if not path.exists():
        return
    with bounded.open_plain(path) as file:
        if tail:
            start = os.fstat(file.fileno()).st_size - tail
        else:
            start = 0
        if start > 0:
            file.seek(start - 1)
            # the rest of a line that began before, or the newline just before
            file.readline(tail + 1)
        for line in bounded.lines(file):
            if line is not None and not line.endswith(b"\n"):
                return
            try:
                value = parse_json(line or b"")
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                where = f"{path}: the line that ends at byte {file.tell()}"
                yield {"event": "warning", "message": f"{where} is damaged and was left out"}


def _cut_torn_line(descriptor: int) -> int:
    """Cuts the file after its last newline; returns its length then."""
    end = os.fstat(descriptor).st_size
    position = end
    while position > 0:
        start = max(0, position - _BLOCK)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        os.ftruncate(descriptor, position)
    return position
