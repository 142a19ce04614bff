"""One safetensors file, read with errors for people."""

from __future__ import annotations

from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


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
