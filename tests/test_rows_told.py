"""What of a row is not used is said once, by `data show` and by the stage, from the same account."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.preference import RewardConfig
from ondevice.data.formats import to_label, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_batches import to_tokens
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.data.row_keys import CONTENT
from ondevice.data.rows import read
from ondevice.datasets.preview import render
from ondevice.seam.select import load_backend
from ondevice.stages.reward import score_batch
from test_rows_accounted import SAID, TOOL, USER

PAIR = {"prompt": "Anna", "chosen": "12", "rejected": "34"}
TRAINED: dict[str, Any] = {"steps": 1, "batch_size": 2, "sequence_length": 32}
STAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pretrain": (
        "text",
        {"text": "Anna likes pears and Bert likes figs and both like the sea"},
        TRAINED,
    ),
    "sft": ("chat", {"prompt": "Anna", "completion": "12"}, TRAINED),
    "classify": ("label", {"text": "Anna", "label": "a"}, TRAINED),
    "dpo": ("preference", PAIR, TRAINED),
    "reward": ("preference", PAIR, TRAINED),
    "sample": ("prompt", {"prompt": "Anna"}, {"prompts": 2, "max_new_tokens": 2}),
    "grpo": (
        "prompt",
        {"prompt": "Anna", "answer": "12"},
        {"steps": 1, "prompts": 2, "group_size": 2, "max_new_tokens": 2},
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("accounted") / "model",
        load_backend("torch", "cpu"),
        small_stages.config(),
    )


def with_more(row: dict[str, Any], file: Path) -> Path:
    """30 rows of this form, each with a name for itself and a column that nobody knows."""

    def named(name: str, value: str, n: int) -> str:
        return value if name == "answer" else f"{value} {n % 2 if name == 'label' else n}"

    file.write_text(
        "\n".join(
            json.dumps(
                {
                    **{name: named(name, value, n) for name, value in row.items()},
                    "id": n,
                    "nobody_knows_this": n,
                }
            )
            for n in range(30)
        )
    )
    return file


@pytest.mark.parametrize("stage", STAGES)
def test_stage_and_data_show_say_the_same_of_what_is_not_used(
    stage: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, row, settings = STAGES[stage]
    data = with_more(row, tmp_path / "rows.jsonl")
    shown = od.show_data(data, model, form=form)
    assert {name: found["count"] for name, found in shown["unused"].items()} == {
        "id": 30,
        "nobody_knows_this": 30,
    }
    said = [line for line in render(shown).splitlines() if "not used" in line]
    assert said == [f"not used: nobody_knows_this (30 rows, first {data}:1)"]
    capsys.readouterr()
    getattr(od, stage)(
        model, str(data), out=str(tmp_path / "run"), backend="torch", device="cpu", **settings
    )
    told = capsys.readouterr().err
    assert told.count(said[0]) == told.count("not used") == 1
    events = (tmp_path / "run" / stage / "events.jsonl").read_text()
    assert events.count("not used: nobody_knows_this") == 1


@pytest.mark.parametrize(
    ("row", "tasks"),
    [
        ({"text": "Anna likes pears"}, ()),
        ({"prompt": "Anna", "completion": "12"}, ()),
        ({"question": "Anna", "answer": "12"}, ("problems",)),
        (PAIR, ("preference",)),
    ],
)
def test_an_evaluation_says_it_too(
    row: dict[str, Any],
    tasks: tuple[str, ...],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = with_more(row, tmp_path / "rows.jsonl")
    more = (
        {"reference": str(model)}
        if tasks == ("preference",)
        else {"max_new_tokens": 2}
        if tasks
        else {}
    )
    od.evaluate(
        model=str(model), data=str(data), tasks=tasks, backend="torch", device="cpu", **more
    )
    assert (
        capsys.readouterr().err.count(f"not used: nobody_knows_this (30 rows, first {data}:1)") == 1
    )


def test_comparing_and_importing_say_it_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_more({"prompt": "Anna"}, tmp_path / "rows.jsonl")
    od.compare(
        model=str(model),
        other=str(model),
        prompts=str(data),
        limit=2,
        max_new_tokens=2,
        backend="torch",
        device="cpu",
    )
    assert "not used: nobody_knows_this (30 rows" in capsys.readouterr().err
    pairs = with_more(PAIR, tmp_path / "p.jsonl")
    done = od.manage_ratings(action="import", ratings=tmp_path / "r.db", file=str(pairs))
    assert (
        done["items"] == 30 and done["not_used"] == f"nobody_knows_this (30 rows, first {pairs}:1)"
    )


@pytest.mark.parametrize("name", sorted(CONTENT))
@pytest.mark.parametrize(
    ("convert", "row"),
    [
        (to_text, {"text": "a"}),
        (lambda row: to_label(row, "text", "label"), {"text": "a", "label": "x"}),
        (to_judged, {"prompt": "a", "completion": "b", "label": True}),
    ],
    ids=["text", "label", "judged"],
)
def test_what_carries_content_is_taken_up_by_texts_and_labels_or_the_row_is_bad(
    convert: Callable[[Any], Any], row: dict[str, Any], name: str
) -> None:
    values = {"history": [["x", "y"]], "tools": [TOOL], "functions": [TOOL["function"]]}
    try:
        made = convert({**row, name: values.get(name, "said")})
    except BadRow as error:
        assert name in str(error)
    else:
        assert made != convert(row)


def test_an_import_tells_of_margins_which_votes_do_not_have(tmp_path: Path) -> None:
    pairs = tmp_path / "p.jsonl"
    rows = [{**PAIR, "prompt": f"Anna {n}", "margin": 2, "strength": 2} for n in range(3)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    done = od.manage_ratings(action="import", ratings=tmp_path / "r.db", file=str(pairs))
    assert done["not_used"] == f"margin (3 rows, first {pairs}:1)"


def test_rows_tell_names_of_the_last_row_too(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n{"text": "b", "x": 1}')
    rows = read(data)
    for row, _ in rows:
        to_text(row)
    assert (
        rows.unused == {"x": (1, f"{data}:2")}
        and rows.telling() == f"not used: x (1 row, first {data}:2)"
    )


def test_strength_and_margin_of_a_file_reach_the_loss(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "Anna", "chosen": "12", "rejected": "34"}
    made = [
        to_pair({**pair, "strength": 2, "raters": ["ann"]}),
        to_pair({**pair, "margin": "-0.5"}),
        to_pair(pair),
    ]
    pairs = [to_tokens(row, small_tokenizer()) for row in made]
    batch = score_batch([0, 1, 2], pairs, 3, cfg=RewardConfig(strength_margin=0.3))
    assert batch["margin"].tolist() == pytest.approx([0.3, -0.5, 0])
    for name, value in (
        ("strength", 0),
        ("strength", True),
        ("margin", "wide"),
        ("margin", float("inf")),
    ):
        with pytest.raises(BadRow, match=name):
            to_pair({**pair, name: value})
    data = tmp_path / "pairs.jsonl"
    rows = [
        {**pair, "prompt": f"Anna {n}", "strength": 1 + n % 2, "margin": n % 3} for n in range(40)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    od.dpo(
        model,
        str(data),
        out=str(tmp_path / "run"),
        steps=1,
        batch_size=2,
        backend="torch",
        device="cpu",
    )
    assert (
        "the strength of 20 pairs and the margin of 26 pairs are not used"
        in capsys.readouterr().err
    )
    data.write_text("\n".join(json.dumps({**pair, "prompt": f"Anna {n}"}) for n in range(40)))
    with pytest.raises(UserError, match="strength_margin: no pair is of a strength above 1"):
        od.reward(
            model,
            str(data),
            out=str(tmp_path / "other"),
            strength_margin=0.5,
            backend="torch",
            device="cpu",
        )


def test_a_stage_that_wants_pairs_says_that_these_are_chats(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(json.dumps({"messages": [USER, SAID]}) for _ in range(200)))
    with pytest.raises(UserError, match="these are chats: sft takes them") as error:
        od.dpo(model, str(data), out=str(tmp_path / "run"), backend="torch", device="cpu")
    # nothing to mend in the rows
    assert "are bad" not in str(error.value) and "data show" in str(error.value.hint)


def test_chats_whose_answers_are_empty_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": ""}]}
        for n in range(20)
    ]
    file = tmp_path / "silent.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    od.sft(
        model,
        str(file),
        out=str(tmp_path / "run"),
        steps=1,
        batch_size=2,
        sequence_length=16,
        backend="torch",
        device="cpu",
    )
    assert (
        "18 of 18 chats have empty answers: of them the stop token alone is learned"
        in capsys.readouterr().err
    )
