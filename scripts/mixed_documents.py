#!/usr/bin/env python3
"""Writes a folder of documents of every kind that `ondevice` reads, out of one plain text: PDF with a
header and a page number on each page, Word, EPUB, HTML with a menu, Markdown, a notebook,
reStructuredText, and plain text in UTF-8 and Latin-1. Beside them lie what a real folder has: a copy, a
copy with other line breaks, a scanned page, an encrypted and a broken file.

    scripts/mixed_documents.py TEXT FOLDER [--held FOLDER] [--characters N] [--documents N]

The text is divided at empty lines. `--held FOLDER` gets every tenth document as plain text, to measure
on; these are in FOLDER in no form. Nothing but Python is needed.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

LINE = 84  # characters of a line of a page
LINES = 48  # of a page
_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held", type=Path, help="gets every tenth document, as plain text")
    parser.add_argument("--characters", type=int, default=0, help="of the text; 0: all")
    parser.add_argument("--documents", type=int, default=40)
    chosen = parser.parse_args()
    text = chosen.text.read_text(encoding="utf-8")
    documents = divided(text[: chosen.characters or None], chosen.documents)
    if len(documents) < len(WRITERS):
        sys.exit(f"mixed_documents.py: needs a text of at least {len(WRITERS)} paragraphs")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, paragraphs in enumerate(documents):
        if chosen.held and number % 10 == 9:
            chosen.held.mkdir(parents=True, exist_ok=True)
            (chosen.held / f"{number:03}.txt").write_bytes("\n\n".join(paragraphs).encode())
            continue
        ending, write = WRITERS[written % len(WRITERS)]
        title = f"Part {number + 1}"
        (chosen.folder / f"{number:03}{ending}").write_bytes(write(title, paragraphs))
        written += 1
    beside(chosen.folder, documents[0])
    print(f"{written} documents in {chosen.folder}, and {len(BESIDE)} that are left out")


def divided(text: str, count: int) -> list[list[str]]:
    """The paragraphs of a text as about so many documents of one size."""
    most = -(-len(text) // max(1, count))
    documents: list[list[str]] = [[]]
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        if sum(map(len, documents[-1])) > most:
            documents.append([])
        documents[-1].append(paragraph)
    return documents


# ---------------------------------------------------------------- one writer a kind


def pdf(title: str, paragraphs: Sequence[str], encrypted: bool = False) -> bytes:
    """Pages of Helvetica, with a running header and a page number; the title in larger letters."""
    lines: list[tuple[int, str]] = [(20, title)]
    for paragraph in paragraphs:
        for line in paragraph.splitlines():
            lines += [(10, piece) for piece in wrapped(line)]
        lines.append((10, ""))
    pages = [lines[n : n + LINES] for n in range(0, len(lines), LINES)]
    drawn = []
    for number, page in enumerate(pages, 1):
        drawn.append(_drawn([(8, "From a folder of one's own"), *page, (8, f"Page {number}")]))
    return _pdf(drawn, encrypted)


def scanned(pages: int = 2) -> bytes:
    """Pages that hold a picture and no text."""
    return _pdf([b"q 100 0 0 100 50 600 cm 0 0 1 1 re f Q"] * pages)


def wrapped(line: str) -> list[str]:
    found = [""]
    for word in line.split():
        if len(found[-1]) + len(word) + 1 > LINE and found[-1]:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    return found


def _drawn(lines: Sequence[tuple[int, str]]) -> bytes:
    said = [b"BT 50 800 Td"]
    for size, line in lines:
        safe = line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        text = safe.encode("cp1252", "replace")
        said.append(b"/F1 %d Tf 0 -%d Td (%s) Tj" % (size, size + 5, text))
    return b"\n".join([*said, b"ET"])


def _pdf(pages: Sequence[bytes], encrypted: bool = False) -> bytes:
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in enumerate(pages):
        packed = zlib.compress(page)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)
        )
    if encrypted:
        key = "<" + "5a" * 32 + ">"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>".encode())
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    lock = f"/Encrypt {len(objects)} 0 R /ID [<{'00' * 16}> <{'00' * 16}>] " if encrypted else ""
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(objects) + 1} /Root 1 0 R {lock}>>\nstartxref\n{len(out)}\n%%EOF\n"
    )
    return out + end.encode()


def docx(title: str, paragraphs: Sequence[str]) -> bytes:
    def paragraph(text: str, style: str = "") -> str:
        mark = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        runs = "<w:br/>".join(
            f'<w:t xml:space="preserve">{html.escape(line)}</w:t>' for line in text.splitlines()
        )
        return f"<w:p>{mark}<w:r>{runs}</w:r></w:p>"

    body = paragraph(title, "Heading1") + "".join(map(paragraph, paragraphs))
    style = (
        '<w:style w:type="paragraph" w:default="1" w:styleId="Normal"><w:name w:val="Normal"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'
    )
    return _zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{_TYPES}"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{_WORD}.document.main+xml"/>'
            f'<Override PartName="/word/styles.xml" ContentType="{_WORD}.styles+xml"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="a" '
            f'Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
            "word/_rels/document.xml.rels": f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="b" '
            f'Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>',
            "word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>",
            "word/styles.xml": f"<w:styles {_W}>{style}</w:styles>",
        }
    )


def epub(title: str, paragraphs: Sequence[str]) -> bytes:
    page = _paragraphs(paragraphs)
    return _zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": "<container "
            'xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
            '<rootfile full-path="book/package.opf" media-type="application/oebps-package+xml"/>'
            "</rootfiles></container>",
            "book/package.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>'
            '<item id="one" href="one.xhtml" media-type="application/xhtml+xml"/></manifest><spine>'
            '<itemref idref="one"/></spine></package>',
            "book/one.xhtml": '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head>'
            f"<body><h1>{html.escape(title)}</h1>{page}</body></html>",
        }
    )


def web(title: str, paragraphs: Sequence[str]) -> bytes:
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>p { margin: 1em }</style></head><body><nav><a href='/'>Home</a> <a href='/all'>All parts"
        f"</a></nav><h1>{html.escape(title)}</h1>{_paragraphs(paragraphs)}<footer>All rights of nobody"
        "</footer></body></html>"
    ).encode()


def markdown(title: str, paragraphs: Sequence[str]) -> bytes:
    return "\n\n".join([f"# {title}", *paragraphs, ""]).encode()


def notebook(title: str, paragraphs: Sequence[str]) -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": [f"# {title}\n"]},
        *({"cell_type": "markdown", "metadata": {}, "source": one} for one in paragraphs),
        {"cell_type": "code", "metadata": {}, "source": "print(1)", "outputs": []},
    ]
    kernel = {"kernelspec": {"language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4}).encode()


def restructured(title: str, paragraphs: Sequence[str]) -> bytes:
    return "\n\n".join([f"{title}\n{'=' * len(title)}", *paragraphs, ""]).encode()


def plain(title: str, paragraphs: Sequence[str]) -> bytes:
    return "\n\n".join([title, *paragraphs, ""]).encode()


def latin(title: str, paragraphs: Sequence[str]) -> bytes:
    """A note of long ago: no byte of it beyond ASCII is UTF-8."""
    return "\n\n".join([f"{title}: déjà vu", *paragraphs, ""]).encode("latin-1", "replace")


def _paragraphs(paragraphs: Sequence[str]) -> str:
    return "".join(
        f"<p>{'<br/>'.join(map(html.escape, one.splitlines()))}</p>" for one in paragraphs
    )


def _zipped(entries: dict[str, str]) -> bytes:
    from io import BytesIO

    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return out.getvalue()


WRITERS: list[tuple[str, Callable[[str, Sequence[str]], bytes]]] = [
    (".pdf", pdf),
    (".docx", docx),
    (".html", web),
    (".epub", epub),
    (".md", markdown),
    (".ipynb", notebook),
    (".rst", restructured),
    (".txt", plain),
    ("-old.txt", latin),
]
BESIDE = ("copy.txt", "nearly.txt", "scanned.pdf", "locked.pdf", "broken.docx")


def beside(folder: Path, paragraphs: Sequence[str]) -> None:
    """What a folder of one's own holds besides documents that are worth reading."""
    text = "\n\n".join(paragraphs)
    first = min(folder.glob("*.txt"))
    (folder / "copy.txt").write_bytes(first.read_bytes())
    (folder / "nearly.txt").write_text(first.read_text("latin-1").replace("\n", " ") + " The end.")
    (folder / "scanned.pdf").write_bytes(scanned())
    (folder / "locked.pdf").write_bytes(pdf("Locked", [text], encrypted=True))
    (folder / "broken.docx").write_bytes(docx("Broken", [text])[:-40])


if __name__ == "__main__":
    main()
