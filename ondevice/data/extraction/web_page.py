"""The text of HTML: headings, paragraphs, lists, tables and code as Markdown has them; without what
is for programs, and without menus and page footers.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.data.extraction.account import Account, Unreadable
from ondevice.data.plain_text import UTF_8, guessed, is_binary, marked, wide

LARGEST = 64 << 20
_LEFT_OUT = {
    "script", "style", "noscript", "template", "nav", "footer", "aside", "button", "select", "textarea",
    "datalist", "svg", "math", "iframe", "object", "head", "dialog",
}  # fmt: skip
_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary"}
_BLOCKS = {
    "address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "form", "header", "hr", "html", "li", "main", "ol", "p",
    "section", "summary", "table", "tbody", "tfoot", "thead", "ul",
}  # fmt: skip
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_CELLS = {"td", "th"}
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.I)
_DECLARED_XML = re.compile(rb"\s*<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})")
_MEANT = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
"""What browsers read (WHATWG, Encoding) where a page declares the smaller one: pages are written so."""
_SPACE = re.compile(r"[ \t\n\r\f\u00a0]+")


def read(file: Path, account: Account) -> Iterator[str]:
    """The blocks of a file of HTML. Raises Unreadable."""
    try:
        data = bounded.read_bytes(file, LARGEST)
    except bounded.TooLarge as error:
        raise Unreadable(f"is larger than {LARGEST >> 20} MB") from error
    text = decoded(data)
    if is_binary(text):
        raise Unreadable("holds control characters: not a page")
    yield from blocks_of(text)


def decoded(data: bytes) -> str:
    """HTML as text: its encoding is what its first bytes, or else its head, say, where that fits."""
    declared = _DECLARED_XML.match(data[:200]) or _DECLARED.search(data[:4096])
    names = [marked(data[:4]) or wide(data[: 1 << 16]), UTF_8]
    if declared is not None:
        names.insert(1, _meant(declared[1].decode("ascii")))
    for name in filter(None, names):
        try:
            return data.decode(name)
        except (UnicodeError, LookupError):
            continue  # it says what it is not
    return data.decode(guessed(data[: 1 << 16]), "replace")


def _meant(name: str) -> str:
    try:
        usual = codecs.lookup(name).name
    except LookupError:
        return ""
    return _MEANT.get(usual, usual)


def blocks_of(text: str) -> Iterator[str]:
    """The blocks of HTML; a page without a heading opens with its title. Raises Unreadable for what
    is nested too deep, or holds no element."""
    from lxml import etree
    from lxml import html as lxml_html

    parser = lxml_html.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, huge_tree=False
    )
    try:
        # as bytes: a text that declares an encoding is refused
        root = lxml_html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except etree.ParserError as error:
        raise Unreadable("holds no text") from error
    except (etree.LxmlError, ValueError) as error:
        raise Unreadable(f"is not HTML that can be read: {error}") from error
    if any("depth" in entry.message for entry in parser.error_log):
        raise Unreadable("is nested too deep to be read")
    blocks = list(_Walk().blocks(root))
    title = _collapsed(root.findtext(".//title") or "").strip()
    if title and blocks and not any(block.startswith("#") for block in blocks):
        yield f"# {title}"
    yield from blocks


class _Walk:
    """Gathers the text of elements as they open and close, without recursion: how deep they are
    nested is whoever wrote the page's choice."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._prefix = ""
        self._verbatim = 0

    def blocks(self, root: Any) -> Iterator[str]:
        from lxml import etree

        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            name = _name(element)
            if event == "start":
                if name in _LEFT_OUT or (element.get("role") or "").lower() in _ROLES:
                    walk.skip_subtree()
                    continue
                yield from self._open(name)
                self._say(element.text)
            else:
                if name not in _LEFT_OUT and (element.get("role") or "").lower() not in _ROLES:
                    yield from self._close(name)
                self._say(element.tail)
        yield from self._flush()

    def _open(self, name: str) -> Iterator[str]:
        if name in _HEADINGS or name in _BLOCKS or name == "pre":
            yield from self._flush()
            self._prefix = _HEADINGS.get(name, "- " if name == "li" else self._after(name))
        if name == "pre":
            self._verbatim += 1
        elif name == "br":
            self._words.append("\n")
        elif name in _CELLS and "".join(self._words).rstrip(" ")[-1:] not in ("", "\n"):
            self._words.append(" | ")

    def _after(self, name: str) -> str:
        """The mark of a list's entry stays where a paragraph opens in it."""
        if self._prefix == "- " and name in ("p", "div"):
            return self._prefix
        return ""

    def _close(self, name: str) -> Iterator[str]:
        if name == "pre":
            code = "".join(self._words).strip("\n")
            self._words.clear()
            self._verbatim -= 1
            if code.strip():
                yield f"```\n{code}\n```"
        elif name in _HEADINGS or name in _BLOCKS:
            yield from self._flush()
            self._prefix = ""
        elif name == "tr":
            self._words.append("\n")

    def _say(self, text: str | None) -> None:
        if text:
            self._words.append(text if self._verbatim else _collapsed(text))

    def _flush(self) -> Iterator[str]:
        text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", "".join(self._words))).strip()
        self._words.clear()
        if text:
            yield self._prefix + text
            self._prefix = ""


def _name(element: Any) -> str:
    """An element's name without its namespace; empty for what is no element."""
    if not isinstance(element.tag, str):
        return ""
    return str(element.tag).rpartition("}")[2].lower()


def _collapsed(text: str) -> str:
    return _SPACE.sub(" ", text)
