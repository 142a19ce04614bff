"""Settings that have an effect only beside others. Standard library only.

A field says when it has one, where it is declared:

    gamma: float = only(0.5, lambda cfg: cfg.loss_type == "simpo", "the margin is simpo's")

and a class says which inherited fields it has no use for (`without_effect`: name → why), and which
of them have an effect only beside others there (`inherited_effects`: name → `Effect`). A value that
differs from the field's default and has no effect is refused by name: nobody is to believe that it
did something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ondevice.common.errors import UserError

_KEY = "has_effect"


@dataclass(frozen=True)
class Effect:
    """`holds(config)`: whether the field has an effect there; `why` it has none otherwise, and what
    to do.
    """

    holds: Callable[[Any], bool]
    why: str
    hint: str = "leave it out"


def only(default: Any, holds: Callable[[Any], bool], why: str, hint: str = "leave it out") -> Any:
    """A dataclass field that has an effect only where `holds(config)`."""
    return dataclasses.field(default=default, metadata={_KEY: Effect(holds, why, hint)})


def one_of(field: str, *values: str) -> Callable[[Any], bool]:
    """Holds where the field is one of the values, or (a tuple) has one of them."""

    def holds(cfg: Any) -> bool:
        value = getattr(cfg, field)
        if isinstance(value, str):
            return bool({value} & set(values))
        return bool(set(value) & set(values))

    return holds


def effects(cls: type) -> dict[str, Effect]:
    """Field → when it has an effect, of the fields that do not always have one."""
    own = {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata}
    inherited: Mapping[str, Effect] = getattr(cls, "inherited_effects", {})
    never: Mapping[str, str] = getattr(cls, "without_effect", {})
    return {
        **own,
        **inherited,
        **{name: Effect(lambda cfg: False, why) for name, why in never.items()},
    }


def idle(config: Any) -> Iterator[tuple[str, Effect]]:
    """The fields that differ from their defaults and have no effect."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, effect in effects(type(config)).items():
        if getattr(config, name) != defaults[name] and not effect.holds(config):
            yield name, effect


def refuse_idle(config: Any) -> None:
    """Raises UserError for the first setting without an effect."""
    for name, effect in idle(config):
        raise UserError(f"has no effect: {effect.why}", where=name, hint=effect.hint)


def without_idle(cls: type, values: Mapping[str, Any], filled: Iterable[str]) -> dict[str, Any]:
    """`values` (of the fields' own types) without those of `filled`, which a recipe has filled in,
    that have no effect beside what a person has given: `--recipe tiny --optimizer adamw` asks for
    no rate of Muon."""
    left, names = dict(values), set(filled)
    while gone := names & {name for name, _ in idle(cls(**left))} & set(left):
        left = {name: value for name, value in left.items() if name not in gone}
    return left
