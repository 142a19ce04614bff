"""Model folders and runs to push, written without an array library. No test by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import models
from data_samples import small_tokenizer
from ondevice.models.decoder_config import DecoderConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.runs.folder import RunFolder, StageFolder

ALLOWED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def config() -> DecoderConfig:
    return models.config(
        "llama", vocab_size=small_tokenizer().vocab_size, max_position_embeddings=64
    )


def write_model(folder: Path, seed: int = 0) -> Path:
    """A folder such as a stage leaves, without a card."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config()
    (folder / "config.json").write_text(json.dumps(cfg.to_json("float32")))
    (folder / "generation_config.json").write_text("{}\n")
    small_tokenizer().save(folder)
    save_file(
        {n: np.asarray(w) for n, w in models.weights(cfg, seed).items()},
        str(folder / "model.safetensors"),
    )
    return folder


def write_stage(
    stage: StageFolder, number: int, *, model: str = "", done: bool = True, **marks: Any
) -> StageFolder:
    """A finished stage: events, a record, a model, and a checkpoint with the same weights."""
    stage.create()
    stage.lock.touch()
    write_model(stage.model, number)
    settings = {
        "data": "builtin",
        "seed": 0,
        "learning_rate": 1e-3,
        **({"model": model} if model else {}),
    }
    lines: list[dict[str, Any]] = [
        {
            "t": float(number),
            "event": "start",
            "step": 0,
            "stage": stage.name,
            "steps": 4,
            "config": settings,
            "versions": {"backend": "torch", "device": "cpu", "machine": "x86_64"},
        },
        {"t": float(number), "event": "data", "tokens": 1000},
    ]
    lines += [
        {
            "t": float(number),
            "event": "step",
            "step": s,
            "loss": 3.0 / s,
            "lr": 1e-3,
            "tokens": s * 10,
        }
        for s in range(1, 5)
    ]
    stage.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        stage.done.write_text(
            json.dumps(
                {
                    "fingerprint": {"data": "a91b84d24b607257"},
                    "marks": {"bits_per_byte": 1.5, **marks},
                    "notes": [],
                    "outcome": {"steps": 4, "tokens": 40, "loss": 0.75},
                    "seconds": 12.0,
                    "cpu_seconds": 10.0,
                    "peak_bytes": 10**8,
                    "answers": [{"prompt": "Leo lives in…", "answer": "a house"}],
                }
            )
        )
    return stage


def write_run(path: Path) -> RunFolder:
    """init, pretrain and sft, each done."""
    run = RunFolder(path)
    write_stage(run.stage("init"), 1)
    write_stage(run.stage("pretrain"), 2, model=str(path / "init" / "model"))
    write_stage(
        run.stage("sft"),
        3,
        model=str(path / "pretrain" / "model"),
        exact_match=0.5,
        by_kind={"sum": [1, 2]},
    )
    return run


def write_ratings(folder: Path) -> Path:
    """Three pairs: two rated by a person, one by a rule."""
    folder.mkdir(parents=True, exist_ok=True)
    with Ratings.open(folder, create=True) as ratings:
        for number, rater in enumerate(("anna", "anna", "simulated:right=1")):
            item = ratings.add(
                "a", f"question {number}", [Response("yes", "m1"), Response("no", "m2")], seed=0
            )
            ratings.vote(item, rater, "s", "ranked", [0])
    return folder / "ratings.db"


def contents(folder: Path) -> dict[str, bytes]:
    """Path → bytes of every plain file."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }
