"""transformers: its Trainer on the same rows in the same order, and its generate."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import numpy as np
import torch
from decoding import stop_ids
from job import Job
from meter import Meter, peak_rss, print_result, resident, torch_device
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from ondevice.models.registry import load_config


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
        "use_cpu": torch_device(job) == "cpu",
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
    """Weights to train are float32 on both sides; bfloat16 is what is computed in."""
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)


def main() -> None:
    job = Job.from_argv()
    if job.what == "text":
        train(job)
    else:
        decode(job)


def train(job: Job) -> None:
    meter = Meter(job)
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


def decode(job: Job) -> None:
    """`load`, `chat`, `even` and `geometric`, as ours_decode.py has them."""
    device = torch_device(job)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    model.to(device)
    model.generation_config.eos_token_id = None  # every row writes all its tokens
    if job.what == "load":
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]], device=device))
        print_result(peak=peak_rss(), kept=resident())
        return
    known = load_config(job.model).vocab_size
    stops: set[int] = stop_ids(job, known) if job.what == "geometric" else set()
    count = {"chat": 1, "even": 64, "geometric": job.shape.generated}[job.what]
    prompts = json.loads(job.file("prompts.json").read_text())[:count]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    torch.manual_seed(0)

    def run() -> list[list[int]]:
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=job.shape.new_tokens,
                do_sample=job.what == "geometric",
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=sorted(stops) or None,
                pad_token_id=0,
            )
        return [_until(row, stops) for row in out[:, width:].tolist()]

    Meter(job).rounds(run)


def _until(row: list[int], stops: set[int]) -> list[int]:
    """What stands before the first stop token."""
    for i, token in enumerate(row):
        if token in stops:
            return row[:i]
    return row


if __name__ == "__main__":
    main()
