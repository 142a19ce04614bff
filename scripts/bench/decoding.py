"""What both sides of decoding agree on."""

from __future__ import annotations

import random

from job import Job

MEAN = 4  # the limit of new tokens divided by the mean length of completions


def stop_ids(job: Job, known: int) -> set[int]:
    """Tokens that end a text, so many that a model of random weights, whose next token is nearly
    uniform, writes completions of geometric lengths with a quarter of the limit as their mean."""
    count = max(1, round(known * MEAN / job.shape.new_tokens))
    return set(random.Random(0).sample(range(known), count))
