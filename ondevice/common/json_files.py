"""JSON: read from files that others wrote, within limits, and written so that every reader takes it.

The one place that parses JSON: a test walks the source for another one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.errors import UserError

DEEPEST = 100
"""Lists and objects within each other. What goes through a value by recursion can rely on it."""


class TooDeep(ValueError):
    """Lists and objects are nested too deep."""


def parse_json(text: str | bytes) -> Any:
    """The value. Raises ValueError for what is not JSON, is nested too deep (TooDeep), or holds a
    number of thousands of digits."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise TooDeep("nested too deep") from error
    if isinstance(text, bytes):
        opened = text.count(b"[") + text.count(b"{")
    else:
        opened = text.count("[") + text.count("{")
    if opened > DEEPEST and _is_deep(value):
        raise TooDeep("nested too deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                below.extend(entry.values())
            elif isinstance(entry, list):
                below.extend(entry)
        if not below:
            return False
        level = [entry for entry in below if isinstance(entry, (dict, list))]
    return bool(level)


def load_json(file: Path, most: int = bounded.LARGEST) -> Any:
    """The value in a file of at most so many bytes. Raises OSError where it cannot be read, and
    ValueError for what is too large, not UTF-8, or not JSON as `parse_json` takes it."""
    return parse_json(bounded.read_bytes(file, most).decode("utf-8"))


def json_lines(file: Path) -> Iterator[Any]:
    """The value of each line of a file of any size, one at a time. Raises OSError where it cannot be
    read, and ValueError, which names the line, for one that is not JSON or longer than is read."""
    with bounded.open_plain(file) as opened:
        for number, line in enumerate(bounded.lines(opened), 1):
            if line is None:
                raise ValueError(f"line {number} has more than {bounded.LARGEST:,} bytes")
            try:
                yield parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """{} where there is no file. Raises UserError for one that holds no JSON object, or a text that
    no file could hold."""
    if not os.path.lexists(file):
        return {}
    return read_object(file)


def read_object(file: Path, hint: str = "") -> dict[str, Any]:
    """The object in a file that must be there. Raises UserError, with the hint."""
    try:
        value = load_json(file)
        if not isinstance(value, dict):
            raise UserError("holds no JSON object", where=str(file), hint=hint)
        _refuse_surrogates(value)
    except (ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read: {said}", where=str(file), hint=hint) from error
    return value


def _refuse_surrogates(value: Any) -> None:
    """Raises UnicodeEncodeError, a ValueError, where a text holds half of a character: it can be
    spelt in JSON, and never be written again."""
    json.dumps(value, ensure_ascii=False).encode()


def to_json(record: Any, *, indent: int | None = None) -> str:
    """Strict JSON, one line of it without `indent`: NaN and the infinities become null (JSON has no
    word for them).
    """
    try:
        return json.dumps(record, allow_nan=False, default=_plain, indent=indent)
    except ValueError:  # rare, so only then is every value looked at
        return json.dumps(_finite(record), allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    """What json cannot write itself: numpy's scalars and arrays, paths."""
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _plain(value)
