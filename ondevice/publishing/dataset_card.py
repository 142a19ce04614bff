"""Ratings as a preference data set: rows as TRL reads them, and a card that says how they came to
be.

Who rated is counted and not named, unless a person asks for it (`with_raters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.common.json_files import to_json
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import Pairs, pairs_of
from ondevice.preferences.votes import is_simulated, person_of
from ondevice.publishing.model_card import metadata
from ondevice.publishing.public_names import plain_values
from ondevice.reports.report import cell, markdown

ROWS = "data/train.jsonl"


def data_files(
    ratings: Path, repo: str, *, with_raters: bool = False, license: str = ""
) -> dict[str, str]:
    """Path → text of everything that a data set holds. Raises UserError where there is no pair to
    publish.
    """
    with Ratings.open(ratings) as opened:
        pairs = pairs_of(opened)
    if not pairs.rows:
        raise UserError(
            "no pair can be made of these ratings",
            where=str(ratings),
            hint=f"ondevice rate {ratings}",
        )
    lines = []
    for pair in pairs:
        row = pair.trl()
        if with_raters:
            row |= plain_values(pair.extras())
        lines.append(to_json(row) + "\n")
    return {ROWS: "".join(lines), "README.md": _card(pairs, repo, with_raters, license)}


def _card(pairs: Pairs, repo: str, with_raters: bool, license: str) -> str:
    by_program = sum(row.simulated for row in pairs)
    seen_otherwise = sum(row.against > 0 for row in pairs)
    head = metadata(
        license=license,
        task_categories=["text-generation"],
        tags=["ondevice", "preference", "trl", "dpo"],
        size_categories=[_bracket(len(pairs))],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": ROWS}]}],
    )
    raters = "Who rated is not in it."
    if with_raters:
        raters = "Who rated is in `raters`."
    lines = [
        head,
        f"# {cell(repo.rpartition('/')[2] or 'Ratings')}",
        "",
        f"{len(pairs):,} pairs of answers to a prompt, the better one and the worse one, as TRL reads them: "
        "`prompt`, `chosen` and `rejected`, lists of messages.",
        "",
        f"- votes: {pairs.votes:,}, of people {pairs.votes - pairs.simulated_votes:,}, of programs (a rule, not a "
        f"person) {pairs.simulated_votes:,}",
        f"- raters: {_raters_in_words(pairs)}. {raters}",
        f"- pairs in whose majority a program is: {by_program:,}",
        f"- pairs that some rater saw otherwise: {seen_otherwise:,}",
        "- a pair is here where more than half of the opinions on it say the same",
        "",
    ]
    if pairs.left_out:
        left_out = [["left out because", "count"]]
        for word, count in pairs.left_out.items():
            left_out.append([word.replace("_", " "), f"{count:,}"])
        lines += [*markdown(left_out), ""]
    lines += [
        "The answers are models'; they were not checked for truth or harm.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'pairs = load_dataset("{repo}", split="train")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _raters_in_words(pairs: Pairs) -> str:
    """How many people and programs have rated, and no name of theirs."""
    names: set[str] = set()
    for row in pairs:
        names.update(map(person_of, row.raters))
    programs = sum(map(is_simulated, names))
    people = len(names) - programs
    persons = "person" if people == 1 else "people"
    plural = "" if programs == 1 else "s"
    return f"{people} {persons}, {programs} program{plural}"


def _bracket(count: int) -> str:
    """The Hub's word for a number of rows."""
    brackets: Mapping[int, str] = {
        1_000: "n<1K",
        10_000: "1K<n<10K",
        100_000: "10K<n<100K",
        1_000_000: "100K<n<1M",
    }
    for limit, word in brackets.items():
        if count < limit:
            return word
    return "n>1M"
