"""What an engine of several processes is on every array library: arrays cross as one flat array, and
whatever ends a connection is a ConnectionError.

Chosen: a process waits for another one as long as that one's machine answers, however long an exam
or a reward takes. A process that dies closes its connections; a machine that loses its power or its
network does not, so the system is asked to look after each connection that is silent.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ondevice.seam.ops import Array

SILENT = 15  # seconds after which the system asks whether the other machine is there
AGAIN = 5  # seconds between two questions
QUESTIONS = 5  # without an answer, after which the connection has ended
_OPTIONS = {
    "TCP_KEEPIDLE": SILENT,  # Linux
    "TCP_KEEPALIVE": SILENT,  # macOS
    "TCP_KEEPINTVL": AGAIN,
    "TCP_KEEPCNT": QUESTIONS,
    # milliseconds; of what is sent and never acknowledged, about which nothing is asked
    "TCP_USER_TIMEOUT": 1000 * (SILENT + AGAIN * QUESTIONS),
}


class FlatEngine:
    """`sum` and `send` of an `Engine`, over what a library does with one array."""

    rank: int

    def tells(self) -> bool:
        """The first one and, where it may be that one that is gone, the second one: nobody is left
        whom they could ask."""
        return self.rank <= 1

    def flat(self, arrays: Sequence[Array], summed: bool) -> Array:
        """(all numbers,) of arrays of one type, float32 where they are to be `summed`."""
        raise NotImplementedError

    def parts(self, flat: Array, arrays: Sequence[Array]) -> list[Array]:
        """What lies in `flat` one after the other, in the arrays' shapes and on their device."""
        raise NotImplementedError

    def reduce(self, flat: Array, owner: int | None) -> Array:
        """Its sum over the processes; with an `owner` in that one alone."""
        raise NotImplementedError

    def broadcast(self, flat: Array, source: int) -> Array:
        """What process `source` gave."""
        raise NotImplementedError

    def sum(self, arrays: Sequence[Array], owner: int | None = None) -> list[Array]:
        flat = self.flat(arrays, True)
        with connected():
            flat = self.reduce(flat, owner)
        return self.parts(flat, arrays)

    def send(self, arrays: Sequence[Array], source: int) -> list[Array]:
        flat = self.flat(arrays, False)
        with connected():
            flat = self.broadcast(flat, source)
        return self.parts(flat, arrays)


@contextmanager
def connected() -> Iterator[None]:
    """What goes wrong within is a connection's end."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error


def watch() -> int:
    """Has the system look after all of this process's connections to other machines; how many there
    are. A machine that is gone is noticed within a minute."""
    found = 0
    for name in os.listdir("/dev/fd"):
        with _connection(int(name)) as connection:
            if connection is None:
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _OPTIONS.items():
                number: Any = getattr(socket, option, None)
                if number is not None:
                    connection.setsockopt(socket.IPPROTO_TCP, number, value)
            found += 1
    return found


@contextmanager
def _connection(descriptor: int) -> Iterator[socket.socket | None]:
    """A second handle on an open TCP connection; None: it is something else, or closed by now."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            yield None
            return
        same = socket.socket(fileno=os.dup(descriptor))
    except OSError:  # the listing's own, which is closed
        yield None
        return
    with same:
        inet = same.family in (socket.AF_INET, socket.AF_INET6)
        yield same if inet and same.type == socket.SOCK_STREAM else None
