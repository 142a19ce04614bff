"""In what settings runs differ: `ondevice runs diff A B`. What each stage was begun with, with the
numbers that rules have chosen in place of `auto`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ondevice.config.earlier import upgraded
from ondevice.runs import events, listing
from ondevice.runs.folder import RunFolder, StageFolder

_OF_THE_CALL = ("out", "resume", "anyway", "keep_awake", "memory", "track")
"""Settings that say where and how a stage runs, not what it learns."""
ABSENT = "(no such stage)"
UNSET = "–"


class Difference(NamedTuple):
    """One setting (`stage.name`) and what it is in each run, as text."""

    setting: str
    values: tuple[str, ...]


def differences(runs: Sequence[Path], *, everything: bool = False) -> list[Difference]:
    """The settings in which runs differ, stage by stage; with `everything` also those in which they
    do not. A stage that one run has not begun is one line. Paths within a run's own folder are told
    as RUN/…, so that two runs of one recipe do not differ by them. Raises OSError where events
    cannot be read."""
    settings = [_stages(RunFolder(run)) for run in runs]
    found = []
    for stage in _names(settings):
        had = [one.get(stage) for one in settings]
        if any(one is None for one in had):
            values = tuple(ABSENT if one is None else "begun" for one in had)
            found.append(Difference(stage, values))
        known = [one for one in had if one is not None]
        for name in _names(known):
            values = tuple(_told(one, name) for one in had)
            among = {value for value, one in zip(values, had, strict=True) if one is not None}
            if everything or len(among) > 1:
                found.append(Difference(f"{stage}.{name}", values))
    return found


def find_all(names: Sequence[str], folder: str | Path) -> list[Path]:
    """The folders of the runs of these names. Raises UserError for one that is not there."""
    return [listing.find_run(name, folder).path for name in names]


def _names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys, each once, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record))


def _told(record: Mapping[str, Any] | None, name: str) -> str:
    if record is None:
        return ABSENT
    return _text(record[name]) if name in record else UNSET


def _text(value: Any) -> str:
    if value == "" or value is None:
        return UNSET
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value)) or UNSET
    return str(value)


def _stages(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Stage → its settings."""
    return {stage.name: _settings(stage, run.path) for stage in run.stages()}


def _settings(stage: StageFolder, run: Path) -> dict[str, Any]:
    config = events.first_event(stage.events).get("config")
    if not isinstance(config, dict):
        return {}
    chosen = stage.settings_record().get("settings") or {}
    known = {**upgraded(stage.name, config), **chosen}
    roots = _roots(run)
    return {
        name: _within(value, roots) for name, value in known.items() if name not in _OF_THE_CALL
    }


def _roots(run: Path) -> list[str]:
    """How paths into the run's folder may begin: as it is named, in full, and by its older names."""
    named = [run, *(link for link in listing.older_names(run.parent) if _leads_to(link, run))]
    found = []
    for path in named:
        found += [str(path), os.path.abspath(path), f"runs/{path.name}"]
    return sorted(set(found), key=len, reverse=True)


def _leads_to(link: Path, run: Path) -> bool:
    return listing.by_newest_name(link).name == run.name


def _within(value: Any, roots: Sequence[str]) -> Any:
    if not isinstance(value, str):
        return value
    for root in roots:
        if value == root or value.startswith(root + os.sep):
            return "RUN" + value[len(root) :]
    return value


def differences_text(names: Sequence[str], found: Sequence[Difference]) -> str:
    """The table for people: a line for each setting, a column for each run."""
    from rich.cells import cell_len

    if not found:
        return "no setting differs"
    rows = [["setting", *names], *([one.setting, *one.values] for one in found)]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [t + " " * (w - cell_len(t)) for t, w in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
