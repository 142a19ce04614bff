"""`--track`: what the events say, written by other programs' writers. TensorBoard's is read back by
TensorBoard itself; trackio's and Weights & Biases' where they are installed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.reports import tracker_writers, trackers
from ondevice.reports.tracker_writers import WRITERS, TrackedStage
from ondevice.reports.trackers import Tracker
from ondevice.runs.events import EventWriter, read
from ondevice.runs.folder import RunFolder, StageFolder

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "backend": "torch",
}


def needs(name: str) -> Any:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


class Fake:
    """Keeps what it is told, and fails at a step."""

    def __init__(self, stage: TrackedStage, *, rewrites: bool = False, fails_at: int = -1) -> None:
        self.stage, self.rewrites, self.fails_at = stage, rewrites, fails_at
        self.told = "a fake"
        self.calls: list[Any] = []

    def log(self, at: float, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise RuntimeError("kaboom\nand more")
        self.calls.append((step, dict(values)))

    def go_back(self, at: float, step: int) -> None:
        self.calls.append(("back", step))

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self, *, failed: bool) -> None:
        self.calls.append(("close", failed))


class Session:
    """A process of a stage, with a fake tracker."""

    def __init__(self, folder: StageFolder, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
        self.writers: list[Fake] = []
        self.warned: list[str] = []
        self.said: list[str] = []

        def make(stage: TrackedStage) -> Fake:
            self.writers.append(Fake(stage, **how))
            return self.writers[-1]

        monkeypatch.setitem(WRITERS, "wandb", make)
        self.tracker = Tracker("wandb", folder, self.warned.append, self.said.append)
        self.events = EventWriter(folder.events)
        self.events.listen(self.tracker.on_log)

    @property
    def calls(self) -> list[Any]:
        return self.writers[0].calls


def steps(events: EventWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        events.emit("step", step, loss=1 / step, note="no figure", flag=True, bad=float("nan"))
        if step % 2 == 0:
            events.emit("eval", step, loss=2 / step, by_kind={"sum": 0.5, "x": None})


def a_stage(tmp_path: Path) -> StageFolder:
    return RunFolder(tmp_path / "run").stage("sft").create()


def test_figures_have_names_and_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_stage(tmp_path)
    one = Session(folder, monkeypatch)
    one.events.emit("start", 0, stage="sft", steps=4, config={"learning_rate": 1e-3})
    steps(one.events, 1, 4)
    one.events.emit("checkpoint", 4)
    one.events.close()  # and is killed
    stage = one.writers[0].stage
    assert stage.name == "run/sft" and stage.config == {"learning_rate": 1e-3}
    assert stage.step is None and one.said == ["a fake"] and one.warned == []
    assert one.calls[0] == (1, {"train/loss": 1.0})
    assert (2, {"held-out/loss": 1.0, "held-out/by_kind.sum": 0.5}) in one.calls
    assert one.calls[-1] == "flush"
    # another process goes on from step 2: nothing is written twice, and the run is the same
    two = Session(folder, monkeypatch)
    two.events.emit("start", 2, stage="sft", steps=6, config={})
    two.events.emit("resume", 2)
    two.events.emit("eval", 2, loss=1.0)
    steps(two.events, 3, 6)
    two.events.emit("done", seconds=9.0, marks={"exact_match": 0.5})
    two.tracker.close(failed=False)
    assert two.writers[0].stage.ident == stage.ident and two.writers[0].stage.step == 2
    written = [call for call in two.calls if isinstance(call[0], int)]
    assert [step for step, values in written if "train/loss" in values] == [5, 6]
    assert [step for step, values in written if "held-out/loss" in values] == [6]
    assert written[-1][1] == {"result/seconds": 9.0, "result/exact_match": 0.5}
    assert two.calls[-1] == ("close", False)
    # a writer that can write again is told to go back, and is given these steps anew
    three = Session(folder, monkeypatch, rewrites=True)
    three.events.emit("start", 4, stage="sft", steps=6, config={})
    three.events.emit("resume", 4)
    three.events.emit("eval", 4, loss=0.5)
    steps(three.events, 5, 6)
    assert three.calls[0] == ("back", 4)
    assert [c[0] for c in three.calls[1:] if "train/loss" in c[1]] == [5, 6]
    assert [c[0] for c in three.calls[1:] if "held-out/loss" in c[1]] == [6], "4 is there"


def test_what_fails_is_told_once_and_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_stage(tmp_path)
    session = Session(folder, monkeypatch, fails_at=2)
    session.tracker._warn = lambda text: session.events.emit("warning", 2, message=text)
    session.events.emit("start", 0, stage="sft", config={})
    steps(session.events, 1, 5)
    session.events.close()
    session.tracker.close(failed=True)
    told = [e for e in read(folder.events) if e["event"] == "warning"]
    assert len(told) == 1 and "RuntimeError: kaboom)" in told[0]["message"]
    assert "training goes on without it" in told[0]["message"]
    assert sum(event["event"] == "step" for event in read(folder.events)) == 5
    assert [call[0] for call in session.calls] == [1]


def test_a_damaged_name_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "wandb.json"
    for text in ("{", "[]", '{"id": 3}', '{"id": "../x"}', '{"id": "' + "a" * 99 + '"}'):
        file.write_text(text)
        ident = trackers._ident(file)
        assert ident.isalnum() and len(ident) == 8 and trackers._ident(file) == ident


def test_a_missing_package_is_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker_writers, "find_spec", lambda name: None)
    out = tmp_path / "run"
    assert cli.main(["init", "--track", "trackio", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "trackio is not installed" in said and "trackio" in said.split("(")[1]
    assert len(said.strip().splitlines()) == 1 and not out.exists()
    with pytest.raises(UserError, match="not installed"):
        od.init(track="wandb", out=str(out))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw: tag → [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


@needs("tensorboard")
def test_tensorboard_takes_back_what_a_resume_undoes(tmp_path: Path) -> None:
    """Its own reader sees each step once, with the values that count."""
    folder = a_stage(tmp_path)
    for first, last, scale in ((1, 6, 1.0), (4, 8, 2.0)):
        said: list[str] = []
        tracker = Tracker("tensorboard", folder, pytest.fail, said.append)
        with EventWriter(folder.events) as events:
            events.listen(tracker.on_log)
            events.emit("start", first - 1, config={"learning_rate": 1e-3, "data": "a.txt"})
            if first > 1:
                events.emit("resume", first - 1)
            for step in range(first, last + 1):
                events.emit("step", step, loss=scale * step)
        tracker.close(failed=False)
    assert said == [f"TensorBoard: tensorboard --logdir {tmp_path / 'run'}"]
    found = scalars(folder.path / "trackers" / "tensorboard")["train/loss"]
    assert found == [(s, float(s)) for s in (1, 2, 3)] + [(s, 2.0 * s) for s in range(4, 9)]


@needs("tensorboard")
@pytest.mark.slow
def test_a_run_is_tracked_stopped_and_resumed(tmp_path: Path) -> None:
    """Through `od.…`: the figures are those of the events, and a resume goes on with the same files."""
    text = tmp_path / "text.txt"
    text.write_text("a small house on a hill. " * 400)
    run = tmp_path / "run"
    start = od.init(data=str(text), out=str(run), track="tensorboard", **TINY)
    assert scalars(run / "init" / "trackers" / "tensorboard")["result/seconds"]
    settings: dict[str, Any] = {
        "out": str(run),
        "sequence_length": 16,
        "batch_size": 2,
        "eval_every": 2,
        "schedule": "constant",
        "warmup_steps": 0,
        "track": "tensorboard",
        "backend": "torch",
    }
    od.pretrain(start, str(text), steps=4, **settings)
    od.pretrain(start, str(text), steps=8, resume=True, **settings)
    found = scalars(run / "pretrain" / "trackers" / "tensorboard")
    steps_of = {
        e["step"]: e["loss"]
        for e in read(run / "pretrain" / "events.jsonl")
        if e["event"] == "step"
    }
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9))
    for step, loss in found["train/loss"]:
        assert loss == pytest.approx(steps_of[step], rel=1e-6)
    held_out = [step for step, _ in found["held-out/loss"]]
    assert held_out == sorted(set(held_out)) and 8 in held_out


@needs("trackio")
def test_trackio_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio.sqlite_storage
    import trackio.utils

    place = tmp_path / "trackio"
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", place)
    track_twice(tmp_path, "trackio")
    with sqlite3.connect(place / "ondevice.db") as database:
        rows = database.execute("select step, metrics, run_name from metrics").fetchall()
    assert sorted(step for step, _, _ in rows) == [1, 2, 3, 4]
    assert len({name for _, _, name in rows}) == 1 and rows[0][2].startswith("run/sft ")
    assert json.loads(rows[0][1]) == {"train/loss": 1.0}


@needs("wandb")
def test_wandb_is_offline_and_goes_on_with_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder, said = track_twice(tmp_path, "wandb")
    runs = sorted((folder.path / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    ident = json.loads((folder.path / "trackers" / "wandb.json").read_text())["id"]
    assert {path.name for path in runs} == {f"run-{ident}.wandb"} and runs
    assert "offline in" in said[0] and "wandb sync" in said[0]


def track_twice(tmp_path: Path, kind: str) -> tuple[StageFolder, list[str]]:
    """Three steps, then a resume from the second."""
    folder = a_stage(tmp_path)
    said: list[str] = []
    for first, last in ((1, 3), (3, 4)):
        tracker = Tracker(kind, folder, pytest.fail, said.append)
        with EventWriter(folder.events) as events:
            events.listen(tracker.on_log)
            events.emit("start", first - 1, config={"learning_rate": 1e-3, "columns": ["a"]})
            if first > 1:
                events.emit("resume", first - 1)
            for step in range(first, last + 1):
                events.emit("step", step, loss=1 / step)
        tracker.close(failed=False)
    return folder, said
