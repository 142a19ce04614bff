"""The text of Jupyter notebooks: what was written and the code, not what the code has printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ondevice.common.json_files import load_json
from ondevice.data.extraction.account import Account, Unreadable


def read(file: Path, account: Account) -> Iterator[str]:
    """The cells of a notebook, of format 3 on. Raises Unreadable."""
    try:
        found = load_json(file)
        language = _language(found)
        for cell in _cells(found):
            yield from _block(cell, language)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Unreadable(f"is not a notebook: {error}") from error


def _cells(found: Any) -> Iterator[Any]:
    if "worksheets" in found:  # format 3
        for sheet in found["worksheets"]:
            yield from sheet.get("cells", [])
        return
    yield from found["cells"]


def _language(found: Any) -> str:
    """Empty where it is not said: the cells are there without it."""
    metadata = found.get("metadata")
    for place, field in (("kernelspec", "language"), ("language_info", "name")):
        if isinstance(metadata, dict):
            said = metadata.get(place)
        else:
            said = None
        if isinstance(said, dict):
            name = said.get(field)
        else:
            name = None
        if isinstance(name, str) and name.isidentifier():
            return name
    return ""


def _block(cell: Any, language: str) -> Iterator[str]:
    source = cell.get("source", cell.get("input", ""))
    text = "".join(source).strip("\n")
    if not text.strip():
        return
    kind = cell["cell_type"]
    if kind == "code":
        yield f"```{language}\n{text}\n```"
    elif kind == "heading":
        yield "#" * int(cell.get("level", 1)) + " " + text
    elif kind == "markdown":
        yield text
