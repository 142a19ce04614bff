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


def test_the_debug_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    backend = load_backend("torch", device="cpu", dtype="float32")
    model = small_stages.write(tmp_path / "model", backend, small_stages.config())
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "green"}]
    chats.write_text(f"{json.dumps({'messages': turns})}\n" * 8, encoding="utf-8")
    [code] = re.findall(r"### a debug session.*?```python\n(.*?)```", TEXT, re.DOTALL)
    for name, file in (
        ("runs/mine/sft/model", model),
        ("chats.jsonl", chats),
        ("sequence_length=256", None),
    ):
        assert name in code
        code = code.replace(name, str(file) if file else "sequence_length=32")
    exec(code, {})
    shown = capsys.readouterr().out
    assert "'ids': (" in shown and "green" in shown


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
