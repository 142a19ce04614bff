"""Our side of decoding: many rows at once, rows that stop by themselves, one row as chat writes it,
and a model that is only loaded."""

from __future__ import annotations

import json
from typing import Any

from decoding import stop_ids
from job import Job
from meter import Meter, peak_rss, print_result, resident
from ours import backend_of

from ondevice.config.use import ChatConfig
from ondevice.inference.chat import open_model
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model


def main() -> None:
    job = Job.from_argv()
    {"chat": chat, "load": load}.get(job.what, generate)(job)


def generate(job: Job) -> None:
    """`even`: greedy, every row to its limit. `geometric`: sampled, a row stops by chance."""
    backend = backend_of(job)
    model = load_model(job.model, backend)
    prompts = json.loads(job.file("prompts.json").read_text())
    limit = job.shape.new_tokens
    geometric = job.what == "geometric"
    generator = Generator(model, backend, Sampling(limit, temperature=float(geometric)))
    prompts = prompts[: job.shape.generated if geometric else 64]
    generator.stop_ids = stop_ids(job, model.tokenizer.vocab_size) if geometric else set()
    Meter(job).rounds(
        lambda: [c.ids for c in generator.run(model.params, prompts, batch_size=len(prompts))]
    )


def chat(job: Job) -> None:
    """One row, whose tokens are handed over as they come."""
    model, backend = open_model(chat_settings(job))
    generator = Generator(model, backend, Sampling(job.shape.new_tokens, temperature=0))
    generator.stop_ids = set()
    [prompt] = json.loads(job.file("prompts.json").read_text())[:1]

    def run() -> list[list[int]]:
        written: list[int] = []
        generator.run(model.params, [prompt], on_token=lambda row, token: written.append(token))
        return [written]

    Meter(job).rounds(run)


def chat_settings(job: Job) -> ChatConfig:
    where: dict[str, Any] = {
        "backend": job.backend,
        "device": job.device,
        "dtype": job.dtype,
    }
    return ChatConfig(model=str(job.model), **where)


def load(job: Job) -> None:
    """The model as chat opens it, and one token, for which all of its weights are read."""
    model, backend = open_model(chat_settings(job))
    Generator(model, backend, Sampling(1, temperature=0)).run(model.params, [[1, 2, 3]])
    print_result(peak=peak_rss(), kept=resident())


if __name__ == "__main__":
    main()
