"""How often a stage is traced by a compiler, and where torch's gives up: the stage of a job of ours
with everything compiled that would be on a GPU. No code is generated for torch, so no compiler of
C++ is needed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import ours_decode
import ours_stage
import ours_train
from job import Job
from meter import print_result


def main() -> None:
    job = Job.from_argv()
    count = (_watch_mlx if job.backend == "mlx" else _watch_torch)()
    if job.what in ("text", "chats"):
        ours_train.main()
    elif job.what == "geometric":
        ours_decode.main()
    else:
        ours_stage.main()
    print_result(**count())


# what the functions that are compiled are to people; whatever else is of decoding
KINDS = {
    "": "gradient",
    "_adamw_update": "update",
    "_muon_update": "update",
    "metrics": "held out",
    "logprobs": "scoring",
    "<lambda>": "scoring",
}


def _watch_mlx() -> Callable[[], dict[str, Any]]:
    import mlx.core as mx

    traced: Counter[str] = Counter()
    make: Any = mx.compile

    def compile(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(fn, "__module__", "").startswith("mlx."):
            return make(fn, *args, **kwargs)  # a part of what we have traced
        kind = KINDS.get(_name(fn), "decoding")

        def noted(*inputs: Any, **named: Any) -> Any:
            traced[kind] += 1
            return fn(*inputs, **named)

        return make(noted, *args, **kwargs)

    mx.compile = compile  # type: ignore[assignment]
    return lambda: {"traces": traced.total(), "of": dict(traced)}


def _name(fn: Callable[..., Any]) -> str:
    """Empty for what MLX itself has made of another function: its gradient."""
    if type(fn).__module__.startswith("builtins"):
        return getattr(fn, "__name__", "")
    return ""


class LimitHandler(logging.Handler):
    """Counts the functions that torch traced too often and now runs eagerly."""

    hits = 0

    def emit(self, record: logging.LogRecord) -> None:
        LimitHandler.hits += "recompile_limit" in record.getMessage()


def _watch_torch() -> Callable[[], dict[str, Any]]:
    from torch._dynamo.utils import counters

    from ondevice_torch import compiled
    from ondevice_torch.backend import TorchBackend

    compiled.LOWER = "eager"
    TorchBackend.compiles = lambda self, compile: compile != "never"  # type: ignore[method-assign]
    logging.getLogger("torch._dynamo").addHandler(LimitHandler())

    def found() -> dict[str, Any]:
        return {
            "traces": int(counters["stats"]["unique_graphs"]),
            "breaks": sum(counters["graph_break"].values()),
            "given_up": LimitHandler.hits,
        }

    return found


if __name__ == "__main__":
    main()
