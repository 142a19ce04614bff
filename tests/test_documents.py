"""Folders of PDF, Word, HTML, EPUB, notebooks and text: what is read of each, what is left out and
why, and that files of others are read within limits.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from document_samples import document, maker
from ondevice import cli
from ondevice.common import user_cache
from ondevice.common.errors import UserError
from ondevice.config.corpus import CorpusConfig
from ondevice.data.extraction import near_duplicates, store, survey
from ondevice.data.extraction.asking import Asker
from ondevice.data.extraction.pdf_pages import joined, without_repeated
from ondevice.data.extraction.web_page import blocks_of, decoded
from ondevice.data.folders import RICH
from ondevice.data.rows import read
from ondevice.datasets.spec import data_digest

pytest.importorskip("docx", reason="needs the extra documents")
pytest.importorskip("pypdf", reason="needs the extra documents")

TITLE = "On bees"
PARAGRAPHS = ["Bees live in hives, and each hive has one queen.", "A worker lives for six weeks."]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_cache.FOLDER, str(tmp_path / "cache"))


def reason_of(file: Path) -> str:
    return store.extract(file).reason


def make(folder: Path, kind: str, name: str = "a", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}{kind}"
    file.write_bytes(document(kind, TITLE, more.pop("paragraphs", PARAGRAPHS), **more))
    return file


def test_every_kind_is_read_with_its_headings_and_kept(tmp_path: Path) -> None:
    """In the order of names; the second time nothing is read again, whatever a file's name is."""
    folder = tmp_path / "mixed"
    kinds = [kind for kind, _ in maker()["WRITERS"] if kind != "-old.txt"]
    for n, kind in enumerate(kinds):
        make(folder, kind, f"{n}", paragraphs=[*PARAGRAPHS, f"This is {kind}."])
    texts = {Path(where).suffix: row["text"] for row, where in read(folder)}
    assert list(texts) == kinds
    for kind, text in texts.items():
        said = " ".join(text.split())
        assert said.index(TITLE) < said.index(PARAGRAPHS[0]) < said.index(PARAGRAPHS[1]), kind
        assert f"This is {kind}." in said and "menu" not in said and "All rights" not in said
        if kind in RICH or kind == ".md":  # a page alone tells no header
            assert "# On bees\n" in text, kind
    kept = {file: file.stat().st_mtime_ns for file in store.folder().rglob("*.txt")}
    assert len(kept) == 5 and oct(store.folder().stat().st_mode)[-3:] == "700"
    (folder / "0.pdf").rename(folder / "9.pdf")
    survey._made.clear()
    assert [Path(where).name for _, where in read(folder)][-1] == "9.pdf"
    assert {file: file.stat().st_mtime_ns for file in store.folder().rglob("*.txt")} == kept
    damaged = next(iter(kept))
    damaged.write_text("something else")
    survey._made.clear()
    assert {row["text"] for row, _ in read(folder)} == set(texts.values())


def _bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(9):
            archive.writestr(f"word/{n}.xml", b"0" * (60 << 20))


def _entities(file: Path) -> None:
    levels = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    page = f'<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{levels}]><package>&a11;</package>'
    container = '<container><rootfiles><rootfile full-path="p"/></rootfiles></container>'
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("p", page)


HOSTILE: dict[str, tuple[Any, str]] = {
    "bomb.docx": (_bomb, "unpacks to 540 MB"),
    "bomb.epub": (_bomb, "unpacks to 540 MB"),
    "entities.epub": (_entities, "is damaged|names no chapters"),
    "deep.html": (lambda f: f.write_text("<div>" * 100_000 + "x"), "nested too deep"),
    "deep.ipynb": (lambda f: f.write_text("[" * 100_000), "is not a notebook: nested too deep"),
    "list.ipynb": (lambda f: f.write_text("[1]"), "is not a notebook"),
    "empty.html": (lambda f: f.write_text("<p> </p>"), "holds no text"),
    "zero.pdf": (lambda f: f.write_bytes(b""), "^empty$"),
    "zero.docx": (lambda f: f.write_bytes(b""), "^empty$"),
    "picture.html": (
        lambda f: f.write_bytes(b"\x89PNG\r\n" + bytes(range(256)) * 16),
        "holds control characters: not a page",
    ),
    "page.pdf": (lambda f: f.write_text("\n<!DOCTYPE html><p>x"), "holds what a .html holds: give"),
    "word.epub": (
        lambda f: f.write_bytes(document(".docx", "a", ["b"])),
        "holds what a .docx holds",
    ),
    "print.txt": (
        lambda f: f.write_bytes(document(".pdf", "a", ["b"]) + b"\0"),
        "holds what a .pdf holds",
    ),
    "locked.pdf": (
        lambda f: f.write_bytes(document(".pdf", TITLE, PARAGRAPHS, encrypted=True)),
        "is encrypted: it opens with a password",
    ),
    "scan.pdf": (
        lambda f: f.write_bytes(maker()["scanned"](3)),
        r"holds no text on its 3 pages: scanned\?",
    ),
    "broken.pdf": (lambda f: f.write_bytes(b"%PDF-1.4\n"), "is damaged"),
    "broken.docx": (lambda f: f.write_bytes(b"PK\x03\x04"), "is damaged"),
    "other.docx": (lambda f: f.write_bytes(document(".epub", "a", ["b"])), "is no Word document"),
    "a.pdf.gz": (lambda f: f.write_bytes(b"x"), "is packed: unpack it"),
    "a.txt.gz": (lambda f: f.write_bytes(b"no"), "cannot be unpacked"),
}


@pytest.mark.slow
def test_files_that_cannot_be_read_are_named_each_with_one_reason(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    os.mkfifo(tmp_path / "pipe.html")
    for name, (write, _) in HOSTILE.items():
        write(folder / name)
    rows = read(folder)
    assert [row["text"] for row, _ in rows] == ["good"]
    reasons = {Path(bad.where).name: bad.reason for bad in rows.left_out}
    assert set(reasons) == set(HOSTILE)
    import re

    for name, (_, reason) in HOSTILE.items():
        assert re.search(reason, reasons[name]), (name, reasons[name])
        assert name in rows.telling() or "…" in rows.telling()
    with pytest.raises(UserError, match=r"scan.pdf: holds no text on its 3 pages"):
        list(read(folder / "scan.pdf"))
    (folder / "good.txt").unlink()
    with pytest.raises(UserError, match=r"none of the 20 files can be read"):
        list(read(folder))


def test_what_may_not_be_opened_is_named_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system refuses it to anybody but root, whom tests may be run by."""
    (tmp_path / "closed").mkdir()
    for name in ("a.txt", "b.txt", "c.html", "closed/d.txt"):
        (tmp_path / name).write_text(f"good {name}")
    sums, encoding, access = survey.sha256_once, store.encoding_of, os.access

    def refused(file: Path) -> None:
        if file.name in ("b.txt", "c.html"):
            raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(survey, "sha256_once", lambda file: refused(file) or sums(file))
    monkeypatch.setattr(store, "sha256_once", lambda file: refused(file) or sums(file))
    monkeypatch.setattr(store, "encoding_of", lambda file: refused(file) or encoding(file))
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name != "closed" and access(p, mode))
    glob = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda self, _: (p for p in glob(self, "*") if p.parent.name != "closed")
    )
    rows = read(tmp_path)
    assert [row["text"] for row, _ in rows] == ["good a.txt"]
    assert {Path(bad.where).name: bad.reason for bad in rows.left_out} == dict.fromkeys(
        ("b.txt", "c.html"), "cannot be read: Permission denied"
    )
    assert "1 links to folders, closed folders, or no files (closed)" in rows.telling()
    with pytest.raises(UserError, match="may not be opened by you"):
        read(tmp_path / "closed")
    with pytest.raises(UserError, match="not there|cannot be read: No such file"):
        survey.survey([tmp_path / "gone.txt"])


def test_a_file_that_hangs_its_reader_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next one is read, by another process."""
    file = make(tmp_path, ".html")
    os.mkfifo(tmp_path / "in")
    with Asker(seconds=0.01) as asker:
        told = asker.text_of(file, ".html", tmp_path / "out")
        assert told == {"reason": "was given up after 0.01 seconds"}
        asker.seconds = 60
        assert asker.text_of(file, ".html", tmp_path / "out")["characters"] > 50
        assert asker._process is not None
        asker._process.process.kill()
        assert "ends its reader" in asker.text_of(file, ".html", tmp_path / "out")["reason"]
        assert "characters" in asker.text_of(file, ".html", tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="the system keeps to the limit there")
def test_a_file_that_takes_too_much_memory_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "large.html"
    file.write_text("<p>" + "word " * (6 << 20))
    with Asker(memory=160 << 20) as asker:
        told = asker.text_of(file, ".html", tmp_path / "out")
        assert told["reason"].startswith(
            ("needs too much memory", "ends its reader", "is not HTML")
        )
        small = make(tmp_path, ".html")
        assert "characters" in asker.text_of(small, ".html", tmp_path / "out")


def test_lines_repeated_at_the_edges_of_pages_are_left_out() -> None:
    pages = [
        ["My book", f"Chapter {n // 4}", f"text {'abcdefgh'[n]}", "same", f"{n} / 8"]
        for n in range(8)
    ]
    assert without_repeated(pages) == (
        [[f"text {'abcdefgh'[n]}"] for n in range(8)],
        32,
    )
    two = [
        ["My book", f"one {w}", "same", "a", "b", w, "same", f"{n} / 2"] for n, w in enumerate("xy")
    ]
    assert without_repeated(two) == ([page[1:-2] for page in two], 6)
    assert without_repeated([*two, []])[1] == 6 and without_repeated(two[:1]) == (two[:1], 0)
    table = [[f"{n} 1.5 20", f"{n + 1} 2.5 30", "a", "b", f"{n + 2} 3.5 40"] for n in range(9)]
    assert without_repeated(table)[0][3][0] == "3 1.5 20"
    text = [
        ["My book", *(f"Day {7 * n + m}: the miller had {m} hens." for m in range(9))]
        for n in range(5)
    ]
    assert without_repeated(text) == ([page[1:] for page in text], 5)


def test_lines_of_a_paragraph_are_joined_and_divided_words_made_whole() -> None:
    full = "This is a line that fills its column, and what it says is divi-"
    lines = ["A title", full, "ded at the end of it. This one is short.", *[full] * 3, "ded."]
    assert list(joined(lines, {"A title": 1.4})) == [
        "## A title",
        full[:-1] + "ded at the end of it. This one is short.",
        f"{full} {full} {full[:-1]}ded.",
    ]


def test_lines_of_verse_stay_lines() -> None:
    prose = [
        "Of an evening he read to us, and when he came to the poem of the",
        "River Dee he stood up. Miss Anne and I knew it by heart, and the",
        "others too, though none of us said a word while he read it to us.",
    ]
    verse = [
        "The western wind was wild and dank with foam,",
        "And all alone went she",
        "The tide came up along the sand",
        "And o'er and o'er the sand",
    ]
    address = ["A. Hall", "3 Mill Lane", "Leeds"]
    found = list(joined([*prose, *verse, *prose], {}))
    assert found == [" ".join(prose), "\n".join(verse), " ".join(prose)]
    assert list(joined([*prose, "so ends it.", *address], {}))[-1] == "\n".join(address)
    talk = ['"Yes?" said I.', "He went on.", '"Who is it?"', '"Anne," said he.', "I left."]
    assert list(joined([*prose, *talk], {}))[1:] == talk[1:]


def test_pages_without_text_are_named(tmp_path: Path) -> None:
    script = maker()
    page = script["_drawn"]([(10, "Some words stand here.")])
    (tmp_path / "a.pdf").write_bytes(script["_pdf"]([page, b"", b"", page, b""]))
    rows = read(tmp_path / "a.pdf")
    assert [row["text"].split() for row, _ in rows] == [["Some", "words", "stand", "here."] * 2]
    assert rows.notes == ["a.pdf: 3 of 5 pages hold no text (2-3, 5): scanned?"]


def test_html_as_markdown() -> None:
    page = """<title>T</title><nav>menu</nav><h2>A  <b>b</b></h2><div>one<br>two &amp; <i>three</i></div>
    <ul><li>x<li><p>y</p></ul><pre>a\n  b</pre><table><tr><td>1<td>2<tr><td>3</table><script>no</script>tail"""
    assert list(blocks_of(page)) == [
        "## A b", "one\ntwo & three", "- x", "- y", "```\na\n  b\n```", "1 | 2\n3", "tail",
    ]  # fmt: skip
    assert list(blocks_of("<title>T</title><p>x")) == ["# T", "x"]


@pytest.mark.parametrize(
    ("head", "encoding", "text"),
    [
        ('<meta charset="iso-8859-1">', "cp1252", "“Déjà vu” — it’s €5"),
        ('<meta charset="gb2312">', "gb18030", "朱镕基总理说话，𠀀。"),
        ('<meta http-equiv="a" content="text/html; charset=shift_jis">', "cp932", "①髙橋さん"),
        ('<?xml version="1.0" encoding="iso-8859-2"?>', "iso-8859-2", "Zażółć gęślą jaźń"),
        ('<meta charset="nothing-like-it">', "utf-8", "Grüße"),
    ],
)
def test_html_is_read_in_the_encoding_that_browsers_take(
    head: str, encoding: str, text: str
) -> None:
    page = f"{head}<body><p>{text}</p>"
    assert list(blocks_of(decoded(page.encode(encoding)))) == [text]


def test_a_page_that_is_one_form_is_read() -> None:
    page = "<form><h1>A</h1><p>b</p><select><option>no</select><button>no</button></form>"
    assert list(blocks_of(page)) == ["# A", "b"]


def test_a_notebook_need_not_say_its_language(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": "x = 1"}]
    for metadata in (None, [], {"kernelspec": None, "language_info": "?"}):
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "metadata": metadata}))
        survey._made.clear()
        assert [row["text"] for row, _ in read(tmp_path / "a.ipynb")] == ["```\nx = 1\n```\n"]


def _in_word(tmp_path: Path, body: str) -> Path:
    """A Word file with this in its body, in place of what the script writes there."""
    made = make(tmp_path, ".docx")
    with zipfile.ZipFile(made) as archive:
        entries = {name: archive.read(name).decode() for name in archive.namelist()}
    start, rest = entries["word/document.xml"].split("<w:body>")
    entries["word/document.xml"] = f"{start}<w:body>{body}</w:body></w:document>"
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return made


def test_word_text_is_read_wherever_it_stands(tmp_path: Path) -> None:
    """Content controls, insertions, fields and text boxes hold text that python-docx passes over."""
    run = "<w:r><w:t>{}</w:t></w:r>".format
    box = "<w:r><w:pict><w:txbxContent><w:p>{}</w:p></w:txbxContent></w:pict></w:r>".format(
        run("box")
    )
    file = _in_word(
        tmp_path,
        f"<w:sdt><w:sdtContent><w:p>{run('control')}</w:p></w:sdtContent></w:sdt><w:p>{run('one ')}"
        f"<w:ins>{run('two ')}</w:ins><w:del><w:r><w:delText>no</w:delText></w:r></w:del><w:moveFrom>"
        f"{run('moved')}</w:moveFrom><w:sdt><w:sdtContent>{run('three ')}</w:sdtContent></w:sdt>"
        f"<w:fldSimple>{run('four')}</w:fldSimple>{box}</w:p><w:tbl><w:tr><w:tc><w:p>{run('a')}</w:p>"
        f"</w:tc><w:tc><w:tbl><w:tr><w:tc><w:p>{run('b')}</w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:tr>"
        f"</w:tbl><w:tbl><w:tr><w:tc><w:p>{run('framed')}</w:p><w:p>{run('both')}</w:p></w:tc></w:tr></w:tbl>",
    )
    (row, _), = read(file)  # fmt: skip
    assert row["text"].split("\n\n") == [
        "control", "one two three four", "box", "a | b", "framed", "both\n",
    ]  # fmt: skip
    survey._made.clear()
    file.write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    assert "an old Word file" in reason_of(file)
    assert "nested too deep" in reason_of(
        _in_word(tmp_path, "<w:tbl><w:tr><w:tc>" * 60 + run("x") + "</w:tc></w:tr></w:tbl>" * 60)
    )


def test_copies_and_near_copies_are_left_out_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    words = " ".join(f"word{n} stands here" for n in range(300))
    for name, text in (
        ("a.txt", words), ("b.md", words), ("c.txt", f"{words.upper()}\n\nThe end."),
        ("d.txt", " ".join(f"other{n} was there" for n in range(300))), ("e.txt", "short one"), ("f.txt", "short two"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    rows = read(tmp_path)
    assert [Path(where).name for _, where in rows] == ["a.txt", "d.txt", "e.txt", "f.txt"]
    assert rows.notes == [
        "1 file left out: repeats another file (b.md like a.txt)",
        "1 file left out: is nearly another file (c.txt like a.txt)",
    ]


def test_likeness_is_jaccards() -> None:
    pytest.importorskip("datasketch")
    numbers = [f"w{n}" for n in range(4000)]
    whole = near_duplicates.runs_of([" ".join(numbers)])
    assert len(whole) == 3996
    assert (
        near_duplicates.runs_of([" ".join(numbers[:99]), "\n" + " ".join(numbers[99:])]) == whole
    ).all()
    seen = near_duplicates.NearDuplicates()
    assert seen.like(whole, "a") == ""
    assert seen.like(near_duplicates.runs_of([" ".join(numbers[:3800])]), "b") == "a"
    assert seen.like(near_duplicates.runs_of([" ".join(numbers[:2000])]), "c") == ""


def test_the_text_decides_a_fingerprint(tmp_path: Path) -> None:
    """Plain text that is all read has the fingerprint that it had; of other documents the file's
    own bytes do not matter."""
    from ondevice.common.files import digest, digest_path

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    corpus = CorpusConfig()
    assert data_digest(str(folder), "", corpus) == digest([digest_path(folder)])
    page = make(folder, ".html")
    before = data_digest(str(folder), "", corpus)
    page.write_bytes(page.read_bytes().replace(b"margin: 1em", b"margin: 2em"))
    assert data_digest(str(folder), "", corpus) == before
    page.write_bytes(page.read_bytes().replace(b"one queen", b"no queen"))
    assert data_digest(str(folder), "", corpus) != before


def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, ".pdf"), make(tmp_path, ".docx"), make(tmp_path, ".md"), make(tmp_path, ".ipynb")
    monkeypatch.setattr(store, "_is_there", lambda package: False)
    rows = read(tmp_path)
    assert {Path(where).suffix for _, where in rows} == {".md", ".ipynb"}
    assert (
        ".pdf needs pypdf: " in rows.telling() and store.install_hint("documents") in rows.telling()
    )


@pytest.mark.slow
def test_stages_learn_from_a_folder_of_documents(tmp_path: Path) -> None:
    """init's tokenizer, pretrain and the evaluation read the same texts; what was left out is listed."""
    folder = tmp_path / "mixed"
    for n, kind in enumerate((".pdf", ".docx", ".html", ".epub")):
        make(
            folder,
            kind,
            paragraphs=[f"Bee {n} of hive {m} flies to flower {m * n}." for m in range(40)],
        )
    (folder / "scan.pdf").write_bytes(maker()["scanned"]())
    common: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    start = od.init(
        data=str(folder),
        out=str(tmp_path / "run"),
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        **common,
    )
    model = od.pretrain(
        start,
        str(folder),
        out=str(tmp_path / "run"),
        steps=2,
        sequence_length=32,
        batch_size=2,
        **common,
    )
    listed = [
        json.loads(line)
        for line in (tmp_path / "run/pretrain/rejected.jsonl").read_text().splitlines()
    ]
    assert [Path(row["where"]).name for row in listed] == ["scan.pdf"]
    assert od.evaluate(model=str(model), data=str(folder), **common)["bits_per_byte"] > 0


def test_what_is_read_is_shown_before_there_is_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Characters, languages, what was left out and the first lines; rows need a model."""
    pytest.importorskip("py3langid")
    folder = tmp_path / "mixed"
    make(folder, ".pdf", paragraphs=["Bees live in hives, and each hive has one queen. " * 9])
    make(folder, ".html", paragraphs=["Bienen leben in Stöcken, und jeder hat eine Königin. " * 9])
    (folder / "copy.html").write_bytes((folder / "a.html").read_bytes())
    (folder / "scan.pdf").write_bytes(maker()["scanned"]())
    (folder / "x.md").write_text("\x1b[2J" + "Bees live in hives. " * 9)
    assert cli.main(["data", "show", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "3 documents of 5 files (1 .html, 1 .pdf, 1 .md)" in told
    assert "languages: en 2, de 1" in told and "\x1b" not in told
    assert "2 files left out" in told and "scan.pdf: holds no text on its 2 pages" in told
    assert "copy.html: repeats another file" in told or "a.html: repeats another file" in told
    shown = od.show_data(folder, examples=1)
    assert shown["documents"] == 3 and len(shown["examples"]) == 1
    assert {Path(one["where"]).name for one in shown["left_out"]} >= {"scan.pdf"}
    for words, reason in (
        ([str(folder), "--separator", "x"], "without a model documents are shown as they are read"),
        ([str(tmp_path / "a.jsonl")], "no model was named"),
    ):
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
        assert cli.main(["data", "show", *words]) == 2
        assert reason in capsys.readouterr().err
