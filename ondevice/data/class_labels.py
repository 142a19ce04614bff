"""Classes of texts: what a file says of them (names, numbers, none at all), in which order they are
the scores of a head, and which of them are those of another model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ondevice.common.errors import UserError

NO_LABEL = -1
"""What data sets write where nobody has said the class, as the library datasets and the test splits
of the Hub do.
"""
_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_NUMBERED = re.compile(r"(?:LABEL_)?(0|[1-9]\d*)", re.ASCII)


class ClassName(str):
    """A class that a data set stores as a number and names beside it (a `ClassLabel` of the library
    datasets).
    """

    number: int
    names: tuple[str, ...]
    """All names of the column, by number."""

    @classmethod
    def of(cls, number: int, names: tuple[str, ...]) -> ClassName:
        found = cls(names[number])
        found.number, found.names = number, names
        return found


class LabelledText(NamedTuple):
    """A text, its class, and the text that is read beside it, where the rows have two."""

    text: str
    label: str
    pair: str | None = None


def class_columns(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of the classes by column, of features as the library datasets writes them into a file:
    JSON objects with `_type`."""
    return {
        column: tuple(map(str, feature["names"]))
        for column, feature in features.items()
        if isinstance(feature, Mapping)
        and feature.get("_type") == "ClassLabel"
        and feature.get("names")
    }


def with_names(row: dict[str, Any], columns: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The row with names in place of the numbers of its classes; a number without a name stays."""
    named = {
        column: ClassName.of(value, names)
        for column, names in columns.items()
        if isinstance(value := row.get(column), int) and 0 <= value < len(names)
    }
    if named:
        return {**row, **named}
    return row


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes of some rows, as a head's scores stand: as a data set declares its names, whole
    numbers and other numbers by their size, anything else as text. Raises UserError where one
    source names its classes and another one numbers them."""
    found = dict.fromkeys(labels)
    sets = dict.fromkeys(label.names for label in found if isinstance(label, ClassName))
    declared = list(
        dict.fromkeys(ClassName.of(n, names) for names in sets for n in range(len(names)))
    )
    others = [label for label in found if label not in set(declared)]
    if declared and (numbers := [label for label in others if is_integer(label)]):
        raise UserError(
            f"one source has the class {numbers[0]!r}, another one names its classes: "
            f"{', '.join(declared[:8])}",
            where="data",
            hint="write names in both, or numbers in both",
        )
    others.sort()
    if all(map(_is_number, others)):
        others.sort(key=int if all(map(is_integer, others)) else float)
    return (*declared, *others)


def missing_numbers(names: Sequence[str]) -> list[int]:
    """Whole numbers that are left out between 0 and the largest class, where classes are whole
    numbers.
    """
    if not names or not all(map(is_integer, names)):
        return []
    numbers = set(map(int, names))
    return [n for n in range(max(numbers, default=0) + 1) if n not in numbers][: len(names)]


def same_classes(known: Sequence[str], labels: Iterable[str]) -> dict[str, str] | None:
    """{label of some rows: the class of a model}, or None where the model does not know all of
    them.

    By name; by name whatever its capitals; by number where the rows say numbers, or the model has
    no names (or those that transformers gives: LABEL_0).
    """
    found = list(dict.fromkeys(labels))
    if set(found) <= set(known):
        return {label: label for label in found}
    folded = {name.casefold(): name for name in known}
    if len(folded) == len(known) and all(label.casefold() in folded for label in found):
        return {label: folded[label.casefold()] for label in found}
    nameless = [m and int(m[1]) for m in map(_NUMBERED.fullmatch, known)] == list(range(len(known)))
    numbers = [_number(label, len(known) if nameless else 0) for label in found]
    if any(number is None or number >= len(known) for number in numbers):
        return None
    return {
        label: known[number]
        for label, number in zip(found, numbers, strict=True)
        if number is not None
    }


def _number(label: str, classes: int) -> int | None:
    """The number that a label is, or that its data set gives it, of so many classes."""
    if isinstance(label, ClassName):
        if len(label.names) == classes:
            return label.number
        return None
    matched = _NUMBERED.fullmatch(label)
    if matched:
        return int(matched[1])
    return None


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def is_integer(label: str) -> bool:
    """Whether a class is a whole number, written as one is."""
    return not isinstance(label, ClassName) and bool(_INTEGER.fullmatch(label))
