"""Beside what `material` makes: a reward model, pairs, prompts to be answered, and rewards."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from job import Job
from material import texts_of, write_lines

from ondevice.common.rng import permutation
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.preference_batches import to_tokens
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.models.score_head import with_head
from ondevice.seam.select import load_backend

HELD_PAIRS = 8  # they are measured at the ends of a stage, which is not timed
PROMPTS = 64

# `half`: every second prompt's completions all have one reward, from which nothing is learned.
REWARDS = '''"""The rewards of the benchmark."""


def vowels(prompts, completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def half(prompts, completions, **columns):
    known = list(dict.fromkeys(map(str, prompts)))
    scores = vowels(prompts, completions)
    return [
        score if known.index(str(prompt)) % 2 else 0.5
        for prompt, score in zip(prompts, scores, strict=True)
    ]
'''


def prepare_preference(job: Job) -> None:
    model = load_model(job.model, load_backend(job.backend, "cpu"))
    backend = load_backend(job.backend, "cpu")
    judge = with_head(model, backend, 0)
    job.file("judge").mkdir()
    write_model(job.file("judge"), backend, judge.cfg, judge.params, judge.tokenizer)
    pairs = _pairs(job, model.tokenizer)
    # a prompt that is held out is not learned from
    held, pairs = pairs[:HELD_PAIRS], pairs[HELD_PAIRS:]
    write_lines(job.file("pairs.jsonl"), pairs)
    write_lines(job.file("held.jsonl"), held)
    _write_ids(job, pairs, model.tokenizer)
    asked = [pair["prompt"] for pair in pairs[:PROMPTS]]
    rows = [{"prompt": prompt[0]["content"], "answer": "0"} for prompt in asked]
    write_lines(job.file("asked.jsonl"), rows)
    ids = [prompt_ids(prompt, model.tokenizer) for prompt in asked]
    job.file("asked.json").write_text(json.dumps(ids))
    job.file("reward.py").write_text(REWARDS)


def _pairs(job: Job, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    shape = job.shape
    asked = texts_of(tokenizer, "asked", shape.prompt_tokens, shape.chat_words)
    chosen = texts_of(tokenizer, "chosen", 0, shape.chat_words)
    rejected = texts_of(tokenizer, "rejected", 0, shape.chat_words)
    pairs = []
    for text, good, bad in islice(
        zip(asked, chosen, rejected, strict=False), job.steps * shape.pairs + HELD_PAIRS
    ):
        prompt = [{"role": "user", "content": text}]
        pairs.append({"prompt": prompt, "chosen": good, "rejected": bad})
    return pairs


def _write_ids(job: Job, pairs: list[dict[str, Any]], tokenizer: Tokenizer) -> None:
    """The same pairs as ids, in the order in which our source deals them."""
    rows = []
    for i in permutation(0, "pairs", 0, len(pairs)):
        pair = to_tokens(pairs[i], tokenizer)
        assert pair.length <= job.shape.pair_length, (pair.length, job.size)
        rows.append(
            {
                "prompt_ids": list(map(int, pair.chosen.prompt)),
                "chosen_ids": list(map(int, pair.chosen.completion)),
                "rejected_ids": list(map(int, pair.rejected.completion)),
            }
        )
    job.file("pairs.json").write_text(json.dumps(rows))
