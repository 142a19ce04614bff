"""A row, or a message of one, that remembers which of its keys were asked for.

Nothing that a row says is passed over in silence. What a form takes up is recorded here, where it
is read, and not kept in a list by hand: a key that nobody asked for was not used. What then carries
a part of the chat makes the row bad, names that say nothing about what is learned are let be, and
the rest is named once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

CONTENT = frozenset(
    (
        "system",
        "system_prompt",
        "history",  # said before the prompt
        "tools",
        "functions",
        "tool_calls",
        "function_call",
        "chat_template_kwargs",  # what a template writes
        "reasoning",
        "reasoning_content",
        "thinking",
        "thought",
        "thoughts",  # what an assistant thinks
        "weight",
        "train",
        "trainable",
        "train_on_turn",
        "train_detail",
        "masked",  # whether a message is learned
        "image",
        "images",
        "audio",
        "audios",
        "video",
        "videos",
    )
)  # what no model here can read
"""Names that carry a part of what a chat says, or of how it is learned: a row whose form does not
take them up is bad."""

HARMLESS = {
    **dict.fromkeys(
        (
            "id",
            "_id",
            "uid",
            "uuid",
            "idx",
            "index",
            "row_id",
            "prompt_id",
            "question_id",
            "message_id",
            "conversation_id",
            "conversation_hash",
            "hash",
            "sha256",
            "prompt_sha",
        ),
        "names a row",
    ),
    "tool_call_id": "says which call is answered, as the order of the messages does",
    **dict.fromkeys(
        (
            "source",
            "source_chosen",
            "source_rejected",
            "dataset",
            "dataset_name",
            "origin",
            "url",
            "license",
            "created",
            "created_at",
            "timestamp",
            "split",
            "item",
            "batch",
        ),
        "says where it is from",
    ),
    "asked_of": "says what a question was made of",
    **dict.fromkeys(("model", "sampling"), "says who answered, and with which settings"),
}
"""Names that say nothing about what is learned, each with its reason: these are not told of."""


class Record(dict[str, Any]):
    """A mapping in which a null is as good as no key. A value that is asked for counts as used;
    whether a name is there may be asked without using it. A list of objects holds records too."""

    __slots__ = ("asked", "bad", "template")

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(
            (name, _inside(value)) for name, value in values.items() if value is not None
        )
        self.asked: set[str] = set()
        self.bad = False  # its reason is told: what else it holds is of no interest
        self.template = ""  # every key of a message goes on to it, and those that it names are used

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Record:
        if isinstance(row, Record):
            return row
        return cls(row)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def first(self, *names: str) -> Any:
        """The value of the first of these names that is there; None without any."""
        for name in names:
            if name in self:
                return self[name]
        return None

    def items(self) -> Any:
        self.asked.update(self)
        return super().items()

    def values(self) -> Any:
        self.asked.update(self)
        return super().values()

    def unused(self) -> Iterator[str]:
        """Names that nobody asked for; of a message as `messages.name`. None of a row that is bad."""
        if self.bad:
            return
        for name, value in super().items():
            if name not in self.asked:
                yield name
            elif isinstance(value, list):
                for inner in _unused_inside(value):
                    if not _mentions(self.template, inner):
                        yield f"{name}.{inner}"


def _unused_inside(entries: list[Any]) -> list[str]:
    """Names that nobody asked for in any of the records of a list, each once."""
    names: dict[str, None] = {}
    for entry in entries:
        if isinstance(entry, Record):
            names |= dict.fromkeys(entry.unused())
    return list(names)


@lru_cache(maxsize=1024)
def _mentions(template: str, name: str) -> bool:
    return name in template and re.search(rf"\b{re.escape(name)}\b", template) is not None


def _inside(value: Any) -> Any:
    """A value of a record, in which objects of a list are records too."""
    if not isinstance(value, list) or not any(isinstance(entry, Mapping) for entry in value):
        return value
    entries = []
    for entry in value:
        if isinstance(entry, Mapping):
            entry = Record(entry)
        entries.append(entry)
    return entries


def carries(name: str) -> bool:
    """Whether what is called so (`messages.name` in a message) is a part of what a chat says."""
    return name.rpartition(".")[2] in CONTENT


def telling(unused: Mapping[str, tuple[int, str]]) -> str:
    """What to say of names that were not used, each with how many rows have it and where the first
    one is; empty where none is worth a word."""
    worth = []
    for name, (count, where) in unused.items():
        if name.rpartition(".")[2] not in HARMLESS:
            worth.append((-count, name, where))
    if not worth:
        return ""
    worth.sort()
    words = []
    for minus_count, name, where in worth[:8]:
        rows = "1 row" if minus_count == -1 else f"{-minus_count:,} rows"
        words.append(f"{name} ({rows}, first {where})")
    text = "not used: " + ", ".join(words)
    if len(worth) > 8:
        text += f" and {len(worth) - 8} more"
    return text
