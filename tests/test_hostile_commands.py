"""Every hostile string through every command that shows what models and people wrote: what reaches
the terminal, a file or a page cannot act. (`test_hostile_models.py` has a real model that writes such text;
here the decoding is left out.)"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ondevice import cli
from ondevice.inference import chat, side_by_side
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.reports.report import write_report
from test_inert import acts
from test_tui_safe import STRINGS, hostile_run

WRITTEN = [text for text in STRINGS if text.strip()]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A model that answers with this text, in pieces of three characters."""
    said = {"text": ""}

    def stream(
        generator: Any, model: Any, ids: Sequence[int], write: Callable[[str], None], number: int
    ) -> tuple[str, bool]:
        text = said["text"]
        for start in range(0, len(text), 3):
            write(text[start : start + 3])
        return text, False

    tokenizer = SimpleNamespace(chat_template="x", encode_document=lambda text: [1])
    model = SimpleNamespace(
        tokenizer=tokenizer,
        cfg=SimpleNamespace(max_position_embeddings=64),
        params={},
        network=SimpleNamespace(decoder_start_token_id=None),
        folder=tmp_path,
    )
    monkeypatch.setattr(chat, "open_model", lambda cfg: (model, None))
    monkeypatch.setattr(chat, "generator_of", lambda *_: SimpleNamespace(is_cut=lambda ids: False))
    monkeypatch.setattr(chat, "chat_ids", lambda messages, model: [1])
    monkeypatch.setattr(chat, "_stream", stream)
    return lambda text: said.update(text=text)


def test_there_are_enough_of_them() -> None:
    assert len(WRITTEN) >= 40 and sum(bool(acts(text)) for text in WRITTEN) >= 20


@pytest.mark.parametrize("width", [60, 100])
def test_compare(width: int) -> None:
    for text in WRITTEN:
        found = {
            "models": [text, "b"],
            "answers": [{"prompt": text, "first": text, "second": text}],
            "same": 1,
        }
        assert not acts(side_by_side.render(found, width)), repr(text)


def test_generate_and_chat(
    says: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in WRITTEN:
        says(text)
        assert cli.main(("generate", "any", "hello")) == 0
        assert not acts(capsys.readouterr().out), repr(text)
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nagain\n\n"))
        assert cli.main(("chat", "any")) == 0
        out = capsys.readouterr().out
        assert out.count("\n") >= 2 and not acts(out), repr(text)


def test_rate_and_what_votes_are_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, answers, sources, raters and notes are anybody's."""
    path = tmp_path / "r.db"
    with Ratings.open(path, create=True) as ratings, ratings.transaction():
        for n, text in enumerate(STRINGS):
            ratings.add(
                "b",
                text or "?",
                [Response(text, text), Response(f"{n} {text}", f"{n}{text}")],
                seed=0,
            )
    typed = (
        "".join(f"n\n{text.splitlines()[0] if text.strip() else 'x'}\na\n" for text in WRITTEN)
        + "q\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert cli.main(("rate", str(path), "--rater", WRITTEN[0])) == 0
    shown = capsys.readouterr()
    assert not acts(shown.out) and not acts(shown.err) and "[31mred" in shown.out
    assert cli.main(("ratings", "stats", str(path))) == 0
    shown = capsys.readouterr()
    assert not acts(shown.out) and "rater" in shown.out


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


@pytest.mark.slow
def test_reports_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = hostile_run(tmp_path)
    write_report(run)
    assert cli.main(("runs", "report", str(run.path))) == 0
    assert cli.main(("runs", "list", "--folder", str(tmp_path))) == 0
    shown = capsys.readouterr()
    assert not acts(shown.out) and not acts(shown.err)
    reports = [file for file in run.path.iterdir() if file.name.startswith("report.")]
    assert {file.name for file in reports} == {"report.md", "report.html"}
    for file in reports:
        assert not acts(file.read_text(encoding="utf-8")), file.name
    tags = Tags()
    tags.feed((run.path / "report.html").read_text(encoding="utf-8"))
    assert tags.found
    for tag, attributes in tags.found:
        assert tag not in ("script", "iframe", "object", "link", "img"), tag
        for name, value in attributes:
            assert not name.startswith("on") and not str(value).startswith(
                ("http", "javascript:")
            ), (tag, name, value)
