"""Passages of a document: whole paragraphs that follow one another, of a bounded number of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

LEAST_WORDS = 40
"""A passage of fewer says too little to ask about."""
_LONGEST = 1 << 20
"""Characters of a paragraph, from which it is divided at a line: memory counts more."""
_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+")


def passages(parts: Iterable[str], length: Callable[[str], int], most: int) -> Iterator[str]:
    """Those of one document, which comes in parts: of at most `most` tokens, as `length` counts
    them. A paragraph that is longer is divided between sentences, and one that has none between
    words."""
    held: list[str] = []
    tokens = 0
    for piece in _pieces(parts, length, most):
        size = length(piece)
        if held and tokens + size > most:
            yield from _worth_asking(held)
            held, tokens = [], 0
        held.append(piece)
        tokens += size
    yield from _worth_asking(held)


def _worth_asking(held: list[str]) -> Iterator[str]:
    text = "\n\n".join(held).strip()
    if len(text.split()) >= LEAST_WORDS:
        yield text


def _pieces(parts: Iterable[str], length: Callable[[str], int], most: int) -> Iterator[str]:
    for paragraph in _paragraphs(parts):
        # a token has at least a character: what is shorter need not be counted
        if len(paragraph) <= most or length(paragraph) <= most:
            yield paragraph
        else:
            yield from _divided(paragraph, length, most)


def _paragraphs(parts: Iterable[str]) -> Iterator[str]:
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n\n")
        for paragraph in whole:
            if paragraph.strip():
                yield paragraph.strip("\n")
        if len(rest) > _LONGEST:
            end = rest.rfind("\n") + 1 or len(rest)
            yield rest[:end].strip("\n")
            rest = rest[end:]
    if rest.strip():
        yield rest.strip("\n")


def _divided(paragraph: str, length: Callable[[str], int], most: int) -> Iterator[str]:
    held = ""
    for sentence in _SENTENCE.split(paragraph):
        for words in _short_enough(sentence, length, most):
            if held and length(f"{held} {words}") > most:
                yield held
                held = words
            else:
                held = f"{held} {words}".strip()
    if held:
        yield held


def _short_enough(sentence: str, length: Callable[[str], int], most: int) -> Iterator[str]:
    if length(sentence) <= most:
        yield sentence
        return
    words = sentence.split()
    # a word may be many tokens: halves of halves until they fit
    if len(words) < 2:
        for first in range(0, len(sentence), most):
            yield sentence[first : first + most]
        return
    half = len(words) // 2
    for part in (words[:half], words[half:]):
        yield from _short_enough(" ".join(part), length, most)
