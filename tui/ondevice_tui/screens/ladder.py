"""Ladder: what every stage of a run achieved, and the same prompts answered by each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from ondevice.progress import duration
from ondevice.report import NOTHING, write_report
from ondevice_tui.screens.page import Page, titled
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines

EMPTY = "No stage of this run is complete yet. The ladder grows with each one; esc goes home."


class LadderScreen(Page):
    ABOUT = """\
What each finished stage achieved. Bits per byte: how well held-out text is predicted (lower is better). Exact match: \
the share of held-out instructions answered to the letter. Below, the same prompt answered by every stage."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,right", "prompt(1)", "prompt", key_display="[ ]", tooltip="The next prompt"),
        Binding("left_square_bracket,left", "prompt(-1)", "prompt before", show=False, key_display="["),
        Binding("k", "kinds", "kinds", tooltip="Exact match by kind of instruction, or the figures"),
        Binding("w", "write", "report", tooltip="Write report.md into the run folder"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._prompt, self._by_kind = 0, False
        self._done: list[tuple[str, dict[str, Any]]] = []

    def body(self) -> Iterable[Widget]:
        yield SafeText(id="figures", classes="box")
        with VerticalScroll(id="said", classes="box"):
            yield SafeText(id="said-text")

    def entered(self) -> None:
        self.runs_changed()

    def runs_changed(self) -> None:
        run = self.ui.run_folder
        self._done = [(stage.name, record) for stage in (run.stages() if run else ())
                      if (record := stage.done_record())]
        self._show()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        run = self.ui.run_folder
        self.top((run.path.name if run else "no run", "bold"), "  ladder")
        figures, said = self.query_one("#figures", SafeText), self.query_one("#said-text", SafeText)
        titled(figures, "exact match by kind" if self._by_kind else "the ladder", "k figures or kinds")
        if not self._done:
            figures.show(content(EMPTY, "$muted"))
            said.show("")
            titled(self.query_one("#said"), "answers")
            return
        table = kinds(self._done) if self._by_kind else measures(self._done)
        figures.show(table_content(table, max(figures.size.width - 4, 40)))
        prompts = answers(self._done)
        if not prompts:
            said.show(content("These stages answered no prompts.", "$muted"))
            return
        prompt, given = prompts[self._prompt % len(prompts)]
        titled(self.query_one("#said"), f"prompt {self._prompt % len(prompts) + 1} of {len(prompts)}", "[ ] next")
        rows = [line("> ", (cell(prompt, 400).rstrip(), "bold")), content("")]
        for stage, text in given:
            rows += [content(stage, "bold $primary"), content(text.strip() or "(nothing)", limit=4000), content("")]
        said.show(lines(rows))

    def action_prompt(self, by: int) -> None:
        self._prompt += by
        self._show()

    def action_kinds(self) -> None:
        self._by_kind = not self._by_kind
        self._show()

    def action_write(self) -> None:
        run = self.ui.run_folder
        if run is None or not self._done:
            self.ui.say("nothing to report yet")
            return
        try:
            self.ui.say(f"written: {write_report(run)}")
        except OSError as problem:
            self.ui.say(f"could not write the report: {problem}", bad=True)


def measures(done: Sequence[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """A row a stage: what its done.json says in numbers; columns that no stage has are left out."""
    columns = [("bits/byte", lambda r: _text(_marks(r).get("bits_per_byte"), "{:.3f}")),
               ("exact match", lambda r: _text(_marks(r).get("exact_match"), "{:.1%}")),
               ("held-out loss", lambda r: _text(_outcome(r).get("loss"), "{:.3f}")),
               ("steps", lambda r: _text(_outcome(r).get("steps") or None, "{:,}")),
               ("tokens", lambda r: _text(_outcome(r).get("tokens") or None, "{:,}")),
               ("time", lambda r: duration(r["seconds"]) if _is_number(r.get("seconds")) else NOTHING),
               ("peak memory", lambda r: f"{r['peak_bytes'] / 1e9:.2f} GB" if _is_number(r.get("peak_bytes"))
                else NOTHING)]
    table = [["stage", *(name for name, _ in columns)]]
    table += [[stage, *(tell(record) for _, tell in columns)] for stage, record in done]
    kept = [i for i in range(len(table[0])) if i == 0 or any(row[i] != NOTHING for row in table[1:])]
    return [[row[i] for i in kept] for row in table]


def kinds(done: Sequence[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    by_stage = {stage: _marks(record).get("by_kind") or {} for stage, record in done}
    table = [["kind", *by_stage]]
    for kind in sorted({kind for counts in by_stage.values() for kind in counts}):
        row = [str(kind)]
        for counts in by_stage.values():
            found = counts.get(kind)
            row.append(f"{found[0] / found[1]:.0%} of {found[1]}" if found and found[1] else NOTHING)
        table.append(row)
    return table


def answers(done: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(prompt, [(stage, answer)])]."""
    found: dict[str, list[tuple[str, str]]] = {}
    for stage, record in done:
        given = record.get("answers")
        for pair in given if isinstance(given, list) else ():
            if isinstance(pair, dict):
                found.setdefault(str(pair.get("prompt", "")), []).append((stage, str(pair.get("answer", ""))))
    return list(found.items())


def table_content(table: Sequence[Sequence[str]], width: int) -> Content:
    """Columns as wide as they need; the last ones are left out where there is no room."""
    widths = [min(max(len(row[i]) for row in table), 24) for i in range(len(table[0]))]
    while len(widths) > 2 and sum(widths) + 2 * len(widths) > width:
        widths.pop()
    rows = []
    for number, row in enumerate(table):
        style = "$muted" if number == 0 else ""
        parts = [(cell(row[0], widths[0]), style or "bold")]
        parts += [(f"  {cell(text, w, right=True)}", style) for text, w in zip(row[1:], widths[1:], strict=False)]
        rows.append(line(*parts))
    return lines(rows)


def _marks(record: dict[str, Any]) -> dict[str, Any]:
    found = record.get("marks")
    return found if isinstance(found, dict) else {}


def _outcome(record: dict[str, Any]) -> dict[str, Any]:
    found = record.get("outcome")
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any, form: str) -> str:
    return form.format(value) if _is_number(value) else NOTHING
