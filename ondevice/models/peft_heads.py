"""What an adapter's folder says of embeddings and heads, as PEFT reads it.

A module of `modules_to_save` is a copy of its own: over a base whose head is its table, a table
that was trained leaves the head as it was, and the other way round, unless `ensure_weight_tying`
says otherwise. A tensor of the base itself (`lm_head.base_layer.weight`, embeddings of a longer
vocabulary) is put into the base, where what is tied stays so. LoRA on a tied head adds to the head
alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.network import network
from ondevice.models.peft import AdapterFiles
from ondevice.models.registry import ModelConfig
from ondevice.models.shapes import embedding_name
from ondevice.models.tied_embeddings import head_module, untie_head
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

_HINT = "merge it with PEFT first"


def resolve_copied_heads(
    found: AdapterFiles, cfg: ModelConfig, params: Params, dtype: str, backend: Backend, where: str
) -> tuple[ModelConfig, Params, AdapterFiles]:
    """(the base's config, untied where the adapter makes head and table two; its tensors; the
    adapter, whose `whole` alone differs from the base). Raises UserError for what PEFT would
    compute and we do not."""
    whole = _base_tensors(found, cfg, params, dtype, backend, where)
    head, embeddings = f"{head_module(cfg)}.weight", embedding_name(cfg)
    tied = _tied(found, cfg)
    touched = [
        name
        for name in (head, embeddings)
        if name in found.whole or name.removesuffix(".weight") in found.pairs
    ]
    if not tied or not touched:
        return cfg, params, replace(found, whole={**whole, **found.whole}, base={})
    ours = isinstance(cfg, DecoderConfig)
    kept = bool(found.config.get("ensure_weight_tying"))
    saved, own = found.whole.get(embeddings), found.whole.get(head)
    adapted = head.removesuffix(".weight") in found.pairs
    if saved is not None and own is not None and not adapted and _same(saved, own, backend):
        rest = {name: p for name, p in found.whole.items() if name != head}
        return cfg, params, replace(found, whole={**whole, **rest}, base={})
    if kept and (own is not None or adapted):
        raise UserError(
            "has a head apart from its base's embeddings, and says that they are tied",
            where=where,
            hint=_HINT,
        )
    if kept:
        return cfg, params, replace(found, whole={**whole, **found.whole}, base={})
    if not ours:
        raise UserError(
            f"has {touched[0]} apart from what it is tied to, which is not known here of a "
            f"{cfg.model_type} model",
            where=where,
            hint=_HINT,
        )
    cfg, params = untie_head(cfg, params)
    if embeddings in whole:  # the base's own, from the adapter's folder: its head too
        whole[head] = whole[embeddings]
    whole |= found.whole
    rows = {int(whole.get(name, params[name]).shape[0]) for name in (head, embeddings)}
    if len(rows) > 1:
        raise UserError(
            f"has embeddings and a head of {min(rows)} and {max(rows)} tokens",
            where=where,
            hint=_HINT,
        )
    return cfg, params, replace(found, whole=whole, base={})


def _tied(found: AdapterFiles, cfg: ModelConfig) -> bool:
    """Whether the model writes or fills masks, and its head is its table."""
    return (
        not cfg.num_labels
        and f"{network(cfg).score}.weight" not in found.whole
        and network(cfg).head.name == embedding_name(cfg)
    )


def _base_tensors(
    found: AdapterFiles, cfg: ModelConfig, params: Params, dtype: str, backend: Backend, where: str
) -> Params:
    """Those of the adapter's tensors for the base itself that are not what it has already, a tied
    head's under the table's name. Raises UserError for one that an adapter stands on, or two that
    are to be one."""
    head, embeddings = f"{head_module(cfg)}.weight", embedding_name(cfg)
    tied, out = _tied(found, cfg), dict[str, Any]()
    for name, p in found.base.items():
        stands = embeddings if tied and name == head else name
        before = params.get(stands)
        if before is not None and _same(backend.ops.cast(p, dtype), before, backend):
            continue
        if name.removesuffix(".weight") in found.pairs:
            raise UserError(
                f"was made on another {name} than its base's",
                where=where,
                hint="they do not belong together, or merge it with PEFT first",
            )
        if stands in out and not _same(out[stands], p, backend):
            raise UserError(
                f"has another {name} than {embeddings}, which are one in its base",
                where=where,
                hint=_HINT,
            )
        out[stands] = p
    return out


def _same(one: object, other: object, backend: Backend) -> bool:
    a, b = backend.numpy(one), backend.numpy(other)  # type: ignore[arg-type]
    return a.shape == b.shape and bool(np.array_equal(a, b))
