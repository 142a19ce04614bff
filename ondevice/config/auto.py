"""Settings that may be left at `auto`. Standard library only.

A stage puts a value in place of each `auto` at its start, before anything reads it, by the rules of
`training/defaults.py`. To a type checker such a field is the value that a stage reads; a person may
give `auto` too, and that is the default.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

AUTO = "auto"
EPOCHS = ("epochs", "prompt_epochs")
BY_DATA = (
    "sequence_length",
    "batch_size",
    "prompts",
    "steps",
    "learning_rate",
    "muon_learning_rate",
    "warmup_steps",
    "eval_every",
    "save_every",
    "answer",
)
"""Settings that follow from the data and the model, each after those that it follows from."""
BY_RULE = (*BY_DATA, "checkpointing")
"""Settings that a stage puts a value in place of. (What else may be auto, such as `micro_batch` or
`compile`, is chosen by who uses it.)"""

if TYPE_CHECKING:
    AutoInt = int
    AutoFloat = float
    AutoBool = bool
else:
    AutoInt = Literal["auto"] | int
    AutoFloat = Literal["auto"] | float
    AutoBool = Literal["auto"] | bool


def auto() -> Any:
    """A dataclass field whose default is `auto`."""
    return dataclasses.field(default=AUTO)


def is_auto(config: Any, name: str) -> bool:
    """Whether the setting is left to the rules."""
    return bool(getattr(config, name) == AUTO)


def left_to_rules(config: Any) -> set[str]:
    """The settings that no value is known of yet, and the epochs that the steps follow from."""
    return {name for name in (*BY_RULE, *EPOCHS) if getattr(config, name, None) == AUTO}
