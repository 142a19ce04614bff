"""Our side of pre-training and of chats: the stages' own loop on rows that the peers read too."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from job import Job
from meter import Meter
from ours import backend_of, batch_settings, stage_context

from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import ChatSource, TextSource
from ondevice.data.chat_encoding import encode_chat
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.seam.protocols import Backend
from ondevice.training.loop import fit
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings


class NothingHeldOut:
    """No held-out data: the peers measure none either."""

    def eval_batches(self, limit: int, micro_batch: int | None = None) -> list[Any]:
        return []


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    backend = backend_of(job)
    model = load_model(job.model, backend)
    source = text_source(job) if job.what in ("text", "blocks") else chat_source(job, model)
    first = None
    if job.what == "blocks":
        train_blocks(job, meter, backend, model, source)
    else:
        if job.what == "chats-packed":
            first = _first_loss(job, backend, model)
        loss = partial(causal_lm_loss, model=model.network)
        with stage_context(meter, backend) as ctx:
            meter.start()
            fit(model, loss, source, NothingHeldOut(), ctx, _settings(job))
    meter.report(first=first)


def text_source(job: Job) -> TextSource:
    shape = job.shape
    tokens = np.load(job.file("tokens.npy"))
    return TextSource(tokens, sequence_length=shape.length, **batch_settings(shape.rows))


def chat_source(job: Job, model: Model) -> ChatSource:
    shape = job.shape
    packed = job.what == "chats-packed"
    source = ChatSource(
        _encoded(job.lines("chats.jsonl"), model),
        sequence_length=shape.length,
        packing=packed,
        **batch_settings(shape.rows if packed else shape.chats),
    )
    assert not source.truncated and not source.skipped
    return source


def _encoded(chats: list[dict[str, Any]], model: Model) -> list[Any]:
    rows = []
    for chat in chats:
        rows += encode_chat(chat["messages"], model.tokenizer)
    return rows


def _settings(job: Job) -> PretrainConfig:
    settings: dict[str, Any] = {"compile": job.compile, **batch_settings(job.shape.rows)}
    return PretrainConfig(
        steps=job.steps,
        learning_rate=job.learning_rate,
        schedule="constant",
        warmup_steps=0,
        clip_norm=job.clip_norm,
        eval_every=0,
        save_every=0,
        eval_batches=1,
        **settings,
    )


def _first_loss(job: Job, backend: Backend, model: Model) -> float:
    """The first chats' loss in rows of their own, for comparison with a peer that orders its
    batches otherwise.
    """
    rows = _encoded(job.lines("chats.jsonl")[: job.shape.chats], model)
    source = ChatSource(
        rows, sequence_length=job.shape.length, packing=False, **batch_settings(len(rows))
    )
    loss = backend.inference_fn(
        lambda p, b: causal_lm_loss(backend.ops, p, b, model=model.network)[0]
    )
    return float(backend.numpy(loss(model.params, source.batch(0)[0])))


def train_blocks(
    job: Job, meter: Meter, backend: Backend, model: Model, source: TextSource | ChatSource
) -> None:
    """Only the blocks are trained, embeddings and head stay: no stage of ours does that, the
    trainer can.
    """
    inside = {n: p for n, p in model.params.items() if n.startswith("model.layers.")}
    outside = {n: p for n, p in model.params.items() if n not in inside}
    loss = partial(causal_lm_loss, model=model.network)
    optimizer = optim_settings(_settings(job), inside)
    trainer = backend.trainer(loss, inside, outside, optimizer)
    meter.start()
    for step in range(job.steps):
        batches = source.batch(step)
        meter.losses.append(trainer.step(batches, job.learning_rate)["loss"])
        meter.tokens.append(int(sum(b["weights"].sum() for b in batches)))
        meter.mark()


if __name__ == "__main__":
    main()
