"""Built-in rewards for text that was ordered: which words occur in it, how it begins and ends, how
long it is, and whether it repeats itself. The signature is that of `builtin`'s.

What a model has thought (`<think>…</think>`) is not looked at, except by `repetition`. A word is a
run of letters and digits, an apostrophe between two of them included; a Chinese character and a
kana is one by itself. Capitals do not count, nor does the kind of quotation marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.numbers import number_or_none
from ondevice.rewards.answers import after_thoughts

RUN = 4
"""Words of a run that is not to come twice."""

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])[^\W_]|(?<=\w)'(?=\w))+"
)
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})
_SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]»]*\Z")
_BOUNDS = re.compile(r"\s*(\d+)\s*[-–,]\s*(\d+)\s*")


def words_of(text: str) -> list[str]:
    """The words of a text in their order, in small letters."""
    return _WORD.findall(text.translate(_PLAIN).casefold())


def ends_a_sentence(text: str) -> bool:
    """Whether the last thing in the text is the end of a sentence, quotation marks after it
    included.
    """
    return bool(_SENTENCE_END.search(text.translate(_PLAIN).rstrip()))


def words(
    prompts: Sequence[str], completions: Sequence[str], *, words: Sequence[Any], **columns: Any
) -> list[float | None]:
    """From 0 to 1: the share of the words in the column `words` that occur, as whole words.

    The column is a list, or a text with commas. One of several words occurs as they follow each
    other.
    """
    values: list[float | None] = []
    for text, wanted in zip(completions, words, strict=True):
        runs = _wanted_words(wanted)
        if not runs:
            values.append(None)
            continue
        said = _spaced(words_of(_said(text)))
        values.append(sum(_spaced(run) in said for run in runs) / len(runs))
    return values


def _wanted_words(column: Any) -> list[list[str]]:
    """The words of each entry of the column. Raises UserError for what is no list of texts."""
    if column is None:
        return []
    entries = column
    if isinstance(column, str):
        entries = column.split(",")
    if not isinstance(entries, Sequence) or not all(isinstance(one, str) for one in entries):
        raise UserError(
            f"{column!r:.80} is not a list of words",
            where="the column words",
            hint='["dog", "ball"], or "dog, ball"',
        )
    return list(filter(None, map(words_of, entries)))


def _spaced(found: Sequence[str]) -> str:
    return f" {' '.join(found)} "


def begins(
    prompts: Sequence[str], completions: Sequence[str], *, begins: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the completion begins with the text in the column `begins`, spaces and line breaks
    aside, else 0.
    """
    values: list[float | None] = []
    for text, wanted in zip(completions, begins, strict=True):
        opening = _text(wanted, "begins")
        if not opening:
            values.append(None)
            continue
        said = _flat(_said(text))
        rest = said[len(opening) :]
        is_whole = not (opening[-1].isalnum() and rest[:1].isalnum())
        values.append(float(said.startswith(opening) and is_whole))
    return values


def ends(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    ends: Sequence[Any],
    truncated: Sequence[bool],
    **columns: Any,
) -> list[float | None]:
    """1 where the completion stops by itself after the text in the column `ends`, spaces and line
    breaks aside, else 0.
    """
    values: list[float | None] = []
    for text, wanted, cut in zip(completions, ends, truncated, strict=True):
        closing = _text(wanted, "ends")
        if not closing:
            values.append(None)
            continue
        said = _flat(_said(text))
        before = said[: len(said) - len(closing)]
        is_whole = not (closing[0].isalnum() and before[-1:].isalnum())
        values.append(float(not cut and said.endswith(closing) and is_whole))
    return values


def finished(
    prompts: Sequence[str], completions: Sequence[str], *, truncated: Sequence[bool], **columns: Any
) -> list[float | None]:
    """1 where the completion stops by itself at the end of a sentence, else 0."""
    values: list[float | None] = []
    for text, cut in zip(completions, truncated, strict=True):
        said = _said(text)
        values.append(float(not cut and bool(words_of(said)) and ends_a_sentence(said)))
    return values


def word_count(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    word_count: Sequence[Any],
    **columns: Any,
) -> list[float | None]:
    """1 for as many words as the column `word_count` says ([60, 120], or 60-120), less beyond.

    It falls to 0 at half the least and at one and a half times the most.
    """
    values: list[float | None] = []
    for text, wanted in zip(completions, word_count, strict=True):
        bounds = _bounds(wanted)
        if bounds is None:
            values.append(None)
            continue
        values.append(_within(len(words_of(_said(text))), *bounds))
    return values


def _within(count: int, least: float, most: float) -> float:
    if count < least:
        return max(0.0, 2 * count / least - 1)
    if count > most:
        if most:
            return max(0.0, 3 - 2 * count / most)
        return 0.0
    return 1.0


def _bounds(column: Any) -> tuple[float, float] | None:
    """(least, most) of a row's column. Raises UserError for what is neither."""
    if column is None:
        return None
    found = column
    if isinstance(column, str) and (match := _BOUNDS.fullmatch(column)):
        found = [int(match[1]), int(match[2])]
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        least, most = map(number_or_none, found)
        if least is not None and most is not None and 0 <= least <= most:
            return least, most
    raise UserError(
        f"{column!r:.80} does not say how many words at least and at most",
        where="the column word_count",
        hint="[60, 120], or 60-120",
    )


def repetition(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """From 0 down to -1: the share of runs of four words that stand in the completion before."""
    return [-repeated_share(text) for text in completions]


def repeated_share(text: str) -> float:
    """The share of a text's runs of RUN words that are there earlier in it; 0 where it has none."""
    found = words_of(text)
    runs = [tuple(found[n : n + RUN]) for n in range(len(found) - RUN + 1)]
    if not runs:
        return 0.0
    return 1 - len(set(runs)) / len(runs)


def _said(completion: str) -> str:
    """What follows any thoughts; nothing where a thought does not end."""
    return after_thoughts(completion) or ""


def _flat(text: str) -> str:
    """On one line, with plain quotation marks."""
    return " ".join(text.translate(_PLAIN).split())


def _text(column: Any, name: str) -> str:
    """The text of a row's column, on one line. Raises UserError for anything else."""
    if column is None:
        return ""
    if not isinstance(column, str):
        raise UserError(f"{column!r:.80} is not a text", where=f"the column {name}")
    return _flat(column)
