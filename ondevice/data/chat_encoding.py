"""Chats to ids and loss masks, through the model's own chat template.

The ids are those of transformers' `apply_chat_template`; assistant_ranges.py finds which characters
the assistant wrote. The stop token is always inside the mask: a model that is not trained on it
never stops.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError, nearest
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.data.assistant_ranges import checked_context, render_chat
from ondevice.data.chat_template import (
    BROUGHT,
    ESCAPE,
    ESCAPED,
    TEMPLATES,
    Message,
    Rendered,
    Span,
    forms,
    guarded,
    plain,
    rendered,
)
from ondevice.data.messages import BadRow
from ondevice.data.tokenizer import Tokenizer


class ChatRow(NamedTuple):
    """One row to train on: ids (T,) int32 and mask (T,) bool, true where the assistant wrote the
    token.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


def encode_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[ChatRow]:
    """Rows of one chat: one, or one per assistant turn where the template needs it.

    Raises BadRow where the template refuses the chat, drops something that it says, or does not
    show which tokens the assistant wrote; UserError where there is no template.
    """
    return _encode(_readable(render_chat(messages, tokenizer), tokenizer), tokenizer)


def encode_chats(
    chats: Iterable[Sequence[Message]],
    tokenizer: Tokenizer,
    *,
    reject: Callable[[int, str], None] | None = None,
    batch: int = 1000,
    numbers: array[int] | None = None,
) -> Iterator[ChatRow]:
    """`encode_chat` of many chats, tokenised in batches. `reject(number of the chat, reason)` takes
    the bad ones; without it the first one raises BadRow. `numbers` gets the number of each row's
    chat, before the row is given."""
    waiting: list[Rendered] = []
    for number, messages in enumerate(chats):
        before = len(waiting)
        try:
            waiting += _readable(render_chat(messages, tokenizer), tokenizer)
        except BadRow as error:
            if reject is None:
                raise
            reject(number, str(error))
        if numbers is not None:
            numbers.extend([number] * (len(waiting) - before))
        if len(waiting) >= batch:
            yield from _encode(waiting, tokenizer)
            waiting = []
    yield from _encode(waiting, tokenizer)


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids after which the assistant's next turn begins. Raises BadRow and UserError as
    `encode_chat` does.
    """
    text = checked_context(messages, tokenizer, prompt=True)
    texts = _readable([Rendered(text, ())], tokenizer)
    ids, _ = _tokens(texts, tokenizer)[0]
    return [int(i) for i in ids]


def _readable(texts: list[Rendered], tokenizer: Tokenizer) -> list[Rendered]:
    """Raises BadRow for a text in which the template writes a token that the model has no row for."""
    for word in tokenizer.beyond_rows:
        if any(word in item.text for item in texts):
            raise BadRow(
                f"the chat template writes {word!r}, a token that the model has no row for"
            )
    return texts


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, prompt: bool = False) -> str:
    """What the template writes for a chat; `prompt`: with what opens the assistant's turn. Contents
    are trusted: one that spells a special token is one. Raises BadRow and UserError as
    `encode_chat` does."""
    return plain(rendered(tokenizer, next(forms(messages, tokenizer, escape=False)), prompt=prompt))


def add_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """A copy of `tokenizer` with the named template; chatml adds its two special tokens where they
    are missing, and the model's embeddings must then grow to `vocab_size`. Raises UserError for an
    unknown name."""
    if name not in TEMPLATES:
        raise UserError(
            f"unknown chat template {name!r}", where="chat_template", hint=nearest(name, TEMPLATES)
        )
    return tokenizer.with_template(TEMPLATES[name], BROUGHT[name])


def with_template_kwargs(tokenizer: Tokenizer, setting: str) -> Tokenizer:
    """The tokenizer whose template is given what the setting `chat_template_kwargs` says. Raises
    UserError for a name that the template does not read."""
    kwargs = parse_template_kwargs(setting)
    if kwargs:
        return tokenizer.with_kwargs(kwargs)
    return tokenizer


# ---- ids and masks --------------------------------------------------------------------------------------------------


def _encode(texts: Sequence[Rendered], tokenizer: Tokenizer) -> list[ChatRow]:
    rows = []
    for item, (ids, ranges) in zip(texts, _tokens(texts, tokenizer), strict=True):
        mask = np.zeros(len(ids), np.bool_)
        count = len(item.spans)
        answers = zip(ranges[:count], ranges[count:], strict=True)
        for number, ((start, end), (_, said)) in enumerate(answers):
            end = _learned_end(ids, start, said, end, item, tokenizer)
            mask[start:end] = True
            is_last = number == count - 1
            if is_last and _ends_without_stop(ids, start, end, tokenizer):
                # The template ends a chat with nothing at all: the model learns to stop by end of
                # text.
                ids = np.append(ids[:end], np.int32(tokenizer.eos_id))
                mask = np.append(mask[:end], True)
        rows.append(ChatRow(ids, mask))
    return rows


def _learned_end(
    ids: NDArray[np.int32], start: int, said: int, end: int, item: Rendered, tokenizer: Tokenizer
) -> int:
    """Where what is learned of an answer ends, its stop token included. The answer is the tokens
    [start, end), of which what is said ends at `said`."""
    stops = tokenizer.is_stop
    if item.open and not stops[ids[said:end]].any():
        end = said
    end = _with_stop(ids, start, said, end, stops, tokenizer.is_special, item.exact)
    if end >= len(ids) or ids[end] != tokenizer.eos_id:
        return end
    if stops[ids[end - 1]] and ids[end - 1] != ids[end]:
        # Cohere's turns end with two tokens, of which the second is the end of text
        return end + 1
    return end


def _ends_without_stop(ids: NDArray[np.int32], start: int, end: int, tokenizer: Tokenizer) -> bool:
    """Whether an answer has no stop token and nothing follows it."""
    if tokenizer.is_stop[ids[start:end]].any():
        return False
    return not _goes_on(ids, end, tokenizer)


def _with_stop(
    ids: NDArray[np.int32],
    start: int,
    said: int,
    end: int,
    stops: NDArray[np.bool_],
    special: NDArray[np.bool_],
    exact: bool,
) -> int:
    """End of the assistant's tokens [start, end), of which what is said ends at `said`, with the
    stop token as the last one, where there is one."""
    inside = np.flatnonzero(stops[ids[said:end]])
    if len(inside):
        # After the stop token a template may write a line break or end of text, which the model
        # never does.
        if exact:
            return end
        return said + int(inside[0]) + 1
    following = np.flatnonzero(special[ids[end : end + 4]])
    if len(following) and stops[ids[end + following[0]]]:
        return end + int(following[0]) + 1
    return end


def _goes_on(ids: NDArray[np.int32], end: int, tokenizer: Tokenizer) -> bool:
    """Whether anything but white space follows `end`."""
    return bool(tokenizer.decode(ids[end:], skip_special=False).strip())


def _tokens(
    texts: Sequence[Rendered], tokenizer: Tokenizer
) -> list[tuple[NDArray[np.int32], list[Span]]]:
    """Ids of each text and its spans as ranges of tokens; behind them the spans that end where
    `said` says.
    """
    easy = [n for n, item in enumerate(texts) if ESCAPE not in item.text]
    encodings = tokenizer.encode_spans([texts[n].text for n in easy])
    results: dict[int, tuple[NDArray[np.int32], list[Span]]] = {}
    for n, encoding in zip(easy, encodings, strict=True):
        if tokenizer.inner.normalizer is None or _honest(encoding.ids, texts[n].text, tokenizer):
            results[n] = _result(encoding.ids, encoding.offsets, _all_spans(texts[n]))
    for n, item in enumerate(texts):
        if n not in results:
            results[n] = _careful(item, tokenizer)
    return [results[n] for n in range(len(texts))]


def _all_spans(item: Rendered) -> list[Span]:
    """The spans, and behind them those of what is said alone, nothing where the item has none."""
    ends = item.said or tuple(start for start, _ in item.spans)
    spans = [*item.spans]
    for (start, _), end in zip(item.spans, ends, strict=True):
        spans.append((start, end))
    return spans


def _honest(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether there are as many special ids as the text spells: a normaliser may make them out of
    look-alikes.
    """
    spelt = sum(1 for _ in _special_pattern(tokenizer).finditer(text))
    return int(tokenizer.is_special[np.array(ids, np.int64)].sum()) == spelt


def _result(
    ids: Sequence[int], offsets: Sequence[Span] | NDArray[np.int64], spans: Sequence[Span]
) -> tuple[NDArray[np.int32], list[Span]]:
    if not spans or not len(ids):
        return np.array(ids, np.int32), []
    bounds = np.asarray(offsets, np.int64)
    # First token that ends after the span's start, last one that starts before its end.
    firsts = np.searchsorted(bounds[:, 1], [start for start, _ in spans], side="right")
    lasts = np.searchsorted(bounds[:, 0], [end for _, end in spans], side="left")
    # An empty answer is an empty range, which its stop token will follow.
    ranges: list[Span] = []
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        ranges.append((first, max(first, last)))
    return np.array(ids, np.int32), ranges


def _careful(item: Rendered, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], list[Span]]:
    """The template's special tokens become ids by name; everything between them, escapes undone, is
    plain text.

    Exactly what the whole text gives for byte-level tokenizers; one that puts a mark before a
    text's first word does so after each special token here.
    """
    words = guarded(tokenizer)
    pieces = _pieces(item.text, tokenizer, words)
    encodings = tokenizer.encode_texts([text for text, _, _ in pieces])
    ids: list[int] = []
    offsets: list[Span] = []
    old = [0]  # places of the rendered text
    new = [0]  # the same of the text with its escapes undone
    place = 0
    for (text, raw, token), encoding in zip(pieces, encodings, strict=True):
        ids += encoding.ids
        for a, b in encoding.offsets:
            offsets.append((place + a, place + b))
        for part in re.split(f"({ESCAPED.pattern.replace('(', '(?:')})", raw):
            old.append(old[-1] + len(part))
            new.append(new[-1] + len(_restored(part, words)))
        place += len(text)
        if token is not None:
            word, taken = token
            ids.append(int(tokenizer.inner.token_to_id(word)))
            offsets.append((place, place + len(taken)))
            place += len(taken)
            old.append(old[-1] + len(taken))
            new.append(place)

    def moved(at: int) -> int:  # no span begins or ends inside an escape
        n = int(np.searchsorted(old, at, side="right")) - 1
        return new[n] + at - old[n]

    return _result(ids, offsets, [(moved(a), moved(b)) for a, b in _all_spans(item)])


def _restored(text: str, words: Sequence[str]) -> str:
    return ESCAPED.sub(lambda m: words[int(m.group(1))], text)


def _pieces(
    text: str, tokenizer: Tokenizer, words: tuple[str, ...]
) -> list[tuple[str, str, tuple[str, str] | None]]:
    """(plain text, the same with its escapes, (special token, the text it took) or None) in order."""
    pieces: list[tuple[str, str, tuple[str, str] | None]] = []
    place = 0
    for match in _special_pattern(tokenizer).finditer(text):
        raw = text[place : match.start()]
        taken = match.group()
        word = taken
        if word not in tokenizer.special:
            word = taken.strip()
        pieces.append((_restored(raw, words), raw, (word, taken)))
        place = match.end()
    pieces.append((_restored(text[place:], words), text[place:], None))
    return pieces


def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    special: list[tuple[str, bool, bool]] = []
    for word, token in tokenizer.special.items():
        special.append((word, token.lstrip, token.rstrip))
    return _special_words(tuple(special))


@lru_cache(maxsize=16)
def _special_words(special: tuple[tuple[str, bool, bool], ...]) -> re.Pattern[str]:
    if not special:
        return re.compile(r"(?!)")
    forms: list[str] = []
    for word, left, right in sorted(special, key=lambda entry: (-len(entry[0]), entry[0])):
        # A special token may take the white space beside it.
        forms.append(r"\s*" * left + re.escape(word) + r"\s*" * right)
    return re.compile("|".join(forms))
