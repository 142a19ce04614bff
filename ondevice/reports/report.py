"""The ladder: what each stage of a run achieved and what it answered, for a terminal, as report.md
and report.html.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.sanitize import sanitize
from ondevice.reports.html_report import page
from ondevice.reports.results import Section, Table, answers, done_records, sections
from ondevice.runs.folder import RunFolder

WIDTH = 96  # columns of a terminal, for sentences; the tables of the whole road need 100


def ladder(run: RunFolder) -> str:
    """Plain text: the stages' figures, what there is to tell of them, and every prompt with each
    stage's answer.
    """
    done = done_records(run)
    first, *others = sections(done)
    parts = [_plain(first.table), *_sentences(first)]
    for section in others:
        title = section.title
        if section.table:
            title += f"\n{_plain(section.table)}"
        parts += [title, *_sentences(section)]
    for prompt, replies in answers(done):
        width = max(len(stage) for stage, _ in replies)
        lines = [f"> {sanitize(prompt, newlines=False)}"]
        for stage, text in replies:
            lines.append(f"  {stage:<{width}}  {_answer(text)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_report(run: RunFolder, time: Sequence[str] = ()) -> Path:
    """The same as Markdown in `report.md`, which is returned; as a page with curves in
    `report.html` beside it. `time`: what is to be said of a run's time, where it has one.
    """
    done = done_records(run)
    lines = [f"# {cell(run.path.name)}", ""]
    for number, section in enumerate(sections(done)):
        if number:
            lines += [f"## {cell(section.title)}", ""]
        if section.table:
            lines += [*markdown(section.table), ""]
        if section.notes:
            lines += [f"- {cell(note)}" for note in section.notes]
            lines.append("")
    if time:
        lines += ["## The time", "", *(f"- {cell(note)}" for note in time), ""]
    replies_by_prompt = answers(done)
    if replies_by_prompt:
        lines += ["## The same prompts, asked after every stage", ""]
    for prompt, replies in replies_by_prompt:
        table = [["stage", "answer"]]
        for stage, text in replies:
            table.append([stage, _answer(text)])
        lines += [f"**{cell(prompt)}**", "", *markdown(table), ""]
    write_file(run.report, "\n".join(lines))
    write_file(html_of(run), page(run, done))
    return run.report


def html_of(run: RunFolder) -> Path:
    """Where the page is."""
    return run.report.with_suffix(".html")


def _answer(text: str) -> str:
    return sanitize(text, newlines=False).strip() or "(nothing)"


def _plain(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        for text, width in zip(row[1:], widths[1:], strict=True):
            cells.append(text.rjust(width))
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _sentences(section: Section) -> list[str]:
    """One paragraph, or none."""
    if not section.notes:
        return []
    lines = []
    for note in section.notes:
        lines.append(textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    return ["\n".join(lines)]


def markdown(table: Table) -> list[str]:
    """The lines of a table."""
    rows = [f"| {' | '.join(map(cell, row))} |" for row in table]
    return [rows[0], "|" + " --- |" * len(table[0]), *rows[1:]]


def cell(text: str) -> str:
    """Harmless text that Markdown takes literally, in a table too."""
    text = sanitize(text, newlines=False)
    for sign in "\\`*_[]<>|#$~&":
        text = text.replace(sign, "\\" + sign)
    return text


def report_text(run: RunFolder) -> str:
    """report.md of a run; of one that has not ended, or was made stage by stage, the ladder of its
    complete stages. Raises UserError where none is complete."""
    if run.report.is_file():
        return bounded.read_text(run.report, errors="replace")
    if not any(stage.done_record() for stage in run.stages()):
        raise UserError(
            "has no report yet", where=str(run.path), hint="its first complete stage brings one"
        )
    return ladder(run)
