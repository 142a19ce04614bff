"""Rows of the known forms, made into text or chats. Anything else is a `BadRow` that says what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ondevice.config.template_kwargs import TAKEN
from ondevice.data.classes import NO_LABEL, LabelledText

if TYPE_CHECKING:
    from ondevice.data.readers import Rows

Row = Mapping[str, Any]
Chat = dict[str, Any]

# What the speakers are called in ShareGPT's exports and their descendants.
_SPEAKERS = {
    "system": "system", "developer": "system", "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}
_READ = ("role", "from", "content", "value")
_JSON = (str, int, float, bool, list, Mapping)
_SAID = ("tool_calls", "reasoning_content", "thinking", "reasoning")  # what a message says beside its content
TOOLS = "tools"
"""A row's column, and the key of its first message, by which a chat's tools reach the template: so they stay with every
part of the chat that is asked or answered."""
KWARGS = "chat_template_kwargs"
"""A row's column of further names that its chat's template reads, as in TRL; it travels as the tools do."""
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("prompt", "answer"), ("prompt", "response"))
_FORMS = "text, messages, prompt and completion, prompt and answer, instruction and output, or conversations"


class BadRow(Exception):
    """A row that cannot be used; the text is the reason."""


class Unlabelled(BadRow):
    """A row whose class nobody has said: nothing is wrong with it, it is left out and counted."""


def to_text(row: Row) -> str:
    """Text to pre-train on: the row's `text`, or the contents of its chat with an empty line between them."""
    if "text" in row:
        text = text_of(row["text"], "text")
        if not text:
            raise BadRow("the text is empty")
        return text
    return "\n\n".join(_content_alone(message, "plain text") for message in to_chat(row)["messages"])


def to_label(row: Row, text: str, label: str, pair: str = "") -> LabelledText:
    """A row's text and class, and the second text of the column `pair` where one is named. Raises Unlabelled where the
    class is -1."""
    if not isinstance(row.get(text), str) or not row[text].strip():
        raise BadRow(f"the column {text!r} holds no text{_columns(row, text, 'text')}")
    beside = row.get(pair) if pair else None
    if pair and (not isinstance(beside, str) or not beside.strip()):
        raise BadRow(f"the column {pair!r} holds no text{_columns(row, pair, 'pair')}")
    found = row.get(label)
    if not isinstance(found, str | int):
        raise BadRow(f"the column {label!r} holds no class{_columns(row, label, 'label')}")
    if str(found) == str(NO_LABEL):
        raise Unlabelled(f"the class is {NO_LABEL}, which says that there is none")
    return LabelledText(text_of(row[text], text), found if isinstance(found, str) else str(found),
                        text_of(beside, pair) if pair else None)


def _columns(row: Row, wanted: str, setting: str) -> str:
    """For people: which columns there are, where the one that is wanted is not."""
    if wanted in row:
        return ""
    return f": the columns are {', '.join(map(str, row))} (name one with --{setting})"


def to_chat(row: Row) -> Chat:
    """{"messages": [{"role", "content"}, …]} of a row with messages, conversations, instruction, prompt or question."""
    return {"messages": with_tools(_chat(row), row)}


def _chat(row: Row) -> list[Chat]:
    for key in ("messages", "conversations", "conversation"):
        if isinstance(row.get(key), list):
            return messages_of(row[key], key)
    for asked, answered in _PAIRS:
        if asked in row and answered in row:
            return _said(row[asked], "user", asked) + _said(row[answered], "assistant", answered)
    if "instruction" in row and "output" in row:
        return _alpaca(row)
    if "text" in row:
        raise BadRow("this row has a text and no chat")
    raise BadRow(f"none of the known forms: {_FORMS}")


def to_prompt(row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The conversation up to the last thing that the user says, and the row's other columns."""
    if isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": text_of(row["prompt"], "prompt")}]
    elif isinstance(row.get("prompt"), list):
        messages = messages_of(row["prompt"], "prompt")
    elif isinstance(row.get("question"), str):
        messages = [{"role": "user", "content": text_of(row["question"], "question")}]
    else:
        messages = _chat(row)
    while messages and messages[-1]["role"] != "user":
        messages = messages[:-1]
    if not messages or not str(messages[-1]["content"]).strip():
        raise BadRow("holds nothing that a user says")
    taken = ("prompt", "messages", "conversations", "completion", TOOLS, KWARGS)
    known = {k: v for k, v in row.items() if k not in taken}
    return with_tools(messages, row), known


def to_pair(row: Row) -> dict[str, Any]:
    """{"prompt": messages, "chosen", "rejected"} of a row with these, strings or messages; without a prompt the two
    share their beginning."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        raise BadRow("a pair has chosen and rejected")
    prompt = row.get("prompt", row.get("question"))
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise BadRow("a pair has a prompt")
    asked = messages_of(prompt, "prompt")
    said = [_response(x) for x in (chosen, rejected)]
    if said[0] == said[1]:
        raise BadRow("chosen and rejected are the same")
    return {"prompt": with_tools(asked, row), "chosen": said[0], "rejected": said[1]}


def _response(value: Any) -> str:
    """May be empty: to say nothing, and stop, is a response that people rate."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = _content_alone(value[0], "a response")
    if not isinstance(value, str):
        raise BadRow("a response is one text, or one message")
    return text_of(value, "a response")


def _content_alone(message: Row, what: str) -> Any:
    """A message's content, where that is all that it says."""
    for name in _SAID:
        if message.get(name):
            raise BadRow(f"a message has {name}, which {what} cannot say")
    return message.get("content")


def texts(rows: Rows) -> Iterator[str]:
    """Texts of all rows; the bad ones are set aside in `rows`."""
    for row, where in rows:
        try:
            text = to_text(row)
        except BadRow as error:
            rows.reject(where, str(error), row)
            continue
        yield text


def chats(rows: Rows) -> Iterator[Chat]:
    """Chats of all rows, each with the `where` it came from; the bad ones are set aside in `rows`."""
    for row, where in rows:
        try:
            chat = to_chat(row)
        except BadRow as error:
            rows.reject(where, str(error), row)
            continue
        yield {**chat, "where": where}


def with_tools(messages: list[Chat], row: Row) -> list[Chat]:
    """The chat, its first message holding the row's tools, a list of objects, and its `chat_template_kwargs`, an
    object; or JSON of them."""
    tools, kwargs = _from_json(row, TOOLS), _from_json(row, KWARGS)
    if tools and (not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRow("tools is no list of objects")
    if kwargs and not isinstance(kwargs, Mapping):
        raise BadRow(f"{KWARGS} is not an object of names and values")
    if kwargs and (taken := [name for name in TAKEN if name in kwargs]):
        raise BadRow(f"{KWARGS} cannot give {taken[0]}")
    more = {key: _checked(value, key) for key, value in ((TOOLS, tools), (KWARGS, kwargs)) if value}
    return [{**messages[0], **more}, *messages[1:]] if messages and more else messages


def _from_json(row: Row, key: str) -> Any:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{key} is not JSON: {error}") from error
    return value


def messages_of(value: list[Any], key: str) -> list[Chat]:
    """Messages in our words for who speaks. Raises BadRow for what is none."""
    if not value:
        raise BadRow(f"{key} is empty")
    messages = []
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, Mapping):
            raise BadRow(f"{key}: message {number} is no object")
        speaker = entry.get("role", entry.get("from"))
        role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise BadRow(f"{key}: message {number} has no known role ({speaker!r:.40})")
        content = entry.get("content", entry.get("value"))
        # What a template may read of a message is the template's own affair, so every key goes on to it.
        kept = {str(name): _checked(said if isinstance(said, _JSON) else str(said), f"{key}: message {number}: {name}")
                for name, said in entry.items()
                if name not in _READ and said is not None and not (name == "tool_calls" and said == [])}
        if content is not None or not kept.get("tool_calls"):
            content = _content(content, f"{key}: message {number}")
        messages.append({"role": role, "content": content, **kept})
    return messages


def _said(value: Any, role: str, key: str) -> list[Chat]:
    """A prompt or completion: a string, or a list of messages."""
    if isinstance(value, list):
        return messages_of(value, key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)   # answers of sums are often written as numbers
    return [{"role": role, "content": text_of(value, key)}]


def _alpaca(row: Row) -> list[Chat]:
    asked, more = text_of(row["instruction"], "instruction"), row.get("input") or ""
    asked = f"{asked}\n\n{text_of(more, 'input')}" if more else asked
    system = [{"role": "system", "content": text_of(row["system"], "system")}] if row.get("system") else []
    return [*system, {"role": "user", "content": asked},
            {"role": "assistant", "content": text_of(row["output"], "output")}]


def _content(value: Any, what: str) -> str:
    """A content is a string, or a list of parts of which only texts can be used."""
    if isinstance(value, list):
        parts = []
        for part in value:
            text = part.get("text") if isinstance(part, Mapping) else part
            if not isinstance(text, str):
                raise BadRow(f"{what} has a part that is no text")
            parts.append(text)
        value = "".join(parts)
    return text_of(value, what)


def text_of(value: Any, what: str) -> str:
    """A text that can be encoded. Raises BadRow for anything else."""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of the wrong kind ({type(value).__name__}, not text)"
        raise BadRow(f"{what} is {kind}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:   # JSON can spell half a character, which no encoder takes
            raise BadRow(f"{what} holds a lone surrogate at character {error.start}") from error
    return value


def _checked(value: Any, what: str) -> Any:
    """`value` with every string in it tested."""
    if isinstance(value, str):
        return text_of(value, what)
    if isinstance(value, Mapping):
        return {text_of(key, what): _checked(entry, what) for key, entry in value.items()}
    return [_checked(entry, what) for entry in value] if isinstance(value, list) else value
