"""Settings of earlier versions, read as those of today: recipes and run folders that have them go
on to the same bits. Standard library only.

`accumulate` micro-batches of `batch_size` rows made one optimizer step. Now `batch_size` is the rows
of a step, and `micro_batch` how many of them are computed at once. In GRPO and PPO, where a step is
a rollout, `batch_size` was the micro-batch, and `rollout_batch`, in `sample` `batch_size`, how many
completions are written at once.

A save measured, too: who measured at saves alone and let a measurement decide is asked for
`eval_every` now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROWS_OF_A_STEP = 16  # what `batch_size` was where a training stage did not say
_EVAL_BATCHES = 20
_SAVE_EVERY = 200
_CHATS = 4  # completions of a micro-batch to one chat beside them in PPO, and the fewest chats


def upgraded(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings, or its fingerprint, under the names of today; what is of today stays as
    it is. Values of the wrong kind are left to the check of types.
    """
    now = dict(settings)
    if stage in ("grpo", "ppo"):
        _upgrade_rollouts(stage, now)
    elif stage == "sample":
        _rename(now, "batch_size", "decode_batch")
    elif "accumulate" in now:
        _upgrade_steps(now)
    _upgrade_measuring(now)
    return now


def _upgrade_measuring(now: dict[str, Any]) -> None:
    """The measurements of saves, where they decided."""
    saves = _whole(now.get("save_every", _SAVE_EVERY))
    decides = _whole(now.get("patience")) is not None or now.get("take_best") is True
    if decides and saves is not None and str(now.get("eval_every")) == "0":
        now["eval_every"] = saves


def _upgrade_steps(now: dict[str, Any]) -> None:
    """`accumulate` × `batch_size` rows per step."""
    accumulate = _whole(now.get("accumulate"))
    rows = _whole(now.get("batch_size", _ROWS_OF_A_STEP))
    if accumulate is None or rows is None:
        return
    del now["accumulate"]
    now["batch_size"] = rows * accumulate
    now["micro_batch"] = rows
    measured = _whole(now.get("eval_batches", _EVAL_BATCHES))
    if accumulate > 1 and measured is not None:
        now["eval_batches"] = -(-measured // accumulate)  # as many rows as before


def _upgrade_rollouts(stage: str, now: dict[str, Any]) -> None:
    _rename(now, "rollout_batch", "decode_batch")
    accumulate = now.pop("accumulate", 1)
    if _whole(accumulate) != 1:
        now["accumulate"] = accumulate  # it never had an effect here: refused as before
    if "micro_batch" in now or "batch_size" not in now:
        return  # of today, where batch_size has no effect
    rows = now.pop("batch_size")
    now["micro_batch"] = rows
    if _whole(rows) is None:
        return
    if stage == "grpo" and now.get("loss_type") == "bnpo":
        now["partition"] = rows
    if stage == "ppo" and now.get("sft_coef"):
        now["sft_batch"] = max(_CHATS, int(rows) // _CHATS)


def _rename(now: dict[str, Any], before: str, name: str) -> None:
    if before in now:
        value = now.pop(before)
        now.setdefault(name, value)


def _whole(value: Any) -> int | None:
    """A whole number of 1 or more; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    if number >= 1 and str(number) == str(value).strip():
        return number
    return None
