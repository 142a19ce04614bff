"""Whether a question that a model wrote about a passage, and its answer, are worth learning from.

Checked by words alone, so that it is the same whoever wrote: the answer's content stands in the
passage, the question can be understood without the passage, and nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import re

LEAST_WORDS, MOST_WORDS = 4, 40
"""Of a question."""
MOST_ANSWER = 120
"""Words of an answer."""
GROUNDED = 0.8
"""Share of an answer's content that stands in the passage or the question."""
ASKED_OF = 0.6
"""Share of a question's content that stands in the passage."""
RUN = 5
"""Words that an answer says twice where it goes round in a circle."""
ALIKE = 0.75
"""Share of their content that two questions about one passage have in common, from which the second
is a repeat."""
_STEM = 6  # letters by which forms of one word count as one
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NAME = re.compile(r"(?<![.!?:\"“]\s)(?<!^)\b[A-Z][\w'’-]+")
_ABOUT = re.compile(
    r"\b(?:this|the|above|following|given|that)\s+(?:\w+\s+)?(?:text|passage|excerpt|author|writer|story|"
    r"document|article|paragraph|speaker|narrator|poem|play|chapter|section|sentence|quote|quotation|"
    r"statement|scene|conversation|dialogue|context)s?\b|\baccording to\b|\bmentioned\b|\bdescribed\b|"
    r"\b(?:main|central|overall|primary)\s+(?:idea|theme|topic|point|purpose|message|character|focus|"
    r"argument)\b|\bthe (?:right |correct )?(?:answer|question)\b|\bpassage\b|\bin question\b|\btone of\b",
    re.IGNORECASE,
)
_POINTING = re.compile(
    r"\b(?:he|she|they|him|her|his|hers|their|theirs|them|it|its|this|these|those|here|thou|thy)\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:as an ai|i'm sorry|i am sorry|i cannot|i can't|sorry,|does not (?:say|mention|provide|specify|state)|"
    r"doesn't (?:say|mention|provide|specify|state)|is not (?:mentioned|specified|stated|provided|clear)|"
    r"not enough information|no information|unknown)\b|\bthe (?:passage|text|excerpt)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"how (?:many|much|old|far|long)\b", re.IGNORECASE)
_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|"
    r"hundred|thousand|million|half|twice|none|no|all|once|dozen)\b",
    re.IGNORECASE,
)
_SMALL_WORDS = """
a an and are as at be because been but by can could did do does for from had has have he her
him his how i if in into is it its may me might more most my no not of on one or our out own
shall she should so some such than that the their them then there these they this those to too
under until up upon us very was we were what when where which while who whom whose why will
with would you your about after also am any before being both between doing down during each
few further here just nor now off once only other over same through
"""
_SMALL = frozenset(_SMALL_WORDS.split())
"""Words that say nothing by themselves."""


def content(text: str) -> set[str]:
    """The words that say something, each without its ending; numbers as they are."""
    found = set()
    for word in _WORD.findall(text.casefold()):
        word = re.sub(r"['’]s?$|['’]s\b", "", word)
        if word in _SMALL:
            continue
        if word.isdigit() or len(word) > 2:
            found.add(word if word.isdigit() else word[:_STEM])
    return found


def first_question(text: str) -> str:
    """What was asked first, in one line; empty where nothing is."""
    line = " ".join(text.split())
    end = line.find("?")
    return line[: end + 1].lstrip("0123456789.)-*# \"'“").strip() if end >= 0 else ""


def question_fault(question: str, passage: str) -> str:
    """Why a question is not used; empty where it is good."""
    words = question.split()
    if not question or not LEAST_WORDS <= len(words) <= MOST_WORDS:
        return "is no question of 4 to 40 words"
    if _ABOUT.search(question):
        return "asks about the text, not what it says"
    said = content(passage)
    names = {name.casefold() for name in _NAME.findall(question)}
    known = passage.casefold()
    if any(name.removesuffix("'s").removesuffix("’s") not in known for name in names):
        return "names what does not stand in the passage"
    asked = content(question)
    if len(asked & said) < max(1, ASKED_OF * len(asked)):
        return "asks what does not stand in the passage"
    if any(one.isdigit() and one not in said for one in asked):
        return "names a number that does not stand in the passage"
    if _POINTING.search(question) and not names:
        return "cannot be understood without the passage"
    return ""


def answer_fault(question: str, answer: str, passage: str, stopped: bool) -> str:
    """Why an answer is not used; empty where it is good. `stopped`: the model has ended it."""
    words = answer.split()
    if not words:
        return "has no answer"
    if not stopped:
        return "has an answer that does not end"
    if len(words) > MOST_ANSWER:
        return f"has an answer of more than {MOST_ANSWER} words"
    if _REFUSED.search(answer):
        return "has an answer that tells of the text, or that it does not know"
    said, asked, told = content(passage), content(question), content(answer)
    if not (told - asked) & said:
        return "has an answer that says nothing of the passage"
    if _COUNTED.match(question) and not _NUMBER.search(answer):
        return "asks for a number, and has an answer without one"
    if _repeats_itself(words):
        return "has an answer that repeats itself"
    if any(one.isdigit() and one not in said | asked for one in told):
        return "has an answer with a number that does not stand in the passage"
    if len(told & (said | asked)) < GROUNDED * len(told):
        return "has an answer that does not stand in the passage"
    if '"' in answer and answer.count('"') % 2:
        return "has an answer with half a quotation"
    return ""


def _repeats_itself(words: list[str]) -> bool:
    runs = [tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1)]
    return len(set(runs)) < len(runs)


class Repeats:
    """Questions that were asked before: of one passage by their words, of all by a hash."""

    def __init__(self) -> None:
        self._all: set[int] = set()
        self._here: list[set[str]] = []
        self._passage = -1

    def seen(self, question: str, passage: int) -> bool:
        """Whether it was asked before; it has been from now on."""
        said = content(question)
        if passage != self._passage:
            self._here, self._passage = [], passage
        again = any(_alike(said, other) for other in self._here)
        self._here.append(said)
        key = hashlib.blake2b(" ".join(sorted(said)).encode(), digest_size=8).digest()
        number = int.from_bytes(key, "little")
        again = again or number in self._all
        self._all.add(number)
        return again


def _alike(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= ALIKE * max(1, len(one | other))
