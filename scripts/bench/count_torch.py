"""Counts of decoding on torch, ours and transformers', as each operation is dispatched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from count_decoding import PROMPT
from job import Job
from meter import torch_device
from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, those that compute or copy, and those that change a type."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found["nodes"] += 1
        self.found["kernels"] += not _is_view(func)
        name = func.__name__.partition(".")[0]
        if name == "_local_scalar_dense":
            self.found["reads"] += 1
        if name == "_to_copy" and out.dtype != args[0].dtype:
            self.found["casts"] += 1
        return out


def _is_view(func: Any) -> bool:
    """Whether the result only looks at an argument's memory in another way."""
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


@contextmanager
def counted(found: Counter[str]) -> Iterator[None]:
    kept = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy")}

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found["reads"] += 1
            return method(self, *args, **kwargs)

        return run

    for name, method in kept.items():
        setattr(torch.Tensor, name, counting(method))
    try:
        with Counting(found):
            yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)


def ours(job: Job, folder: Path, tokens: int) -> Counter[str]:
    from ours import backend_of

    from ondevice.inference.generator import Generator
    from ondevice.inference.next_token import Sampling
    from ondevice.models.load import load_generative

    found: Counter[str] = Counter()
    backend = backend_of(job)
    model = load_generative(folder, backend)
    generator = Generator(model, backend, Sampling(tokens, temperature=0), compile="never")
    generator.stop_ids = set()
    with counted(found):
        generator.run(model.params, [PROMPT], on_token=lambda row, token: None)
    return found


def transformers(job: Job, folder: Path, tokens: int) -> Counter[str]:
    from transformers import AutoModelForCausalLM

    found: Counter[str] = Counter()
    device = torch_device(job)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, job.dtype))
    model.to(device)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT], device=device)
    with counted(found), torch.no_grad():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return found
