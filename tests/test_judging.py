"""`eval --tasks win`: which of two models a reward model prefers; and what of the settings reaches
a second model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.data.preference_batches import completion_row
from ondevice.evaluation import preference
from ondevice.models.load import load_model
from ondevice.models.save import write_model
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
        return od.evaluate(
            model=str(files / one),
            data=str(files / "prompts.jsonl"),
            tasks=("win",),
            max_new_tokens=6,
            against=str(files / other),
            judge=str(files / "judge"),
            **ON,
        )

    same = duel("policy", "policy")
    assert (same["win_rate"], same["ties"], same["prompts"]) == (0.5, 30, 30)
    there, back = duel("policy", "rival"), duel("rival", "policy")
    assert there["wins"] == back["losses"] > 0 and there["win_rate"] == pytest.approx(
        1 - back["win_rate"]
    )
    assert there["score"] == back["other_score"]


@pytest.mark.parametrize(("arguments", "said"), [
    ("--tasks win", "against: a win rate needs another model and a judge"),
    ("--tasks win --against POLICY --judge POLICY", "is not a reward model"),
    ("--tasks win,text", "win and classes are measured by themselves"),
    ("--tasks win --against POLICY --judge JUDGE --data nowhere.jsonl", "nowhere.jsonl: no such file"),
])  # fmt: skip
def test_what_a_person_gets_wrong(
    arguments: str, said: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        arguments.replace("POLICY", str(files / "policy"))
        .replace("JUDGE", str(files / "judge"))
        .split()
    )
    data = [] if "--data" in words else ["--data", str(files / "prompts.jsonl")]
    assert (
        cli.main(
            ["eval", str(files / "policy"), *data, *words, "--backend", "torch", "--device", "cpu"]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told, told


def with_mood(files: Path, name: str, out: Path) -> str:
    """The model in a folder of its own, with a template that reads `mood` and writes it before the
    chat.
    """
    backend = load_backend("torch", "cpu")
    model = load_model(files / name, backend)
    before = "{% if mood is defined %}{{ mood }}{% endif %}"
    tokenizer = model.tokenizer.with_template(before + str(model.tokenizer.chat_template), ())
    out.mkdir()
    write_model(out, backend, model.cfg, model.params, tokenizer)
    return str(out)


def test_a_reference_is_told_what_the_model_is_told(files: Path, tmp_path: Path) -> None:
    """It was refused as one with another tokenizer, whatever the setting said."""
    policy = with_mood(files, "policy", tmp_path / "policy")
    common: dict[str, Any] = {"tasks": ("preference",), "data": str(files / "pairs.jsonl"), **ON}
    plain = od.evaluate(model=policy, reference=policy, **common)
    told = od.evaluate(
        model=policy, reference=policy, chat_template_kwargs={"mood": "calm"}, **common
    )
    # a model is as likely as itself, to the last bit
    assert plain["accuracy"] == told["accuracy"] == 0
    with pytest.raises(UserError, match="does not read 'mood'"):
        od.evaluate(
            model=policy,
            reference=str(files / "policy"),
            chat_template_kwargs={"mood": "calm"},
            **common,
        )


def test_a_judge_is_told_what_its_template_reads(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, judge = (with_mood(files, name, tmp_path / name) for name in ("policy", "judge"))
    read: list[str] = []

    def row(chat: Any, text: str, tokenizer: Any) -> Any:
        made = completion_row(chat, text, tokenizer)
        read.append(tokenizer.decode(made.prompt, skip_special=False))
        return made

    monkeypatch.setattr(preference, "completion_row", row)
    common: dict[str, Any] = {
        "model": policy,
        "against": policy,
        "tasks": ("win",),
        "limit": 3,
        "max_new_tokens": 4,
        "data": str(files / "prompts.jsonl"),
        "chat_template_kwargs": {"mood": "calm"},
        **ON,
    }
    od.evaluate(judge=judge, **common)
    assert (
        len(read) == 6
        and all(text.startswith("calm") for text in read)
        and not capsys.readouterr().err
    )
    read.clear()
    od.evaluate(judge=str(files / "judge"), **common)  # of another family: it can do without
    assert not any(text.startswith("calm") for text in read)
    assert "the chat template of the judge does not read mood" in capsys.readouterr().err
