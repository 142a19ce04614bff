"""One of several processes takes longer over an exam, a model and a reward than torch has processes
wait for each other by itself. Imported first by a worker of `many.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed.distributed_c10d as c10d

import ondevice.stages.runner as runner
from ondevice.evaluation.stage_exam import BuiltinExam
from ondevice.rewards.scorer import Rewards

TIMEOUT = 1.5  # seconds
c10d.default_pg_timeout = timedelta(seconds=TIMEOUT)


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    def slower(*arguments: Any, **named: Any) -> Any:
        time.sleep(2 * TIMEOUT)
        return function(*arguments, **named)

    return slower


if os.environ["MANY_SLOW"] == "first":
    BuiltinExam.__call__ = slow(BuiltinExam.__call__)  # type: ignore[method-assign]
    runner._write_model = slow(runner._write_model)
else:
    Rewards.score = slow(Rewards.score)  # type: ignore[method-assign]
