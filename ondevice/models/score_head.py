"""What is put on a body in place of the head that writes or fills masks: some scores for a state.

A reward model reads one at a text's token (`Network.pooling`), a value model one at every token, a
classifier one a class. N states, D hidden.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.rng import normal
from ondevice.models.model import Model, tensors_of_config
from ondevice.models.network import Network
from ondevice.models.shapes import shapes
from ondevice.seam.ops import Array, Ops, Params
from ondevice.seam.protocols import Backend


def class_scores(ops: Ops, params: Params, model: Network, x: Array) -> Array:
    """(N, labels) float32 from the states `x` (N, D)."""
    return ops.cast(ops.linear(params, model.score, x), "float32")


def scalar_head(ops: Ops, params: Params, model: Network, x: Array) -> Array:
    """(N,) float32 from the states `x` (N, D) under a head of one score."""
    return class_scores(ops, params, model, x).reshape(-1)


def need_scores(model: Model) -> None:
    """Raises UserError for an architecture that only writes, which no other setting could mend."""
    if not model.network.score:
        raise UserError(
            f"a {model.cfg.model_type} model has no head of scores here",
            where=str(model.folder),
            hint="take a decoder or an encoder",
        )


def with_head(
    model: Model, backend: Backend, seed: int, labels: int = 1, names: tuple[str, ...] = ()
) -> Model:
    """The model's body, with its adapters, under a new head of some scores. The head begins at N(0,
    1/(D + 1)) as in Huang 2024 (and in Stiennon 2020), a layer before it at N(0, 1/D), biases at 0,
    drawn on the host: the same on both backends. Raises UserError as `need_scores`."""
    need_scores(model)
    # that of the head before
    raw = {name: value for name, value in model.cfg.raw.items() if name != "problem_type"}
    cfg = replace(model.cfg, num_labels=labels, label_names=names, raw=raw)
    head = model.network.score + ".weight"
    params = tensors_of_config(model.params, cfg)
    for name, shape in shapes(cfg).items():
        if name in params and not name.startswith(f"{model.network.score}."):
            continue
        if len(shape) == 1:
            params[name] = backend.array(
                np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
            )
        else:
            params[name] = backend.array(
                normal(seed, name, shape, (shape[1] + (name == head)) ** -0.5)
            )
    adapter = model.adapter
    if adapter is not None:  # what was learned of the head that writes goes with it
        adapter = replace(
            adapter, whole=adapter.whole & set(params), trained=adapter.trained & set(params)
        )
    return replace(model, cfg=cfg, params=params, adapter=adapter)


def names_of(model: Model) -> tuple[str, ...]:
    """What the model's classes are called: their numbers, where its folder does not say."""
    return model.cfg.label_names or tuple(map(str, range(model.cfg.num_labels)))
