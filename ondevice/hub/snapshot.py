"""Models by their names on the Hub (owner/name), out of huggingface-hub's own cache; it fills the
cache where it may.

Configs, tokenizers and safetensors only: neither pickled weights nor a folder's own code are
fetched, let alone run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ondevice.common.disk import DiskFull, need_room
from ondevice.common.errors import UserError
from ondevice.common.files import there
from ondevice.hub.client import Hub, NoReply, Offline, cache_folder

WANTED = ("*.json", "*.safetensors", "*.jinja")
WITHOUT_WEIGHTS = ("*.json", "*.jinja")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
ROOM = 1.05
"""How much free room a download needs, for each byte that is stated."""
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
    if revision:
        of, option = (f" at {revision}", f" --revision {revision}")
    else:
        of, option = ("", "")
    client = Hub(bars=True)
    try:
        _need_room(client, name, revision, wanted)
        return client.snapshot(name, wanted, revision)
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


def _need_room(client: Hub, name: str, revision: str | None, wanted: Sequence[str]) -> None:
    """Raises DiskFull where a model that is fetched for the first time has no room in the Hub's
    cache. Whether the Hub can be asked at all is seen where it is fetched."""
    if (cache_folder() / f"models--{name.replace('/', '--')}" / "snapshots").is_dir():
        return
    with suppress(Offline, NoReply):
        commit = client.look(name, revision or "main").head
        sizes = [
            file.size
            for file in client.files(name, commit)
            if "/" not in file.path and any(fnmatchcase(file.path, kind) for kind in wanted)
        ]
        need_room(cache_folder(), sum(sizes) * ROOM, f"{name}, in the Hub's cache (HF_HOME),")


def name_of(folder: Path) -> tuple[str, str | None]:
    """How others find a folder: its name on the Hub and its commit where it stands in the cache,
    else its path.
    """
    whole = os.path.abspath(folder)
    found = _CACHED.search(Path(whole).as_posix())
    if found:
        return (f"{found[1]}/{found[2]}", found[3])
    return (whole, None)
