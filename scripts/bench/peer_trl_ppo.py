"""PPO of TRL 1.12.0, the last that has it: four epochs over a rollout, policy and value model
updated together.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

import torch
import trl.experimental.ppo.ppo_trainer as module
from datasets import Dataset
from job import Job
from meter import Meter
from peer_transformers import Marking, arguments, load
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    shape = job.shape
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    data = Dataset.from_list(
        [{"input_ids": ids} for ids in json.loads(job.file("asked.json").read_text())]
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(job, folder, shape.episodes)
        del settings["train_sampling_strategy"]
        args = PPOConfig(
            **settings,
            gradient_accumulation_steps=1,
            total_episodes=shape.episodes * job.steps,
            response_length=shape.new_tokens,
            num_ppo_epochs=4,
            num_mini_batches=1,
            temperature=1.0,
            num_sample_generations=0,
            local_rollout_forward_batch_size=shape.episodes,
        )
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=load(job),
            ref_model=load(job),
            reward_model=scores(job),
            value_model=scores(job),
            train_dataset=data,
            eval_dataset=data.select(range(4)),
            callbacks=[Marking(meter)],
        )
        meter.tokens = [
            shape.episodes * shape.new_tokens
        ] * job.steps  # it writes to the limit, whatever it writes
        listen(meter, trainer)
        trainer.train()
    meter.report()


def scores(job: Job) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        job.file("judge"), num_labels=1, dtype=torch.float32
    )


def listen(meter: Meter, trainer: PPOTrainer) -> None:
    """Times the parts that are functions of its own; what is left is the updates."""
    forward, reward = module.forward, module.get_reward
    reference, judge = meter.timed("log-probabilities", forward), meter.timed("rewards", reward)
    values = meter.timed("log-probabilities", reward)
    module.batch_generation = meter.timed("generation", module.batch_generation)
    module.forward = lambda model, *args: (reference if model is trainer.ref_model else forward)(
        model, *args
    )
    module.get_reward = lambda model, *args: (judge if model is trainer.reward_model else values)(
        model, *args
    )


if __name__ == "__main__":
    main()
