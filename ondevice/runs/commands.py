"""What `ondevice runs` does beside reports, going on with a run and the trash: the list, a person's
words on a run, its name, what differs, its events as a table. Each gives the result for programs
and its text for people.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.runs import RunsConfig
from ondevice.runs import differences, labels, listing, rename, table
from ondevice.runs.export_events import export_run

Result = tuple[Any, str]


def perform(config: RunsConfig) -> Result:
    """(the result for programs, the text for people) of one of ACTIONS. Raises UserError."""
    return ACTIONS[config.action](config)


def listed(
    folder: str | Path = "runs",
    *,
    search: str = "",
    sort: str = "",
    reverse: bool = False,
    state: str = "",
) -> list[dict[str, Any]]:
    """The runs in a folder that a search holds of, as records with "state" and "figures": the
    oldest first, or in an order of `table.SORTS`. Raises UserError for a search or an order that
    does not exist, or where the folder cannot be read."""
    wanted = table.search(search)
    runs: list[Any] = listing.list_runs(folder, sizes=True)
    if sort:
        runs = table.ordered(runs, sort, reverse=reverse)
    return [
        table.to_record(run)
        for run in runs
        if wanted.holds(run) and (not state or table.state_of(run) == state)
    ]


def _list(config: RunsConfig) -> Result:
    runs = listed(
        config.folder,
        search=config.search,
        sort=config.sort,
        reverse=config.reverse,
        state=config.state,
    )
    if not runs:
        chosen = config.search or config.state
        told = f"no runs in {config.folder}"
        return runs, f"{told} that this holds of" if chosen else told
    if config.table or config.sort or config.search or config.state:
        return runs, table.table_text(runs)
    return runs, listing.runs_text(runs)


def _note(config: RunsConfig) -> Result:
    run = listing.find_run(config.run, config.folder).path
    if not config.also and not config.clear:
        note = labels.read_labels(run).note
        return {"run": str(run), "note": note}, note or f"{run.name} has no note"
    found = labels.set_note(run, " ".join(config.also))
    told = f"{run.name}: {found.note}" if found.note else f"{run.name} has no note any more"
    return {"run": str(run), "note": found.note}, told


def _tag(config: RunsConfig) -> Result:
    run = listing.find_run(config.run, config.folder).path
    tags = _split(config.also)
    if config.action == "tag":
        found = labels.add_tags(run, tags)
    else:
        found = labels.remove_tags(run, tags)
    told = f"{run.name}: {', '.join(found.tags) or 'no tags'}"
    return {"run": str(run), "tags": list(found.tags)}, told


def _split(words: tuple[str, ...]) -> list[str]:
    """Tags that were given one by one, or with commas between them."""
    return [tag for word in words for tag in word.split(",") if tag.strip()]


def _rename(config: RunsConfig) -> Result:
    before = listing.find_run(config.run, config.folder).path.name
    path = rename.rename_run(config.run, config.also[0], config.folder)
    told = f"{path.name} (what knows it as {before} still finds it)"
    return {"run": str(path), "before": before}, told


def _diff(config: RunsConfig) -> Result:
    runs = differences.find_all((config.run, *config.also), config.folder)
    try:
        found = differences.differences(runs, everything=config.everything)
    except OSError as error:
        where = str(error.filename or config.folder)
        raise UserError(f"cannot be read ({error.strerror})", where=where) from error
    names = [run.name for run in runs]
    records = [{"setting": one.setting, "values": list(one.values)} for one in found]
    return {"runs": names, "differences": records}, differences.differences_text(names, found)


def _export(config: RunsConfig) -> Result:
    run = listing.find_run(config.run, config.folder).path
    out = Path(config.out or f"{run.name}.{config.to}")
    made = export_run(run, config.to, out)
    return made, f"{made['file']}: {made['rows']:,} events, {len(made['columns'])} columns"


ACTIONS: dict[str, Callable[[RunsConfig], Result]] = {
    "list": _list,
    "note": _note,
    "tag": _tag,
    "untag": _tag,
    "rename": _rename,
    "diff": _diff,
    "export": _export,
}
