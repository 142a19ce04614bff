"""torch.compile as it is used here: traces are counted, and what is given up is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

# a stage's batches have few shapes; of more than these something is wrong
LIMIT = 32
LOWER = "inductor"


class Compiled:
    """`fn` compiled, anew for each kind of arguments. `traces` counts how often. Where there are
    more than `LIMIT`, what is new runs uncompiled from there on, which is said once."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        import torch._dynamo

        self.traces = 0
        self._fn = fn
        self._given_up = False
        lower = torch._dynamo.lookup_backend(LOWER)

        def counted(graph: Any, example: Any) -> Any:
            self.traces += 1
            return lower(graph, example)

        self._compiled = torch.compile(fn, backend=counted)

    def __call__(self, *args: Any) -> Any:
        import torch._dynamo

        if self._given_up:
            return self._fn(*args)
        # numpy is computed by numpy: traced, it would be in the compiler's own arithmetic
        changed = torch._dynamo.config.patch(
            trace_numpy=False, recompile_limit=LIMIT, fail_on_recompile_limit_hit=True
        )
        with changed:
            try:
                return self._compiled(*args)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                self._given_up = True
        warnings.warn(
            f"torch compiled {self.traces} kinds of batches; from here on nothing is compiled "
            "(--compile never has the same effect from the start)",
            stacklevel=2,
        )
        return self._fn(*args)
