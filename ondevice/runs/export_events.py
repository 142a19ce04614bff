"""What a run's stages have emitted as one table: `ondevice runs export RUN --to csv|parquet`.

A row for each event that holds (`events.read`: nothing twice after a resume), in the order of the
stages. Its columns are `stage`, `event`, `step`, `t` (seconds since 1970) and every plain value of
any event; values within a value are told as `eval.by_kind`. What has no plain form, such as the
settings at a stage's start, is JSON text.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ondevice.common import atomic, disk
from ondevice.common.errors import UserError
from ondevice.common.json_files import to_json
from ondevice.runs import events
from ondevice.runs.folder import RunFolder

FIRST = ("stage", "event", "step", "t")
_AT_ONCE = 10_000  # rows of a row group


def export_run(run: Path, to: Literal["csv", "parquet"], out: Path) -> dict[str, Any]:
    """Writes the table: {"run", "file", "rows", "columns"}. A file that stands there is not
    replaced. Raises UserError: no events, a file in the way, a library that is not installed."""
    if os.path.lexists(out):
        raise UserError("stands there already", where=str(out), hint="give another --out")
    if to == "parquet":
        _pyarrow()  # before anything is read
    columns = _columns(run)
    if not columns:
        raise UserError("has no events to export", where=str(run))
    kinds = {name: _kind(found) for name, found in columns.items()}

    def write() -> int:
        with atomic.aside(out) as new:
            if to == "csv":
                rows = _to_csv(run, kinds, new)
            else:
                rows = _to_parquet(run, kinds, new)
            atomic.sync(new)
            atomic.place(new, out)
        return rows

    try:
        rows = disk.until_written(out, write)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"cannot be written ({why})", where=str(out)) from error
    return {"run": str(run), "file": str(out), "rows": rows, "columns": list(kinds)}


def _rows(run: Path) -> Iterator[dict[str, Any]]:
    """Each event as a row. Raises UserError where a stage's events cannot be read."""
    for stage in RunFolder(run).stages():
        try:
            for event in events.read(stage.events):
                yield {"stage": stage.name, **dict(_flat(event))}
        except OSError as error:
            raise UserError(
                f"cannot be read ({error.strerror})", where=str(stage.events)
            ) from error


def _flat(event: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in event.items():
        if name == "stage":
            continue
        if isinstance(value, Mapping) and value and all(map(_is_number, value.values())):
            for inner, number in value.items():
                yield f"{name}.{inner}", number
        elif isinstance(value, (Mapping, list)):
            yield name, to_json(value)
        else:
            yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _columns(run: Path) -> dict[str, set[type]]:
    """Column → the types of its values, in the order of the table."""
    found: dict[str, set[type]] = {}
    for row in _rows(run):
        for name, value in row.items():
            types = found.setdefault(name, set())
            if value is not None:
                types.add(_type(value))
    if not found:
        return {}
    first = {name: found.pop(name, set()) for name in FIRST}
    return {**first, **found}


def _type(value: Any) -> type:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return float  # more than a table's whole numbers hold
    return type(value)


def _kind(types: set[type]) -> type:
    """The one type of a column: whole numbers, numbers, truth, or else text."""
    if types <= {int} and types:
        return int
    if types <= {int, float}:
        return float
    if types == {bool}:
        return bool
    return str


def _value(value: Any, kind: type) -> Any:
    if value is None:
        return None
    if kind is str:
        # half of a character has no bytes
        return str(value).encode("utf-8", "replace").decode("utf-8")
    try:
        return kind(value)
    except OverflowError:
        return None


def _to_csv(run: Path, kinds: Mapping[str, type], file: Path) -> int:
    rows = 0
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(kinds)
        for row in _rows(run):
            writer.writerow([_value(row.get(name), kind) for name, kind in kinds.items()])
            rows += 1
    return rows


def _to_parquet(run: Path, kinds: Mapping[str, type], file: Path) -> int:
    arrow, parquet = _pyarrow()
    types = {int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}
    schema = arrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    rows = 0
    with parquet.ParquetWriter(file, schema) as writer:
        part: list[dict[str, Any]] = []
        for row in _rows(run):
            part.append({name: _value(row.get(name), kind) for name, kind in kinds.items()})
            rows += 1
            if len(part) == _AT_ONCE:
                writer.write_table(arrow.Table.from_pylist(part, schema))
                part = []
        if part:
            writer.write_table(arrow.Table.from_pylist(part, schema))
    return rows


def _pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet (0.2 s). Raises UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        from ondevice.common.distribution import install_hint

        raise UserError(
            "Parquet files need pyarrow", where="to", hint=install_hint("data")
        ) from error
    return pyarrow, pyarrow.parquet
