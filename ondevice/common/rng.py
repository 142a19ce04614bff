"""The only source of random numbers: numpy's Philox, keyed by what a number is for.

A draw depends on (seed, what, …) alone, never on what was drawn before: a resume has no generator
to restore, a row's text does not depend on its neighbours, and both backends see the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A generator of its own for `what`, e.g. ("pretrain", "order", epoch)."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def permutation(seed: int, name: str, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of `n` rows in one epoch."""
    return generator(seed, name, "order", epoch).permutation(n)


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
    """Initial weights of the tensor `name`."""
    draw = generator(seed, "weights", name).standard_normal(shape, dtype=np.float32)
    return draw * np.float32(std)


def uniforms(seed: int, stage: str, step: int, row: int, tokens: int) -> NDArray[np.float32]:
    """Uniforms in [0, 1) for the tokens 0 … tokens-1 of one sampled row."""
    return generator(seed, "draw", stage, step, row).random(tokens, dtype=np.float32)
