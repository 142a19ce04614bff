"""Each stage goes back by itself where its weights are ruined, and the figure that is told is that of
the very weights that a stage gives, whatever killed it.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.runs import checkpoint
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from test_recovery import RUINS, Ruining
from warm_processes import start


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(
        tmp_path_factory.mktemp("files") / "f", load_backend("torch", "cpu", "float32")
    )
    lines = [
        f"{word} {n} likes {n * 7 % 13} red pears in Oslo."
        for n in range(300)
        for word in small_stages.WORDS[:3]
    ]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def pretrain(files: Path, out: Path, backend: str = "torch", **changes: Any) -> dict[str, Any]:
    return {
        "model": str(files / "policy"),
        "data": str(files / "text.txt"),
        "out": str(out),
        "backend": backend,
        "device": "cpu",
        "steps": 12,
        "batch_size": 4,
        "sequence_length": 32,
        "learning_rate": 3e-3,
        "seed": 1,
        "schedule": "constant",
        "save_every": 4,
        "eval_every": 4,
        "eval_batches": 2,
        **changes,
    }


def done_of(out: Path, stage: str = "pretrain") -> dict[str, Any]:
    return json.loads((out / stage / "done.json").read_text())  # type: ignore[no-any-return]


def evals(out: Path, stage: str = "pretrain") -> dict[int, dict[str, Any]]:
    return {e["step"]: e for e in read(out / stage / "events.jsonl") if e["event"] == "eval"}


def loss_of(files: Path, model: Path, tmp_path: Path) -> float:
    """What the model measures: the held-out loss of a stage that begins with it and hardly learns."""
    out = tmp_path / f"measured-{model.parent.parent.name}-{model.name}"
    od.pretrain(**{**pretrain(files, out), "model": str(model), "steps": 1, "learning_rate": 1e-30})
    return float(done_of(out)["outcome"]["loss"])


def of_checkpoint(out: Path, step: int) -> Path:
    return out / "pretrain" / "checkpoints" / f"step-{step:08d}" / "model" / "model.safetensors"


# it gets worse
BEST = {"steps": 12, "learning_rate": 0.3, "take_best": True, "save_every": 2, "eval_every": 2}


@pytest.mark.slow
def test_the_figure_that_is_told_is_that_of_the_weights(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("last", {}), ("best", BEST)):
        out = tmp_path / name
        model = od.pretrain(**pretrain(files, out, **changes))
        told = done_of(out)["outcome"]
        assert (
            told["loss"] == told["value"] == evals(out)[told["measured"]]["loss"]
            and told["figure"] == "loss"
        )
        assert loss_of(files, model, tmp_path) == pytest.approx(told["loss"], abs=1e-6)
        assert f"loss {told['loss']:.4f}" in capsys.readouterr().err
        from ondevice.runs.folder import RunFolder
        from ondevice.runs.listing import stage_state

        assert (
            stage_state(RunFolder(out).stage("pretrain"))["numbers"]["heldout_loss"] == told["loss"]
        )
    assert told["measured"] < 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [BEST, {**BEST, "learning_rate": 1.0, "keep": 9}], ids=["last", "another"]
)
def test_a_damaged_best_is_named_and_what_is_taken_has_its_own_figure(
    files: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "r"
    od.pretrain(**pretrain(files, out, **changes))
    best = done_of(out)["outcome"]["measured"]
    file = of_checkpoint(out, best)
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    (out / "pretrain" / "done.json").unlink()
    shutil.rmtree(out / "pretrain" / "model")
    model = od.pretrain(**{**pretrain(files, out, **changes), "resume": True})
    told = done_of(out)["outcome"]
    assert told["measured"] != best and told["loss"] == evals(out)[told["measured"]]["loss"]
    assert (told["measured"] == 12) == (changes is BEST)
    assert loss_of(files, model, tmp_path) == pytest.approx(told["loss"], abs=1e-6)
    [said] = [
        e["message"]
        for e in read(out / "pretrain" / "events.jsonl")
        if e["event"] == "warning" and "the best on held-out data" in e["message"]
    ]
    assert (
        f"step-{best:08d}" in said
        and f"step {told['measured']}" in said
        and f"{told['loss']:.4f}" in said
    )


KILLED_AT_THE_END = """
    import os, signal, sys
    import ondevice as od
    from ondevice.runs import checkpoint
    import json
    fields, deadly = json.loads(sys.argv[1]), int(sys.argv[2])
    seen, armed, last = 0, False, f"step-{fields['steps']:08d}"
    def hook(event, arguments):
        global seen, armed
        if event == "os.rename" and str(arguments[1]).endswith(last):
            armed = True
        elif armed and event.startswith(("os.", "open", "shutil.", "fcntl.")):
            seen += 1
            if seen == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    od.pretrain(**fields)
"""


@pytest.mark.slow
def test_killed_between_the_last_checkpoint_and_the_end_the_result_is_the_same(
    files: Path, tmp_path: Path
) -> None:
    """At file operations after the last checkpoint has its name: the best, which it is, is taken
    whatever the link says, and no more checkpoints are kept than one asks for."""
    fields = pretrain(files, tmp_path / "whole", take_best=True, save_every=2, eval_every=2)
    whole = od.pretrain(**fields)
    told = done_of(tmp_path / "whole")["outcome"]
    assert told["measured"] == 12  # else this tests nothing
    kept = sorted(p.name for p in (tmp_path / "whole" / "pretrain" / "checkpoints").iterdir())
    for deadly in (1, 4, 9, 14, 20, 27, 36, 48):
        out = tmp_path / str(deadly)
        words = (json.dumps({**fields, "out": str(out)}), str(deadly))
        process = start("-c", textwrap.dedent(KILLED_AT_THE_END), *words)
        _, stderr = process.communicate()
        assert process.returncode == -9, stderr
        model = od.pretrain(**{**fields, "out": str(out), "resume": True})
        assert done_of(out)["outcome"] == told
        assert (model / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes()
        assert sorted(p.name for p in (out / "pretrain" / "checkpoints").iterdir()) == kept
        assert not [p for p in (out / "pretrain").iterdir() if p.name.startswith(".tmp-")]


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_the_curve_begins_once(
    files: Path, tmp_path: Path
) -> None:
    fields = pretrain(files, tmp_path / "r", save_every=0, eval_every=0, steps=4000)
    code = f"import ondevice as od; od.pretrain(**{fields!r})"
    process = start("-c", code)
    events = tmp_path / "r" / "pretrain" / "events.jsonl"
    while process.poll() is None and not (
        events.exists() and '"step", "step": 3,' in events.read_text()
    ):
        pass
    process.kill()
    process.communicate()
    assert not (tmp_path / "r" / "pretrain" / "checkpoints").exists()
    fields |= {"steps": 6, "resume": True}
    od.pretrain(**fields)
    assert [e["step"] for e in read(events) if e["event"] == "step"] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [pytest.param("auto", marks=pytest.mark.compiled), "never"])
def test_a_rate_beyond_all_measure_ends_with_one_line_and_a_lower_one_goes_on(
    files: Path, tmp_path: Path, backend_name: str, compiled: str
) -> None:
    fields = pretrain(
        files,
        tmp_path / "r",
        backend_name,
        steps=30,
        save_every=5,
        learning_rate=1e38,
        clip_norm=0.0,
        compile=compiled,
    )
    with pytest.raises(UserError, match="gone back once already.*--learning_rate"):
        od.pretrain(**fields)
    from safetensors.numpy import load_file

    for path in checkpoint.steps(tmp_path / "r" / "pretrain" / "checkpoints"):
        for name, value in load_file(path / "model" / "model.safetensors").items():
            assert np.isfinite(value).all(), (path, name)
    assert not (tmp_path / "r" / "pretrain" / "model").exists()
    assert list((tmp_path / "r" / "pretrain" / "ruined").glob("batch-*.npz"))
    model = od.pretrain(**{**fields, "resume": True, "learning_rate": 1e-3, "clip_norm": 1.0})
    told = done_of(tmp_path / "r")
    assert told["outcome"]["steps"] == 30 and told["fingerprint"]["learning_rate"] == 1e-3
    assert all(
        np.isfinite(value).all() for value in load_file(model / "model.safetensors").values()
    )
    said = [
        e["message"]
        for e in read(tmp_path / "r" / "pretrain" / "events.jsonl")
        if e["event"] == "warning"
    ]
    assert any("learning_rate is 0.001 from here on; it was 1e+38" in text for text in said)
    assert any("clip_norm is 1 from here on; it was 0" in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "classify", "reward", "dpo", "ppo", "grpo"])
def test_every_stage_goes_back(
    files: Path, tmp_path: Path, stage: str, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step's first update ruins a tensor, the first time that it is done."""
    once: list[int] = []

    def load(name: str, device: str = "auto", dtype: str = "auto") -> Backend:
        backend = load_backend(name, "cpu", "float32")
        made = backend.trainer

        class Third(Ruining):
            count = 0

            def gradient(self, batches: Any) -> None:
                self.count += 1
                per_step = {"ppo": 4, "grpo": 2}.get(stage, 1)
                spoil = self.count == 2 * per_step + 1 and not once
                once.extend([1] * spoil)
                factor = np.float32(RUINS if spoil else 0.0)
                super().gradient([{**batch, "factor": factor} for batch in batches])

        backend.trainer = lambda *given, **how: Third(backend, made(*given, **how))  # type: ignore[method-assign]
        return backend

    monkeypatch.setattr("ondevice.stages.runner.load_backend", load)
    fields = settings_of(files, stage, tmp_path / "r", backend_name)
    model = getattr(od, stage)(**fields)
    steps = [
        e["step"] for e in read(tmp_path / "r" / stage / "events.jsonl") if e["event"] == "step"
    ]
    assert once and steps == list(range(1, fields["steps"] + 1))
    [told] = [
        e
        for e in read(tmp_path / "r" / stage / "events.jsonl")
        if e["event"] == "warning" and "Back to" in e["message"]
    ]
    assert told["step"] == 2 and told["batch"] == 2 and Path(told["file"]).is_file()
    from safetensors.numpy import load_file

    assert all(
        np.isfinite(value).all() for value in load_file(model / "model.safetensors").values()
    )
    done = done_of(tmp_path / "r", stage)
    figures = evals(tmp_path / "r", stage)[done["outcome"]["measured"]]
    assert done["outcome"]["value"] == figures[done["outcome"]["figure"]]
    measured = [
        e["step"] for e in read(tmp_path / "r" / stage / "events.jsonl") if e["event"] == "eval"
    ]
    assert measured == sorted(set(measured))  # none is told twice
    if stage in ("ppo", "grpo"):
        assert done["outcome"]["figure"] == {"ppo": "score", "grpo": "reward"}[stage]
        lines = [
            json.loads(line)
            for line in (tmp_path / "r" / stage / "groups.jsonl").read_text().splitlines()
        ]
        assert [line["step"] for line in lines if not line.get("held_out")] == steps


def settings_of(files: Path, stage: str, out: Path, backend: str) -> dict[str, Any]:
    if stage not in ("sft", "classify"):
        return {**small_stages.settings(files, stage, out, backend), "steps": 5, "save_every": 2}
    common = {
        "model": str(files / "policy"),
        "out": str(out),
        "backend": backend,
        "device": "cpu",
        "steps": 5,
        "save_every": 2,
        "eval_every": 0,
        "eval_batches": 1,
        "batch_size": 4,
        "sequence_length": 32,
    }
    if stage == "sft":
        return {**common, "data": str(files / "chats.jsonl")}
    rows = [
        {"text": f"{word} {n}", "label": "even" if n % 2 else "odd"}
        for n in range(30)
        for word in ("Anna", "Ben")
    ]
    (out.parent / "classes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {**common, "data": str(out.parent / "classes.jsonl")}
