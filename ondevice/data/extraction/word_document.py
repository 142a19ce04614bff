"""The text of Word documents (.docx): headings, paragraphs, lists and tables. Page headers and
footers are parts of their own there, and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ondevice.data.extraction.account import Account, Unreadable
from ondevice.data.extraction.zip_limits import archive

_HEADING = re.compile(r"heading (\d)", re.IGNORECASE)
_PARTS = ("word/document.xml", "word/styles.xml", "word/numbering.xml")


def read(file: Path, account: Account) -> Iterator[str]:
    """The blocks of a document. Raises Unreadable."""
    with archive(file) as parts:
        if _PARTS[0] not in parts.names:
            raise Unreadable("is no Word document: it holds no word/document.xml")
        for name in _PARTS:
            if name in parts.names:
                parts.entry(name)  # within its limit
    import docx

    try:
        document = docx.Document(str(file))
        yield from _blocks(document)
    except Unreadable:
        raise
    except MemoryError:
        raise
    except Exception as error:  # what the library raises of a damaged file is of many kinds
        raise Unreadable(f"is damaged: {type(error).__name__}: {error}") from error


def _blocks(document: Any) -> Iterator[str]:
    from docx.table import Table

    for found in document.iter_inner_content():
        if isinstance(found, Table):
            yield from _table(found)
        else:
            text = found.text.strip()
            if text:
                yield _prefix(found) + text


def _prefix(paragraph: Any) -> str:
    """The mark of a heading or a list's entry."""
    style = paragraph.style
    name = (style.name or "") if style is not None else ""
    heading = _HEADING.match(name)
    if heading is not None:
        return "#" * max(1, min(6, int(heading[1]))) + " "
    if name == "Title":
        return "# "
    if name.startswith("List") or paragraph._p.find(".//{*}numPr") is not None:
        return "- "
    return ""


def _table(table: Any) -> Iterator[str]:
    """A line a row. A cell that reaches over several columns is said once."""
    lines = []
    for row in table.rows:
        seen: list[Any] = []
        texts = []
        for cell in row.cells:
            if cell._tc not in seen:
                seen.append(cell._tc)
                texts.append(" ".join(cell.text.split()))
        if any(texts):
            lines.append(" | ".join(texts))
    if lines:
        yield "\n".join(lines)
