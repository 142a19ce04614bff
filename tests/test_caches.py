"""What is cached is checked before it is believed, by its length and its hash, and made anew with a
word where it is not what was written."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import source
from ondevice.data import token_cache
from ondevice.data.token_cache import SUMS, ChatRows, JsonLines, cached, find_damage, link_from

ROOT = Path(__file__).parent.parent


def make_file(part: Path) -> None:
    part.write_bytes(b"0123456789")


def make_folder(part: Path) -> None:
    part.mkdir()
    (part / "ids").write_bytes(b"0123456789")
    (part / "mask").write_bytes(b"")


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


def forget() -> None:
    """As another process would see it: nothing was read yet."""
    from ondevice.common import files

    files._sha256.cache_clear()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "a bit": lambda file: file.write_bytes(b"1" + file.read_bytes()[1:]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("make", [make_file, make_folder])
def test_what_is_damaged_is_made_anew_with_a_word(
    kind: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path, said = tmp_path / "data" / "tokens", list[str]()
    cached(path, make, said.append)
    whole = contents(path)
    assert said == [] and find_damage(path) is None
    damaged = path if path.is_file() else path / "ids"
    DAMAGE[kind](damaged)
    forget()
    cached(path, make, said.append)
    assert contents(path) == whole and find_damage(path) is None
    assert len(said) == 1 and "made anew" in said[0] and str(path) in said[0]
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '{"tokens": 5}', '{"tokens": [1]}', '{"other": [1, "a"]}']
)
def test_without_its_sums_nothing_is_believed(text: str | None, tmp_path: Path) -> None:
    path, said = tmp_path / "tokens", list[str]()
    cached(path, make_file, said.append)
    sums = tmp_path / f".tokens{SUMS}"
    if text is None:
        sums.unlink()
    else:
        sums.write_text(text)
    cached(path, make_file, said.append)
    assert len(said) == 1 and find_damage(path) is None


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    cached(tmp_path / "a", make_file)

    def never(part: Path) -> None:
        raise AssertionError("made again")

    assert cached(tmp_path / "a", never).read_bytes() == b"0123456789"


@pytest.mark.parametrize("make", [make_file, make_folder])
def test_a_damaged_cache_of_another_run_is_not_taken(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    other, path = tmp_path / "one" / "tokens", tmp_path / "two" / "tokens"
    cached(other, make)
    link_from(other, path)
    assert contents(path) == contents(other) and find_damage(path) is None
    damaged = other if other.is_file() else other / "ids"
    os.unlink(damaged)
    damaged.write_bytes(b"9876543210")
    forget()
    link_from(other, tmp_path / "three" / "tokens")
    assert not (tmp_path / "three" / "tokens").exists()


def test_rows_of_chats_and_lines(tmp_path: Path) -> None:
    """Numbers that are out of any range, and a file that is not a multiple of its numbers."""
    from ondevice.data.chat_encoding import ChatRow

    row = ChatRow(np.arange(5, dtype=np.int32), np.ones(5, np.bool_))
    for name in ("ids", "mask", "starts"):
        for damage in DAMAGE.values():
            ChatRows.stored(tmp_path / "chats", lambda: [row])
            damage(tmp_path / "chats" / name)
            forget()
            [read] = ChatRows.stored(tmp_path / "chats", lambda: [row])
            assert read.ids.tolist() == [0, 1, 2, 3, 4] and read.mask.all()
    JsonLines.stored(tmp_path / "lines", lambda: [{"a": 1}], lambda row: (1, 2))
    (tmp_path / "lines" / "lines.jsonl").write_bytes(b"[1")
    forget()
    assert list(JsonLines.stored(tmp_path / "lines", lambda: [{"a": 1}], lambda row: (1, 2))) == [
        {"a": 1}
    ]


@pytest.mark.slow
def test_nothing_is_kept_in_another_way() -> None:
    """`made_once` believes what is there: it is for a record that cannot be made again."""
    found = set()
    for file in source.files("ondevice"):
        for node in source.nodes(file):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("made_once"):
                found.add(source.named(file))
    assert found == {"ondevice/datasets/preference_pairs.py"}
    assert token_cache.made_once.__doc__
