"""Rate: a prompt, two to four answers without names, one key. A vote is on disk before the next ones are shown."""

from __future__ import annotations

import difflib
import getpass
import importlib
import os
from collections.abc import Iterable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input

from ondevice.config.recipe import STAGES
from ondevice.errors import UserError
from ondevice.progress import duration
from ondevice.ratings import FILE, Item, Progress, Ratings
from ondevice.runfolder import clock, ticks
from ondevice_tui.screens.ask import Details, ask
from ondevice_tui.screens.page import Page, titled
from ondevice_tui.widgets.safe import SafeInput, SafeText, cell, content, line, lines

WANTED = 100  # usable pairs: fewer make a reward model that mostly guesses
REPEAT_SHARE = 0.1  # of the votes: an earlier pair again, its sides swapped
REASONS = ("wrong", "unhelpful", "style", "unsafe", "too long")
DIFF_WORDS = 1500  # more are not compared: it would hold up the keys


class Answer(VerticalScroll):
    """One answer. `read_to_end` once its last line has been on the screen."""

    def __init__(self, place: int) -> None:
        super().__init__(classes="box answer", id=f"answer-{place}")
        self.can_focus = False
        self.place, self.read_to_end, self.name_shown = place, False, ""

    def compose(self) -> ComposeResult:
        yield SafeText(classes="answer-text")

    def show(self, text: Content, name: str) -> None:
        self.name_shown, self.read_to_end = name, False
        titled(self, name)
        self.query_one(SafeText).show(text)
        self.scroll_home(animate=False)
        self.call_after_refresh(self.look)

    def look(self) -> None:
        """Whether the end is in sight."""
        self.read_to_end = self.read_to_end or self.scroll_offset.y >= self.max_scroll_y
        titled(self, self.name_shown, "end read" if self.read_to_end else "▼ more, j scrolls")

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.is_mounted:
            self.look()

    def on_resize(self) -> None:
        self.call_after_refresh(self.look)


class RateScreen(Page):
    ABOUT = """\
Which answer is better? Neither who wrote one nor how the votes stand is told, and sides are drawn by chance. A vote \
is saved before the next pair shows; closing this app at any moment loses nothing. Now and then an earlier pair comes \
again with its sides swapped: that shows how well you agree with yourself. Ties and "all bad" teach a reward model \
nothing, but are honest."""
    GUARD_S: ClassVar[float] = 0.4  # a key pressed sooner was meant for the pair before
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,1", "pick(0)", "pick", key_display="← →", tooltip="The first (left) answer is better"),
        Binding("right,2", "pick(1)", "second", show=False, tooltip="The second (right) answer is better"),
        Binding("3", "pick(2)", "third", show=False, tooltip="The third answer is better, where there is one"),
        Binding("4", "pick(3)", "fourth", show=False, tooltip="The fourth answer is better, where there is one"),
        Binding("shift+left,less_than_sign", "pick(0, 2)", "much", key_display="⇧", tooltip="The first is much better"),
        Binding("shift+right,greater_than_sign", "pick(1, 2)", "much better", show=False,
                tooltip="The second is much better"),
        Binding("enter", "enter", "enter", show=False, tooltip="End a ranking of three or four early"),
        Binding("t", "outcome('tie')", "tie", tooltip="Equally good"),
        Binding("b", "outcome('all_bad')", "bad", tooltip="All of them are bad"),
        Binding("s", "skip", "skip", tooltip="Not now: it comes again at the end"),
        Binding("u,backspace", "undo", "undo", tooltip="Take the newest vote back, as often as you like"),
        Binding("n", "note", "note", tooltip="A note on this pair"),
        Binding("r", "reasons", "why", tooltip="Reasons for the next vote"),
        Binding("f", "flag", "flag", show=False, tooltip="Mark this pair for someone to look at"),
        Binding("d", "diff", "diff", show=False, tooltip="Mark the words in which two answers differ"),
        Binding("w", "side", "layout", show=False, tooltip="Answers side by side or under each other"),
        Binding("j,down", "scroll(1)", "down", show=False, tooltip="Scroll the answers down"),
        Binding("k,up", "scroll(-1)", "up", show=False, tooltip="Scroll the answers up"),
        Binding("a", "rater", "rater", show=False, tooltip="Who rates: a name for each person"),
        Binding("S", "statistics", "statistics", show=False, tooltip="What the votes are worth so far"),
        Binding("g", "generate", "more pairs", show=False, tooltip="Sample more answers to rate"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.ratings: Ratings | None = None
        self.item: Item | None = None
        self.rater = ""
        self.reasons: list[str] = []  # for the next vote
        self.ranking: list[int] = []  # places picked so far, the best first
        self.session = f"{int(clock() * 1000):x}-{os.getpid()}"
        self.trouble = ""
        self._shown_at, self._warned, self._diff = 0.0, False, False
        self._side: bool | None = None  # side by side; None where the width decides
        self._skipped: set[int] = set()
        self._paces: list[float] = []

    def body(self) -> Iterable[Widget]:
        yield VerticalScroll(SafeText(id="rate-prompt"), id="rate-prompt-box", classes="box")
        yield Container(*(Answer(place) for place in range(4)), id="rate-answers")
        yield SafeText(id="rate-told")

    def on_mount(self) -> None:
        for widget in self.query(VerticalScroll):
            widget.can_focus = False
        titled(self.query_one("#rate-prompt-box"), "prompt")
        # it loads numpy, and the first vote is not to wait for that
        self.run_worker(lambda: importlib.import_module("ondevice.rating"), thread=True, group="ahead")

    # the database

    def entered(self) -> None:
        self._open()
        self.next()

    def left(self) -> None:
        self._close()

    def on_unmount(self) -> None:
        self._close()

    def _close(self) -> None:
        if self.ratings is not None:
            self.ratings.close()
        self.ratings, self.item = None, None

    def runs_changed(self) -> None:
        """Another run, or its first pairs: looked at every second while there is nothing to rate."""
        run = self.ui.run_folder
        wanted = run.path / FILE if run is not None else None
        if self.ratings is not None and self.ratings.path != wanted:
            self._close()
        if self.ratings is None:
            self._open()
        if self.item is None:
            self.next()

    def _open(self) -> None:
        run = self.ui.run_folder
        self.trouble = ""
        if self.ratings is not None or run is None or not (run.path / FILE).is_file():
            return
        try:
            self.ratings = Ratings.open(run.path)
            self.rater = self.rater or _person()
        except UserError as problem:
            self.trouble = str(problem)

    def next(self) -> None:
        """The next item of the queue, or why there is none."""
        self.ranking, self.reasons, self._warned = [], [], False
        self.item = None
        if self.ratings is not None:
            waiting = [i for i in self.ratings.queue(self.rater) if i not in self._skipped]
            self.item = self.ratings.item(waiting[0]) if waiting else None
        self._shown_at = ticks()
        self.show()

    # what is shown

    def show(self) -> None:
        progress = self.ratings.progress(self.rater) if self.ratings is not None else None
        self._show_top(progress)
        item = self.item
        self.query_one("#rate-prompt-box").display = item is not None
        for place, pane in enumerate(self.query(Answer)):
            pane.display = item is not None and place < len(item.responses)
        if item is None:
            self.query_one("#rate-told", SafeText).show(lines(self._nothing(progress)))
            return
        self.query_one("#rate-prompt", SafeText).show(_prompt(item))
        self._lay_out(len(item.responses))
        for place, slot in enumerate(item.shown):
            pane = self.query_one(f"#answer-{place}", Answer)
            pane.show(self._answer_text(item, place, slot), self._place_name(item, place))
        self._show_told()

    def _show_top(self, progress: Progress | None) -> None:
        if progress is None or not progress.total:
            self.top(("rate", "bold"))
            return
        left = progress.total - progress.rated
        pace = sorted(self._paces)[len(self._paces) // 2] if self._paces else 8.0
        parts = [f"pair {min(progress.rated + 1, progress.total)}/{progress.total}", f" · {progress.usable} usable",
                 f" · {progress.ties} ties", f" · {progress.all_bad} bad"]
        about = f" · about {duration(left * pace)} left" if left else ""
        self.top(("rate  ", "bold"), *parts, (about, "$muted"), (f"   {self.rater}", "$muted"))

    def _nothing(self, progress: Progress | None) -> list[Content]:
        if self.trouble:
            return [line((" ✗ ", "bold $error"), self.trouble)]
        if progress is None or not progress.total:
            how = "g samples answers from a model of this run." if "sample" in STAGES else ""
            return [content(f" No pairs to rate in this run yet. {how}", "$muted"),
                    content(" From a file: ondevice ratings import RUN FILE", "$muted")]
        need = f"{progress.usable} usable pairs" + (
            f"; a reward model wants about {WANTED}" if progress.usable < WANTED else ": enough for a reward model")
        told = [line((" ✓ ", "bold $success"), "Everything here is rated. ", need)]
        if self._skipped:
            told.append(content(f" {len(self._skipped)} skipped: they come again when you come back.", "$muted"))
        told.append(content(" S statistics   g more pairs   esc home", "$muted"))
        return told

    def _show_told(self, text: str = "", style: str = "$warning") -> None:
        parts: list[Any] = [" "]
        if self.ranking:
            parts.append((f"best first: {' > '.join(str(p + 1) for p in self.ranking)}   Enter ends it   ", "bold"))
        if self.reasons:
            parts.append((f"why: {', '.join(self.reasons)}   ", "$primary"))
        if text:
            parts.append((text, style))
        self.query_one("#rate-told", SafeText).show(line(*parts))

    def _place_name(self, item: Item, place: int) -> str:
        if len(item.responses) == 2:
            return ("1 ← left", "2 → right")[place] if self._beside(2) else ("1 ← above", "2 → below")[place]
        return str(place + 1)

    def _answer_text(self, item: Item, place: int, slot: int) -> Content:
        text = item.responses[slot].text
        if self._diff and len(item.responses) == 2:
            other = item.responses[item.shown[1 - place]].text
            return differences(text, other)
        return content(text or "(nothing)")

    def _beside(self, count: int) -> bool:
        wide = self.size.width >= (100 if count == 2 else 50 * count)
        return wide if self._side is None else self._side

    def _lay_out(self, count: int) -> None:
        self.query_one("#rate-answers").set_class(self._beside(count), "-beside")

    def on_resize(self) -> None:
        if self.item is not None:
            self._lay_out(len(self.item.responses))

    # voting

    def _ready(self, *, voting: bool = True) -> Item | None:
        """The item that a key is for; None where there is none, or the key came too soon or before the end was read."""
        if self.item is None or self.ratings is None or ticks() - self._shown_at < self.GUARD_S:
            return None
        unread = [pane for pane in self.query(Answer) if pane.display and not pane.read_to_end]
        if voting and unread and not self._warned:
            self._warned = True
            self._show_told("the end of an answer was not read: j scrolls, or the same key again")
            return None
        return self.item

    def action_pick(self, place: int, strength: int = 1) -> None:
        item = self._ready()
        if item is None or place >= len(item.responses) or place in self.ranking:
            return
        self.ranking.append(place)
        if len(item.responses) == 2 or len(self.ranking) >= len(item.responses) - 1:
            self._vote(item, "ranked", strength)
        else:
            self._show_told()

    def action_enter(self) -> None:
        item = self._ready()
        if item is not None and self.ranking:
            self._vote(item, "ranked", 1)

    def action_outcome(self, outcome: str) -> None:
        item = self._ready()
        if item is not None:
            self._vote(item, outcome, None)

    def _vote(self, item: Item, outcome: str, strength: int | None) -> None:
        if self.ratings is None:
            return
        from ondevice.rating import queue_repeat

        seconds = ticks() - self._shown_at
        seen = all(pane.read_to_end for pane in self.query(Answer) if pane.display)
        ranking = [item.shown[place] for place in self.ranking] if outcome == "ranked" else []
        try:
            self.ratings.vote(item.id, self.rater, self.session, outcome, ranking,  # type: ignore[arg-type]
                              strength=strength, reason=", ".join(self.reasons) or None, seen_end=seen,
                              dwell_ms=round(seconds * 1000))
            queue_repeat(self.ratings, self.rater, None, REPEAT_SHARE, 0)
        except UserError as problem:  # a full disk: what is not stored is not shown as done
            self.ranking = []
            self._show_told(f"not saved: {problem}", "$error")
            return
        self._paces = [*self._paces[-20:], seconds]
        self.next()

    def action_skip(self) -> None:
        item = self._ready(voting=False)
        if item is not None and self.ratings is not None:
            self.ratings.skip(item.id, self.rater, self.session, dwell_ms=round((ticks() - self._shown_at) * 1000))
            self._skipped.add(item.id)
            self.next()

    def action_undo(self) -> None:
        if self.ratings is None:
            return
        if self.ranking:
            self.ranking.pop()
            self._show_told()
            return
        back = self.ratings.undo(self.rater, self.session)
        if back is None:
            self._show_told("nothing to undo")
            return
        self._skipped.discard(back.id)
        self.item, self.reasons, self._warned, self._shown_at = back, [], False, ticks()
        self.show()
        self._show_told("taken back: here it is again")

    # beside the vote

    def action_note(self) -> None:
        item = self.item
        if item is None or self.ratings is None:
            return
        ratings = self.ratings

        def keep(text: str | None) -> None:
            if text and text.strip():
                ratings.note(item.id, self.rater, self.session, text.strip())
                self._show_told("noted", "$success")

        self.app.push_screen(Ask("a note on this pair", ""), keep)

    def action_flag(self) -> None:
        if self.item is not None and self.ratings is not None:
            self.ratings.flag(self.item.id, self.rater, self.session)
            self._show_told("flagged", "$success")

    def action_reasons(self) -> None:
        if self.item is not None:
            self.app.push_screen(Reasons(self.reasons), lambda _: self._show_told())

    def action_rater(self) -> None:
        def take(name: str | None) -> None:
            if name and name.strip():
                self.rater, self._skipped = name.strip(), set()
                self.next()

        self.app.push_screen(Ask("who rates?", self.rater), take)

    def action_diff(self) -> None:
        self._diff = not self._diff
        self._again()

    def action_side(self) -> None:
        if self.item is not None:
            self._side = not self._beside(len(self.item.responses))
            self._again()

    def _again(self) -> None:
        """The same item, drawn anew: what was read stays read."""
        seen = [pane.read_to_end for pane in self.query(Answer)]
        self.show()
        for pane, read in zip(self.query(Answer), seen, strict=True):
            pane.read_to_end = read

    def action_scroll(self, by: int) -> None:
        for pane in self.query(Answer):
            pane.scroll_relative(y=by * 2, animate=False)

    def action_generate(self) -> None:
        from ondevice_tui.screens.start import StartScreen, proposal

        if "sample" in STAGES:
            self.app.push_screen(StartScreen("sample", proposal("sample", self.ui.run_folder)))
        else:
            self.ui.say("this version has no stage `sample`; pairs come from a file: ondevice ratings import RUN FILE")

    def action_statistics(self) -> None:
        if self.ratings is None:
            self.ui.say("no votes yet")
        elif self.item is not None:
            ask(self.ui, "statistics", "There is still something to rate, and knowing who leads sways a rater. "
                "Show them all the same?", "show them", self._statistics)
        else:
            self._statistics()

    def _statistics(self) -> None:
        path = self.ratings.path if self.ratings is not None else None
        if path is not None:
            self.run_worker(lambda: self._count(path), thread=True, group="statistics")

    def _count(self, path: Any) -> None:
        """In a thread with a connection of its own: the bootstraps take a second."""
        from ondevice import rating_stats

        try:
            with Ratings.open(path) as ratings:
                told = rating_stats.text(rating_stats.statistics(ratings))
        except UserError as problem:
            told = str(problem)
        self.app.call_from_thread(self.app.push_screen, Details("what the votes are worth", content(told)))


class Ask(ModalScreen[str | None]):
    """One line of text."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "close", key_display="esc")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="-small") as card:
            card.can_focus = False
            titled(card, self._title, "Enter keeps it   esc leaves")
            yield SafeInput(self._text, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class Reasons(ModalScreen[None]):
    """Numbers switch the reasons for the next vote on and off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,r,q", "dismiss(None)", "close", key_display="esc"),
        *(Binding(str(i + 1), f"switch({i})", reason, show=False) for i, reason in enumerate(REASONS))]

    def __init__(self, chosen: list[str]) -> None:
        super().__init__()
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card", classes="-small") as card:
            titled(card, "why? (for the next vote)", "1 to 5   Enter closes")
            yield SafeText(self._told(), id="reasons")

    def _told(self) -> Content:
        return lines([line((f"{i + 1} ", "bold $primary"), "☑ " if reason in self._chosen else "☐ ", reason)
                      for i, reason in enumerate(REASONS)])

    def action_switch(self, at: int) -> None:
        reason = REASONS[at]
        if reason in self._chosen:
            self._chosen.remove(reason)
        else:
            self._chosen.append(reason)
        self.query_one("#reasons", SafeText).show(self._told())


def _person() -> str:
    """The login name; a name for anybody where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "me"


def differences(text: str, other: str) -> Content:
    """`text` with the words that `other` has not at this place underlined."""
    words, others = text.split(" "), other.split(" ")
    if max(len(words), len(others)) > DIFF_WORDS:
        return content(text)
    parts: list[Content] = []
    for tag, i, j, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if i < j:
            parts.append(content(" ".join(words[i:j]), "" if tag == "equal" else "bold underline $warning"))
    return Content(" ").join(parts)


def _prompt(item: Item) -> Content:
    """The last message as it is; what came before it above, with who said it."""
    rows = []
    for message in item.messages[:-1]:
        rows.append(line((f"{cell(str(message.get('role', '')), 12).strip()}: ", "$muted"),
                         cell(str(message.get("content", "")), 400).strip()))
    last = item.messages[-1] if item.messages else {}
    return lines([*rows, content(str(last.get("content", "")), "bold")])
