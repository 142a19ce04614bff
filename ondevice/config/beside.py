"""The chats that a stage may learn from beside its own loss, so that it takes no skill away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ondevice.config.effects import only
from ondevice.config.finetuning import TuningConfig

_CHATS: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.sft_coef,
    "no chats are learned from",
    "give --sft-coef too",
)


@dataclass(frozen=True, kw_only=True)
class ChatsBesideConfig(TuningConfig):
    """What every stage has that may learn from chats beside its own loss."""

    sft_coef: float = 0.0
    """Weight of the loss on chats beside it (PPO-ptx), which keeps earlier skills; 0: off."""
    sft_data: str = only("", *_CHATS)
    """These chats: a file, a folder, or builtin[:RECIPE]. Empty: those of the stage sft that the
    model is from. A model from elsewhere has none, and the built-in ones are not for it: then none
    are learned, which is said."""
    sft_batch: int = only(16, *_CHATS)
    """Rows of chats beside each update."""

    def check(self) -> None:
        super().check()
        self._at_least(1, "sft_batch")
        self._at_least(0, "sft_coef")
