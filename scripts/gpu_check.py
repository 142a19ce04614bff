"""Parity, compiled steps, decoding and speed on one device, into one JSON file. `scripts/gpu-check`
starts it; see there.

Each part runs in a process of its own with its share of the time, so that one that hangs or dies
costs no other. Exits with 1 where a part has failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ondevice as od
from ondevice.common.clock import ticks
from ondevice.models.network import network
from ondevice.models.tables import with_tables
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import models  # noqa: E402  (the small models of the tests)
import small_stages  # noqa: E402

# a share of all seconds each
PARTS = {"parity": 0.15, "stages": 0.35, "decoding": 0.15, "speed": 0.35}
FAMILIES = ("llama-gqa-tied", "mistral-window", "qwen2", "qwen3", "smollm3", "gemma3", "gpt2")
STEPS = 3
WITHIN = {"float32": 2e-4, "bfloat16": 5e-2}  # relative to the largest value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--backend", choices=("torch", "mlx"), default="torch")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--small", action="store_true", help="the least of each part")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        result = _CHECKS[chosen.part](chosen)
        chosen.out.write_text(json.dumps(result))
        return 0
    report: dict[str, Any] = {"asked": {**vars(chosen), "out": str(chosen.out)}, **about(chosen)}
    for part, share in PARTS.items():
        report[part] = run_part(chosen, part, share * chosen.seconds)
        state = "failed: " + report[part]["error"] if "error" in report[part] else "done"
        print(f"{part}: {state} ({report[part]['seconds']:.0f} s)", file=sys.stderr, flush=True)
        chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    print(chosen.out)
    return 1 if any("error" in report[part] for part in PARTS) else 0


def about(chosen: argparse.Namespace) -> dict[str, Any]:
    """The machine. Raises UserError where it has no such device."""
    from ondevice.benchmark.standard import machine

    return {"machine": machine(load_backend(chosen.backend, chosen.device, "auto"))}


def run_part(chosen: argparse.Namespace, part: str, seconds: float) -> dict[str, Any]:
    """What one part has found, or its "error", and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        words = [sys.executable, __file__, "--part", part, "--out", str(out)]
        words += ["--device", chosen.device, "--backend", chosen.backend]
        words += ["--seconds", str(seconds), *(["--small"] if chosen.small else [])]
        began = ticks()
        try:
            ran = subprocess.run(words, capture_output=True, text=True, timeout=2 * seconds + 60)
            error = ran.stderr.strip().splitlines()[-1:] if ran.returncode else []
        except subprocess.TimeoutExpired:
            error = [f"was not done within {2 * seconds + 60:.0f} seconds"]
        found: dict[str, Any] = {"seconds": ticks() - began}
        if out.is_file():
            found |= json.loads(out.read_text())
        elif not error:
            error = ["left no result"]
        if error:
            found["error"] = error[0]
    return found


# ---- parity ---------------------------------------------------------------------------------------------------------


def check_parity(chosen: argparse.Namespace) -> dict[str, Any]:
    """Losses and updated weights of a few steps on the device against torch on the CPU in float32."""
    names = FAMILIES[:1] if chosen.small else FAMILIES
    reference = load_backend("torch", "cpu", "float32")
    figures: dict[str, Any] = {}
    failed = []
    for dtype, within in WITHIN.items():
        backend = load_backend(chosen.backend, chosen.device, dtype)
        for name in names:
            apart = _apart(name, backend, reference)
            figures[f"{name} {dtype}"] = apart
            if not apart <= within:
                failed.append(f"{name} in {dtype}: {apart:.2g} apart, more than {within:g}")
    result: dict[str, Any] = {"largest_difference": figures}
    if failed:
        result["error"] = "; ".join(failed)
    return result


def _apart(name: str, backend: Backend, reference: Backend) -> float:
    """How far the losses and the norms of the gradients lie apart at most, relative to their size."""
    one, other = (_steps(name, each) for each in (backend, reference))
    return float(np.max(np.abs(one - other) / np.maximum(np.abs(other), 1e-3)))


def _steps(name: str, backend: Backend) -> np.ndarray:
    """(steps, 2) loss and norm of the gradient, the step compiled where the device's is."""
    cfg = models.config(name)
    params = {key: backend.array(w) for key, w in models.weights(cfg).items()}
    net = network(cfg)
    loss = partial(causal_lm_loss, model=net)
    trainer = backend.trainer(loss, params, {}, OptimSettings())
    rows = []
    for step in range(STEPS):
        batch = models.batch(cfg, seed=step, segments=True)
        out = trainer.step([with_tables(net, backend.ops, batch)], 1e-3)
        rows.append((out["loss"], out["grad_norm"]))
    return np.array(rows)


# ---- stages ---------------------------------------------------------------------------------------------------------


def check_stages(chosen: argparse.Namespace) -> dict[str, Any]:
    """Some steps of every stage, compiled where the device's are, in float32: the losses are those of
    the CPU.
    """
    reference = load_backend("torch", "cpu", "float32")
    with tempfile.TemporaryDirectory() as folder:
        files = small_stages.make(Path(folder) / "files", reference)
        (files / "text.txt").write_text("Anna has 12 red pears and Ben 34 green apples. " * 60)
        ours = _run_stages(files, Path(folder) / "ours", chosen.backend, chosen.device)
        theirs = _run_stages(files, Path(folder) / "cpu", "torch", "cpu")
    apart = {}
    for stage, losses in ours.items():
        far = np.abs(np.array(losses) - theirs[stage]) / np.maximum(np.abs(theirs[stage]), 1.0)
        apart[stage] = float(far.max())
    result: dict[str, Any] = {"losses": ours, "apart_from_the_cpu": apart}
    failed = [stage for stage, far in apart.items() if not far <= 1e-3]
    if failed:
        result["error"] = f"losses of {', '.join(failed)} are not the CPU's"
    return result


def _run_stages(files: Path, out: Path, backend: str, device: str) -> dict[str, list[float]]:
    """The losses of each stage's first steps. After a step that learns from sampled text the texts
    may differ, so that of these stages the first step alone counts."""
    common: dict[str, Any] = {
        "backend": backend,
        "device": device,
        "dtype": "float32",
        "save_every": 0,
    }
    plain: dict[str, Any] = {
        **common,
        "model": files / "policy",
        "eval_every": 0,
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        "steps": 4,
        "out": out,
    }
    od.pretrain(data=str(files / "text.txt"), sequence_length=48, batch_size=4, **plain)
    od.sft(data=str(files / "chats.jsonl"), sequence_length=48, batch_size=4, **plain)
    for stage, steps in (("reward", 4), ("dpo", 4), ("ppo", 1), ("grpo", 1)):
        fields = small_stages.settings(files, stage, out, backend)
        fields |= {**common, "steps": steps, "warmup_steps": 0}
        getattr(od, stage)(**fields)
    found = {}
    for file in sorted(out.glob("*/events.jsonl")):
        found[file.parent.name] = [e["loss"] for e in read(file) if e["event"] == "step"]
    return found


# ---- decoding and speed ---------------------------------------------------------------------------------------------


def check_decoding(chosen: argparse.Namespace) -> dict[str, Any]:
    """Greedy texts of a small model in float32 are the CPU's, token by token."""
    from ondevice.benchmark.cases import random_model
    from ondevice.inference.generator import Generator
    from ondevice.inference.next_token import Sampling

    prompts = [list(range(5, 5 + n)) for n in (3, 9, 17, 30)]
    texts = []
    for name, device in ((chosen.backend, chosen.device), ("torch", "cpu")):
        backend = load_backend(name, device, "float32")
        model = random_model("10M", backend)
        writer = Generator(model, backend, Sampling(16 if chosen.small else 64, 0.0))
        texts.append([done.ids for done in writer.run(model.params, prompts)])
    result: dict[str, Any] = {"tokens": sum(map(len, texts[0]))}
    if texts[0] != texts[1]:
        result["error"] = "greedy texts in float32 are not the CPU's"
    return result


def check_speed(chosen: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of every stage's standard case, at 10M and 135M in the device's own type."""
    sizes = ("10M",) if chosen.small else ("10M", "135M")
    return od.bench(
        sizes=sizes, seconds=chosen.seconds * 0.8, backend=chosen.backend, device=chosen.device
    )


_CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "parity": check_parity,
    "stages": check_stages,
    "decoding": check_decoding,
    "speed": check_speed,
}

if __name__ == "__main__":
    sys.exit(main())
