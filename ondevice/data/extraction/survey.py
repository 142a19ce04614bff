"""Which of several documents are read, and which are left out and why: what cannot be read, what
another one is already, or nearly is.

It is made once for the same files, and kept in the user's cache folder beside their texts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import digest, sha256_once, write_file
from ondevice.common.json_files import load_json
from ondevice.common.progress import with_progress
from ondevice.data.extraction import near_duplicates, store
from ondevice.data.extraction.near_duplicates import LEAST_RUNS, NearDuplicates, runs_of
from ondevice.data.extraction.store import Extracted, extract_all
from ondevice.data.folders import RICH, kind_of
from ondevice.data.plain_text import UTF_8, Part, parts, pieces

NAMED = 3
"""Files that a line for people names for each reason."""
_MOST_COMPARED = 32 << 20
"""Characters of a text beyond which it is compared as a whole alone: its runs of words take some
times as much memory."""
EXACT = "repeats another file"
NEAR = "is nearly another file"


@dataclass(frozen=True)
class Document:
    """A file: the one that holds its `text` and in which `encoding`, a hash of the text and its
    `characters`; or the `reason` why it is left out, with the file that it repeats in `like`. Of what
    has pages: how many, those without text, and repeated lines that were left out."""

    file: Path
    text: Path
    encoding: str = UTF_8
    sha256: str = ""
    characters: int = 0
    reason: str = ""
    like: str = ""
    pages: int = 0
    without_text: tuple[int, ...] = ()
    repeated: int = 0

    def parts(self) -> Iterator[Part]:
        """The text, in parts where it is long."""
        return parts(self.text, self.encoding)


@dataclass(frozen=True)
class Survey:
    """Every document, in the order of their files."""

    documents: Sequence[Document]

    @property
    def kept(self) -> list[Document]:
        """Those that are read."""
        return [one for one in self.documents if not one.reason]

    @property
    def left_out(self) -> list[Document]:
        return [one for one in self.documents if one.reason]

    @property
    def as_before(self) -> bool:
        """Whether all of it is plain UTF-8 and read: so earlier versions read it too."""
        return not self.left_out and all(
            one.text == one.file and one.encoding == UTF_8 for one in self.kept
        )

    @property
    def digest(self) -> str:
        """A hash of the texts that are read, in their order."""
        return digest([one.sha256 for one in self.kept])

    def notes(self, folder: Path | None = None) -> list[str]:
        """What there is to say of them to people."""
        found = []
        reasons: dict[str, list[Document]] = {}
        for one in self.left_out:
            reasons.setdefault(one.reason, []).append(one)
        for reason, those in sorted(reasons.items(), key=lambda item: -len(item[1])):
            count = f"{len(those):,} file{'s' * (len(those) != 1)}"
            found.append(f"{count} left out: {reason} ({_few(those, folder)})")
        for one in self.kept:
            if one.without_text:
                found.append(
                    f"{_name(one.file, folder)}: {len(one.without_text)} of {one.pages} pages hold no "
                    f"text ({numbers(one.without_text)}): scanned?"
                )
        repeated = sum(one.repeated for one in self.kept)
        if repeated:
            found.append(f"{repeated:,} lines at the edges of pages, repeated on others, left out")
        guessed = Counter(one.encoding for one in self.kept if one.encoding != UTF_8)
        for encoding, those_of_it in guessed.items():
            found.append(f"{those_of_it:,} file{'s' * (those_of_it != 1)} read as {encoding}")
        return found


def _few(documents: Sequence[Document], folder: Path | None) -> str:
    names = []
    for one in documents[:NAMED]:
        name = _name(one.file, folder)
        names.append(f"{name} like {_name(Path(one.like), folder)}" if one.like else name)
    return ", ".join(names) + ", …" * (len(documents) > NAMED)


def _name(file: Path, folder: Path | None) -> str:
    if folder is not None and file.is_relative_to(folder):
        return str(file.relative_to(folder))
    return file.name


def numbers(those: Sequence[int]) -> str:
    """1-3, 7 of [1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in those:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:10]]
    return ", ".join(said) + ", …" * (len(spans) > 10)


_made: dict[str, Survey] = {}
_MOST_MADE = 8


def survey(files: Sequence[Path]) -> Survey:
    """Of these files, in their order: the first of several that are alike is read. Raises UserError
    where one is not there, and DiskFull."""
    key = _key(files)
    if key not in _made:
        place = store.folder() / f"survey-{key}.json"
        found = _load(place, files)
        if found is None:
            found = _survey(files)
            _keep(place, found)
        _made[key] = found
        if len(_made) > _MOST_MADE:
            del _made[next(iter(_made))]
    return _made[key]


def _key(files: Sequence[Path]) -> str:
    """Names all that the survey follows from."""
    sums = [(str(file.absolute()), kind_of(file), _sum_of(file)) for file in files]
    kinds = sorted({kind_of(file) for file in files} & RICH)
    versions = {kind: store.versions_of(kind) for kind in ("", *kinds)}
    return digest([store.VERSION, sums, versions])


def _sum_of(file: Path) -> str:
    """Of its bytes; empty where they may not be read: it is left out then, and others are read."""
    try:
        return sha256_once(file)
    except FileNotFoundError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except OSError:
        return ""


def _survey(files: Sequence[Path]) -> Survey:
    texts = extract_all(files)
    seen: dict[str, Path] = {}
    near = None
    found: list[Document] = []
    looked = with_progress(zip(files, texts, strict=True), "documents compared", len(files))
    for file, text in looked:
        one = _document(file, text)
        if not one.reason and one.sha256 in seen:
            one = _left_out(one, EXACT, seen[one.sha256])
        elif not one.reason and len(files) > 1 and near_duplicates.is_installed():
            runs = _runs(one)
            if len(runs) >= LEAST_RUNS:
                near = near or NearDuplicates()
                like = near.like(runs, str(file))
                if like:
                    one = _left_out(one, NEAR, Path(like))
        if not one.reason:
            seen[one.sha256] = file
        found.append(one)
    return Survey(found)


def _runs(one: Document) -> Any:
    if one.characters > _MOST_COMPARED:
        return ()
    return runs_of(pieces(one.text, one.encoding))


def _document(file: Path, found: Extracted) -> Document:
    """A document with the sum and the length of its text."""
    if found.reason:
        return Document(file, found.text, reason=found.reason)
    sums, characters = hashlib.sha256(), 0
    for piece in pieces(found.text, found.encoding):
        sums.update(piece.encode("utf-8", "replace"))
        characters += len(piece)
    return Document(
        file,
        found.text,
        found.encoding,
        sums.hexdigest(),
        characters,
        pages=found.pages,
        without_text=found.without_text,
        repeated=found.repeated,
    )


def _left_out(one: Document, reason: str, like: Path) -> Document:
    return Document(one.file, one.text, one.encoding, one.sha256, one.characters, reason, str(like))


def _keep(place: Path, found: Survey) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(one) for one in found.documents]
    write_file(place, json.dumps(rows, default=str))


def _load(place: Path, files: Sequence[Path]) -> Survey | None:
    """What was kept, where the texts that it names are there as they were."""
    try:
        rows = load_json(place)
        found = [_restored(row, file) for row, file in zip(rows, files, strict=True)]
        for one in found:
            if not one.reason and one.text != one.file and sha256_once(one.text) != one.sha256:
                return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None  # not there, or damaged: it is made anew
    return Survey(found)


def _restored(row: dict[str, Any], file: Path) -> Document:
    if row["text"] == row["file"]:
        text = file
    else:
        text = Path(row["text"])
    more = {"file": file, "text": text, "without_text": tuple(row["without_text"])}
    return Document(**{**row, **more})
