"""The text of EPUB books: their chapters in the order in which they are read."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ondevice.data.extraction.account import Account, Unreadable
from ondevice.data.extraction.web_page import blocks_of, decoded
from ondevice.data.extraction.zip_limits import Archive, archive

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways to scramble fonts, which leave the text as it is."""


def read(file: Path, account: Account) -> Iterator[str]:
    """The blocks of all chapters. Raises Unreadable."""
    with archive(file) as book:
        _refuse_protected(book)
        for name in _chapters(book):
            try:
                yield from blocks_of(decoded(book.entry(name)))
            except Unreadable as error:
                if "holds no text" not in str(error):  # a page with a picture
                    raise


def _refuse_protected(book: Archive) -> None:
    if _ENCRYPTION not in book.names:
        return
    for found in _xml(book, _ENCRYPTION).iter("{*}EncryptionMethod"):
        if found.get("Algorithm") not in _FONTS:
            raise Unreadable("is encrypted (copy protection)")


def _chapters(book: Archive) -> list[str]:
    root = _xml(book, _CONTAINER).find(".//{*}rootfile")
    if root is None:
        package = ""
    else:
        package = str(root.get("full-path") or "")
    if not package:
        raise Unreadable("is no EPUB book: its container names no package")
    content = _xml(book, package)
    names = {}
    for item in content.iterfind(".//{*}manifest/{*}item"):
        if "html" in str(item.get("media-type")) and "nav" not in str(item.get("properties")):
            path = posixpath.join(posixpath.dirname(package), unquote(str(item.get("href"))))
            names[item.get("id")] = posixpath.normpath(path)
    chapters = []
    for place in content.iterfind(".//{*}spine/{*}itemref"):
        if place.get("idref") in names and place.get("linear") != "no":
            chapters.append(names[place.get("idref")])
    if not chapters:
        raise Unreadable("is no EPUB book: it names no chapters")
    return list(dict.fromkeys(chapters))


def _xml(book: Archive, name: str) -> Any:
    """An entry as XML, of which no entity is put in and nothing outside is read."""
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        return etree.fromstring(book.entry(name), parser)
    except (etree.LxmlError, ValueError) as error:
        raise Unreadable(f"is damaged: {name}: {error}") from error
