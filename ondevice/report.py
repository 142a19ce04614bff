"""The ladder: what each stage of a run achieved and what it answered, for a terminal and as report.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ondevice.checkpoint import write_file
from ondevice.inert import inert
from ondevice.progress import duration
from ondevice.runfolder import RunFolder

Table = list[list[str]]
NOTHING = "–"


def ladder(run: RunFolder) -> str:
    """Plain text: the stages' figures, exact match by kind, and every prompt with each stage's answer."""
    done = _done(run)
    parts = [_plain(_figures(done))]
    if kinds := _kinds(done):
        parts.append(_plain(kinds))
    for prompt, answers in _answers(done):
        width = max(len(stage) for stage, _ in answers)
        parts.append("\n".join([f"> {prompt}", *(f"  {stage:<{width}}  {said}" for stage, said in answers)]))
    return "\n\n".join(parts)


def write_report(run: RunFolder) -> Path:
    """The same as Markdown, in `report.md`."""
    done = _done(run)
    lines = [f"# {_cell(run.path.name)}", "", *_markdown(_figures(done)), ""]
    if kinds := _kinds(done):
        lines += ["## Exact match by kind of instruction", "", *_markdown(kinds), ""]
    answered = _answers(done)
    if answered:
        lines += ["## The same prompts, asked after every stage", ""]
    for prompt, answers in answered:
        lines += [f"**{_cell(prompt)}**", "", *_markdown([["stage", "answer"], *([s, a] for s, a in answers)]), ""]
    write_file(run.report, "\n".join(lines))
    return run.report


def _done(run: RunFolder) -> list[tuple[str, dict[str, Any]]]:
    found = ((stage.name, stage.done_record()) for stage in run.stages())
    return [(name, record) for name, record in found if record]


def _figures(done: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    table = [["stage", "bits per byte", "exact match", "time", "CPU seconds", "peak memory"]]
    for name, record in done:
        marks = record.get("marks") or {}
        table.append([name, _number(marks.get("bits_per_byte"), "{:.3f}"), _number(marks.get("exact_match"), "{:.1%}"),
                      _number(record.get("seconds"), duration), _number(record.get("cpu_seconds"), "{:.0f}"),
                      _number(record.get("peak_bytes"), lambda n: f"{n / 1e9:.2f} GB")])
    return table


def _kinds(done: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    by_stage = {name: (record.get("marks") or {}).get("by_kind") or {} for name, record in done}
    kinds = sorted({kind for counts in by_stage.values() for kind in counts})
    if not kinds:
        return []
    table = [["kind", "questions", *by_stage]]
    for kind in kinds:
        asked = max(counts[kind][1] for counts in by_stage.values() if kind in counts)
        shares = [f"{counts[kind][0] / counts[kind][1]:.0%}" if kind in counts else NOTHING
                  for counts in by_stage.values()]
        table.append([kind, str(asked), *shares])
    return table


def _answers(done: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(prompt, [(stage, answer)])], all made harmless to show."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, record in done:
        for pair in record.get("answers") or []:
            said = inert(pair["answer"], newlines=False).strip() or "(nothing)"
            found.setdefault(inert(pair["prompt"], newlines=False), []).append((name, said))
    return list(found.items())


def _number(value: float | None, form: str | Callable[[float], str]) -> str:
    if value is None:
        return NOTHING
    return form.format(value) if isinstance(form, str) else form(value)


def _plain(table: Table) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in table]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _markdown(table: Table) -> list[str]:
    rows = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table]
    return [rows[0], "|" + " --- |" * len(table[0]), *rows[1:]]


def _cell(text: str) -> str:
    """Harmless text that Markdown takes literally, in a table too."""
    text = inert(text, newlines=False)
    for sign in "\\`*_[]<>|#$~":
        text = text.replace(sign, "\\" + sign)
    return text
