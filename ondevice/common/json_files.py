"""JSON: read from files that others wrote, and written so that every reader takes it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """{} where there is no file. Raises UserError for one that holds no JSON object."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(value, dict):
        raise UserError("holds no JSON object", where=str(file))
    return value


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
