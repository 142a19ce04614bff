"""What looks on while a stage trains, without the loop knowing what it is for.

The names are those of transformers' `TrainerCallback`, so that they are found. Of its many moments
two are here: the others have no user. Where a callback fails, it says so itself: training goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ondevice.models.model import Model
from ondevice.runs.checkpoint import Checkpoint


class Callback(Protocol):
    """Called by the loop in its own thread."""

    def on_train_begin(self, model: Model, step: int) -> None:
        """Before the first step after `step`. Raises UserError where its settings do not suit the
        model.
        """
        ...

    def on_save(self, saved: Checkpoint, *, last: bool) -> None:
        """A checkpoint is whole on the disk; `last`: no step follows. Does not raise."""
        ...


class EventListener(Protocol):
    """Hears each event of a stage, also of one that does not train, once it is written."""

    def on_log(self, event: Mapping[str, Any]) -> None:
        """In the thread that trains. Does not raise, and is quick."""
        ...
