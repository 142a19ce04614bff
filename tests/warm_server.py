"""Forks processes that have torch imported already; started by `warm_processes`, no test by itself.

A request is one JSON message with four file descriptors: standard input, output and error of the
process, and the socket on which its number and then its status are told. Nothing has run in this
process when it forks: no thread, no lock, no random number is inherited.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import TypedDict


class Request(TypedDict):
    """What a process is to run, where."""

    words: list[str]
    environment: dict[str, str]
    folder: str


AHEAD = ("torch", "torch._dynamo", "ondevice_torch.backend", "safetensors.numpy")


def serve(door: socket.socket) -> Request:
    """Returns in each process that was asked for, with its request; ends with its client."""
    wake_in, wake_out = socket.socketpair()
    for end in (wake_in, wake_out):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_out.fileno())
    tellers: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([door, wake_in], [], [])
        if wake_in in ready:
            wake_in.recv(4096)
            reap(tellers)
        if door not in ready:
            continue
        message, handles, _, _ = socket.recv_fds(door, 1 << 20, 4)
        if not message:
            os._exit(0)
        child = os.fork()
        if child == 0:
            for end in (door, wake_in, wake_out, *tellers.values()):
                end.close()
            become(handles)
            request: Request = json.loads(message)
            return request
        teller = socket.socket(fileno=handles.pop())
        for handle in handles:
            os.close(handle)
        teller.sendall(f"{child}\n".encode())
        tellers[child] = teller


def reap(tellers: dict[int, socket.socket]) -> None:
    """Tells each process that has ended how it ended."""
    for child in list(tellers):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with tellers.pop(child) as teller:
                teller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(handles: list[int]) -> None:
    """What a process of its own has: its three handles and no other, and signals as at a start."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, handle in enumerate(handles[:3]):
        os.dup2(handle, number)
    for handle in handles:
        os.close(handle)


def run(request: Request) -> None:
    """The words of a command line after the interpreter: -c and code, or -m and a module."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    kind, what, *arguments = request["words"]
    sys.path[0] = ""
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for module in AHEAD:
        importlib.import_module(module)
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
