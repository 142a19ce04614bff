"""Special tokens that a text spells. They are read as text, which is safe and seldom what a file of
documents that ends each with <|endoftext|> is meant to be: so it is counted, said once, and shown
apart from the tokens themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.data.plain_text import Part
from ondevice.data.tokenizer import Tokenizer

SIGN = "\\"
"""Stands before a special token's name where it is shown and is text."""


class Spelt:
    """Counts the rows that spell each special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.rows: Counter[str] = Counter()
        self._pattern = _pattern(tokenizer)

    def look(self, value: Any) -> None:
        """Counts one row: a text, or messages."""
        self.rows.update(set(_found(value, self._pattern)))

    def texts(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted as they pass."""
        for text in texts:
            self.look(text)
            yield text

    def told(self, separator: bool = False) -> list[str]:
        """A line for each token that is spelt; `separator`: whether documents may be ended at it."""
        lines = []
        for word, count in self.rows.most_common():
            rows = "1 row spells" if count == 1 else f"{count:,} rows spell"
            line = f"{rows} {word}, a special token's name, which is read as text"
            if separator:
                line += f"; --separator {word!r} ends a document there"
            lines.append(line)
        return lines


def _found(value: Any, pattern: re.Pattern[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield from pattern.findall(value)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _found(entry, pattern)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _found(entry, pattern)


def _pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    words = sorted(tokenizer.special, key=lambda word: (-len(word), word))
    if not words:
        return re.compile(r"(?!)")
    return re.compile("|".join(map(re.escape, words)))


def shown(ids: NDArray[np.int32], tokenizer: Tokenizer) -> str:
    """The text of ids, its special tokens in it, `SIGN` before what only spells one."""
    text = tokenizer.decode(ids, skip_special=False)
    special = tokenizer.is_special[ids]
    pattern = _pattern(tokenizer)
    if len(pattern.findall(text)) <= int(special.sum()):
        return text
    borders = [0, *(np.flatnonzero(np.diff(special)) + 1).tolist(), len(ids)]
    shown_text = ""
    for start, end in pairwise(borders):
        if end == start:
            continue
        part = tokenizer.decode(ids[start:end], skip_special=False)
        if not special[start]:
            part = pattern.sub(_signed, part)
        shown_text += part
    return shown_text


def _signed(word: re.Match[str]) -> str:
    return SIGN + word.group()


def separated(texts: Iterable[str], separator: str) -> Iterator[str]:
    """The documents of texts that are ended by a separator, without it and the line breaks beside
    it; none is empty. Without a separator the texts as they are."""
    for text in texts:
        if not separator or separator not in text:
            yield text
            continue
        *ended, last = text.split(separator)
        for number, document in enumerate(ended):
            if number:
                document = document.lstrip("\n")
            document = document.rstrip("\n")
            if document.strip():
                yield document
        more = isinstance(text, Part) and text.more
        last = last.lstrip("\n")
        if last.strip() or more:
            yield Part.of(last, more)
