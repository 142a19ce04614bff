"""GRPO computes the completions that add to the gradient, and no others: losses, gradients and
weights are those of all completions.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import gradients
import models
import ondevice as od
import small_stages
from ondevice.config.preference import GRPOConfig
from ondevice.data.shared_prompts import NO_SHARING
from ondevice.models.network import network
from ondevice.rewards.scorer import Scores
from ondevice.rl.advantages import group_advantages
from ondevice.rl.prompt_widths import PromptWidths
from ondevice.rl.rollout import Sampled
from ondevice.rl.step_times import StepTimes
from ondevice.runs.events import read
from ondevice.seam.group import ALONE
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.stages.grpo import GRPOFeed, Updates
from ondevice.training.policy_losses import grpo_loss

CFG = models.config("llama")
REWARDS = np.array([[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])


def rollout() -> list[Sampled]:
    """Three prompts, four completions of each; one completion of the third was cut."""
    rng = np.random.default_rng(0)
    out = []
    for n in range(12):
        prompt = np.random.default_rng(n // 4).integers(3, 97, 5 + n // 4).tolist()
        ids = rng.integers(3, 97, 2 + n % 5).tolist()
        out.append(Sampled(prompt, ids, n != 9, ""))
    return out


def updates(cfg: GRPOConfig) -> Updates:
    """What the stage makes of the rollout."""
    feed = GRPOFeed.__new__(GRPOFeed)
    old = [np.full(len(one.ids), -4.0, np.float32) for one in rollout()]
    feed.cfg, feed.reference, feed.prompt_rows = cfg, {}, NO_SHARING
    feed.widths = PromptWidths(lambda number: [5, 6, 7], 3, 3, 4)
    feed.chats = feed.pairs = SimpleNamespace(coef=0.0)  # type: ignore[assignment]
    feed.scorer = SimpleNamespace(network=network(CFG), logprobs=lambda *_: old)  # type: ignore[assignment]
    logps = feed._logps({}, rollout())
    return feed.updates(rollout(), group_advantages(REWARDS, "group").reshape(-1), logps)


def test_rewards_are_found_while_the_device_reads() -> None:
    read = threading.Event()

    def logprobs(*_: Any) -> str:
        read.set()
        return "read"

    def judge(*_: Any) -> Scores:
        assert read.wait(30), "the device waits for the rewards"
        return Scores(REWARDS.reshape(-1), {}, [], ["one is odd"])

    told: list[str] = []
    feed = GRPOFeed.__new__(GRPOFeed)
    feed.cfg, feed.reference = GRPOConfig(beta=0.1, updates=2), {}
    feed.scorer = SimpleNamespace(logprobs=logprobs)  # type: ignore[assignment]
    feed.ctx = SimpleNamespace(warn=told.append, group=ALONE)  # type: ignore[assignment]
    feed._judge = judge  # type: ignore[method-assign]
    times = StepTimes()
    scores, logps = feed._judged_and_read({}, [], rollout(), times)
    assert logps == {"old_logps": "read", "ref_logps": "read"} and told == scores.warnings
    assert set(times.numbers()) == {"scoring_seconds", "rewards_seconds"}


def learned_from(backend: Backend, cfg: GRPOConfig, batches: Any) -> tuple[float, Any]:
    """Loss and gradient of all the batches."""
    loss = partial(
        grpo_loss,
        model=network(CFG),
        clip_low=0.2,
        clip_high=0.3,
        beta=cfg.beta,
        sequence=cfg.loss_type == "gspo",
    )
    total, grads = 0.0, {}
    for batch in batches:
        value, found = gradients.by_name(
            backend, lambda p, b: loss(backend.ops, p, b)[0], models.weights(CFG), batch
        )
        total += value
        grads = {name: grads.get(name, 0.0) + g for name, g in found.items()}
    return total, grads


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["dapo", "grpo", "bnpo", "dr_grpo", "gspo"])
def test_what_adds_nothing_is_not_computed(backend: Backend, kind: str, masked: bool) -> None:
    several = {"updates": 2} if kind == "gspo" else {}
    partition = {"partition": 5} if kind == "bnpo" else {}
    cfg = GRPOConfig(loss_type=kind, mask_truncated=masked, **several, **partition)  # type: ignore[arg-type]
    made = updates(cfg)
    assert made.completions == (7 if masked else 8)
    parts = made.cuts[0](3)
    assert sum(len(batch["ids"]) for batch in parts) == 9
    loss, gradient = learned_from(backend, cfg, parts)
    want, slopes = learned_from(backend, cfg, made.everything(None))
    assert loss == pytest.approx(want, abs=1e-6)
    assert max(np.abs(slope).max() for slope in slopes.values()) > 1e-2
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-5, atol=1e-6, err_msg=name)


def test_with_a_distance_to_the_start_all_are_computed_that_are_learned() -> None:
    assert updates(GRPOConfig(beta=0.1)).completions == 12
    assert updates(GRPOConfig(beta=0.1, mask_truncated=True)).completions == 11


def test_completions_left_are_computed_in_few_shapes() -> None:
    cfg = GRPOConfig()
    [batch] = updates(cfg).cuts[0](None)
    assert len(batch["ids"]) == 8
    [every] = updates(cfg).everything(None)
    assert len(every["ids"]) == 12


def test_a_step_that_teaches_nothing_is_one_of_a_gradient_of_0(
    backend: Backend, tmp_path: Path
) -> None:
    """Weight decay goes on, figures of the rollout are told, and the next step learns."""
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    (tmp_path / "reward.py").write_text(
        "def same(completions, **columns): return [1.0] * len(completions)\n"
    )
    fields = small_stages.settings(
        files,
        "grpo",
        tmp_path / "r",
        backend.name,
        steps=2,
        warmup_steps=0,
        learning_rate=0.01,
        weight_decay=0.5,
        beta=0.0,
        rewards=(),
        reward_file=str(tmp_path / "reward.py"),
        micro_batch="auto",
    )
    od.grpo(**small_stages.alone(fields))
    before = load_file(files / "policy" / "model.safetensors")
    after = load_file(tmp_path / "r" / "grpo" / "model" / "model.safetensors")
    shrunk = (1 - 0.01 * 0.5) ** (2 * fields["updates"])
    for name, weight in before.items():
        want = weight * shrunk if weight.ndim > 1 else weight
        np.testing.assert_allclose(after[name], want, rtol=1e-5, err_msg=name)
    told = list(read(tmp_path / "r" / "grpo" / "events.jsonl"))
    [chosen] = [e["micro_batch"] for e in told if e["event"] == "device_batch"]
    assert chosen == 12  # by the rows of the rollout, not by those that are computed
    for step in (e for e in told if e["event"] == "step"):
        assert step["loss"] == step["grad_norm"] == step["clip_fraction"] == 0.0
        assert step["entropy"] is None and step["completion_length"] > 0
