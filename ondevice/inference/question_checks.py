"""Whether a question that a model wrote, about a sentence and for an answer in it, is worth learning from.

Checked by words alone, so that it is the same whichever model wrote: a question is used where it says
what the sentence says, without its answer, and can be understood without the passage. `FAULTS` lists
all checks, in the order in which they are made. That the answer is right is another check: the model
must choose it among others (`ask_documents`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

LEAST_WORDS, MOST_WORDS = 4, 40
"""Of a question."""
FROM_THERE = 0.8
"""Share of a question's content that stands in its sentence."""
COVERED = 0.5
"""Share of a sentence's content, the answer's apart, that the question says: one that says little of it
has other answers too."""
LEAST_ASKED = 2
"""Words of content that a question has."""
ALIKE = 0.75
"""Share of their content that two questions about one passage have in common, from which the second
is a repeat."""


# ---------------------------------------------------------------- words


def _any_of(*phrases: str) -> re.Pattern[str]:
    """Any of these phrases as whole words, whatever their case."""
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


_STEM = 6  # letters by which forms of one word count as one
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_POSSESSIVE = re.compile(r"['’]s?$")
_NAME = re.compile(r"(?<![.!?:\"“]\s)(?<!^)\b[A-Z][\w'’-]+")
"""A word with a capital that does not begin a sentence."""
_SMALL = """
a about after also am an and any are as at be because been before being between both but by can
could did do does doing down during each few for from further had has have he her here him his
how i if in into is it its just may me might more most must my no nor not now of off on once one
only or other our out over own same shall she should so some such than that the their them then
there these they this those through to too under until up upon us very was we were what when
where which while who whom whose why will with would you your
"""
SMALL_WORDS = frozenset(_SMALL.split())
"""Words that say nothing by themselves."""

_TEXT = (
    "text|passage|excerpt|author|writer|story|document|article|paragraph|speaker|narrator|poem|play|"
    "chapter|section|sentence|quote|quotation|statement|scene|conversation|dialogue|context"
)
_MAIN = "idea|theme|topic|point|purpose|message|character|focus|argument"
_OF_THE_TEXT = _any_of(
    rf"(?:this|the|above|following|given|that)\s+(?:\w+\s+)?(?:{_TEXT})s?",
    rf"(?:main|central|overall|primary)\s+(?:{_MAIN})",
    r"the (?:right |correct )?(?:answer|question)",
    "according to",
    "mentioned",
    "described",
    "passage",
    "in question",
    "tone of",
)
"""What a question about the text says, and one about what the text says does not."""
_POINTS = _any_of(
    "i|me|my|we|us|our|he|she|they|him|her|his|hers|their|theirs|them|it|its|this|these|those|here|"
    "thou|thy"
)
"""Words that point at something; without a name beside them it stands in the passage alone."""


def content(text: str) -> set[str]:
    """The words that say something, each without its ending; numbers as they are."""
    found = set()
    for word in _WORD.findall(text.casefold()):
        word = _POSSESSIVE.sub("", word)
        if word.isdigit():
            found.add(word)
        elif len(word) > 2 and word not in SMALL_WORDS:
            found.add(word[:_STEM])
    return found


def _words(text: str) -> list[str]:
    return [_POSSESSIVE.sub("", word) for word in _WORD.findall(text.casefold())]


def says(question: str, answer: str) -> bool:
    """Whether a question has every word of an answer."""
    return set(_words(answer)) <= set(_words(question))


def numbers(words: set[str]) -> set[str]:
    return set(filter(str.isdigit, words))


def first_question(text: str) -> str:
    """What was asked first, in one line; empty where nothing is."""
    line = " ".join(text.split())
    end = line.find("?") + 1
    return line[:end].lstrip("0123456789.)-*# \"'“").strip()


# ---------------------------------------------------------------- checks


class Asked(NamedTuple):
    """A question, the sentence that it is about, and the answer there that it was to ask for."""

    question: str
    sentence: str
    answer: str


Check = Callable[[Asked], bool]


def _no_question(asked: Asked) -> bool:
    return not LEAST_WORDS <= len(asked.question.split()) <= MOST_WORDS


def _about_the_text(asked: Asked) -> bool:
    return bool(_OF_THE_TEXT.search(asked.question))


def _says_its_answer(asked: Asked) -> bool:
    return says(asked.question, asked.answer)


def _elsewhere(asked: Asked) -> bool:
    question, sentence = content(asked.question), content(asked.sentence)
    named = content(" ".join(_NAME.findall(asked.question))) | numbers(question)
    return (
        len(question & sentence) < max(LEAST_ASKED, FROM_THERE * len(question))
        or not named <= sentence
    )


def _says_little(asked: Asked) -> bool:
    rest = content(asked.sentence) - content(asked.answer)
    return len(rest & content(asked.question)) < COVERED * len(rest)


def _points_at_the_passage(asked: Asked) -> bool:
    """What a pronoun means stands elsewhere, but behind a name, or where somebody is asked for."""
    pronoun = _POINTS.search(asked.question)
    if pronoun is None or asked.question.startswith("Who "):
        return False
    return not _NAME.search(asked.question[: pronoun.start()])


FAULTS: Sequence[tuple[str, Check]] = (
    (f"is no question of {LEAST_WORDS} to {MOST_WORDS} words", _no_question),
    ("asks about the text, not what it says", _about_the_text),
    ("says its answer", _says_its_answer),
    ("asks what its sentence does not say", _elsewhere),
    ("says too little of its sentence", _says_little),
    ("cannot be understood without the passage", _points_at_the_passage),
)


def question_fault(question: str, sentence: str, answer: str) -> str:
    """Why a question is not used; empty where it is good."""
    asked = Asked(question, sentence, answer)
    return next((fault for fault, is_so in FAULTS if is_so(asked)), "")


# ---------------------------------------------------------------- repeats


class Repeats:
    """Questions that were asked before, of any passage."""

    def __init__(self) -> None:
        self._seen: set[int] = set()  # hashes: there may be very many

    def seen(self, question: str, earlier: Sequence[str]) -> bool:
        """Whether it was asked before, of another passage in the same words or of this one in like
        words: `earlier` are the questions about this passage. It has been asked from now on."""
        words = content(question)
        key = hashlib.blake2b(" ".join(sorted(words)).encode(), digest_size=8).digest()
        number = int.from_bytes(key, "little")
        again = number in self._seen or any(_alike(words, content(other)) for other in earlier)
        self._seen.add(number)
        return again


def _alike(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= ALIKE * max(1, len(one | other))
