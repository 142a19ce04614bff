"""The built-in rewards by name.

Each is `reward(prompts, completions, **columns) -> list[float | None]`, as TRL calls them: N
prompts and completions (strings), the data's columns as lists of N, and from the stage
`completion_ids` (lists of ids), `truncated` (bools), `max_new_tokens` (int), `form` (how answers
are written) and `apart` (calls a judge of judges.py in its own process). Rewards of `TURNS` get the
whole of the assistant's turn: where the prompt has opened a thought, with its opening. None: this
reward says nothing about the row. The first line of its docstring is its help.
"""

from __future__ import annotations

import json as json_text
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.data.builtin.scoring import plain
from ondevice.rewards import text_rules
from ondevice.rewards.answers import (
    after_thoughts,
    final_answer,
    find_answer,
    marks,
    number,
    same_answer,
)
from ondevice.rewards.unit_tests import BESIDE, COLUMNS

Values = Sequence[float | None]
Apart = Callable[[str, Mapping[str, Sequence[Any]]], Values]

_CHOICE = re.compile(r"\(?([A-Za-z])\)?")
_THINK = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def correct(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    answer: Sequence[str | None],
    form: str,
    apart: Apart,
    gym: Sequence[Any] | None = None,
    **columns: Any,
) -> Values:
    """1 for the right answer in the asked form, else 0; a gym's task scores its own answers from 0
    to 1.
    """
    given = [final_answer(completion, form) for completion in completions]
    values: list[float | None] = []
    for found, right in zip(given, answer, strict=True):
        if right is None:
            values.append(None)
        else:
            values.append(float(found is not None and same_answer(found, str(right))))
    tasks = [n for n, row in enumerate(gym or ()) if row is not None]
    if tasks and gym is not None:
        _judge_rows(values, tasks, "gym", "gym", gym, given, apart)
    if form == "boxed":
        formulas = []
        for n in range(len(given)):
            if n in tasks or values[n] != 0:
                continue
            if _need_algebra(given[n], str(answer[n])):
                formulas.append(n)
        if formulas:
            _judge_rows(values, formulas, "latex", "answer", answer, given, apart)
    return values


def _judge_rows(
    values: list[float | None],
    rows: Sequence[int],
    judge: str,
    column: str,
    wanted: Sequence[Any],
    given: Sequence[str | None],
    apart: Apart,
) -> None:
    """Puts what a judge of judges.py says of these rows into `values`."""
    arguments = {"completions": [given[n] for n in rows], column: [wanted[n] for n in rows]}
    judged = apart(judge, arguments)
    for n, value in zip(rows, judged, strict=True):
        values[n] = value


def _need_algebra(given: str | None, right: str) -> bool:
    """Whether the two may be equal although they are written differently."""
    return given is not None and (number(plain(given)) is None or number(plain(right)) is None)


def follows_form(
    prompts: Sequence[str], completions: Sequence[str], *, form: str, **columns: Any
) -> Values:
    """1 where there is an answer in the asked form, once and at the end, right or wrong; else 0."""
    return [float(_follows(text, form)) for text in completions]


def _follows(text: str, form: str) -> bool:
    return find_answer(text, form) is not None and marks(text, form) == 1


def exact(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    answer: Sequence[str | None],
    **columns: Any,
) -> Values:
    """1 where the whole completion is the answer, give or take spaces and one full stop at the end,
    else 0.
    """
    values: list[float | None] = []
    for text, right in zip(completions, answer, strict=True):
        if right is None:
            values.append(None)
        else:
            given = plain(text)
            values.append(float(bool(given) and given == plain(str(right))))
    return values


def choice(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    answer: Sequence[str | None],
    form: str,
    **columns: Any,
) -> Values:
    """1 where the answer is the right letter of a multiple choice (B, b, (B), B.), else 0; no
    letter, nothing else.
    """
    if form not in ("hash", "boxed", "tag"):
        form = "whole"
    values: list[float | None] = []
    for text, value in zip(completions, answer, strict=True):
        right = None
        if value is not None:
            right = letter(str(value))
        if right is None:
            values.append(None)
        else:
            values.append(float(letter(final_answer(text, form)) == right))
    return values


def letter(text: str | None) -> str | None:
    """The letter of a choice as a capital; None where the text is anything else."""
    if not text:
        return None
    match = _CHOICE.fullmatch(plain(text))
    if match is None:
        return None
    return match[1].upper()


def regex(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    pattern: Sequence[str | None],
    apart: Apart,
    **columns: Any,
) -> Values:
    """1 where the whole completion matches the regular expression in the column `pattern`, else 0."""
    return _judged("regex", "pattern", pattern, completions, apart)


def json(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    schema: Sequence[Any],
    apart: Apart,
    **columns: Any,
) -> Values:
    """1 where what follows any thoughts is JSON alone that fits the JSON schema in the column
    `schema`, else 0.
    """
    wanted = []
    for one in schema:
        if one is not None and not isinstance(one, str):
            one = json_text.dumps(one)
        wanted.append(one)
    return _judged("json", "schema", wanted, list(map(after_thoughts, completions)), apart)


def _judged(
    judge: str, column: str, wanted: Sequence[str | None], given: Sequence[str | None], apart: Apart
) -> Values:
    """What a judge of judges.py says of the rows that want something."""
    rows = [n for n, one in enumerate(wanted) if one is not None]
    values: list[float | None] = [None] * len(given)
    _judge_rows(values, rows, judge, column, wanted, given, apart)
    return values


def code(
    prompts: Sequence[str], completions: Sequence[str], *, apart: Apart, **columns: Any
) -> Values:
    """1 where the code passes all unit tests of its row, or the share that it passes.

    It is the last fenced block of the answer, and runs in an isolator.
    """
    given = {name: columns[name] for name in (*COLUMNS, *BESIDE) if name in columns}
    return apart("code", {"prompts": prompts, "completions": completions, **given})


def language(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Values:
    """From 0 down to -1: the share of letters in scripts that are not the prompt's (French is not
    told from English).
    """
    return [-_foreign(text, prompt) for prompt, text in zip(prompts, completions, strict=True)]


def _foreign(text: str, prompt: str) -> float:
    known, used = set(_scripts(prompt)), _scripts(text)
    if known and used:
        return sum(script not in known for script in used) / len(used)
    return 0.0


def _scripts(text: str) -> list[str]:
    """The script of each letter by its Unicode name (LATIN, CYRILLIC, CJK; kana count with the
    latter).
    """
    scripts = []
    for sign in filter(str.isalpha, text):
        script = unicodedata.name(sign, "").partition(" ")[0]
        if script in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"):
            script = "CJK"
        scripts.append(script)
    return scripts


def think(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Values:
    """1 for `<think>…</think>` once, at the start, neither it nor what follows empty; else 0."""
    return [float(_thinks(text)) for text in completions]


def _thinks(text: str) -> bool:
    match = _THINK.fullmatch(text)
    if match is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    thought, rest = match.groups()
    return bool(thought.strip()) and bool(rest.strip())


def truncated(
    prompts: Sequence[str], completions: Sequence[str], *, truncated: Sequence[bool], **columns: Any
) -> Values:
    """-1 for a completion that was cut at the limit of tokens, else 0."""
    return [-1.0 if cut else 0.0 for cut in truncated]


def overlong(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    **columns: Any,
) -> Values:
    """From 0 down to -1 over the last fifth of the limit of tokens: DAPO's soft punishment (Yu
    2025, equation 13).
    """
    last = max(max_new_tokens // 5, 1)
    values = []
    for ids in completion_ids:
        room = (max_new_tokens - last - len(ids)) / last
        values.append(min(max(room, -1.0), 0.0))
    return values


def length(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    **columns: Any,
) -> Values:
    """From 1 for no tokens down to 0 at the limit: shorter is better. Give it little weight."""
    return [max(1.0 - len(ids) / max_new_tokens, 0.0) for ids in completion_ids]


@dataclass(frozen=True)
class Builtin:
    """A reward, its weight where none is given, and the columns that the data must have for it."""

    function: Callable[..., Values]
    weight: float = 1.0
    needs: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """Columns of which the data must have one."""
    reads: tuple[str, ...] = ()
    """Columns that it reads where they are there."""

    @property
    def help(self) -> str:
        """The first paragraph of the function's docstring, on one line."""
        return " ".join((self.function.__doc__ or "").partition("\n\n")[0].split())


TURNS = frozenset(
    (
        "correct",
        "format",
        "choice",
        "json",
        "think",
        "code",
        "words",
        "begins",
        "ends",
        "finished",
        "word_count",
    )
)
"""Rewards to which it matters what is a thought: they see what the prompt has opened, too."""
BUILTIN: Mapping[str, Builtin] = {
    "correct": Builtin(correct, needs=("answer",)),
    "format": Builtin(follows_form, 0.1),
    "truncated": Builtin(truncated, 0.5),
    "overlong": Builtin(overlong, 0.5),
    "exact": Builtin(exact, needs=("answer",)),
    "choice": Builtin(choice, needs=("answer",)),
    "regex": Builtin(regex, needs=("pattern",)),
    "json": Builtin(json, needs=("schema",)),
    "code": Builtin(code, one_of=COLUMNS, reads=BESIDE),
    "think": Builtin(think, 0.1),
    "language": Builtin(language, 0.1),
    "length": Builtin(length, 0.1),
    "words": Builtin(text_rules.words, needs=("words",)),
    "begins": Builtin(text_rules.begins, 0.5, needs=("begins",)),
    "ends": Builtin(text_rules.ends, 0.5, needs=("ends",)),
    "finished": Builtin(text_rules.finished, 0.5),
    "word_count": Builtin(text_rules.word_count, 0.5, needs=("word_count",)),
    "repetition": Builtin(text_rules.repetition),
}
