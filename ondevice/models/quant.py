"""Group-affine quantisation in mlx-community's format, written once in numpy: both backends read the same bits.

A matrix (outputs, inputs) becomes words of 32 bits, the first value in the lowest ones, and a scale and a bias for each
`group_size` values of a row: w ≈ q · scale + bias. How scale and bias are chosen is MLX's own rule (`mx.quantize`): the
end of a group that is farther from 0 is met exactly, and 0 is one of the values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ondevice.backend import Backend, HostArray, Params
from ondevice.errors import UserError
from ondevice.models.names import BITS

GROUPS = (32, 64, 128)
Floats = NDArray[np.float32]


def packed(weight: HostArray, bits: int, group_size: int,
           dtype: str = "float32") -> tuple[NDArray[np.uint32], Floats, Floats]:
    """(words (outputs, inputs · bits / 32), scales, biases (outputs, inputs / group_size)) of a matrix. Scales and
    biases are numbers of the type `dtype`, in which a file is to keep them: values are counted in these."""
    outputs, inputs = weight.shape
    most = np.float32(2**bits - 1)
    groups = weight.astype(np.float32).reshape(outputs, -1, group_size)
    low, high = groups.min(-1), groups.max(-1)
    below = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / most, np.float32(1e-7))
    scales = np.where(below, scales, -scales)
    edge = np.where(below, low, high)
    steps = np.rint(edge / scales)
    scales = _rounded(np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scales), dtype)
    biases = _rounded(np.where(steps != 0, edge, 0), dtype)
    q = np.clip(np.rint((groups - biases[..., None]) / scales[..., None]), 0, most).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.bitwise_or.reduce(q.reshape(outputs, -1, 32 // bits) << shifts, -1)
    return words, scales, biases


def _rounded(x: HostArray, dtype: str) -> Floats:
    """The nearest numbers of a type, as float32; numpy has no bfloat16."""
    single = x.astype(np.float32)
    if dtype == "bfloat16":
        bits = single.view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        single = bits.view(np.float32)
    return single.astype(np.float16).astype(np.float32) if dtype == "float16" else single


def unpacked(words: NDArray[np.uint32], scales: HostArray, biases: HostArray, inputs: int) -> Floats:
    """The matrix (outputs, inputs) that `packed` stands for."""
    outputs, bits = words.shape[0], 32 * words.shape[1] // inputs
    q = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
    grouped = q.reshape(outputs, scales.shape[1], -1).astype(np.float32)
    made: Floats = (grouped * scales[..., None] + biases[..., None]).astype(np.float32).reshape(outputs, inputs)
    return made


def dequantised(params: Params, module: str, inputs: int, backend: Backend) -> Floats:
    """A quantised module's matrix on the host."""
    words, scales, biases = (backend.numpy(params[f"{module}.{part}"]) for part in ("weight", "scales", "biases"))
    return unpacked(words.view(np.uint32), scales, biases, inputs)


def check(bits: int, group_size: int) -> None:
    """Raises UserError naming what is out of range."""
    for name, value, known in (("bits", bits, BITS), ("group_size", group_size, GROUPS)):
        if value not in known:
            raise UserError(f"{value} is none of its values", where=name, hint=f"known: {', '.join(map(str, known))}")


def quantize(folder: str | Path, out: str | Path, bits: int = 4, group_size: int = 64, *,
             backend: Backend | None = None) -> Path:
    """Writes a model's folder anew with its matrices quantised, the embeddings among them; those whose rows are no
    whole number of groups stay as they are, and so does everything else, in the type of the config. Returns `out`.

    mlx-lm loads the folder; here it is a base for adapters, and for use. Raises UserError: bits or group_size out of
    range, a model that is quantised already, an `out` that is not empty.
    """
    from ondevice.backend import load_backend
    from ondevice.checkpoint import whole_folder
    from ondevice.models.folder import load_model, write_model
    from ondevice.models.names import SCORE, matrices, quantised

    check(bits, group_size)
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("is there already", where=str(target), hint="name a new folder")
    backend = backend or load_backend(device="cpu")
    model = load_model(folder, backend)
    if quantised(model.params):
        raise UserError("is quantised already", where=str(folder))
    if model.cfg.model_type == "gpt2":
        raise UserError("GPT-2 cannot be quantised", where=str(folder), hint="mlx-lm could not read its packed weights")
    dtype = model.cfg.dtype if model.cfg.dtype in ("float32", "bfloat16", "float16") else "bfloat16"
    params: Params = {}
    wanted = matrices(model.cfg, every=True)
    for name, p in model.params.items():
        module = name.removesuffix(".weight")
        if module in wanted and name not in (module, SCORE) and wanted[module][1] % group_size == 0:
            words, scales, biases = packed(backend.numpy(p), bits, group_size, dtype)
            params |= {f"{module}.weight": backend.array(words), f"{module}.scales": backend.array(scales),
                       f"{module}.biases": backend.array(biases)}
        else:
            params[name] = p
    if not quantised(params):
        raise UserError(f"no matrix has rows of whole groups of {group_size}", where="group_size",
                        hint="take a smaller one")
    with whole_folder(target) as folder_:
        write_model(folder_, backend, model.cfg, params, model.tokenizer, dtype=dtype)
    return target
