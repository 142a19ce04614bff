"""What the processes of stages have printed: logs beside the stages' folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ondevice.common.clock import clock
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import RunFolder, StageFolder

SILENT_S = 60.0  # a process that has begun no stage and said nothing for so long is taken for dead


def log_tail(path: Path, lines: int = 12) -> str:
    """The end of a log, for a person."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - (1 << 14), 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    # of a progress bar, which goes back to the line's beginning, only its newest state
    shown = [line.rsplit("\r", 1)[-1] for line in text.split("\n") if line.strip()]
    return "\n".join(shown[-lines:])


def stage_log(stage: StageFolder) -> Path | None:
    """The log of the process that ran this stage, where a process of ours did: the stage's own, or
    the whole run's.
    """
    logs = (stage.path.with_suffix(".log"), stage.path.parent / "run.log")
    existing = [path for path in logs if path.is_file()]
    return max(existing, key=lambda path: path.stat().st_mtime, default=None)


def unstarted_stages(
    run: RunFolder, begun: Collection[str], recipe: Sequence[str]
) -> dict[str, str]:
    """Stages whose process has left a log and nothing else, with its last line. A recipe's log
    counts for its first stage."""
    try:
        there = set(os.listdir(run.path))  # once, and not a look for each stage
    except OSError:
        return {}
    logs = [(name, run.path / f"{name}.log") for name in STAGES]
    if not begun:
        first = next((name for name in recipe if name in STAGES), "init")
        logs.append((first, run.path / "run.log"))
    reasons: dict[str, str] = {}
    for stage, log in logs:
        if stage in begun or log.name not in there:
            continue
        try:
            status = log.stat()
        except OSError:  # it is gone
            continue
        if status.st_size:
            reasons[stage] = log_tail(log, 1).strip() or "it said nothing"
        elif clock() - status.st_mtime_ns / 1e9 > SILENT_S:
            reasons[stage] = "it said nothing"
    return reasons
