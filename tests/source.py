"""Our own source, for tests that walk it for what must stand in one place alone. No test by itself."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("ondevice", "backends", "tui")


def files(*folders: str) -> Iterator[Path]:
    """Every module of ours, or of the given folders, in the order of its name."""
    for folder in folders or FLOORS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def named(file: Path) -> str:
    """As a rule names a module: from the root of the repository, with slashes."""
    return file.relative_to(ROOT).as_posix()


def nodes(file: Path) -> tuple[ast.AST, ...]:
    """What `ast.walk` gives of a module. All are parsed at the first, once for all tests."""
    return _trees()[file]


@lru_cache(maxsize=1)
def _trees() -> dict[Path, tuple[ast.AST, ...]]:
    """Half a million objects that stay: while they are made, and ever after, the collector of
    cycles would look at each again and again, which takes longer than to parse them.
    """
    gc.collect()
    gc.disable()
    try:
        return {file: _walked(file) for file in files()}
    finally:
        gc.freeze()
        gc.enable()


def _walked(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
