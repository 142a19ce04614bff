"""What CONTRIBUTING.md tells people to type does what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nightly
import small_stages
from ondevice.seam.select import load_backend

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_debug_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    backend = load_backend("torch", device="cpu", dtype="float32")
    small_stages.write(tmp_path / "runs/mine/sft/model", backend, small_stages.config())
    rows = [{"messages": []}]
    for n in range(100):
        asked = {"role": "user", "content": f"red {n}?"}
        rows.append({"messages": [asked, {"role": "assistant", "content": "green"}]})
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = sorted((tmp_path / "runs").rglob("*"))
    section = re.search(r"### a debug session\n(.*?)\n### ", TEXT, re.DOTALL)
    assert section is not None
    blocks = re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)
    assert len(blocks) == 2
    code = "".join(blocks)
    assert "sequence_length=256" in code
    exec(code.replace("sequence_length=256", "sequence_length=32"), {})
    shown, told = capsys.readouterr()
    assert "'ids': (" in shown and "green" in shown
    assert "90 chats to learn from, 10 held out" in shown
    assert "1 of 101 rows could not be used; look/rejected.jsonl lists them" in told
    assert (tmp_path / "look" / "rejected.jsonl").read_text().count("\n") == 1
    assert sorted((tmp_path / "runs").rglob("*")) == before


def test_the_files_that_it_names_are_there() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`((?:ondevice|backends|tui|tests|scripts|docs)/[\w./-]+)`", TEXT))
    assert len(named) > 20
    assert not [name for name in named if not (root / name).exists()]
    inside = set(
        re.findall(
            r"`((?:common|config|seam|data|models|preferences|runs|training|datasets|inference|rewards|rl"
            r"|publishing|reports|exports|stages|hub|evaluation)/\w+\.py)`",
            TEXT,
        )
    )
    assert len(inside) > 20
    assert not [name for name in inside if not (root / "ondevice" / name).exists()]


def test_it_names_what_is_nightly_and_why() -> None:
    plain = " ".join(TEXT.split())
    for rule in nightly.NIGHTLY:
        assert rule.reason in plain, rule.reason


@pytest.mark.slow
def test_every_nightly_rule_has_tests() -> None:
    files = sorted({rule.file for rule in nightly.NIGHTLY})
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "nightly", *files],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for rule in nightly.NIGHTLY:
        found = [line for line in listed if nightly.reason(rule.file, line.partition("::")[2])]
        assert any(line.startswith((rule.file, f"tests/{rule.file}")) for line in found), rule
