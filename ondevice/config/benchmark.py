"""The settings of the benchmark: how fast this machine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How fast this machine is in each stage: the standard cases, on random weights and data."""

    sizes: tuple[str, ...] = ("10M", "135M")
    """Models: 10M, 135M (the shape of SmolLM2-135M)."""
    seconds: float = 170.0
    """About how long all cases take together; none is left out, so that a slow machine takes longer."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU, float32 on a CPU."""

    def check(self) -> None:
        """Raises UserError naming the field that is out of range."""
        known = ("10M", "135M")
        if not self.sizes or set(self.sizes) - set(known):
            raise UserError(
                f"{', '.join(self.sizes) or 'nothing'} is not a size of the benchmark",
                where="sizes",
                hint=f"known: {', '.join(known)}",
            )
        if not self.seconds > 0:
            raise UserError(
                f"{self.seconds:g} is too small", where="seconds", hint="give more than 0"
            )
