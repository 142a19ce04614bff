"""Models by their names on the Hub (owner/name), out of huggingface-hub's own cache; it fills the
cache where it may.

Configs, tokenizers and safetensors only: neither pickled weights nor a folder's own code are
fetched, let alone run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.common.files import there
from ondevice.hub.client import Hub, NoReply, Offline

WANTED = ("*.json", "*.safetensors", "*.jinja")
WITHOUT_WEIGHTS = ("*.json", "*.jinja")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CACHED = re.compile(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})")


def resolve(name: str | Path, revision: str | None = None, wanted: Sequence[str] = WANTED) -> Path:
    """The folder that `name` means: itself where it is one or cannot be a name on the Hub, else the
    snapshot in the cache, fetched where that is possible: of this revision, or the newest; the
    files that `wanted` means are there then. Raises UserError for a model that is neither here nor
    there."""
    path = Path(name)
    if there(path) or not is_name(str(name)):
        return path
    return fetched(str(name), revision, wanted)


def is_name(text: str) -> bool:
    """Whether it can be a model's name on the Hub: owner/name."""
    return _NAME.fullmatch(text) is not None


def fetched(name: str, revision: str | None = None, wanted: Sequence[str] = WANTED) -> Path:
    """The snapshot of a revision, or the newest; offline (HF_HUB_OFFLINE, or no network) the one
    that the cache has. Raises UserError."""
    of, option = (f" at {revision}", f" --revision {revision}") if revision else ("", "")
    try:
        return Hub(bars=True).snapshot(name, wanted, revision)
    except (Offline, NoReply) as trouble:
        if isinstance(trouble, Offline):
            why = "HF_HUB_OFFLINE is set"
        else:
            why = "the Hub cannot be reached"
        raise UserError(
            f"there is no such folder here, and the Hub's cache has no model of this name{of} ({why})",
            where=name,
            hint=f"fetch it where there is a network: hf download {name}{option}",
        ) from None
    except DiskFull:
        raise
    except UserError as error:
        raise UserError(
            f"there is no such folder here, and of the Hub: {error.message}",
            where=name,
            hint=error.hint,
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot be fetched: {error}", where=name, hint="is there room on the disk?"
        ) from error


def name_of(folder: Path) -> tuple[str, str | None]:
    """How others find a folder: its name on the Hub and its commit where it stands in the cache,
    else its path.
    """
    whole = os.path.abspath(folder)
    found = _CACHED.search(Path(whole).as_posix())
    if found:
        return (f"{found[1]}/{found[2]}", found[3])
    return (whole, None)
