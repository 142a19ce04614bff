"""What threads tell the screens. A flood of news about one stage collapses into the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual.message import Message


@dataclass
class StageNews(Message):
    """Somebody's `History` has grown; `lag` bytes of the file are still unread."""

    history: Any
    lag: int

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, StageNews) and message.history is self.history


@dataclass
class ProblemsRead(Message):
    """More of the groups' file has been read into somebody's `Problems`."""

    problems: Any

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ProblemsRead) and message.problems is self.problems


@dataclass
class GroupFound(Message):
    """What a search through all groups came to: (step, group in it), None where none passes.
    `number` is the search's: a later one makes it void."""

    number: int
    place: tuple[int, int] | None


@dataclass
class RunsRead(Message):
    """What stands in the folder of runs now (`run_reader.RunsReader`); `trouble` says why it cannot
    be read, `unread` how many of its runs no look has come to yet.
    """

    runs: list[dict[str, Any]]
    trouble: str = ""
    unread: int = 0

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, RunsRead)


@dataclass
class MachineRead(Message):
    """What `ondevice doctor` found, as one line."""

    line: str


@dataclass
class ChildEnded(Message):
    """A process that this app started has ended; `tail` is the end of its log."""

    what: str
    code: int
    tail: str
