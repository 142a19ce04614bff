"""Errors that nobody foresaw: written down with their traceback, told on the screen, and no end of
the app.

Textual ends the app at the first exception of a worker or of a message's handler. Whoever rates or
watches a training loses the app to a fault that concerns one screen. So the handlers of the app,
its screens and its cards run under `Steady`, and `OndeviceApp` tells what went wrong and goes on.
Under a test it ends as ever, so that no error is hidden.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

MOST_BYTES = 1 << 20  # of the log: a larger one is begun anew


def log_file() -> Path:
    """Where errors are written down."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(state)) / "ondevice" / "app.log"


def write_trouble(doing: str, problem: BaseException) -> str:
    """Writes an error down with its traceback; returns where it stands, or why it could not be
    written.
    """
    told = "".join(traceback.format_exception(problem))
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    file = log_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            mode = "w"
        else:
            mode = "a"
        with open(file, mode, encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{when} pid {os.getpid()}: {doing}\n{told}\n")
    except OSError as error:
        return f"{file} could not be written: {error.strerror}"
    return str(file)


class Steady(MessagePump):
    """Mixed into the app, its screens and its cards: an exception in the handler of a message, or
    in the action of a key, is told, and the next message is taken."""

    async def _dispatch_message(self, message: Message) -> None:
        app: OndeviceApp = self.app  # type: ignore[assignment]
        if not app.survives:
            await super()._dispatch_message(message)
            return
        try:
            await super()._dispatch_message(message)
        except Exception as error:
            app.tell_trouble(f"{type(self).__name__} at {type(message).__name__}", error)
