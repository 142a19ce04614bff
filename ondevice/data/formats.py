"""Rows of the known forms, made into text or chats. Anything else is a `BadRow` that says what is
missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, TypeVar

from ondevice.config.template_kwargs import TAKEN
from ondevice.data.class_labels import NO_LABEL, LabelledText
from ondevice.data.readers import Rows
from ondevice.data.row_keys import Record, carries

Row = Mapping[str, Any]
T = TypeVar("T")
Chat = dict[str, Any]

# What the speakers are called in ShareGPT's exports and their descendants.
_SPEAKERS = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_READ = ("role", "from", "content", "value", "function_call")
_JSON = (str, int, float, bool, list, Mapping)
# what a message says beside its content
_SAID = ("tool_calls", "reasoning_content", "thinking", "reasoning")
_TEMPLATES_READ = ("weight", *_SAID)
"""What every template is helped to read of a message, or the loss: see rendering.py and
learned_ranges.py.
"""
_PARTS = ("text", "input_text", "output_text")
"""What a part of a content is called that is a text, also in OpenAI's Responses API."""
_FLAGS = {
    "train": True,
    "training": True,
    "trainable": True,
    "train_on_turn": True,
    "loss": True,
    "masked": False,
    "mask": False,
}
"""Keys of a message that say by a truth whether it is learned (axolotl's train, ms-swift's and
XTuner's loss) or not (torchtune's masked). They become its weight, OpenAI's key for it."""
_IN_PARTS = ("train_detail",)  # axolotl's: which characters of a message are learned
TOOLS = "tools"
"""A row's column, and the key of its first message, by which a chat's tools reach the template: so
they stay with every part of the chat that is asked or answered."""
KWARGS = "chat_template_kwargs"
"""A row's column of further names that its chat's template reads, as in TRL; it travels as the
tools do.
"""
_PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "answer"),
    ("prompt", "response"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)  # OpenOrca's, MetaMath's
_FORMS = "text, messages, prompt and completion, prompt and answer, instruction and output, or conversations"
_ASKED = ("prompt", "question", "query")
_CHATS = ("messages", "conversations", "conversation")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
"""What opens a turn where a chat is one text, as in Anthropic's HH-RLHF."""


class BadRow(Exception):
    """A row that cannot be used; the text is the reason."""


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
    if lost := [name for name in row.unused() if carries(name)]:
        raise BadRow(
            f"{lost[0]} is there, and cannot be taken up in this form of row (leave it out)"
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
    if left := [n for n, message in enumerate(messages, 1) if message.get("weight") == 0]:
        raise BadRow(f"message {left[0]} is not to be learned, and of plain text every token is")
    if apart := [name for name in (TOOLS, KWARGS) if name in messages[0]]:
        raise BadRow(f"plain text has no place for {apart[0]} (sft takes chats)")
    return "\n\n".join(content_alone(message, "plain text") for message in messages)


def to_label(row: Row, text: str, label: str, pair: str = "") -> LabelledText:
    """A row's text and class, and the second text of the column `pair` where one is named. Raises
    Unlabelled where the class is -1."""
    row = Record.of(row)
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
    nothing_lost(row)
    return LabelledText(
        text_of(row[text], text),
        found if isinstance(found, str) else str(found),
        text_of(beside, pair) if pair else None,
    )


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
        said = [
            name
            for name, learned in _FLAGS.items()
            if _is_flag(message.get(name)) and message[name] == learned
        ]
        if said and message["role"] != "assistant":
            raise BadRow(
                f"message {number}, of the {message['role']}, is to be learned ({said[0]}): only what an "
                "assistant says is"
            )
    return made


@accounted
def _whole_chat(row: Record) -> Chat:
    if "completion" in row and isinstance(dict.get(row, "label"), bool):
        raise BadRow(
            "label says whether this completion is good: dpo --loss-type kto learns from such rows, sft would"
            " learn the bad ones too"
        )
    return {"messages": with_tools(before(_chat(row), row), row)}


def _chat(row: Record) -> list[Chat]:
    for key in _CHATS:
        if key in row and isinstance(row[key], list):
            return messages_of(row[key], key)
    for asked, answered in _PAIRS:
        if asked in row and answered in row:
            return _said(row[asked], "user", asked) + _said(row[answered], "assistant", answered)
    for answered in ("output", "response"):
        if "instruction" in row and answered in row:
            return [
                {"role": "user", "content": _instruction(row)},
                *_said(row[answered], "assistant", answered),
            ]
    if "chosen" in row and "rejected" in row:
        raise BadRow("this is a pair, of chosen and rejected: reward and dpo take it")
    if "text" in row:
        raise BadRow("this row has a text and no chat")
    for key in _CHATS:
        if row.get(key) is not None:
            raise BadRow(f"{key} is no list of messages")
    alone = any(row.get(name) is not None for name in _ASKED)
    raise BadRow(
        f"none of the known forms: {_FORMS}{it_has(row)}"
        + "; a prompt alone is for sample, ppo and grpo" * alone
    )


def it_has(row: Record) -> str:
    """For people: which columns a row has."""
    if row:
        return f" (it has {', '.join(list(row)[:8])})"
    return ""


def before(messages: list[Chat], row: Record) -> list[Chat]:
    """The chat after what the row's columns say came before it: `system` (or `system_prompt`), and
    `history`, a list of messages or of [what was asked, what was answered]."""
    earlier, history = [], row.get("history")
    if isinstance(history, list) and history:
        if all(isinstance(entry, list) and len(entry) == 2 for entry in history):
            earlier = [
                turn
                for asked, answered in history
                for turn in _said(asked, "user", "history")
                + _said(answered, "assistant", "history")
            ]
        else:
            earlier = messages_of(history, "history")
    elif history:
        raise BadRow("history is not a list of turns")
    system = row.first("system", "system_prompt")
    opening = messages[:1] if messages and messages[0]["role"] == "system" else []
    if system is not None and (said := text_of(system, "system")).strip():
        if opening and opening[0]["content"] != said:
            raise BadRow("its column says another system prompt than its first message")
        opening = opening or [{"role": "system", "content": said}]
    if earlier and earlier[0]["role"] == "system":
        if opening and opening[0]["content"] != earlier[0]["content"]:
            raise BadRow("its history begins with another system prompt than the row's")
        opening, earlier = opening or earlier[:1], earlier[1:]
    return [
        *opening,
        *earlier,
        *(messages[1:] if messages and messages[0]["role"] == "system" else messages),
    ]


def _instruction(row: Record) -> str:
    """Alpaca's instruction with its input, or Dolly's with its context."""
    asked, more = text_of(row["instruction"], "instruction"), row.first("input", "context")
    more = "" if more is None else text_of(_number_as_text(more), "input")
    if more:
        return f"{asked}\n\n{more}"
    return asked


@accounted
def to_prompt(row: Record) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The conversation that is to be answered, and the row's other columns. Of a whole chat the
    assistant's last words are left out: they are an answer. A prompt that ends with the assistant
    is bad: nothing here goes on with words that are begun."""
    asked = next(
        (name for name in _ASKED if isinstance(dict.get(row, name), (str, list, int, float))), ""
    )
    if asked:
        messages = _said(row[asked], "user", asked)
    elif "instruction" in row:
        messages = [{"role": "user", "content": _instruction(row)}]
    else:
        messages = _chat(row)
    messages = before(messages, row)
    if asked and messages[-1]["role"] == "assistant":
        raise BadRow(
            "its prompt ends with the assistant: an answer that is begun cannot be gone on with"
        )
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if (
        not any(message["role"] == "user" for message in messages)
        or not str(messages[-1]["content"]).strip()
    ):
        raise BadRow("holds nothing that a user says")
    for name in ("answer", "kind"):
        row.get(name)  # what rules and rewards read
    known = {
        k: v
        for k, v in dict.items(row)
        if k
        not in (
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
    }
    return with_tools(messages, row), known


@accounted
def to_pair(row: Record) -> dict[str, Any]:
    """{"prompt": messages, "chosen", "rejected"} of a row with these, strings or messages, and what
    it says of "strength", "margin" and "raters".

    Where both are chats they may begin with the prompt, whether it stands by itself too or not;
    without one the two share their beginning, as in TRL's `maybe_extract_prompt`. Texts of "Human:"
    and "Assistant:" are such chats.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        raise BadRow("a pair has chosen and rejected" + _of_another_form(row))
    asked, as_text = _asked_of(row)
    sides = [
        _turns(side, name, bool(asked))
        for side, name in ((chosen, "chosen"), (rejected, "rejected"))
    ]
    asked, sides = _prompt_apart(asked, sides, as_text)
    said = [_response(side) for side in sides]
    if said[0] == said[1]:
        raise BadRow("chosen and rejected are the same")
    made: dict[str, Any] = {
        "prompt": with_tools(before(asked, row), row),
        "chosen": said[0],
        "rejected": said[1],
    }
    for name, least in (("strength", 1.0), ("margin", -math.inf)):
        if name in row:
            made[name] = _number(row[name], name, least)
    raters = dict.get(row, "raters")  # what is no list of names is not used, and told of
    if isinstance(raters, list) and all(isinstance(rater, str) for rater in raters):
        made["raters"] = list(row["raters"])
    return made


def is_judged(row: Row) -> bool:
    """Whether a row is one completion with whether it is good, TRL's unpaired preferences."""
    return "completion" in row and "label" in row and "chosen" not in row


@accounted
def to_judged(row: Record) -> dict[str, Any]:
    """{"prompt": messages, "completion", "label"} of a row with these: one answer, and whether it
    is good.
    """
    if not is_judged(row):
        raise BadRow("a completion that is judged has prompt, completion and label" + it_has(row))
    asked, _ = _asked_of(row)
    if not asked:
        raise BadRow("a completion that is judged has a prompt")
    said = _turns(row["completion"], "completion", True)
    if said[: len(asked)] == asked:
        said = said[len(asked) :]
    label = row["label"]
    if isinstance(label, str):
        good = _VERDICTS.get(label.strip().lower())
    elif label in (0, 1):
        good = label
    else:
        good = None
    if good is None:
        raise BadRow("label is not true or false")
    return {
        "prompt": with_tools(before(asked, row), row),
        "completion": _response(said),
        "label": bool(good),
    }


_VERDICTS = {"true": True, "false": False, "1": True, "0": False}  # as CSV has them


def _of_another_form(row: Record) -> str:
    """What else the row is, for a stage that wants pairs."""
    if "completion" in row and isinstance(dict.get(row, "label"), bool):
        return "; this is one completion that is good or bad: dpo --loss-type kto takes it"
    with_answer = (
        any(asked in row and answered in row for asked, answered in _PAIRS) or "instruction" in row
    )
    if with_answer or any(
        isinstance(dict.get(row, name), list) for name in ("messages", "conversations")
    ):
        return "; these are chats: sft takes them"
    if isinstance(dict.get(row, "text"), str):
        return "; this is a text: pretrain takes it"
    return it_has(row)


def _asked_of(row: Record) -> tuple[list[Chat], bool]:
    """(what the row says by itself that both responses answer, whether as a text); empty where it
    says nothing.
    """
    asked = row.first(*_ASKED)
    if isinstance(asked, str):
        return _transcript(asked) or [{"role": "user", "content": text_of(asked, "prompt")}], True
    if isinstance(asked, list):
        return messages_of(asked, "prompt"), False
    if asked is not None:
        raise BadRow("a prompt is a text, or messages")
    if "instruction" in row:
        return ([{"role": "user", "content": _instruction(row)}], True)
    return ([], False)


def _turns(side: Any, name: str, asked: bool) -> list[Chat]:
    if isinstance(side, list):
        return messages_of(side, name)
    if not isinstance(side, str):
        raise BadRow("a response is one text, or messages")
    if not asked:
        if not (found := _transcript(side)):
            raise BadRow("a pair of texts has a prompt")
        return found
    return [{"role": "assistant", "content": text_of(side, "a response")}]


def _transcript(text: str) -> list[Chat]:
    """The turns of a text that begins with "Human:"; empty for any other. An "Assistant:" at its
    end opens a turn that is yet to come."""
    opening = _TURN.match(text)
    if opening is None or opening[1] != "Human":
        return []
    parts = _TURN.split(text_of(text, "a chat"))[1:]
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        return turns[:-1]
    return turns


def _prompt_apart(
    asked: list[Chat], sides: list[list[Chat]], as_text: bool
) -> tuple[list[Chat], list[list[Chat]]]:
    """The prompt, and what each side says after it."""
    chosen, rejected = sides
    shared = 0
    while shared < min(map(len, sides)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not asked or (as_text and shared):
        if not shared:
            raise BadRow("a pair has a prompt")
        if asked and asked[-1]["content"] not in [
            message["content"] for message in chosen[:shared]
        ]:
            raise BadRow("its prompt is not what chosen and rejected begin with")
        return chosen[:shared], [side[shared:] for side in sides]
    if shared and all(side[: len(asked)] == asked for side in sides):
        return asked, [side[len(asked) :] for side in sides]
    return asked, sides


def _number(value: Any, name: str, least: float) -> float:
    """A number, or a text of one, as CSV has it."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise BadRow(
            f"{name} is not a number" + (f" of {least:g} or more" if math.isfinite(least) else "")
        )
    return number


def _response(said: list[Chat]) -> str:
    """May be empty: to say nothing, and stop, is a response that people rate."""
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise BadRow("a response is one text, or one message of the assistant")
    return str(content_alone(said[0], "a response"))


def content_alone(message: Row, what: str) -> Any:
    """A message's content, where that is all that it says, and all of it is learned."""
    for name in _SAID:
        if message.get(name):
            raise BadRow(f"a message has {name}, which {what} cannot say")
    if message.get("weight") not in (None, 1):
        raise BadRow(
            f"a message has the weight {message['weight']!r:.40}, and all of {what} is learned"
        )
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
    """The chat, its first message holding the row's tools, a list of objects, and its
    `chat_template_kwargs`, an object; or JSON of them. A function that is described by itself, as
    in `functions` and in ShareGPT's exports, becomes a tool."""
    tools, kwargs = _from_json(row, TOOLS if TOOLS in row else "functions"), _from_json(row, KWARGS)
    if tools and (
        not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise BadRow("tools is no list of objects")
    if kwargs and not isinstance(kwargs, Mapping):
        raise BadRow(f"{KWARGS} is not an object of names and values")
    if kwargs and (taken := [name for name in TAKEN if name in kwargs]):
        raise BadRow(f"{KWARGS} cannot give {taken[0]}")
    tools = [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool
        else tool
        for tool in tools or ()
    ]
    more = {key: _checked(value, key) for key, value in ((TOOLS, tools), (KWARGS, kwargs)) if value}
    if messages and more:
        return [{**messages[0], **more}, *messages[1:]]
    return messages


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
        entry = Record.of(entry)
        speaker = entry.first("role", "from")
        role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise BadRow(
                f"{key}: message {number} has no known role ({speaker!r:.40}): a role is system, user, "
                "assistant or tool"
            )
        content = entry.first("content", "value")
        # What a template may read of a message is the template's own affair, so every key goes on
        # to it.
        kept = {
            str(name): _checked(
                said if isinstance(said, _JSON) else str(said), f"{key}: message {number}: {name}"
            )
            for name, said in dict.items(entry)
            if name not in _READ and said is not None and not (name == "tool_calls" and said == [])
        }
        for name in _TEMPLATES_READ:
            entry.get(name)
        if "tool_calls" in kept:
            kept["tool_calls"] = _tool_calls(entry, f"{key}: message {number}")
        if "function_call" in entry and (
            kept.get("tool_calls") or speaker.lower() == "function_call"
        ):
            raise BadRow(f"{key}: message {number} has calls in two places, function_call is one")
        if (learned := _learned(entry, f"{key}: message {number}")) is not None:
            kept["weight"] = int(learned)
        if speaker.lower() == "function_call":
            kept["tool_calls"], content = _calls(content, f"{key}: message {number}"), None
        elif "function_call" in entry:
            kept["tool_calls"] = _calls(entry["function_call"], f"{key}: message {number}")
        if content is not None or not kept.get("tool_calls"):
            if content is None:
                raise BadRow(f"{key}: message {number} has no content")
            content = _content(content, f"{key}: message {number}")
        messages.append({"role": role, "content": content, **kept})
    return messages


def _tool_calls(entry: Record, what: str) -> list[Any]:
    """A message's calls, a list of objects or JSON of one."""
    calls = _checked(_from_json(entry, "tool_calls"), f"{what}: tool_calls")
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow(f"{what}: tool_calls is no list of objects")
    return calls


def _learned(entry: Record, what: str) -> bool | None:
    """Whether a message is to be learned; None where it does not say. Raises BadRow where it says
    both, or says it of parts of itself."""
    found = {
        name: value == learned
        for name, learned in _FLAGS.items()
        if _is_flag(value := dict.get(entry, name))
    }
    for name in found:
        entry.get(name)
    if parts := [name for name in _IN_PARTS if entry.get(name)]:
        raise BadRow(f"{what} has {parts[0]}: a part of a message cannot be learned by itself")
    if not found:
        return None
    if (weight := dict.get(entry, "weight")) in (0, 1):
        found["weight"] = weight == 1
    first = next(iter(found))
    if other := [name for name in found if found[name] != found[first]]:
        raise BadRow(
            f"{what} is to be learned and is not: {first} and {other[0]} contradict each other"
        )
    if weight not in (None, 0, 1):
        raise BadRow(f"{what} has the weight {weight!r:.40}: it is 0 (read, not learned) or 1")
    return found[first]


def _is_flag(value: Any) -> bool:
    """Whether a value is a truth: a loss that somebody has measured is none."""
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def _said(value: Any, role: str, key: str) -> list[Chat]:
    """A prompt or completion: a string, or a list of messages."""
    if isinstance(value, list):
        return messages_of(value, key)
    return [{"role": role, "content": text_of(_number_as_text(value), key)}]


def _number_as_text(value: Any) -> Any:
    """Answers of sums are often written as numbers."""
    is_number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    if is_number:
        return str(value)
    return value


def _calls(value: Any, what: str) -> list[Chat]:
    """Tool calls of {"name", "arguments"}, of several, or of JSON of them: ShareGPT's, and OpenAI's
    older form.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{what}: its call is not JSON: {error}") from error
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise BadRow(f"{what}: its call has no name")
        function = dict(_checked(call, what))
        if isinstance(given := function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(given or "{}")
            except (ValueError, RecursionError) as error:
                raise BadRow(f"{what}: the arguments of its call are not JSON: {error}") from error
        calls.append({"type": "function", "function": function})
    return calls


def _content(value: Any, what: str) -> str:
    """A content is a string, or a list of parts of which only texts can be used."""
    if isinstance(value, list):
        parts = []
        for part in value:
            text = part.get("text") if isinstance(part, Mapping) else part
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if not isinstance(text, str) or kind not in _PARTS:
                raise BadRow(
                    f"{what} has a part that is no text" + f" ({kind!r:.40})" * (kind not in _PARTS)
                )
            parts.append(text)
        value = "".join(parts)
    return text_of(value, what)


def text_of(value: Any, what: str) -> str:
    """A text that can be encoded. Raises BadRow for anything else."""
    if not isinstance(value, str):
        if value is None:
            kind = "missing"
        else:
            kind = f"of the wrong kind ({type(value).__name__}, not text)"
        raise BadRow(f"{what} is {kind}")
    if not value.isascii():
        try:
            value.encode()
        except (
            UnicodeEncodeError
        ) as error:  # JSON can spell half a character, which no encoder takes
            raise BadRow(f"{what} holds a lone surrogate at character {error.start}") from error
    return value


def _checked(value: Any, what: str) -> Any:
    """`value` with every string in it tested."""
    if isinstance(value, str):
        return text_of(value, what)
    if isinstance(value, Mapping):
        return {text_of(key, what): _checked(entry, what) for key, entry in value.items()}
    if isinstance(value, list):
        return [_checked(entry, what) for entry in value]
    return value
