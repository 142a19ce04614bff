"""One safetensors file, read with errors for people: the one door to tensors that others wrote."""

from __future__ import annotations

import struct
from pathlib import Path

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

_HEAD = 100 << 20  # bytes, as in safetensors itself


def read_tensors(file: Path, backend: Backend, dtype: str | None = "float32") -> Params:
    """The file's tensors, floating ones in `dtype`. Raises UserError for a file that cannot be
    read.
    """
    try:
        return backend.load(file, dtype)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), hint="is the download whole?"
        ) from error
    except Exception as error:  # safetensors raises a class of its own, derived from Exception only
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(
            f"cannot be read: {error}", where=str(file), hint="is the download whole?"
        ) from error


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the file's tensors, from its head: nothing is loaded. Raises UserError for a
    file that has none."""
    try:
        with bounded.open_plain(file) as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _HEAD:
                raise bounded.TooLarge(f"its head has {length:,} bytes")
            head = parse_json(opened.read(length))
        head.pop("__metadata__", None)
        return {str(name): tuple(map(int, tensor["shape"])) for name, tensor in head.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), hint="is the download whole?"
        ) from error
