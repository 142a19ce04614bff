"""Files to rows: bad ones named, counted, set aside, and too many of them stop the run."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_samples import real_data
from hub_sets import read_in_this_process
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.data.formats import chats, texts
from ondevice.data.plain_text import Part
from ondevice.data.rows import Rows, read

GOOD = b'{"text": "good"}\n'


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def found(path: Path) -> tuple[list[Any], Rows]:
    rows = read(path)
    return [row for row, _ in rows], rows


def test_jsonl_with_bom_crlf_blank_lines_and_no_last_line_break(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "\xc3\xa9"}\r\n\r\n  \n{"text": "b"}')
    rows = read(path)
    assert list(rows) == [({"text": "é"}, f"{path}:1"), ({"text": "b"}, f"{path}:4")]
    assert list(rows) == list(rows)  # as often as wanted


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "\xff"}\n', "not UTF-8 at byte 11"),
        (b'{"text": "a\0b"}\n', "NUL byte at character 12"),
        (b'{"text": \n', "not JSON"),
        (b'{"text": "cut', "cut off"),
        (b"5\n", "must be an object"),
        (b"[" * 100_000 + b"\n", "nested too deep|not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}\n", "not JSON"),
        (b"\0\0\0\n", "NUL"),
    ],
)
def test_bad_lines_are_named_and_set_aside(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, "a.jsonl", GOOD * 200 + line)
    rows, source = found(path)
    assert len(rows) == 200 and source.seen == 201
    [bad] = source.rejected
    assert bad.where == f"{path}:201"
    assert re.search(reason, bad.reason)
    source.write_rejected(tmp_path / "rejected.jsonl")
    [told] = [json.loads(text) for text in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert told["where"] == f"{path}:201" and told["reason"] == bad.reason
    path = write(tmp_path, "b.jsonl", GOOD * 20 + line)
    with pytest.raises(UserError, match=r"b\.jsonl:21: .*1 of 21 rows are bad"):
        found(path)


def test_a_long_line_is_a_row_like_any_other(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 10_000_000})
    rows, _ = found(write(tmp_path, "a.jsonl", long + "\n" + long))
    assert [len(row["text"]) for row in rows] == [10_000_000] * 2


def test_hopeless_files_stop_early(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b"garbage\n" * 5000)
    rows = read(path)
    with pytest.raises(UserError, match=r"a\.jsonl:1: not JSON"):
        list(rows)
    assert rows.seen < 200


def test_rows_that_a_form_refuses_count_as_bad(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", GOOD * 150 + b'{"words": 1}\n')
    rows = read(path)
    assert list(texts(rows)) == ["good"] * 150
    assert (
        rows.rejected[0].where == f"{path}:151"
        and "none of the known forms" in rows.rejected[0].reason
    )
    with pytest.raises(UserError, match=r"a\.jsonl:1: this row has a text and no chat"):
        list(chats(read(path)))


def test_json_in_its_shapes(tmp_path: Path) -> None:
    for content in ('[{"text": "a"}]', '{"data": [{"text": "a"}]}', '\ufeff{"text": "a"}'):
        assert found(write(tmp_path, "a.json", content))[0] == [{"text": "a"}]
    for content, reason in (
        ('{"text": "a"}\n{"text": "b"}', "call the file .jsonl"),
        ("3", "no list of rows"),
        (b"\xff", "not UTF-8"),
        ("[]", "no rows"),
        ("[1]", "row 1: a row must be an object"),
    ):
        with pytest.raises(UserError, match=reason):
            found(write(tmp_path, "a.json", content))


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufeffprompt,completion\r\n"a, ""b""\r\nc",d\r\n')
    assert found(path)[0] == [{"prompt": 'a, "b"\r\nc', "completion": "d"}]
    good = b"prompt,completion\n" + b"a,b\n" * 300
    for line, reason in (
        (b"a\n", "fewer fields"),
        (b"a,b,c\n", "more fields"),
        (b"\xff,b\n", "not UTF-8"),
    ):
        rows, source = found(write(tmp_path, "a.csv", good + line))
        assert len(rows) == 300 and reason in source.rejected[0].reason
        assert source.rejected[0].where.endswith("a.csv:302")
        source.write_rejected(tmp_path / "rejected.jsonl")


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\r\n")
    [row], _ = found(path)
    assert row["text"] == "one\ntwo\nthree\n" and not row["text"].more


def test_a_big_text_comes_in_pieces_and_is_whole_again(tmp_path: Path) -> None:
    line = "é word\r\n"
    text = line * 300_000 + "\r\n\r\nend"  # line breaks fall on the borders of what is read at once
    rows, _ = found(write(tmp_path, "a.txt", text))
    parts = [row["text"] for row in rows]
    assert len(parts) > 1 and all(isinstance(part, Part) for part in parts)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert "".join(parts) == text.replace("\r\n", "\n")
    assert all(
        part[-1] == "\n" and not after[0].isspace()
        for part, after in zip(parts, parts[1:], strict=False)
    )


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"a\0b", "NUL"),
        (b"\xff\xfea", "is not UTF-16, as its first bytes say"),
        (b"\xff\x01\x02\x03\x04", "control characters"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        found(write(tmp_path, "a.txt", data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a\0b",
        b"\xff\xfea",
        b"one \0 " + b"Some words of ASCII, and a byte that is zero. " * 99,
        b"abc \0 def " * 99,
        "déjà \0 ".encode("latin-1") + "là où il était. ".encode("latin-1") * 99,
        bytes(range(256)) * 9,
        b"\1\0 \0\2\0" * 99,
        "cut off\n".encode("utf-16-le") * 9000 + b"\0\xd8 \0",
    ],
    ids=range(9),
)
def test_one_of_many_texts_that_is_none_is_left_out(tmp_path: Path, data: bytes) -> None:
    for number in range(5):
        write(tmp_path, f"{number}.txt", f"text {number}")
    write(tmp_path, "bad.txt", data)
    rows = read(tmp_path)
    assert len(list(rows)) == 5
    assert [bad.where for bad in rows.left_out] == [str(tmp_path / "bad.txt")]
    assert not rows.rejected and "bad.txt" in rows.telling()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café", "latin-1"),
        ("“Quoted” – 5 €", "cp1252"),
        ("a\r\nž", "utf-16"),
        ("ž", "utf-32"),
        ("Notes of 1998, déjà vu\n", "utf-16-le"),
        ("Notes of 1998, déjà vu\n", "utf-16-be"),
        ("日本語の文章です。改行も\nあります。", "utf-16-le"),
        ("a few\n", "utf-32-be"),
        ("Съешь же ещё этих мягких булок", "utf-16-le"),
        ("모든 인간은 태어날 때부터 자유로우며", "utf-16-be"),
        ("人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。\n" * 9, "utf-16-le"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю. " * 3, "cp1251"),
        ("Là-bas, où rien ne pousse, la fenêtre était fermée et l’été passait. " * 9, "cp1252"),
        ("A situação é difícil, mas a solução virá amanhã, disse o avô João. " * 9, "latin-1"),
        ("Flickan åt ett äpple på ön, där båten låg; många går över ån. " * 9, "latin-1"),
        ("Der Raum hat 30 m³ bei 5 °C, the other one 40 m³. " * 9, "cp1252"),
        ("Większość ludzi śpi dłużej, kiedy pada śnieg na łące. " * 9, "iso8859-2"),
        ("Dauguma žmonių miega ilgiau, kai sninga, o šuo žiūri į ežerą. " * 9, "cp1257"),
        ("Kız, kayığın durduğu çayırda bir elma yedi; şimdi göl çok güzel.", "cp1254"),
        ("いろはにほへと ちりぬるを わかよたれそ つねならむ " * 3, "shift_jis"),
    ],
)
def test_the_encoding_of_a_text_is_found_out(tmp_path: Path, text: str, encoding: str) -> None:
    path = write(tmp_path, "a.txt", text.encode(encoding))
    [row], _ = found(path)
    assert row["text"] == text.replace("\r\n", "\n")


def test_a_damaged_byte_makes_no_other_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "Žluťoučký kůň".encode() + b"\xff" + "ě".encode())
    [row], _ = found(path)
    assert row["text"] == "Žluťoučký kůň\ufffdě"


def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "b/two.txt", "two")
    write(tmp_path, "a/one.md", "one")
    write(tmp_path, ".git/x.txt", "hidden")
    write(tmp_path, "LICENSE", "no ending")
    rows = read(tmp_path)
    assert [row["text"] for row, _ in rows] == ["one", "two"]
    assert [path.name for path in rows.ignored] == ["LICENSE"]
    write(tmp_path, "rows.jsonl", GOOD)
    rows = read(tmp_path)
    assert [row for row, _ in rows] == [{"text": "good"}]
    assert {path.name for path in rows.ignored} == {"LICENSE", "one.md", "two.txt"}


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "a.exe", "")
    write(tmp_path, "none.jsonl", "\n\n")
    for path, reason in (
        ("gone.jsonl", "no such file"),
        ("empty", "no data in this folder"),
        ("a.exe", r"cannot read \.exe"),
        ("none.jsonl", "no rows"),
    ):
        with pytest.raises(UserError, match=reason):
            found(tmp_path / path)


def test_parquet(tmp_path: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("needs pyarrow")
    import pyarrow
    import pyarrow.parquet

    wanted = [{"prompt": "a", "completion": "b"}, {"prompt": "é", "completion": "d"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wanted), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet")[0] == wanted
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        found(write(tmp_path, "b.parquet", "PAR1 not at all"))


def test_a_tables_nulls_are_keys_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two calls with different arguments a table gives each the other's, and each row the
    other's columns.
    """
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("needs pyarrow")
    import pyarrow
    import pyarrow.parquet

    def called(**arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [call]},
            ]
        }

    wanted = [called(city="Oslo"), called(a=1, b=[1, None]), {"prompt": "a", "completion": "b"}]
    columns = dict.fromkeys(("prompt", "completion"))
    table = pyarrow.Table.from_pylist([{**wanted[0], **columns}, *wanted[1:]])
    assert table.to_pylist() != wanted
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet")[0] == wanted

    class Stream(list[Any]):
        features = None

    builder = types.SimpleNamespace(
        hash="", as_streaming_dataset=lambda split: Stream(table.to_pylist())
    )
    module = types.SimpleNamespace(__spec__="here", load_dataset_builder=lambda *_, **__: builder)
    read_in_this_process(monkeypatch)
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert [row for row, _ in read("hub:someone/something")] == wanted


def test_extras_that_are_absent_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    hint = re.escape(install_hint("data"))
    with pytest.raises(UserError, match=rf"pyarrow \({hint}\)"):
        found(write(tmp_path, "a.parquet", "x"))
    with pytest.raises(UserError, match=rf"datasets \({hint}\)"):
        list(read("hub:someone/something"))


PIECES = st.sampled_from(
    [
        b'{"text": "a"}',
        b"{",
        b'"',
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xc3",
        b"[1]",
        b",",
        b"text",
        b"\xfe",
        b" ",
        b'{"data": [',
        b"]",
        b"}",
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(PIECES, max_size=10).map(b"".join),
    st.sampled_from(["jsonl", "json", "csv", "txt", "parquet"]),
)
def test_no_bytes_get_past_the_readers(tmp_path: Path, data: bytes, kind: str) -> None:
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        kind = "jsonl"
    rows = read(write(tmp_path, f"x.{kind}", data))
    try:
        for text in texts(rows):
            text.encode()
        assert len(rows.rejected) <= 0.01 * rows.seen
    except UserError as error:
        assert "x." in str(error)


@pytest.mark.parametrize(
    "name, count", [("gsm8k_test.jsonl", 1319), ("codegen_instruct.jsonl", 4535)]
)
def test_real_rows(name: str, count: int) -> None:
    rows = read(real_data(name))
    assert len(list(chats(rows))) == count and not rows.rejected
