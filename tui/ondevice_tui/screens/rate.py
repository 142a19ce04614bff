"""Rate: a prompt, two to four answers without names, one key. A vote is on disk before the next
ones are shown.

What happens beside the voting is elsewhere: which item is next (`rate_queue`), how answers stand
(`widgets/answers`), undo and redo (`rate_undo`), notes and flags (`rate_marks`), the lines around
the answers (`rate_messages`), further pairs and the reward model's doubts (`live_sampling`), small
cards (`rate_cards`), where pairs come from (`sample_pairs`), what votes are worth
(`vote_statistics`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget

from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.config.recipe import STAGES
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item, Outcome, Progress, Vote, said
from ondevice_tui.screens.confirm import Details, ask
from ondevice_tui.screens.rate_cards import Ask, Conversation, Reasons, why_this
from ondevice_tui.screens.rate_messages import all_rated, no_pairs, top_parts
from ondevice_tui.screens.rate_queue import REPEAT_SHARE
from ondevice_tui.screens.rate_undo import UndoPage
from ondevice_tui.widgets.answers import Answers, Question, conversation
from ondevice_tui.widgets.safe import SafeText, content, line, lines

if TYPE_CHECKING:
    from ondevice_tui.screens.sample_pairs import Found


class RateScreen(UndoPage):
    ABOUT = """\
Which answer is better? Neither who wrote one nor how the votes stand is told, and sides are drawn by chance. A vote \
is saved before the next pair shows; closing this app at any moment loses nothing. Now and then an earlier pair comes \
again with its sides swapped, or one whose better answer is known: that shows how well you agree with yourself. Ties \
and "all bad" teach a reward model nothing, but are honest.

g samples further pairs while you rate. Once the run has a reward model, those pairs come first of which it knows \
least; p says why this one."""
    GUARD_S: ClassVar[float] = 0.4  # a key pressed sooner was meant for the pair before
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left,1",
            "pick(0)",
            "pick",
            key_display="← →",
            tooltip="The first (left) answer is better",
        ),
        Binding(
            "right,2",
            "pick(1)",
            "second",
            show=False,
            tooltip="The second (right) answer is better",
        ),
        Binding(
            "3",
            "pick(2)",
            "third",
            key_display="3 4",
            tooltip="The third answer is better, where there is one",
        ),
        Binding(
            "4",
            "pick(3)",
            "fourth",
            show=False,
            tooltip="The fourth answer is better, where there is one",
        ),
        Binding(
            "shift+left,less_than_sign",
            "pick(0, 2)",
            "much",
            key_display="⇧← →",
            tooltip="The first is much better",
        ),
        Binding(
            "shift+right,greater_than_sign",
            "pick(1, 2)",
            "much better",
            show=False,
            tooltip="The second is much better",
        ),
        Binding("5", "elsewhere('ladder')", show=False),
        Binding("6", "elsewhere('chat')", show=False),
        Binding("7", "elsewhere('push')", show=False),
        Binding("enter", "enter", "end", tooltip="End a ranking of three or four early"),
        Binding("t", "outcome('tie')", "tie", tooltip="Equally good"),
        Binding("x", "outcome('all_bad')", "all bad", tooltip="All of them are bad"),
        Binding(
            "a,b,A,B", "letter", "", show=False
        ),  # answers in `ondevice rate`; here b once meant: all bad
        Binding("s", "skip", "skip", tooltip="Not now: it comes again at the end"),
        Binding(
            "u,backspace", "undo", "undo", tooltip="Take the newest vote back, as often as you like"
        ),
        Binding("U", "redo", "redo", tooltip="Store a vote again that u has taken back"),
        Binding(
            "n", "note", "note", tooltip="A note on this pair, or another text for the one there is"
        ),
        Binding("r", "reasons", "reasons", tooltip="Reasons for the next vote"),
        Binding("f", "flag", "flag", tooltip="Mark this pair for someone to look at"),
        Binding("p", "why", "why", tooltip="Why this pair is shown and no other"),
        Binding("d", "diff", "diff", tooltip="Mark the words in which two answers differ"),
        Binding("w", "side", "layout", tooltip="Answers side by side or under each other"),
        Binding(
            "j,down", "scroll(1)", "scroll", key_display="j k", tooltip="Scroll the answers down"
        ),
        Binding("k,up", "scroll(-1)", "up", show=False, tooltip="Scroll the answers up"),
        Binding(
            "J",
            "scroll_question(1)",
            "question",
            key_display="J K",
            tooltip="Scroll the question down",
        ),
        Binding(
            "K", "scroll_question(-1)", "question up", show=False, tooltip="Scroll the question up"
        ),
        Binding("c", "context", "context", tooltip="The whole conversation before the answers"),
        Binding("i", "rater", "rater", tooltip="Who rates: a name for each person"),
        Binding("S", "statistics", "figures", tooltip="What the votes are worth so far"),
        Binding(
            "g", "more", "more", tooltip="Further pairs: sampled while you rate, or from a file"
        ),
        Binding("G", "generate", "many", tooltip="Many pairs at once, by the stage sample"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []  # for the next vote
        self.ranking: list[int] = []  # places picked so far, the best first
        self._shown_at = 0.0
        self._warned = False  # that the end of an answer was not read
        self._paces: list[float] = []
        self._known = -1  # a vote of another window, which the next key replaces

    def body(self) -> Iterable[Widget]:
        question = Question()
        yield question
        yield Answers(question)
        yield SafeText(id="rate-told")

    def on_mount(self) -> None:
        self.answers.beside = self.ui.remembered.get(
            "answers_beside", lambda value: isinstance(value, bool)
        )

    @property
    def answers(self) -> Answers:
        return self.query_one(Answers)

    # the queue

    def begun(self) -> None:
        self._forget_undone()
        self.next()

    def _not_saved(self, problem: UserError) -> None:
        self.ranking = []
        super()._not_saved(problem)

    def _begin_vote(self) -> None:
        """Nothing is picked, said or known of the item that is shown now."""
        self.ranking = []
        self.reasons = []
        self._warned = False
        self._known = -1
        self._shown_at = ticks()

    # what is shown

    def show(self, *, again: bool = False) -> None:
        """`again`: the same item drawn anew."""
        self._show_top()
        self.query_one("#rate-prompt-box").display = self.item is not None
        self.answers.show(self.item, again=again)
        if self.item is None:
            self.query_one("#rate-told", SafeText).show(lines(self._nothing(self.progress)))
            return
        self._show_told()

    def _show_top(self) -> None:
        progress = self.progress
        if progress is None or not progress.total:
            self.top(("rate", "bold"))
            return
        self.top(*top_parts(progress, self._paces, self.rater))

    def _nothing(self, progress: Progress | None) -> list[Content]:
        """Why there is nothing to rate, and what can be done."""
        if self.trouble:
            return [line((" ✗ ", "bold $error"), self.trouble)]
        if self.ratings is not None and progress is None:
            return [content(" reading the ratings …", "$muted")]
        behind: list[Content] = []
        if self.pairing.told:
            behind.append(line(" … ", (self.pairing.told, "$primary")))
        if progress is None or not progress.total:
            return [*behind, *no_pairs()]
        return [*all_rated(progress, len(self._skipped)), *behind]

    def _show_told(self, text: str = "", style: str = "$warning") -> None:
        self._said = (text, style)
        parts: list[Any] = [" "]
        if self.ranking:
            order = " > ".join(str(place + 1) for place in self.ranking)
            parts.append((f"best first: {order}   Enter ends it   ", "bold"))
        if self.reasons:
            parts.append((f"why: {', '.join(self.reasons)}   ", "$primary"))
        if text:
            parts.append((f"{text}   ", style))
        if self.pairing.told:
            parts.append((self.pairing.told, "$muted"))
        self.query_one("#rate-told", SafeText).show(line(*parts))

    def on_resize(self) -> None:
        if self.item is None:
            return
        beside = self.answers.stand_beside(len(self.item.responses))
        if self.answers.has_class("-beside") != beside:
            self.show(again=True)  # with titles that say where each one stands now

    # voting

    def _ready(self, *, voting: bool = True) -> Item | None:
        """The item that a key is for; None where there is none, or the key came too soon or before
        the end was read.
        """
        if self.item is None or self.ratings is None or self.busy:
            return None
        if ticks() - self._shown_at < self.GUARD_S:
            return None
        if voting and not self._warned and not self.answers.all_read:
            self._warned = True
            self._show_told(f"{self.answers.unread}, or the same key again")
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

    def action_elsewhere(self, mode: str) -> None:
        """Another screen, but not out of a ranking: 5 lies beside 4."""
        if self.ranking:
            self._show_told("a ranking is begun: Enter ends it, u takes a place back")
        else:
            self.ui.action_go(mode)

    def action_enter(self) -> None:
        item = self._ready()
        if item is not None and self.ranking:
            self._vote(item, "ranked", 1)

    def action_outcome(self, outcome: Outcome) -> None:
        item = self._ready()
        if item is not None:
            self._vote(item, outcome, None)

    def _vote(self, item: Item, outcome: Outcome, strength: int | None) -> None:
        from ondevice.preferences.terminal import queue_repeat

        seconds = ticks() - self._shown_at
        rater = self.rater
        ranking = []
        if outcome == "ranked":
            ranking = [item.shown[place] for place in self.ranking]
        reason = ", ".join(self.reasons) or None
        seen_end = self.answers.all_read
        known = self._known
        self.ranking = []

        def work(ratings: Ratings) -> Vote | None:
            with ratings.transaction():  # both or neither: what is told as not saved is not there
                other = ratings.voted(item.id, rater)
                if other is not None and other.id != known:
                    return other
                ratings.vote(
                    item.id,
                    rater,
                    self.session,
                    outcome,
                    ranking,
                    strength=strength,
                    reason=reason,
                    seen_end=seen_end,
                    dwell_ms=round(seconds * 1000),
                )
                queue_repeat(ratings, rater, None, REPEAT_SHARE, 0)
                return None

        def then(other: Vote | None) -> None:
            if other is not None:
                self._known = other.id
                self._show_told(
                    f"you rated this one in another window meanwhile: {said(other)}. A vote replaces that, "
                    "s leaves it"
                )
                return
            self._paces = [*self._paces[-20:], seconds]
            self.next()

        self._do(work, then)

    def action_skip(self) -> None:
        item = self._ready(voting=False)
        if item is None:
            return
        rater = self.rater
        dwell = round((ticks() - self._shown_at) * 1000)

        def work(ratings: Ratings) -> None:
            with ratings.transaction():
                # else another window has voted, and that stays
                if ratings.voted(item.id, rater) is None:
                    ratings.skip(item.id, rater, self.session, dwell_ms=dwell)

        def then(_: None) -> None:
            self._skipped.add(item.id)
            self.next()

        self._do(work, then)

    def action_undo(self) -> None:
        if self.ranking:
            self.ranking.pop()
            self._show_told()
            return
        self._undo(-1)

    # beside the vote

    def action_reasons(self) -> None:
        if self.item is not None:
            self.app.push_screen(Reasons(self.reasons), lambda _: self._show_told())

    def action_why(self) -> None:
        if self.item is not None:
            self._do(self.look, lambda found: self._explain(found.waiting))

    def _explain(self, waiting: list[int]) -> None:
        if self.item is not None:
            self.app.push_screen(
                Details("why this pair", why_this(self.item, self.pairing, waiting))
            )

    def action_rater(self) -> None:
        def take(name: str | None) -> None:
            if name and name.strip():
                self.rater = name.strip()
                self._skipped = set()
                self.ui.keep("rater", self.rater)
                self._forget_undone()
                self.next()

        self.app.push_screen(Ask("who rates?", self.rater), take)

    def action_diff(self) -> None:
        self.answers.diff = not self.answers.diff
        self.show(again=True)

    def action_side(self) -> None:
        if self.item is not None:
            self.answers.beside = not self.answers.stand_beside(len(self.item.responses))
            self.ui.keep("answers_beside", self.answers.beside)
            self.show(again=True)

    def action_scroll(self, by: int) -> None:
        for pane in self.answers.panes:
            pane.scroll_relative(y=by * 2, animate=False)

    # where pairs come from, and what votes are worth

    def action_more(self) -> None:
        from ondevice_tui.screens.sample_pairs import MorePairs

        if self.ui.run_folder is None:
            self.ui.say("no run yet: esc, then n begins one")
        else:
            self.app.push_screen(MorePairs(self.ui, self.pairing.plan), self._take_found)

    def _take_found(self, found: Found) -> None:
        """What the card came back with."""
        if found is None:
            return
        self._open(create=True)
        if found == "stop":
            self.pairing.begin(None)
        elif found != "imported":
            self.pairing.begin(found)
        if self.item is None:
            self.next()

    def action_generate(self) -> None:
        from ondevice_tui.proposals import proposal
        from ondevice_tui.screens.start import StartScreen

        if "sample" in STAGES:
            self.app.push_screen(StartScreen("sample", proposal("sample", self.ui.run_folder)))

    def action_statistics(self) -> None:
        from ondevice_tui.screens.vote_statistics import show_statistics

        ratings = self.ratings
        if ratings is None:
            self.ui.say("no votes yet")
        elif self.item is not None:
            ask(
                self.ui,
                "statistics",
                "There is still something to rate, and knowing who leads sways a rater. "
                "Show them all the same?",
                "show them",
                lambda: show_statistics(self, ratings.path, self.pairing),
            )
        else:
            show_statistics(self, ratings.path, self.pairing)

    # the question

    def action_scroll_question(self, by: int) -> None:
        self.answers.question.scroll_relative(y=by * 2, animate=False)

    def action_context(self) -> None:
        """Every message, whole. What was read there of the question was read."""
        if self.item is not None:
            self.app.push_screen(Conversation(conversation(self.item)), self._take_read)

    def _take_read(self, whole: bool | None) -> None:
        if whole:
            self.answers.question.read_to_end = True
            self.answers.question.look()

    # keys that mean something else in `ondevice rate`

    def action_letter(self) -> None:
        """No vote: by habit from the plain terminal it would be another one than by habit from
        earlier versions.
        """
        if self.item is not None:
            self._show_told(
                "a and b do nothing here: ← → or 1 2 say which is better, x that all are bad, i who rates"
            )
