"""Ratings as a preference data set: rows as TRL reads them, and a card that says how they came to
be.

Who rated is counted and not named, unless a person asks for it (`with_raters`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.common.json_files import to_json
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import Pairs, pairs_of
from ondevice.preferences.votes import is_simulated
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
    with Ratings.open(ratings) as found:
        pairs = pairs_of(found)
    if not pairs.rows:
        raise UserError(
            "no pair can be made of these ratings",
            where=str(ratings),
            hint=f"ondevice rate {ratings}",
        )
    rows = "".join(
        to_json({**row.trl(), **(plain_values(row.extras()) if with_raters else {})}) + "\n"
        for row in pairs
    )
    return {ROWS: rows, "README.md": _card(pairs, repo, with_raters, license)}


def _card(pairs: Pairs, repo: str, with_raters: bool, license: str) -> str:
    names = {name for row in pairs for name in row.raters}
    programs = sum(map(is_simulated, names))
    people, by_program = len(names) - programs, sum(row.simulated for row in pairs)
    head = metadata(
        license=license,
        task_categories=["text-generation"],
        tags=["ondevice", "preference", "trl", "dpo"],
        size_categories=[_bracket(len(pairs))],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": ROWS}]}],
    )
    left_out = [
        ["left out because", "count"],
        *([word.replace("_", " "), f"{count:,}"] for word, count in pairs.left_out.items()),
    ]
    against = Counter(row.against > 0 for row in pairs)[True]
    raters = "Who rated is in `raters`." if with_raters else "Who rated is not in it."
    lines = [
        head,
        f"# {cell(repo.rpartition('/')[2] or 'Ratings')}",
        "",
        f"{len(pairs):,} pairs of answers to a prompt, the better one and the worse one, as TRL reads them: "
        "`prompt`, `chosen` and `rejected`, lists of messages.",
        "",
        f"- votes: {pairs.votes:,}, of people {pairs.votes - pairs.simulated_votes:,}, of programs (a rule, not a "
        f"person) {pairs.simulated_votes:,}",
        f"- raters: {people} {'person' if people == 1 else 'people'}, {programs} "
        f"program{'' if programs == 1 else 's'}. {raters}",
        f"- pairs in whose majority a program is: {by_program:,}",
        f"- pairs that some rater saw otherwise: {against:,}",
        "- a pair is here where more than half of the opinions on it say the same",
        "",
    ]
    lines += [*markdown(left_out), ""] if pairs.left_out else []
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


def _bracket(count: int) -> str:
    """The Hub's word for a number of rows."""
    brackets: Mapping[int, str] = {
        1_000: "n<1K",
        10_000: "1K<n<10K",
        100_000: "10K<n<100K",
        1_000_000: "100K<n<1M",
    }
    return next((word for limit, word in brackets.items() if count < limit), "n>1M")
