"""What is known of a document besides its text, and why one has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


class Unreadable(Exception):
    """A document of which no text can be taken; the words say why."""


@dataclass
class Account:
    """`pages` (0: it has none), numbers of those `without_text`, and lines at the edges of pages that
    were left out because they are `repeated` on others."""

    pages: int = 0
    without_text: list[int] = field(default_factory=list)
    repeated: int = 0


Reader = Callable[[Path, Account], Iterator[str]]
"""Gives a document's text in blocks (paragraphs, headings, tables), and fills in the account; raises
Unreadable."""
