"""Chats to ids and loss masks, through the model's own chat template.

The ids are those of transformers' `apply_chat_template`. Which of them the assistant wrote is found by the first of
these methods that a template allows (13 of 41 common templates do not allow the second):

1. the template marks them itself, `{% generation %}`;
2. prefixes of the whole chat: what the template adds when an assistant turn follows;
3. the same, one row per assistant turn with the chat cut after it, for templates that write earlier turns otherwise;
4. sentinels in place of the assistant's contents, where the true text is the sentinels' with the contents put in.

The stop token is always inside the mask: a model that is not trained on it never stops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from ondevice.data.formats import TOOLS, BadRow
from ondevice.data.template import CLOSE, OPEN, run_template
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError, nearest

Message = Mapping[str, Any]
Span = tuple[int, int]

# Templates for base models that have none. chatml brings two special tokens; plain needs none beside end of text. bare
# is for what reads a prompt and writes an answer apart from it: each content stands between the tokens that open and
# close a text, as those models were trained, and nothing says who spoke. pair is for an encoder that judges: one text,
# a separator behind each content (Devlin 2018).
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
_BROUGHT = {"chatml": ("<|im_start|>", "<|im_end|>"), "plain": (), "bare": (), "pair": ()}

# A noncharacter of Unicode as those of template.py; where a content holds one of the three all the same it is escaped.
_ESCAPE = "\ufdd2"
_ESCAPED = re.compile(f"{_ESCAPE}([0-9]+){_ESCAPE}")


class ChatRow(NamedTuple):
    """One row to train on: ids (T,) int32 and mask (T,) bool, true where the assistant wrote the token."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class _Rendered:
    """What a template wrote, its escapes still in it, and the assistant's character ranges.

    exact: the ranges are the template's own, kept to the letter as transformers reads them.
    """

    text: str
    spans: tuple[Span, ...]
    exact: bool = False


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[ChatRow]:
    """Rows of one chat: one, or one per assistant turn where the template needs it.

    Raises BadRow where the template refuses the chat or no method finds the assistant's tokens; UserError where there
    is no template.
    """
    return _encode(_render_chat(messages, tokenizer), tokenizer)


def encode_chats(chats: Iterable[Sequence[Message]], tokenizer: Tokenizer, *,
                 reject: Callable[[int, str], None] | None = None, batch: int = 1000) -> Iterator[ChatRow]:
    """`encode_chat` of many chats, tokenised in batches. `reject(number of the chat, reason)` takes the bad ones;
    without it the first one raises BadRow."""
    waiting: list[_Rendered] = []
    for number, messages in enumerate(chats):
        try:
            waiting += _render_chat(messages, tokenizer)
        except BadRow as error:
            if reject is None:
                raise
            reject(number, str(error))
        if len(waiting) >= batch:
            yield from _encode(waiting, tokenizer)
            waiting = []
    yield from _encode(waiting, tokenizer)


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids after which the assistant's next turn begins. Raises BadRow and UserError as `encode_chat` does."""
    escape = _Escape(tokenizer)
    chat = [escape(message) for message in messages]
    chat = _in_parts(chat) if _takes_parts(tokenizer) else chat
    text = _plain(_render(tokenizer, chat, add_generation_prompt=True))
    ids, _ = _tokens([_Rendered(text, ())], tokenizer)[0]
    return [int(i) for i in ids]


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, prompt: bool = False) -> str:
    """What the template writes for a chat; `prompt`: with what opens the assistant's turn. Contents are trusted: one
    that spells a special token is one. Raises BadRow and UserError as `encode_chat` does."""
    chat = _in_parts(messages) if _takes_parts(tokenizer) else list(messages)
    return _plain(_render(tokenizer, chat, add_generation_prompt=prompt))


def add_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """A copy of `tokenizer` with the named template; chatml adds its two special tokens where they are missing, and
    the model's embeddings must then grow to `vocab_size`. Raises UserError for an unknown name."""
    if name not in TEMPLATES:
        raise UserError(f"unknown chat template {name!r}", where="chat_template", hint=nearest(name, TEMPLATES))
    return tokenizer.with_template(TEMPLATES[name], _BROUGHT[name])


def turn_end(tokenizer: Tokenizer) -> int | None:
    """Id of the special token with which the template ends an assistant's turn; None without one."""
    if tokenizer.chat_template is None:
        return None
    tail = _after_content(tokenizer, _takes_parts(tokenizer))
    words = sorted((word for word in tokenizer.special if tail and tail.startswith(word)), key=len)
    found: int | None = tokenizer.inner.token_to_id(words[-1]) if words else None
    return found


def _after_content(tokenizer: Tokenizer, parts: bool) -> str | None:
    """What the template writes after the last content of a chat; None where the content is not to be found."""
    mark = f"{_ESCAPE}0{_ESCAPE}"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": mark}]
    try:
        text = _plain(_render(tokenizer, _in_parts(chat) if parts else chat))
    except BadRow:
        return None
    return text.rpartition(mark)[2].lstrip() if mark in text else None


@lru_cache(maxsize=8)
def _takes_parts(tokenizer: Tokenizer) -> bool:
    """Whether the template wants contents as lists of parts: some of models that see write no others, or drop them
    without a word."""
    return _after_content(tokenizer, False) is None and _after_content(tokenizer, True) is not None


def _in_parts(chat: Sequence[Message]) -> list[Message]:
    return [{**m, "content": [{"type": "text", "text": m.get("content") or ""}]} for m in chat]


# ---- rendering ------------------------------------------------------------------------------------------------------

def _render(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """What the template writes, markers of `{% generation %}` included. Raises BadRow where it refuses."""
    if tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where="chat_template",
                        hint=f"name one: {', '.join(TEMPLATES)}")
    tools = messages[0].get(TOOLS) if messages else None
    if tools:
        messages = [{key: value for key, value in messages[0].items() if key != TOOLS}, *messages[1:]]
    try:
        return run_template(tokenizer.chat_template, {
            "messages": list(messages), "tools": tools, "documents": None,
            "add_generation_prompt": add_generation_prompt, **tokenizer.named})
    # Templates are programs: beside jinja's own errors they raise what the wrong type in a message makes them raise.
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError,
            RecursionError) as error:
        raise BadRow(f"the chat template refuses this chat: {error}") from error


class _Escape:
    """Puts numbered placeholders where a message spells a special token, so that no text becomes one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.words = _guarded(tokenizer)
        self.pattern = _pattern(self.words)
        self.number = {word: n for n, word in enumerate(self.words)}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.pattern.sub(lambda m: f"{_ESCAPE}{self.number[m.group()]}{_ESCAPE}", value)
        if isinstance(value, Mapping):
            return {key: self(entry) for key, entry in value.items()}
        return [self(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _guarded(tokenizer: Tokenizer) -> tuple[str, ...]:
    return (OPEN, CLOSE, _ESCAPE, *sorted(tokenizer.special))


@lru_cache(maxsize=16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))))


def _spans(marked: str) -> tuple[str, tuple[Span, ...]]:
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


def _plain(marked: str) -> str:
    return _spans(marked)[0]


# ---- the ladder -----------------------------------------------------------------------------------------------------

def _render_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[_Rendered]:
    escape = _Escape(tokenizer)
    chat = [escape(message) for message in messages]
    chat = _in_parts(chat) if _takes_parts(tokenizer) else chat
    text, spans = _spans(_render(tokenizer, chat))
    turns = [n for n, message in enumerate(chat) if message.get("role") == "assistant"]
    if not turns:
        return [_Rendered(text, ())]
    if re.search(r"\{%-?\+?\s*generation\b", tokenizer.chat_template or ""):
        return [_Rendered(text, spans, exact=True)]
    for method in (_whole_prefixes, _row_per_turn, _sentinels):
        rows = method(chat, turns, text, tokenizer)
        if rows is not None:
            return rows
    raise BadRow("the chat template does not show which tokens the assistant wrote"
                 " (mark them with {% generation %}, or take the chatml template)")


def _prompt(chat: Sequence[Message], turn: int, tokenizer: Tokenizer) -> str | None:
    """The text that the model is given before it writes `turn`; None where the template refuses."""
    try:
        return _plain(_render(tokenizer, chat[:turn], add_generation_prompt=True))
    except BadRow:
        return None


def _until(chat: Sequence[Message], turn: int, tokenizer: Tokenizer) -> str | None:
    try:
        return _plain(_render(tokenizer, chat[:turn + 1]))
    except BadRow:
        return None


def _whole_prefixes(chat: Sequence[Message], turns: Sequence[int], text: str,
                    tokenizer: Tokenizer) -> list[_Rendered] | None:
    spans = []
    for turn in turns:
        before = _prompt(chat, turn, tokenizer)
        after = text if turn == len(chat) - 1 else _until(chat, turn, tokenizer)
        if before is None or after is None or not (after.startswith(before) and text.startswith(after)):
            return None
        spans.append((len(before), len(after)))
    return [_Rendered(text, tuple(spans))]


def _row_per_turn(chat: Sequence[Message], turns: Sequence[int], text: str,
                  tokenizer: Tokenizer) -> list[_Rendered] | None:
    rows = []
    for turn in turns:
        before, after = _prompt(chat, turn, tokenizer), _until(chat, turn, tokenizer)
        if before is None or after is None or not after.startswith(before):
            return None
        rows.append(_Rendered(after, ((len(before), len(after)),)))
    return rows


def _sentinels(chat: Sequence[Message], turns: Sequence[int], text: str,
               tokenizer: Tokenizer) -> list[_Rendered] | None:
    # Numbers beyond those of the escapes, so that no content holds one.
    marks = {turn: f"{_ESCAPE}{10**9 + turn}{_ESCAPE}" for turn in turns}
    if not all(isinstance(chat[turn].get("content"), str) for turn in turns):
        return None
    try:
        marked = _plain(_render(tokenizer, [
            {**m, "content": marks[n]} if n in marks else m for n, m in enumerate(chat)]))
    except BadRow:
        return None
    for change in (str, str.strip):
        contents = {mark: change(chat[turn]["content"]) for turn, mark in marks.items()}
        parts = re.split("(" + "|".join(map(re.escape, contents)) + ")", marked)
        if sorted(parts[1::2]) != sorted(contents) or "".join(contents.get(p, p) for p in parts) != text:
            continue
        spans, length = [], 0
        for part in parts:
            filled = contents.get(part, part)
            if part in contents:
                spans.append((length, length + len(filled)))
            length += len(filled)
        return [_Rendered(text, tuple(spans))]
    return None


# ---- ids and masks --------------------------------------------------------------------------------------------------

def _encode(rendered: Sequence[_Rendered], tokenizer: Tokenizer) -> list[ChatRow]:
    stops, special = tokenizer.is_stop, tokenizer.is_special
    rows = []
    for item, (ids, ranges) in zip(rendered, _tokens(rendered, tokenizer), strict=True):
        mask = np.zeros(len(ids), np.bool_)
        for number, (start, end) in enumerate(ranges):
            last = number == len(ranges) - 1
            end = _with_stop(ids, start, end, stops, special, item.exact)
            mask[start:end] = True
            if last and not stops[ids[start:end]].any() and not _goes_on(ids, end, tokenizer):
                # The template ends a chat with nothing at all: the model learns to stop by end of text.
                ids = np.append(ids[:end], np.int32(tokenizer.eos_id))
                mask = np.append(mask[:end], True)
        rows.append(ChatRow(ids, mask))
    return rows


def _with_stop(ids: NDArray[np.int32], start: int, end: int, stops: NDArray[np.bool_], special: NDArray[np.bool_],
               exact: bool) -> int:
    """End of the assistant's tokens [start, end) with the stop token as the last one, where there is one."""
    inside = np.flatnonzero(stops[ids[start:end]])
    if len(inside):
        # After the stop token a template may write a line break or end of text, which the model never does.
        return end if exact else start + int(inside[0]) + 1
    following = np.flatnonzero(special[ids[end:end + 4]])
    if len(following) and stops[ids[end + following[0]]]:
        return end + int(following[0]) + 1
    return end


def _goes_on(ids: NDArray[np.int32], end: int, tokenizer: Tokenizer) -> bool:
    """Whether anything but white space follows `end`."""
    return bool(tokenizer.decode(ids[end:], skip_special=False).strip())


def _tokens(rendered: Sequence[_Rendered], tokenizer: Tokenizer) -> list[tuple[NDArray[np.int32], list[Span]]]:
    """Ids of each text and its spans as ranges of tokens."""
    easy = [n for n, item in enumerate(rendered) if _ESCAPE not in item.text]
    results: dict[int, tuple[NDArray[np.int32], list[Span]]] = {}
    for n, encoding in zip(easy, tokenizer.encode_spans([rendered[n].text for n in easy]), strict=True):
        if tokenizer.inner.normalizer is None or _honest(encoding.ids, rendered[n].text, tokenizer):
            results[n] = _result(encoding.ids, encoding.offsets, rendered[n].spans)
    for n, item in enumerate(rendered):
        if n not in results:
            results[n] = _careful(item, tokenizer)
    return [results[n] for n in range(len(rendered))]


def _honest(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether there are as many special ids as the text spells: a normaliser may make them out of look-alikes."""
    spelt = sum(1 for _ in _special_pattern(tokenizer).finditer(text))
    return int(tokenizer.is_special[np.array(ids, np.int64)].sum()) == spelt


def _result(ids: Sequence[int], offsets: Sequence[Span] | NDArray[np.int64],
            spans: Sequence[Span]) -> tuple[NDArray[np.int32], list[Span]]:
    if not spans or not len(ids):
        return np.array(ids, np.int32), []
    bounds = np.asarray(offsets, np.int64)
    # First token that ends after the span's start, last one that starts before its end.
    firsts = np.searchsorted(bounds[:, 1], [start for start, _ in spans], side="right")
    lasts = np.searchsorted(bounds[:, 0], [end for _, end in spans], side="left")
    # An empty answer is an empty range, which its stop token will follow.
    ranges = [(int(a), max(int(a), int(b))) for a, b in zip(firsts, lasts, strict=True)]
    return np.array(ids, np.int32), ranges


def _careful(item: _Rendered, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], list[Span]]:
    """The template's special tokens become ids by name; everything between them, escapes undone, is plain text.

    Exactly what the whole text gives for byte-level tokenizers; one that puts a mark before a text's first word does
    so after each special token here.
    """
    words = _guarded(tokenizer)
    pieces = _pieces(item.text, tokenizer, words)
    encodings = tokenizer._text_only.encode_batch([text for text, _, _ in pieces], add_special_tokens=False)
    ids: list[int] = []
    offsets: list[Span] = []
    old, new = [0], [0]   # places of the rendered text and of the text with its escapes undone
    place = 0
    for (text, raw, token), encoding in zip(pieces, encodings, strict=True):
        ids += encoding.ids
        offsets += [(place + a, place + b) for a, b in encoding.offsets]
        for part in re.split(f"({_ESCAPED.pattern.replace('(', '(?:')})", raw):
            old.append(old[-1] + len(part))
            new.append(new[-1] + len(_restored(part, words)))
        place += len(text)
        if token is not None:
            ids.append(int(tokenizer.inner.token_to_id(token[0])))
            offsets.append((place, place + len(token[1])))
            place += len(token[1])
            old.append(old[-1] + len(token[1]))
            new.append(place)

    def moved(at: int) -> int:   # no span begins or ends inside an escape
        n = int(np.searchsorted(old, at, side="right")) - 1
        return new[n] + at - old[n]

    return _result(ids, offsets, [(moved(a), moved(b)) for a, b in item.spans])


def _restored(text: str, words: Sequence[str]) -> str:
    return _ESCAPED.sub(lambda m: words[int(m.group(1))], text)


def _pieces(text: str, tokenizer: Tokenizer, words: tuple[str, ...]) -> list[tuple[str, str, tuple[str, str] | None]]:
    """(plain text, the same with its escapes, (special token, the text it took) or None) in order."""
    pieces: list[tuple[str, str, tuple[str, str] | None]] = []
    place = 0
    for match in _special_pattern(tokenizer).finditer(text):
        raw, taken = text[place:match.start()], match.group()
        pieces.append((_restored(raw, words), raw, (taken if taken in tokenizer.special else taken.strip(), taken)))
        place = match.end()
    pieces.append((_restored(text[place:], words), text[place:], None))
    return pieces


def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    return _special_words(tuple((w, t.lstrip, t.rstrip) for w, t in tokenizer.special.items()))


@lru_cache(maxsize=16)
def _special_words(special: tuple[tuple[str, bool, bool], ...]) -> re.Pattern[str]:
    # A special token may take the white space beside it.
    forms = [r"\s*" * left + re.escape(word) + r"\s*" * right
             for word, left, right in sorted(special, key=lambda entry: (-len(entry[0]), entry[0]))]
    return re.compile("|".join(forms) if forms else r"(?!)")
