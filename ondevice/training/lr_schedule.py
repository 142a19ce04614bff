"""The learning rate at each step: warm-up, then cosine, linear, constant or warm-up–stable–decay."""

from __future__ import annotations

import math
from dataclasses import replace

from ondevice.config.stages import TrainingConfig


def learning_rate(step: int, cfg: TrainingConfig) -> float:
    """The rate for the step after `step` finished ones. The warm-up reaches the peak at its last
    step.
    """
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    low = cfg.final_lr_fraction
    after = max(1, cfg.steps - cfg.warmup_steps)
    part = min(1.0, (step - cfg.warmup_steps) / after)
    if cfg.schedule == "cosine":
        shape = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * part))
    elif cfg.schedule == "linear":
        shape = low + (1 - low) * (1 - part)
    elif cfg.schedule == "wsd":
        falling = max(0.0, part - (1 - cfg.decay_fraction)) / max(cfg.decay_fraction, 1e-9)
        shape = 1 - (1 - low) * falling
    else:
        shape = 1.0
    return cfg.learning_rate * shape


def same_so_far(cfg: TrainingConfig, steps: int, done: int) -> bool:
    """Whether the first `done` rates would have been the same in a run of `steps` steps: always
    where the schedule is constant, before its decay where it is wsd, in the warm-up whatever it is.
    """
    other = replace(cfg, steps=steps)
    return all(learning_rate(step, cfg) == learning_rate(step, other) for step in range(done))
