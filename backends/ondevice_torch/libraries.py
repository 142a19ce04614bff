"""A transformers model behind our face (`ondevice/models/external_library.py`). Read beside
`ondevice_mlx/libraries.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ondevice.common.errors import UserError
from ondevice.models.external_library import odd_head, scale_of, unknown
from ondevice.models.lora import add_adapters, by_module
from ondevice.models.model_folder import weight_files
from ondevice.seam.head import Head

from .ops import DTYPES, TorchOps

Params = dict[str, Tensor]


def load(
    folder: Path, raw: dict[str, Any], ops: TorchOps, dtype: str
) -> tuple[TorchLibrary, Params]:
    """The model of a folder, and its weights in `dtype`. Raises UserError: transformers is not
    there, does not know the architecture, or finds other weights than it looks for."""
    try:
        import transformers
    except ImportError:
        from ondevice.common.distribution import install_hint

        raise UserError(
            f"transformers is not installed, which knows {raw['model_type']}",
            where=str(folder),
            hint=install_hint("transformers"),
        ) from None
    if (
        raw["model_type"]
        not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ):
        raise unknown(raw, f"transformers {transformers.__version__}", folder)
    weight_files(folder)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of whatever kind: it is the folder's
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"transformers {transformers.__version__} cannot load it: {said}",
            where=str(folder),
            hint="is the download whole?",
        ) from error
    for what in ("missing_keys", "mismatched_keys"):
        if told.get(what):
            name = min(str(name) for name in told[what])
            raise UserError(
                f"lacks the tensor {name}, or has it in another shape",
                where=str(folder),
                hint="is the download whole?",
            )
    library = TorchLibrary(model.to(ops.device).eval(), raw, ops, str(folder))
    return library, library.emptied()


class TorchLibrary:
    """The modules, without their weights once `emptied`. Always in the mode of inference: no
    dropout.
    """

    def __init__(self, model: Any, raw: dict[str, Any], ops: TorchOps, where: str) -> None:
        self._model, self._body, self._ops = model, model.base_model, ops
        if self._body is model:
            raise odd_head(raw, where)
        self._prefix = model.base_model_prefix + "."
        # its name from 5.24 on, and before
        if "cache" in inspect.signature(self._body.forward).parameters:
            self._cache = "cache"
        else:
            self._cache = "past_key_values"
        self._beside: dict[str, Params] = {}
        self._kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        named = dict(model.named_parameters())  # a tied head is the table, under the table's name
        first = model.get_input_embeddings().weight
        kept = set(model.state_dict())
        own = {n: b for n, b in model.named_buffers() if n in kept}
        # stay where they are
        self._counts = {n: b for n, b in own.items() if not b.is_floating_point()}
        self._weights: Params = {
            **{n: p.detach() for n, p in named.items() if p is first},
            **{n: p.detach() for n, p in named.items() if p is not first},
            **{n: b for n, b in own.items() if n not in self._counts},
        }
        self.shapes = {n: tuple(p.shape) for n, p in self._weights.items()}
        self.linears = {
            n: tuple(m.weight.shape)
            for n, m in model.named_modules()
            if type(m) is nn.Linear and f"{n}.weight" in self.shapes
        }
        for name, module in self._body.named_modules(prefix=model.base_model_prefix):
            if name in self.linears:
                module.register_forward_hook(self._hook(name))
        output = model.get_output_embeddings()
        head = next(
            (n for n, p in named.items() if output is not None and p is output.weight), None
        )
        if head is None:
            raise odd_head(raw, where)
        self.head = self._checked(Head(head), raw, where)

    def _checked(self, head: Head, raw: dict[str, Any], where: str) -> Head:
        """The head with its scale. Raises UserError where it does not give the library's own
        logits.
        """
        ids = torch.tensor([[1, 2, 3]], device=self._ops.device)
        with torch.no_grad():
            told = self._model(input_ids=ids, use_cache=False).logits[0].float()
            x = self._body(input_ids=ids, use_cache=False)[0][0]
            if self._ops.compute == x.dtype == torch.float32:
                near = 1e-4
            else:
                near = 0.05
            x = x.to(self._ops.compute)
            plain = head.logits(self._ops, self._weights, x)  # type: ignore[arg-type]
            scale = scale_of(raw, float((plain * plain).sum()), float((plain * told).sum()), where)
            head = Head(head.name, scale=scale)
            made = head.logits(self._ops, self._weights, x)  # type: ignore[arg-type]
        if not float((made - told).abs().max()) <= near * (1 + float(told.abs().max())):  # type: ignore[attr-defined]
            raise odd_head(raw, where)
        return head

    def emptied(self) -> Params:
        """The weights, which the modules hold no longer."""
        for module in self._model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(
                        torch.empty_like(p, device="meta"), requires_grad=False
                    )
        weights, self._weights = self._weights, {}
        return weights

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            beside = self._beside.get(name)
            return None if beside is None else add_adapters(self._ops, beside, name, args[0], out)  # type: ignore

        return add

    def _cast(self, params: Params) -> Params:
        """The body's weights in the compute type, under its own names."""
        return {
            n.removeprefix(self._prefix): p
            if not p.is_floating_point() or any(k in n for k in self._kept)
            else p.to(self._ops.compute)
            for n, p in params.items()
            if n.startswith(self._prefix) and n in self.shapes
        }

    def _run(self, weights: Params, beside: dict[str, Params], **inputs: Any) -> Any:
        """What the body gives where its layers add what their adapters say."""
        self._beside = beside
        try:
            return functional_call(self._body, weights, (), inputs)
        finally:
            self._beside = {}

    @torch.compiler.disable
    def states(self, params: Params, ids: Tensor) -> Tensor:
        found: Tensor = self._run(
            self._cast(params), by_module(params), input_ids=ids.long(), use_cache=False
        )[0]
        return found

    def reading(self, params: Params) -> Callable[[Tensor], Tensor]:
        cache: Any = None
        weights, beside = self._cast(params), by_module(params)  # once for all tokens

        @torch.no_grad()
        def read(ids: Tensor) -> Tensor:
            nonlocal cache
            out = self._run(
                weights, beside, input_ids=ids.long(), use_cache=True, **{self._cache: cache}
            )
            cache = getattr(out, self._cache)
            last: Tensor = out[0][:, -1]
            return last

        return read

    def save(self, folder: Path, params: Params, dtype: str) -> None:
        state = {
            n: params[n]
            .detach()
            .to("cpu", DTYPES[dtype] if params[n].is_floating_point() else None)
            .contiguous()
            for n in self.shapes
        }
        self._model.save_pretrained(
            folder, state_dict={**state, **self._counts}, max_shard_size="5GB"
        )
