"""Whether a plan fits this machine, and the change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.common.progress import size
from ondevice.config.auto import AUTO
from ondevice.config.finetuning import TuningConfig
from ondevice.config.preference import PPOConfig, RolloutConfig, SampleConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.planning.machine import Machine
from ondevice.planning.plan import StagePlan, plan_stage
from ondevice.planning.stage_facts import Surroundings

_ROLLOUT_ROWS = 16  # from which on micro-batches are halved
TIGHT = 0.8
"""Of the memory, from which on other programs may feel it."""

Fits = Literal["yes", "tight", "no"]


@dataclass(frozen=True)
class Verdict:
    """`why` it does not fit, and the `change` of the settings that makes it fit, as flags; empty
    where there is none.
    """

    fits: Fits
    why: str = ""
    change: str = ""
    disk: float = 0.0
    """Bytes of the disk that are needed, where these are what does not fit."""

    @property
    def remedy(self) -> str:
        """The change, or what to do where there is none."""
        return self.change or "take a smaller model"


def verdict(
    plan: StagePlan,
    cfg: StageConfig,
    before: Surroundings,
    free: int | None,
    *,
    there: int = 0,
) -> Verdict:
    """`before`: what the stage begins from; `free` bytes of the disk, `there` of them that the stage
    has written before."""
    needed = max(0.0, plan.disk - there)
    if free is not None and needed > free:
        why = f"its checkpoints need {size(needed)} of the disk, of which {size(free)} are free"
        return Verdict("no", why, _keep_less(cfg), needed)
    budget = before.machine.budget
    if budget is None or plan.memory <= TIGHT * budget:
        return Verdict("yes")
    if plan.memory <= budget:
        return Verdict("tight", memory_told(plan, before.machine))
    return Verdict("no", memory_told(plan, before.machine), _change(plan.stage, cfg, plan, before))


def memory_told(plan: StagePlan, machine: Machine) -> str:
    """What it takes, beside what there is."""
    assert machine.budget is not None
    takes = f"it takes about {size(plan.memory)}"
    if machine.limited:
        return f"{takes}, and --memory allows {size(machine.budget)}"
    return f"{takes}, and this machine has {size(machine.budget)} for it now"


def refuse(name: str, found: Verdict, folder: Path) -> None:
    """Raises UserError where a stage does not fit, with the remedy; DiskFull, for which a run may
    wait, where it is the disk of `folder` that has no room."""
    if found.fits != "no":
        return
    message = f"{name} does not fit: {found.why}"
    hint = f"{found.remedy}; --anyway starts it all the same"
    if found.disk:
        raise DiskFull(folder, int(found.disk), message=message, hint=hint)
    raise UserError(message, hint=hint)


def _keep_less(cfg: StageConfig) -> str:
    """The change that needs less of the disk."""
    if isinstance(cfg, TuningConfig) and cfg.adapter == "none":
        return "make room, or give --adapter lora"
    return "make room"


def _change(name: str, cfg: StageConfig, plan: StagePlan, before: Surroundings) -> str:
    """The first change of the settings with which the stage fits, as flags; empty where none of
    them does."""
    budget = before.machine.budget
    assert budget is not None
    if plan.settings:  # an adapter or fewer rows are to be compared at the same steps
        changes: dict[str, Any] = dict(plan.settings)
        if isinstance(cfg, TrainingConfig):
            changes[cfg.epochs_field] = AUTO
        cfg = replace(cfg, **changes)
    together: dict[str, Any] = {}
    for change in _changes(cfg, plan.micro_batch):
        for attempt in (change, {**together, **change}):
            try:
                changed = replace(cfg, **attempt)
                changed.check()
                other, _ = plan_stage(name, changed, before)
            except UserError:
                continue  # a setting that does not go with the others
            if other.memory <= budget:
                return flags(attempt)
        together |= change
    return ""


def _changes(cfg: StageConfig, at_once: int | None) -> Iterator[dict[str, Any]]:
    """From what costs nothing to what changes the result; `at_once`: the rows that are computed at
    once now."""
    if isinstance(cfg, SampleConfig):
        yield from ({"decode_batch": rows} for rows in (64, 16, 4, 1))
        return
    if not isinstance(cfg, TrainingConfig):
        return
    # a rollout has rows of its own
    rows = _ROLLOUT_ROWS if isinstance(cfg, RolloutConfig) else cfg.batch_size
    while rows > 1:
        rows //= 2
        if at_once is None or rows <= at_once:  # as many: what is changed beside it adds none
            yield {"micro_batch": rows}
    if hasattr(cfg, "decode_batch"):
        yield from ({"decode_batch": rows} for rows in (16, 4, 1))
    yield {"checkpointing": True}
    if cfg.optimizer == "adamw":
        yield {"optimizer": "adamw8bit"}
    if isinstance(cfg, TuningConfig) and cfg.adapter == "none":
        yield {"adapter": "lora", "optimizer": "adamw"}
    for name in ("sequence_length", "max_new_tokens"):
        value = getattr(cfg, name, 0)
        while value > 64 and not isinstance(cfg, PPOConfig):
            value = value // 16 * 8
            yield {name: value}


def flags(change: Mapping[str, Any]) -> str:
    """ "--checkpointing --micro-batch 2"."""
    words = []
    for name, value in change.items():
        flag = "--" + name.replace("_", "-")
        words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)
