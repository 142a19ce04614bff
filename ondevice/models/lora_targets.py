"""Which modules of a model get an adapter, and which are trained whole beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ondevice.common.errors import UserError, nearest
from ondevice.models.lora import matching_modules
from ondevice.models.registry import ModelConfig
from ondevice.models.shapes import matrices
from ondevice.models.tensor_names import is_block_matrix, is_router

Sizes = dict[str, tuple[int, int]]
"""Module → (outputs, inputs) of its matrix."""


def target_shapes(cfg: ModelConfig, targets: Sequence[str], whole: Collection[str] = ()) -> Sizes:
    """The modules that get an adapter: those that `targets` name, else every matrix of a block
    except a router's. Modules that are trained `whole` get none. Raises UserError as
    `chosen_modules`.
    """
    known = matrices(cfg)
    if targets:
        names = chosen_modules(known, targets, "lora_targets")
    else:
        names = [name for name in known if _is_usual_target(name, known[name])]
    return {name: known[name] for name in names if name not in whole}


def chosen_modules(names: Sizes, patterns: Sequence[str], where: str) -> list[str]:
    """The modules that the patterns mean. Raises UserError for a pattern that means none."""
    for pattern in patterns:
        if not matching_modules(names, [pattern]):
            ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
            raise UserError(
                f"the model has no matrix {pattern!r}", where=where, hint=nearest(pattern, ends)
            )
    return matching_modules(names, patterns)


def _is_usual_target(name: str, shape: tuple[int, int]) -> bool:
    return is_block_matrix(f"{name}.weight", shape) and not is_router(name)
