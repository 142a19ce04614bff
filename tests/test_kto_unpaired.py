"""KTO on single completions, each good or bad: TRL's unpaired preferences, and our own export of
them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.config.preference import DPOConfig
from ondevice.data.completion_batches import Row
from ondevice.data.messages import BadRow
from ondevice.data.preference_batches import TokenPair
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.datasets.preview import render
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.stages.dpo import advice, crossed_rows, pair_batch, sides_of
from ondevice.training.preference_losses import preference_objective
from test_losses import CLOSE, graded, on_device, squared

ASKED = [{"role": "user", "content": "Anna"}]
COMMON: dict[str, Any] = {"steps": 2, "batch_size": 4, "backend": "torch", "device": "cpu"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("kto") / "model",
        load_backend("torch", "cpu"),
        small_stages.config(),
    )


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def judged(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Anna {n // 2}",
            "completion": "12" if n % 2 else "34 red",
            "label": bool(n % 2),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("label", "good"), [(True, True), (False, False), (1, True), ("False", False), ("1", True)]
)
def test_rows_of_a_completion_and_its_label(label: Any, good: bool) -> None:
    want = {"prompt": ASKED, "completion": "12", "label": good}
    said = {"role": "assistant", "content": "12"}
    assert to_judged({"prompt": "Anna", "completion": "12", "label": label}) == want
    assert to_judged({"prompt": ASKED, "completion": [said], "label": label}) == want
    assert to_judged({"prompt": ASKED, "completion": [*ASKED, said], "label": label}) == want


@pytest.mark.parametrize(
    "row",
    [
        {"completion": "12", "label": True},
        {"prompt": "Anna", "completion": "12"},
        {"prompt": "Anna", "completion": "12", "label": "good"},
        {"prompt": "Anna", "completion": "12", "label": 0.5},
        {"prompt": "Anna", "completion": ASKED, "label": True},
    ],
)
def test_what_is_no_judged_completion(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        to_judged(row)


LABELS = [1, -1, -1, 1, 1, -1]
LENGTHS = [3, 1, 4, 2, 5, 3]


def rows_of() -> list[TokenPair]:
    rows = [Row(np.array([1, n]), np.arange(length) + 2) for n, length in enumerate(LENGTHS)]
    return [TokenPair(row, row, label=label) for row, label in zip(rows, LABELS, strict=True)]


@pytest.mark.parametrize(
    ("shift", "weights"),
    [(-0.4, (1.0, 1.0)), (0.4, (1.0, 1.0)), (0.4, (2.5, 0.75))],
    ids=["no drift", "drift", "weighed"],
)
def test_the_loss_is_trls(backend: Backend, shift: float, weights: tuple[float, float]) -> None:
    """Loss and slopes are those of TRL's KTOTrainer; a row that fills the batch counts nothing."""
    pytest.importorskip("trl")
    import trl_oracles as oracle

    rows, rng = rows_of(), np.random.default_rng(0)
    sides = sides_of(rows, True)
    assert len(sides) == 1
    lengths = [len(row.completion) for side in [*sides, crossed_rows(rows)] for row in side]
    ref = [-rng.random(n) - 0.5 for n in lengths]
    logps = [
        r + (rng.normal(size=n) if i < 6 else shift)
        for i, (r, n) in enumerate(zip(ref, lengths, strict=True))
    ]
    reference = np.array([r.sum() for r in ref], np.float32).reshape(2, -1)
    batch = pair_batch(range(6), rows, 8, sides=sides, reference=reference)
    batch["denominator"] = np.float32(6)
    assert batch.pop("losses") == 1
    ratios = [float(logps[r].sum() - ref[r].sum()) for r in range(6, 12)]
    batch["drift"] = np.float32(max(0.0, np.mean(ratios)))
    flat = np.full(len(batch["weights"]), -1.0, np.float32)
    for r in range(6):
        flat[batch["member"][r] > 0] = logps[r]
    arrays = on_device(backend, batch)
    loss, (slope,) = graded(
        backend,
        lambda x: preference_objective(
            backend.ops,
            x,
            arrays,
            kind="kto",
            beta=0.3,
            desirable=weights[0],
            undesirable=weights[1],
        )[0],
        flat,
    )
    wide = max(lengths)
    square = [squared(part, wide) for part in (logps[:6], ref[:6], logps[6:], ref[6:])]
    want, slopes, drift = oracle.kto(
        square[0],
        square[1],
        square[0] != 0,
        np.array(LABELS) > 0,
        square[2],
        square[3],
        square[2] != 0,
        beta=0.3,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    assert (drift > 0) == (shift > 0)
    np.testing.assert_allclose(loss, want, **CLOSE)
    mine = squared([slope[batch["member"][place] > 0] for place in range(6)], wide)
    np.testing.assert_allclose(mine, slopes, **CLOSE)


def test_dpo_learns_from_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "judged.jsonl", judged(60))
    od.dpo(model, data, out=str(tmp_path / "run"), loss_type="kto", **COMMON)
    said = capsys.readouterr().err
    assert "completions to learn from" in said and "of them good" in said
    copy = [
        json.loads(line) for line in (tmp_path / "run/dpo/pairs.jsonl").read_text().splitlines()
    ]
    assert len(copy) == 60 and {
        row["prompt"][0]["content"] for row in copy if row["held"]
    }.isdisjoint(row["prompt"][0]["content"] for row in copy if not row["held"])
    done = json.loads((tmp_path / "run/dpo/done.json").read_text())
    assert set(done["marks"]["judged"]) == {"accuracy", "margin"}
    # it is the same data
    od.dpo(model, data, out=str(tmp_path / "run"), loss_type="kto", resume=True, **COMMON)


def test_pairs_beside_them_are_two_completions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = write(tmp_path / "judged.jsonl", judged(40))
    pairs = write(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"Bert {n}", "chosen": "12", "rejected": "34"} for n in range(20)],
    )
    od.dpo(model, f"{single},{pairs}", out=str(tmp_path / "run"), loss_type="kto", **COMMON)
    copy = [
        json.loads(line) for line in (tmp_path / "run/dpo/pairs.jsonl").read_text().splitlines()
    ]
    assert len(copy) == 80 and sum(row["label"] for row in copy) == 40
    # pairs alone stay pairs
    od.dpo(model, pairs, out=str(tmp_path / "other"), loss_type="kto", **COMMON)
    assert "chosen" in json.loads((tmp_path / "other/dpo/pairs.jsonl").read_text().splitlines()[0])


def test_other_losses_say_what_takes_them(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "judged.jsonl", judged(40))
    for stage in (od.dpo, od.reward):
        with pytest.raises(UserError, match="dpo --loss-type kto takes it"):
            stage(model, data, out=str(tmp_path / "run"), **COMMON)
    with pytest.raises(BadRow, match="dpo --loss-type kto takes it"):
        to_pair(judged(1)[0])


def test_weights_even_out_what_is_out_of_balance(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Anna {n}", "completion": "12", "label": n % 4 == 0} for n in range(80)]
    data = write(tmp_path / "judged.jsonl", rows)
    od.dpo(model, data, out=str(tmp_path / "plain"), loss_type="kto", **COMMON)
    said = capsys.readouterr().err
    good, bad = (int(word) for word in re.findall(r"(\d+) of them good and (\d+) bad", said)[0])
    assert (
        f"{good} good completions count {good / bad:.3g} times as much as {bad} bad ones, where KTO is to have 1 "
        f"to 1.33: give --desirable-weight {bad / good:.3g} to {4 * bad / good / 3:.3g}, or --undesirable-weight "
        f"{0.75 * good / bad:.3g} to {good / bad:.3g}"
    ) in said
    od.dpo(
        model, data, out=str(tmp_path / "weighed"), loss_type="kto", desirable_weight=3.5, **COMMON
    )
    assert "times as much as" not in (said := capsys.readouterr().err)
    assert f"on {80 - good - bad} completions" in said
    first = [
        next(
            event["loss"]
            for event in read(tmp_path / run / "dpo" / "events.jsonl")
            if event["event"] == "eval"
        )
        for run in ("plain", "weighed")
    ]
    assert first[1] > 1.2 * first[0]  # the held-out loss is weighed too


@pytest.mark.parametrize(
    ("good", "bad", "weights", "far"),
    [
        (40, 40, {}, False),
        (38, 40, {}, False),
        (52, 40, {}, False),
        (30, 40, {}, True),
        (70, 40, {}, True),
        (30, 40, {"desirable_weight": 1.4}, False),
        (70, 40, {"undesirable_weight": 1.5}, False),
        (40, 40, {"undesirable_weight": 2.0}, True),
        (40, 0, {}, False),
        (0, 40, {}, False),
    ],
)
def test_how_far_is_far(good: int, bad: int, weights: dict[str, float], far: bool) -> None:
    assert bool(advice(good, bad, DPOConfig(loss_type="kto", **weights))) == far


def test_only_kto_has_weights() -> None:
    for name in ("desirable_weight", "undesirable_weight"):
        with pytest.raises(UserError, match="only kto weighs good and bad") as error:
            DPOConfig(**{name: 2.0}).check()
        assert error.value.where == name
        with pytest.raises(UserError):
            DPOConfig(loss_type="kto", **{name: 0.0}).check()


def test_one_label_alone_is_told_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "judged.jsonl", [{**row, "label": True} for row in judged(40)])
    od.dpo(model, data, out=str(tmp_path / "run"), loss_type="kto", **COMMON)
    assert "all of them have the same label" in capsys.readouterr().err


def test_our_own_export_is_learned_from_and_shown(model: Path, tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        for n in range(20):
            item = ratings.add(
                "b",
                [{"role": "user", "content": f"Anna {n}"}],
                [Response("12"), Response("34")],
                seed=0,
            )
            ratings.vote(item, "ann", "s", ranking=[0])
    file = str(tmp_path / "kto.jsonl")
    assert (
        od.manage_ratings(action="export", ratings=tmp_path / "r.db", file=file, form="kto")["rows"]
        == 40
    )
    shown = od.show_data(file, model)
    assert (shown["form"], shown["used"], shown["unused"]) == ("judged", 40, {})
    assert "read as judged (for dpo --loss-type kto)" in render(shown)
    od.dpo(model, file, out=str(tmp_path / "run"), loss_type="kto", **COMMON)
    with pytest.raises(UserError, match="dpo --loss-type kto learns"):
        od.manage_ratings(action="import", ratings=tmp_path / "n.db", file=file)
