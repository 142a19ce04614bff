"""The tour of docs/own-documents.md, each command as it stands there, with a small model of random
weights that is said to write questions well. Two commands fetch something: what they bring is here.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import small_stages
from ondevice import cli
from ondevice.inference import ask_documents
from ondevice.seam.select import load_backend
from test_ask import Written, choose, text_of

ROOT = Path(__file__).parents[1]
FETCHES = ("ondevice pull ", "curl ")


def commands() -> Iterator[str]:
    """Those of the tour in their order, each with the lines that it reads."""
    tour = (ROOT / "docs/own-documents.md").read_text(encoding="utf-8").partition("## The tour")[2]
    for block in re.findall(r"```sh\n(.*?)```", tour.partition("## What it gave")[0], re.DOTALL):
        lines = iter(block.splitlines())
        for line in lines:
            command = [line]
            if line.endswith("<<'END'"):
                command += iter(lines.__next__, "END")
                command.append("END")
            yield "\n".join(command)


def stories(count: int) -> str:
    rows = []
    for n in range(count):
        text = text_of(n)
        rows.append(json.dumps({"question": text, "answer": f"It is <<{n}={n}>>{n}.\n#### {n}"}))
    return "\n".join(rows)


@pytest.mark.slow
def test_the_tour_goes_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "train.jsonl").write_text(stories(90))
    cfg = replace(small_stages.config(), max_position_embeddings=4096)
    small_stages.write(tmp_path / "smollm2", load_backend("torch", "cpu"), cfg)
    monkeypatch.setattr(ask_documents, "generator_of", lambda m, b, how: Written(m, b, how))
    monkeypatch.setattr(ask_documents.Answerer, "choose", choose)
    said = {}
    for command in commands():
        if command.startswith(FETCHES):
            continue
        if not command.startswith("ondevice "):
            subprocess.run(["bash", "-ec", command], check=True)
            continue
        typed = "k\n" * 999 if " review " in command else "Hello\n"
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert cli.main(shlex.split(command)[1:]) == 0, command
        said[command] = capsys.readouterr().out
    shown = next(out for command, out in said.items() if " data show " in command)
    for reason in ("is damaged", "repeats another", "is encrypted", "is nearly", "scanned?"):
        assert reason in shown
    measured = [out for command, out in said.items() if " eval " in command]
    assert len(measured) == 2 and all("bits_per_byte: " in out for out in measured)
    asked = [out for command, out in said.items() if " data ask " in command]
    assert all(re.search(r"[1-9]\d* kept by the checks", out) for out in asked)
    kept = (tmp_path / "chats.kept.jsonl").read_text().splitlines()
    assert kept and json.loads(kept[0])["messages"][1]["content"].startswith(("Anna", "2", "3"))
    assert (tmp_path / "runs/own/sft/model").is_dir() and len(said) >= 10
