"""The text of Word documents (.docx): headings, paragraphs, lists, tables, text boxes and notes. Page
headers and footers, comments and what was deleted are not read.

python-docx tells of styles; the text is gathered here, for it passes over what stands in content
controls, tracked insertions, fields and text boxes.
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
_NOTES = ("/footnotes", "/endnotes")
_OLD_FORMAT = b"\xd0\xcf\x11\xe0"
_NOT_SAID = {"del", "moveFrom", "pPr", "rPr", "Fallback", "txbxContent", "sdtPr", "rt"}
"""Elements whose text is deleted, is none, or is said elsewhere: `Fallback` repeats what stands
beside it, text boxes are blocks of their own, and `rt` is how a word is pronounced."""
_SIGNS = {"tab": "\t", "cr": "\n", "noBreakHyphen": "-"}
_DEEPEST = 50  # tables and text boxes in one another


def read(file: Path, account: Account) -> Iterator[str]:
    """The blocks of a document. Raises Unreadable."""
    with file.open("rb") as source:
        if source.read(4) == _OLD_FORMAT:
            raise Unreadable("is no .docx: an old Word file (.doc), or one with a password")
    with archive(file) as parts:
        if _PARTS[0] not in parts.names:
            raise Unreadable("is no Word document: it holds no word/document.xml")
        for name in _PARTS:
            if name in parts.names:
                parts.entry(name)  # within its limit
    import docx

    try:
        document = docx.Document(str(file))
        styles = _Styles(document)
        yield from _blocks(document.element.body, styles)
        yield from _notes(document, styles)
    except Unreadable:
        raise
    except MemoryError:
        raise
    except Exception as error:  # what the library raises of a damaged file is of many kinds
        raise Unreadable(f"is damaged: {type(error).__name__}: {error}") from error


class _Styles:
    """The mark that a paragraph of a style begins with, found once for each style."""

    def __init__(self, document: Any) -> None:
        self._marks = {}
        for style in document.styles:
            if style.style_id:
                self._marks[style.style_id] = _mark_of(style)
        default = document.styles.default(1)  # of paragraphs
        self._usual = "" if default is None else _mark_of(default)

    def prefix(self, paragraph: Any) -> str:
        style = paragraph.find("{*}pPr/{*}pStyle")
        if style is None:
            name = ""
        else:
            name = next(iter(style.attrib.values()), "")
        mark = self._marks.get(name, self._usual)
        if not mark and paragraph.find("{*}pPr/{*}numPr") is not None:
            return "- "
        return mark


def _mark_of(style: Any) -> str:
    """The mark of a style, or else of the one that it stands on."""
    for _ in range(10):  # whoever made the file may have let them go round
        name = str(style.name or "")
        heading = _HEADING.match(name)
        if heading is not None:
            return "#" * max(1, min(6, int(heading[1]))) + " "
        if name == "Title":
            return "# "
        if name.startswith("List"):
            return "- "
        style = getattr(style, "base_style", None)
        if style is None:
            break
    return ""


def _blocks(inside: Any, styles: _Styles, depth: int = 0) -> Iterator[str]:
    """Those of paragraphs and tables, whatever stands around them."""
    if depth > _DEEPEST:
        raise Unreadable("is nested too deep to be read")
    for element in inside:
        name = _name(element)
        if name == "p":
            text = "".join(_said(element)).strip()
            if text:
                yield styles.prefix(element) + text
            for box in element.iter("{*}txbxContent"):
                if not _within(box, element):
                    yield from _blocks(box, styles, depth + 1)
        elif name == "tbl":
            yield from _table(element, styles, depth + 1)
        elif name not in _NOT_SAID:  # a content control, an insertion
            yield from _blocks(element, styles, depth + 1)


def _within(box: Any, paragraph: Any) -> bool:
    """Whether a text box is said elsewhere: it stands in another one, or is a repetition of one."""
    for above in box.iterancestors():
        if above is paragraph:
            return False
        if _name(above) in _NOT_SAID:
            return True
    return False


def _said(paragraph: Any) -> Iterator[str]:
    """What stands in a paragraph, without recursion."""
    from lxml import etree

    walk = etree.iterwalk(paragraph, events=("start",))
    for _, element in walk:
        name = _name(element)
        if name in _NOT_SAID:
            walk.skip_subtree()
        elif name == "t":
            yield element.text or ""
        elif name == "br":  # of a page or a column it is no break of a line
            kind = next(
                (value for key, value in element.attrib.items() if key.endswith("}type")), ""
            )
            yield "\n" if kind in ("", "textWrapping") else " "
        elif name in _SIGNS:
            yield _SIGNS[name]


def _table(table: Any, styles: _Styles, depth: int) -> Iterator[str]:
    """A line a row; of a table with one column, which only frames it, what stands in it."""
    rows = [[cell for cell in row.iter("{*}tc") if _row_of(cell) is row] for row in _rows(table)]
    if all(len(row) < 2 for row in rows):
        for row in rows:
            for cell in row:
                yield from _blocks(cell, styles, depth)
        return
    lines = []
    for row in rows:
        texts = [" ".join(" ".join(_blocks(cell, styles, depth)).split()) for cell in row]
        if any(texts):
            lines.append(" | ".join(texts))
    if lines:
        yield "\n".join(lines)


def _rows(table: Any) -> Iterator[Any]:
    for row in table.iter("{*}tr"):
        if next(row.iterancestors("{*}tbl"), None) is table:
            yield row


def _row_of(cell: Any) -> Any:
    return next(cell.iterancestors("{*}tr"), None)


def _notes(document: Any, styles: _Styles) -> Iterator[str]:
    """Footnotes, then endnotes; not the lines that divide them from a page."""
    from docx.oxml import parse_xml

    for ending in _NOTES:
        for relation in document.part.rels.values():
            if not relation.reltype.endswith(ending) or relation.is_external:
                continue
            for note in parse_xml(relation.target_part.blob):
                if not any(key.endswith("}type") for key in note.attrib):
                    yield from _blocks(note, styles)


def _name(element: Any) -> str:
    """An element's name without its namespace; empty for what is no element."""
    if not isinstance(element.tag, str):
        return ""
    return str(element.tag).rpartition("}")[2]
