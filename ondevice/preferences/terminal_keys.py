"""Keys from a terminal without Enter, lines from anything else. The terminal's own modes come back
whatever happens.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
import termios
import threading
import tty
from contextlib import suppress
from types import FrameType
from typing import Any

from ondevice.common.errors import Interrupted

ESCAPE = "\x1b"
LEFT, RIGHT, MUCH_LEFT, MUCH_RIGHT = "left", "right", "shift+left", "shift+right"
ARROWS = {LEFT: "1", RIGHT: "2", MUCH_LEFT: "<", MUCH_RIGHT: ">"}
"""Arrows, and the keys that say the same of two answers."""
_SEQUENCES = {
    b"[D": LEFT,
    b"OD": LEFT,
    b"[C": RIGHT,
    b"OC": RIGHT,
    b"[1;2D": MUCH_LEFT,
    b"[1;2C": MUCH_RIGHT,
}
_AFTER_ESCAPE_S = 0.05  # an arrow key sends its bytes at once; a person does not follow Esc so fast


class Keys:
    """A context manager. On a terminal every key press is read at once and not echoed;
    `interactive` says so.

    Ctrl-C stays KeyboardInterrupt. SIGTERM and SIGHUP become Interrupted, so that the terminal is
    put back then too; after Ctrl-Z and `fg` the keys are single again.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._modes: list[Any] = []
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> Keys:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if not self.interactive:
            return self
        self._descriptor = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._modes = termios.tcgetattr(self._descriptor)
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, _stop),
                (signal.SIGHUP, _stop),
                (signal.SIGCONT, self._go_on),
            ):
                self._replaced[number] = signal.signal(number, handler)
        self._single()
        return self

    def __exit__(self, *raised: object) -> None:
        if not self.interactive:
            return
        with suppress(termios.error):  # the terminal is gone (SIGHUP): nothing is left to put back
            self._cooked()
        for number, handler in self._replaced.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def key(self) -> str | None:
        """The next character typed; LEFT and the others for arrows to the sides, any other arrow or
        function key as one ESCAPE; None at the end of the input.
        """
        while True:
            byte = os.read(self._descriptor, 1)
            if not byte or byte == b"\x04":  # Ctrl-D
                return None
            text = self._decoder.decode(byte)
            if text == ESCAPE:
                return _SEQUENCES.get(self._drain(), ESCAPE)
            if text:
                return text

    def line(self) -> str | None:
        """A line typed with the terminal's own editing; without a terminal, the next line of stdin.
        None: the end.
        """
        if not self.interactive:
            text = sys.stdin.readline() if sys.stdin is not None else ""
            if text:
                return text.rstrip("\r\n")
            return None
        self._cooked()
        try:
            data = os.read(self._descriptor, 1 << 16)
        finally:
            self._single()
        if data:
            return data.decode(errors="replace").rstrip("\r\n")
        return None

    def forget(self) -> None:
        """Drops what was typed before now: it was meant for what stood there before."""
        if self.interactive:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)

    def _single(self) -> None:
        tty.setcbreak(self._descriptor, termios.TCSADRAIN)
        # ctrl+q is to arrive, and ctrl+s is not to hold the screen: in the app neither does
        modes = termios.tcgetattr(self._descriptor)
        modes[0] &= ~termios.IXON
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, modes)

    def _cooked(self) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._modes)

    def _drain(self) -> bytes:
        """Reads the rest of an escape sequence: ESC [ … up to its final byte, ESC O and one more,
        or ESC and one. Returns it, what is longer than any that means something cut.
        """
        kind = self._soon()
        byte = self._soon() if kind in (b"[", b"O") else b""
        read = kind + byte
        while kind == b"[" and byte and not 0x40 <= byte[0] <= 0x7E:
            byte = self._soon()
            read = (read + byte)[:16]
        return read

    def _soon(self) -> bytes:
        ready = select.select([self._descriptor], [], [], _AFTER_ESCAPE_S)[0]
        if ready:
            return os.read(self._descriptor, 1)
        return b""

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        self._single()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}; every vote is saved")
