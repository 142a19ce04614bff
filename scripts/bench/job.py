"""What one fresh process is to do: a model's shape, the batches that it is given, and settings."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """A model and the batches it is given. `rows` × `length` tokens a step in pre-training."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = True
    rows: int = 8
    length: int = 256
    pair_length: int = 256  # tokens of a pair at most
    chats: int = 16  # per step, where a chat has a row of its own
    chat_words: tuple[int, int] = (10, 90)
    chat_tokens: int = 0  # of a chat's answer, where it is to fill a row; 0: as chat_words says
    prompt_tokens: int = 0  # of a prompt of pairs and rollouts; 0: as chat_words says
    pairs: int = 8  # per step
    # prompts per rollout of GRPO, `group` completions each; a rollout of PPO has half as many
    prompts: int = 4
    group: int = 8
    new_tokens: int = 64  # of each completion, which nothing stops earlier
    generated: int = 256  # prompts of the row whose completions have geometric lengths
    dtype: str = "float32"  # of the file of weights
    bits: int = 0  # of a weight in the quantised folder beside it; 0: there is none

    @property
    def episodes(self) -> int:
        """Completions of a rollout of PPO."""
        return self.prompts * self.group // 2

    @property
    def parameters(self) -> int:
        """Those that a token is multiplied with: an embedding that is no head is not among them."""
        head_dim = self.hidden_size // self.num_attention_heads
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * head_dim
        block = self.hidden_size * (heads + 3 * self.intermediate_size)
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * block


_5M = Size(4096, 256, 688, 6, 8, 4)
_TINY = Size(
    512,
    32,
    64,
    2,
    2,
    1,
    rows=2,
    length=64,
    chats=2,
    chat_words=(2, 4),
    pairs=2,
    prompts=2,
    group=2,
    new_tokens=8,
    generated=8,
)
_SMOLLM2 = Size(
    49152, 576, 1536, 30, 9, 3, rows=16, chats=16, chat_tokens=180, dtype="bfloat16", prompts=6
)

SIZES = {
    "5M": _5M,
    "long": replace(_5M, prompt_tokens=400, pair_length=640, pairs=4),
    "smollm2": _SMOLLM2,
    "vocabulary": replace(_5M, vocab_size=152_000, rows=1, length=2048, chats=1, chat_tokens=1900),
    # wide enough for groups of 64 in every matrix; few tokens, for MLX unpacks slowly on a CPU
    "quantised": replace(
        _SMOLLM2,
        vocab_size=4096,
        num_hidden_layers=4,
        rows=4,
        chats=4,
        dtype="float32",
        bits=4,
    ),
    "empty": _TINY,  # what a process holds in which next to no model is loaded
    "traced": replace(_5M, hidden_size=32, intermediate_size=64, num_hidden_layers=2),
}
# The same rows with models of a few thousand weights: to see that all of it runs.
SMALL = {
    "5M": _TINY,
    "long": replace(_TINY, prompt_tokens=24),
    "smollm2": replace(_TINY, length=128, chat_tokens=24, dtype="bfloat16"),
    "vocabulary": replace(_TINY, vocab_size=2048, rows=1, length=128, chats=1, chat_tokens=64),
    "quantised": replace(_TINY, hidden_size=64, length=128, chat_tokens=24, bits=4),
    "empty": _TINY,
    "traced": _TINY,
}
GROUP_SIZE = 64  # values of a quantised row that have a scale in common


@dataclass(frozen=True)
class Job:
    """One side of one row. `work` holds the material."""

    what: str
    size: str
    work: str
    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    compile: str = "auto"
    steps: int = 8
    skipped: int = 2  # steps left out at the beginning: caches fill, compilers run
    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    small: bool = False

    @property
    def shape(self) -> Size:
        return (SMALL if self.small else SIZES)[self.size]

    @property
    def model(self) -> Path:
        return self.file("model")

    @property
    def quantised(self) -> Path:
        """Our folder of the same weights in few bits."""
        return self.file("quantised")

    def file(self, name: str) -> Path:
        return Path(self.work) / self.size / name

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file(name).read_text().splitlines()]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argv(cls) -> Job:
        return cls(**json.loads(sys.argv[1]))
