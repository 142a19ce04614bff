"""A model in memory: its config, tokenizer, tensors and adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.decoder import Decoder
from ondevice.models.encoder import Encoder
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.lora import concat_all_lora, is_adapter
from ondevice.models.network import is_generative, network
from ondevice.models.quant import dequantised
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq import Seq2Seq
from ondevice.models.shapes import matrices, score_head_shapes, shapes
from ondevice.models.state_dict import quantised
from ondevice.models.tables import with_tables
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend


@dataclass(frozen=True)
class Adapter:
    """What a model has beside a base that stays as it is. `base` is its folder or its name on the
    Hub, `whole` the tensors that stand in place of the base's, `trained` those that training
    changes."""

    base: str
    revision: str | None = None
    whole: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Model:
    """A network's shape with its weights on a device. `params` are keyed by the file's tensor
    names; with an `adapter`, its tensors stand beside the weights (`lora.py`). `generation`: what
    generation_config.json says."""

    cfg: ModelConfig
    params: Params
    tokenizer: Tokenizer
    folder: Path
    adapter: Adapter | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> Decoder | Encoder | Seq2Seq | LibraryNetwork:
        return network(self.cfg)

    def with_tables(self, backend: Backend, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the network's constant tables (`tables.py`), for a loss or a forward."""
        return with_tables(self.network, backend.ops, batch)

    def with_params(self, params: Params) -> Model:
        return replace(self, params=params)

    def release(self) -> Params:
        """Its tensors, which it has no longer: they are the caller's alone."""
        taken = dict(self.params)
        self.params.clear()
        return taken

    @property
    def size(self) -> int:
        """How many numbers it is made of, adapters among them; what is packed counts unpacked."""
        low = (
            p.shape for name, p in self.params.items() if ".lora_A." in name or ".lora_B." in name
        )
        return sum(math.prod(shape) for shape in (*shapes(self.cfg).values(), *low))

    def trains(self, name: str) -> bool:
        """Whether training changes this tensor."""
        return self.adapter is None or name in self.adapter.trained


def with_whole_tensors(params: Params, whole: Params, cfg: ModelConfig, where: str) -> Params:
    """A base's `params` with the tensors `whole` in place of theirs, without those that a model of
    `cfg` has not. Raises UserError for one of `whole` that it has not, or one that it lacks."""
    wanted = shapes(cfg)
    for name, p in whole.items():
        if name not in wanted:
            raise UserError(f"holds {name}, which its base has not", where=where)
        if tuple(p.shape) != wanted[name]:
            raise UserError(
                f"{name} has shape {tuple(p.shape)}, its base says {wanted[name]}", where=where
            )
    missing = [name for name in score_head_shapes(cfg) if name not in params and name not in whole]
    if missing:
        raise UserError(
            f"lacks the tensor {missing[0]}", where=where, hint="is the download whole?"
        )
    # of one that was packed, nothing else is left
    replaced = {name.removesuffix(".weight") for name in whole}
    return {
        **{
            name: p
            for name, p in tensors_of_config(params, cfg).items()
            if is_adapter(name)
            or not name.endswith((".scales", ".biases"))
            or name.rpartition(".")[0] not in replaced
        },
        **whole,
    }


def tensors_of_config(params: Params, cfg: ModelConfig) -> Params:
    """Those of another model's tensors that stand in one of `cfg` too, with what quantises them and
    their adapters.
    """
    modules = {name.removesuffix(".weight") for name in shapes(cfg)}
    return {
        name: p
        for name, p in params.items()
        if name in modules or name.rpartition(".")[0] in modules or is_adapter(name)
    }


def merged(model: Model, backend: Backend) -> Model:
    """The model with whole weights: its adapters are added to them in float32, on the host; what is
    quantised is unpacked."""
    deltas, params = concat_all_lora(model.params, backend), dict[str, Any]()
    known = matrices(model.cfg, every=True)
    packed = set(quantised(model.params))
    for name, p in model.params.items():
        module, _, part = name.rpartition(".")
        if is_adapter(name) or (module in packed and part in ("scales", "biases")):
            continue
        if part == "weight" and (module in deltas or module in packed):
            if module in packed:
                weight = dequantised(model.params, module, known[module][1], backend)
            else:
                weight = backend.numpy(p)
            p = backend.array(weight + deltas[module].delta if module in deltas else weight)
        params[name] = p
    return replace(model, params=params, adapter=None)


def require_generative(model: Model) -> Model:
    """The model. Raises UserError for one that fills masks or judges."""
    if not is_generative(model.cfg):
        what = "is a reward model or a classifier" if model.cfg.num_labels else "fills masks"
        raise UserError(
            f"{what}: it writes no text",
            where=str(model.folder),
            hint="take the folder of init, pretrain, sft, dpo, ppo or grpo of a model that does",
        )
    return model


def require_chat_template(model: Model) -> None:
    """Raises UserError for a model that was never taught to answer."""
    if model.tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template",
            where=str(model.folder),
            hint="ondevice sft gives it one",
        )
