"""Parameters in the type that is computed in, for whoever only uses them: cast once, where training
casts its float32 ones at every forward pass.
"""

from __future__ import annotations

from ondevice.models.external_config import LibraryConfig
from ondevice.models.model import Model
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend


def cast_once(model: Model, params: Params, backend: Backend) -> Params:
    """The parameters of `model`, and of models beside it, with the matrices in the compute type: a
    copy that gives the same numbers, to drop before the parameters change. Under float32 the
    parameters themselves; those of another library's model too, which casts by its own rules.
    """
    if backend.dtype == "float32" or isinstance(model.cfg, LibraryConfig):
        return params
    made: Params = {}
    for name, p in params.items():
        if _is_cast(p):
            made[name] = backend.ops.cast(p, backend.dtype)
        else:
            made[name] = p
    return made


def _is_cast(p: Array) -> bool:
    """Whether it is a matrix of float32 numbers; gains of norms are read as float32."""
    return p.ndim >= 2 and str(p.dtype).endswith("float32")


def for_use(model: Model, backend: Backend) -> Model:
    """The model with all of its weights in the compute type; those that it had are gone."""
    params = model.release()
    made: Params = {}
    for name in list(params):
        p = params.pop(name)
        if str(p.dtype).endswith("float32") and ".lora_" not in name:
            p = backend.ops.cast(p, backend.dtype)
        made[name] = p
    return model.with_params(made)
