"""Low-rank adapters (Hu 2021): W·x + scale · B·(A·x), with A and B beside the weight W in the flat
dict.

    <module>.lora_A.<adapter>      (rank, inputs)
    <module>.lora_B.<adapter>      (outputs, rank); zeros at the start, so that nothing is changed yet
    <module>.lora_scale.<adapter>  (), alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)

A model has at most two: INHERITED, what earlier stages have learned, frozen and applied, and
TRAINED, a stage's own. Both backends' `Ops.linear` read them here, whatever the forward.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ondevice.common.rng import normal
from ondevice.seam.ops import Array, HostArray, Ops, Params
from ondevice.seam.protocols import Backend

INHERITED, TRAINED = "inherited", "trained"
_A = ".lora_A."


class Pair(NamedTuple):
    """One adapter of one module on the host: A (rank, inputs), B (outputs, rank), scale."""

    a: HostArray
    b: HostArray
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def delta(self) -> HostArray:
        """(outputs, inputs): what it adds to the weight."""
        product = self.b.astype(np.float32) @ self.a.astype(np.float32)
        made: HostArray = np.float32(self.scale) * product
        return made


def add_adapters(ops: Ops, params: Params, name: str, x: Array, y: Array) -> Array:
    """`y`, what the module `name` gives for `x`, and what its adapters add to it."""
    before = name + _A
    for key in params:
        if key.startswith(before):
            adapter = key[len(before) :]
            low = ops.product(x, ops.weight(params, key))
            # of the few numbers between both matrices, not of the many after them
            low = low * ops.weight(params, f"{name}.lora_scale.{adapter}")
            y = ops.add_product(y, low, ops.weight(params, f"{name}.lora_B.{adapter}"))
    return y


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    if rslora:
        return float(alpha / rank**0.5)
    return alpha / rank


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is an adapter's."""
    return ".lora_" in name


def adapted_modules(params: Iterable[str], adapter: str = "") -> list[str]:
    """The modules that have this adapter, or any."""
    ending = ""
    if adapter:
        ending = _A + adapter
    found: dict[str, None] = {}
    for name in params:
        if _A in name and name.endswith(ending):
            found[name.partition(_A)[0]] = None
    return list(found)


def by_module(params: Mapping[str, Array]) -> dict[str, Params]:
    """Module → all tensors of its adapters, under their own names."""
    out: dict[str, Params] = {}
    for name, p in params.items():
        if is_adapter(name):
            out.setdefault(name.partition(".lora_")[0], {})[name] = p
    return out


def init_lora(
    modules: Mapping[str, tuple[int, int]],
    rank: int,
    scale: float,
    seed: int,
    what: str,
    backend: Backend,
) -> Params:
    """TRAINED adapters of `modules`, name → (outputs, inputs). A has the variance that PEFT draws
    it with, 1 / (3 · inputs), and is drawn on the host: the same on both backends."""
    out: Params = {}
    for name, (outputs, inputs) in modules.items():
        a = normal(seed, f"{what} {name}", (rank, inputs), (3 * inputs) ** -0.5)
        b = np.zeros((outputs, rank), np.float32)
        out |= lora_tensors(name, Pair(a, b, scale), TRAINED, backend)
    return out


def lora_tensors(name: str, pair: Pair, adapter: str, backend: Backend) -> Params:
    """A module's adapter as tensors of the flat dict, float32."""
    parts = {"lora_A": pair.a, "lora_B": pair.b, "lora_scale": np.asarray(pair.scale)}
    out: Params = {}
    for part, value in parts.items():
        out[f"{name}.{part}.{adapter}"] = backend.array(np.asarray(value, np.float32))
    return out


def pairs(params: Params, backend: Backend, adapter: str) -> Iterator[tuple[str, Pair]]:
    """(module, its adapter) of all that have one of this name."""
    for name in adapted_modules(params, adapter):
        a = backend.numpy(params[f"{name}.lora_A.{adapter}"])
        b = backend.numpy(params[f"{name}.lora_B.{adapter}"])
        scale = backend.numpy(params[f"{name}.lora_scale.{adapter}"])
        yield name, Pair(a, b, float(scale))


def concat_lora(first: Pair | None, second: Pair | None) -> Pair:
    """One adapter that adds what both add: the ranks one after the other, the scale the second
    one's.
    """
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    ratio = np.float32(first.scale / second.scale)
    first_b = first.b
    if ratio != 1:
        first_b = first.b * ratio
    a = np.concatenate([first.a, second.a])
    b = np.concatenate([first_b, second.b], 1)
    return Pair(a, b, second.scale)


def concat_all_lora(params: Params, backend: Backend) -> dict[str, Pair]:
    """Module → the one adapter that adds what its inherited and its trained one add."""
    first = dict(pairs(params, backend, INHERITED))
    second = dict(pairs(params, backend, TRAINED))
    names = adapted_modules(params)
    return {name: concat_lora(first.get(name), second.get(name)) for name in names}


def matching_modules(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that a pattern means: the last parts of a name (q_proj, self_attn.q_proj),
    or all of it with *, ? and [] (model.layers.1?.mlp.*)."""
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    return fnmatch.fnmatchcase(name, pattern)
