"""What a stage that tunes a model starts from: whole weights, or a base that stays as it is with a
new adapter.

The reference of a stage is its start (the base with the adapters of earlier stages). A new adapter
adds nothing, so that the model with it is the reference to the last bit until the first step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ondevice.common.errors import UserError
from ondevice.config.finetuning import TuningConfig
from ondevice.data.chat_encoding import with_template_kwargs
from ondevice.data.shared_prompts import NO_SHARING
from ondevice.hub import snapshot
from ondevice.models.compute_type import cast_once
from ondevice.models.convert import COST
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.load import load_model
from ondevice.models.lora import TRAINED, init_lora, is_adapter, scale_of
from ondevice.models.lora_targets import chosen_modules, target_shapes
from ondevice.models.model import Adapter, Model, merged
from ondevice.models.network import supports_packing
from ondevice.models.shapes import matrices, score_head_shapes
from ondevice.models.state_dict import quantised
from ondevice.models.tensor_names import is_embedding
from ondevice.runs.context import Context
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


def load_start(
    name: str, cfg: TuningConfig, backend: Backend, *, backbone_only: bool = False
) -> Model:
    """The model as training reads it: whole weights in float32, or a frozen base in the compute
    type with the adapters of earlier stages beside it; `backbone_only` as in `load_model`. Raises
    UserError as that does, and for quantised weights that were to be trained."""
    if cfg.adapter == "lora":
        base = load_model(
            name, backend, dtype=backend.dtype, merge=False, backbone_only=backbone_only
        )
        return _checked(base, cfg)
    model = _checked(load_model(name, backend, backbone_only=backbone_only), cfg)
    if quantised(model.params):
        raise UserError(
            "quantised weights cannot be trained",
            where=name,
            hint="train an adapter beside them: --adapter lora",
        )
    return model


def _checked(model: Model, cfg: TuningConfig) -> Model:
    if not supports_packing(model.cfg) and cfg.checkpointing is True:
        raise UserError(
            f"cannot be had for a {model.cfg.model_type} model, whose layers are its library's",
            where="checkpointing",
            hint="leave it out",
        )
    return replace(model, tokenizer=with_template_kwargs(model.tokenizer, cfg.chat_template_kwargs))


def least_prompt_rows(model: Model, ctx: Context) -> int:
    """`prompt_rows` of `answer_batch`, and says which way the stage goes."""
    if model.network.shares_prompts:
        ctx.tell("completions of one prompt are computed with it once")
        return 1
    ctx.tell(
        "each completion is computed with a prompt of its own, for a "
        f"{model.cfg.model_type} model shares none"
    )
    return NO_SHARING


def with_adapter(model: Model, cfg: TuningConfig, ctx: Context) -> Model:
    """The model with an adapter of the stage's own, where the settings ask for one. Raises
    UserError for targets that the model has not."""
    if cfg.adapter != "lora":
        return model
    head = score_head_shapes(model.cfg)
    whole = _whole_modules(model, cfg, head)
    shapes = target_shapes(model.cfg, cfg.lora_targets, whole)
    if not shapes and not whole:
        raise UserError(
            "the model has no matrix that could get an adapter",
            where="lora_targets",
            hint="name some, or train all weights",
        )
    scale = scale_of(cfg.lora_alpha, cfg.lora_rank, cfg.lora_rslora)
    new = init_lora(shapes, cfg.lora_rank, scale, cfg.seed, f"{ctx.name} lora", ctx.backend)
    weights: Params = {}
    for name in {*(f"{module}.weight" for module in whole), *head}:
        weights[name] = ctx.backend.ops.cast(model.params[name], "float32")
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


def reference_params(model: Model, backend: Backend) -> Params:
    """The stage's start for as long as the stage runs: what the trained model's distance to it is
    measured by. Beside an adapter that is the frozen base without the stage's own adapter, which
    adds nothing yet. Where all weights are trained it is a copy with matrices in the compute type,
    or, under float32, the model's own parameters.
    """
    if model.adapter is not None:
        return {name: p for name, p in model.params.items() if not _is_new(name)}
    if backend.dtype == "float32":
        return model.params
    used = dict(cast_once(model, model.params, backend))
    for name, p in used.items():
        if p is model.params[name]:
            used[name] = p * 1  # a copy: the other one is changed in place
    return used


def _is_new(name: str) -> bool:
    return is_adapter(name) and name.endswith(f".{TRAINED}")


def shares_reference(model: Model, backend: Backend) -> bool:
    """Whether the model's parameters are its reference's too, so that both are to stay."""
    return model.adapter is not None or backend.dtype == "float32"


def _whole_modules(model: Model, cfg: TuningConfig, head: Iterable[str]) -> list[str]:
    """The modules whose weights are trained whole beside the adapter: those that the settings name
    and those of the score head, whose tensors are `head`. Raises UserError for weights that cannot
    be trained.
    """
    whole = chosen_modules(matrices(model.cfg, every=True), cfg.lora_whole, "lora_whole")
    for name in head:
        if name.endswith(".weight"):
            whole.append(name.removesuffix(".weight"))
    whole = list(dict.fromkeys(whole))
    embeddings = [name for name in whole if is_embedding(f"{name}.weight")]
    if embeddings and not isinstance(model.cfg, DecoderConfig):
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
    return whole


def result(model: Model, cfg: object, ctx: Context) -> Model:
    """What the stage leaves: the model as it is, or, where `merge` asks for it, with its adapters
    in its weights.
    """
    if model.adapter is None or not (isinstance(cfg, TuningConfig) and cfg.merge):
        return model
    params = model.params
    if ctx.backend.dtype != "float32":
        # the base as its file has it, not in the type that was computed in
        start = load_model(getattr(cfg, "model", model.folder), ctx.backend, merge=False).params
        params = dict(params)
        for name in params:
            if not is_adapter(name) and name not in model.adapter.whole:
                params[name] = start[name]
    merged_model = merged(model.with_params(params), ctx.backend)
    if quantised(model.params):
        ctx.warn(COST)
    return merged_model
