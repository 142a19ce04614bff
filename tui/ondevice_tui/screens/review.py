"""Review: a question and an answer that a model wrote about a passage, kept or dropped with one key.
A verdict is on disk before the next row is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget

from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.preferences.review import Review, Row, Verdict
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.one_key_page import STORING, OneKeyPage
from ondevice_tui.screens.text_card import Ask
from ondevice_tui.widgets.safe import SafeText, content, line, lines, titled

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

NO_ROW = "no row was there for it"
WRITTEN = "*.asked.jsonl"
"""Journals that `ondevice data ask` leaves beside the rows that it writes."""


def open_review(ui: OndeviceApp) -> None:
    """Asks which rows are reviewed, and opens the screen on them."""

    def take(path: str | None) -> None:
        if path and path.strip():
            ui.push_screen(ReviewScreen(Path(path.strip())))

    ui.push_screen(Ask("rows that `ondevice data ask` has written", newest(ui.runs_folder)), take)


def newest(runs: Path) -> str:
    """The newest such rows in the working folder, in one of its folders or among the runs; empty
    where there are none."""
    found: list[tuple[float, Path]] = []
    for folder, pattern in ((Path(), WRITTEN), (Path(), f"*/{WRITTEN}"), (runs, f"*/{WRITTEN}")):
        for journal in folder.glob(pattern):
            rows = journal.with_name(journal.name.replace(".asked.jsonl", ".jsonl"))
            if rows.is_file():
                found.append((rows.stat().st_mtime, rows))
    return str(max(found)[1]) if found else "chats.jsonl"


class ReviewScreen(OneKeyPage):
    ABOUT = """\
A model wrote these questions about your documents, and the answers. Is the answer right, by the passage, and the \
question worth learning? What is kept goes into a file beside the rows (chats.kept.jsonl), which sft learns from; what \
is dropped is not lost, u takes a verdict back. Every verdict is saved before the next row shows. The same in a plain \
terminal: ondevice data review FILE."""
    GUARD_S: ClassVar[float] = 0.3  # a key pressed sooner was meant for the row before
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "back", key_display="esc", tooltip="Back; all is saved"),
        Binding("right", "give('keep')", "keep", key_display="→", tooltip="Learn from this row"),
        Binding("left", "give('drop')", "drop", key_display="←", tooltip="Leave this row out"),
        Binding("s", "later", "later", tooltip="Not now: it comes again at the end"),
        Binding("u,backspace", "undo", "undo", tooltip="Take the newest verdict back"),
        Binding(
            "down", "scroll(1)", "scroll", key_display="↑ ↓", tooltip="Scroll the passage down"
        ),
        Binding("up", "scroll(-1)", "up", show=False, tooltip="Scroll the passage up"),
        *moved(k="→", d="←"),
    ]

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.rows: Review | None = None
        self.row: Row | None = None
        self.busy = True
        self._shown_at = 0.0
        self._said: tuple[str, str] = ("", "")  # the line beneath, and its style

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="review-passage", classes="box") as passage:
            passage.can_focus = False
            yield SafeText(id="review-text")
        yield SafeText(id="review-said", classes="box")
        yield SafeText(id="review-told")

    def on_mount(self) -> None:
        self._tell("reading the rows …", "$muted")
        self._do(self._open, follows=True)

    def on_unmount(self) -> None:
        if self.rows is not None:
            self.rows.__exit__()

    def _open(self) -> Row | None:
        rows = Review(self.file)
        rows.__enter__()
        self.rows = rows
        return rows.next()

    # keys

    def action_close(self) -> None:
        if self._at_rest():
            self.dismiss()

    def action_give(self, verdict: Verdict) -> None:
        rows, row = self._ready()
        if rows is None or row is None:
            return
        number = row.number

        def give() -> Row | None:
            rows.give(number, verdict)
            return rows.next(number)

        self._do(give)

    def action_later(self) -> None:
        rows, row = self._ready()
        if rows is not None and row is not None:
            self._do(partial(rows.next, row.number))

    def action_undo(self) -> None:
        rows, row = self.rows, self.row
        if not self._at_rest():
            return
        if rows is None:
            self._refuse(NO_ROW)
        else:
            self._do(lambda: rows.undo() or row, unchanged="nothing to undo")

    def action_scroll(self, lines: int) -> None:
        self.query_one("#review-passage").scroll_relative(y=lines, animate=False)

    def _at_rest(self) -> bool:
        """Whether nothing is being read or stored; where something is, the key is refused."""
        if self.busy:
            self._refuse("the rows were still being read" if self.rows is None else STORING)
        return not self.busy

    def _ready(self) -> tuple[Review | None, Row | None]:
        """The rows and the one that a key is for; none where it came too soon, which is told."""
        if not self._at_rest():
            return None, None
        if self.row is None:
            self._refuse(NO_ROW)
            return None, None
        if ticks() - self._shown_at < self.GUARD_S:
            self._refuse("too soon for this row")
            return None, None
        return self.rows, self.row

    # what is shown

    def _do(
        self, work: Callable[[], Row | None], *, follows: bool = False, unchanged: str = ""
    ) -> None:
        """Does what takes longer than a frame in a thread, then shows the row that it gives.
        `follows`: no key has asked for it; `unchanged`: what is told where it gives the row that was
        shown."""
        if not follows:
            self._take()
        self.busy = True
        self.run_worker(self._done(work, unchanged), group="review")

    async def _done(self, work: Callable[[], Row | None], unchanged: str) -> None:
        trouble, before = "", self.row
        try:
            self.row = await asyncio.to_thread(work)
        except UserError as problem:
            trouble = str(problem)
        self.busy = False
        if self.is_mounted:
            self._show(trouble, unchanged if self.row is before else "")

    def _show(self, trouble: str, told: str) -> None:
        self._shown_at = ticks()
        row, rows = self.row, self.rows
        if rows is not None:
            counts = rows.counts
            self.top(
                ("review", "bold"),
                f"  {counts['kept']} kept  {counts['dropped']} dropped  {counts['left']} left",
            )
        else:
            self.top(("review", "bold"))
        for name in ("#review-passage", "#review-said"):
            self.query_one(name).display = row is not None
        if row is not None:
            titled(self.query_one("#review-passage"), "passage", row.source)
            self.query_one("#review-text", SafeText).show(content(row.passage or "(not kept)"))
            self.query_one("#review-passage").scroll_home(animate=False)
            said = self.query_one("#review-said", SafeText)
            titled(said, f"{row.number + 1} of {len(rows or ())}")
            said.show(lines([content(row.question, "bold"), content(row.answer)]))
        if trouble:
            self._tell(f"✗ {trouble}", "$error")
        elif row is None and rows is not None:
            self._tell(f"All rows have a verdict. sft learns from {rows.kept_file}", "$success")
        else:
            self._tell(told, "$warning")

    def _tell(self, text: str, style: str = "") -> None:
        self._said = (text, style)
        parts = [(f"{self.refused}   ", "$warning")] if self.refused else []
        if text:
            parts.append((text, style))
        self.query_one("#review-told", SafeText).show(line(" ", *parts) if parts else content(""))

    def tell_again(self) -> None:
        self._tell(*self._said)
