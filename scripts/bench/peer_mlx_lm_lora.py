"""mlx-lm-lora's DPO and GRPO, all weights trained, on the same pairs and prompts, in batches of its
own making.

GRPO decodes as many rows at once as there are prompts, `grpo-wide` all of them. Both score a few
rows at a time.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from job import Job
from meter import Meter, use_mlx_device
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.utils import load
from peer_mlx_lm import Marking
from peer_trl_preference import own_reward


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    use_mlx_device(job)
    np.random.seed(0)
    mx.random.seed(0)
    without_gpu()
    model, tokenizer = load(str(job.model))[:2]
    reference = load(str(job.model))[0]
    reference.freeze()
    optimizer = optim.AdamW(
        job.learning_rate, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, bias_correction=True
    )
    with tempfile.TemporaryDirectory() as folder:
        shared = {
            "iters": job.steps,
            "steps_per_report": 1,
            "steps_per_eval": 10**9,
            "steps_per_save": 10**9,
            "adapter_file": str(Path(folder) / "adapters.safetensors"),
            "beta": 0.1,
        }
        (dpo if job.what == "dpo" else grpo)(
            job, meter, model, reference, tokenizer, optimizer, shared
        )
    meter.report()


def without_gpu() -> None:
    """It asks how much memory a GPU may wire, which on a CPU is a KeyError."""
    if "max_recommended_working_set_size" in mx.device_info():
        return
    told = {**mx.device_info(), "max_recommended_working_set_size": 0}
    mx.device_info, mx.set_wired_limit = (lambda *args: told), (lambda *args: 0)


def dpo(
    job: Job,
    meter: Meter,
    model: Any,
    reference: Any,
    tokenizer: Any,
    optimizer: Any,
    shared: dict[str, Any],
) -> None:
    from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo

    rows = [
        {
            "chosen": p["prompt_ids"] + p["chosen_ids"],
            "rejected": p["prompt_ids"] + p["rejected_ids"],
            "chosen_prompt_length": len(p["prompt_ids"]),
            "rejected_prompt_length": len(p["prompt_ids"]),
        }
        for p in json.loads(job.file("pairs.json").read_text())
    ]
    meter.start()
    train_dpo(
        model,
        reference,
        optimizer,
        rows,
        None,
        DPOTrainingArgs(**shared, batch_size=job.shape.pairs, max_seq_length=job.shape.pair_length),
        training_callback=Marking(meter),
    )


class MarkingRollouts(TrainingCallback):
    """Its own count of tokens is of another thing: they are counted where they are written."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        self.meter.losses.append(info["train_loss"])
        self.meter.mark()

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        return


def grpo(
    job: Job,
    meter: Meter,
    model: Any,
    reference: Any,
    tokenizer: Any,
    optimizer: Any,
    shared: dict[str, Any],
) -> None:
    import mlx_lm_lora.trainer.grpo_trainer as module

    shape, vowels = job.shape, own_reward(job)
    asked = json.loads(job.file("asked.json").read_text())
    rows = [(ids, ids[:1], tokenizer.decode(ids), "0") for ids in asked]
    tokenizer.eos_token_ids = set()  # every completion has its full length
    draw, generator = meter.timed("generation", module.generate_grpo), module.BatchGenerator

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = draw(*args, **kwargs)
        meter.tokens.append(sum(ids.size for ids in out[0]))
        return out

    module.generate_grpo = counted
    module._rollout_rewards = meter.timed("rewards", module._rollout_rewards)
    if job.what == "grpo-wide":
        wide = shape.prompts * shape.group
        module.BatchGenerator = lambda *args, **kwargs: generator(
            *args, **{**kwargs, "completion_batch_size": wide, "prefill_batch_size": wide}
        )
    args = module.GRPOTrainingArgs(
        **shared,
        batch_size=shape.prompts,
        group_size=shape.group,
        max_seq_length=job.shape.pair_length,
        max_completion_length=shape.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    meter.start()
    module.train_grpo(
        model,
        reference,
        tokenizer,
        optimizer,
        rows,
        None,
        [named(vowels)],
        args,
        training_callback=MarkingRollouts(meter),
        end_answer_token="",
    )


def named(vowels: Any) -> Any:
    def run(prompts: Any, completions: Any, **columns: Any) -> Any:
        return vowels(prompts, completions)

    return run


if __name__ == "__main__":
    main()
