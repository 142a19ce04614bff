"""What the fields of an adapter's config may hold that are read here: numbers, names and patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.numbers import is_number
from ondevice.models.module_patterns import check_pattern


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_names_or_pattern(value: Any) -> bool:
    return isinstance(value, str) or _are_names(value)


def _are_counts(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and all(map(_is_count, value)))


def _are_numbers_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_count, "a rank"),
    "lora_alpha": (is_number, "a number"),
    "rank_pattern": (_are_numbers_by_name, "numbers by modules' names"),
    "alpha_pattern": (_are_numbers_by_name, "numbers by modules' names"),
    "target_modules": (_are_names_or_pattern, "modules' names"),
    "exclude_modules": (_are_names_or_pattern, "modules' names"),
    "modules_to_save": (_are_names, "modules' names"),
    "layers_to_transform": (_are_counts, "numbers of layers"),
    "layers_pattern": (_are_names_or_pattern, "names of lists of layers"),
}
"""What the fields that are read here may hold, where they hold anything."""
_PATTERNS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern")
"""Fields with regular expressions: those of modules where they are one text, the others always."""


def check_fields(config: Mapping[str, Any], file: str) -> None:
    """Raises UserError, naming the file and the field, for a value that a field cannot hold."""
    for name, (fits, what) in _SHAPES.items():
        if config.get(name) is not None and not fits(config[name]):
            raise UserError(f"{config[name]!r:.80} is not {what}", where=f"{file}: {name}")
    for name in _PATTERNS:
        given = config.get(name) or ()
        for pattern in [given] if isinstance(given, str) else given:
            if name.endswith("_pattern") or isinstance(given, str):
                check_pattern(pattern, f"{file}: {name}")
