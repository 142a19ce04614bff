"""Ladder: what every stage of a run achieved, and the same prompts answered by each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from ondevice.runs.folder import RunFolder
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.page import Page
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

if TYPE_CHECKING:
    from ondevice.reports.results import Section

EMPTY = "No stage of this run is complete yet. The ladder grows with each one; esc goes home."


class LadderScreen(Page):
    ABOUT = """\
What each finished stage achieved. Bits per byte: how well held-out text is predicted (lower is better). Exact match: \
the share of held-out instructions answered to the letter. Below, the same prompt answered by every stage."""
    SHORT_ROWS = 2
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "right_square_bracket,right",
            "prompt(1)",
            "prompt",
            key_display="[ ]",
            tooltip="The next prompt",
        ),
        Binding(
            "left_square_bracket,left", "prompt(-1)", "prompt before", show=False, key_display="["
        ),
        Binding(
            "tab",
            "table",
            "tables",
            tooltip="The next table: figures, exact match by kind, preference, reasoning",
        ),
        Binding(
            "j,down",
            "scroll(1)",
            "scroll",
            key_display="j k",
            tooltip="Scroll the answers down; k: up",
        ),
        Binding("k,up", "scroll(-1)", "up", show=False, tooltip="Scroll the answers up"),
        Binding(
            "J",
            "scroll_table(1)",
            "table",
            key_display="J K",
            tooltip="Scroll the table and its notes down",
        ),
        Binding("K", "scroll_table(-1)", "table up", show=False, tooltip="Scroll the table up"),
        Binding(
            "ctrl+s",
            "write",
            "report",
            tooltip="Write report.md and report.html into the run folder",
        ),
        *moved(t="tab", w="ctrl+s"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._prompt, self._table = 0, 0
        self._stamp: list[tuple[Path, int]] = []
        self._sections: list[Section] = []
        self._answers: list[tuple[str, list[tuple[str, str]]]] = []
        self._trouble = ""

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="figures", classes="box"):
            yield SafeText(id="figures-text")
        with VerticalScroll(id="said", classes="box"):
            yield SafeText(id="said-text")

    def on_mount(self) -> None:
        for widget in self.query(VerticalScroll):
            widget.can_focus = False  # the keys are the screen's

    def entered(self) -> None:
        self.runs_changed()

    def runs_changed(self) -> None:
        """Reads the stages' records where one is new."""
        run = self.ui.run_folder
        if run is not None:
            stamp = [
                (stage.path, stage.done.stat().st_mtime_ns)
                for stage in run.stages()
                if stage.done.is_file()
            ]
        else:
            stamp = []
        if stamp != self._stamp:
            self._stamp, self._trouble = stamp, ""
            self._sections, self._answers = [], []
            if run is not None and stamp:
                self._read(run)
        self._show()

    def _read(self, run: RunFolder) -> None:
        # here: they load numpy
        from ondevice.reports.results import answers, done_records, sections

        try:
            done = done_records(run)
            self._sections = sections(done)
            self._answers = [
                (str(prompt), [(stage, str(text)) for stage, text in said])
                for prompt, said in answers(done)
            ]
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as problem:  # somebody else wrote a done.json
            self._trouble = f"a done.json of this run cannot be read: {problem!r}"

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        run = self.ui.run_folder
        self.top((run.path.name if run else self.unless_reading("no run"), "bold"), "  ladder")
        box, figures = self.query_one("#figures"), self.query_one("#figures-text", SafeText)
        said = self.query_one("#said-text", SafeText)
        if not self._sections:
            titled(box, "the ladder")
            figures.show(content(self._trouble or self.unless_reading(EMPTY), "$muted"))
            said.show("")
            titled(self.query_one("#said"), "answers")
            return
        found = self._sections
        section = found[self._table % len(found)]
        titled(
            box,
            section.title or "the ladder",
            f"tab {self._table % len(found) + 1} of {len(found)} tables",
        )
        notes = [content(note, "$muted") for note in section.notes]
        table = [table_content(section.table, max(box.size.width - 2, 40))] if section.table else []
        figures.show(lines([*table, *notes]))
        prompts = self._answers
        if not prompts:
            said.show(content("These stages answered no prompts.", "$muted"))
            return
        prompt, given = prompts[self._prompt % len(prompts)]
        titled(
            self.query_one("#said"),
            f"prompt {self._prompt % len(prompts) + 1} of {len(prompts)}",
            "[ ] next",
        )
        rows = [line("> ", (cell(prompt, 400).rstrip(), "bold")), content("")]
        for stage, text in given:
            said_by = content(text.strip() or "(nothing)", limit=4000)
            rows.append(Content("").join([line((f"{cell(stage, 10)} ", "bold $primary")), said_by]))
        said.show(lines(rows))

    def action_prompt(self, by: int) -> None:
        self._prompt += by
        self._show()

    def action_scroll(self, by: int) -> None:
        self.query_one("#said").scroll_relative(y=3 * by, animate=False)

    def action_scroll_table(self, by: int) -> None:
        self.query_one("#figures").scroll_relative(y=3 * by, animate=False)

    def action_table(self) -> None:
        self._table += 1
        self._show()

    def action_write(self) -> None:
        run = self.ui.run_folder
        if run is None or not self._sections:
            self.ui.say("nothing to report yet")
            return
        from ondevice.reports.report import write_report

        try:
            self.ui.say(f"written: {write_report(run)}")
        except OSError as problem:
            self.ui.say(f"could not write the report: {problem}", bad=True)


def table_content(table: Sequence[Sequence[str]], width: int) -> Content:
    """Columns as wide as they need; the last ones are left out where there is no room."""
    widths = [min(max(len(row[i]) for row in table), 24) for i in range(len(table[0]))]
    while len(widths) > 2 and sum(widths) + 2 * len(widths) > width:
        widths.pop()
    rows = []
    for number, row in enumerate(table):
        style = "$muted" if number == 0 else ""
        parts = [(cell(row[0], widths[0]), style or "bold")]
        parts += [
            (f"  {cell(text, w, right=True)}", style)
            for text, w in zip(row[1:], widths[1:], strict=False)
        ]
        rows.append(line(*parts))
    return lines(rows)
