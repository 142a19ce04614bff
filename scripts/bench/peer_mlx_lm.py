"""mlx-lm: its train() on the same rows or chats, its batch_generate and stream_generate.

As its command does it, `blocks` trains the matrices of the blocks and leaves embeddings, norms and
head as they are (there is no other full fine-tuning). All other rows hand the same function a model
of which everything is trainable, or an adapter. It clips no gradient, so neither do we.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn
import mlx.optimizers as optim
import numpy as np
from decoding import stop_ids
from job import GROUP_SIZE, Job
from meter import Meter, peak_rss, print_result, resident, use_mlx_device
from mlx_lm import batch_generate
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, default_loss, train
from mlx_lm.tuner.utils import linear_to_lora_layers
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
    job = Job.from_argv()
    use_mlx_device(job)
    np.random.seed(0)
    mx.random.seed(0)
    model, tokenizer = load(str(job.model))[:2]
    if job.what in ("even", "geometric"):
        generate(job, model, tokenizer)
    elif job.what in ("chat", "load"):
        one_row(job, model)
    else:
        tune(job, model, tokenizer)


def tune(job: Job, model: Any, tokenizer: Any) -> None:
    meter = Meter(job)
    model.set_dtype(mx.float32)
    if job.what == "blocks":
        model.freeze()
        for layer in model.layers:
            layer.unfreeze()
    if job.what == "quantised":
        library: Any = mlx.nn
        library.quantize(model, GROUP_SIZE, job.shape.bits)
    if job.what in ("lora", "quantised"):
        adapt(model)
    shape = job.shape
    first, more = None, {}
    chats = job.what not in ("text", "blocks")
    if chats:
        batch = shape.chats
        rows = [_row(chat, tokenizer) for chat in job.lines("chats.jsonl")]
        first = _first_loss(model, rows[:batch])
    else:
        rows = [(row.tolist(), 0) for row in np.load(job.file("rows.npy"))]
        batch = shape.rows
        more["iterate_batches"] = _in_order
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=batch,
            iters=job.steps,
            steps_per_report=1,
            steps_per_eval=10**9,
            steps_per_save=10**9,
            max_seq_length=shape.length + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        meter.start()
        train(model, _optimizer(job), rows, None, args, training_callback=Marking(meter), **more)
    if chats:  # one padding token per padded row is counted and trained there
        padded = sum(len(ids) % 32 != 0 for ids, _ in rows) / len(rows) * batch
        meter.tokens = [n - round(padded) for n in meter.tokens]
    meter.report(first=first)


def adapt(model: Any) -> None:
    """Our defaults: rank 16, alpha / rank 2, all matrices of the blocks."""
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": 16, "scale": 2.0, "dropout": 0.0})


def _optimizer(job: Job) -> optim.AdamW:
    return optim.AdamW(
        job.learning_rate, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, bias_correction=True
    )


def _row(chat: dict[str, Any], tokenizer: Any) -> tuple[list[int], int]:
    """ids, and where the answer begins, as its ChatDataset with a masked prompt gives them."""
    messages = chat["messages"]
    prompt = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    # what the template writes after the stop token is nobody's target
    while ids[-1] not in tokenizer.eos_token_ids:
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


def generate(job: Job, model: Any, tokenizer: Any) -> None:
    geometric = job.what == "geometric"
    prompts = json.loads(job.file("prompts.json").read_text())
    prompts = prompts[: job.shape.generated if geometric else 64]
    # none: every row writes all its tokens
    tokenizer.eos_token_ids = stop_ids(job, len(tokenizer.vocab)) if geometric else set()

    def run() -> list[list[int]]:
        out = batch_generate(
            model,
            tokenizer,
            prompts,
            max_tokens=job.shape.new_tokens,
            return_token_ids=True,
            sampler=make_sampler(temp=float(geometric)),
            completion_batch_size=64,
            prefill_batch_size=64,
        )
        assert out.token_ids is not None
        return [list(map(int, ids)) for ids in out.token_ids]

    Meter(job).rounds(run)


def one_row(job: Job, model: Any) -> None:
    model.set_dtype(getattr(mx, job.dtype))
    if job.what == "load":
        mx.eval(model(mx.array([[1, 2, 3]])))
        print_result(peak=peak_rss(), kept=resident())
        return
    [prompt] = json.loads(job.file("prompts.json").read_text())[:1]

    def run() -> list[list[int]]:
        step = generate_step(mx.array(prompt), model, max_tokens=job.shape.new_tokens)
        return [[int(token) for token, _ in step]]

    Meter(job).rounds(run)


if __name__ == "__main__":
    main()
