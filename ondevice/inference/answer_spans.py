"""What in a passage can be asked for: a name, a number, a place, a reason, each with its sentence.

A small model that is free to ask asks what a passage does not answer. So the answer is chosen first,
as Alberti and others (2019) do, by how it is written: no model says what it is. English alone has the
words that a question begins with.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from typing import NamedTuple

from ondevice.inference.question_checks import SMALL_WORDS


class Span(NamedTuple):
    """The `answer` as it stands in a `sentence`; its `kind`, and the words with which a question for it
    begins."""

    kind: str
    answer: str
    sentence: str
    opener: str


WHO, WHERE, WHY, HOW_MANY = "who", "where", "why", "how many"
_LEAST_WORDS, _MOST_WORDS = 6, 40
"""Of a sentence that is asked about."""
_SPEAKER = re.compile(r"^[A-Z][\w .'-]{0,30}:\n", re.MULTILINE)  # in a play
_TITLE = r"(?:(?:Mr|Mrs|Ms|Dr|St)\.|Miss|Sir|Lady|King|Queen|Professor)\s+"
_END = re.compile(
    r"(?<=[.!?…])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)[\"'”’)]*\s+|\n{2,}"
)
_NAME = rf"(?:{_TITLE})?[A-Z][\w'’-]*\w(?:\s+[A-Z][\w'’-]*\w)*"
_SUBJECT = re.compile(rf"(?:[A-Z][\w ]{{2,30}},\s+)?({_NAME})\s+([a-z]+)")
_NO_VERB = frozenset(
    ("and", "or", "of", "who", "which", "as", "to", "in", "at", "on", "with", "for", "from", "the")
)
_YOU_AND_I = re.compile(
    r"\b(?:I|me|my|we|us|our|you|your|thou|thee|thy|thine|let)\b|[\"“”]", re.IGNORECASE
)
"""Whoever speaks and is spoken to, or a quotation: a question would have to say who."""
_POINTER = re.compile(
    r"\b(?:he|she|they|him|her|his|their|them|it|its|this|these|those)\b", re.IGNORECASE
)
_PLACE = re.compile(rf"\b(?:in|at|to|from|near)\s+({_NAME})(?=[\s,.;!])")
_REASON = re.compile(r"\bbecause\s+([^.,;:!?]{12,120})")
_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty"
_COUNT = re.compile(
    rf"(?<![\w.,/$*+=-])(?<![/*+=] )(\d[\d,]*|{_WORDS})((?:\s+[a-z]+){{0,2}}?\s+[a-z]+s)\b"
)
_PRICE = re.compile(
    r"(?<![\w.,/*+=-])(?<![/*+=] )([$€£]\d[\d,]*(?:\.\d+)?)(?![\w%*/+=]|\.\d|\s*[*/+=-])"
)
_MEASURES = {"ago", "hundred", "thousand", "million", "less", "more", "times"}
_POSSESSIVE = ("'s", "’s", "s'", "s’", "'ll", "'d")
_DATES = frozenset((*calendar.month_name[1:], *calendar.day_name, "Christmas", "Easter"))


def spans(passage: str) -> list[Span]:
    """Those of a passage, each answer once; of every sentence one before any has two."""
    names = _names_within(passage)
    first, others = [], []
    taken: set[str] = set()
    for sentence in _sentences(passage):
        fresh = [span for span in _of_sentence(sentence, names) if span.answer not in taken]
        taken.update(span.answer for span in fresh)
        first += fresh[:1]
        others += fresh[1:]
    return first + others


def _sentences(passage: str) -> Iterator[str]:
    """Those that say something: not questions, nor sums."""
    for found in _END.split(_SPEAKER.sub("", passage)):
        sentence = " ".join(found.split())
        words = len(sentence.split())
        said = "?" not in sentence and "=" not in sentence and not _YOU_AND_I.search(sentence)
        if said and _LEAST_WORDS <= words <= _MOST_WORDS:
            yield sentence


def _names_within(passage: str) -> set[str]:
    """Words with a capital that stand within a sentence: they have it as names."""
    found = re.findall(r"(?<=[a-z,;] )[A-Z][\w-]*\w", passage)
    return {word for word in found if word.casefold() not in SMALL_WORDS}


def _of_sentence(sentence: str, names: set[str]) -> Iterator[Span]:
    subject = _SUBJECT.match(sentence)
    if subject and subject[2] not in _NO_VERB and _is_name(subject[1], names):
        yield Span(WHO, subject[1], sentence, "Who")
    pointer = _POINTER.search(sentence)
    if pointer and not _any_name(sentence[: pointer.start()], names):
        return  # at somebody who is named elsewhere
    for found in _REASON.finditer(sentence):
        yield Span(WHY, found[1].strip(), sentence, "Why")
    for found in _PLACE.finditer(sentence):
        if not found[1].endswith(_POSSESSIVE) and found[1].split()[0] not in _DATES:
            yield Span(WHERE, found[1], sentence, "Where")
    for found in _COUNT.finditer(sentence):
        if set(found[2].split()) & (SMALL_WORDS | _MEASURES):
            continue
        if re.search(r"\b[A-Z]\w*\s+$", sentence[: found.start()]):
            continue  # a name's number: "Grade 5 students"
        yield Span(HOW_MANY, found[1], sentence, "How many" + found[2])
    for found in _PRICE.finditer(sentence):
        yield Span(HOW_MANY, found[1], sentence, "How much")


def _any_name(words: str, names: set[str]) -> bool:
    return any(re.search(rf"\b{re.escape(name)}\b", words) for name in names)


def _is_name(words: str, names: set[str]) -> bool:
    """Whether what a sentence begins with is a name: any word has a capital there."""
    first, *more = words.split()
    if first in _DATES or first.casefold() in SMALL_WORDS or words.endswith(_POSSESSIVE):
        return False
    return bool(re.match(_TITLE, words)) or first in names or bool(more) and more[0] in names
