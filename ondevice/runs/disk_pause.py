"""A run that finds the disk full: it pauses, says what is full and what to do, looks again each half
minute, and goes on when there is room.

While the disk is full nothing can be added to it, so others learn of the pause from the stage's
lock: its few bytes are written over in place. Once there is room, an event says how long it took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ondevice.common import disk
from ondevice.common.clock import ticks
from ondevice.common.disk import DiskFull
from ondevice.common.errors import Interrupted
from ondevice.common.progress import duration, size
from ondevice.common.sanitize import to_stderr
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import StageFolder, StopRequest

LOOK_S = 30.0  # between two looks at the free space
STOP_LOOK_S = 0.1  # between two looks at whether a person asks for a stop
BLIND = 20  # looks after which it is tried all the same: free space does not say all
REASON = "the disk is full"


class DiskPause:
    """Waits for room in a run's stages (`disk.Waiter`). Nothing waits before `under_way`: what does
    not fit at the start is refused there."""

    def __init__(self, stop: StopRequest, say: Callable[[str], None] = to_stderr) -> None:
        self.under_way = False
        self._stop, self._say = stop, say
        self._stage: StageFolder | None = None
        self._events: EventWriter | None = None
        self._on_over: Callable[[float], None] = lambda seconds: None
        self._waiting: list[dict[str, Any]] = []  # events that are told once there is a file
        self._full: DiskFull | None = None  # what is waited for
        self._began = 0.0
        self._one_at_a_time = threading.RLock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, what finds the disk full waits."""
        with disk.waiting(self):
            yield

    def begin(self, stage: StageFolder) -> None:
        """The stage whose lock says that it is paused, from now on."""
        self._stage, self._events = stage, None

    def attach(self, events: EventWriter, on_over: Callable[[float], None]) -> None:
        """Where pauses are written down, and who else is told how many seconds they took."""
        self._events, self._on_over = events, on_over
        for event in self._waiting:  # of before this attempt, whose time they are no part of
            events.note("paused", **event)
        self._waiting.clear()

    def detach(self) -> None:
        """The events' file is closed."""
        self._events, self._on_over = None, lambda seconds: None

    def wait(self, full: DiskFull) -> None:
        """Returns where it is worth another try. Raises `full` at a run's start, and Interrupted
        once a stop is requested."""
        if not self.under_way:
            raise full
        with self._one_at_a_time:
            first, self._full = self._full is None, full
            self._tell_others(paused=f"{full.what()} ({full.path})")
            if first:
                self._began = ticks()
                self._say(self._told(full))
            before = disk.free_bytes(full.path)
            for look in range(BLIND):
                self._sleep()
                if look + 1 == BLIND or _worth_a_try(full, before):
                    break

    def over(self) -> None:
        """What was waited for is written."""
        with self._one_at_a_time:
            full, self._full = self._full, None
            if full is None:
                return
            seconds = ticks() - self._began
            self._say(f"there is room again after {duration(seconds)}: going on")
            self._tell_others(paused=None)
            event = {
                "reason": REASON,
                "seconds": round(seconds, 3),
                "file": str(full.path),
                "needed": full.needed or None,
                "free": full.free,
            }
            if self._events is None:
                self._waiting.append(event)
            else:
                self._events.note("paused", **event)
                self._on_over(seconds)

    def _sleep(self) -> None:
        """Half a minute. Raises Interrupted as soon as a stop is requested."""
        end = ticks() + LOOK_S
        self._stop.paused = True
        try:
            while True:
                if self._stop.requested:
                    self._tell_others(paused=None, stopped=f"stopped while {REASON}")
                    raise Interrupted(
                        f"stopped while {REASON}: what the last checkpoint holds is kept"
                    )
                left = end - ticks()
                if left <= 0:
                    return
                time.sleep(min(left, STOP_LOOK_S))
        finally:
            self._stop.paused = False

    def _tell_others(self, **fields: str | None) -> None:
        if self._stage is not None:
            self._stage.note(**fields)

    def _told(self, full: DiskFull) -> str:
        room = f"at least {size(full.needed)} of room" if full.needed else "room"
        return (
            f"paused: {full.what()}, at {full.path}. Make {room} there (ondevice runs lists what "
            f"each run takes): it goes on by itself, looked at every {LOOK_S:.0f} seconds. Ctrl-C "
            "stops here, with the last checkpoint whole"
        )


def _worth_a_try(full: DiskFull, before: int | None) -> bool:
    """Whether there is more room than there was: less than that did not suffice. Of a person's
    share nothing tells but another try."""
    free = disk.free_bytes(full.path)
    if full.share or free is None or before is None:
        return True
    if free < full.needed:
        return False
    # room may have been made before the first look
    return free > before or free >= 2 * full.needed + (1 << 20)
