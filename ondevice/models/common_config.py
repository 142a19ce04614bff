"""What is read of every architecture's `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """The fields of all of them; `raw` is the file as it was."""

    model_type: str
    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    num_labels: int = 0  # 0: the model writes, or fills masks; else a head of so many scores in place of that one
    label_names: tuple[str, ...] = ()
    dtype: str = "float32"
    raw: dict[str, Any] = field(default_factory=dict, compare=False)
