"""The machine as a plan sees it: backend, device, what memory and disk it has left."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace

from ondevice.common.physical_memory import available_memory, physical_memory, process_memory
from ondevice.config.sizes import parse_memory
from ondevice.planning.calibration import Calibration, Speeds
from ondevice.seam.costs import Costs
from ondevice.seam.group import Group
from ondevice.seam.protocols import Backend, Memory
from ondevice.seam.select import choose, costs_of

LEAST_MARGIN, MOST_MARGIN = 512 << 20, 2 << 30
"""Bytes of the memory that are left to other programs: a tenth of it, within these."""
GPU_SHARE = 0.9
"""Of a GPU's memory that a stage may take."""


@dataclass(frozen=True)
class Machine:
    """`memory_total`: bytes of the device; `budget`: bytes that a stage may take, None: not known;
    `limited`: a person has named it. `process`: bytes that a process takes before it reads a model,
    0 where the budget is a GPU's own memory. `speeds` None: not calibrated. `processes`: how many
    train together, each on a machine or a GPU like this one.
    """

    backend: str
    device: str
    dtype: str
    memory_total: int
    budget: int | None
    process: int
    costs: Costs
    limited: bool = False
    speeds: Speeds | None = None
    processes: int = 1

    @property
    def activation_factor(self) -> float:
        return self.costs.activation_factor(self.device)

    def memory(self) -> Memory:
        """What a backend says of its memory while nothing is in it."""
        return Memory(0, 0, self.memory_total)


def planned_machine(
    backend: str, device: str, dtype: str, memory: str = "", found: Calibration | None = None
) -> Machine:
    """This machine for settings as they are given; what `auto` becomes is as it was when it was
    calibrated. Loads no array library. Raises UserError for a backend that is not here."""
    name = choose(backend)
    if found is not None:
        device, dtype = found.device, found.dtype
    if device == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        device = "gpu" if apple else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if found is not None:
        total = found.device_memory
    else:
        total = physical_memory() or 0
    costs = costs_of(name)
    own = _own_memory(device)
    return Machine(
        name,
        device,
        dtype,
        total,
        _budget(memory, total, own),
        0 if own else (found.process if found is not None else costs.process),
        costs,
        bool(memory),
        found.speeds if found is not None else None,
    )


def machine_of(backend: Backend, memory: str = "", found: Calibration | None = None) -> Machine:
    """The machine of a backend that is loaded: what the process holds already is not needed anew of
    what there is now. A budget that a person names is of the whole process."""
    total = backend.memory().total
    own = _own_memory(backend.device)
    machine = Machine(
        backend.name,
        backend.device,
        backend.dtype,
        total,
        _budget(memory, total, own),
        process_memory() if memory and not own else 0,
        costs_of(backend.name),
        bool(memory),
        found.speeds if found is not None else None,
    )
    return shared_by(machine, backend.group)


def shared_by(machine: Machine, group: Group) -> Machine:
    """The machine as each process of `group` has it: of memory that is the machine's, and of which a
    person has named no share, those that stand on it have a part each."""
    budget = machine.budget
    if budget is not None and not machine.limited and not _own_memory(machine.device):
        budget //= group.here
    return replace(machine, processes=group.size, budget=budget)


def _own_memory(device: str) -> bool:
    """Whether the device has a memory apart from the machine's."""
    return device == "cuda"


def _budget(memory: str, total: int, own: bool) -> int | None:
    """Bytes that a stage may take: those that a person names, else what is there now, less a margin
    that leaves the machine usable. Swap counts as not there. Of memory that a GPU shares with the
    machine no more than it can use well."""
    named = parse_memory(memory)
    if named is not None:
        return named
    if own:
        return int(GPU_SHARE * total) or None
    available = available_memory()
    if available is None:
        return None
    physical = physical_memory() or available
    margin = min(MOST_MARGIN, max(LEAST_MARGIN, physical // 10))
    room = max(0, available - margin)
    if 0 < total < physical:
        return min(room, total)
    return room
