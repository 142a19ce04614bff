"""How a config stretches its rotary positions, checked when it is read: whatever is asked for is
computed as transformers does it, or refused by name before anything else is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.numbers import is_number
from ondevice.models.config_fields import Fields, unread

_ORIGINAL = "original_max_position_embeddings"
# kind → the numbers that it must have, and those that it may have. What transformers keeps beside
# them is `rope_theta`.
_NUMBERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "yarn": (
        ("factor",),
        (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
    "longrope": ((), (_ORIGINAL, "factor", "attention_factor")),
}
KINDS = tuple(_NUMBERS)


def read_rope(raw: Fields, context: int, head_dim: int) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling) of the rotation, of the layers with the whole context where Gemma has two.
    Both ways of writing it are read. Raises UserError for a kind, a setting or a value that is not
    known here."""
    new = raw.get("rope_parameters") or {}
    old = raw.get("rope_scaling") or {}
    for name, said in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(said, dict):
            raise UserError(f"{said!r} is not a table of settings", where=name)
    if by_type(new):
        _need_plain(new.get("sliding_attention") or {})
        new = new.get("full_attention") or {}
    rope = Fields({**old, **new})
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    if not is_number(theta) or not theta > 0:
        raise UserError(f"{theta!r} is not a number above 0", where="rope_theta")
    _whole_head(rope, raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind and "rope_type" in new:
        kind = new["rope_type"]  # what transformers 5 writes beside an old spelling
    if kind == "mrope" or kind not in (*KINDS, "default"):
        raise UserError(
            f"unknown rope scaling {kind!r}",
            where="rope_scaling",
            hint=f"known: {', '.join(KINDS)}",
        )
    if kind == "default":
        _need_known(rope)
        return float(theta), None
    needed, optional = _NUMBERS[kind]
    for name in (*needed, *optional):
        value = rope.get(name)
        wanted = is_number(value) and value > 0
        if not wanted and (value is not None or name in needed):
            raise UserError(f"{name} is {value!r}, no number above 0", where="rope_scaling")
    if kind == "yarn" and not isinstance(rope.get("truncate", True), bool):
        raise UserError(
            f"truncate is {rope['truncate']!r}, neither true nor false", where="rope_scaling"
        )
    if kind == "longrope":
        _need_factors(rope, head_dim)
    _need_known(rope)
    scaling = {
        name: value for name, value in rope.items() if name not in ("rope_theta", "type")
    } | {"rope_type": kind}
    outside = raw.get(_ORIGINAL)  # where Phi's configs have it; it comes first, as in transformers
    if kind in ("llama3", "yarn", "longrope"):
        scaling[_ORIGINAL] = outside or scaling.get(_ORIGINAL) or context
        if not is_number(scaling[_ORIGINAL]) or not scaling[_ORIGINAL] > 0:
            raise UserError(f"{scaling[_ORIGINAL]!r} is not a number above 0", where=_ORIGINAL)
    if kind == "longrope" and scaling.get("factor") is None:
        scaling["factor"] = context / scaling[_ORIGINAL]
    return float(theta), scaling


def by_type(rope: Mapping[str, Any]) -> bool:
    """Whether the settings are said of each kind of layer apart."""
    return "full_attention" in rope or "sliding_attention" in rope


def _whole_head(rope: Fields, raw: Fields) -> None:
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise UserError(
            f"{share!r} of a head's width is turned: all of it is here",
            where="partial_rotary_factor",
        )


def _need_plain(local: Mapping[str, Any]) -> None:
    kind = local.get("rope_type", local.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"unknown rope scaling {kind!r} of layers with a window", where="rope_parameters"
        )


def _need_factors(rope: Fields, head_dim: int) -> None:
    for name in ("short_factor", "long_factor"):
        value = rope.get(name)
        if (
            not isinstance(value, list)
            or len(value) != head_dim // 2
            or not all(is_number(x) and x > 0 for x in value)
        ):
            raise UserError(
                f"{name} is not a list of {head_dim // 2} numbers above 0", where="rope_scaling"
            )


def _need_known(rope: Fields) -> None:
    """Raises UserError for a setting that nobody has asked for. `finetuned` of the first YaRN
    models says how they were made, and an original context changes nothing where no kind of scaling
    reads it."""
    strange = unread(rope, (_ORIGINAL, "finetuned"))
    if strange:
        raise UserError(
            f"{strange[0]} is not known here of rope scaling",
            where="rope_scaling",
            hint="take it out if it changes no number",
        )
