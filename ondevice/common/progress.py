"""Progress on stderr: a bar with rate, time left and the stage's numbers on a terminal, plain lines
elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, TextIO, TypeVar

from ondevice.common.clock import ticks

if TYPE_CHECKING:
    import rich.progress

LINE_EVERY_S = 5.0
PATIENCE_S = 2.0
T = TypeVar("T")
_SHORT = {
    "tokens_per_second": "tok/s",
    "learning_rate": "lr",
    "bits_per_byte": "bpb",
    "grad_norm": "norm",
}


class Progress:
    """with Progress("pretrain", total=1464, first=0) as p: p.update(step, {"loss": 2.3, "lr":
    3e-3}); p.note("saved")

    `total` steps in all (0: unknown), `first` of them done before this start: the rate counts only
    what came after. `beside` gives words that stand behind the time left.
    """

    def __init__(
        self,
        title: str,
        total: int,
        first: int = 0,
        *,
        stream: TextIO | None = None,
        beside: Callable[[], str] = lambda: "",
    ) -> None:
        self.title, self.total, self.first = title, total, first
        self._stream = stream or sys.stderr
        self._beside = beside
        self._began = ticks()
        self._said = float("-inf")
        self._line = ""  # the newest line, where it has not been shown
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._gone = False

    def __enter__(self) -> Progress:
        self._began = ticks()
        if self._stream.isatty():
            self._start_bar()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            try:
                self._bar.stop()
            except OSError:
                self._gone = True
        elif self._line:
            self._write(self._line)

    def update(self, step: int, numbers: Mapping[str, float | None] | None = None) -> None:
        """`step` steps are done; `numbers` are shown beside them, in their order."""
        if self._gone:
            return
        elapsed = ticks() - self._began
        if elapsed > 0:
            rate = (step - self.first) / elapsed
        else:
            rate = 0.0
        shown = numbers_line(numbers or {})
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=step,
                numbers=shown,
                pace=_pace(rate),
                left=self._left(step, rate),
            )
            return
        count = f"{step}/{self.total}" if self.total else str(step)
        pieces = [f"{self.title} {count}", shown, _pace(rate), self._left(step, rate)]
        self._line = "  ".join(piece for piece in pieces if piece)
        if ticks() - self._said >= LINE_EVERY_S:
            self._said = ticks()
            self._write(self._line)
            self._line = ""

    def note(self, text: str) -> None:
        """A line of its own above the bar. The text is shown as it is: make a model's words inert
        first.
        """
        if self._bar is None:
            self._write(text)
            return
        try:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        except OSError:
            self._gone = True

    def _left(self, step: int, rate: float) -> str:
        words = []
        if self.total > step and rate > 0:
            words.append(f"{duration((self.total - step) / rate)} left")
        if beside := self._beside():
            words.append(beside)
        return " · ".join(words)

    def _write(self, line: str) -> None:
        if self._gone:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self._gone = True  # the terminal closed (SIGHUP): training finishes its step and saves without it

    def _start_bar(self) -> None:
        from rich.console import Console  # up to 90 ms
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column  # up to 90 ms

        def text(format: str, ratio: int | None = None) -> TextColumn:
            return TextColumn(format, markup=False, table_column=Column(no_wrap=True, ratio=ratio))

        console = Console(file=self._stream, force_terminal=True)
        self._bar = Progress(
            text("{task.description}"),
            BarColumn(bar_width=24),
            text("{task.completed:.0f}/{task.total:.0f}" if self.total else "{task.completed:.0f}"),
            text("{task.fields[left]}"),
            text("{task.fields[pace]}"),
            text("{task.fields[numbers]}"),
            console=console,
            refresh_per_second=5,
            expand=False,
        )
        self._task = self._bar.add_task(
            self.title, total=self.total or None, completed=self.first, numbers="", pace="", left=""
        )
        self._bar.start()


def with_progress(items: Iterable[T], title: str, total: int = 0) -> Iterator[T]:
    """The items, and a bar of how many have been taken (of `total`, 0: not known) where that lasts
    longer than `PATIENCE_S`."""
    began, bar = ticks(), None
    with ExitStack() as shown:
        for count, item in enumerate(items, 1):
            if bar is not None:
                bar.update(count)
            elif ticks() - began > PATIENCE_S:
                bar = shown.enter_context(Progress(title, total, count))
            yield item


def numbers_line(numbers: Mapping[str, float | None]) -> str:
    """loss 2.310  lr 3.0e-03  4.1k tok/s; a number that is missing or not finite is shown as –."""
    pieces = []
    for name, value in numbers.items():
        short = _SHORT.get(name, name.replace("_", " "))
        pieces.append(
            f"{number(value)} {short}" if short.endswith("/s") else f"{short} {number(value)}"
        )
    return "  ".join(pieces)


def number(value: float | None) -> str:
    """A number in about five characters."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f}{unit}"
    if isinstance(value, int):
        return str(value)
    if size and size < 0.01:
        return f"{value:.1e}"
    if size < 100:
        return f"{value:.3f}"
    return f"{value:.0f}"


def size(count: float) -> str:
    """Bytes in a few characters: 812 B, 4.5 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """0:07, 12:30, 3:05:00, 2d 04h."""
    whole = int(seconds + 0.5)
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def _pace(rate: float) -> str:
    if rate <= 0:
        return ""
    if rate >= 1:
        return f"{number(rate)} it/s"
    return f"{number(1 / rate)} s/it"
