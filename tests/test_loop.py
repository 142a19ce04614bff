"""The loop every stage uses: schedules by hand, early stopping, the best checkpoint, gradients that
are not finite.

The losses are scripted: what is trained is one number a parameter, what is measured is what the
test says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from data_samples import small_tokenizer
from ondevice.common.errors import Interrupted
from ondevice.common.files import sha256
from ondevice.config.stages import PretrainConfig
from ondevice.models.model import Model
from ondevice.runs import checkpoint
from ondevice.runs.context import Context, ElapsedTime, RunSettings, StageStart
from ondevice.runs.events import EventWriter, read
from ondevice.runs.folder import RunFolder, StageFolder, StopRequest
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.training.loop import fit
from ondevice.training.lr_schedule import learning_rate
from ondevice.training.step_source import StepPlan

# ---- the learning rate ----------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    """Ten steps, two of them warm-up, peak 1: the rates written out."""
    cfg = PretrainConfig(steps=10, warmup_steps=2, learning_rate=1.0)

    def rates(**changes: Any) -> list[float]:
        return [learning_rate(step, replace(cfg, **changes)) for step in range(11)]

    assert rates(schedule="constant") == [0.5] + [1.0] * 10
    assert rates(schedule="linear") == pytest.approx(
        [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    )
    assert rates(schedule="linear", final_lr_fraction=0.2)[2::4] == pytest.approx([1, 0.6, 0.2])
    assert rates(schedule="cosine")[2::2] == pytest.approx(
        [1, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0]
    )
    assert rates(schedule="cosine", final_lr_fraction=0.1)[6] == pytest.approx(0.55)
    assert rates(schedule="wsd", decay_fraction=0.5) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    )
    assert rates(schedule="wsd", decay_fraction=0.0) == [0.5] + [1.0] * 10
    assert rates(schedule="linear", warmup_steps=0)[:2] == pytest.approx([1, 0.9])
    # the warm-up is longer than the run
    assert rates(schedule="cosine", warmup_steps=50)[9] == pytest.approx(0.2)


# ---- a stage whose losses are scripted ------------------------------------------------------------------------------

BEFORE = 9.0  # what is measured before the first step


class Scripted:
    """Both a source and what is held out. `factors`: the gradient's factor at each step, 1 where
    nothing is said.
    """

    batch_size = 1

    def __init__(self, held: Iterable[float] = (), factors: dict[int, float] | None = None) -> None:
        self.held, self.factors = list(held), factors or {}
        self.asked: list[int] = []

    def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
        self.asked.append(step)
        return [numbers(self.factors.get(step, 1.0))]

    def eval_batches(
        self, limit: int, micro_batch: int | None = None
    ) -> list[dict[str, np.ndarray]]:
        return [numbers(self.held.pop(0) if self.held else 1.0)]


def numbers(factor: float) -> dict[str, np.ndarray]:
    return {"factor": np.float32(factor), "weights": np.ones(1, np.float32)}


def scripted_loss(ops: Any, params: Any, batch: Any) -> Any:
    """Pulls every parameter to 0; in a measurement it tells the batch's number."""
    total = sum(ops.sum(p * p) for p in params.values())
    return total * batch["factor"], {"loss": (batch["factor"], ops.sum(batch["weights"]))}


class Stage:
    """A stage's folder, and as many goes at it as a test wants."""

    def __init__(self, path: Path, backend: Backend) -> None:
        cfg = models.config("llama", vocab_size=small_tokenizer().vocab_size)
        self.backend = backend
        params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
        self.model = Model(cfg, params, small_tokenizer(), path)
        self.folder: StageFolder = RunFolder(path).create().stage("pretrain").create()
        self.said: list[str] = []
        self.restart: Callable[[], Params] | None = None
        self.check: Callable[[], None] = lambda: None

    def fit(
        self,
        script: Scripted,
        *,
        resume: bool = False,
        changed: dict[str, tuple[float, float]] | None = None,
        **settings: Any,
    ) -> dict[str, np.ndarray]:
        cfg = PretrainConfig(
            **{
                "steps": 8,
                "schedule": "constant",
                "learning_rate": 1e-2,
                "warmup_steps": 0,
                "eval_every": 1,
                "save_every": 0,
                **settings,
            }
        )
        if not (resume and self.kept()):
            script.held.insert(0, BEFORE)
        stop = StopRequest()
        stop.begin(self.folder)
        with EventWriter(self.folder.events) as events:
            ctx = Context(
                self.folder,
                self.backend,
                events,
                shared=RunSettings(stop, say=self.said.append),
                start=StageStart(resume, check=self.check),
                changed=changed or {},
            )
            params = fit(self.model, scripted_loss, script, script, ctx, cfg, restart=self.restart)
        return {n: self.backend.numpy(p).copy() for n, p in params.items()}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in read(self.folder.events) if e["event"] == kind]

    def kept(self) -> list[int]:
        return [int(p.name[5:]) for p in checkpoint.steps(self.folder.checkpoints)]

    def weights_of(self, step: int) -> dict[str, np.ndarray]:
        file = self.folder.checkpoints / f"step-{step:08d}" / "model" / "model.safetensors"
        return {n: self.backend.numpy(p) for n, p in self.backend.load(file).items()}


@pytest.fixture
def stage(tmp_path: Path, backend: Backend) -> Stage:
    return Stage(tmp_path / "run", backend)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


# ---- measuring, stopping early, the best ----------------------------------------------------------------------------


def test_what_was_measured_before_the_first_step_is_told_and_kept(stage: Stage) -> None:
    """After a resume it is that of the stage's beginning; it is no measurement that could be the
    best.
    """
    stage.fit(Scripted([5, 4]), steps=2, save_every=1)
    assert [e["loss"] for e in stage.events("before")] == [BEFORE]
    assert [e["step"] for e in stage.events("eval")] == [1, 2]
    stage.fit(Scripted([3, 2]), steps=4, save_every=1, resume=True)
    assert len(stage.events("before")) == 1
    record = checkpoint.load(checkpoint.path_at(stage.folder.checkpoints, 4)).record
    assert record["before"]["loss"] == BEFORE and record["measured"]["loss"] == 2


def test_a_checkpoint_that_cannot_be_read_back_is_told_and_the_old_one_stands(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint.find_damage
    monkeypatch.setattr(
        checkpoint,
        "find_damage",
        lambda path: "a.bin has another hash" if path.name.endswith("4") else whole(path),
    )
    stage.fit(Scripted([5, 4, 3, 2, 1]), steps=4, save_every=1)
    assert (
        "pretrain: step-00000004 cannot be read back (a.bin has another hash): the ones before it stay"
        in stage.said
    )
    assert [e["step"] for e in stage.events("checkpoint")] == [1, 2, 3] and {2, 3} <= set(
        stage.kept()
    )


def test_patience_ends_the_stage_and_the_last_weights_are_its_result(stage: Stage) -> None:
    got = stage.fit(Scripted([5, 4, 3, 3.5, 3.2, 3.1, 1, 1]), patience=3)
    assert [e["loss"] for e in stage.events("eval")] == pytest.approx([5, 4, 3, 3.5, 3.2, 3.1])
    assert [e["step"] for e in stage.events("step")] == [1, 2, 3, 4, 5, 6]
    assert any("no better held-out loss in 3 measurements" in text for text in stage.said)
    assert stage.kept() == [6] and same(got, stage.weights_of(6))


def test_patience_is_reset_by_an_improvement_and_0_is_off(stage: Stage) -> None:
    stage.fit(Scripted([5, 6, 4, 6, 3, 6, 2, 6]), patience=2)
    assert len(stage.events("step")) == 8


def test_patience_0_never_stops(stage: Stage) -> None:
    stage.fit(Scripted([1, 2, 3, 4, 5, 6, 7, 8]))
    assert len(stage.events("step")) == 8


def test_take_best_gives_the_best_weights_not_the_last(stage: Stage) -> None:
    got = stage.fit(Scripted([5, 4, 3, 3.5, 3.2, 3.1, 3.3, 3.4]), take_best=True)
    assert same(got, stage.weights_of(3)) and not same(got, stage.weights_of(8))
    assert stage.kept() == [3, 8]  # 1 and 2 were the best of their time and made room
    assert (stage.folder.checkpoints / "best").resolve().name == "step-00000003"
    assert any("best checkpoint on held-out data, step 3" in text for text in stage.said)


def test_take_best_and_patience_after_a_resume(stage: Stage) -> None:
    """What was the best before the interruption is still known after it, and so is how long ago
    that was.
    """
    stage.fit(Scripted([5, 3, 3.5, 3.4]), steps=4, take_best=True, patience=4)
    got = stage.fit(Scripted([3.3, 3.2, 1, 1]), resume=True, take_best=True, patience=4)
    assert [e["step"] for e in stage.events("step")] == [1, 2, 3, 4, 5, 6]
    assert same(got, stage.weights_of(2))


def test_what_ended_early_stays_ended_when_it_is_resumed(stage: Stage) -> None:
    """Killed between its last checkpoint and its result: nothing is trained any further."""
    got = stage.fit(Scripted([5, 4, 4.5, 4.2, 1]), patience=2)
    again = stage.fit(Scripted([0.5]), resume=True, patience=2)
    assert [e["step"] for e in stage.events("step")] == [1, 2, 3, 4] and same(got, again)


class Steered(Scripted):
    """A feed whose factor grows by what it remembers."""

    memory = 1.0

    def plan_step(self, step: int, params: Any, number: int) -> StepPlan:
        self.memory += 0.5
        return StepPlan([lambda micro_batch: [numbers(self.memory)]], 1, {"memory": self.memory}, 1)

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, kept: Any) -> None:
        self.memory = kept["memory"]


def test_a_checkpoint_holds_what_the_next_work_follows_from_and_the_time_spent(
    stage: Stage,
) -> None:
    stage.fit(Steered(), steps=3)
    record = checkpoint.load(stage.folder.checkpoints / "step-00000003").record
    assert record["feed"] == {"memory": 2.5} and record["spent"]["cpu_seconds"] > 0
    stage.fit(Steered(), resume=True, steps=5)
    assert [e["memory"] for e in stage.events("step")] == [1.5, 2.0, 2.5, 3.0, 3.5]


def test_time_spent_goes_on_from_a_checkpoint() -> None:
    spent = ElapsedTime()
    spent.add({"seconds": 100.0, "cpu_seconds": 50.0})
    assert 100 <= spent.mapping()["seconds"] < 150 and 50 <= spent.mapping()["cpu_seconds"] < 100


def test_a_loss_that_is_not_a_number_is_never_the_best(stage: Stage) -> None:
    got = stage.fit(Scripted([float("nan"), 4, float("nan"), 5, 6, 7, 8, 9]), take_best=True)
    assert same(got, stage.weights_of(2))


def test_measured_saved_and_kept_when_it_was_asked_for(stage: Stage) -> None:
    """A save measures nothing: how often it is saved is the machine's to decide."""
    stage.fit(Scripted([9, 8, 7]), steps=10, eval_every=4, save_every=3, keep=3)
    assert [e["step"] for e in stage.events("eval")] == [4, 8, 10]
    assert [e["step"] for e in stage.events("checkpoint")] == [3, 6, 9, 10]
    assert stage.kept() == [6, 9, 10]
    record = checkpoint.load(checkpoint.path_at(stage.folder.checkpoints, 9)).record
    assert record["measured"] is None and record["sound"] and record["best_saved_step"] is None


def test_saves_of_a_stage_that_an_earlier_version_began_go_on_measuring(stage: Stage) -> None:
    """Otherwise its patience would end it at another step."""
    stage.fit(Scripted([9, 8]), steps=4, eval_every=4, save_every=2, patience=5)
    for path in checkpoint.steps(stage.folder.checkpoints):
        file = path / "trainer.json"
        record = json.loads(file.read_text())
        assert record.pop("saves_measure") is False
        file.write_text(json.dumps(record))
        manifest = path / "MANIFEST.json"
        listed = json.loads(manifest.read_text())
        listed["files"]["trainer.json"] = {"size": file.stat().st_size, "sha256": sha256(file)}
        manifest.write_text(json.dumps(listed))
    stage.fit(Scripted([8, 7, 6]), steps=10, eval_every=4, save_every=2, patience=5, resume=True)
    assert [e["step"] for e in stage.events("eval")] == [4, 6, 8, 10]


def test_a_source_is_asked_for_each_step_once_and_never_past_the_end(stage: Stage) -> None:
    script = Scripted()
    stage.fit(script)
    assert script.asked == list(range(8))


# ---- stops ----------------------------------------------------------------------------------------------------------


def test_a_stop_saves_the_step_and_going_on_ends_the_same(
    stage: Stage, tmp_path: Path, backend: Backend
) -> None:
    class Stopping(Scripted):
        def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
            if step == 4:  # asked for ahead, while step 3 is running
                stage.folder.stop.touch()
            return super().batch(step)

    with pytest.raises(Interrupted, match="saved"):
        stage.fit(Stopping())
    [stopped] = stage.kept()
    assert stopped in (3, 4, 5)
    got = stage.fit(Scripted(), resume=True)
    assert [e["step"] for e in stage.events("step")] == list(range(1, 9))
    assert same(got, Stage(tmp_path / "whole", backend).fit(Scripted()))


def test_a_save_file_asks_for_a_checkpoint_and_changes_nothing_else(
    stage: Stage, tmp_path: Path, backend: Backend
) -> None:
    class Asking(Scripted):
        def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
            if step == 4:  # asked for ahead, while step 3 is running
                stage.folder.save.touch()
            return super().batch(step)

    stage.folder.save.touch()  # one that an earlier run left
    got = stage.fit(Asking(), eval_every=3, patience=2, keep=9)
    saved, last = stage.kept()
    assert saved in (3, 4, 5) and last == 8 and not stage.folder.save.exists()
    other = Stage(tmp_path / "whole", backend)
    assert same(got, other.fit(Scripted(), eval_every=3, patience=2, keep=9)) and other.kept() == [
        8
    ]
    assert [e["step"] for e in stage.events("eval")] == [e["step"] for e in other.events("eval")]


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_is_skipped_told_and_counted(
    stage: Stage, tmp_path: Path, backend: Backend, bad: float
) -> None:
    got = stage.fit(Scripted(factors={2: bad, 5: bad}))
    warned = stage.events("warning")
    assert [e["step"] for e in warned] == [3, 6] and "not finite" in warned[0]["message"]
    assert [e["step"] for e in stage.events("step")] == list(range(1, 9))
    assert all(np.isfinite(value).all() for value in got.values())
    six = Stage(tmp_path / "six", backend).fit(Scripted(), steps=6)
    assert same(got, six)  # as if the two steps had not been
    lines = stage.folder.events.read_text().splitlines()
    assert all(json.loads(line) for line in lines) and "NaN" not in "".join(lines)


def test_nine_in_a_row_and_a_good_one_go_on_across_a_resume(stage: Stage) -> None:
    bad = {n: float("nan") for n in [*range(2, 11), *range(12, 15)]}
    stage.fit(Scripted(factors=bad), steps=6)
    stage.fit(Scripted(factors=bad), steps=16, resume=True)
    assert len(stage.events("step")) == 16 and len(stage.events("warning")) == 12


def test_steps_that_teach_nothing_are_told_at_once_and_again_where_they_go_on(stage: Stage) -> None:
    stage.fit(Scripted(factors={n: 0.0 for n in range(3)}), steps=5)
    assert [(e["step"], e["message"]) for e in stage.events("warning")] == [
        (3, "3 steps in a row taught nothing: the gradient is 0")
    ]
    assert not [line for line in stage.said if "to the last digit" in line]


class Masked(Scripted):
    def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
        return [{**batch, "weights": np.zeros(1, np.float32)} for batch in super().batch(step)]


@pytest.mark.parametrize(("steps", "told"), [(1, [1]), (2, [2]), (8, [3]), (120, [3, 100])])
def test_steps_without_a_token_to_learn_are_told(stage: Stage, steps: int, told: list[int]) -> None:
    stage.fit(Masked(), steps=steps, eval_every=0)
    warned = [
        e
        for e in stage.events("warning")
        if "no token of their batches is one to learn" in e["message"]
    ]
    assert [e["step"] for e in warned] == told


@pytest.mark.parametrize("held", [[BEFORE, BEFORE], [8, BEFORE], [BEFORE, 8]])
def test_a_loss_that_training_has_not_changed_is_told_at_the_first_measurement(
    stage: Stage, held: list[float]
) -> None:
    stage.fit(Scripted(held), steps=2)
    warned = [e["step"] for e in stage.events("warning") if "to the last digit" in e["message"]]
    assert warned == ([1] if held[0] == BEFORE else [])


def test_clipping_bounds_what_one_step_may_do(stage: Stage) -> None:
    """The norm that is told is the one before clipping."""
    norm = 2 * np.sqrt(
        sum(float((stage.backend.numpy(p) ** 2).sum()) for p in stage.model.params.values())
    )
    stage.fit(Scripted(), steps=1, clip_norm=0.5)
    assert stage.events("step")[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


# ---- whose the stage's start is -------------------------------------------------------------------------------------


def test_a_start_that_can_be_loaded_again_is_held_by_the_loop_alone(
    stage: Stage, tmp_path: Path
) -> None:
    expected = Stage(tmp_path / "held", stage.backend).fit(Scripted())
    start = dict(stage.model.params)
    before = {n: stage.backend.numpy(p).copy() for n, p in start.items()}
    stage.restart = lambda: pytest.fail("nothing asks for the start again")
    assert same(stage.fit(Scripted()), expected)
    assert not stage.model.params
    now = {n: stage.backend.numpy(p) for n, p in start.items()}
    # where an array library changes tensors in place, they are the very ones
    assert same(now, expected if stage.backend.name == "torch" else before)


def test_a_start_that_cannot_be_loaded_again_stays(stage: Stage) -> None:
    before = {n: stage.backend.numpy(p).copy() for n, p in stage.model.params.items()}
    stage.fit(Scripted())
    assert same({n: stage.backend.numpy(p) for n, p in stage.model.params.items()}, before)
