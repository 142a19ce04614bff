"""What a chat template writes for a chat: messages made ready for it, and its text with markers.

Templates differ in the form in which they take a message: contents as texts or lists of parts, a
call without content as null, "" or without the key, a call's arguments as an object or as JSON.
Each form is tried in turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import jinja2

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.messages import KWARGS, TOOLS, BadRow
from ondevice.data.template_sandbox import CLOSE, OPEN, names_read, run_template

Message = Mapping[str, Any]
Span = tuple[int, int]

# Templates for base models that have none. chatml brings two special tokens; plain needs none
# beside end of text. bare is for what reads a prompt and writes an answer apart from it: each
# content stands between the tokens that open and close a text, as those models were trained, and
# nothing says who spoke. pair is for an encoder that judges: one text, a separator behind each
# content (Devlin 2018).
TEMPLATES = {
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
        "{{- '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "plain": (
        "{%- for message in messages -%}"
        "{{- message['role'] | capitalize + ':' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}"
        "{%- else -%}{{- ' ' + message['content'] + '\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
    ),
    "bare": (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- (cls_token or '') + message['content'] + eos_token -}}{%- endgeneration -%}"
        "{%- else -%}{{- (cls_token or '') + message['content'] + eos_token -}}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "pair": (
        "{%- for message in messages -%}"
        "{%- if loop.first -%}{{- cls_token -}}{%- endif -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- message['content'] + (sep_token or eos_token) -}}{%- endgeneration -%}"
        "{%- else -%}{{- message['content'] + (sep_token or eos_token) -}}{%- endif -%}"
        "{%- endfor -%}"
    ),
}
BROUGHT = {"chatml": ("<|im_start|>", "<|im_end|>"), "plain": (), "bare": (), "pair": ()}

# Noncharacters of Unicode as those of template.py; where a content holds one of them all the same
# it is escaped.
ESCAPE = "\ufdd2"
ESCAPED = re.compile(f"{ESCAPE}([0-9]+){ESCAPE}")
MARK = "\ufdd4"
"""Stands in place of what a message says, to see where the template writes it."""

_MARKUP = re.compile(r"[^\w\s].*\w.*[^\w\s]")

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's thought; transformers takes them for one and the same."""


class HasChatTemplate(Hashable, Protocol):
    """What of a `Tokenizer` is asked for here: a tokenizer reads what its own template writes."""

    inner: Any
    chat_template: str | None
    named: dict[str, str]
    template_kwargs: dict[str, Any]

    @property
    def special(self) -> dict[str, Any]: ...
    def template_for(self, tools: bool) -> str | None: ...


@dataclass(frozen=True)
class Rendered:
    """What a template wrote, its escapes still in it, and the assistant's character ranges.

    said: where what the assistant says ends in each range; the stop token comes after it. exact:
    the ranges are the template's own, kept to the letter as transformers reads them. open: no range
    is known to end with its turn; it ends at the stop token, or else where all is said.
    """

    text: str
    spans: tuple[Span, ...]
    said: tuple[int, ...] = ()
    exact: bool = False
    open: bool = False


def rendered(
    tokenizer: HasChatTemplate, messages: Sequence[Message], *, prompt: bool = False
) -> str:
    """What the template writes, markers of `{% generation %}` included; `prompt`: with what opens
    the assistant's turn.

    Raises BadRow where the template refuses the chat, UserError where there is no template.
    """
    messages, tools, kwargs = _without_settings(messages)
    template = tokenizer.template_for(bool(tools))
    if template is None:
        raise UserError(
            "the model has no chat template",
            where="chat_template",
            hint=f"name one: {', '.join(TEMPLATES)}",
        )
    # what is false or empty says nothing to a template that does not read it
    for name, value in kwargs.items():
        if value and name not in names_read(template):
            raise BadRow(f"{KWARGS} gives {name!r}, which the chat template does not read")
    try:
        return run_template(
            template,
            {
                **tokenizer.named,
                **tokenizer.template_kwargs,
                **kwargs,
                "messages": list(messages),
                "tools": tools or None,
                "documents": None,
                "add_generation_prompt": prompt,
            },
        )
    # Templates are programs: beside jinja's own errors they raise what the wrong type in a message
    # makes them raise.
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise BadRow(f"the chat template refuses this chat: {error}") from error


def _without_settings(
    messages: Sequence[Message],
) -> tuple[Sequence[Message], Any, Mapping[str, Any]]:
    """(the messages alone, the row's tools, what the row tells the template): the first message
    carries these."""
    if not messages:
        return messages, None, {}
    tools, kwargs = messages[0].get(TOOLS), messages[0].get(KWARGS)
    if not tools and not kwargs:
        return messages, tools, {}
    first = {key: value for key, value in messages[0].items() if key not in (TOOLS, KWARGS)}
    return [first, *messages[1:]], tools, kwargs or {}


def tried(
    tokenizer: HasChatTemplate, messages: Sequence[Message], *, prompt: bool = False
) -> str | None:
    """`rendered` without its markers; None where the template refuses."""
    try:
        return plain(rendered(tokenizer, messages, prompt=prompt))
    except BadRow:
        return None


def forms(
    messages: Sequence[Message], tokenizer: HasChatTemplate, *, escape: bool = True
) -> Iterator[list[Message]]:
    """The chat in each form that templates take, as it stands first; special tokens in it escaped."""
    content_forms = 1
    if any(_is_silent_call(message) for message in messages):
        content_forms = 3
    argument_forms = 1
    if any(message.get("tool_calls") for message in messages):
        argument_forms = 2
    guard = Escape(tokenizer) if escape else None
    for content_form in range(content_forms):
        for argument_form in range(argument_forms):
            chat = [_thought(_without_content(message, content_form)) for message in messages]
            if argument_form:
                chat = list(map(_other_arguments, chat))
            if guard is not None:
                chat = list(map(guard, chat))
            yield _in_its_form(chat, tokenizer)


def _in_its_form(chat: list[Message], tokenizer: HasChatTemplate) -> list[Message]:
    """Contents as texts or as lists of parts, as the template wants them."""
    if takes_parts(tokenizer):
        return in_parts(chat)
    return chat


def _is_silent_call(message: Message) -> bool:
    return bool(message.get("tool_calls")) and message.get("content") is None


def _without_content(message: Message, form: int) -> Message:
    if not form or not _is_silent_call(message):
        return message
    rest = {key: value for key, value in message.items() if key != "content"}
    if form == 1:
        return rest
    return {**rest, "content": ""}


def _thought(message: Message) -> Message:
    """transformers' aliases: `reasoning_content` from each of the names, and `thinking` where it is
    missing.
    """
    thought = next((message[key] for key in THOUGHTS if message.get(key) is not None), None)
    kept = {key: value for key, value in message.items() if key != "weight"}
    if thought is None:
        return kept
    return {"thinking": thought, **kept, "reasoning_content": thought}


def _other_arguments(message: Message) -> Message:
    """A call's arguments as an object where they are JSON, and as JSON where they are an object."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": list(map(_with_other_arguments, message["tool_calls"]))}


def _with_other_arguments(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_other_arguments(call["function"])}
    value = call.get("arguments")
    if isinstance(value, str):
        try:
            return {**call, "arguments": parse_json(value)}
        except (ValueError, RecursionError):
            return call
    if value is None:
        return call
    return {**call, "arguments": json.dumps(value, ensure_ascii=False)}


def spelt_twice(messages: Sequence[Message], text: str) -> bool:
    """Whether a call's arguments, JSON already, stand in the text as a JSON string of it."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call, Mapping):
                call = call.get("function", call)
            if not isinstance(call, Mapping) or not isinstance(call.get("arguments"), str):
                continue
            if _stands_as_json(call["arguments"], text):
                return True
    return False


def _stands_as_json(value: str, text: str) -> bool:
    """Whether a string stands in the text as JSON writes it, where that is another spelling."""
    for ascii_only in (False, True):
        spelt = json.dumps(value, ensure_ascii=ascii_only)
        if spelt != f'"{value}"' and spelt in text:
            return True
    return False


def in_parts(chat: Sequence[Message]) -> list[Message]:
    """Each content as a list of one part."""
    return [_with_parts(message, message.get("content") or "") for message in chat]


def _with_parts(message: Message, text: str) -> Message:
    return {**message, "content": [{"type": "text", "text": text}]}


@lru_cache(maxsize=8)
def takes_parts(tokenizer: HasChatTemplate) -> bool:
    """Whether the template wants contents as lists of parts: some of models that see write no
    others, or drop them without a word."""
    return after_content(tokenizer, False) is None and after_content(tokenizer, True) is not None


def after_content(tokenizer: HasChatTemplate, parts: bool) -> str | None:
    """What the template writes after the last content of a chat; None where the content is not to
    be found.
    """
    mark = f"{ESCAPE}0{ESCAPE}"
    chat: list[Message] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": mark},
    ]
    if parts:
        chat = in_parts(chat)
    text = tried(tokenizer, chat)
    if text is not None and mark in text:
        return text.rpartition(mark)[2].lstrip()
    return None


def markup(tokenizer: HasChatTemplate, words: Sequence[str]) -> list[str]:
    """Those of the words that the template writes around the messages of a plain chat, where they
    are written as markup: no line break and no plain word, of which vocabularies have some as
    tokens; of `<x>` and `</x>` neither."""
    chat: list[Message] = [
        {"role": role, "content": f"{MARK}{role}{MARK}"} for role in ("user", "assistant", "user")
    ]
    around = ""
    try:
        for part in (chat, chat[:2]):
            text = tried(tokenizer, _in_its_form(part, tokenizer))
            around += re.sub(f"{MARK}[a-z]*{MARK}", "", text or "")
    except UserError:  # a template that cannot be run is named where it is used
        return []
    return [word for word in words if word in around and _is_markup(word, words)]


def _is_markup(word: str, words: Sequence[str]) -> bool:
    return _MARKUP.fullmatch(word) is not None and not _is_tag(word, words)


def _is_tag(word: str, words: Sequence[str]) -> bool:
    """Whether the word opens or closes what stands between `<x>` and `</x>`."""
    return word.startswith("</") or (word.startswith("<") and f"</{word[1:]}" in words)


def content_of(message: Message) -> str:
    """What a message says, of either form; "" where it says nothing."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [str(part.get("text") or "") for part in content if isinstance(part, Mapping)]
        return "".join(texts)
    if isinstance(content, str):
        return content
    return ""


def with_content(message: Message, text: str) -> Message:
    """The message with another content, in its form."""
    if isinstance(message.get("content"), list):
        return _with_parts(message, text)
    return {**message, "content": text}


class Escape:
    """Puts numbered placeholders where a message spells a special token, so that no text becomes
    one.
    """

    def __init__(self, tokenizer: HasChatTemplate) -> None:
        self.words = guarded(tokenizer)
        self.pattern = _pattern(self.words)
        self.number = {word: n for n, word in enumerate(self.words)}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.pattern.sub(self._placeholder, value)
        if isinstance(value, Mapping):
            return {key: self(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(entry) for entry in value]
        return value

    def _placeholder(self, word: re.Match[str]) -> str:
        return f"{ESCAPE}{self.number[word.group()]}{ESCAPE}"


def guarded(tokenizer: HasChatTemplate) -> tuple[str, ...]:
    """What a message may not bring into a template's text as it stands."""
    return (OPEN, CLOSE, ESCAPE, MARK, *sorted(tokenizer.special))


@lru_cache(maxsize=16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)))


def spans_of(marked: str) -> tuple[str, tuple[Span, ...]]:
    """The text without its markers, and the ranges between them."""
    parts, spans, length, start = [], [], 0, 0
    for part in re.split(f"([{OPEN}{CLOSE}])", marked):
        if part == OPEN:
            start = length
        elif part == CLOSE:
            spans.append((start, length))
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), tuple(spans)


def plain(marked: str) -> str:
    """The text without its markers."""
    return spans_of(marked)[0]


def turn_end(tokenizer: HasChatTemplate) -> int | None:
    """Id of the special token with which the template ends an assistant's turn; None without one."""
    if tokenizer.chat_template is None:
        return None
    tail = after_content(tokenizer, takes_parts(tokenizer))
    if not tail:
        return None
    words = sorted(filter(tail.startswith, tokenizer.special), key=len)
    if not words:
        return None
    token: int | None = tokenizer.inner.token_to_id(words[-1])
    return token
