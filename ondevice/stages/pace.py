"""How fast this machine learns now: some steps of a model as it is, before a stage's steps are
counted out. What was calibrated may have been measured while other programs ran, or none did."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ondevice.common.clock import ticks
from ondevice.config.stages import TrainingConfig
from ondevice.models.load import load_model
from ondevice.planning.dimensions import dimensions
from ondevice.planning.machine import Machine
from ondevice.planning.measure import text_batch
from ondevice.planning.model_facts import ModelFacts
from ondevice.planning.seconds import step_seconds
from ondevice.planning.trained import trained_by
from ondevice.planning.work import Work, pass_of
from ondevice.seam.protocols import Backend
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings

_NOT_COUNTED = 3  # steps: compilers, and memory that is asked for the first time
_LEAST = 5


def pace(
    cfg: TrainingConfig, folder: Path, backend: Backend, machine: Machine, seconds: float
) -> float:
    """Seconds of a step of running text, as a part of what the calibration says; takes about so
    many `seconds`. `cfg` has no auto, and trains all weights."""
    model = load_model(folder, backend)
    if isinstance(cfg.micro_batch, str):
        rows = cfg.batch_size
    else:
        rows = cfg.micro_batch
    rows = max(1, min(rows, cfg.batch_size, 64))
    length = min(getattr(cfg, "sequence_length", 128), model.cfg.max_position_embeddings)
    batch = text_batch(rows, length, min(256, model.cfg.vocab_size))
    loss = partial(causal_lm_loss, model=model.network, checkpoint=cfg.checkpointing)
    trainer = backend.trainer(
        loss, model.params, {}, optim_settings(cfg, model.params), compile=cfg.compile
    )
    placed = model.with_tables(backend, batch)
    for _ in range(_NOT_COUNTED):
        trainer.step([placed], 1e-6)
    began, done = ticks(), 0
    while done < _LEAST or ticks() - began < seconds:
        trainer.step([placed], 1e-6)
        done += 1
    taken = (ticks() - began) / done
    assert machine.speeds is not None
    planned = step_seconds(
        Work([pass_of(batch)], updates=1),
        cfg,
        trained_by(cfg, ModelFacts(model), machine.dtype),
        dimensions(model.cfg),
        costs=machine.costs,
        speeds=machine.speeds,
        size=2 if machine.dtype == "bfloat16" else 4,
    )
    return taken / max(planned, 1e-9)
