"""The settings that a stage will have in place of each `auto`, by the sample of its data: the rules
are the stage's own (`training/defaults.py`), the counts are about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from ondevice.common.errors import UserError
from ondevice.config.auto import BY_RULE, left_to_rules
from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import PairsConfig, RolloutConfig
from ondevice.config.stages import PretrainConfig, StageConfig, TrainingConfig
from ondevice.data.batches import fitted_length
from ondevice.data.mixture import is_generated
from ondevice.datasets.objectives import most_of
from ondevice.models.network import supports_packing
from ondevice.planning.model_facts import ModelFacts
from ondevice.planning.source_facts import DataFacts
from ondevice.runs.device_batch import Device, needs_checkpointing
from ondevice.training.defaults import DataFacts as Rows
from ondevice.training.defaults import ModelFacts as Shape
from ondevice.training.defaults import resolved

_UNKNOWN_LENGTH = 64


def with_settings(
    cfg: StageConfig, facts: ModelFacts, found: DataFacts, device: Device
) -> StageConfig:
    """`cfg` without any auto, as the stage will settle it within a sample's precision."""
    if not isinstance(cfg, TrainingConfig) or not left_to_rules(cfg):
        return cfg
    model = facts.model
    context = model.cfg.max_position_embeddings
    if isinstance(cfg, PretrainConfig):
        context = most_of(model, context)
    packs = supports_packing(model.cfg) and model.network.decoder_start_token_id is None
    lengths = _lengths(cfg, facts, found)
    rows = Rows(lengths, found.unit, builtin=_is_generated(cfg))
    settled: Any = resolved(cfg, Shape(facts.parameters, context, packs=packs), rows).cfg
    if settled.checkpointing == "auto":
        whole = getattr(cfg, "adapter", "none") == "none"
        needed = needs_checkpointing(model, device, _longest(settled, lengths), whole=whole)
        settled = replace(settled, checkpointing=needed)
    return cast("StageConfig", settled)


def settings_of(cfg: StageConfig) -> dict[str, Any]:
    """The settings that a rule may decide, with the numbers that they have."""
    if not isinstance(cfg, TrainingConfig):
        return {}
    unknown = left_to_rules(cfg)
    return {n: getattr(cfg, n) for n in BY_RULE if hasattr(cfg, n) and n not in unknown}


def _lengths(cfg: TrainingConfig, facts: ModelFacts, found: DataFacts) -> Any:
    """(N,) about the lengths of the rows to learn from."""
    if isinstance(cfg, PretrainConfig):
        return np.array([max(2, round(found.tokens or _UNKNOWN_LENGTH))])
    start = facts.model.network.decoder_start_token_id
    each = []
    for one in found.examples:
        if isinstance(cfg, SFTConfig):
            needed = len(one.ids)
            if cfg.loss_on != "all":
                needed, _ = fitted_length(one.mask, len(one.ids))
            if needed > 1:
                each.append(needed - 1)
        elif isinstance(cfg, PairsConfig):
            each.append(one.places(start))
        else:
            each.append(len(one))
    if not each:
        each = [_UNKNOWN_LENGTH]
    count = max(1, round(found.rows or len(each)))
    return np.resize(np.array(each, np.int64), count)


def _is_generated(cfg: Any) -> bool:
    try:
        return bool(cfg.data) and is_generated(cfg.data)
    except UserError:  # a mixture with something wrong in it, which the stage says itself
        return False


def _longest(cfg: Any, lengths: Any) -> int:
    if isinstance(cfg, RolloutConfig):
        return int(lengths.max()) + cfg.max_new_tokens
    if isinstance(cfg, PairsConfig):
        return 2 * cfg.sequence_length
    return int(cfg.sequence_length)
