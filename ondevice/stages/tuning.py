"""What a stage that tunes a model starts from: whole weights, or a base that stays as it is with a
new adapter.

The reference of a stage is its start (the base with the adapters of earlier stages). A new adapter
adds nothing, so that the model with it is the reference to the last bit until the first step.
"""

from __future__ import annotations

from dataclasses import replace

from ondevice.common.errors import UserError, nearest
from ondevice.config.stages import TuningConfig
from ondevice.data.chat_encoding import with_template_kwargs
from ondevice.hub import snapshot
from ondevice.models.convert import COST
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.load import load_model
from ondevice.models.lora import init_lora, is_adapter, matching_modules, scale_of
from ondevice.models.model import Adapter, Model, merged
from ondevice.models.network import supports_packing
from ondevice.models.shapes import matrices, score_head_shapes
from ondevice.models.state_dict import quantised
from ondevice.models.tensor_names import is_block_matrix, is_embedding, is_router
from ondevice.runs.context import Context


def load_start(name: str, cfg: TuningConfig, ctx: Context, *, backbone_only: bool = False) -> Model:
    """The model as training reads it: whole weights in float32, or a frozen base in the compute
    type with the adapters of earlier stages beside it; `backbone_only` as in `load_model`. Raises
    UserError as that does, and for quantised weights that were to be trained."""
    if cfg.adapter == "lora":
        return _checked(
            load_model(
                name, ctx.backend, dtype=ctx.backend.dtype, merge=False, backbone_only=backbone_only
            ),
            cfg,
        )
    model = _checked(load_model(name, ctx.backend, backbone_only=backbone_only), cfg)
    if quantised(model.params):
        raise UserError(
            "quantised weights cannot be trained",
            where=name,
            hint="train an adapter beside them: --adapter lora",
        )
    return model


def _checked(model: Model, cfg: TuningConfig) -> Model:
    if not supports_packing(model.cfg) and cfg.checkpointing:
        raise UserError(
            f"cannot be had for a {model.cfg.model_type} model, whose layers are its library's",
            where="checkpointing",
            hint="leave it out",
        )
    return replace(model, tokenizer=with_template_kwargs(model.tokenizer, cfg.chat_template_kwargs))


def with_adapter(model: Model, cfg: TuningConfig, ctx: Context) -> Model:
    """The model with an adapter of the stage's own, where the settings ask for one. Raises
    UserError for targets that the model has not."""
    if cfg.adapter != "lora":
        return model
    through, own = matrices(model.cfg), score_head_shapes(model.cfg)
    whole = _chosen(matrices(model.cfg, every=True), cfg.lora_whole, "lora_whole")
    whole = list(
        dict.fromkeys(
            [*whole, *(name.removesuffix(".weight") for name in own if name.endswith(".weight"))]
        )
    )
    if not isinstance(model.cfg, DecoderConfig) and any(
        is_embedding(f"{name}.weight") for name in whole
    ):
        raise UserError(
            f"the embeddings of a {model.cfg.model_type} model cannot be trained beside an adapter",
            where="lora_whole",
            hint="leave them out, or train all weights",
        )
    packed = set(whole) & set(quantised(model.params))
    if packed:
        raise UserError(
            f"{min(packed)} is quantised and cannot be trained whole",
            where="lora_whole",
            hint="leave it out, or take a base with whole weights",
        )
    if cfg.lora_targets:
        targets = _chosen(through, cfg.lora_targets, "lora_targets")
    else:
        targets = [
            name
            for name in through
            if is_block_matrix(f"{name}.weight", through[name]) and not is_router(name)
        ]
    targets = [name for name in targets if name not in whole]
    if not targets and not whole:
        raise UserError(
            "the model has no matrix that could get an adapter",
            where="lora_targets",
            hint="name some, or train all weights",
        )
    scale = scale_of(cfg.lora_alpha, cfg.lora_rank, cfg.lora_rslora)
    new = init_lora(
        {name: through[name] for name in targets},
        cfg.lora_rank,
        scale,
        cfg.seed,
        f"{ctx.name} lora",
        ctx.backend,
    )
    ops = ctx.backend.ops
    weights = {
        name: ops.cast(model.params[name], "float32")
        for name in {*(f"{m}.weight" for m in whole), *own}
    }
    before = model.adapter or Adapter(*snapshot.name_of(model.folder))
    scales = {name for name in new if ".lora_scale." in name}
    return replace(
        model,
        params={**model.params, **weights, **new},
        adapter=replace(
            before,
            whole=before.whole | set(weights),
            trained=frozenset(set(new) - scales | set(weights)),
        ),
    )


def result(model: Model, cfg: object, ctx: Context) -> Model:
    """What the stage leaves: the model as it is, or, where `merge` asks for it, with its adapters
    in its weights.
    """
    if model.adapter is None or not (isinstance(cfg, TuningConfig) and cfg.merge):
        return model
    params = model.params
    if (
        ctx.backend.dtype != "float32"
    ):  # the base as its file has it, not in the type that was computed in
        start = load_model(getattr(cfg, "model", model.folder), ctx.backend, merge=False).params
        params = {
            n: p if is_adapter(n) or n in model.adapter.whole else start[n]
            for n, p in params.items()
        }
    made = merged(model.with_params(params), ctx.backend)
    if quantised(model.params):
        ctx.warn(COST)
    return made


def _chosen(names: dict[str, tuple[int, int]], patterns: tuple[str, ...], where: str) -> list[str]:
    """The modules that the patterns mean. Raises UserError for a pattern that means none."""
    for pattern in patterns:
        if not matching_modules(names, [pattern]):
            ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
            raise UserError(
                f"the model has no matrix {pattern!r}", where=where, hint=nearest(pattern, ends)
            )
    return matching_modules(names, patterns)
