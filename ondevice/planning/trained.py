"""Which numbers of a stage's models are trained and which stay as they are, and the bytes of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ondevice.config.finetuning import TuningConfig
from ondevice.config.preference import GRPOConfig, PPOConfig, RewardConfig, SampleConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.models.lora_targets import chosen_modules, target_shapes
from ondevice.models.shapes import matrices, score_head_shapes, shapes
from ondevice.models.tensor_names import is_block_matrix
from ondevice.planning.model_facts import ModelFacts

_FLOAT = 4


@dataclass(frozen=True)
class Trained:
    """`numbers` that are trained, `matrices`: those of them in the blocks' matrices; `frozen` ones;
    `low`: whether an adapter is trained. `weight_bytes`: of all models in memory while the stage
    trains.
    """

    numbers: int
    frozen: int
    matrices: int
    low: bool
    weight_bytes: float


def trained_by(
    cfg: StageConfig, facts: ModelFacts, dtype: str, judge: ModelFacts | None = None
) -> Trained:
    """What the stage trains of the model, and of what stands beside it; `judge`: PPO's reward model.
    Raises UserError for modules that the model has not."""
    if not isinstance(cfg, TrainingConfig):
        return Trained(0, facts.parameters, 0, False, _used(cfg, facts, dtype))
    if isinstance(cfg, TuningConfig) and cfg.adapter == "lora":
        return _adapter(cfg, facts, dtype, judge)
    whole = sum(math.prod(shape) for shape in shapes(facts.cfg).values()) + facts.inherited
    inside = 0
    for name, shape in shapes(facts.cfg).items():
        if is_block_matrix(name, shape):
            inside += math.prod(shape)
    if isinstance(cfg, PPOConfig):
        return _ppo(facts, judge, whole, inside)
    if isinstance(cfg, GRPOConfig) and cfg.beta:
        held = whole
    else:
        held = 0
    return Trained(whole, held, inside, False, float(_FLOAT * (whole + held)))


def _ppo(facts: ModelFacts, judge: ModelFacts | None, whole: int, inside: int) -> Trained:
    """Policy and value model are trained; beside them stand the reference and the reward model."""
    if judge is not None:
        reward = judge.parameters
    else:
        reward = facts.with_head(1).parameters
    value = facts.with_head(1).parameters
    numbers = whole + value
    frozen = whole + reward
    return Trained(numbers, frozen, 2 * inside, False, float(_FLOAT * (numbers + frozen)))


def _used(cfg: StageConfig, facts: ModelFacts, dtype: str) -> float:
    """Bytes of models that only write: in the type that is computed in."""
    if isinstance(cfg, SampleConfig) and cfg.other:
        models = 2
    else:
        models = 1
    return float(models * (facts.bytes_of(dtype) + _FLOAT * facts.inherited))


def _adapter(cfg: TuningConfig, facts: ModelFacts, dtype: str, judge: ModelFacts | None) -> Trained:
    """A base that stays as it is, and what stands beside it."""
    numbers, inside = adapter_numbers(cfg, facts)
    base = facts.bytes_of(dtype)
    frozen = facts.parameters
    whole = _FLOAT * (numbers + facts.inherited)
    if isinstance(cfg, PPOConfig):
        reward = judge or facts.with_head(1)
        value, value_inside = adapter_numbers(cfg, facts.with_head(1))
        numbers, inside = numbers + value, inside + value_inside
        base += reward.bytes_of(dtype)
        frozen += reward.parameters
        whole += _FLOAT * value
    return Trained(numbers, frozen, inside, True, float(base + whole))


def adapter_numbers(cfg: TuningConfig, facts: ModelFacts) -> tuple[int, int]:
    """(numbers that are trained, those of them in adapters of blocks)."""
    head = score_head_shapes(facts.cfg)
    whole = chosen_modules(matrices(facts.cfg, every=True), cfg.lora_whole, "lora_whole")
    low = 0
    for out, into in target_shapes(facts.cfg, cfg.lora_targets, whole).values():
        low += cfg.lora_rank * (out + into)
    known = matrices(facts.cfg, every=True)
    beside = sum(math.prod(known[module]) for module in whole)
    if isinstance(cfg, RewardConfig) or facts.cfg.num_labels:
        beside += sum(math.prod(shape) for shape in head.values())
    return low + beside, low
