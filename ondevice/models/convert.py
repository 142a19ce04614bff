"""A model's folder written anew in another form: quantised, or with its adapter in its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.common.files import whole_folder
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.load import load_model
from ondevice.models.model import Model, merged
from ondevice.models.quant import packed
from ondevice.models.save import write
from ondevice.models.shapes import SCORE, matrices
from ondevice.models.state_dict import BITS, quantised
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

GROUPS = (32, 64, 128)
COST = (
    "the base is quantised: merged, its weights are whole again and take several times the room; quantising them "
    "anew would round away a part of what was learned"
)
_DTYPES = ("float32", "bfloat16", "float16")


def quantize(
    model: str | Path,
    out: str | Path,
    bits: int = 4,
    group_size: int = 64,
    *,
    backend: Backend | None = None,
) -> Path:
    """Writes a model (a folder, an adapter's folder, a name on the Hub) with its matrices
    quantised, the embeddings among them; those whose rows are no whole number of groups stay as
    they are, and so does everything else, in the type of the config. Returns `out`.

    mlx-lm loads the folder; here it is a base for adapters, and for use. Raises UserError: bits or
    group_size out of range, a model that is quantised already, an `out` that is not empty.
    """
    for name, value, known in (("bits", bits, BITS), ("group_size", group_size, GROUPS)):
        if value not in known:
            raise UserError(
                f"{value} is none of its values",
                where=name,
                hint=f"known: {', '.join(map(str, known))}",
            )
    target = _empty(out)
    backend = backend or load_backend(device="cpu")
    found, dtype = quantised_model(load_model(model, backend), bits, group_size, backend)
    return _written(found, target, backend, dtype)


def quantised_model(
    found: Model, bits: int, group_size: int, backend: Backend
) -> tuple[Model, str]:
    """(the model with its matrices packed, the type of what is not). Raises UserError as `quantize`
    does.
    """
    if quantised(found.params):
        raise UserError("is quantised already", where=str(found.folder))
    if found.cfg.model_type == "gpt2" or not isinstance(found.cfg, DecoderConfig):
        raise UserError(
            f"a {found.cfg.model_type} model cannot be quantised",
            where=str(found.folder),
            hint="mlx-lm could not read its packed weights",
        )
    if found.cfg.dtype in _DTYPES:
        dtype = found.cfg.dtype
    else:
        dtype = "bfloat16"
    params: Params = {}
    wanted = matrices(found.cfg, every=True)
    for name, p in found.params.items():
        module = name.removesuffix(".weight")
        if module in wanted and name not in (module, SCORE) and wanted[module][1] % group_size == 0:
            parts = packed(backend.numpy(p), bits, group_size, dtype)
            params |= {
                f"{module}.{part}": backend.array(x)
                for part, x in zip(("weight", "scales", "biases"), parts, strict=True)
            }
        else:
            params[name] = p
    if not quantised(params):
        raise UserError(
            f"no matrix has rows of whole groups of {group_size}",
            where="group_size",
            hint="take a smaller one",
        )
    return found.with_params(params), dtype


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    backend: Backend | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes an adapter's folder as whole weights, in the type of the base's config. `told` hears
    what it costs where the base is quantised. Returns `out`. Raises UserError for a folder that is
    no adapter's, or a full `out`."""
    target = _empty(out)
    backend = backend or load_backend(device="cpu")
    found = load_model(adapter, backend, merge=False)
    if found.adapter is None:
        raise UserError("is not an adapter's folder: there is nothing to merge", where=str(adapter))
    if quantised(found.params):
        told(COST)
    if found.cfg.dtype in _DTYPES:
        dtype = found.cfg.dtype
    else:
        dtype = "float32"
    return _written(merged(found, backend), target, backend, dtype)


def _empty(out: str | Path) -> Path:
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("is there already", where=str(target), hint="name a new folder")
    return target


def _written(model: Model, target: Path, backend: Backend, dtype: str) -> Path:
    with whole_folder(target, replacing=False) as folder:
        write(folder, backend, model, dtype=dtype)
    return target
