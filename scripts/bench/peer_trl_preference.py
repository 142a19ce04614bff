"""TRL's RewardTrainer, DPOTrainer and GRPOTrainer on the same pairs, in the same order, and on the
same prompts.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from job import Job
from meter import Meter
from peer_transformers import Marking, arguments, load
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    with tempfile.TemporaryDirectory() as folder:
        make = {"reward": reward, "dpo": dpo, "grpo": grpo}[job.what.partition("-")[0]]
        make(job, meter, folder, AutoTokenizer.from_pretrained(job.model)).train()
    meter.report()


def reward(job: Job, meter: Meter, folder: str, tokenizer: Any) -> RewardTrainer:
    pairs = [
        {side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")}
        for pair in json.loads(job.file("pairs.json").read_text())
    ]
    model = AutoModelForSequenceClassification.from_pretrained(
        job.file("judge"), num_labels=1, dtype=torch.float32
    )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **settings(job, folder, job.shape.pairs), max_length=job.shape.pair_length
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[Marking(meter)],
    )
    trainer.data_collator = counting(trainer.data_collator, meter, "attention_mask")
    return trainer


def dpo(job: Job, meter: Meter, folder: str, tokenizer: Any) -> DPOTrainer:
    DPOTrainer._prepare_dataset = lambda self, dataset, *others: dataset  # ours are ids already
    args = DPOConfig(
        **settings(job, folder, job.shape.pairs),
        max_length=job.shape.pair_length,
        beta=0.1,
        precompute_ref_log_probs=job.what != "dpo-live",
    )
    trainer = DPOTrainer(
        model=load(job),
        args=args,
        processing_class=tokenizer,
        callbacks=[Marking(meter)],
        train_dataset=Dataset.from_list(json.loads(job.file("pairs.json").read_text())),
    )
    trainer.data_collator = counting(trainer.data_collator, meter, "completion_mask")
    return trainer


def grpo(job: Job, meter: Meter, folder: str, tokenizer: Any) -> GRPOTrainer:
    asked = [row["prompt"] for row in job.lines("asked.jsonl")]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in asked])
    vowels = own_reward(job)

    def scored(completions: list[Any], **columns: Any) -> Any:
        return vowels(None, [completion[0]["content"] for completion in completions])

    shape = job.shape
    args = GRPOConfig(
        **settings(job, folder, shape.prompts * shape.group),
        num_generations=shape.group,
        beta=0.0,
        max_completion_length=shape.new_tokens,
    )
    trainer = GRPOTrainer(
        model=load(job),
        reward_funcs=scored,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Marking(meter)],
    )
    # every completion has its full length
    trainer.eos_token_ids = [-1]
    trainer.generation_kwargs["eos_token_id"] = trainer.generation_config.eos_token_id = None
    trainer.model.generation_config.eos_token_id = None
    draw = meter.timed("generation", trainer._generate_single_turn)

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = draw(*args, **kwargs)
        meter.tokens.append(sum(map(len, out[0])))
        return out

    trainer._generate_single_turn = counted
    trainer._calculate_rewards = meter.timed("rewards", trainer._calculate_rewards)
    return trainer


def settings(job: Job, folder: str, rows: int) -> dict[str, Any]:
    """As transformers' Trainer gets them; prompts alone are dealt by TRL itself."""
    made = {**arguments(job, folder, rows), "max_steps": job.steps}
    if job.what.startswith("grpo"):
        del made["train_sampling_strategy"]
    return made


def counting(collate: Any, meter: Meter, mask: str) -> Any:
    """The collator, its tokens counted."""

    def run(rows: list[Any]) -> Any:
        batch = collate(rows)
        meter.tokens.append(int(batch[mask].sum()))
        return batch

    return run


def own_reward(job: Job) -> Callable[..., list[float]]:
    spec = importlib.util.spec_from_file_location("bench_reward", job.file("reward.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., list[float]] = module.vowels
    return found


if __name__ == "__main__":
    main()
