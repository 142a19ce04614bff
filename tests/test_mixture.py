"""Several sources as one: how they are named, what an epoch of them holds, and every stage that
learns from them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.data.mixture import DataSource, Joined, Lazy, epoch_order, one_after_another, sources
from ondevice.data.rows import read
from ondevice.seam.select import load_backend
from test_resume import same as same_weights
from test_resume import weights
from warm_processes import killed_at_first_save

SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=4)


@pytest.mark.parametrize(
    "named, found",
    [
        ("chats.jsonl", [("chats.jsonl", None)]),
        ("builtin:tiny", [("builtin:tiny", None)]),
        ("builtin:2,a.jsonl:1", [("builtin", 2.0), ("a.jsonl", 1.0)]),
        ("builtin:tiny:.5,a.jsonl:0.5", [("builtin:tiny", 0.5), ("a.jsonl", 0.5)]),
        ("hub:me/set/main:train:3, a.jsonl:1", [("hub:me/set/main:train", 3.0), ("a.jsonl", 1.0)]),
        (
            "gym:sums?min_digits=1&ops=+,-:2,a.jsonl:1",
            [("gym:sums?min_digits=1&ops=+,-", 2.0), ("a.jsonl", 1.0)],
        ),
        ("gym:sums?ops=+,-", [("gym:sums?ops=+,-", None)]),
        ("builtin,gym:sums", [("builtin", None), ("gym:sums", None)]),
        ("none.jsonl,nor.jsonl", [("none.jsonl,nor.jsonl", None)]),
        ("builtin : 1e3 , a.jsonl:1,", [("builtin", 1000.0), ("a.jsonl", 1.0)]),
        ("", [("", None)]),
    ],
)
def test_sources_are_named_with_or_without_weights(
    named: str, found: list[tuple[str, float | None]]
) -> None:
    assert sources(named) == tuple(DataSource(*each) for each in found)


def test_a_file_may_be_called_like_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:1,b:2").touch()
    assert sources("a:1,b:2") == (DataSource("a:1,b:2"),)
    for name in ("a", "b"):
        Path(name).touch()
    assert sources("a,b") == (DataSource("a"), DataSource("b")) and sources("a:1,b:3")[
        1
    ] == DataSource("b", 3.0)
    assert sources(",".join(["a"] * 200)) == (DataSource("a"),) * 200
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources("~/a:1,~/b:1")[1] == DataSource(f"{tmp_path}/b", 1.0) and sources("~/a") == (
        DataSource(f"{tmp_path}/a"),
    )


@pytest.mark.parametrize(
    "named, match",
    [
        ("a:1,b:0", "b:0: 0 is not a weight"),
        ("a:1,b:-1", "b:-1: '-1' is not a weight"),
        ("a:inf,b:2", "a:inf: 'inf' is no"),
        ("a:2,b", "some of its sources have a weight"),
        ("a,none", "none: there is no such file"),
        ("builtin:tiny,none", "none: there is no such file"),
        ("a:２,b:1", "is not a weight"),
        ("a:1e999,b:1", "is not a weight"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_named(
    named: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).touch()
    with pytest.raises(UserError, match=match):
        sources(named)


@pytest.mark.parametrize("weights", [[1e9, 1.0], [1e23, 1.0], [1e-18, 1.0]])
def test_weights_out_of_all_proportion_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="would read one source"):
        epoch_order([30, 12], weights, 0)


def test_joined_arrays_are_one(tmp_path: Path) -> None:
    parts = [np.arange(3, dtype=np.uint16), np.arange(0), np.arange(10, 14)]
    whole = np.concatenate(parts)
    joined = Joined(parts, np.int32)
    assert len(joined) == 7 and joined[np.array([[6, 0], [3, 2]])].tolist() == [[13, 0], [10, 2]]
    for start in range(8):
        for end in range(start, 9):
            assert (
                joined[start:end].tolist() == whole[start:end].tolist()
                and joined[start:end].dtype == np.int32
            )


@given(SIZES, st.data())
def test_an_epoch_holds_every_row_and_the_shares_that_were_asked_for(
    sizes: list[int], data: st.DataObject
) -> None:
    given_weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(sizes), max_size=len(sizes)))
    order = epoch_order(sizes, given_weights, 3)
    firsts = np.cumsum([0, *sizes])
    counts = np.bincount(order, minlength=firsts[-1])
    assert counts.min() >= 1
    shares = np.array(given_weights) / sum(given_weights)
    parts = [counts[a:b] for a, b in zip(firsts, firsts[1:], strict=False)]
    assert all(part.max() - part.min() <= 1 for part in parts)
    for part, share in zip(parts, shares, strict=True):
        assert abs(part.sum() - share * len(order)) <= len(sizes) + 1
    alone = np.argmax(np.array(sizes) / shares)
    assert set(parts[alone]) == {1}, "the largest for its weight is taken once"
    half = order[: len(order) // 2]
    for n, part in enumerate(parts):
        assert abs(((half >= firsts[n]) & (half < firsts[n + 1])).sum() - part.sum() / 2) <= len(
            sizes
        )
    assert (epoch_order(sizes, given_weights, 3) == order).all()


def test_one_source_is_itself_and_without_weights_each_row_comes_once() -> None:
    assert epoch_order([4], [0.3], 0).tolist() == [0, 1, 2, 3]
    assert sorted(epoch_order([3, 5], [None, None], 0)) == list(range(8))
    assert sorted(one_after_another([["a"], [], ["b", "c"]])) == ["a", "b", "c"]


def test_lazy_items_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []
    rows = Lazy(lambda n: made.append(n) or n * n, np.array([3, 1, 2]))  # type: ignore[func-returns-value]
    assert (
        len(rows) == 3
        and not made
        and rows[-1] == 4
        and list(rows[1:]) == [1, 4]
        and made == [2, 1, 2]
    )
    with pytest.raises(IndexError):
        rows[3]


def test_a_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(5)) + "no row at all\n" * 5)
    assert [row["text"] for row, _ in read(file, limit=5)] == [f"row {n}" for n in range(5)]
    with pytest.raises(UserError, match="not JSON"):
        list(read(file, limit=6))
    (tmp_path / "long.txt").write_text("a line\n" * 400_000)
    parts = [row["text"] for row, _ in read(tmp_path / "long.txt", limit=1)]
    assert len(parts) > 1 and "".join(parts) == "a line\n" * 400_000, "a document in parts is one"


# ---- stages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(
        tmp_path_factory.mktemp("mixture") / "files", load_backend("torch", device="cpu")
    )
    for name in ("prompts", "pairs", "chats"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            for key in ("prompt", "messages"):
                if isinstance(row.get(key), str):
                    row[key] = f"Oslo {row[key]}"
                elif key in row:
                    row[key][0]["content"] = f"Oslo {row[key][0]['content']}"
        (folder / f"other-{name}.jsonl").write_text("\n".join(map(json.dumps, rows[:12])))
    (folder / "text.txt").write_text("Anna lives in Rome. Ben lives in Oslo.\n\n" * 60)
    (folder / "other.txt").write_text("12 pears are red.\n" * 40)
    (folder / "labels.jsonl").write_text(
        "".join(json.dumps({"text": f"Anna {n}", "label": "ab"[n % 2]}) + "\n" for n in range(30))
    )
    (folder / "other-labels.jsonl").write_text(
        "".join(json.dumps({"text": f"Ben {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20))
    )
    return folder


def fields(files: Path, stage: str, out: Path, backend: str, **changes: Any) -> dict[str, Any]:
    """Stage `stage` on two sources, three of the first to one of the second."""
    mixed_of = {
        "pretrain": "text.txt:3,{}/other.txt:1",
        "classify": "labels.jsonl:3,{}/other-labels.jsonl:1",
        "sft": "chats.jsonl:3,{}/other-chats.jsonl:1",
        "reward": "pairs.jsonl:3,{}/other-pairs.jsonl:1",
        "ppo": "prompts.jsonl:3,{}/other-prompts.jsonl:1",
    }
    mixed_of |= {"dpo": mixed_of["reward"], "grpo": mixed_of["ppo"]}
    data = f"{files}/{mixed_of[stage].format(files)}"
    if stage in small_stages.STAGES:
        return small_stages.settings(files, stage, out, backend, data=data, steps=4, **changes)
    return {
        **small_stages.LOOP,
        "model": str(files / "policy"),
        "out": str(out),
        "data": data,
        "steps": 4,
        "batch_size": 4,
        "sequence_length": 32,
        "backend": backend,
        **changes,
    }


def told(out: Path, stage: str) -> dict[str, Any]:
    lines = (out / stage / "events.jsonl").read_text().splitlines()
    return next(event for event in map(json.loads, lines) if event["event"] == "data")


COUNTS = {
    "sft": ("chats", 33 + 11, "held_chats", 4),
    "classify": ("texts", 54 + 18, "held_texts", 5),
    "grpo": ("problems", 33 + 11, "held_problems", 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, backend",
    [
        *(
            (stage, "torch")
            for stage in ("pretrain", "sft", "classify", "reward", "dpo", "ppo", "grpo")
        ),
        ("sft", "mlx"),
        ("grpo", "mlx"),
    ],
)
def test_a_stage_learns_from_two_sources_and_is_resumed_exactly(
    files: Path, tmp_path: Path, stage: str, backend: str
) -> None:
    plain = fields(files, stage, tmp_path / "whole", backend)
    getattr(od, stage)(**plain)
    killed_at_first_save(stage, {**plain, "out": str(tmp_path / "broken")})
    getattr(od, stage)(**{**plain, "out": str(tmp_path / "broken")}, resume=True)
    assert same_weights(weights(tmp_path / "broken", stage), weights(tmp_path / "whole", stage))
    if COUNTS.get(stage):
        name, count, held_name, held = COUNTS[stage]
        found = told(tmp_path / "whole", stage)
        assert (found[name], found[held_name]) == (count, held)


@pytest.mark.slow
def test_another_weight_or_limit_is_another_result(files: Path, tmp_path: Path) -> None:
    plain = fields(files, "sft", tmp_path, "torch")
    od.sft(**plain)
    for change, told in (
        ({"data": plain["data"].replace(":3", ":2")}, "with other contents of data than now"),
        ({"limit": 5}, "with limit 0, not 5"),
    ):
        with pytest.raises(UserError, match=f"is complete, {told}"):
            od.sft(**{**plain, **change}, resume=True)
    pairs = {**fields(files, "dpo", tmp_path, "torch"), "limit": 20}
    od.dpo(**pairs)
    with pytest.raises(UserError, match="is complete, with sources .*none.jsonl"):
        od.dpo(**{**pairs, "data": f"{files}/pairs.jsonl:3,{files}/none.jsonl:1"}, resume=True)
    with pytest.raises(UserError, match="is complete, with limit 20, not 0"):
        od.dpo(**{**pairs, "limit": 0}, resume=True)


@pytest.mark.slow
def test_what_is_held_out_of_one_source_is_not_learned_from_another(
    files: Path, tmp_path: Path
) -> None:
    rows = (files / "prompts.jsonl").read_text().splitlines()
    for name, order in (("forth", rows), ("back", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(order))
    data = f"{tmp_path}/forth.jsonl,{tmp_path}/back.jsonl"
    od.grpo(
        **small_stages.settings(
            files, "grpo", tmp_path, "torch", data=data, steps=1, warmup_steps=0
        )
    )
    assert {name: told(tmp_path, "grpo")[name] for name in ("problems", "held_problems")} == {
        "problems": 48,
        "held_problems": 6,
    }
    assert (
        "6 problems are left out because they are held out too"
        in (tmp_path / "grpo/events.jsonl").read_text()
    )
    od.sample(
        str(files / "policy"),
        data=f"{tmp_path}/forth.jsonl:9,{tmp_path}/forth.jsonl:1",
        out=str(tmp_path),
        max_new_tokens=8,
        backend="torch",
    )
    [last] = [
        event
        for event in map(
            json.loads, (tmp_path / "sample" / "events.jsonl").read_text().splitlines()
        )
        if event["event"] == "step"
    ][-1:]
    assert last["step"] == 60, "thirty of each, none of them twice"


@pytest.mark.slow
def test_responses_of_another_run(files: Path, tmp_path: Path) -> None:
    """The second model too is named by its run's folder."""
    stage = tmp_path / "one" / "sft"
    stage.mkdir(parents=True)
    (stage / "done.json").write_text("{}")
    shutil.copytree(files / "policy", stage / "model")
    od.sample(
        str(files / "policy"),
        data=str(files / "prompts.jsonl"),
        other=str(tmp_path / "one"),
        prompts=4,
        out=str(tmp_path / "run"),
        max_new_tokens=8,
        backend="torch",
    )
    begun = next(
        event
        for event in map(
            json.loads, (tmp_path / "run/sample/events.jsonl").read_text().splitlines()
        )
        if event["event"] == "start"
    )
    assert begun["config"]["other"] == str(stage / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, name, count",
    [
        ("sft", "chats", 9),
        ("dpo", "pairs", None),
        ("grpo", "problems", 9),
        ("classify", "texts", 9),
        ("pretrain", "tokens", None),
    ],
)
def test_a_limit_holds_for_every_stage(
    files: Path, tmp_path: Path, stage: str, name: str, count: int | None
) -> None:
    data = fields(files, stage, tmp_path, "torch")["data"].partition(":3,")[0]
    counts = []
    for limit in (10, 0):
        getattr(od, stage)(
            **{**fields(files, stage, tmp_path / str(limit), "torch"), "data": data, "limit": limit}
        )
        counts.append(told(tmp_path / str(limit), stage)[name])
    assert counts[0] < counts[1] or stage == "pretrain" and counts[0] == counts[1], (
        "a text file is one document"
    )
    assert count is None or counts[0] == count
