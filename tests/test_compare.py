"""Two models side by side: the same prompts, their answers, and what is said of bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.inference.side_by_side import render
from ondevice.seam.select import load_backend

PROMPTS = [
    {"prompt": "Anna 12"},
    {"question": "Rome?", "answer": "34"},
    {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "green"}]},
]
FEW = {"max_new_tokens": 6, "device": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    backend = load_backend("torch", "cpu")
    for name, seed in (("one", 0), ("other", 7)):
        small_stages.write(folder / name, backend, small_stages.config(), seed)
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    return folder


def test_each_answers_as_it_does_alone(files: Path, backend_name: str) -> None:
    found = od.compare(
        model=files / "one",
        other=files / "other",
        prompts=files / "asked.jsonl",
        backend=backend_name,
        **FEW,
    )
    assert [row["prompt"] for row in found["answers"]] == ["Anna 12", "Rome?", "red"]
    for side, name in (("first", "one"), ("second", "other")):
        alone = [
            od.generate(
                model=files / name,
                prompt=row["prompt"],
                chat=True,
                temperature=0.0,
                backend=backend_name,
                **FEW,
            )[0]
            for row in found["answers"]
        ]
        assert [row[side] for row in found["answers"]] == alone
    assert found["same"] < 3
    same = od.compare(
        model=files / "one",
        other=files / "one",
        prompts=files / "asked.jsonl",
        limit=2,
        backend=backend_name,
        **FEW,
    )
    assert same["same"] == len(same["answers"]) == 2


def test_what_a_folder_asks_for_and_does_not_get_is_said_of_each_model(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "one", model := tmp_path / "asks")
    asks = {"do_sample": True, "temperature": "\x1b[31m0.6", "min_new_tokens": 2}
    (model / "generation_config.json").write_text(json.dumps(asks))
    od.compare(
        model=model,
        other=files / "other",
        prompts=files / "asked.jsonl",
        limit=1,
        backend="torch",
        temperature=0.8,
        **FEW,
    )
    said = capsys.readouterr().err
    assert (
        f"compare: {model}: generation_config.json asks for min_new_tokens: what is drawn here does without"
        in said
    )
    assert "0.6; here the settings decide: temperature 0.8" in said and "\x1b" not in said
    assert str(files / "other") not in said
    od.generate(model=model, prompt="a", temperature=0.8, backend="torch", **FEW)
    assert (
        "generate: generation_config.json" in (said := capsys.readouterr().err)
        and "\x1b" not in said
    )


@pytest.mark.parametrize("width", [60, 100])
def test_what_models_write_is_shown_harmless(width: int) -> None:
    hostile = "\x1b[31mred\x07 \u202eleft [bold]b[/bold]\x00" + "long" * 60
    shown = render(
        {
            "models": ["a", "b\x1b"],
            "same": 0,
            "answers": [{"prompt": hostile, "first": hostile, "second": ""}],
        },
        width,
    )
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(
        shown
    ) and "[bold]b[/bold]" in shown.replace("\n", "")
    assert max(map(len, shown.splitlines())) <= width and "(nothing)" in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "none.jsonl"}, r"none\.jsonl"),
        ({"prompts": "empty.jsonl"}, r"empty\.jsonl"),
        ({"prompts": "bad.jsonl"}, r"bad\.jsonl"),
        ({"prompts": "long.jsonl"}, "context"),
        ({"prompts": ""}, "prompts: is missing"),
        ({"other": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    files: Path, changes: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"colour": "red"}\n')
    Path("long.jsonl").write_text(json.dumps({"prompt": "Anna " * small_stages.CONTEXT}))
    with pytest.raises(UserError, match=said) as error:
        od.compare(
            **{
                "model": "one",
                "other": "other",
                "prompts": "asked.jsonl",
                "backend": "torch",
                **FEW,
                **changes,
            }
        )
    assert "\n" not in str(error.value)


def test_a_model_that_cannot_answer_is_named(files: Path, tmp_path: Path) -> None:
    backend = load_backend("torch", "cpu")
    bare = small_stages.write(tmp_path / "bare", backend, replace(small_stages.config()))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="no chat template"):
        od.compare(
            model=files / "one", other=bare, prompts=files / "asked.jsonl", backend="torch", **FEW
        )
