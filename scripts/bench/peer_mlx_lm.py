"""mlx-lm: its train() on the same rows or chats, and its batch_generate.

As its command does it, `blocks` trains the matrices of the blocks and leaves embeddings, norms and
head as they are (there is no other full fine-tuning). `text` and `chats-packed` hand the same
function a model of which everything is trainable. It clips no gradient, so neither do we in these
jobs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from common import Job, Meter
from mlx_lm import batch_generate
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, default_loss, train
from mlx_lm.utils import load


class Marking(TrainingCallback):
    def __init__(self, meter: Meter) -> None:
        self.meter, self.seen = meter, 0

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        self.meter.losses.append(info["train_loss"])
        self.meter.tokens.append(info["trained_tokens"] - self.seen)
        self.seen = info["trained_tokens"]
        self.meter.mark()

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        return


def main() -> None:
    job, meter = Job.from_argv(), Meter()
    np.random.seed(0)
    model, tokenizer = load(str(job.model))[:2]
    if job.what == "generate":
        generate(job, meter, model, tokenizer)
        return
    if job.what == "blocks":
        model.freeze()
        for layer in model.layers:
            layer.unfreeze()
    first, more = None, {}
    if job.what == "chats-packed":
        rows = [_row(chat, tokenizer) for chat in job.chats()]
        steps, first = len(rows) // job.shape.chats, _first_loss(model, rows[: job.shape.chats])
        batch = job.shape.chats
    else:
        rows = [(row.tolist(), 0) for row in np.load(job.file("rows.npy"))]
        steps, batch = job.steps, job.shape.rows
        more["iterate_batches"] = _in_order
    optimizer = optim.AdamW(
        job.learning_rate, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, bias_correction=True
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=batch,
            iters=steps,
            steps_per_report=1,
            steps_per_eval=10**9,
            steps_per_save=10**9,
            max_seq_length=job.shape.length + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        meter.start()
        train(model, optimizer, rows, None, args, training_callback=Marking(meter), **more)
    if job.what == "chats-packed":  # one padding token a padded row is counted and trained there
        padded = sum(len(ids) % 32 != 0 for ids, _ in rows) / len(rows) * batch
        meter.tokens = [n - round(padded) for n in meter.tokens]
    meter.report(first=first, device_peak=mx.get_peak_memory() / 1e6)


def _row(chat: dict[str, Any], tokenizer: Any) -> tuple[list[int], int]:
    """ids, and where the answer begins, as its ChatDataset with a masked prompt gives them."""
    messages = chat["messages"]
    prompt = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    while (
        ids[-1] not in tokenizer.eos_token_ids
    ):  # what the template writes after the stop token is nobody's target
        ids = ids[:-1]
    return ids, len(prompt)


def _in_order(
    dataset: Any, batch_size: int, max_seq_length: int, **ignored: Any
) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(dataset), batch_size):
        ids = [row for row, _ in dataset[start : start + batch_size]]
        yield mx.array(ids), mx.array([[0, len(row)] for row in ids])


def _first_loss(model: Any, rows: list[tuple[list[int], int]]) -> float:
    """Of the first chats by its own loss, the padding token that it would train left out."""
    width = max(len(ids) for ids, _ in rows)
    batch = mx.array([ids + [0] * (width - len(ids)) for ids, _ in rows])
    loss, _ = default_loss(model, batch, mx.array([[at, len(ids) - 1] for ids, at in rows]))
    return float(loss.item())


def generate(job: Job, meter: Meter, model: Any, tokenizer: Any) -> None:
    prompts = json.loads(job.file("prompts.json").read_text())
    tokenizer.eos_token_ids = set()  # every row writes all its tokens

    def run() -> Any:
        return batch_generate(
            model,
            tokenizer,
            prompts,
            max_tokens=job.shape.new_tokens,
            return_token_ids=True,
            completion_batch_size=64,
            prefill_batch_size=64,
        )

    run()
    meter.start()
    rounds = []
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        out = run()
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))
    meter.mark()
    meter.report_rounds(
        rounds,
        [list(map(int, ids)) for ids in out.token_ids],
        device_peak=mx.get_peak_memory() / 1e6,
    )


if __name__ == "__main__":
    main()
