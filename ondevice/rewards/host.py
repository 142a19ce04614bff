"""The process in which reward functions run that may hang, crash or print: a person's `reward.py`,
and `judges.py`.

    python -m ondevice.rewards.host FILE PARENT [NAME,NAME…]

JSON lines on stdin and stdout. First {"ready": [{"name", "needs"}], "unused": [names of public
functions that are no rewards]} or {"failed", "where"}; then for each {"call": name, "arguments":
{…}} one {"values": […]} (number, null, or {"type": name} for what is not a number) or {"error",
"where"}, with {"full": path} where the disk was full. What the functions print goes to stderr, what
they read is empty.

It ends, and everything it started in its process group with it, when its stdin ends or its parent
is gone.
"""

from __future__ import annotations

import errno
import importlib.util
import inspect
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ondevice.common.json_files import parse_json

MODULE = "ondevice_user_reward"
LOOK_S = 0.5  # between two looks at whether the parent lives


class NoReward(Exception):
    """The file holds no such function, or none at all."""


def main() -> None:
    """Serves until stdin ends."""
    file, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    requests, replies = _take_pipes()
    sys.path.insert(0, str(file.parent))
    try:
        module = _load(file)
        names = []
        if len(sys.argv) > 3:
            names = sys.argv[3].split(",")
        functions = reward_functions(module, names)
        ready = [{"name": name, "needs": _needs(function)} for name, function in functions.items()]
        unused = []
        if not names:
            unused = [name for name in _written(module) if name not in functions]
    # a file may end in any way, sys.exit() included; the parent tells the person
    except BaseException as error:
        _send(replies, {"failed": _named(error), "where": _place(error, file)})
        _end()
    _send(replies, {"ready": ready, "unused": unused})
    for line in requests:
        request = parse_json(line)
        _send(replies, _reply(functions[request["call"]], request["arguments"], file))
    _end()


def reward_functions(module: ModuleType, names: list[str]) -> dict[str, Callable[..., Any]]:
    """Those of `names`; none named: every public function written in the module that takes
    `completions`, and where none is written there, every one that it imports.

    Raises NoReward where there is none.
    """
    for name in names:
        if not callable(getattr(module, name, None)):
            raise NoReward(f"there is no function {name!r}")
    if names:
        return {name: getattr(module, name) for name in names}
    written = _written(module)
    own: dict[str, Callable[..., Any]] = {}
    imported: dict[str, Callable[..., Any]] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or not _judges(value):
            continue
        if name in written:
            own[name] = value
        else:
            imported[name] = value
    found = own or imported
    if not found:
        raise NoReward("there is no reward function: a public function that takes `completions`")
    return found


def _written(module: ModuleType) -> list[str]:
    """Public functions of the module itself, and what it has made that can be called as one."""
    names = []
    for name, value in vars(module).items():
        if not name.startswith("_") and _is_written_in(module, value):
            names.append(name)
    return names


def _is_written_in(module: ModuleType, value: Any) -> bool:
    if inspect.isclass(value):
        return False
    if inspect.isfunction(value):
        return value.__module__ == module.__name__
    return _judges(value)


def _judges(value: Any) -> bool:
    """Whether it can be called with completions."""
    if not callable(value) or inspect.isclass(value):
        return False
    try:
        return "completions" in inspect.signature(value).parameters
    except (TypeError, ValueError):  # of what is written in C
        return False


class Turn(str):
    """A text that is a conversation of one message, too: TRL's reward functions read
    `completion[0]["content"]` and `prompt[-1]["content"]` where others read a text."""

    role = "assistant"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return str.__getitem__(self, key)
        letter = ""
        if self:
            letter = str.__getitem__(self, key)
        return Message(letter, self)


class Asked(Turn):
    role = "user"


_KINDS = {"completions": Turn, "prompts": Asked}


class Message(str):
    """A letter of a text, and the message that the text is."""

    turn: Turn

    def __new__(cls, letter: str, turn: Turn) -> Message:
        made = super().__new__(cls, letter)
        made.turn = turn
        return made

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._message()[key]
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return key in self._message() or (isinstance(key, str) and super().__contains__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._message().get(key, default)

    def _message(self) -> dict[str, str]:
        return {"role": self.turn.role, "content": str(self.turn)}


def _load(file: Path) -> ModuleType:
    loader = SourceFileLoader(MODULE, str(file))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    loader.exec_module(module)
    return module


def _needs(function: Callable[..., Any]) -> list[str]:
    """Parameters that a caller must give."""
    names = []
    for parameter in inspect.signature(function).parameters.values():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.default is parameter.empty:
            names.append(parameter.name)
    return names


def _reply(
    function: Callable[..., Any], arguments: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    given = {name: _as_turns(name, column) for name, column in arguments.items()}
    taken = _taken(function, given)
    try:
        values = function(**taken)
        if inspect.iscoroutine(values):
            import asyncio  # 40 ms

            values = asyncio.run(values)
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"returned {type(values).__name__}, not a list of numbers")
        return {"values": [_value(value) for value in values]}
    except BaseException as error:  # whatever it is, it is the person's, and is told to them
        return {"error": _named(error), "where": _place(error, file), **_full(error)}


def _full(error: BaseException) -> dict[str, str]:
    """Where a function has found the disk full: that is not the function's fault."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"full": os.path.abspath(error.filename or ".")}
    return {}


class _Printed(io.TextIOWrapper):
    """What is printed goes to a log; what a full disk refuses of it is dropped."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _as_turns(name: str, column: Any) -> Any:
    """A column whose texts are conversations, too, where it is of prompts or completions."""
    kind = _KINDS.get(name)
    if kind is None:
        return column
    turns = []
    for one in column:
        turns.append(kind(one) if isinstance(one, str) else one)
    return turns


def _taken(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the arguments that the function has a parameter for."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = [parameter.name for parameter in parameters]
    return {name: arguments[name] for name in names if name in arguments}


def _value(value: Any) -> Any:
    if value is None:
        return None
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        return {"type": type(value).__name__}
    return {"type": type(value).__name__}


def _named(error: BaseException) -> str:
    if isinstance(error, NoReward):
        return str(error)
    text = str(error)
    if isinstance(error, SyntaxError):
        text = error.msg
    return " ".join(f"{type(error).__name__}: {text}".split())[:500].rstrip(": ")


def _place(error: BaseException, file: Path) -> str:
    """file:line, the innermost line of the file itself."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(file):
            return f"{file}:{frame.lineno}"
    return str(file)


def _take_pipes() -> tuple[IO[str], IO[str]]:
    """stdin and stdout for the protocol alone; in their places nothing to read, and stderr."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    printed = io.FileIO(2, "w", closefd=False)
    # unbuffered: what was refused does not come again with the next line
    sys.stdout = sys.stderr = _Printed(
        printed,
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )
    return requests, replies


def _send(replies: IO[str], message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    _end()


def _end() -> None:
    """Ends this process at once, threads and children of the person's code included."""
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
