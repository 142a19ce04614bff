"""One stage in this process, measured: CPU seconds per step, and the memory that grew above the
process before the model was read. What it is to run comes as JSON; `plan_accuracy.py` starts it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ondevice.common import allocator
from ondevice.common.processes import output_of
from ondevice.config.load import from_mapping
from ondevice.config.recipe import STAGES
from ondevice.runs import events
from ondevice.seam import select
from ondevice.stages import pipeline

MARK = "MEASURED "
STEPS: list[float] = []  # of this process's CPU seconds, at each step's end
START: dict[str, int] = {}
PEAKS: list[tuple[str, int]] = []
"""Events, and the most bytes above the start that were held until then: where the peak lies."""


def main() -> None:
    allocator.restart()  # as a command that trains does
    job = json.loads(sys.argv[1])
    _watch()
    with tempfile.TemporaryDirectory() as folder:
        given = {"device": "cpu", "eval_every": 0, "save_every": 0, **job["fields"]}
        known = STAGES[job["stage"]].__dataclass_fields__
        fields = {name: value for name, value in given.items() if name in known}
        cfg = from_mapping(
            STAGES[job["stage"]], {**fields, "out": f"{folder}/run", "backend": job["backend"]}
        )
        pipeline.run_one(job["stage"], cfg)
        told = list(events.read(Path(folder) / "run" / job["stage"] / "events.jsonl"))
        done = json.loads((Path(folder) / "run" / job["stage"] / "done.json").read_text())
    each = [after - before for before, after in zip(STEPS, STEPS[1:], strict=False)]
    result = {
        "process": START["resident"],
        "grown": _peak() - START["resident"],
        "cpu_per_step": statistics.median(each),
        "cpu_steps": each,
        "cpu_stage": done["cpu_seconds"],
        "micro_batch": _micro_batch(told),
        "peaks": PEAKS,
    }
    print(MARK + json.dumps(result), flush=True)


def _watch() -> None:
    """Notes what the process holds once its library is there, and the time of each step's end."""
    load_backend, emit = select.load_backend, events.EventWriter.emit

    def loaded(*args: Any) -> Any:
        backend = load_backend(*args)
        START["resident"] = _resident()
        _forget_peak()
        return backend

    def told(self: Any, event: str, *args: Any, **fields: Any) -> None:
        if event == "step":
            STEPS.append(time.process_time())
        if START:
            PEAKS.append((event, _peak() - START["resident"]))
        emit(self, event, *args, **fields)

    sys.modules["ondevice.stages.runner"].load_backend = loaded  # type: ignore[attr-defined]
    events.EventWriter.emit = told  # type: ignore[method-assign]


def _micro_batch(told: list[dict[str, Any]]) -> int | None:
    found = [event.get("micro_batch") for event in told if event.get("event") == "device_batch"]
    return found[-1] if found else None


def _resident() -> int:
    """Bytes that this process holds now."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10
    return int(output_of("ps", "-o", "rss=", "-p", str(os.getpid()))) << 10


def _forget_peak() -> None:
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")


def _peak() -> int:
    """The most bytes that it has held since."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
