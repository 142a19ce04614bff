"""The text of PDF files, page after page: without the lines at the top and the bottom that are
repeated on other pages, and with the lines of a paragraph joined again, those of verse not. A line in
larger letters than most of the text is a heading.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from ondevice.data.extraction.account import Account, Unreadable

EDGE = 3
"""Lines at the top and at the bottom of a page that may be repeated on others."""
LEAST_PAGES = 3
LEAST_SHARE = 0.25
"""On so many pages, and on so large a share of them, a line at an edge is one that is repeated; of two
pages, on both, and with nothing between it and the edge that is not."""
_MOST_NUMBERS = 2
"""In a line that is repeated but for them ("page 3 of 10"): what has more is a row of a table."""
_LARGER = 1.15  # times the size of most letters: a heading
_LONGEST_HEADING = 120  # characters
_FULL = 0.75  # of the longest lines' length: the paragraph goes on in the next one
_ENOUGH = 6
"""Points from which on lines that all begin with a capital are verse: one for each that ends within a
sentence, and two more where the next word would have found room there, as it does in prose."""
_ROOM = 0.95  # of the longest lines' length: letters are not of one width
_FILLED = 0.9
_DIGITS = re.compile(r"\d+")
_ENDS = tuple(".!?:;\"”’')")
_HYPHENS = ("-", "\u00ad", "\u2010")


def read(file: Path, account: Account) -> Iterator[str]:
    """The blocks of a file. Raises Unreadable."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each oddity of a file
    try:
        with file.open("rb") as source:
            document = pypdf.PdfReader(source)
            if document.is_encrypted and not document.decrypt(""):
                raise Unreadable("is encrypted: it opens with a password")
            pages, sizes = _pages(document, account)
    except (Unreadable, MemoryError):
        raise
    except ImportError as error:
        raise Unreadable("is encrypted with AES, which needs the package cryptography") from error
    except Exception as error:  # what the library raises of a damaged file is of many kinds
        raise Unreadable(f"is damaged: {type(error).__name__}: {error}") from error
    if account.pages and len(account.without_text) == account.pages:
        raise Unreadable(
            f"holds no text on its {account.pages} page{'s' * (account.pages != 1)}: "
            "scanned? (OCR makes text of pictures)"
        )
    pages, account.repeated = without_repeated(pages)
    yield from joined([line for page in pages for line in page], sizes)


def _pages(document: Any, account: Account) -> tuple[list[list[str]], dict[str, float]]:
    """(lines of each page, size of the letters of each line)."""
    pages: list[list[str]] = []
    sizes: dict[str, float] = {}
    counted: Counter[float] = Counter()

    def see(text: str, _: Any, matrix: Sequence[float], font: Any, size: float) -> None:
        said = text.strip()
        if said:
            height = round(abs(size * (matrix[3] or matrix[0])), 1)
            counted[height] += len(said)
            sizes[said] = max(height, sizes.get(said, 0.0))

    for number, page in enumerate(document.pages, 1):
        account.pages = number
        text = page.extract_text(visitor_text=see) or ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not any(letter.isalnum() for line in lines for letter in line):
            account.without_text.append(number)
        pages.append(lines)
    if counted:
        usual = counted.most_common(1)[0][0]
    else:
        usual = 0.0
    return pages, {line: size / usual for line, size in sizes.items() if usual}


def without_repeated(pages: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    """(the pages without lines at their edges that are repeated, how many lines these are). Numbers
    count as alike: pages have them. What stands as often within pages is text."""
    counted: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for page in pages:
        edges = _edges(page)
        counted.update({_alike(page[n]) for n in edges})
        within.update(_alike(line) for n, line in enumerate(page) if n not in edges)
    two = sum(map(bool, pages)) == 2
    if two:
        least: float = 2
    else:
        least = max(LEAST_PAGES, LEAST_SHARE * len(pages))
    repeated = {line for line, count in counted.items() if count >= max(least, within[line] + 1)}
    kept, left_out = [], 0
    for page in pages:
        edges = {n for n in _edges(page) if _alike(page[n]) in repeated}
        if two:
            edges = _outermost(edges, len(page))
        left_out += len(edges)
        kept.append([line for n, line in enumerate(page) if n not in edges])
    return kept, left_out


def _edges(page: Sequence[str]) -> set[int]:
    return {n for n in range(len(page)) if n < EDGE or n >= len(page) - EDGE}


def _outermost(lines: set[int], length: int) -> set[int]:
    """Those of the lines between which and an edge of the page no other stands."""
    top = next((n for n in range(length) if n not in lines), length)
    bottom = next((n for n in range(length - 1, -1, -1) if n not in lines), -1)
    if bottom < 0:  # a page that is like another as a whole is no header
        return set()
    return {n for n in lines if n < top or n > bottom}


def _alike(line: str) -> str:
    """The line without what differs from page to page."""
    plain = " ".join(line.lower().split())
    if len(_DIGITS.findall(plain)) > _MOST_NUMBERS:
        return plain
    return _DIGITS.sub("#", plain)


def joined(lines: Sequence[str], sizes: dict[str, float]) -> Iterator[str]:
    """Paragraphs, verses and headings of lines."""
    longest = _longest(lines)
    held: list[str] = []  # lines between headings
    for line in lines:
        if sizes.get(line, 1.0) >= _LARGER and len(line) <= _LONGEST_HEADING:
            yield from _between_headings(held, longest)
            held = []
            yield f"## {line}"
        else:
            held.append(line)
    yield from _between_headings(held, longest)


def _longest(lines: Sequence[str]) -> int:
    """The length of lines that fill their column: a tenth may be longer."""
    lengths = sorted(map(len, lines))
    if lengths:
        return lengths[int(0.9 * (len(lengths) - 1))]
    return 0


def _between_headings(lines: Sequence[str], longest: int) -> Iterator[str]:
    prose: list[str] = []
    for is_capital, run in groupby(lines, _begins_with_capital):
        found = list(run)
        verse = len(found) if is_capital else 0
        while verse and len(found[verse - 1]) >= _FILLED * longest:
            verse -= 1  # a paragraph that begins behind it
        if _is_verse(found[:verse], longest):
            yield from _paragraphs(prose, longest)
            yield "\n".join(found[:verse])
            prose = found[verse:]
        else:
            prose += found
    yield from _paragraphs(prose, longest)


def _begins_with_capital(line: str) -> bool:
    return next(filter(str.isalpha, line), "a").isupper()


def _is_verse(lines: Sequence[str], longest: int) -> bool:
    """Whether lines end where whoever wrote them wanted, and not where the column does."""
    within = loose = 0
    for line, following in pairwise(lines):
        if not line.endswith(_ENDS):
            within += 1
            loose += len(line) + 1 + len(following.split()[0]) <= _ROOM * longest
    return loose > 0 and within + 2 * loose >= _ENOUGH


def _paragraphs(lines: Sequence[str], longest: int) -> Iterator[str]:
    """A line that fills its column goes on in the next one, and a word that is divided at its end is
    one again."""
    full = _FULL * longest
    paragraph = ""
    for line in lines:
        if paragraph.endswith(_HYPHENS) and line[:1].islower():
            paragraph = paragraph[:-1] + line
        else:
            paragraph = f"{paragraph} {line}" if paragraph else line
        if len(line) < full and line.endswith(_ENDS) or len(line) < full / 2:
            yield paragraph
            paragraph = ""
    if paragraph:
        yield paragraph
