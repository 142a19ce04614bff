"""What is put on a body in place of the head that writes: one number for a state.

A reward model reads it at a text's last token, a value model at every token. N states, D hidden.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ondevice.backend import Array, Backend, Ops, Params
from ondevice.models.folder import Model
from ondevice.models.names import SCORE, shapes
from ondevice.randomness import normal


def scalar_head(ops: Ops, params: Params, x: Array) -> Array:
    """(N,) float32 from the states `x` (N, D)."""
    return ops.cast(x @ ops.weight(params, SCORE).swapaxes(0, 1), "float32").reshape(-1)


def with_scalar_head(model: Model, backend: Backend, seed: int) -> Model:
    """The model's body under a new head of one score. The head begins at N(0, 1/(D + 1)) as in Huang 2024 (and in
    Stiennon 2020), drawn on the host: the same on both backends."""
    cfg = replace(model.cfg, num_labels=1)
    weight = normal(seed, SCORE, shapes(cfg)[SCORE], (cfg.hidden_size + 1) ** -0.5)
    params = {name: p for name, p in model.params.items() if not name.startswith("lm_head.")}
    if model.adapter is not None:  # what was learned of the head that writes goes with it
        model = replace(model, adapter=replace(model.adapter, whole=model.adapter.whole - {"lm_head.weight"}))
    return replace(model, cfg=cfg, params={**params, SCORE: backend.array(np.asarray(weight))})
