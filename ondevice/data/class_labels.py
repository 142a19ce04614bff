"""Classes of texts: what a file says of them (names, numbers, none at all), in which order they are
the scores of a head, and which of them are those of another model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        name = cls(names[number])
        name.number, name.names = number, names
        return name


class LabelledText(NamedTuple):
    """A text, its class, and the text that is read beside it, where the rows have two."""

    text: str
    label: str
    pair: str | None = None


def class_columns(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of the classes by column, of features as the library datasets writes them into a file:
    JSON objects with `_type`."""
    columns = {}
    for column, feature in features.items():
        if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
            continue
        if feature.get("names"):
            columns[column] = tuple(map(str, feature["names"]))
    return columns


def with_names(row: dict[str, Any], columns: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The row with names in place of the numbers of its classes; a number without a name stays."""
    named = {}
    for column, names in columns.items():
        value = row.get(column)
        if isinstance(value, int) and 0 <= value < len(names):
            named[column] = ClassName.of(value, names)
    if named:
        return {**row, **named}
    return row


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes of some rows, as a head's scores stand: as a data set declares its names, whole
    numbers and other numbers by their size, anything else as text. Raises UserError where one
    source names its classes and another one numbers them."""
    found = dict.fromkeys(labels)
    declared = _declared(found)
    known = set(declared)
    others = [label for label in found if label not in known]
    numbers = list(filter(is_integer, others))
    if declared and numbers:
        raise UserError(
            f"one source has the class {numbers[0]!r}, another one names its classes: "
            f"{', '.join(declared[:8])}",
            where="data",
            hint="write names in both, or numbers in both",
        )
    others.sort()
    if all(map(_is_number, others)):
        value: Callable[[str], float] = float
        if all(map(is_integer, others)):
            value = int
        others.sort(key=value)
    return (*declared, *others)


def _declared(labels: Iterable[str]) -> list[ClassName]:
    """All names that the labels' data sets declare, each once, in their order."""
    columns = dict.fromkeys(label.names for label in labels if isinstance(label, ClassName))
    declared: dict[ClassName, None] = {}
    for names in columns:
        for number in range(len(names)):
            declared.setdefault(ClassName.of(number, names))
    return list(declared)


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
    classes = len(known) if _are_nameless(known) else 0
    by_number = {}
    for label in found:
        number = _number(label, classes)
        if number is None or number >= len(known):
            return None
        by_number[label] = known[number]
    return by_number


def _are_nameless(known: Sequence[str]) -> bool:
    """Whether a model's classes are called by their numbers alone."""
    for number, name in enumerate(known):
        match = _NUMBERED.fullmatch(name)
        if match is None or int(match[1]) != number:
            return False
    return True


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
