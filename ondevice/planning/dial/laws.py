"""Published rules of how large a model should be, and its vocabulary.

The loss of a model of N parameters that reads D tokens, of which U are different ones, is that of
Muennighoff 2023 ("Scaling Data-Constrained Language Models"), fitted on C4. Where nothing is
repeated it is the law of Hoffmann 2022 ("Training Compute-Optimal Large Language Models"): with
these constants the best model for some compute reads about 20 tokens per parameter. Text that is
repeated up to four times counts nearly as much as new text, then less and less (after R_D* = 15.4
repetitions a further one counts 1/e of new text), and parameters beyond what the text can fill count
less likewise.

The vocabulary is that of Tao 2024 ("Scaling Laws with Vocabulary", approach 1): its parameters grow
with the compute to the power of 0.42, more slowly than the others'.

A text that is read often wants a weight decay far above the usual 0.1: about thirty times that, where
a model is trained on all it can get from a small text (Kim 2025, "Pre-training under infinite
compute"). On 1.1 MB of Shakespeare, 14 times through, a held-out token took 2.98 nats without any,
2.69 with 1.0, and 2.85 after 6 times without; a smaller model after 6 times 2.62 without, 2.67 with
1.0.

All of them were fitted on models of tens of millions of parameters and more. For smaller ones they
are continued, as nothing else is published; `ondevice run` measures what a model learns, not they.
"""

from __future__ import annotations

import math

_A, _B, _E, _ALPHA = 521.0, 1488.0, 1.87, 0.353  # Muennighoff 2023, α = β
_RD, _RN = 15.39, 5.31  # repetitions after which tokens, and parameters, are worth little
TOKENS_PER_PARAMETER = (_B / _A) ** (1 / _ALPHA)
"""Of the best model for some compute: 19.6."""
FLOPS = 6.0  # of a parameter and a token, forward and backward (Kaplan 2020)
_VOCABULARY = (0.20, 0.42)  # Tao 2024: N_v = 0.20 C^0.42
_LEAST_VOCABULARY, _MOST_VOCABULARY, _MULTIPLE = 512, 65_536, 64
_SEEN = 200  # times that a token is to be in the text on average, so that its row is learned


def loss(parameters: float, tokens: float, unique: float) -> float:
    """Nats a token after `tokens` tokens, of which `unique` are different ones: lower is better.
    For comparing sizes of model on one text, not as a forecast."""
    unique = max(1.0, min(unique, tokens))
    fitting = min(parameters, unique / TOKENS_PER_PARAMETER)
    counted = _decayed(fitting, parameters, _RN)
    read = _decayed(unique, tokens, _RD)
    return float(_E + _A / counted**_ALPHA + _B / read**_ALPHA)


def _decayed(once: float, all_of_it: float, scale: float) -> float:
    """What `all_of_it` is worth, of which what goes beyond `once` counts less and less."""
    again = max(0.0, all_of_it / once - 1)
    return once * (1 + scale * (1 - math.exp(-again / scale)))


def weight_decay(most: float, passes: float, epochs: float) -> float:
    """Of a stage that reads its text `passes` times: `most` where that is `epochs` times, with fewer
    passes less, by their square."""
    return float(f"{most * min(1.0, passes / epochs) ** 2:.2g}")


def vocabulary(parameters: float, tokens: float, hidden: int, unique: float) -> int:
    """Tokens of the vocabulary for so much compute, of a model of this width. No more than the text
    can teach."""
    factor, power = _VOCABULARY
    wanted = factor * (FLOPS * parameters * tokens) ** power / hidden
    wanted = min(wanted, unique / _SEEN)
    size = _MULTIPLE * round(wanted / _MULTIPLE)
    return int(min(_MOST_VOCABULARY, max(_LEAST_VOCABULARY, size)))
