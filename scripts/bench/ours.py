"""Our side: the stages' own loop, sources and decoding; only the events are listened to."""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Job, Meter

from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import ChatSource, TextSource
from ondevice.data.chat_encoding import encode_chat
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.runs.context import Context, RunSettings
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.loop import fit, optim_settings
from ondevice.training.losses import causal_lm_loss


class Listening(EventWriter):
    """Writes events as always, and marks the meter at each step."""

    def __init__(self, path: Path, meter: Meter, backend: Backend) -> None:
        super().__init__(path)
        self.meter, self.backend, self.before = meter, backend, 0
        self.device_peak = 0

    def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
        super().emit(event, step, **fields)
        if event == "step":
            self.meter.tokens.append(fields["tokens"] - self.before)
            self.meter.losses.append(fields["loss"])
            self.before = fields["tokens"]
            self.device_peak = self.backend.memory().peak
            self.meter.mark()


class Nothing:
    """No held-out data: the peers measure none either."""

    def eval_batches(self, limit: int, micro_batch: int | None = None) -> list[Any]:
        return []


def main() -> None:
    job, meter = Job.from_argv(), Meter()
    backend = load_backend(job.backend, "cpu", job.dtype)
    model = load_model(job.model, backend)
    if job.what == "generate":
        generate(job, meter, backend, model)
        return
    source, cfg = sources(job, model)
    loss = partial(causal_lm_loss, model=model.network)
    if job.what == "blocks":
        blocks(job, meter, backend, model, source, cfg)
        return
    first = _first_loss(job, backend, model) if job.what == "chats-packed" else None
    with tempfile.TemporaryDirectory() as folder:
        stage = RunFolder(folder).create().stage("pretrain").create()
        events = Listening(stage.events, meter, backend)
        ctx = Context(stage, backend, events, shared=RunSettings(StopRequest()))
        meter.start()
        fit(model, loss, source, Nothing(), ctx, cfg)
        events.close()
    device = {"device_peak": events.device_peak / 1e6} if job.backend == "mlx" else {}
    meter.report(first=first, **device)


def sources(job: Job, model: Model) -> tuple[TextSource | ChatSource, PretrainConfig]:
    shape, steps = job.shape, job.steps
    source: TextSource | ChatSource
    if job.what in ("text", "blocks"):
        source = TextSource(
            np.load(job.file("tokens.npy")), sequence_length=shape.length, batch_size=shape.rows
        )
    else:
        rows = [
            row for chat in job.chats() for row in encode_chat(chat["messages"], model.tokenizer)
        ]
        packed = job.what == "chats-packed"
        source = ChatSource(
            rows,
            sequence_length=shape.length,
            batch_size=shape.rows if packed else shape.chats,
            packing=packed,
        )
        assert not source.truncated and not source.skipped
        steps = source.rows // source.batch_size  # one epoch
    return source, PretrainConfig(
        steps=steps,
        learning_rate=job.learning_rate,
        schedule="constant",
        clip_norm=job.clip_norm,
        eval_every=0,
        save_every=0,
        eval_batches=1,
    )


def _first_loss(job: Job, backend: Backend, model: Model) -> float:
    """The first chats' loss in rows of their own, for comparison with a peer that orders its
    batches otherwise.
    """
    rows = [
        row
        for chat in job.chats()[: job.shape.chats]
        for row in encode_chat(chat["messages"], model.tokenizer)
    ]
    source = ChatSource(rows, sequence_length=job.shape.length, batch_size=len(rows), packing=False)
    loss = backend.inference_fn(
        lambda p, b: causal_lm_loss(backend.ops, p, b, model=model.network)[0]
    )
    return float(backend.numpy(loss(model.params, source.batch(0)[0])))


def blocks(
    job: Job,
    meter: Meter,
    backend: Backend,
    model: Model,
    source: TextSource | ChatSource,
    cfg: PretrainConfig,
) -> None:
    """Only the blocks are trained, embeddings and head stay: no stage of ours does that, the
    trainer can.
    """
    inside = {n: p for n, p in model.params.items() if n.startswith("model.layers.")}
    outside = {n: p for n, p in model.params.items() if n not in inside}
    loss = partial(causal_lm_loss, model=model.network)
    trainer = backend.trainer(loss, inside, outside, optim_settings(cfg, inside))
    meter.start()
    for step in range(job.steps):
        batches = source.batch(step)
        meter.losses.append(trainer.step(batches, job.learning_rate)["loss"])
        meter.tokens.append(int(sum(b["weights"].sum() for b in batches)))
        meter.mark()
    meter.report(device_peak=backend.memory().peak / 1e6)


def generate(job: Job, meter: Meter, backend: Backend, model: Model) -> None:
    prompts = json.loads(job.file("prompts.json").read_text())
    generator = Generator(
        model, backend, Sampling(max_new_tokens=job.shape.new_tokens, temperature=0)
    )
    generator.stop_ids = set()  # every row writes all its tokens
    generator.run(model.params, prompts)
    meter.start()
    rounds = []
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        out = generator.run(model.params, prompts)
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))
    meter.mark()
    device = {"device_peak": backend.memory().peak / 1e6} if job.backend == "mlx" else {}
    meter.report_rounds(rounds, [c.ids for c in out], **device)


if __name__ == "__main__":
    main()
