"""`eval --tasks win`: which of two models a reward model prefers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.seam.select import load_backend

ON: dict[str, Any] = {"backend": "torch", "device": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(tmp_path_factory.mktemp("small"), load_backend("torch", "cpu"))


@pytest.mark.slow
def test_a_duel_with_oneself_is_a_draw_and_sides_change_places(files: Path) -> None:
    backend = load_backend("torch", "cpu")
    small_stages.write(files / "rival", backend, small_stages.config(), seed=3)
    def duel(one: str, other: str) -> dict[str, Any]:
        return od.evaluate(model=str(files / one), data=str(files / "prompts.jsonl"), tasks=("win",), max_new_tokens=6,
                           against=str(files / other), judge=str(files / "judge"), **ON)
    same = duel("policy", "policy")
    assert (same["win_rate"], same["ties"], same["prompts"]) == (0.5, 30, 30)
    there, back = duel("policy", "rival"), duel("rival", "policy")
    assert there["wins"] == back["losses"] > 0 and there["win_rate"] == pytest.approx(1 - back["win_rate"])
    assert there["score"] == back["other_score"]


@pytest.mark.parametrize(("arguments", "said"), [
    ("--tasks win", "against: a win rate needs another model and a judge"),
    ("--tasks win --against POLICY --judge POLICY", "is no reward model"),
    ("--tasks win,text", "win and classes are measured by themselves"),
    ("--tasks win --against POLICY --judge JUDGE --data nowhere.jsonl", "nowhere.jsonl: no such file"),
])  # fmt: skip
def test_what_a_person_gets_wrong(arguments: str, said: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments.replace("POLICY", str(files / "policy")).replace("JUDGE", str(files / "judge")).split()
    data = [] if "--data" in words else ["--data", str(files / "prompts.jsonl")]
    assert cli.main(["eval", str(files / "policy"), *data, *words, "--backend", "torch", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told, told
