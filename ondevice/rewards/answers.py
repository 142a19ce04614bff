"""The final answer in a completion, by a form that was asked for, and whether two answers are the
same.

Strict, for whatever is rewarded is learned: an answer stands where its form puts it, at the end and
unambiguous, or it is not an answer. Two marked answers that differ are a bet, not an answer. What a
model wrote inside `<think>…</think>` is not its answer; a thought that never ends leaves none.
Where a template's generation prompt opens the thought, that opening is a part of the text
(`datasets.prompts.thought_opening`).

    number       a number alone, or "… so <number>", one full stop allowed: the built-in sums (data/builtin/scoring.py)
    hash         a last line `#### 42`, as in GSM8K
    boxed        `\\boxed{…}` with balanced braces; after it only $ . * \\) \\] and white space
    tag          `<answer>…</answer>`; after it only white space
    last_number  a last sentence that ends in its only number, or in its only `= <number>`: "It is 42."
    whole        all that is no thought
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

from ondevice.common.errors import UserError, nearest
from ondevice.data.builtin.scoring import plain, stated_number

Form = Literal["number", "hash", "boxed", "tag", "last_number", "whole"]
FORMS: tuple[str, ...] = get_args(Form)

LONGEST = 1000
"""Characters of a marked answer; a longer one is none."""
LONGEST_NUMBER = 200
"""Characters of a number that is compared as a number; longer ones are compared as text."""

_WHOLE_NUMBER = r"(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+)"
_PLAIN = re.compile(rf"[+-]?(?:{_WHOLE_NUMBER}(?:\.[0-9]+)?|(?:0|[1-9][0-9]*)/[1-9][0-9]*)")
_AFTER_BOX = re.compile(r"(?:[\s$.*]|\\[)\]])*")
_HASH = re.compile(r"^[ \t]*####[ \t]+", re.MULTILINE)
_TAG = re.compile(r"<(/?)answer>")
_BOX = "\\boxed{"
_MARKS = {"hash": "####", "boxed": "\\boxed", "tag": "<answer>"}
_THINK, _THOUGHT = "<think>", "</think>"


class Answer(NamedTuple):
    """`text` is `completion[start:end]`, without white space around it."""

    text: str
    start: int
    end: int


def final_answer(completion: str, form: str) -> str | None:
    """The text of the answer, None where the completion gives none in this form."""
    answer = find_answer(completion, form)
    if answer:
        return answer.text
    return None


def find_answer(completion: str, form: str) -> Answer | None:
    """The answer and its place. Raises UserError for an unknown form, and for no completion
    whatever.
    """
    check_form(form)
    start = _after_thoughts(completion)
    if start is None:
        return None
    return _FINDERS[form](completion, start)


def after_thoughts(completion: str) -> str | None:
    """What stands after any `<think>…</think>`; None where a thought does not end."""
    start = _after_thoughts(completion)
    if start is None:
        return None
    return completion[start:]


def check_form(form: str) -> None:
    if form not in FORMS:
        raise UserError(f"unknown form {form!r}", where="form", hint=nearest(form, FORMS))


def marks(completion: str, form: str) -> int:
    """How often the form's mark stands in the completion, after any thoughts; 1 for a form without
    a mark.
    """
    text = completion[_after_thoughts(completion) or 0 :]
    if form in _MARKS:
        return text.count(_MARKS[form])
    return 1


def number(text: str) -> Fraction | None:
    """The exact value of a plainly written number, else None.

    Plain are 42, -42, +42, 4.20, 1/2 and 1,000 (a comma before every three digits, none elsewhere);
    not plain are leading zeros, exponents, units, digits of other scripts, .5 and 5. (whose full
    stop `same_answer` takes off).
    """
    if len(text) > LONGEST_NUMBER or not _PLAIN.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))


def same_answer(given: str, right: str) -> bool:
    """True when both are plain numbers of one value, or one text give or take spaces and one full
    stop at the end.

    Exact: 1/2 is 0.5, 132. is 132.0, -0 is 0, 1,000 is 1000; 0.333 is not 1/3. Capitals count.
    Empty is not an answer.
    """
    given, right = plain(given), plain(right)
    one, other = number(given), number(right)
    if one is not None and other is not None:
        return one == other
    return bool(given) and given == right


def _after_thoughts(text: str) -> int | None:
    """Where the text begins that is no thought; None where a thought does not end."""
    start = 0
    closing = text.rfind(_THOUGHT)
    if closing >= 0:
        start = closing + len(_THOUGHT)
    if text.find(_THINK, start) >= 0:
        return None
    return start


def _answer(text: str, start: int, end: int) -> Answer | None:
    """The answer without white space around it; None where nothing is left."""
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    inner = inner.strip()
    if inner:
        return Answer(inner, start, start + len(inner))
    return None


def _number(text: str, start: int) -> Answer | None:
    span = stated_number(text[start:])
    if span:
        return _answer(text, start + span[0], start + span[1])
    return None


def _whole(text: str, start: int) -> Answer | None:
    return _answer(text, start, len(text))


def _hash(text: str, start: int) -> Answer | None:
    body = text.rstrip()
    answer = _agreed(text, _hash_lines(body, start), "####")
    if answer and answer.end == len(body):
        return answer
    return None


def _hash_lines(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Spans of what stands after the mark in every marked line."""
    for mark in _HASH.finditer(text, start):
        yield mark.end(), _line_end(text, mark.end())


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    if end < 0:
        return len(text)
    return end


def _boxed(text: str, start: int) -> Answer | None:
    answer = _agreed(text, _boxes(text, start), "\\boxed")
    if answer is None:
        return None
    closed = text.find("}", answer.end)
    if _AFTER_BOX.fullmatch(text, closed + 1):
        return answer
    return None


def _boxes(text: str, start: int) -> Iterator[tuple[int, int] | None]:
    """Spans of the contents of every box; None, and no more, for one that is not closed."""
    place = text.find(_BOX, start)
    while place >= 0:
        begin = place + len(_BOX)
        end = _closing_brace(text, begin)
        if end is None:
            yield None
            return
        yield begin, end
        place = text.find(_BOX, end)


def _closing_brace(text: str, start: int) -> int | None:
    depth, place = 1, start
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1  # an escaped brace is a sign, not a bracket
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                return place
        place += 1
    return None


def _tag(text: str, start: int) -> Answer | None:
    answer = _agreed(text, _tags(text, start), "answer>")
    if answer is None:
        return None
    closed = text.find(">", answer.end)
    if not text[closed + 1 :].strip():
        return answer
    return None


def _tags(text: str, start: int) -> Iterator[tuple[int, int] | None]:
    """Spans between opening and closing tags that alternate; None, and no more, where they do not."""
    opened: int | None = None
    for tag in _TAG.finditer(text, start):
        if bool(tag[1]) == (opened is None):
            yield None
            return
        if opened is None:
            opened = tag.end()
        else:
            yield opened, tag.start()
            opened = None
    if opened is not None:
        yield None


def _agreed(text: str, spans: Iterator[tuple[int, int] | None], mark: str) -> Answer | None:
    """The last of the spans, where all of them say the same and none holds a mark itself."""
    texts: set[str] = set()
    last: Answer | None = None
    for span in spans:
        if span is None:
            return None
        last = _answer(text, *span)
        if last is None or len(last.text) > LONGEST or mark in last.text:
            return None
        texts.add(plain(last.text))
        if len(texts) > 1:
            return None
    return last


def _last_number(text: str, start: int) -> Answer | None:
    body = text[start:].rstrip().removesuffix(".")
    begin = _after_last(body, " \t\n=:", len(body))
    if len(body) - begin > LONGEST_NUMBER or not _PLAIN.fullmatch(body, begin):
        return None
    sentence = body[_after_last(body, (". ", "! ", "? ", "\n"), begin) : begin]
    if "=" in sentence:
        alone = sentence.count("=") == 1 and not sentence.rpartition("=")[2].strip()
    else:
        alone = not any(letter.isdigit() for letter in sentence)
    if not alone:
        return None
    return _answer(text, start + begin, start + len(body))


def _after_last(text: str, signs: Iterable[str], end: int) -> int:
    """One place past the beginning of the last of these signs before `end`; 0 where none stands
    there."""
    return max(text.rfind(sign, 0, end) for sign in signs) + 1


_FINDERS: dict[str, Callable[[str, int], Answer | None]] = {
    "number": _number,
    "whole": _whole,
    "hash": _hash,
    "boxed": _boxed,
    "tag": _tag,
    "last_number": _last_number,
}


_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "py", "python3")


def last_code(text: str) -> str | None:
    """The last fenced block that says it is Python, or else the last that does not say what it is;
    where there is no fence, all of the text. None where the last fence is not closed: the answer
    was cut. Thoughts are no code."""
    text = after_thoughts(text) or ""
    blocks: dict[bool, str] = {}
    opened: tuple[str, str, int] | None = None
    for fence in _FENCE.finditer(text):
        marks, tag = fence[1], fence[2].lower()
        if opened is None:
            opened = marks, tag, fence.end() + 1
        elif marks.startswith(opened[0]) and not tag:
            if opened[1] in _PYTHON or not opened[1]:
                blocks[opened[1] in _PYTHON] = text[opened[2] : fence.start()]
            opened = None
    if opened is not None:
        return None
    code = blocks.get(True, blocks.get(False, ""))
    if not blocks and "```" not in text:
        code = text
    return code if code.strip() else None
