"""What of a chat is learned, told by the difference of two renderings, apart from the product's
code: transformers renders, and every word of a chat is a word of its own, so that whoever said it
can be told from the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

OTHER = "zzotherzz"


@dataclass(frozen=True)
class Spoken:
    """A chat, the tools of its row, and the words of each message by their places."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


@st.composite
def spoken_chats(draw: Any) -> Spoken:
    """Who speaks first, two in a row, empty turns, calls, thoughts, tools, a system message
    anywhere.
    """
    number = iter(range(1000))

    def words() -> str:
        return " ".join(f"w{next(number)}x" for _ in range(draw(st.integers(1, 2))))

    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool{next(number)}x",
                "description": words(),
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "string", "description": "x"}},
                    "required": ["a"],
                },
            },
        }
        for _ in range(draw(st.sampled_from([0, 0, 1])))
    ]
    messages: list[dict[str, Any]] = []
    shape = draw(st.sampled_from(["alternating", "alternating", "tools", "any"]))
    if draw(st.integers(0, 2)) == 0:
        messages.append({"role": "system", "content": words()})
    for turn in range(draw(st.integers(1, 5))):
        role = "user" if turn % 2 == 0 else "assistant"
        if shape == "any":
            role = draw(st.sampled_from(["user", "assistant", "assistant", "system"]))
        message: dict[str, Any] = {"role": role, "content": words()}
        if role == "assistant":
            if draw(st.integers(0, 9)) == 0:
                message["content"] = ""
            if draw(st.integers(0, 3)) == 0:
                message[draw(st.sampled_from(["reasoning_content", "thinking", "reasoning"]))] = (
                    words()
                )
            if shape == "tools" and draw(st.booleans()):
                message["content"] = draw(st.sampled_from([message["content"], None, ""]))
                message["tool_calls"] = [
                    {
                        "type": "function",
                        "id": f"call{n}12345"[:9],
                        "function": {
                            "name": f"fun{next(number)}x",
                            "arguments": {"a": words(), "b": {"c": [words()]}},
                        },
                    }
                    for n in range(draw(st.integers(1, 2)))
                ]
                messages.append(message)
                messages += [
                    {
                        "role": "tool",
                        "name": call["function"]["name"],
                        "tool_call_id": call["id"],
                        "content": words(),
                    }
                    for call in message["tool_calls"]
                ]
                message = {"role": "assistant", "content": words()}
        messages.append(message)
    return Spoken(messages, tools)


@lru_cache(maxsize=100)
def _program(template: str) -> Any:
    return _compile_jinja_template(template)


def render(
    template: str,
    named: dict[str, str],
    chat: Spoken,
    *,
    until: int | None = None,
    prompt: bool = False,
) -> str | None:
    """transformers' text of a chat; None where the template refuses it. `prompt`: with what opens
    the next answer.
    """
    messages = []
    for message in chat.messages[:until]:
        thought = next(
            (
                message[key]
                for key in ("reasoning_content", "thinking", "reasoning")
                if key in message
            ),
            None,
        )
        messages.append(
            message
            if thought is None
            else {"thinking": thought, **message, "reasoning_content": thought}
        )
    try:
        text: str = _program(template).render(
            messages=messages,
            tools=chat.tools or None,
            documents=None,
            add_generation_prompt=prompt,
            **named,
        )
    except Exception:  # templates are programs, and what they raise is a refusal whatever its kind
        return None
    return text


def answers_in(
    template: str, named: dict[str, str], chat: Spoken, until: int
) -> list[tuple[int, int]] | None:
    """Where the answers stand in the text of the chat's first `until` messages: each is the
    difference of two renderings, the chat up to it and the prompt for it. None where one is not the
    beginning of the other."""
    text = render(template, named, chat, until=until)
    places: list[tuple[int, int]] = []
    for turn, message in enumerate(chat.messages[:until]):
        if message["role"] != "assistant":
            continue
        prompt = render(template, named, chat, until=turn, prompt=True)
        answered = render(template, named, chat, until=turn + 1)
        if (
            text is None
            or prompt is None
            or answered is None
            or not (answered.startswith(prompt) and text.startswith(answered))
        ):
            return None
        places.append((len(prompt), len(answered)))
    return places


def replaced(chat: Spoken, word: str) -> Spoken:
    """The chat with one word changed, wherever it stands."""

    def change(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(word, OTHER, value)
        if isinstance(value, dict):
            return {key: change(entry) for key, entry in value.items()}
        return [change(entry) for entry in value] if isinstance(value, list) else value

    return Spoken(change(chat.messages), change(chat.tools))


def words_of(value: Any) -> list[str]:
    """The words of a message."""
    if isinstance(value, str):
        return re.findall(r"(?:w|fun|tool)\d+x", value)
    inner: Iterator[Any] = iter(
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    )
    return [word for entry in inner for word in words_of(entry)]


def renderable(template: str, named: dict[str, str], chat: Spoken) -> bool:
    """Whether the template writes the chat, and whatever it says shows: what is read in the whole,
    what an assistant says where its turn is the last."""
    if (whole := render(template, named, chat)) is None:
        return False
    for number, message in enumerate(chat.messages):
        said = message["role"] == "assistant"
        until = number + 1 if said else None
        text = render(template, named, chat, until=until) if said else whole
        if text is None or any(
            render(template, named, replaced(chat, word), until=until) == text
            for word in words_of({**message, "name": ""} if "tool_call_id" in message else message)
        ):
            return False
    return all(
        render(template, named, replaced(chat, word)) != whole
        for tool in chat.tools
        for word in [tool["function"]["name"]]
    )
