"""The optimizer of a stage's settings, as a backend takes it."""

from __future__ import annotations

from ondevice.config.stages import TrainingConfig
from ondevice.models.tensor_names import is_block_matrix
from ondevice.seam.ops import Params
from ondevice.seam.protocols import OptimSettings


def optim_settings(cfg: TrainingConfig, params: Params) -> OptimSettings:
    """The optimizer's settings as a backend takes them. Muon updates the matrices of the blocks."""
    matrices = []
    ratio = 0.0
    if cfg.optimizer == "muon":
        ratio = cfg.muon_learning_rate / cfg.learning_rate
        for name, array in params.items():
            if is_block_matrix(name, array.shape):
                matrices.append(name)
    return OptimSettings(
        optimizer=cfg.optimizer,
        beta1=cfg.beta1,
        beta2=cfg.beta2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        muon_ratio=ratio,
        muon_names=frozenset(matrices),
        shard=cfg.shard == "state",
    )
