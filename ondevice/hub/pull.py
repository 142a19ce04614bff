"""Gets a repository from the Hub: listed kinds of files only, every one compared with the hash that
its commit states.

Refused are pickled weights, code that would run here, paths that leave the folder, symbolic links.
The folder is whole or not there. The client's cache keeps what has come, so that an interrupted
pull goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ondevice.common.disk import nearest_folder, need_room
from ondevice.common.errors import UserError
from ondevice.common.files import sha256, whole_folder
from ondevice.common.json_files import load_json
from ondevice.common.progress import size
from ondevice.common.sanitize import sanitize, to_stderr
from ondevice.config.hub import PullConfig
from ondevice.hub.client import Hub, RemoteFile, cache_folder, git_blob_of, with_retries
from ondevice.hub.snapshot import ROOM

ORIGIN = ".pulled.json"
"""Where a pulled folder came from: {"repo", "commit", "kind"}."""
_NAMES = {"LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY"}
_KINDS = {
    ".json",
    ".safetensors",
    ".txt",
    ".model",
    ".jinja",
    ".md",
    ".jsonl",
    ".csv",
    ".parquet",
    ".svg",
    ".png",
}
_PICKLED = {
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".keras",
    ".msgpack",
}
_DATA = (".safetensors", ".parquet", ".jsonl", ".csv")
_CODE = re.compile(r"\.(py|pyc|so|dll|dylib|sh|js)$")
_ODD = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|]")

Tell = Callable[[Mapping[str, Any]], None]


def pull(cfg: PullConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Returns {"path", "repo", "commit", "files", "bytes", "left_out"}. Raises UserError for what
    is refused, and leaves nothing behind then."""
    cfg.check()
    tell = tell or _say
    client = Hub("dataset" if cfg.dataset else "model")
    out = Path(os.path.expanduser(cfg.out or cfg.repo_id.rpartition("/")[2]))
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("is there already", where=str(out), hint="give another --out")

    def wait(reason: str) -> None:
        tell({"event": "wait", "reason": reason})

    revision = cfg.revision or "main"
    commit = with_retries(lambda: client.look(cfg.repo_id, revision), cfg.repo_id, wait).head
    found = with_retries(lambda: client.files(cfg.repo_id, commit), cfg.repo_id, wait)
    wanted, left_out = choose(cfg.repo_id, found)
    _need_room(out, wanted, [file for file in wanted if not client.has(cfg.repo_id, commit, file)])
    total, done = sum(file.size for file in wanted), 0
    with whole_folder(out.absolute(), replacing=False) as folder:
        for file in wanted:
            source = with_retries(
                partial(client.download, cfg.repo_id, commit, file), cfg.repo_id, wait
            )
            _place(source, folder, file, cfg.repo_id)
            done += file.size
            tell({"event": "file", "path": file.path, "sent": done, "of": total})
        _refuse_code(folder, cfg.repo_id)
        _check_whole(folder, wanted, cfg.repo_id)
        origin = {"repo": cfg.repo_id, "commit": commit, "kind": client.kind}
        (folder / ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")
    return {
        "path": str(out),
        "repo": cfg.repo_id,
        "commit": commit,
        "files": len(wanted),
        "bytes": total,
        "left_out": left_out,
    }


def render(result: Mapping[str, Any]) -> str:
    return str(result["path"])


def origin(folder: str | Path) -> dict[str, str]:
    """Where a folder was pulled from: {"repo", "commit", "kind"}; empty where it was not, or where
    none is named: `""` is no folder, while `Path("")` is the working one."""
    if not str(folder) or folder == Path():
        return {}
    try:
        value = load_json(Path(folder) / ORIGIN, 1 << 16)
        return {name: str(value[name]) for name in ("repo", "commit", "kind")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def choose(repo: str, found: Sequence[RemoteFile]) -> tuple[list[RemoteFile], list[str]]:
    """(what is taken, what is left out). Raises UserError for a path that leaves the folder, two
    that are one on some disks, weights that are pickled alone, or nothing to take."""
    for file in found:
        check_path(file.path, repo)
    _check_different([file.path for file in found], repo)
    wanted: list[RemoteFile] = []
    left_out: list[str] = []
    for file in found:
        if _listed(file.path):
            wanted.append(file)
        elif file.path != ".gitattributes":
            left_out.append(file.path)
    if not any(file.path.endswith(_DATA) for file in wanted):
        _refuse_pickled(left_out, repo)
    if not wanted:
        raise UserError("holds nothing that could be used", where=repo)
    return wanted, left_out


def _check_different(paths: Sequence[str], repo: str) -> None:
    """Raises UserError for two files, or a file and a folder, that are one on some disks."""
    folders: set[str] = set()
    for path in paths:
        folders.update(str(parent).casefold() for parent in PurePosixPath(path).parents)
    counts = Counter(path.casefold() for path in paths)
    for name, count in counts.items():
        if count > 1 or name in folders:
            raise UserError(
                f"{name!r} stands there twice",
                where=repo,
                hint="some disks cannot tell these apart",
            )


def _refuse_pickled(paths: Iterable[str], repo: str) -> None:
    """Raises UserError where pickled weights are among these."""
    for path in paths:
        if PurePosixPath(path).suffix.lower() in _PICKLED:
            raise UserError(
                f"its weights are pickled ({path}), and a pickle can run anything when it is read",
                where=repo,
                hint="look for the same model as safetensors",
            )


def check_path(path: str, repo: str) -> None:
    """Raises UserError for a path of the remote that is not plainly within a folder."""
    if not _is_plain_path(path):
        raise UserError(
            f"{sanitize(path, newlines=False, limit=80)!r} is not a path within the folder",
            where=repo,
            hint="nothing was written",
        )


def _is_plain_path(path: str) -> bool:
    if not path or _ODD.search(path) or PurePosixPath(path).is_absolute():
        return False
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or part.endswith((" ", ".")):
            return False
    return parts[0] not in (".git", "~") and len(path.encode()) <= 1000


def _listed(path: str) -> bool:
    file = PurePosixPath(path)
    if any(part.startswith(".") for part in file.parts) or _CODE.search(path.lower()):
        return False
    if file.suffix == "" and file.stem.upper() in _NAMES:
        return True
    return file.suffix.lower() in _KINDS


def _need_room(
    out: Path,
    files: Iterable[RemoteFile],
    to_fetch: Iterable[RemoteFile],
    cache: Path | None = None,
) -> None:
    """Raises DiskFull where the disk has no room for the files, or for those of them that are
    fetched into the client's cache first."""
    here = sum(file.size for file in files) * ROOM
    first = sum(file.size for file in to_fetch) * ROOM
    cache = cache or cache_folder()
    if nearest_folder(out).stat().st_dev == nearest_folder(cache).stat().st_dev:
        need_room(out, here + first, "this repository, with the Hub's cache,")
        return
    need_room(cache, first, "this repository, in the Hub's cache (HF_HOME),")
    need_room(out, here, "this repository")


def _place(source: Path, folder: Path, file: RemoteFile, repo: str) -> None:
    """Copies a downloaded file to its place in `folder`, as a plain file, and compares it. Raises
    UserError where it differs, FileNotFoundError where `folder` is gone."""
    # not the folder itself: one that was deleted while it was filled must not come back with half
    # its files
    for parent in reversed(list(PurePosixPath(file.path).parents)[:-1]):
        (folder / parent).mkdir(exist_ok=True)
    target = folder / file.path
    shutil.copyfile(source, target)  # the cache's own is a link
    whole = blob = ""
    if file.sha256:
        whole = sha256(target)
    else:
        blob = git_blob_of(target)
    if not file.holds(target.stat().st_size, whole, blob):
        source.resolve().unlink(missing_ok=True)  # else the cache would give it again
        raise UserError(
            f"{file.path} came otherwise than its commit states", where=repo, hint="pull again"
        )


def _check_whole(folder: Path, wanted: Iterable[RemoteFile], repo: str) -> None:
    """Raises UserError where a file that was placed is not there any more, or another one is."""
    there = {}
    for path in folder.rglob("*"):
        if path.is_file():
            there[path.relative_to(folder).as_posix()] = path.stat().st_size
    listed = {file.path: file.size for file in wanted}
    for name in sorted(there.keys() | listed.keys()):
        if there.get(name) != listed.get(name):
            raise UserError(
                f"{name} changed while the folder was filled", where=repo, hint="pull again"
            )


def _refuse_code(folder: Path, repo: str) -> None:
    """Raises UserError for a config that names code of the repository to be run."""
    for file in folder.rglob("*.json"):
        if file.name not in (
            "config.json",
            "tokenizer_config.json",
            "generation_config.json",
            "adapter_config.json",
        ):
            continue
        try:
            value = load_json(file)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file.relative_to(folder)} cannot be read ({error})", where=repo
            ) from None
        if isinstance(value, dict) and (
            value.get("auto_map") or value.get("trust_remote_code") or value.get("custom_pipelines")
        ):
            raise UserError(
                f"{file.relative_to(folder)} asks for code of its author to be run",
                where=repo,
                hint="take a model that its library knows",
            )


def _say(event: Mapping[str, Any]) -> None:
    """For people, on stderr."""
    if event["event"] == "wait":
        text = f"  waiting: {event['reason']}"
    else:
        text = f"  got {size(event['sent'])} of {size(event['of'])}  {event['path']}"
    to_stderr(text)
