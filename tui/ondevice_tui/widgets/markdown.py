"""Markdown drawn in a terminal: headings, lists, quotes, tables, code, and marks within a line.

Nothing but the marks themselves is left out: a link shows where it leads and leads
nowhere, HTML is text, and what is no Markdown stays as it is written. Every piece goes
through the one door (`safe.content`), and time is linear in the text's length: no mark is looked
for across another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.content import Content

from ondevice.common.sanitize import LIMIT, sanitize
from ondevice_tui.widgets.safe import content, line, lines

CODE = "$warning"  # ▏ stands before it: no colour is needed to tell it
MUTED = "$muted"
DEPTH = 3  # of marks within marks
COLUMNS, LEAST = 16, 4  # of a table; the cells of a column at least
MARKED = 4000  # characters of a line: a longer one is no prose, and is shown as it is

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([^`]*)$")
_HEADING = re.compile(r" {0,3}#{1,6}\s+(.+?)\s*#*\s*$")
_RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *$")
_QUOTE = re.compile(r" {0,3}((?:> ?)+)(.*)$")
_ITEM = re.compile(r"( *)(?:[-*+]|(\d{1,4}[.)])) +(.*)$")
_COLUMN = re.compile(r" *:?-+:? *$")
_MARK = re.compile(
    r"(?P<code>(?P<ticks>`+)[^`]+(?P=ticks))"
    r"|\*\*\*(?P<both>[^*]+)\*\*\*"
    r"|\*\*(?P<bold>[^*\s][^*]*)\*\*|(?<!\w)__(?P<bold_>[^_\s][^_]*)__(?!\w)"
    r"|(?<![\w*])\*(?P<italic>[^*\s][^*]*)\*(?![\w*])|(?<!\w)_(?P<italic_>[^_\s][^_]*)_(?!\w)"
    r"|~~(?P<strike>[^~]+)~~"
    r"|(?P<image>!?)\[(?P<text>[^\[\]]+)\]\((?P<where>[^()\s]+)\)"
)


def drawn(text: str, width: int, *, limit: int = LIMIT) -> Content:
    """`text` as it is meant to look, tables within `width` cells where they can be; what is beyond
    `limit` characters is cut, and that is said."""
    rows: list[Content] = []
    source = sanitize(text, limit=limit).split("\n")
    at = 0
    while at < len(source):
        fence = _FENCE.match(source[at])
        if fence:
            at = _code(source, at, fence, rows)
        elif _is_table(source, at):
            at = _table(source, at, width, rows)
        else:
            rows.append(_row(source[at], width))
            at += 1
    return lines(rows)


def _row(text: str, width: int) -> Content:
    """A line that is no code and no table."""
    if len(text) > MARKED:
        return content(text, limit=None)
    if heading := _HEADING.match(text):
        return marked(heading[1], "bold $primary")
    if _RULE.match(text):
        return content("─" * max(min(width, 40), 3), MUTED)
    if quote := _QUOTE.match(text):
        return line(("▎ " * quote[1].count(">"), MUTED), marked(quote[2], "italic"))
    if item := _ITEM.match(text):
        return line(item[1], (f"{item[2] or '•'} ", "bold"), marked(item[3]))
    return marked(text)


def marked(text: str, style: str = "", depth: int = 0) -> Content:
    """One line with the marks in it drawn, on top of a style."""
    parts: list[str | Content | tuple[str, str]] = []
    last = 0
    for mark in _MARK.finditer(text):
        parts.append((text[last : mark.start()], style))
        parts.append(_mark(mark, style, depth))
        last = mark.end()
    parts.append((text[last:], style))
    return line(*parts)


def _mark(mark: re.Match[str], style: str, depth: int) -> Content:
    found = mark.groupdict()
    if found["code"]:
        return content(found["code"].strip("`"), f"{CODE} {style}")
    if found["text"]:
        before = "image: " if found["image"] else ""
        shown = content(f"{before}{found['text']}", f"underline {style}")
        return line(shown, (f" ({found['where']})", MUTED))
    for name, look in (
        ("both", "bold italic"),
        ("bold", "bold"),
        ("bold_", "bold"),
        ("italic", "italic"),
        ("italic_", "italic"),
        ("strike", "strike"),
    ):
        if found[name]:
            inner = f"{look} {style}".strip()
            if depth < DEPTH:
                return marked(found[name], inner, depth + 1)
            return content(found[name], inner)
    raise AssertionError(mark)


def _code(source: Sequence[str], at: int, fence: re.Match[str], rows: list[Content]) -> int:
    """A block of code, up to its closing fence or the end; returns the line after it. One without
    code is shown as it is written: an answer is never drawn as nothing."""
    opening, before = source[at], len(rows)
    if fence[2].strip():
        rows.append(content(f"▏ {fence[2].strip()}", MUTED))
    at += 1
    closing = re.compile(rf" {{0,3}}{re.escape(fence[1][0])}{{{len(fence[1])},}}\s*$")
    while at < len(source) and not closing.match(source[at]):
        rows.append(line(("▏", MUTED), content(source[at], CODE, limit=None)))
        at += 1
    if len(rows) == before:
        rows.append(content(opening, limit=None))
    return at + 1


# tables


def _cells(text: str) -> list[str]:
    """The cells of a row; a | in code or after a backslash is no border."""
    inner = text.strip().removeprefix("|")
    cells, cell, in_code, before = [], "", False, ""
    for character in inner:
        if character == "`":
            in_code = not in_code
        if character == "|" and not in_code and before != "\\":
            cells.append(cell.strip())
            cell = ""
        else:
            cell += character
        before = character
    if cell.strip() or not inner.endswith("|"):
        cells.append(cell.strip())
    return cells


def _is_table(source: Sequence[str], at: int) -> bool:
    if "|" not in source[at] or at + 1 == len(source) or len(source[at]) > MARKED:
        return False
    below = source[at + 1]
    if "-" not in below or len(below) > MARKED or not set(below) <= set(" |:-"):
        return False
    columns = _cells(below)
    return all(map(_COLUMN.match, columns)) and 1 <= len(columns) <= COLUMNS


def _table(source: Sequence[str], at: int, width: int, rows: list[Content]) -> int:
    """Draws a table; returns the line after it."""
    count = max(len(_cells(source[at])), len(_cells(source[at + 1])))
    right = [cell.endswith(":") and not cell.startswith(":") for cell in _cells(source[at + 1])]
    right += [False] * (count - len(right))
    end = at + 2
    while end < len(source) and "|" in source[end] and len(source[end]) <= MARKED:
        end += 1
    table = [[marked(cell, "bold") for cell in _cells(source[at])]]
    for text in source[at + 2 : end]:
        cells = _cells(text)
        count = max(count, len(cells))  # what is too much for the heading is shown all the same
        table.append([marked(cell) for cell in cells])
    right += [False] * (count - len(right))
    for row in table:
        row += [content("")] * (count - len(row))
    widths = _widths(table, width - 3 * (count - 1))
    for number, row in enumerate(table):
        rows += _table_row(row, widths, right)
        if not number:
            rows.append(content("─┼─".join("─" * cells for cells in widths), MUTED))
    return end


def _widths(table: Sequence[Sequence[Content]], room: int) -> list[int]:
    """The cells of each column: what it needs, or less where all of them are too wide together."""
    needs = [
        max(max(cell.cell_length for cell in column), 1) for column in zip(*table, strict=True)
    ]
    widths = list(needs)
    while sum(widths) > room and max(widths) > LEAST:
        widest = max(widths)
        over = sum(widths) - room
        widths[widths.index(widest)] = max(LEAST, widest - max(over // len(widths), 1))
    return widths


def _table_row(
    row: Sequence[Content], widths: Sequence[int], right: Sequence[bool]
) -> list[Content]:
    """The lines that a row of a table takes."""
    wrapped = []
    for cell, width in zip(row, widths, strict=True):
        wrapped.append(cell.wrap(width) if cell.cell_length > width else [cell])
    found = []
    for number in range(max(map(len, wrapped))):
        parts: list[Content] = []
        for cell_lines, width, to_right in zip(wrapped, widths, right, strict=True):
            if number < len(cell_lines):
                shown = cell_lines[number]
            else:
                shown = content("")
            room = content(" " * max(width - shown.cell_length, 0))
            parts += [room, shown] if to_right else [shown, room]
            parts.append(content(" │ ", MUTED))
        found.append(line(*parts[:-1]).rstrip())
    return found
