"""Rows of response pairs, and of single completions that are good or bad. Anything else is a
`BadRow` that says what is missing.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ondevice.data.formats import (
    ANSWERED,
    ASKED,
    accounted,
    before,
    instruction_of,
    is_kto,
    it_has,
)
from ondevice.data.messages import (
    BadRow,
    Chat,
    Row,
    content_alone,
    messages_of,
    text_of,
    with_tools,
)
from ondevice.data.row_keys import Record

_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
"""What opens a turn where a chat is one text, as in Anthropic's HH-RLHF."""
_TURN_OF = {"Human": "user", "Assistant": "assistant"}
_VERDICTS = {"true": True, "false": False, "1": True, "0": False}  # as CSV has them


@accounted
def to_pair(row: Record) -> dict[str, Any]:
    """{"prompt": messages, "chosen", "rejected"} of a row with these, strings or messages, and what
    it says of "strength", "margin" and "raters".

    Where both are chats they may begin with the prompt, whether it stands by itself too or not;
    without one the two share their beginning, as in TRL's `maybe_extract_prompt`. Texts of "Human:"
    and "Assistant:" are such chats.
    """
    chosen = row.get("chosen")
    rejected = row.get("rejected")
    if chosen is None or rejected is None:
        raise BadRow("a pair has chosen and rejected" + _of_another_form(row))
    asked, as_text = _asked_of(row)
    sides = [_turns(chosen, bool(asked), "chosen"), _turns(rejected, bool(asked), "rejected")]
    asked, sides = _prompt_apart(asked, sides, as_text)
    said = [_response(side) for side in sides]
    if said[0] == said[1]:
        raise BadRow("chosen and rejected are the same")
    prompt = with_tools(before(asked, row), row)
    made: dict[str, Any] = {"prompt": prompt, "chosen": said[0], "rejected": said[1]}
    for name, least in (("strength", 1.0), ("margin", -math.inf)):
        if name in row:
            made[name] = _number(row[name], name, least)
    if _is_names(dict.get(row, "raters")):  # anything else is not used, and told of
        made["raters"] = list(row["raters"])
    return made


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


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
    said = _turns(row["completion"], True, "completion")
    if said[: len(asked)] == asked:
        said = said[len(asked) :]
    good = _verdict(row["label"])
    return {
        "prompt": with_tools(before(asked, row), row),
        "completion": _response(said),
        "label": good,
    }


def _verdict(label: Any) -> bool:
    """Whether a label calls its completion good."""
    if isinstance(label, str):
        label = _VERDICTS.get(label.strip().lower())
    if label not in (0, 1):
        raise BadRow("label is not true or false")
    return bool(label)


def _of_another_form(row: Record) -> str:
    """What else the row is, for a stage that wants pairs."""
    if is_kto(row):
        return "; this is one completion that is good or bad: dpo --loss-type kto takes it"
    if _is_chat(row):
        return "; these are chats: sft takes them"
    if isinstance(dict.get(row, "text"), str):
        return "; this is a text: pretrain takes it"
    return it_has(row)


def _is_chat(row: Record) -> bool:
    if "instruction" in row:
        return True
    if any(asked in row and answered in row for asked, answered in ANSWERED):
        return True
    return any(isinstance(dict.get(row, name), list) for name in ("messages", "conversations"))


def _asked_of(row: Record) -> tuple[list[Chat], bool]:
    """(what the row says by itself that both responses answer, whether as a text); empty where it
    says nothing.
    """
    asked = row.first(*ASKED)
    if isinstance(asked, str):
        turns = _transcript(asked)
        if not turns:
            turns = [{"role": "user", "content": text_of(asked, "prompt")}]
        return turns, True
    if isinstance(asked, list):
        return messages_of(asked, "prompt"), False
    if asked is not None:
        raise BadRow("a prompt is a text, or messages")
    if "instruction" in row:
        return [{"role": "user", "content": instruction_of(row)}], True
    return [], False


def _turns(side: Any, asked: bool, name: str) -> list[Chat]:
    """The messages of a response; `asked`: whether its prompt stands by itself."""
    if isinstance(side, list):
        return messages_of(side, name)
    if not isinstance(side, str):
        raise BadRow("a response is one text, or messages")
    if asked:
        return [{"role": "assistant", "content": text_of(side, "a response")}]
    turns = _transcript(side)
    if not turns:
        raise BadRow("a pair of texts has a prompt")
    return turns


def _transcript(text: str) -> list[Chat]:
    """The turns of a text that begins with "Human:"; empty for any other. An "Assistant:" at its
    end opens a turn that is yet to come."""
    opening = _TURN.match(text)
    if opening is None or opening[1] != "Human":
        return []
    parts = _TURN.split(text_of(text, "a chat"))[1:]
    turns: list[Chat] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": _TURN_OF[speaker], "content": said.strip()})
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        return turns[:-1]
    return turns


def _prompt_apart(
    asked: list[Chat], sides: list[list[Chat]], as_text: bool
) -> tuple[list[Chat], list[list[Chat]]]:
    """The prompt, and what each side says after it."""
    chosen, rejected = sides
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if asked and not (as_text and shared):
        if shared and all(side[: len(asked)] == asked for side in sides):
            return asked, [side[len(asked) :] for side in sides]
        return asked, sides
    if not shared:
        raise BadRow("a pair has a prompt")
    beginning = chosen[:shared]
    if asked and asked[-1]["content"] not in [message["content"] for message in beginning]:
        raise BadRow("its prompt is not what chosen and rejected begin with")
    return beginning, [side[shared:] for side in sides]


def _number(value: Any, name: str, least: float) -> float:
    """A number, or a text of one, as CSV has it."""
    number = math.nan
    if not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if math.isfinite(number) and number >= least:
        return number
    reason = f"{name} is not a number"
    if math.isfinite(least):
        reason += f" of {least:g} or more"
    raise BadRow(reason)


def _response(said: list[Chat]) -> str:
    """May be empty: to say nothing, and stop, is a response that people rate."""
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise BadRow("a response is one text, or one message of the assistant")
    return str(content_alone(said[0], "a response"))
