"""The user's own cache folder: what can be made again, and is kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "ONDEVICE_CACHE"
"""Variable that names another folder than ~/.cache/ondevice."""


def folder() -> Path:
    """Where it is; nothing is made there."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "ondevice"
