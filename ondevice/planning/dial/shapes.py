"""Sizes of a model to choose among, from some hundred thousand parameters to a billion, and what of
other settings follows from the size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_HEAD = 32  # width of a head of small models; 64 from `_WIDE` on
_WIDE = 512


@dataclass(frozen=True)
class Shape:
    """A Llama of `layers` blocks of this width, whose feed-forward part has 8/3 of it."""

    hidden: int
    layers: int

    @property
    def settings(self) -> dict[str, Any]:
        """Of `init`."""
        heads = self.hidden // (_HEAD if self.hidden < _WIDE else 2 * _HEAD)
        return {
            "hidden_size": self.hidden,
            "intermediate_size": 32 * math.ceil(self.hidden * 8 / 3 / 32),
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": 0,
        }

    def parameters(self, vocabulary: int, *, tied: bool) -> int:
        """Norms, which are few, left out."""
        inner: int = self.settings["intermediate_size"]
        tables = 1 if tied else 2
        block = 4 * self.hidden**2 + 3 * self.hidden * inner
        return self.layers * block + tables * vocabulary * self.hidden


# A width is about 32 times the depth where models are small, 64 times where they are large: of the
# same size they are all about as good (Kaplan 2020).
SHAPES: tuple[Shape, ...] = tuple(
    Shape(hidden, layers)
    for hidden, layers in (
        (64, 3),
        (96, 3),
        (128, 4),
        (160, 5),
        (192, 6),
        (256, 6),
        (320, 7),
        (384, 8),
        (448, 9),
        (512, 10),
        (640, 12),
        (768, 12),
        (896, 16),
        (1024, 20),
        (1280, 24),
        (1536, 28),
    )
)
_LENGTHS = ((1e6, 128), (5e6, 256), (50e6, 512), (math.inf, 1024))
"""Tokens of a row of text by the parameters up to which it holds: what a small model learns from
stands near."""
_STEPS = 1500  # that running text is to be learned in, roughly
_LEAST_TOKENS, _MOST_TOKENS = 1024, 131_072  # of a step
_LEAST_CONTEXT = 512


def text_length(parameters: float) -> int:
    """Tokens of a row of running text."""
    return next(length for most, length in _LENGTHS if parameters <= most)


def step_tokens(tokens: float) -> int:
    """Tokens of a step of running text, a power of two: so many that there are `_STEPS` steps, for
    few tokens per step and many steps are better where there is little time."""
    wanted = 1 << max(0, math.floor(math.log2(max(tokens / _STEPS, 1))))
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, wanted))


def context_for(longest: int) -> int:
    """Of a model whose rows are so long: a power of two."""
    return int(max(_LEAST_CONTEXT, 1 << math.ceil(math.log2(max(longest, 1)))))
