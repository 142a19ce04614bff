"""Weights that are ruined: the loop goes back once, by itself, and comes to the same weights whatever
kills it. (The stages: test_recovery_stages.)
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.files import MANIFEST, sha256
from ondevice.runs import checkpoint
from ondevice.runs.events import read
from ondevice.runs.recovery import batch_number
from ondevice.seam.protocols import Backend, OptimSettings
from test_loop import Scripted, Stage, same

RUINS = 666.0  # the factor of a batch whose update makes a tensor not finite


class Ruining:
    """A trainer whose update ruins its first tensor where the batch says so."""

    def __init__(self, backend: Backend, inner: Any) -> None:
        self.backend, self.inner, self.ruins = backend, inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def gradient(self, batches: Any) -> None:
        self.ruins = any(float(batch["factor"]) == RUINS for batch in batches)
        self.inner.gradient(batches)

    def update(self, lr: float) -> dict[str, float]:
        out: dict[str, float] = self.inner.update(lr)
        if self.ruins:
            name, value = next(iter(self.inner.trainable.items()))
            spoilt = self.backend.array(np.full(value.shape, np.nan, np.float32))
            if self.backend.name == "torch":
                value.data.copy_(spoilt)
            else:
                self.inner.trainable[name] = spoilt
            assert self.inner.not_finite() == [name]
            out["ruined"] = 1.0
        return out


def ruining(backend: Backend) -> Backend:
    made = backend.trainer
    backend.trainer = lambda *given, **how: Ruining(backend, made(*given, **how))  # type: ignore[method-assign]
    return backend


class Shifted(Scripted):
    """What a stage learns from that never had a batch."""

    def __init__(self, without: int, factors: dict[int, float] | None = None) -> None:
        super().__init__(factors=factors)
        self.without = without

    def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
        return super().batch(step + (step >= self.without))


# each batch another: leaving out one changes what comes after
FACTORS = {n: 1.0 + n / 10 for n in range(12)}


@pytest.fixture
def stage(tmp_path: Path, backend: Backend) -> Stage:
    return Stage(tmp_path / "run", ruining(backend))


def test_numbers_are_counted_on_past_what_is_left_out() -> None:
    assert [batch_number(step, []) for step in range(4)] == [0, 1, 2, 3]
    assert [batch_number(step, [2]) for step in range(4)] == [0, 1, 3, 4]
    assert [batch_number(step, [3, 2]) for step in range(4)] == [0, 1, 4, 5]
    assert [batch_number(step, [0, 2]) for step in range(4)] == [1, 3, 4, 5]


@pytest.mark.parametrize("compiled", [pytest.param("auto", marks=pytest.mark.compiled), "never"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_overflows_is_told(backend: Backend, optimizer: str, compiled: str) -> None:
    """The gradient is finite, and the rate so large that the update is not; large weights alone are
    no ruin.
    """
    weights = {"a.weight": np.full((4, 4), 100, np.float32), "b": np.full(3, 1e38, np.float32)}
    settings = OptimSettings(
        optimizer=optimizer,
        weight_decay=0.1,
        clip_norm=0.0,
        muon_names=frozenset({"a.weight"} if optimizer == "muon" else ()),
    )

    def loss(ops: Any, params: Any, batch: Any) -> Any:
        return ops.sum(params["a.weight"] * batch["x"]) + ops.sum(params["b"] * 0.0), {
            "loss": (batch["x"], batch["x"])
        }

    trained = backend.trainer(
        loss, {n: backend.array(w) for n, w in weights.items()}, {}, settings, compile=compiled
    )
    out = trained.step([{"x": np.float32(1)}], 1e-3)
    assert (out["ruined"], out["skipped"], trained.not_finite()) == (0.0, 0.0, [])
    out = trained.step([{"x": np.float32(np.nan)}], 1e-3)
    assert (out["ruined"], out["skipped"], trained.not_finite()) == (0.0, 1.0, [])
    out = trained.step([{"x": np.float32(1)}], 3e38)
    assert (out["ruined"], out["skipped"]) == (1.0, 0.0) and "a.weight" in trained.not_finite()


def test_one_ruined_step_goes_back_at_half_the_rate_without_its_batch(
    stage: Stage, tmp_path: Path, backend: Backend
) -> None:
    got = stage.fit(Scripted(factors={**FACTORS, 5: RUINS}), save_every=2)
    other = Stage(tmp_path / "other", backend)
    other.fit(Shifted(5, FACTORS), steps=4, save_every=2)
    expected = other.fit(Shifted(5, FACTORS), save_every=2, learning_rate=0.5e-2, resume=True)
    assert same(got, expected)
    assert [e["step"] for e in stage.events("step")] == list(range(1, 9))
    assert [e["lr"] for e in stage.events("step")] == [1e-2] * 4 + [0.5e-2] * 4
    [told] = [e for e in stage.events("warning") if "Back to" in e["message"]]
    tensor = min(stage.model.params)
    assert told["tensor"] == tensor and told["batch"] == 5 and tensor in told["message"]
    assert "step 6" in told["message"] and "step-00000004" in told["message"]
    with np.load(told["file"]) as kept:
        assert {name: float(kept[name].reshape(-1)[0]) for name in kept} == {
            "0.factor": RUINS,
            "0.weights": 1.0,
        }
    record = checkpoint.load(stage.folder.checkpoints / "step-00000008").record
    assert (record["left_out"], record["rate_factor"]) == ([5], 0.5)
    assert record["rolled_back"] == {"at": 6, "to": 4, "tensor": tensor, "batch": 5}


def test_a_checkpoint_of_an_earlier_version_is_a_way_back(stage: Stage) -> None:
    """It does not say that it is sound: it is measured when it is gone back to, not thrown away for
    the start.
    """
    stage.fit(Scripted(factors=FACTORS), steps=4, save_every=2)
    for path in checkpoint.steps(stage.folder.checkpoints):
        record = json.loads((path / checkpoint.RECORD).read_text())
        for name in (
            "sound",
            "measured",
            "score",
            "last_update",
            "left_out",
            "rate_factor",
            "rolled_back",
            "changes",
        ):
            del record[name]
        (path / checkpoint.RECORD).write_text(json.dumps(record))
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][checkpoint.RECORD] = {
            "size": (path / checkpoint.RECORD).stat().st_size,
            "sha256": sha256(path / checkpoint.RECORD),
        }
        (path / MANIFEST).write_text(json.dumps(manifest))
    stage.fit(Scripted(factors={**FACTORS, 5: RUINS}), save_every=0, resume=True)
    [told] = [e for e in stage.events("warning") if "Back to" in e["message"]]
    assert "step-00000004" in told["message"] and told["batch"] == 5


def test_before_the_first_checkpoint_it_goes_back_to_the_start(
    stage: Stage, tmp_path: Path, backend: Backend
) -> None:
    got = stage.fit(Scripted(factors={**FACTORS, 0: RUINS}), save_every=4)
    other = Stage(tmp_path / "other", backend)
    assert same(got, other.fit(Shifted(0, FACTORS), save_every=4, learning_rate=0.5e-2))
    assert [e["step"] for e in stage.events("step")] == list(range(1, 9))


def test_a_start_that_the_loop_took_is_loaded_again_to_go_back_to_it(
    stage: Stage, tmp_path: Path, backend: Backend
) -> None:
    expected = Stage(tmp_path / "held", backend).fit(Scripted(factors={**FACTORS, 0: RUINS}))
    stage.restart = lambda: Stage(tmp_path / "again", backend).model.params
    assert same(stage.fit(Scripted(factors={**FACTORS, 0: RUINS})), expected)
    assert [e["checkpoint"] for e in stage.events("resume")] == [None]


def test_a_start_that_has_changed_is_not_loaded_again(
    stage: Stage,
) -> None:
    def check() -> None:
        raise UserError("has changed since the stage began", where="model")

    stage.check = check
    stage.restart = lambda: pytest.fail("it is another one")
    with pytest.raises(UserError, match="has changed since the stage began"):
        stage.fit(Scripted(factors={**FACTORS, 0: RUINS}))


def test_ten_steps_without_a_finite_gradient_go_back_to_before_what_led_there(stage: Stage) -> None:
    """The weights may be finite and too large for anything: it is the update before the ten that is
    left out, and no checkpoint of good weights makes room for those of the ten."""
    bad = {n: float("nan") for n in range(5, 15)}
    batches = {**FACTORS, **bad}

    class Healed(Scripted):
        def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
            if step == 15:
                self.factors = FACTORS
            return super().batch(step)

    stage.fit(Healed(factors=batches), save_every=2, steps=20, eval_every=1)
    [told] = [e for e in stage.events("warning") if "Back to" in e["message"]]
    assert told["batch"] == 4 and told["tensor"] is None and "step-00000004" in told["message"]
    assert "10 steps in a row" in told["message"]
    assert len(stage.events("step")) == 20


def test_the_second_time_it_stops_with_one_line_and_a_lower_rate_goes_on(stage: Stage) -> None:
    bad = {**FACTORS, **{n: RUINS for n in range(5, 40)}}
    with pytest.raises(
        UserError, match="gone back once already; step-00000004 is the newest.*--learning_rate"
    ) as said:
        stage.fit(Scripted(factors=bad), steps=20, save_every=2)
    assert min(stage.model.params) in str(said.value) and "batch 6" in str(said.value)
    assert stage.kept()[-1] == 4
    for step in stage.kept():
        assert all(np.isfinite(value).all() for value in stage.weights_of(step).values())
    with pytest.raises(
        UserError, match="gone back once already"
    ):  # once is once, in the next process too
        stage.fit(Scripted(factors=bad), steps=20, save_every=2, resume=True)
    stage.fit(Scripted(factors=FACTORS), steps=20, save_every=2, resume=True, learning_rate=1e-3)
    assert [e["step"] for e in stage.events("step")] == list(range(1, 21))


def test_what_a_person_has_changed_stays_changed_when_the_stage_goes_back(stage: Stage) -> None:
    """To a checkpoint that is older than the change: half of the new rate is what it goes on with,
    once.
    """
    stage.fit(Scripted(factors=FACTORS), steps=4, save_every=2)
    stage.fit(
        Scripted(factors={**FACTORS, 5: RUINS}),
        save_every=0,
        resume=True,
        learning_rate=2e-3,
        changed={"learning_rate": (1e-2, 2e-3)},
    )
    assert [e["lr"] for e in stage.events("step")] == [1e-2] * 4 + [1e-3] * 4
    record = checkpoint.load(checkpoint.path_at(stage.folder.checkpoints, 8)).record
    assert record["changes"] == [{"step": 4, "field": "learning_rate", "before": 1e-2, "now": 2e-3}]
    assert record["fingerprint"]["learning_rate"] == 2e-3
    assert (record["rate_factor"], record["left_out"], record["rolled_back"]["to"]) == (0.5, [5], 4)
    assert any("learning_rate is 0.002 from here on; it was 0.01" in text for text in stage.said)


def test_ten_in_a_row_that_are_the_datas_end_the_stage_with_one_line(stage: Stage) -> None:
    with pytest.raises(UserError, match="10 steps in a row.*learning_rate"):
        stage.fit(Scripted(factors={n: float("nan") for n in range(3, 60)}), steps=40, save_every=2)
    assert stage.kept() == [2]


def test_a_stopped_runs_checkpoint_is_a_way_back_too(stage: Stage) -> None:
    """A stop does not measure; it is measured when it is gone back to."""

    class Stopping(Scripted):
        def batch(self, step: int, micro_batch: int | None = None) -> list[dict[str, np.ndarray]]:
            if step == 4:
                stage.folder.stop.touch()
            return super().batch(step)

    with pytest.raises(Interrupted):
        stage.fit(Stopping(factors=FACTORS), eval_every=0, steps=12)
    [stopped] = stage.kept()
    stage.fit(Scripted(factors={**FACTORS, 8: RUINS}), eval_every=0, steps=12, resume=True)
    [told] = [e for e in stage.events("warning") if "Back to" in e["message"]]
    assert f"step-{stopped:08d}" in told["message"]


def test_weights_that_are_not_finite_to_begin_with_are_refused(stage: Stage) -> None:
    name = max(stage.model.params)
    shape = stage.model.params[name].shape
    stage.model.params[name] = stage.backend.array(np.full(shape, np.inf, np.float32))
    with pytest.raises(UserError, match=f"{name} holds numbers that are not finite"):
        stage.fit(Scripted())
    assert stage.kept() == []


KILLED = """
    import importlib, os, signal, sys
    sys.path.insert(0, TESTS)
    from pathlib import Path
    import numpy as np
    # before a child is forked, for each of them; an optimizer of torch imports the second at its
    # first step
    for module in {"torch": ("ondevice_torch.backend", "torch._dynamo"), "mlx": ("ondevice_mlx.backend",)}[sys.argv[2]]:
        importlib.import_module(module)
    from test_recovery import FACTORS, RUINS, ruining
    from test_loop import Scripted, Stage
    from ondevice.seam.select import load_backend
    from ondevice.runs import recovery

    folder, name, every = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def go(place, deadly=0):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen, armed = 0, False
        def hook(event, arguments):
            nonlocal seen
            if armed and event.startswith(("os.", "open", "shutil.", "fcntl.")):
                seen += 1
                if seen == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
        keep = recovery.keep_batch
        import ondevice.training.suspects as suspects
        def keeping(*given):   # from here on the stage goes back
            nonlocal armed
            armed = True
            return keep(*given)
        suspects.keep_batch = keeping
        sys.addaudithook(hook)
        stage = Stage(place, ruining(load_backend(name, "cpu", "float32")))
        got = stage.fit(Scripted(factors={**FACTORS, 5: RUINS}), save_every=2, keep=3, take_best=True,
                        resume=(place / "pretrain" / "events.jsonl").exists())
        np.savez(place / "got.npz", **got)
        os._exit(0)

    assert go(folder / "whole") == 0
    deadly = 1
    while go(folder / str(deadly), deadly) != 0:
        assert go(folder / str(deadly)) == 0
        deadly += every
    print(deadly)
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [21, 7])
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_killed_at_any_file_operation_of_going_back_the_weights_are_the_same(
    tmp_path: Path, name: str, every: int
) -> None:
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core"}[name])
    code = textwrap.dedent(KILLED).replace("TESTS", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), name, str(every)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 60, "the hook saw too few operations to mean anything"
    whole = dict(np.load(tmp_path / "whole" / "got.npz"))
    for deadly in range(1, last + 1, every):
        place = tmp_path / str(deadly)
        assert same(dict(np.load(place / "got.npz")), whole), deadly
        steps = [e for e in read(place / "pretrain" / "events.jsonl") if e["event"] == "step"]
        assert [e["step"] for e in steps] == list(range(1, 9)) and [e["lr"] for e in steps] == [
            1e-2
        ] * 4 + [5e-3] * 4
        assert checkpoint.load(checkpoint.path_at(place / "pretrain" / "checkpoints", 8)).record[
            "left_out"
        ] == [5]
