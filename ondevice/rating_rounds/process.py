"""The loop as a process: begun by whoever rates, it ends with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress

from ondevice.common import processes
from ondevice.rating_rounds.places import RoundsFolder

END_S = 20.0  # that the loop gets to end by itself


def start_loop(folder: RoundsFolder) -> subprocess.Popen[bytes] | None:
    """The loop as a process that ends with this one; None where one is at work already. Raises
    OSError."""
    if folder.busy:
        return None
    folder.stop.unlink(missing_ok=True)
    with folder.log.open("ab") as out:
        return processes.start(
            processes.command("ondevice.rating_rounds.loop", str(folder.run.path.absolute())),
            processes.Access.OWN,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def ask_to_end(folder: RoundsFolder) -> None:
    """Asks the loop to end, whoever began it, and what is trained to save and leave."""
    if folder.busy:
        folder.stop.touch()
    stop_training(folder)


def end_loop(folder: RoundsFolder, process: subprocess.Popen[bytes] | None) -> None:
    """Ends the loop that was begun here, and has what is trained save and leave."""
    if process is None:
        return
    process.terminate()
    stop_training(folder)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()  # it remembers nothing that is not on the disk
        process.wait()


def stop_training(folder: RoundsFolder) -> None:
    """Asks what is being trained to save and leave; the next loop goes on with it."""
    for version in folder.versions():
        holder = version.trainer.holder() or {}
        pid = holder.get("pid")
        if isinstance(pid, int) and pid > 1 and holder.get("host") == socket.gethostname():
            # heard before its first stage and between two of them, where no file is looked for
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        for stage in version.stages:
            if stage.holder() is not None:
                stage.stop.touch()
