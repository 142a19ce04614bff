"""Curves in bounded memory and the reader of events: nothing is lost, nothing void is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondevice.runs.events import EventWriter, read
from ondevice_tui.event_reader import FIELDS, Follower
from ondevice_tui.series import Series, histogram, smooth, spark

values = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan)), max_size=300)


@given(values, st.integers(1, 50))
def test_columns_keep_every_extreme_and_the_mean(points: list[float | None], columns: int) -> None:
    series = Series(limit=16)
    for i, value in enumerate(points):
        series.add(i, value)
    assert len(series) <= 16
    found = series.columns(columns)
    assert len(found.x) <= columns
    finite = [v for v in points if v is not None and math.isfinite(v)]
    shown_low = [v for v in found.low if not math.isnan(v)]
    if finite:
        assert min(shown_low) == min(finite)
        assert max(v for v in found.high if not math.isnan(v)) == max(finite)
    assert bool(found.gaps) == (len(finite) < len(points))


def test_a_spike_is_seen_among_a_million_points() -> None:
    series = Series()
    for i in range(100_000):
        series.add(i, 99.0 if i == 54_321 else 1.0)
    assert len(series) <= 4096 and series.points == 100_000
    found = series.columns(60)
    column = max(i for i, x in enumerate(found.x) if x <= 54_321)
    assert [high for high in found.high if high == 99.0] == [99.0] and found.high[column] == 99.0
    assert found.mean[0] == 1.0


def test_a_window_and_the_value_at_a_place() -> None:
    series = Series()
    for i in range(100):
        series.add(i, float(i))
    found = series.columns(1000, 90, 95)
    assert found.x == [90, 91, 92, 93, 94, 95] == found.mean
    assert series.at(42.5) == 42.0 and series.at(-5) == 0.0 and series.span == (0, 99)
    assert Series().at(1) is None and Series().span is None


def test_smoothing_has_no_bias_at_its_beginning() -> None:
    assert smooth([5.0] * 4, 0.9) == pytest.approx([5.0] * 4)
    out = smooth([1.0, math.nan, 3.0], 0.5)
    assert (
        out[0] == 1.0
        and math.isnan(out[1])
        and out[2] == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)
    )


def test_sparks() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert spark([2.0, 2.0], 8) == "▁▁" and spark([math.nan], 8) == "" and spark([1.0], 0) == ""


def follow(path: Path, most: int = 1 << 18) -> Follower:
    follower = Follower(path)
    while follower.read(most):
        pass
    return follower


def means(follower: Follower, name: str = "loss") -> dict[float, float]:
    found = follower.history.steps[name].columns(10_000)
    return dict(zip(found.x, found.mean, strict=True))


@pytest.mark.parametrize("most", [64, 1000, 1 << 18])
def test_the_history_is_what_events_read_says(tmp_path: Path, most: int) -> None:
    """Two resumes, one of which lies within what another made void; read in pieces of any size."""
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.emit("start", 0, steps=50)
        for first, last, mark in ((1, 30, 0.0), (21, 40, 1.0), (11, 50, 2.0)):
            if mark:
                events.emit("resume", first - 1)
            for step in range(first, last + 1):
                events.emit("step", step, loss=step + mark / 10)
    follower = follow(path, most)
    wanted = {event["step"]: event["loss"] for event in read(path) if event["event"] == "step"}
    assert means(follower) == wanted
    assert follower.history.step == 50 and follower.history.total == 50
    assert len(follower._cuts) == 2


def test_a_resume_that_comes_later_drops_what_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        for step in range(1, 31):
            events.emit("step", step, loss=float(step))
    follower = follow(path)
    assert len(means(follower)) == 30
    with EventWriter(path) as events:
        events.emit("start", 20)
        events.emit("resume", 20)
        events.emit("step", 21, loss=99.0)
    while follower.read():
        pass
    assert means(follower) == {**{float(i): float(i) for i in range(1, 21)}, 21.0: 99.0}


def test_a_torn_line_waits_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1, "loss": 2.0}\n{"event": "st')
    follower = follow(path)
    assert means(follower) == {1.0: 2.0}
    with open(path, "ab") as file:
        file.write(
            b'ep", "step": 2, "loss": 3.0}\nnonsense\n[1, 2]\n'
            + b'{"event": "step", "step": 3, "loss": NaN}\n'
        )
    while follower.read():
        pass
    assert follower.history.steps["loss"].points == 3
    assert follower.history.steps["loss"].columns(100).gaps == [3.0]
    assert any("damaged" in text for _, _, text in follower.history.notes)


def test_a_file_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "step", "step": 7, "loss": 1.0}\n' * 3)
    follower = follow(path)
    path.write_text('{"event": "step", "step": 1, "loss": 5.0}\n')
    while follower.read():
        pass
    assert means(follower) == {1.0: 5.0}
    path.unlink()
    assert follower.read() and not follower.history.steps
    assert not follower.read()


def test_what_is_odd_in_an_event_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    odd = {
        "event": "step",
        "step": 1,
        "loss": True,
        "text": "[/]",
        "list": [1],
        "reward": 0.5,
        **{f"f{i}": i for i in range(200)},
    }
    lines = [
        json.dumps(odd),
        '{"event": "step", "step": "x"}',
        '{"event": 3}',
        "{}",
        '"text"',
        "[" * 9000,
        '{"event": "warning"}',
        '{"event": "eval", "step": 2, "loss": "none"}',
    ]
    path.write_text("\n".join(lines) + "\n")
    history = follow(path).history
    assert set(history.steps) >= {"reward"} and not {"loss", "text", "list"} & set(history.steps)
    assert len(history.steps) <= FIELDS
    assert history.value("reward") is None or history.value("reward") == 0.5


def test_one_very_long_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    long = json.dumps({"event": "warning", "message": "x" * 3_000_000})
    path.write_text(long + '\n{"event": "step", "step": 1, "loss": 1}\n')
    assert means(follow(path)) == {1.0: 1.0}


def test_a_histogram_counts_every_value() -> None:
    assert histogram([0, 0, 0, 0, 1, 2], 3) == (0, 2, "█▃▃")
    assert histogram([0.0, 10.0, float("nan")], 4) == (0, 10, "█  █")
    assert histogram([5, 5], 4) == (5, 5, "█")
    assert histogram([], 4) == (0, 0, "")
    low, high, blocks = histogram([0.0] * 1000 + [1.0], 5)
    assert (low, high, blocks) == (0, 1, "█   ▁"), "one of a thousand is seen"
