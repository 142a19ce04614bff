"""What reading data needs beside the data itself: a folder for what is kept, and somebody to tell.

A stage makes one (`Context.data`). To read data without a stage, name any folder:

    chats(DataSpec("chats.jsonl"), tokenizer, DataContext(Path("look")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ondevice.common.progress import with_progress
from ondevice.common.sanitize import to_stderr
from ondevice.config.corpus import CorpusConfig

T = TypeVar("T")


def silent(_: str) -> None:
    """For what somebody else says: a `tell` or a `warn` that nobody hears."""


@dataclass(frozen=True)
class DataContext:
    """`folder` keeps tokens and the rows that could not be used; its name stands before progress.
    `corpus` is what `builtin` means. A person hears of what was read by `tell`, and by `warn` of
    what was not used."""

    folder: Path
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tell: Callable[[str], None] = to_stderr
    warn: Callable[[str], None] = to_stderr

    @property
    def cache(self) -> Path:
        """Tokens, each file named by what it was made of."""
        return self.folder / "data"

    def progress(self, items: Iterable[T], what: str) -> Iterator[T]:
        """The items, and a bar of how many have been taken where that takes long."""
        return with_progress(items, f"{self.folder.name}: {what}")
