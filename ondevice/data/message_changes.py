"""A message with a mark in place of what it says: by what a chat template then writes otherwise, one
sees where that stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ondevice.data.chat_template import MARK, THOUGHTS, Message, content_of, with_content
from ondevice.data.messages import BadRow


def thoughts_in(message: Message) -> list[str]:
    """The keys under which the message has a thought."""
    return [key for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()]


def changes(message: Message) -> Iterator[tuple[str, Message]]:
    """(what is changed, the message with a mark in place of it) for each thing that an assistant's
    message says.
    """
    if content_of(message).strip():
        yield "content", with_content(message, MARK)
    if thoughts := thoughts_in(message):
        yield "thought", {**message, **dict.fromkeys(thoughts, MARK)}
    calls = message.get("tool_calls") or []
    for n, call in enumerate(calls):
        for name in ("name", "arguments"):
            changed = _changed_call(call, name)
            if changed != call:
                changed_calls = [*calls[:n], changed, *calls[n + 1 :]]
                yield f"call {n + 1}", {**message, "tool_calls": changed_calls}


def wholly_changed(message: Message) -> Message:
    """The message with all that it says changed, and a content where it says nothing else."""
    if content_of(message).strip() or not (message.get("tool_calls") or thoughts_in(message)):
        message = with_content(message, MARK)
    if thoughts := thoughts_in(message):
        message = {**message, **dict.fromkeys(thoughts, MARK)}
    calls = message.get("tool_calls")
    if not calls:
        return message
    changed = [_changed_call(_changed_call(call, "name"), "arguments") for call in calls]
    return {**message, "tool_calls": changed}


def replaced(chat: Sequence[Message], number: int, message: Message) -> list[Message]:
    """The chat with another message in this place."""
    return [*chat[:number], message, *chat[number + 1 :]]


def no_trace(number: int, what: str) -> BadRow:
    """For what a message says and the template does not write."""
    return BadRow(
        f"message {number + 1}: its {what} leaves no trace in what the chat template writes"
    )


def _changed_call(call: Any, name: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _changed_call(call["function"], name)}
    if name not in call:
        return call
    if name == "name":
        return {**call, name: MARK}
    return {**call, name: _marked_leaves(call[name])}


def _marked_leaves(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _marked_leaves(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_marked_leaves(entry) for entry in value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return f'{{"{MARK}": "{MARK}"}}'
    return MARK
