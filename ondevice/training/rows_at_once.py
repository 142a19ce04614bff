"""Which micro-batch a stage works with: chosen once, halved where memory runs out, recorded.

The micro-batch belongs to the machine and changes no result beyond rounding; but a resume that is
exact to the last bit needs the same sequence of them. So a checkpoint holds the one in force, every
change is an event with its step and its moment, and a process that goes on makes the changes that
its predecessors had made after that checkpoint at the very same places, even where memory would not
run out this time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from ondevice.common.errors import UserError
from ondevice.config.earlier import upgraded
from ondevice.config.stages import StageConfig
from ondevice.models.model import Model
from ondevice.runs.context import Context
from ondevice.runs.device_batch import DeviceBatch, fitting_micro_batch
from ondevice.seam.group import PeerOutOfMemory
from ondevice.training.step_source import StepPlan

T = TypeVar("T")
EVENT = "device_batch"
START = "start"  # the moment before the first step of a stage
ROLLOUT = "rollout"  # the moment of a step in which its work is planned
MEASUREMENT = "measurement"


def of_update(number: int) -> str:
    """The moment of a step in which its update of this number is computed, from 0 on."""
    return f"update {number}"


class RowsAtOnce:
    """Keeps `ctx.device_batch`, which sources, samplers and measurements read."""

    def __init__(self, ctx: Context, cfg: StageConfig, model: Model) -> None:
        self.ctx = ctx
        self.cfg = cfg
        self.model = model
        self.asked = {
            "micro_batch": getattr(cfg, "micro_batch", "auto"),
            "decode_batch": getattr(cfg, "decode_batch", "auto"),
        }
        self._rows: int | None = None  # of an update: more are never computed at once
        self._recorded: dict[tuple[int, str], DeviceBatch] = {}

    # ---- going on -------------------------------------------------------------------------------

    def load(self, record: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> None:
        """Takes up what a checkpoint's `record` holds, empty at a beginning, and remembers what the
        stage's events tell of later changes. What a person has asked for anew comes first.
        """
        held = record.get("device_batch") or {}
        before = held.get("asked") or upgraded(self.ctx.name, record.get("fingerprint") or {})
        now = self.ctx.device_batch
        for name, asked in self.asked.items():
            value = held.get(name)
            if value is None:
                value = before.get(name)
            if asked != "auto" and asked != before.get(name, asked):
                value = asked  # other than at the checkpoint: a person's
            if value in (None, "auto"):
                value = None if asked == "auto" else asked
            setattr(now, name, value)
        self._recorded = {}
        for event in self.ctx.group.tell([e for e in events if e.get("event") == EVENT]):
            step = event.get("step")
            if isinstance(step, int):
                sizes = DeviceBatch(event.get("micro_batch"), event.get("decode_batch"))
                self._recorded[step, str(event.get("during"))] = sizes

    def record(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {**asdict(self.ctx.device_batch), "asked": self.asked}

    # ---- within a step --------------------------------------------------------------------------

    def attempt(self, step: int, during: str, work: Callable[[], T]) -> T:
        """What `work` gives, which reads `ctx.device_batch` anew each time and changes nothing
        where it raises: where memory runs out it is asked again with half of the rows.

        Where several processes work, all halve where one runs out. Raises UserError where one row
        does not fit.
        """
        self._follow(step, during)
        while True:
            try:
                done = work()
                self.ctx.group.agree()
                return done
            except Exception as error:
                if not self.ctx.backend.out_of_memory(error):
                    raise
                said = str(error).strip().partition("\n")[0]
                told = isinstance(error, PeerOutOfMemory)
            # outside, where the error no longer holds what the work had made
            self.ctx.backend.free_memory()
            if not told:
                said = self.ctx.group.out_of_memory(said)
            self._halve(step, during, said)

    def choose(self, step: int, during: str, plan: StepPlan) -> None:
        """Chooses the micro-batch by a step's first update, where none is in force."""
        self._rows = plan.rows
        now = self.ctx.device_batch
        if now.micro_batch is not None:
            return
        self._follow(step, during)
        if now.micro_batch is not None:
            return
        cut = plan.every_row or plan.updates[0]
        fitting = fitting_micro_batch(
            self.model,
            self.ctx.backend,
            plan.rows,
            cut,
            checkpointing=getattr(self.cfg, "checkpointing", False),
        )
        now.micro_batch = self.ctx.group.least(fitting)
        self._tell(step, during)
        if now.micro_batch < plan.rows:
            self.ctx.tell(
                f"the gradient of {now.micro_batch} of {plan.rows} rows is computed "
                "at once, which suits this machine's memory (--micro-batch N for another number)"
            )

    def _follow(self, step: int, during: str) -> None:
        """Makes the change that an earlier process has made at this place."""
        recorded = self._recorded.pop((step, during), None)
        if recorded is None:
            return
        now = self.ctx.device_batch
        before = asdict(now)
        now.micro_batch = _smaller(now.micro_batch, recorded.micro_batch)
        now.decode_batch = _smaller(now.decode_batch, recorded.decode_batch)
        if asdict(now) != before:
            self._tell(step, during)

    def _halve(self, step: int, during: str, said: str) -> None:
        now = self.ctx.device_batch
        before = asdict(now)
        now.micro_batch = _half(_smaller(now.micro_batch, self._rows))
        if during in (ROLLOUT, MEASUREMENT):
            now.decode_batch = _half(now.decode_batch)
        if asdict(now) == before:
            raise UserError(
                f"step {step + 1}: there is not enough memory even for one row at a time ({said})",
                where=str(self.ctx.folder.path),
                hint="shorten sequence_length or max_new_tokens, give --checkpointing or --adapter "
                "lora, or end other programs; --resume goes on from the last checkpoint",
            )
        self._tell(step, during)
        changed = []
        for name, value in asdict(now).items():
            if value != before[name]:
                changed.append(f"{name} {value}")
        self.ctx.warn(
            f"step {step + 1}: memory ran out ({said}); going on with {', '.join(changed)}", step
        )

    def _tell(self, step: int, during: str) -> None:
        self.ctx.events.emit(EVENT, step, during=during, **asdict(self.ctx.device_batch))


def _smaller(now: int | None, recorded: int | None) -> int | None:
    if now is None or recorded is None:
        return now if recorded is None else recorded
    return min(now, recorded)


def _half(rows: int | None) -> int | None:
    if rows is None:
        return None
    return max(1, rows // 2)
