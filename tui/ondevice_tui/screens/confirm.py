"""Small cards over a screen: a question before something stops, and the end of a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ondevice.common.progress import numbers_line
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.listing import TAIL
from ondevice.runs.logs import log_tail, stage_log
from ondevice_tui import stage_processes
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

EVENTS = 8  # shown of a stage that has no log


class Question(Card[bool]):
    """y or Enter is yes, everything else leaves things as they are."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "dismiss(True)", "yes"),
        Binding("n,escape,q", "dismiss(False)", "no"),
    ]

    def __init__(self, title: str, text: str, yes: str, no: str = "leave it") -> None:
        super().__init__()
        self._title, self._text, self._yes, self._no = title, text, yes, no

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="-small") as card:
            titled(card, self._title)
            yield SafeText(
                lines(
                    [
                        content(self._text),
                        content(""),
                        line(
                            ("y ", "bold $primary"),
                            self._yes,
                            ("    n ", "bold $primary"),
                            self._no,
                        ),
                    ]
                )
            )


class Details(Card[None]):
    """Text to read, in a card."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,L,d,enter", "dismiss(None)", "close", key_display="esc"),
        Binding("j", "scroll(2)", "down", show=False),
        Binding("k", "scroll(-2)", "up", show=False),
        Binding("space", "page(1)", "page down", show=False),
    ]

    def __init__(self, title: str, text: Content) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card") as card:
            titled(card, self._title, "j k, space a page   esc closes")
            yield SafeText(self._text)

    def action_scroll(self, by: int) -> None:
        self.query_one("#card").scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        card = self.query_one("#card")
        card.scroll_relative(y=by * max(card.size.height - 1, 1), animate=False)


def ask(
    ui: OndeviceApp,
    title: str,
    text: str,
    yes: str,
    then: Callable[[], object],
    no: str = "leave it",
) -> None:
    def answered(said: bool | None) -> None:
        if said:
            then()

    ui.push_screen(Question(title, text, yes, no), answered)


def ask_to_stop(ui: OndeviceApp, wanted: str) -> None:
    """Asks, then asks the stage of the chosen run to stop: the wanted one where it trains, else the
    only one that does."""
    state, run = ui.run_state, ui.run_folder
    if state:
        busy = [stage["stage"] for stage in state["stages"] if stage["state"] == "training"]
    else:
        busy = []
    if not busy or run is None:
        ui.say("nothing trains in this run")
        return
    if wanted not in busy and len(busy) > 1:
        ui.say(f"which one? {' and '.join(busy)} train: highlight or watch the one to stop")
        return
    stage = StageFolder(run.path / (wanted if wanted in busy else busy[0]))

    def stop() -> None:
        try:
            asked = stage_processes.stop(stage)
        except OSError as error:
            ui.say(f"cannot be asked to stop: {error.strerror}", bad=True)
            return
        ui.say("asked to stop: it finishes its step and saves" if asked else "it had ended already")

    ask(
        ui,
        "stop",
        f"{run.path.name}: stop {stage.name}? It finishes its step and saves; R goes on with it later.",
        "stop it",
        stop,
    )


def show_details(ui: OndeviceApp, run: RunFolder, name: str) -> None:
    """The stage's last messages, its process, the end of its log."""
    stage = StageFolder(run.path / name)
    rows: list[Content] = []
    holder = stage.holder()
    if holder is not None:
        rows += [
            line(("process  ", "$muted"), f"{holder.get('pid', '?')} on {holder.get('host', '?')}")
        ]
    newest = list(events.read(stage.events, tail=TAIL))
    for event in newest:
        if event.get("event") in ("warning", "failed"):
            rows.append(
                line(
                    (f"{_when(event.get('t'))} {event['event']:<8} ", "bold $warning"),
                    str(event.get("message", "")),
                )
            )
    log = stage_log(stage)
    if log is not None and (text := log_tail(log, 40)):
        rows += [content(""), line(("end of ", "$muted"), (str(log), "$muted")), content(text)]
    else:
        rows += [
            content("No log: its output went to its terminal. Its last events:", "$muted"),
            *(_event_line(event) for event in newest[-EVENTS:]),
        ]
    ui.push_screen(Details(f"{run.path.name} · {name}", lines(rows[-80:])))


def _event_line(event: Mapping[str, Any]) -> Content:
    """`12:04:11 step 40  loss 2.581  lr 1.0e-03`."""
    step = event.get("step")
    figures = {
        k: float(v)
        for k, v in event.items()
        if k not in ("t", "step") and isinstance(v, (int, float))
    }
    at = f"{event.get('event', '')}" + (f" {step}" if isinstance(step, int) else "")
    return line(
        (f"{_when(event.get('t'))} ", "$muted"),
        (cell(at, 14), "bold"),
        " ",
        cell(numbers_line(dict(list(figures.items())[:3])), 44).rstrip(),
    )


def _when(t: Any) -> str:
    known = isinstance(t, (int, float)) and 0 <= t < 1e11  # a time that a calendar knows
    if known:
        return time.strftime("%H:%M:%S", time.localtime(t))
    return ""
