"""Whether a question that a model wrote about a passage, and its answer, are worth learning from.

Checked by words alone, so that it is the same whichever model wrote. A question is used where it can be
understood without the passage and asks what stands there; an answer where it ends, answers that kind of
question, and says what stands there. `QUESTION_FAULTS` and `ANSWER_FAULTS` list all checks, in the order
in which they are made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

LEAST_WORDS, MOST_WORDS = 4, 40
"""Of a question."""
MOST_ANSWER = 120
"""Words of an answer."""
ASKED_OF = 0.6
"""Share of a question's content that stands in the passage."""
GROUNDED = 0.8
"""Share of an answer's content that stands in the passage or the question."""
TOGETHER = (0.6, 0.5)
"""Shares of a question's content, and of what the answer adds to it, for which there is a sentence of the
passage: it says what is added, and what is asked about stands in it or the one before ("She sold it").
A model that guesses takes them from two places."""
LEAST_ASKED = 2
"""Words of content that a question without a name has."""
RUN = 5
"""Words that an answer says twice where it goes round in a circle."""
ALIKE = 0.75
"""Share of their content that two questions about one passage have in common, from which the second
is a repeat."""


# ---------------------------------------------------------------- words


def _any_of(*phrases: str) -> re.Pattern[str]:
    """Any of these phrases as whole words, whatever their case."""
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


_STEM = 6  # letters by which forms of one word count as one
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|\n{2,}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_POSSESSIVE = re.compile(r"['’]s?$")
_NAME = re.compile(r"(?<![.!?:\"“]\s)(?<!^)\b[A-Z][\w'’-]+")
"""A word with a capital that does not begin a sentence."""
_SMALL_WORDS = """
a about after also am an and any are as at be because been before being between both but by can
could did do does doing down during each few for from further had has have he her here him his
how i if in into is it its just may me might more most must my no nor not now of off on once one
only or other our out over own same shall she should so some such than that the their them then
there these they this those through to too under until up upon us very was we were what when
where which while who whom whose why will with would you your
"""
_SMALL = frozenset(_SMALL_WORDS.split())
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
_CHOOSES = re.compile(
    r"\b(?:which|who|what)\b.{0,12}\bof the\b(?: \w+)? (?:two|three|following|people)\b|\bthe two\b",
    re.IGNORECASE,
)
"""What is chosen among stands in the passage too."""
_PRONOUN = re.compile(r"(?:he|she|they|it|i|you|we)\b", re.IGNORECASE)
_GIVES_UP = _any_of(
    "as an ai",
    r"i(?:'m| am) sorry|sorry,",
    r"i (?:cannot|can't)",
    r"(?:does not|doesn't) (?:say|mention|provide|specify|state)",
    r"is not (?:mentioned|specified|stated|provided|clear)",
    "not enough information|no information|unknown",
    "the (?:passage|text|excerpt)",
)
_NUMBER = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|"
    "hundred|thousand|million|half|twice|none|no|all|once|dozen"
)
_PLACE = (
    "in|into|inside|on|onto|at|to|from|near|by|with|under|below|over|above|behind|before|beside|beyond|"
    "through|around|along|between|across|among|out|outside|off|here|there|home|where"
)
_TIME = (
    "in|on|at|by|when|after|before|during|while|until|since|as|ago|later|now|then|today|"
    r"(?:second|minute|hour|day|night|week|month|year|centur|morning|evening|noon)\w*"
)
_REASON = "because|since|as|so|due|to|for|out of|thanks|therefore|in order"
_KINDS = (
    ("a number", re.compile(r"how (?:many|much|old|far|long)\b", re.IGNORECASE), _any_of(_NUMBER)),
    ("where", re.compile(r"where\b", re.IGNORECASE), _any_of(_PLACE)),
    ("when", re.compile(r"when\b", re.IGNORECASE), _any_of(_TIME)),
    ("why", re.compile(r"why\b", re.IGNORECASE), _any_of(_REASON)),
)
"""What questions ask for, how they begin, and what an answer of that kind has (digits are a number, and
a time)."""


def content(text: str) -> set[str]:
    """The words that say something, each without its ending; numbers as they are."""
    found = set()
    for word in _WORD.findall(text.casefold()):
        word = _POSSESSIVE.sub("", word)
        if word.isdigit():
            found.add(word)
        elif len(word) > 2 and word not in _SMALL:
            found.add(word[:_STEM])
    return found


def numbers(words: set[str]) -> set[str]:
    return set(filter(str.isdigit, words))


def first_question(text: str) -> str:
    """What was asked first, in one line; empty where nothing is."""
    line = " ".join(text.split())
    end = line.find("?") + 1
    return line[:end].lstrip("0123456789.)-*# \"'“").strip()


# ---------------------------------------------------------------- checks


@dataclass(frozen=True)
class Pair:
    """A question about a passage and its answer, with the content of each. `stopped`: the model has
    ended the answer, and not a limit."""

    passage: str
    question: str
    answer: str = ""
    stopped: bool = True

    @cached_property
    def said(self) -> set[str]:
        return content(self.passage)

    @cached_property
    def asked(self) -> set[str]:
        return content(self.question)

    @cached_property
    def told(self) -> set[str]:
        return content(self.answer)

    @cached_property
    def names(self) -> set[str]:
        """The names in the question."""
        return {_POSSESSIVE.sub("", name.casefold()) for name in _NAME.findall(self.question)}


Check = Callable[[Pair], bool]


def _no_question(pair: Pair) -> bool:
    return not LEAST_WORDS <= len(pair.question.split()) <= MOST_WORDS


def _about_the_text(pair: Pair) -> bool:
    return bool(_OF_THE_TEXT.search(pair.question))


def _other_names(pair: Pair) -> bool:
    passage = pair.passage.casefold()
    return any(name not in passage for name in pair.names)


def _asks_elsewhere(pair: Pair) -> bool:
    return len(pair.asked & pair.said) < max(1, ASKED_OF * len(pair.asked))


def _other_numbers_asked(pair: Pair) -> bool:
    return not numbers(pair.asked) <= pair.said


def _points_at_the_passage(pair: Pair) -> bool:
    if _CHOOSES.search(pair.question):
        return True
    return not pair.names and (bool(_POINTS.search(pair.question)) or len(pair.asked) < LEAST_ASKED)


def _no_answer(pair: Pair) -> bool:
    return not pair.answer.split()


def _not_ended(pair: Pair) -> bool:
    return not pair.stopped


def _too_long(pair: Pair) -> bool:
    return len(pair.answer.split()) > MOST_ANSWER


def _gives_up(pair: Pair) -> bool:
    return bool(_GIVES_UP.search(pair.answer))


def _says_nothing_new(pair: Pair) -> bool:
    return not (pair.told - pair.asked) & pair.said


def _answers_another(pair: Pair) -> bool:
    for kind, begins, has in _KINDS:
        if begins.match(pair.question):
            digits = kind in ("a number", "when") and any(map(str.isdigit, pair.answer))
            return not digits and not has.search(_without(pair.question, pair.answer))
    return False


def _without(question: str, answer: str) -> str:
    """An answer without the words with which it says the question again."""
    asked = set(_WORD.findall(question.casefold()))
    return " ".join(word for word in _WORD.findall(answer) if word.casefold() not in asked)


def _goes_round(pair: Pair) -> bool:
    words = pair.answer.split()
    runs = [tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1)]
    return len(set(runs)) < len(runs)


def _other_numbers_told(pair: Pair) -> bool:
    return not numbers(pair.told) <= pair.said | pair.asked


def _other_names_told(pair: Pair) -> bool:
    names = content(" ".join(_NAME.findall(pair.answer)))
    return not names <= pair.said | pair.asked


def _tells_elsewhere(pair: Pair) -> bool:
    return len(pair.told & (pair.said | pair.asked)) < GROUNDED * len(pair.told)


def _names_nobody(pair: Pair) -> bool:
    return pair.question.casefold().startswith("who") and bool(_PRONOUN.match(pair.answer))


def _from_two_places(pair: Pair) -> bool:
    added = pair.told - pair.asked
    before: set[str] = set()
    for sentence in map(content, _SENTENCE.split(pair.passage)):
        asked_there = len(pair.asked & (before | sentence)) >= TOGETHER[0] * len(pair.asked)
        if asked_there and len(added & sentence) >= TOGETHER[1] * len(added):
            return False
        before = sentence
    return True


def _half_a_quotation(pair: Pair) -> bool:
    return pair.answer.count('"') % 2 == 1


QUESTION_FAULTS: Sequence[tuple[str, Check]] = (
    (f"is no question of {LEAST_WORDS} to {MOST_WORDS} words", _no_question),
    ("asks about the text, not what it says", _about_the_text),
    ("names what does not stand in the passage", _other_names),
    ("asks what does not stand in the passage", _asks_elsewhere),
    ("names a number that does not stand in the passage", _other_numbers_asked),
    ("cannot be understood without the passage", _points_at_the_passage),
)
ANSWER_FAULTS: Sequence[tuple[str, Check]] = (
    ("has no answer", _no_answer),
    ("has an answer that does not end", _not_ended),
    (f"has an answer of more than {MOST_ANSWER} words", _too_long),
    ("has an answer that tells of the text, or that it does not know", _gives_up),
    ("has an answer that says nothing of the passage", _says_nothing_new),
    ("asks where, when, why or how many, and has an answer to another question", _answers_another),
    ("has an answer that repeats itself", _goes_round),
    ("has an answer with a number that does not stand in the passage", _other_numbers_told),
    ("has an answer with a name that does not stand in the passage", _other_names_told),
    ("has an answer that does not stand in the passage", _tells_elsewhere),
    ("asks who, and has an answer that names nobody", _names_nobody),
    ("has an answer from elsewhere in the passage than what is asked", _from_two_places),
    ("has an answer with half a quotation", _half_a_quotation),
)


def question_fault(question: str, passage: str) -> str:
    """Why a question is not used; empty where it is good."""
    return _first_fault(QUESTION_FAULTS, Pair(passage, question))


def answer_fault(question: str, answer: str, passage: str, stopped: bool) -> str:
    """Why an answer is not used; empty where it is good. `stopped`: the model has ended it."""
    return _first_fault(ANSWER_FAULTS, Pair(passage, question, answer, stopped))


def _first_fault(faults: Sequence[tuple[str, Check]], pair: Pair) -> str:
    return next((fault for fault, is_so in faults if is_so(pair)), "")


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
