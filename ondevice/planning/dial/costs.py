"""What a stage takes for each of its steps and beside them, by the plan, corrected by what stages of
this run have taken before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondevice.config.auto import AUTO, is_auto
from ondevice.config.preference import RolloutConfig, SampleConfig
from ondevice.config.scaling import StageScale
from ondevice.config.stages import InitConfig, StageConfig, TrainingConfig
from ondevice.data.mixture import sources
from ondevice.datasets.spec import corpus_of
from ondevice.planning.dial.shares import Part
from ondevice.planning.plan import StagePlan, plan_stage
from ondevice.planning.stage_facts import Surroundings

START_S = 0.7  # of a stage, for its start and its end
_TOKENIZER_S = 1.5e-6  # for a byte of text that a tokenizer is made of
_MOST_TOKENIZED = 50e6
LEARNING, WRITING, ROLLOUTS, BESIDE = "learning", "writing", "rollouts", "beside"


@dataclass(frozen=True)
class Factors:
    """What the stages of this run have taken, as a part of what was planned; empty before the
    first. Kinds of work: learning from data, writing, rollouts (which do both, so that theirs stands
    on top of these two), what stands beside steps."""

    found: Mapping[str, float] = field(default_factory=dict)

    def of(self, kind: str) -> float:
        """Where a kind was not measured, steps that learn say how fast the machine is now."""
        if kind == ROLLOUTS:
            return self.found.get(kind, 1.0)
        return self.found.get(kind, self.found.get(LEARNING, 1.0))

    def step(self, kind: str, planned: float, writing: float) -> float:
        """Seconds of a step for which so many were planned, `writing` of them for what it writes."""
        if kind != ROLLOUTS:
            return planned * self.of(kind)
        both = writing * self.of(WRITING) + (planned - writing) * self.of(LEARNING)
        return both * self.of(ROLLOUTS)

    def with_(self, kind: str, factor: float) -> Factors:
        return Factors({**self.found, kind: min(20.0, max(0.05, factor))})


@dataclass(frozen=True)
class Cost:
    """`per_step` and `fixed` seconds, corrected; `planned_step`, `planned_fixed` without the
    correction. `epoch`: steps that go through the data once; None: not known."""

    stage: str
    kind: str
    per_step: float
    fixed: float
    planned_step: float
    planned_fixed: float
    epoch: float | None
    plan: StagePlan

    def part(self, scale: StageScale) -> Part:
        most = float(scale.most or "inf")
        if scale.epochs and self.epoch:
            most = min(most, max(scale.least, scale.epochs * self.epoch))
        return Part(self.stage, scale.share, self.per_step, scale.least, most, self.fixed)


def kind_of(cfg: StageConfig) -> str:
    """Which kind of work the steps of a stage are."""
    if isinstance(cfg, RolloutConfig):
        return ROLLOUTS
    if isinstance(cfg, SampleConfig):
        return WRITING
    return LEARNING if isinstance(cfg, TrainingConfig) else BESIDE


def cost_of(
    name: str, cfg: StageConfig, around: Surroundings, factors: Factors
) -> tuple[Cost, Surroundings]:
    """(what the stage takes, the surroundings of the next one). The machine is calibrated. Raises
    UserError as `plan_stage`."""
    plan, after = plan_stage(name, cfg, around)
    kind = kind_of(cfg)
    seconds = plan.seconds or 0.0
    epoch = None
    if isinstance(cfg, SampleConfig):
        # a plan of it is of all its prompts
        rows = plan.rows or float(cfg.prompts or 1)
        step, beside, epoch = seconds / max(rows, 1.0), 0.0, None
    elif isinstance(cfg, TrainingConfig):
        step = plan.seconds_per_step or 0.0
        beside = max(0.0, seconds - step * plan.steps)
        if plan.times:
            epoch = plan.steps / plan.times
    else:
        step, beside = 0.0, seconds
        if isinstance(cfg, InitConfig) and not cfg.tokenizer:
            beside += _tokenizer_seconds(cfg, around)
    cost = Cost(
        name,
        kind,
        max(factors.step(kind, step, plan.writing), 1e-9),
        START_S + beside * factors.of(BESIDE),
        step,
        START_S + beside,
        epoch,
        plan,
    )
    return cost, after


def _tokenizer_seconds(cfg: InitConfig, around: Surroundings) -> float:
    size = 0.0
    for source in sources(cfg.data):
        built = corpus_of(source.data, around.corpus)
        path = Path(source.data)
        if built is not None:
            size += built.document_bytes
        elif path.is_dir():
            size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            size += path.stat().st_size
    return _TOKENIZER_S * min(size, _MOST_TOKENIZED)


def with_steps(cfg: StageConfig, steps: int) -> StageConfig:
    """The settings with so many steps (`sample`: prompts). What the settings say in numbers of
    steps is scaled with them."""
    if isinstance(cfg, SampleConfig):
        return replace(cfg, prompts=steps)
    assert isinstance(cfg, TrainingConfig)
    changes: dict[str, Any] = {"steps": steps, cfg.epochs_field: AUTO}
    if not is_auto(cfg, "steps"):
        for name in ("warmup_steps", "eval_every", "save_every"):
            value = getattr(cfg, name)
            if value != AUTO and value:
                least = 0 if name == "warmup_steps" else 1
                changes[name] = max(least, round(value * steps / cfg.steps))
    scaled: StageConfig = replace(cfg, **changes)
    return scaled
