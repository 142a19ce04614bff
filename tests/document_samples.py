"""Documents of every kind, made by scripts/mixed_documents.py as the tour makes them."""

from __future__ import annotations

import functools
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent.parent / "scripts" / "mixed_documents.py"


@functools.cache
def maker() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(SCRIPT))


def document(kind: str, title: str, paragraphs: Sequence[str], **more: Any) -> bytes:
    """A document of this ending."""
    made: bytes = dict(maker()["WRITERS"])[kind](title, paragraphs, **more)
    return made
