"""Rows of text, of labelled text, of chats and of prompts. Anything else is a `BadRow` that says
what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from ondevice.data.class_labels import NO_LABEL, LabelledText
from ondevice.data.messages import (
    KWARGS,
    TOOLS,
    BadRow,
    Chat,
    Row,
    content_alone,
    flag_to_learn,
    messages_of,
    number_as_text,
    said_by,
    text_of,
    with_tools,
)
from ondevice.data.row_keys import Record, carries
from ondevice.data.rows import Rows

T = TypeVar("T")

ANSWERED = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "answer"),
    ("prompt", "response"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)
"""Columns of what is asked and of what is answered, also OpenOrca's and MetaMath's."""
ASKED = ("prompt", "question", "query")
"""Columns of what is asked."""
_FORMS = "text, messages, prompt and completion, prompt and answer, instruction and output, or conversations"
_CHATS = ("messages", "conversations", "conversation")
_OF_THE_CHAT = (
    "prompt",
    "messages",
    "conversations",
    "completion",
    "system",
    "system_prompt",
    "history",
    "functions",
    TOOLS,
    KWARGS,
)
"""Columns that are in a prompt's messages, or not for those who answer it."""


class Unlabelled(BadRow):
    """A row whose class nobody has said: nothing is wrong with it, it is left out and counted."""


def accounted(convert: Callable[[Record], T]) -> Callable[[Row], T]:
    """A form whose rows are bad where they say a part of a chat that it has not taken up. What else
    it has not asked for, the row itself remembers."""

    @wraps(convert)
    def door(row: Row) -> T:
        record = Record.of(row)
        made = convert(record)
        nothing_lost(record)
        return made

    return door


def nothing_lost(row: Record) -> None:
    """Raises BadRow where a part of a chat was not asked for."""
    for name in row.unused():
        if carries(name):
            raise BadRow(
                f"{name} is there, and cannot be taken up in this form of row (leave it out)"
            )


@accounted
def to_text(row: Record) -> str:
    """Text to pre-train on: the row's `text`, or the contents of its chat with an empty line
    between them.
    """
    if "text" in row:
        text = text_of(row["text"], "text")
        if not text:
            raise BadRow("the text is empty")
        return text
    messages = _whole_chat(row)["messages"]
    for number, message in enumerate(messages, 1):
        if message.get("weight") == 0:
            raise BadRow(f"message {number} is not to be learned, and of plain text every token is")
    for name in (TOOLS, KWARGS):
        if name in messages[0]:
            raise BadRow(f"plain text has no place for {name} (sft takes chats)")
    return "\n\n".join(content_alone(message, "plain text") for message in messages)


def to_label(row: Row, text: str, label: str, pair: str = "") -> LabelledText:
    """A row's text and class, and the second text of the column `pair` where one is named. Raises
    Unlabelled where the class is -1."""
    row = Record.of(row)
    if not _is_text(row.get(text)):
        raise BadRow(f"the column {text!r} holds no text{_columns(row, text, 'text')}")
    second = None
    if pair:
        second = row.get(pair)
        if not _is_text(second):
            raise BadRow(f"the column {pair!r} holds no text{_columns(row, pair, 'pair')}")
    found = row.get(label)
    if not isinstance(found, str | int):
        raise BadRow(f"the column {label!r} holds no class{_columns(row, label, 'label')}")
    if str(found) == str(NO_LABEL):
        raise Unlabelled(f"the class is {NO_LABEL}, which says that there is none")
    nothing_lost(row)
    if not isinstance(found, str):  # a text stays as it is: it may be a `ClassName`
        found = str(found)
    first = text_of(row[text], text)
    if pair:
        return LabelledText(first, found, text_of(second, pair))
    return LabelledText(first, found, None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _columns(row: Row, wanted: str, setting: str) -> str:
    """For people: which columns there are, where the one that is wanted is not."""
    if wanted in row:
        return ""
    return f": the columns are {', '.join(map(str, row))} (name one with --{setting})"


def to_chat(row: Row) -> Chat:
    """{"messages": [{"role", "content"}, …]} of a row with messages, conversations, instruction,
    prompt or question; what its columns say of a system prompt, of earlier turns and of tools is in
    it. A message that is read and not learned has the weight 0."""
    made = _whole_chat(row)
    for number, message in enumerate(made["messages"], 1):
        flag = flag_to_learn(message)
        if flag is not None and message["role"] != "assistant":
            raise BadRow(
                f"message {number}, of the {message['role']}, is to be learned ({flag}): only what an "
                "assistant says is"
            )
    return made


@accounted
def _whole_chat(row: Record) -> Chat:
    if is_kto(row):
        raise BadRow(
            "label says whether this completion is good: dpo --loss-type kto learns from such rows, sft would"
            " learn the bad ones too"
        )
    return {"messages": with_tools(before(_chat(row), row), row)}


def is_kto(row: Record) -> bool:
    """Whether a row is one completion with a truth of whether it is good."""
    return "completion" in row and isinstance(dict.get(row, "label"), bool)


def _chat(row: Record) -> list[Chat]:
    """The messages of a row, in whichever of the known forms it has them."""
    for key in _CHATS:
        if key in row and isinstance(row[key], list):
            return messages_of(row[key], key)
    for asked, answered in ANSWERED:
        if asked in row and answered in row:
            question = said_by(row[asked], "user", asked)
            return question + said_by(row[answered], "assistant", answered)
    for answered in ("output", "response"):
        if "instruction" in row and answered in row:
            instruction = {"role": "user", "content": instruction_of(row)}
            return [instruction, *said_by(row[answered], "assistant", answered)]
    raise _no_chat(row)


def _no_chat(row: Record) -> BadRow:
    """Why a row has no chat."""
    if "chosen" in row and "rejected" in row:
        return BadRow("this is a pair, of chosen and rejected: reward and dpo take it")
    if "text" in row:
        return BadRow("this row has a text and no chat")
    for key in _CHATS:
        if row.get(key) is not None:
            return BadRow(f"{key} is not a list of messages")
    reason = f"none of the known forms: {_FORMS}{it_has(row)}"
    if any(row.get(name) is not None for name in ASKED):
        reason += "; a prompt alone is for sample, ppo and grpo"
    return BadRow(reason)


def it_has(row: Record) -> str:
    """For people: which columns a row has."""
    if row:
        return f" (it has {', '.join(list(row)[:8])})"
    return ""


def before(messages: list[Chat], row: Record) -> list[Chat]:
    """The chat after what the row's columns say came before it: `system` (or `system_prompt`), and
    `history`, a list of messages or of [what was asked, what was answered]."""
    earlier = _history(row.get("history"))
    opening = _system_of(messages)
    rest = messages[len(opening) :]
    system = row.first("system", "system_prompt")
    if system is not None:
        said = text_of(system, "system")
        if said.strip():
            if opening and opening[0]["content"] != said:
                raise BadRow("its column says another system prompt than its first message")
            opening = opening or [{"role": "system", "content": said}]
    own = _system_of(earlier)
    if own:
        if opening and opening[0]["content"] != own[0]["content"]:
            raise BadRow("its history begins with another system prompt than the row's")
        opening = opening or own
    return [*opening, *earlier[len(own) :], *rest]


def _system_of(messages: list[Chat]) -> list[Chat]:
    """The system prompt that messages begin with, or none."""
    if messages and messages[0]["role"] == "system":
        return messages[:1]
    return []


def _history(history: Any) -> list[Chat]:
    """The turns of the column `history`."""
    if not history:
        return []
    if not isinstance(history, list):
        raise BadRow("history is not a list of turns")
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in history):
        return messages_of(history, "history")
    turns: list[Chat] = []
    for asked, answered in history:
        turns += said_by(asked, "user", "history")
        turns += said_by(answered, "assistant", "history")
    return turns


def instruction_of(row: Record) -> str:
    """Alpaca's instruction with its input, or Dolly's with its context."""
    asked = text_of(row["instruction"], "instruction")
    more = row.first("input", "context")
    if more is None:
        return asked
    more = text_of(number_as_text(more), "input")
    if more:
        return f"{asked}\n\n{more}"
    return asked


@accounted
def to_prompt(row: Record) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The conversation that is to be answered, and the row's other columns. Of a whole chat the
    assistant's last words are left out: they are an answer. A prompt that ends with the assistant
    is bad: nothing here goes on with words that are begun."""
    asked = _asked_column(row)
    if asked:
        messages = said_by(row[asked], "user", asked)
    elif "instruction" in row:
        messages = [{"role": "user", "content": instruction_of(row)}]
    else:
        messages = _chat(row)
    messages = before(messages, row)
    if asked and messages[-1]["role"] == "assistant":
        raise BadRow(
            "its prompt ends with the assistant: an answer that is begun cannot be gone on with"
        )
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    is_asked = any(message["role"] == "user" for message in messages)
    if not is_asked or not str(messages[-1]["content"]).strip():
        raise BadRow("holds nothing that a user says")
    for name in ("answer", "kind"):
        row.get(name)  # what rules and rewards read
    others = {name: value for name, value in dict.items(row) if name not in _OF_THE_CHAT}
    return with_tools(messages, row), others


def _asked_column(row: Record) -> str:
    """The column of what is asked; empty where there is none."""
    for name in ASKED:
        if isinstance(dict.get(row, name), (str, list, int, float)):
            return name
    return ""


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
