"""A stage's events read as they are written, into curves of bounded memory.

`History` is what has been read; `Follower` reads more of the file into it. A thread calls
`Follower.read` and a screen looks at the history under its lock: no event is handed over by itself
(a message for each fell behind at 1,000 events a second, where one message a quarter of a second
costs a few percent of a core).

A resume at step k makes void what stands before it with a step beyond k. Where such lines are is
found by a look through the bytes before anything is parsed; when one comes while the stage runs,
the file is read again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from textual.widget import Widget
from textual.worker import get_current_worker

from ondevice.common.json_files import parse_json
from ondevice.common.numbers import is_number
from ondevice.common.progress import duration
from ondevice.runs.events import ONCE, read_at
from ondevice_tui.group_places import GroupPlaces
from ondevice_tui.messages import StageNews
from ondevice_tui.series import BUCKETS, Series

EVERY_S = 0.25  # between two looks at the file
NEWS_S = 0.5  # between two messages to the screen: drawing costs more than reading
CHUNK = 1 << 16  # bytes parsed under one hold of the lock: some milliseconds
FIELDS = 64  # series kept of one kind of event; a file with more is no stage's
NOTES = 500  # warnings and samples remembered; older ones stay in the file
_NUMBERS = frozenset((int, float, type(None)))
_NO_CURVES = frozenset(("event", "step", "groups", "offset"))
_RESUME = b'"resume"'
_CURVES = (*ONCE, "before")  # "before" is the measurement before the first step
_LAST_STEP = 1 << 53
"""Whole numbers beyond it are no steps, and no figures: curves are of floats."""
LONGEST = 64 << 20  # bytes of a line


class History:
    """What a stage's events come to. Hold `lock` while reading more than one thing of it."""

    def __init__(self, buckets: int = BUCKETS) -> None:
        self.lock = threading.Lock()
        self.buckets = buckets  # of each curve
        self.clear()

    def clear(self) -> None:
        self.steps: dict[str, Series] = {}  # field of the step events → its curve
        self.evals: dict[str, Series] = {}
        self.newest: dict[str, dict[str, Any]] = {}  # kind of event → the newest one
        self.start: dict[str, Any] = {}
        # (step, byte offset in samples.jsonl)
        self.samples: deque[tuple[int, int]] = deque(maxlen=NOTES)
        self.groups = GroupPlaces()  # the same in groups.jsonl
        # and of the measurements on held-out prompts, the one before the first step among them
        self.held_out: deque[tuple[int, int]] = deque(maxlen=NOTES)
        self.first_held_out: tuple[int, int] | None = None  # which stays when older ones go
        # (time, step, what happened)
        self.notes: deque[tuple[float, int | None, str]] = deque(maxlen=NOTES)
        self.events = 0
        self.last_kind = ""
        self.version = getattr(self, "version", 0) + 1

    @property
    def step(self) -> int:
        step = self.newest.get("step", {}).get("step")
        if isinstance(step, int):
            return step
        return 0

    @property
    def total(self) -> int:
        total = self.start.get("steps")
        if isinstance(total, int):
            return total
        return 0

    def value(self, name: str) -> float | None:
        found = self.newest.get("step", {}).get(name)
        return found if is_number(found) else None

    def take(self, event: dict[str, Any]) -> None:
        """One more event. Values that are no numbers are left out of the curves, None is a gap in
        them.
        """
        kind, step = str(event.get("event", "")), event.get("step")
        if isinstance(step, int) and abs(step) > _LAST_STEP:
            step = None  # no stage gets there, and no curve has room for it
        self.events += 1
        self.version += 1
        self.last_kind = kind
        # a process that was killed between a checkpoint and the end measures anew
        is_repeated = kind in _CURVES and self.newest.get(kind, {}).get("step") == step
        self.newest[kind] = event
        if kind == "start" and not self.start:
            self.start = event
        elif kind in ("start", "settings") and event.get("steps"):
            # settled after the start, or more at a resume
            self.start = {**self.start, "steps": event["steps"]}
        elif kind in _CURVES and isinstance(step, int) and not is_repeated:
            self._points(self.steps if kind == "step" else self.evals, event, step)
        if isinstance(step, int) and not is_repeated:
            self._keep_place(kind, event, step)
        self._note(kind, event, step if isinstance(step, int) else None)

    def _keep_place(self, kind: str, event: dict[str, Any], step: int) -> None:
        """Where the long texts of an event stand."""
        place = event.get("offset" if kind == "sample" else "groups")
        if not isinstance(place, int):
            return
        if kind == "step":
            self.groups.add(step, place)
        elif kind in ("eval", "before"):
            self.held_out.append((step, place))
            self.first_held_out = self.first_held_out or (step, place)
        elif kind == "sample":
            self.samples.append((step, place))

    def _points(self, curves: dict[str, Series], event: dict[str, Any], step: int) -> None:
        for name, value in event.items():
            if (
                value.__class__ not in _NUMBERS or name in _NO_CURVES
            ):  # for each value of each event: be quick
                continue
            if value.__class__ is int and abs(value) > _LAST_STEP:
                continue
            series = curves.get(name)
            if series is None:
                if len(curves) >= FIELDS:
                    continue
                series = curves[name] = Series(self.buckets)
            series.add(step, value)

    def _note(self, kind: str, event: dict[str, Any], step: int | None) -> None:
        at = event.get("t")
        text = {
            "warning": f"! {event.get('message', '')}",
            "failed": f"✗ {event.get('message', '')}",
            "checkpoint": f"saved {event.get('path', '')}",
            "resume": f"resumed from step {step}",
            "done": "✓ done",
            "paused": f"‖ paused: {event.get('reason', '')}",
        }.get(kind)
        if kind in ("eval", "before"):
            text = _held_out(event)
        if kind == "paused" and is_number(event.get("seconds")):
            text = f"{text}, {duration(event['seconds'])}"
        if text is not None:
            known = isinstance(at, (int, float)) and 0 <= at < 1e11  # a time that a calendar knows
            self.notes.append((float(at) if known else 0.0, step, text))  # type: ignore[arg-type]


def _held_out(event: dict[str, Any]) -> str:
    """A measurement in a few words: its loss, or what a stage that learns from rewards measures."""
    for name in ("loss", "reward", "accuracy"):
        value = event.get(name)
        if is_number(value):
            if name == "loss":
                return f"held-out {value:.4f}"
            return f"held-out {name} {value:.3f}"
        if name in event:
            return f"held-out {name} is not a number"
    return "measured on held-out data"


class Follower:
    """Reads a file of events from where it stopped, whole lines only. One thread at a time."""

    def __init__(self, path: Path, history: History | None = None) -> None:
        self.path, self.history = path, history or History()
        self._offset = 0
        self._inode: int | None = None
        self._cuts: list[tuple[int, int]] = []  # (byte where a resume stands, its step)
        self.lag = 0
        self._trouble = ""  # why the file could not be read, as it was last told

    def read(self, most: int = CHUNK) -> bool:
        """Takes in at most `most` further bytes; True where something came. A file that was
        replaced, cut or whose run was begun anew is read again from its beginning. One that cannot
        be read is told of in the notes, once."""
        try:
            if self.path.exists() and not self.path.is_file():
                return self._tell("is not a file")  # reading from a pipe would wait for ever
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self._inode != status.st_ino or status.st_size < self._offset:
                    self._again(status.st_ino)
                    self._cuts = _resumes(self.path)
                file.seek(self._offset)
                data = file.read(most)
                unread = status.st_size - self._offset
                while data and b"\n" not in data and len(data) < min(unread, LONGEST):
                    data += file.read(most)  # one very long line
                while data and b"\n" not in data and len(data) < unread:
                    unread -= len(data)  # one that no stage has written: it is passed over
                    self._offset += len(data)
                    data = file.read(most)
        except FileNotFoundError:
            if self._inode is not None:
                self._again(None)
                return True
            return False
        except OSError as error:
            return self._tell(f"cannot be read: {error.strerror}")
        end = data.rfind(b"\n") + 1
        self.lag = max(status.st_size - self._offset - end, 0)
        if not end:
            return False
        self._take(data[:end])
        return True

    def _tell(self, trouble: str) -> bool:
        if trouble == self._trouble:
            return False
        self._trouble = trouble
        with self.history.lock:
            self.history.take({"event": "warning", "message": f"{self.path.name} {trouble}"})
        return True

    def _again(self, inode: int | None) -> None:
        self._inode, self._offset, self._cuts = inode, 0, []
        with self.history.lock:
            self.history.clear()

    def _take(self, data: bytes) -> None:
        at = self._offset
        events: list[tuple[int, dict[str, Any]]] = []
        for raw in data.splitlines(keepends=True):
            try:
                event = parse_json(raw)
            except (ValueError, RecursionError):
                event = {
                    "event": "warning",
                    "message": f"the line at byte {at} is damaged and was left out",
                }
            if isinstance(event, dict):
                events.append((at, event))
            at += len(raw)
        fresh = [
            (place, event["step"])
            for place, event in events
            if event.get("event") == "resume"
            and isinstance(event.get("step"), int)
            and (place, event["step"]) not in self._cuts
        ]
        if fresh:
            self._cuts += fresh
            if self.history.step > min(step for _, step in fresh):
                cuts, inode = self._cuts, self._inode
                self._again(inode)
                self._cuts = cuts
                return
        with self.history.lock:
            for place, event in events:
                if not self._void(place, event.get("step")):
                    self.history.take(event)
        self._offset = at

    def _void(self, place: int, step: Any) -> bool:
        return isinstance(step, int) and any(
            place < cut and step > last for cut, last in self._cuts
        )


def _resumes(path: Path) -> list[tuple[int, int]]:
    """Where resumes stand in a file, and their steps: a search through its bytes, of which few
    lines are parsed.
    """
    found, base, rest = [], 0, b""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            data = rest + piece
            end = data.rfind(b"\n") + 1
            at = data.find(_RESUME, 0, end)
            while at >= 0:
                start, stop = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at) + 1
                step = _resumed(data[start:stop])
                if step is not None:
                    found.append((base + start, step))
                at = data.find(_RESUME, stop, end)
            base, rest = base + end, data[end:]
    return found


def _resumed(line: bytes) -> int | None:
    """The step of a resume; None for any other line."""
    try:
        event = parse_json(line)
    except (ValueError, RecursionError):
        return None
    resume = isinstance(event, dict) and event.get("event") == "resume"
    if resume and isinstance(event.get("step"), int):
        return event["step"]
    return None


def follow(owner: Widget, follower: Follower) -> None:
    """The body of a thread worker: reads until it is cancelled, and tells `owner` at most once in
    NEWS_S.
    """
    worker = get_current_worker()
    told, untold = 0.0, False
    while not worker.is_cancelled:
        untold = follower.read() or untold
        if untold and time.monotonic() - told >= NEWS_S:
            told, untold = time.monotonic(), False
            owner.post_message(StageNews(follower.history, follower.lag))
        # While much is unread the keyboard's thread gets its turn all the same.
        time.sleep(0.002 if follower.lag else EVERY_S)


def texts_at(path: Path, offset: int) -> dict[str, Any] | None:
    """The record at this place of a file of long texts; None where it is not (yet) there."""
    try:
        return read_at(path, offset)
    except (OSError, ValueError, RecursionError):
        return None
