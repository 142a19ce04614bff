"""What is read of every architecture's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.numbers import is_number

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"  # values of `problem_type`


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """The fields of all of them; `raw` is the file as it was."""

    model_type: str
    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    # 0: the model writes, or fills masks; else a head of so many scores in place of that one
    num_labels: int = 0
    label_names: tuple[str, ...] = ()
    dtype: str = "float32"
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def problem_type(self) -> str | None:
        """What a classifier's scores are, in transformers' words; None: of one class a text."""
        if self.num_labels:
            found: str | None = self.raw.get("problem_type")
        else:
            found = None
        return found


def whole(raw: Mapping[str, Any], name: str, usual: int, least: int = 1) -> int:
    """A whole number of a config, `usual` where it says nothing. Raises UserError for anything
    else.
    """
    value = raw.get(name)
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{value!r} is not a whole number of {least} or more", where=name)
    return value


def number(raw: Mapping[str, Any], name: str, usual: float) -> float:
    """A number above 0 of a config, `usual` where it says nothing. Raises UserError for anything
    else.
    """
    value = raw.get(name)
    if value is None:
        return usual
    if not is_number(value) or not value > 0:
        raise UserError(f"{value!r} is not a number above 0", where=name)
    return float(value)
