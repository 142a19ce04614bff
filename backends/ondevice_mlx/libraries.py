"""An mlx-lm model behind our face (`ondevice/models/external_library.py`). Read beside
`ondevice_torch/libraries.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ondevice.common.errors import UserError
from ondevice.models.external_library import odd_head, scale_of, unknown
from ondevice.models.lora import add_adapters, by_module
from ondevice.models.model_folder import weight_files
from ondevice.seam.head import Head

from .ops import DTYPES, MLXOps

Params = dict[str, mx.array]
_BODIES = ("model", "transformer", "backbone")


def load(folder: Path, raw: dict[str, Any], ops: MLXOps, dtype: str) -> tuple[MLXLibrary, Params]:
    """The model of a folder, and its weights in `dtype`. Raises UserError: mlx-lm is not there,
    does not know the architecture, or finds other weights than it looks for."""
    try:
        from mlx_lm.utils import _get_classes, load_model
    except ImportError:
        from ondevice.common.distribution import install_hint

        raise UserError(
            f"mlx-lm is not installed, which knows {raw['model_type']}",
            where=str(folder),
            hint=install_hint("mlx"),
        ) from None
    try:
        _get_classes(raw)
    except (ValueError, AttributeError) as error:  # no module of that name, or one that is no model
        raise unknown(raw, "mlx-lm", folder) from error
    weight_files(folder)
    try:
        model, _ = load_model(folder, lazy=True, trust_remote_code=False)
    except Exception as error:  # of whatever kind: it is the folder's
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"mlx-lm cannot load it: {said}", where=str(folder), hint="is the download whole?"
        ) from error
    may = getattr(model, "cast_predicate", lambda _: True)
    cast = {
        n: p.astype(DTYPES[dtype]) if mx.issubdtype(p.dtype, mx.floating) and may(n) else p
        for n, p in tree_flatten(model.parameters())
    }
    library = MLXLibrary(model, cast, raw, ops, str(folder))
    _need_head(folder, library, cast)
    return library, {n: cast[n] for n in library.shapes}


def _need_head(folder: Path, library: MLXLibrary, weights: Params) -> None:
    """Raises UserError where the folder's head is no copy of the table that mlx-lm takes in its
    place.
    """
    table = weights[library.head.name]
    if library.head.name == "lm_head.weight":
        return
    for file in weight_files(folder):
        head = dict(mx.load(str(file))).get("lm_head.weight")  # type: ignore[call-overload]
        if head is not None and not (
            head.shape == table.shape and mx.array_equal(head.astype(table.dtype), table)
        ):
            raise UserError(
                "holds a head apart from its embeddings, which mlx-lm would leave out",
                where=str(folder),
                hint='where it is the model\'s, say "tie_word_embeddings": false in config.json',
            )


class MLXLibrary:
    """The modules; between two calls they hold no weights."""

    def __init__(
        self, model: Any, weights: Params, raw: dict[str, Any], ops: MLXOps, where: str
    ) -> None:
        self._model, self._ops = model, ops
        self._may = getattr(model, "cast_predicate", lambda _: True)
        self._body = next(
            (
                getattr(model, name)
                for name in _BODIES
                if isinstance(getattr(model, name, None), nn.Module)
            ),
            None,
        )
        tables = [
            f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Embedding)
        ]
        first = max(tables, key=lambda n: weights[n].shape[0], default=None)
        if self._body is None or first is None:
            raise odd_head(raw, where)
        self._beside: dict[str, Params] = {}
        self.shapes = {
            n: tuple(weights[n].shape) for n in (first, *(n for n in weights if n != first))
        }
        self._nothing = tree_unflatten([(n, mx.zeros((0,))) for n in self.shapes])
        self.linears: dict[str, tuple[int, int]] = {}
        for name, module in model.named_modules():
            if type(module) is nn.Linear:
                self.linears[name] = self.shapes[f"{name}.weight"]  # type: ignore[assignment]
                module.__class__ = _Adapted
                module.name, module.owner = name, self
        head = "lm_head.weight" if "lm_head.weight" in weights else first
        self.head = self._checked(Head(head), weights, raw, where)

    def _checked(self, head: Head, weights: Params, raw: dict[str, Any], where: str) -> Head:
        """The head with its scale. Raises UserError where it does not give the library's own
        logits.
        """
        ids = mx.array([[1, 2, 3]])
        with self._with(weights):
            told = self._model(ids)[0].astype(mx.float32)
            x = self._body(ids)[0]
        plain = head.logits(self._ops, weights, x)  # type: ignore[arg-type]
        scale = scale_of(raw, mx.sum(plain * plain).item(), mx.sum(plain * told).item(), where)  # type: ignore
        head = Head(head.name, scale=scale)
        off = mx.max(mx.abs(head.logits(self._ops, weights, x) - told)).item()  # type: ignore[arg-type,operator]
        if self._ops.compute == x.dtype == mx.float32:
            near = 1e-4
        else:
            near = 0.05
        if not off <= near * (1 + mx.max(mx.abs(told)).item()):  # type: ignore[operator]
            raise odd_head(raw, where)
        return head

    @contextmanager
    def _with(self, params: Params) -> Iterator[None]:
        """Within, the modules hold the weights in the compute type, and their layers add their
        adapters.
        """
        self._beside, cast = by_module(params), self._ops.compute  # type: ignore[arg-type,assignment]
        try:
            self._model.update(
                tree_unflatten(
                    [
                        (
                            n,
                            p.astype(cast)
                            if mx.issubdtype(p.dtype, mx.floating) and self._may(n)
                            else p,
                        )
                        for n, p in ((n, params[n]) for n in self.shapes)
                    ]
                )
            )
            yield
        finally:
            self._model.update(self._nothing)
            self._beside = {}

    def states(self, params: Params, ids: mx.array) -> mx.array:
        self._model.train()  # some layers have kernels without a gradient, which they leave aside then
        with self._with(params):
            found: mx.array = self._body(ids)
            return found

    def reading(self, params: Params) -> Callable[[mx.array], mx.array]:
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._model)

        def read(ids: mx.array) -> mx.array:
            self._model.eval()
            with self._with(params):
                last: mx.array = self._body(ids, cache=cache)[:, -1]
            mx.eval(last)
            return last

        return read

    def save(self, folder: Path, params: Params, dtype: str) -> None:
        """Under mlx-lm's names, which it takes as they are when it loads them again."""
        from mlx_lm.utils import save_model

        cast = {
            n: params[n].astype(DTYPES[dtype])
            if mx.issubdtype(params[n].dtype, mx.floating) and self._may(n)
            else params[n]
            for n in self.shapes
        }
        with self._with(params):
            self._model.update(tree_unflatten(list(cast.items())))
            save_model(folder, self._model, donate_model=False)


class _Adapted(nn.Linear):
    """A linear layer that adds what its adapters say."""

    name: str
    owner: MLXLibrary

    def __call__(self, x: mx.array) -> mx.array:
        beside = self.owner._beside.get(self.name)
        y = super().__call__(x)
        return y if beside is None else add_adapters(self.owner._ops, beside, self.name, x, y)  # type: ignore
