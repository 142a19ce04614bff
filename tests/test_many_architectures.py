"""Encoders and encoder-decoders that several processes train, as one process does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import many
import ondevice as od
from data_samples import TEXTS
from small_stages import WORDS
from test_many import NEAR, losses, same_folders

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "device": "cpu",
}
STEPS = 20


def jobs_of(folder: Path, backend: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name → (function, fields): what is hidden, texts with holes, and classes of an encoder."""
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 2))
    rows = [{"text": f"{a} is {b}", "label": b} for a in WORDS for b in ("red", "big")]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for family in ("bert", "t5"):
        od.init(
            str(folder / "text.txt"), out=folder / family, family=family, backend=backend, **SMALL
        )
    loop = {
        "steps": STEPS,
        "batch_size": 5,
        "micro_batch": 2,
        "sequence_length": 48,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "warmup_steps": 2,
        "eval_every": 10,
        "eval_batches": 2,
        "save_every": 0,
        "backend": backend,
        "device": "cpu",
    }
    encoder, both = (str(folder / family / "init/model") for family in ("bert", "t5"))
    return {
        "masked": ("pretrain", {**loop, "model": encoder, "data": str(folder / "text.txt")}),
        "holes": ("pretrain", {**loop, "model": both, "data": str(folder / "text.txt")}),
        "classes": ("classify", {**loop, "model": encoder, "data": str(folder / "texts.jsonl")}),
    }


@pytest.mark.slow
def test_two_processes_train_other_architectures(tmp_path: Path, backend_name: str) -> None:
    jobs = jobs_of(tmp_path, backend_name)
    asked = [(fn, {**f, "out": str(tmp_path / f"two-{name}")}) for name, (fn, f) in jobs.items()]
    asked.append(("pretrain", {**jobs["masked"][1], "out": str(tmp_path / "refused")}))
    odd = {"MANY_FIRST": "many_odd", "MANY_ODD": str(len(jobs))}
    started = many.Launch(backend_name, 2, asked, tmp_path / "launch", own={1: odd})
    for name, (function, fields) in jobs.items():
        getattr(od, function)(**fields, out=str(tmp_path / f"one-{name}"))
    done = started.wait()
    for n, (name, (function, _)) in enumerate(jobs.items()):
        one, two = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        for rank in range(2):
            assert done[rank][n] == {"result": str(two / function / "model")}, started.shown(0)
        for event, near in (("step", NEAR), ("eval", 1e-5)):
            ours, theirs = losses(two, function, event), losses(one, function, event)
            assert len(ours) == (STEPS if event == "step" else 2)
            np.testing.assert_allclose(ours, theirs, rtol=near, atol=near)
        # softmax takes no notice of what is added to all of its numbers
        folders = (of / function / "model" for of in (one, two))
        same_folders(*folders, 2e-5, without_effect="key.bias")
    # other versions are refused before anything is begun, by number and by what differs
    assert done[0][-1] == done[1][-1]
    assert "process 1 of 2" in done[0][-1]["error"]
    assert "has ondevice 0.0.1, and the first process" in done[0][-1]["error"]
    assert not (tmp_path / "refused").exists()
    assert not started.shown(1)
