"""Which pairs GRPO learns from beside its rewards, so that what preferences taught stays."""

from __future__ import annotations

from pathlib import Path

from ondevice.config.preference import DPOConfig, GRPOConfig
from ondevice.datasets.chats_beside import stages_before
from ondevice.preferences.sqlite_store import FILE


def kept_pairs(cfg: GRPOConfig, run: Path) -> DPOConfig | None:
    """The settings by which the pairs are read; None where none are asked for, or neither the run
    nor one that the model came through has ratings."""
    if not cfg.pair_coef:
        return None
    data = cfg.pair_data
    if not data:
        runs = [run, *(stage.path.parent for stage in stages_before(cfg.model))]
        rated = [place / FILE for place in runs if (place / FILE).is_file()]
        if not rated:
            return None
        data = str(rated[0])
    return DPOConfig(
        model=cfg.model,
        data=data,
        seed=cfg.seed,
        batch_size=cfg.pair_batch,
        beta=cfg.pair_beta,
        micro_batch=cfg.micro_batch,
        adapter=cfg.adapter,
        chat_template_kwargs=cfg.chat_template_kwargs,
    )
