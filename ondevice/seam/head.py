"""A head that writes: what turns hidden states into scores over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from ondevice.seam.ops import Array, Ops, Params


@dataclass(frozen=True)
class Head:
    """What turns a hidden state into logits: `name` is the weight's tensor (V, D), or what is
    packed of it; `bias` that of a bias (V,) which does not stand beside it under the same name; the
    state is multiplied by `scale` first."""

    name: str
    bias: str = ""
    scale: float = 1.0

    def params(self, params: Params) -> Params:
        """All that the head is made of: its weight, what quantises it, adapters, its bias."""
        return {
            n: p for n, p in params.items() if n.startswith(f"{self.module}.") or n == self.bias
        }

    def logits(self, ops: Ops, params: Params, x: Array) -> Array:
        """(N, V) float32 from x (N, D)."""
        z = ops.cast(
            ops.linear(params, self.module, x if self.scale == 1.0 else x * self.scale), "float32"
        )
        if self.bias:
            return z + ops.cast(ops.weight(params, self.bias), "float32")
        return z

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")
