"""Our side of tuning, preference and reasoning: the stages as they are, until their last step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from job import Job
from meter import Meter
from ours import backend_of, batch_settings, rollout_settings, stage_context

from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import DPOConfig, GRPOConfig, PPOConfig, RewardConfig
from ondevice.inference.generator import Generator
from ondevice.rewards.scorer import Rewards
from ondevice.rl.rollout import Sampler
from ondevice.runs.context import Context
from ondevice.seam.protocols import Backend
from ondevice.stages import dpo, grpo, ppo, reward, sft
from ondevice.training.sequence_logprobs import Scorer

# As in docs/results/smollm2.md
SUMS = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2"


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    backend = backend_of(job)
    listen(meter, backend)
    with stage_context(meter, backend) as ctx:
        stage(job)(ctx)
    meter.report()


def shared(job: Job) -> dict[str, Any]:
    return {
        "model": str(job.model),
        "steps": job.steps,
        "learning_rate": job.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": job.clip_norm,
        "eval_every": 0,
        "save_every": 0,
        "compile": job.compile,
    }


def stage(job: Job) -> Callable[[Context], Any]:
    """The stage with its settings."""
    name = job.what.partition("-")[0]
    makers = {
        "lora": _chats,
        "quantised": _chats,
        "vocabulary": _chats,
        "reward": _pairs,
        "dpo": _pairs,
        "ppo": _ppo,
        "sums": _sums,
        "grpo": _grpo,
    }
    return makers[name](job)


def _chats(job: Job) -> Callable[[Context], Any]:
    """Chats as a person tunes on them: the stage's defaults, but for what the job says."""
    shape = job.shape
    settings = shared(job)
    if job.what in ("lora", "quantised"):
        settings["adapter"] = "lora"
    if job.what == "quantised":
        settings["model"] = str(job.quantised)
    cfg = SFTConfig(
        **settings,
        data=str(job.file("chats.jsonl")),
        validation=str(job.file("held_chats.jsonl")),
        sequence_length=shape.length,
        **batch_settings(shape.rows),
    )
    return lambda ctx: sft.run(cfg, ctx)


def _pairs(job: Job) -> Callable[[Context], Any]:
    shape = job.shape
    settings = {
        **shared(job),
        "data": str(job.file("pairs.jsonl")),
        "validation": str(job.file("held.jsonl")),
        "sequence_length": shape.pair_length,
        **batch_settings(shape.pairs),
    }
    if job.what == "reward":
        rewarding = RewardConfig(**settings, center=0.0)
        return lambda ctx: reward.run(rewarding, ctx)
    preferring = DPOConfig(**settings)
    return lambda ctx: dpo.run(preferring, ctx)


def _rollout(job: Job) -> dict[str, Any]:
    return {
        **shared(job),
        "data": str(job.file("asked.jsonl")),
        "max_new_tokens": job.shape.new_tokens,
    }


def _ppo(job: Job) -> Callable[[Context], Any]:
    shape = job.shape
    cfg = PPOConfig(
        **_rollout(job),
        reward_model=str(job.file("judge")),
        prompts=shape.episodes,
        missing_eos_penalty=0.0,
        **rollout_settings(),
    )
    return lambda ctx: ppo.run(cfg, ctx)


def _grpo(job: Job) -> Callable[[Context], Any]:
    shape = job.shape
    rewards = "half" if job.what == "grpo-half" else "vowels"
    settings: dict[str, Any] = {
        **_rollout(job),
        "prompts": shape.prompts,
        "group_size": shape.group,
        "reward_file": f"{job.file('reward.py')}:{rewards}",
        **rollout_settings(),
    }
    if job.backend == "mlx":  # what the peer does; it scores and learns from so many rows at a time
        settings |= {"beta": 0.1, "loss_type": "grpo", **rollout_settings(shape.prompts)}
    cfg = GRPOConfig(**settings)
    return lambda ctx: grpo.run(cfg, ctx)


def _sums(job: Job) -> Callable[[Context], Any]:
    """Sums of two numbers, six problems of eight samples, with LoRA."""
    shape = job.shape
    cfg = GRPOConfig(
        **shared(job),
        data=SUMS,
        adapter="lora",
        answer="last_number",
        rewards=("correct",),
        prompts=shape.prompts,
        group_size=shape.group,
        max_new_tokens=16,
        temperature=0.7,
        **rollout_settings(),
    )
    return lambda ctx: grpo.run(cfg, ctx)


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
        meter.parts.clear()  # what came before the first step: the reference of DPO
        meter.start()
        return made

    Generator.__init__ = unending  # type: ignore[method-assign]
    backend.trainer = trainer  # type: ignore[method-assign]


def _method(meter: Meter, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: meter.timed(part, method)(self, *args, **kwargs)


if __name__ == "__main__":
    main()
