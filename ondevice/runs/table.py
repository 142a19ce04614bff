"""Runs as a table: the figures that they have come to, a search among them, an order, and a line of
text for each. What a list of runs shows, in the terminal and in the app.

A search is words that all have to hold of a run:

    lr3 state:done tag:good stage:grpo exact>0.5 -minute

A plain word is looked for in the name, the note and the tags, in small letters or capitals alike;
`-` before a word means that it must not hold. A run without a figure is not more or less than any
number, and comes last in every order.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.common.clock import clock
from ondevice.common.errors import UserError, nearest
from ondevice.common.progress import duration

Run = Mapping[str, Any]
STATES = ("training", "done", "stopped", "failed", "died", "open", "unreadable")
"""What a run as a whole is: as its newest stage is; `open`: nothing is begun in it."""
FIGURES = ("exact", "held-out", "reward", "accuracy", "bits", "loss")
"""Measured figures, each of the newest stage that has it."""
OF_ALL = ("name", "age", "size", "state", "time", "step")
SORTS = (*OF_ALL, *FIGURES)
"""What runs can be ordered by: names from a to z, states as in STATES, losses from the smallest,
everything else from the largest; age from the newest."""
_SMALLEST_FIRST = ("name", "state", "held-out", "bits", "loss")
_WHERE = {
    "exact": ("exact_match",),
    "held-out": ("heldout_loss",),
    "reward": ("reward",),
    "accuracy": ("accuracy",),
    "bits": ("bits_per_byte",),
    "loss": ("loss",),
}
_COMPARED = re.compile(r"([a-z-]+)(>=|<=|>|<|=)(-?[0-9.]+(?:e-?[0-9]+)?)")
_OPERATORS = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
}


def state_of(run: Run) -> str:
    """One of STATES."""
    if run.get("wrong"):
        return "unreadable"
    states = [str(stage["state"]) for stage in run["stages"]]
    if "training" in states:
        return "training"
    if states:
        return states[-1]
    if run.get("unstarted"):
        return "failed"
    return "open"


def figures(run: Run) -> dict[str, float]:
    """Those of FIGURES that its stages have come to, each of the newest stage that has it."""
    found: dict[str, float] = {}
    for stage in run["stages"]:
        numbers = {**(stage.get("numbers") or {}), **(stage.get("marks") or {})}
        for name, keys in _WHERE.items():
            for key in keys:
                if isinstance(numbers.get(key), (int, float)):
                    found[name] = float(numbers[key])
    return found


def seconds_of(run: Run) -> float | None:
    """Seconds that its stages have worked, as far as that is known; None: of none."""
    known = [stage["seconds"] for stage in run["stages"] if stage.get("seconds") is not None]
    if known:
        return float(sum(known))
    return None


def value_of(run: Run, name: str) -> Any:
    """What a run has under one of SORTS; None where it has none, or it is not read yet."""
    if name == "name":
        return str(run["run"]).casefold()
    if name == "age":
        return float(run["began"])
    if name == "size":
        return run.get("bytes")
    if name == "state":
        return STATES.index(state_of(run))
    if name == "time":
        return seconds_of(run)
    if name == "step":
        steps = [stage["step"] for stage in run["stages"] if stage.get("step") is not None]
        return steps[-1] if steps else None
    return figures(run).get(name)


def ordered(runs: Sequence[Run], by: str = "age", *, reverse: bool = False) -> list[Run]:
    """Runs in an order of SORTS; what has no such figure comes last either way. Raises UserError for
    another name."""
    if by not in SORTS:
        raise UserError(f"no order is called {by!r}", where="sort", hint=nearest(by, SORTS))
    valued = [(value_of(run, by), run) for run in runs]
    with_value = [pair for pair in valued if pair[0] is not None]
    without = [run for value, run in valued if value is None]
    largest_first = (by not in _SMALLEST_FIRST) != reverse
    # runs of one value stand as they stood before: the sort is stable
    with_value.sort(key=lambda pair: pair[0], reverse=largest_first)
    return [run for _, run in with_value] + without


@dataclass(frozen=True)
class Search:
    """A search that has been read: `holds` of a run. `words` as they were typed."""

    words: str
    conditions: tuple[Callable[[Run], bool], ...]

    def holds(self, run: Run) -> bool:
        return all(condition(run) for condition in self.conditions)


def search(words: str) -> Search:
    """Reads a search. Raises UserError for a state or a figure that does not exist."""
    return Search(words, tuple(_condition(word) for word in words.split()))


def _condition(word: str) -> Callable[[Run], bool]:
    if word.startswith("-") and len(word) > 1:
        inner = _condition(word[1:])
        return lambda run: not inner(run)
    kind, colon, wanted = word.partition(":")
    if colon and wanted and kind in ("state", "tag", "stage"):
        return _of_kind(kind, wanted)
    compared = _COMPARED.fullmatch(word)
    if compared:
        return _comparison(*compared.groups())
    small = word.casefold()
    return lambda run: any(small in text for text in _texts(run))


def _of_kind(kind: str, wanted: str) -> Callable[[Run], bool]:
    if kind == "state":
        if wanted not in STATES:
            raise UserError(f"no state is called {wanted!r}", hint=nearest(wanted, STATES))
        return lambda run: state_of(run) == wanted
    if kind == "tag":
        return lambda run: wanted in run.get("tags", ())
    return lambda run: any(stage["stage"] == wanted for stage in run["stages"])


def _comparison(name: str, sign: str, number: str) -> Callable[[Run], bool]:
    if name not in FIGURES:
        raise UserError(f"no figure is called {name!r}", hint=nearest(name, FIGURES))
    try:
        wanted = float(number)
    except ValueError:
        raise UserError(f"{number!r} is not a number", where=name) from None

    def holds(run: Run) -> bool:
        value = figures(run).get(name)
        return value is not None and bool(_OPERATORS[sign](value, wanted))

    return holds


def _texts(run: Run) -> list[str]:
    """What a plain word is looked for in."""
    return [
        str(run["run"]).casefold(),
        str(run.get("note", "")).casefold(),
        *(str(tag).casefold() for tag in run.get("tags", ())),
    ]


def shown(name: str, value: Any, *, unread: str = "…") -> str:
    """A cell of the table, for people. A size that is not read yet is `unread`, a figure that a run
    does not have a dash."""
    if value is None:
        return unread if name == "size" else "–"
    forms: dict[str, Callable[[Any], str]] = {
        "name": str,
        "exact": "{:.0%}".format,
        "accuracy": "{:.0%}".format,
        "size": short_size,
        "time": duration,
        "age": short_age,
        "step": "{:,}".format,
        "state": STATES.__getitem__,
    }
    if name in forms:
        return forms[name](value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def short_size(count: float) -> str:
    """Bytes in at most five characters: 950, 131k, 12M, 1.4G."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            value = count / unit
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return f"{count:.0f}"


def short_age(began: float) -> str:
    """How long ago, in one word: now, 5m, 3h, 12d."""
    seconds = max(clock() - began, 0)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "now"


def to_record(run: Run) -> dict[str, Any]:
    """A run for programs: what the list has, its state and its figures."""
    return {**run, "state": state_of(run), "figures": figures(run)}


_COLUMNS = ("state", "exact", "held-out", "reward", "accuracy", "age", "size")
_TEXTS = ("run", "state", "tags", "note")  # columns that begin at the left


def table_text(runs: Sequence[Run]) -> str:
    """One line for each run, under a line of names. Columns that no run has are left out."""
    from rich.cells import cell_len

    columns = [
        name
        for name in _COLUMNS
        if name not in FIGURES or any(value_of(run, name) is not None for run in runs)
    ]
    rows = [["run", *columns, "tags", "note"]]
    for run in runs:
        cells = [shown(name, value_of(run, name), unread="?") for name in columns]
        note = " ".join(str(run.get("note", "")).split())
        if run.get("wrong"):
            note = f"cannot be read: {run['wrong']}"
        elif run.get("labels_trouble"):
            note = str(run["labels_trouble"])
        rows.append([str(run["run"]), *cells, ",".join(run.get("tags", ())), note])
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for name, text, width in zip(rows[0], row, widths, strict=True):
            room = " " * (width - cell_len(text))
            cells.append(text + room if name in _TEXTS else room + text)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
