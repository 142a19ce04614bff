"""Our side of preference and reasoning: the stages as they are, listened to until their last step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Job, Meter
from ours import Listening

from ondevice.config.preference import DPOConfig, GRPOConfig, PPOConfig, RewardConfig
from ondevice.inference.generator import Generator
from ondevice.rewards.scorer import Rewards
from ondevice.rl.rollout import Sampler
from ondevice.runs.context import Context, RunSettings
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.stages import dpo, grpo, ppo, reward
from ondevice.training.sequence_logprobs import Scorer


class Done(Exception):
    """The last step is measured: what a stage measures after it, the peers do not."""


class UntilLast(Listening):
    def __init__(self, path: Path, meter: Meter, backend: Backend, steps: int) -> None:
        super().__init__(path, meter, backend)
        self.steps = steps

    def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
        super().emit(event, step, **fields)
        if event == "step" and step == self.steps:
            raise Done


def main() -> None:
    job, meter = Job.from_argv(), Meter()
    backend = load_backend(job.backend, "cpu", job.dtype)
    listen(meter, backend)
    with tempfile.TemporaryDirectory() as folder:
        stage = RunFolder(folder).create().stage("preference").create()
        events = UntilLast(stage.events, meter, backend, job.steps)
        ctx = Context(stage, backend, events, shared=RunSettings(StopRequest()))
        with suppress(Done):
            work(job)(ctx)
        events.close()
    device = {"device_peak": events.device_peak / 1e6} if job.backend == "mlx" else {}
    meter.report(**device)


def work(job: Job) -> Callable[[Context], Any]:
    """The stage with its settings."""
    shape = job.shape
    shared: dict[str, Any] = {
        "model": str(job.model),
        "steps": job.steps,
        "learning_rate": job.learning_rate,
        "schedule": "constant",
        "clip_norm": job.clip_norm,
        "eval_every": 0,
        "save_every": 0,
    }
    paired = {
        **shared,
        "data": str(job.file("pairs.jsonl")),
        "validation": str(job.file("held.jsonl")),
        "batch_size": shape.pairs,
    }
    if job.what == "reward":
        return lambda ctx: reward.run(RewardConfig(**paired, center=0.0), ctx)
    if job.what.startswith("dpo"):
        return lambda ctx: dpo.run(DPOConfig(**paired), ctx)
    rolled = {**shared, "data": str(job.file("asked.jsonl")), "max_new_tokens": shape.new_tokens}
    if job.what == "ppo":
        return lambda ctx: ppo.run(
            PPOConfig(
                **rolled,
                reward_model=str(job.file("judge")),
                prompts=shape.episodes,
                batch_size=shape.episodes,
                missing_eos_penalty=0.0,
            ),
            ctx,
        )
    made = GRPOConfig(
        **rolled,
        prompts=shape.prompts,
        group_size=shape.group,
        batch_size=shape.prompts * shape.group,
        rewards=(),
        reward_file=str(job.file("reward.py")),
    )
    if job.backend == "mlx":  # what the peer does; it scores and learns from so many rows at a time
        made = replace(made, beta=0.1, loss_type="grpo", batch_size=shape.prompts)
    return lambda ctx: grpo.run(made, ctx)


def listen(meter: Meter, backend: Backend) -> None:
    """Times the parts of a step, lets no completion stop before its limit, and begins to measure
    with the trainer.
    """
    for part, owner, name in (
        ("generation", Sampler, "draw"),
        ("rewards", Rewards, "score"),
        ("rewards", Scorer, "scores"),
        ("log-probabilities", Scorer, "logprobs"),
        ("log-probabilities", Scorer, "values"),
    ):
        setattr(owner, name, _method(meter, part, getattr(owner, name)))
    begin, make = Generator.__init__, backend.trainer

    def unending(self: Generator, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.stop_ids = set()

    def trainer(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        made.step = meter.timed("update", made.step)  # type: ignore[method-assign]
        meter.parts.clear()  # what came before the first step: the reference of DPO
        meter.start()
        return made

    Generator.__init__ = unending  # type: ignore[method-assign]
    backend.trainer = trainer  # type: ignore[method-assign]


def _method(meter: Meter, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: meter.timed(part, method)(self, *args, **kwargs)


if __name__ == "__main__":
    main()
