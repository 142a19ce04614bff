"""A conversation in a file of its own: one JSONL row, in the form that `sft` reads.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}],
     "chat_template_kwargs": {"enable_thinking": false},         where the chat template was told something
     "model": "runs/minute/sft/model", "sampling": {"temperature": 0.8, …}, "created": "2026-11-30T02:15:00"}

A file is never replaced by another conversation: `save` takes one that holds the beginning of what
is saved, or none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import parse_json, to_json

FOLDER = "chats"  # of a run folder
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """What was said, by which model (several where one took another's place), and how its answers
    were drawn.
    """

    messages: Sequence[Mapping[str, Any]]
    model: str | Sequence[str] = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def save(file: Path, conversation: Conversation) -> None:
    """Writes the conversation, whole or not at all. Raises UserError where the file holds anything
    but the beginning of it, and where it cannot be written."""
    if file.exists():
        before = [dict(message) for message in load(file).messages]
        now = [dict(message) for message in conversation.messages]
        if now[: len(before)] != before:
            raise UserError("holds another conversation", where=str(file), hint="name another file")
    row: dict[str, Any] = {"messages": [dict(message) for message in conversation.messages]}
    if conversation.template_kwargs:
        row["chat_template_kwargs"] = dict(conversation.template_kwargs)
    row |= {
        "model": conversation.model,
        "sampling": dict(conversation.sampling),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(clock())),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, to_json(row) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(file)) from error


def load(file: Path) -> Conversation:
    """The conversation in a file. Raises UserError for a file that is not one row of messages, each
    a role and a text, the assistant's last; and for one with tools: nobody answers their calls
    here."""
    row = _only_row(file)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(
            "is not a conversation: one row with messages",
            where=str(file),
            hint="name another file",
        )
    for number, message in enumerate(messages):
        if not _is_turn(message, number):
            raise UserError(
                f"message {number + 1} is not a role ({', '.join(_ROLES)}) and a text",
                where=str(file),
                hint="only such a conversation can go on here",
            )
    if messages[-1]["role"] != "assistant":
        raise UserError(
            "does not end with an answer",
            where=str(file),
            hint="only an answered conversation can go on",
        )
    if row.get("tools") or row.get("functions"):
        raise UserError(
            "has tools, whose calls nobody answers here", where=str(file), hint="name another file"
        )
    return Conversation(
        messages,
        row.get("model") or "",
        _mapping(row.get("sampling")),
        _mapping(row.get("chat_template_kwargs")),
    )


def new_file(run: Path, stage: str) -> Path:
    """A name that is free, in the run's folder of conversations."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(clock()))}-{stage}"
    file = run / FOLDER / f"{stem}.jsonl"
    number = 1
    while file.exists():
        number += 1
        file = run / FOLDER / f"{stem}-{number}.jsonl"
    return file


def saved(run: Path) -> list[Path]:
    """The run's conversations, the newest first."""
    return sorted((run / FOLDER).glob("*.jsonl"), reverse=True)


def _only_row(file: Path) -> Mapping[str, Any]:
    """The row of a file that holds one; empty for any other file. Raises UserError where it cannot
    be read.
    """
    try:
        lines = bounded.read_text(file).split("\n")
        if lines[1:] in ([], [""]):
            return _mapping(parse_json(lines[0]))
        return {}
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(file)) from error
    except (ValueError, RecursionError):
        return {}


def _is_turn(message: Any, number: int) -> bool:
    """Whether this is a message that a chat can go on from; a system message stands first."""
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and isinstance(message["content"], str)
        and message["role"] in _ROLES[bool(number) :]
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    return {}
