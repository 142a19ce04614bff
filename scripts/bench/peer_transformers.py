"""transformers: its Trainer on the same rows in the same order, and its generate."""

from __future__ import annotations

import json
import tempfile
import time
from typing import Any

import numpy as np
import torch
from common import Job, Meter
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Marking(TrainerCallback):
    """Marks the meter at each step and keeps the losses that are logged."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.mark()

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.meter.losses.append(logs["loss"])


def arguments(job: Job, folder: str, rows: int) -> dict[str, Any]:
    """As like ours as its settings allow: the optimizer, the clipping, a constant rate, each loss
    logged, no saving.
    """
    return {
        "output_dir": folder,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": job.clip_norm,
        "per_device_train_batch_size": rows,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": job.dtype == "bfloat16",
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def counting(collate: Any, meter: Meter) -> Any:
    """The collator, its targets counted: labels that a shift by one leaves."""

    def run(rows: list[Any]) -> Any:
        batch = collate(rows)
        meter.tokens.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch

    return run


def load(job: Job) -> Any:
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)


def main() -> None:
    job, meter = Job.from_argv(), Meter()
    if job.what == "generate":
        generate(job, meter)
        return
    rows = np.load(job.file("rows.npy")).astype(np.int64)
    data = [{"input_ids": row} for row in rows]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
        return {"input_ids": ids, "labels": ids}

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            **arguments(job, folder, job.shape.rows),
            max_steps=job.steps,
            remove_unused_columns=False,
        )
        Trainer(
            model=load(job),
            args=args,
            train_dataset=data,
            data_collator=counting(collate, meter),
            callbacks=[Marking(meter)],
        ).train()
    meter.report()


def generate(job: Job, meter: Meter) -> None:
    prompts = json.loads(job.file("prompts.json").read_text())
    model, width = load(job), max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = None  # every row writes all its tokens

    def run() -> Any:
        with torch.no_grad():
            return model.generate(
                ids,
                attention_mask=seen,
                max_new_tokens=job.shape.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )

    run()
    meter.start()
    rounds = []
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        out = run()
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))
    meter.mark()
    meter.report_rounds(rounds, out[:, width:].tolist())


if __name__ == "__main__":
    main()
