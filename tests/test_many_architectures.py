"""Encoders, encoder-decoders and a backend's library's architectures that several processes train, as
one process does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import library_models
import many
import ondevice as od
import small_stages
from data_samples import TEXTS
from ondevice.seam.select import load_backend
from small_stages import WORDS
from test_many import NEAR, completions, losses, same_completions, same_folders

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
    """Name → (function, fields): what is hidden, texts with holes, the stages of either kind, and a
    mixture of experts and convolutions that are the library's."""
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 2))
    rows = [{"text": f"{a} is {b}", "label": b} for a in WORDS for b in ("red", "big")]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = small_stages.make(folder / "files", load_backend(backend, "cpu", "float32"))
    chats, pairs = str(files / "chats.jsonl"), str(files / "pairs.jsonl")
    for family in ("bert", "t5", "bart"):
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
    encoder, both, bart = (str(folder / family / "init/model") for family in ("bert", "t5", "bart"))
    experts, hybrid = (
        str(library_models.write(folder / kind, kind)) for kind in ("experts", "hybrid")
    )
    lora = {"adapter": "lora", "lora_rank": 4}
    rollouts = {"steps": 4, "eval_every": 2, "prompts": 3, "group_size": 2, "max_new_tokens": 8}
    rollouts = {**loop, **rollouts, "rewards": ["length", "truncated"], "learning_rate": 1e-4}
    for name in ("batch_size", "eval_batches", "sequence_length", "micro_batch"):
        del rollouts[name]
    return {
        "bart": ("pretrain", {**loop, "model": bart, "data": str(folder / "text.txt")}),
        "text": ("sft", {**loop, "model": both, "data": chats}),
        "pairs": ("dpo", {**loop, "model": both, "data": pairs}),
        "rewarded": ("grpo", {**rollouts, "model": both, "data": str(files / "prompts.jsonl")}),
        "scores": ("reward", {**loop, "model": encoder, "data": pairs}),
        "experts": ("sft", {**loop, "model": experts, "data": chats}),
        "hybrid": ("dpo", {**loop, **lora, "model": hybrid, "data": pairs}),
        "masked": ("pretrain", {**loop, "model": encoder, "data": str(folder / "text.txt")}),
        "holes": ("pretrain", {**loop, "model": both, "data": str(folder / "text.txt")}),
        "classes": ("classify", {**loop, "model": encoder, "data": str(folder / "texts.jsonl")}),
    }


@pytest.mark.slow
def test_two_processes_train_other_architectures(tmp_path: Path, backend_name: str) -> None:
    jobs = jobs_of(tmp_path, backend_name)
    asked = [(fn, {**f, "out": str(tmp_path / f"two-{name}")}) for name, (fn, f) in jobs.items()]
    started = many.Launch(backend_name, 2, asked, tmp_path / "launch")
    for name, (function, fields) in jobs.items():
        getattr(od, function)(**fields, out=str(tmp_path / f"one-{name}"))
    done = started.wait()
    for n, (name, (function, fields)) in enumerate(jobs.items()):
        one, two = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        for rank in range(2):
            assert done[rank][n] == {"result": str(two / function / "model")}, started.shown(0)
        for event, near in (("step", NEAR), ("eval", 1e-5)):
            ours, theirs = losses(two, function, event), losses(one, function, event)
            assert len(ours) == (fields["steps"] if event == "step" else 2)
            np.testing.assert_allclose(ours, theirs, rtol=near, atol=near)
        if function == "grpo":
            same_completions(completions(one, function), completions(two, function), 4)
        # softmax takes no notice of what is added to all of its numbers
        folders = (of / function / "model" for of in (one, two))
        same_folders(*folders, 2e-5, without_effect=("key.bias", "k_proj.bias"))
    assert not started.shown(1)
