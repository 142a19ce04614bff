"""The text of a document, taken out of it once and kept in the user's cache folder: every stage, and
every look at the data, reads the same text again.

A place there is named by the file's bytes and by what reads them, so that a changed file, or another
version of a library, is read anew. What is there can be deleted at any time.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ondevice.common import atomic, user_cache
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.common.files import digest, sha256_once, write_file
from ondevice.common.json_files import load_json
from ondevice.common.physical_memory import cores
from ondevice.common.progress import with_progress
from ondevice.data.extraction.asking import Askers
from ondevice.data.folders import RICH, kind_of
from ondevice.data.plain_text import PACKED, UTF_8, NoText, encoding_of

VERSION = 4
"""Of our own part of the reading: texts of another one are made anew."""
PACKAGES = {
    ".pdf": ("pypdf",),
    ".docx": ("python-docx", "lxml"),
    ".html": ("lxml", "charset-normalizer"),
    ".htm": ("lxml", "charset-normalizer"),
    ".xhtml": ("lxml", "charset-normalizer"),
    ".epub": ("lxml", "charset-normalizer"),
    ".ipynb": (),
    "": ("charset-normalizer", "datasketch"),  # of plain text, and of several documents
}
_IMPORTED = {"python-docx": "docx", "charset-normalizer": "charset_normalizer"}
_OPTIONAL = {"charset-normalizer"}
"""Packages that readers do without where they are missing."""
_AT_ONCE = 4  # files
_HEAD = 4096  # bytes
_BEGINS = (
    (".pdf", re.compile(rb"%PDF-")),
    (".epub", re.compile(rb"PK\x03\x04.{26}mimetypeapplication/epub", re.DOTALL)),
    (".docx", re.compile(rb"PK\x03\x04.*(?:\[Content_Types\]\.xml|word/)", re.DOTALL)),
    (".html", re.compile(rb"(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)),
)
_NOT_OF_ITS_KIND = ("is damaged", "is no", "holds NUL", "holds control")


@dataclass(frozen=True)
class Extracted:
    """`text`: the file that holds a document's text, in `encoding`; or the `reason` why there is
    none. Of what has pages: how many, numbers of those without text, and lines that were left out
    because they stand at the edge of others too."""

    text: Path
    encoding: str = UTF_8
    reason: str = ""
    pages: int = 0
    without_text: tuple[int, ...] = ()
    repeated: int = 0


def extract(file: Path) -> Extracted:
    """The text of one document; a file that cannot be read gives a reason. Raises UserError where
    there is no file, and DiskFull."""
    return extract_all([file])[0]


def extract_all(files: Sequence[Path], title: str = "documents read") -> list[Extracted]:
    """Of each file in turn, with a bar where that takes long; several are read at once."""
    # a thread only waits for its process
    with Askers() as askers, ThreadPoolExecutor(min(_AT_ONCE, max(1, cores()))) as pool:
        found = pool.map(lambda file: _one(file, askers), files)
        try:
            return list(with_progress(found, title, len(files)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(file: Path, askers: Askers) -> Extracted:
    found = _read(file, askers)
    if found.reason.startswith(_NOT_OF_ITS_KIND) and (other := _kind_by_bytes(file)):
        return replace(found, reason=f"holds what a {other} holds: give it that ending")
    return found


def _kind_by_bytes(file: Path) -> str:
    """The ending that a file's first bytes ask for in place of its own; empty where it is that, or they
    say nothing."""
    try:
        with file.open("rb") as source:
            head = source.read(_HEAD).lstrip()
    except OSError:
        return ""
    kind = next((kind for kind, begins in _BEGINS if begins.match(head)), "")
    return "" if kind_of(file) == kind else kind


def _read(file: Path, askers: Askers) -> Extracted:
    kind = kind_of(file)
    try:
        if not file.stat().st_size:
            return Extracted(file, reason="empty")
        if kind not in RICH:
            return Extracted(file, encoding_of(file))
        return _kept(file, kind, askers)
    except NoText as error:
        return Extracted(file, reason=str(error))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return Extracted(file, reason=f"cannot be unpacked: {error}")
    except OSError as error:
        return Extracted(file, reason=f"cannot be read: {error.strerror or error}")
    except UserError as error:
        if error.where != str(file):
            raise
        return Extracted(file, reason=error.message)


def _kept(file: Path, kind: str, askers: Askers) -> Extracted:
    """The text of a document that is not plain, out of the cache or else out of the file."""
    if file.name.lower().endswith(PACKED):
        return Extracted(file, reason=f"is packed: unpack it ({kind} is read as it is)")
    missing = [name for name in PACKAGES[kind] if name not in _OPTIONAL and not _is_there(name)]
    if missing:
        words = " and ".join(missing)
        return Extracted(file, reason=f"{kind} needs {words}: {install_hint('documents')}")
    text = place_of(file, kind)
    account = text.with_suffix(".json")
    found = _believed(text, account)
    if found is None:
        found = _read_anew(file, kind, text, account, askers)
    return found


def place_of(file: Path, kind: str) -> Path:
    """Where the text of a document of this kind is kept."""
    key = digest([sha256_once(file), kind, VERSION, versions_of(kind)])
    return folder() / key[:2] / f"{key}.txt"


def folder() -> Path:
    return user_cache.folder() / "documents"


def _believed(text: Path, account: Path) -> Extracted | None:
    """What was kept, where it is as it was written."""
    try:
        noted = load_json(account)
        sum_of_text = noted.pop("sha256")
        if noted["reason"]:
            return Extracted(text, **{**noted, "without_text": tuple(noted["without_text"])})
        if sha256_once(text) != sum_of_text:
            return None
        return Extracted(text, **{**noted, "without_text": tuple(noted["without_text"])})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # not there, or damaged: it is made anew


def _read_anew(file: Path, kind: str, text: Path, account: Path, askers: Askers) -> Extracted:
    folder().mkdir(parents=True, exist_ok=True)
    os.chmod(folder(), 0o700)  # a person's documents are nobody else's
    text.parent.mkdir(exist_ok=True)
    with atomic.aside(text) as new:
        reply = askers.mine().text_of(file, kind, new)
        if "reason" not in reply:
            os.replace(new, text)
    found = Extracted(
        text,
        reason=str(reply.get("reason", "")),
        pages=int(reply.get("pages", 0)),
        without_text=tuple(reply.get("without_text", ())),
        repeated=int(reply.get("repeated", 0)),
    )
    noted = asdict(found)
    del noted["text"]
    write_file(account, json.dumps({**noted, "sha256": "" if found.reason else sha256_once(text)}))
    return found


def _is_there(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    return PathFinder.find_spec(_IMPORTED.get(package, package)) is not None


def versions_of(kind: str) -> dict[str, str]:
    """The versions of the packages that read documents of a kind; empty for one that is missing."""
    found = {}
    for package in PACKAGES[kind]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found
