"""The messages of a chat: who speaks, what is said, which tools are called, and what of it is learned.
Anything else is a `BadRow` that says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ondevice.common.json_files import parse_json
from ondevice.config.template_kwargs import TAKEN
from ondevice.data.row_keys import Record

Row = Mapping[str, Any]
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
"""What every template is helped to read of a message, or the loss: see
assistant_ranges.py.
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


class BadRow(Exception):
    """A row that cannot be used; the text is the reason."""


def messages_of(value: list[Any], key: str) -> list[Chat]:
    """Messages in our words for who speaks. Raises BadRow for what is not one."""
    if not value:
        raise BadRow(f"{key} is empty")
    return [_message(entry, f"{key}: message {number}") for number, entry in enumerate(value, 1)]


def _message(value: Any, where: str) -> Chat:
    """One message. What a template may read of it is the template's own affair, so every key goes
    on to it.
    """
    if not isinstance(value, Mapping):
        raise BadRow(f"{where} is not an object")
    entry = Record.of(value)
    speaker = entry.first("role", "from")
    role = _role(speaker, where)
    content = entry.first("content", "value")
    kept = _kept(entry, where)
    if "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(entry, where)
    is_call = speaker.lower() == "function_call"
    if "function_call" in entry and (is_call or kept.get("tool_calls")):
        raise BadRow(f"{where} has calls in two places, function_call is one")
    learned = _learned(entry, where)
    if learned is not None:
        kept["weight"] = int(learned)
    if is_call:
        kept["tool_calls"] = _calls(content, where)
        content = None
    elif "function_call" in entry:
        kept["tool_calls"] = _calls(entry["function_call"], where)
    if content is not None:
        content = _content(content, where)
    elif not kept.get("tool_calls"):
        raise BadRow(f"{where} has no content")
    return {"role": role, "content": content, **kept}


def _role(speaker: Any, where: str) -> str:
    role = None
    if isinstance(speaker, str):
        role = _SPEAKERS.get(speaker.lower())
    if role is None:
        raise BadRow(
            f"{where} has no known role ({speaker!r:.40}): a role is system, user, assistant or tool"
        )
    return role


def _kept(entry: Record, where: str) -> Chat:
    """What a message says beside its role and content, as JSON has it."""
    kept: Chat = {}
    for name, said in dict.items(entry):
        if name in _READ or said is None:
            continue
        if name == "tool_calls" and said == []:
            continue
        if not isinstance(said, _JSON):
            said = str(said)
        kept[str(name)] = _checked(said, f"{where}: {name}")
    for name in _TEMPLATES_READ:
        entry.get(name)
    return kept


def _tool_calls(entry: Record, what: str) -> list[Any]:
    """A message's calls, a list of objects or JSON of one."""
    calls = _checked(_from_json(entry, "tool_calls"), f"{what}: tool_calls")
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow(f"{what}: tool_calls is not a list of objects")
    return calls


def _learned(entry: Record, what: str) -> bool | None:
    """Whether a message is to be learned; None where it does not say. Raises BadRow where it says
    both, or says it of parts of itself."""
    found: dict[str, bool] = {}
    for name, learned in _FLAGS.items():
        value = dict.get(entry, name)
        if _is_flag(value):
            found[name] = value == learned
            entry.get(name)  # which counts as used
    for name in _IN_PARTS:
        if entry.get(name):
            raise BadRow(f"{what} has {name}: a part of a message cannot be learned by itself")
    if not found:
        return None
    first = next(iter(found))
    weight = dict.get(entry, "weight")
    if weight in (0, 1):
        found["weight"] = weight == 1
    for name in found:
        if found[name] != found[first]:
            raise BadRow(
                f"{what} is to be learned and is not: {first} and {name} contradict each other"
            )
    if weight not in (None, 0, 1):
        raise BadRow(f"{what} has the weight {weight!r:.40}: it is 0 (read, not learned) or 1")
    return found[first]


def flag_to_learn(message: Row) -> str | None:
    """The key by which a message says that it is to be learned; None where none says so."""
    for name, learned in _FLAGS.items():
        value = message.get(name)
        if _is_flag(value) and value == learned:
            return name
    return None


def _is_flag(value: Any) -> bool:
    """Whether a value is a truth: a loss that somebody has measured is not one."""
    if isinstance(value, bool):
        return True
    return isinstance(value, int) and value in (0, 1)


def said_by(value: Any, role: str, key: str) -> list[Chat]:
    """A prompt or completion: a string that the role says, or a list of messages."""
    if isinstance(value, list):
        return messages_of(value, key)
    return [{"role": role, "content": text_of(number_as_text(value), key)}]


def number_as_text(value: Any) -> Any:
    """Answers of sums are often written as numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, int) or math.isfinite(value):
        return str(value)
    return value


def _calls(value: Any, what: str) -> list[Chat]:
    """Tool calls of {"name", "arguments"}, of several, or of JSON of them: ShareGPT's, and OpenAI's
    older form.
    """
    if isinstance(value, str):
        value = _parsed(value, f"{what}: its call is not JSON")
    if not isinstance(value, list):
        value = [value]
    return [_call(call, what) for call in value]


def _call(call: Any, what: str) -> Chat:
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise BadRow(f"{what}: its call has no name")
    function = dict(_checked(call, what))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        reason = f"{what}: the arguments of its call are not JSON"
        function["arguments"] = _parsed(arguments or "{}", reason)
    return {"type": "function", "function": function}


def _parsed(text: str, reason: str) -> Any:
    """The value of a JSON text. Raises BadRow with the `reason`."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{reason}: {error}") from error


def _content(value: Any, what: str) -> str:
    """A content is a string, or a list of parts of which only texts can be used."""
    if isinstance(value, list):
        value = "".join([_part(part, what) for part in value])
    return text_of(value, what)


def _part(part: Any, what: str) -> str:
    text = part
    kind = "text"
    if isinstance(part, Mapping):
        text = part.get("text")
        kind = part.get("type", "text")
    if kind not in _PARTS:
        raise BadRow(f"{what} has a part that is not text ({kind!r:.40})")
    if not isinstance(text, str):
        raise BadRow(f"{what} has a part that is not text")
    return text


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


def text_of(value: Any, what: str) -> str:
    """A text that can be encoded. Raises BadRow for anything else."""
    if value is None:
        raise BadRow(f"{what} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{what} is of the wrong kind ({type(value).__name__}, not text)")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can spell half a character, which no encoder takes
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


def with_tools(messages: list[Chat], row: Row) -> list[Chat]:
    """The chat, its first message holding the row's tools, a list of objects, and its
    `chat_template_kwargs`, an object; or JSON of them. A function that is described by itself, as
    in `functions` and in ShareGPT's exports, becomes a tool."""
    column = "functions"
    if TOOLS in row:
        column = TOOLS
    tools = _from_json(row, column)
    kwargs = _from_json(row, KWARGS)
    more: Chat = {}
    if tools:
        more[TOOLS] = _tools(tools)
    if kwargs:
        _need_template_kwargs(kwargs)
        more[KWARGS] = kwargs
    more = {key: _checked(value, key) for key, value in more.items()}
    if messages and more:
        return [{**messages[0], **more}, *messages[1:]]
    return messages


def _tools(tools: Any) -> list[Any]:
    """The tools, a function that is described by itself made into one."""
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("tools is not a list of objects")
    made: list[Any] = []
    for tool in tools:
        if "name" in tool and "function" not in tool:
            tool = {"type": "function", "function": tool}
        made.append(tool)
    return made


def _need_template_kwargs(kwargs: Any) -> None:
    """Raises BadRow for what a chat template cannot be given."""
    if not isinstance(kwargs, Mapping):
        raise BadRow(f"{KWARGS} is not an object of names and values")
    for name in TAKEN:
        if name in kwargs:
            raise BadRow(f"{KWARGS} cannot give {name}")


def _from_json(row: Row, key: str) -> Any:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return _parsed(value, f"{key} is not JSON")
    return value
