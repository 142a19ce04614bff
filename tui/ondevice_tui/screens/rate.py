"""Rate: a prompt, two to four answers without names, one key. A vote is on disk before the next
ones are shown.

What happens beside the voting is elsewhere: which item is next (`rate_queue`), how answers stand
and are read (`widgets/answers`, `rate_reading`), undo and redo (`rate_undo`), notes and flags
(`rate_marks`), the keys (`rate_keys`) and the lines around the answers (`rate_messages`), what
opens beside them (`rate_sharing`), further pairs and the reward model's doubts (`live_sampling`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget

from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.preferences import history
from ondevice.preferences.database import Ratings
from ondevice.preferences.rating_queue import queue_repeat
from ondevice.preferences.votes import Item, Outcome, Progress, Vote, is_settled, said
from ondevice_tui.run_status import ago
from ondevice_tui.screens.one_key_page import STORING
from ondevice_tui.screens.page import READING
from ondevice_tui.screens.rate_keys import AT_THE_END, KEYS, SEVERAL
from ondevice_tui.screens.rate_messages import (
    all_rated,
    feedback,
    last_line,
    no_pairs,
    revealed,
    top_parts,
)
from ondevice_tui.screens.rate_own_keys import OwnKeysPage
from ondevice_tui.screens.rate_queue import REPEAT_SHARE
from ondevice_tui.screens.rate_sharing import Earlier
from ondevice_tui.widgets.answers import Answers, Question
from ondevice_tui.widgets.safe import SafeText, content, line, lines


class RateScreen(OwnKeysPage):
    ABOUT = """\
Which answer is better? Neither who wrote one nor how the votes stand is told, and sides are drawn by chance. A vote \
is saved before the next pair shows; closing this app at any moment loses nothing. Now and then an earlier pair comes \
again with its sides swapped, or one whose better answer is known: that shows how well you agree with yourself. Ties \
and "all bad" teach a reward model nothing, but are honest.

m samples further pairs while you rate. Once the run has a reward model, those pairs come first of which it knows \
least; Y says why this one. Several people may rate at once: I says how many are asked each pair, H lists what they \
disagree on, to be settled."""
    GUARD_S: ClassVar[float] = 0.4  # a key pressed sooner was meant for the pair before
    BINDINGS: ClassVar[list[BindingType]] = [
        *KEYS,
        Binding("Q", "review", "questions", tooltip="Keep or drop questions that a model wrote"),
        Binding("escape", "back", "home", key_display="esc", tooltip="Back to the road"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.ranking: list[int] = []  # places picked so far, the best first
        self.votes_now = 0  # of this session
        self._shown_at = 0.0
        self._warned = False  # that the end of an answer was not read
        self._paces: list[float] = []
        self._known = -1  # a vote that the next key replaces, as the rater was told
        self._jumped = ""  # what an item that was rated before is shown for
        self._voter = ""  # in whose name the next vote is stored; empty: the rater's
        self._wins: Counter[str] = Counter()  # of this session, by who wrote the answer

    def action_review(self) -> None:
        from ondevice_tui.screens.review import open_review

        open_review(self.ui)

    def body(self) -> Iterable[Widget]:
        question = Question()
        yield question
        yield Answers(question)
        yield SafeText(id="rate-told")

    # the queue

    def begun(self) -> None:
        self._forget_undone()
        self.marks = history.Marks(0, 0, 0)
        self.next()
        self.count_marks()

    def counted(self, votes: int) -> None:
        self.votes_now = max(self.votes_now + votes, 0)

    def count_anew(self) -> None:
        self.votes_now, self._paces = 0, []
        self._wins.clear()

    def _not_saved(self, problem: UserError) -> None:
        self._rank([])
        super()._not_saved(problem)

    def _begin_vote(self) -> None:
        """Nothing is picked, said or known of the item that is shown now."""
        self.ranking = []
        self.reasons = []
        self._warned = False
        self._known = -1
        self._jumped = self._voter = ""
        self._shown_at = ticks()

    def show_chosen(self, earlier: Earlier) -> None:
        vote = earlier.vote
        self.item = earlier.item
        self._begin_vote()
        if earlier.settle:
            self._voter = history.settler(self.rater)
            self._jumped = _settles(earlier.others)
        elif vote is not None:
            self._jumped = f"you said {ago(vote.at)}: {said(vote)}. A vote replaces it"
        if vote is not None:
            self._known = vote.id
        self.show()

    def show_earlier(
        self, item: Item, was: Vote, still: Vote | None, others: Sequence[Vote]
    ) -> None:
        self.item = item
        self._begin_vote()
        if is_settled(was.rater):
            self._voter = was.rater
            self._jumped = _settles(others)
        if still is not None:
            self._known = still.id
            self._jumped = self._jumped or f"{said(still)} counts again. A vote replaces it"
        self.show()

    def action_back(self) -> None:
        """From an earlier item to the queue, from there to the road."""
        if not self._jumped:
            self.ui.action_go("road")
        elif self.busy:
            self._refuse(STORING)
        else:
            self.next()

    # what is shown

    def show(self, *, again: bool = False) -> None:
        """`again`: the same item drawn anew."""
        self._show_top()
        self.query_one("#rate-prompt-box").display = self.item is not None
        self.answers.show(self.item, again=again)
        self.refresh_bindings()
        self._show_told()

    def hides(self, action: str) -> bool:
        """Whether the foot leaves an action out: it is for more answers than are shown, for scales that
        the project has not, or for when everything is rated."""
        if action in SEVERAL:
            return self.item is None or len(self.item.responses) == 2
        if action == "scores":
            return not self.project.rubric
        return action in AT_THE_END and self.item is not None

    def _show_top(self) -> None:
        if self.progress is None or self.turn is None or not self.progress.total:
            self.top(("rate", "bold"))
            return
        self.top(
            *top_parts(
                self.progress,
                self.turn.total,
                self._paces,
                self.rater,
                votes_now=self.votes_now,
                goal=self.goal,
                wanted=str(self.wanted),
                width=self.app.size.width,
            )
        )

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
            if self.unless_reading(""):
                return [content(f" {READING}", "$muted")]
            return [*behind, *no_pairs()]
        told = all_rated(
            progress, len(self._skipped), self.marks, self.project.overlap, str(self.wanted)
        )
        return [*told, *behind]

    def _show_told(self, text: str = "", style: str = "$warning") -> None:
        self._said = (text, style)
        rows = self._nothing(self.progress) if self.item is None else []
        if self._jumped:
            rows.append(
                line((f" ↺ {self._jumped}", "bold $primary"), ("   esc leaves it", "$muted"))
            )
        parts: list[Any] = [" "]
        if self.ranking:
            order = " › ".join(str(place + 1) for place in self.ranking)
            parts.append((f"best first: {order}   Enter ends it   ", "bold"))
        if self.reasons:
            parts.append((f"why: {', '.join(self.reasons)}   ", "$primary"))
        if self.refused:
            parts.append((f"{self.refused}   ", "$warning"))
        if text:
            parts.append((f"{text}   ", style))
        if self.pairing.told and self.item is not None:
            parts.append((self.pairing.told, "$muted"))
        if len(parts) > 1:
            rows.append(line(*parts))
        if self.item is not None:
            newest = self.newest
            if newest is not None and newest.session != self.session:
                newest = None
            last = last_line(newest, self.marks)
            if last.plain.strip():
                rows.append(last)
        below = self.query_one("#rate-told", SafeText)
        below.set_class(self.item is None, "-alone")  # there is room for all of it
        below.show(lines(rows))

    def _rank(self, ranking: list[int]) -> None:
        self.ranking = ranking
        self.answers.rank(ranking)

    # voting

    def _ready(self, *, voting: bool = True) -> Item | None:
        """The item that a key is for; None where there is none, or the key came too soon or before
        the end was read, which is told.
        """
        if self.busy:
            self._refuse(STORING)
            return None
        if self._here() is None:
            return None
        if ticks() - self._shown_at < self.GUARD_S:
            self._refuse("too soon for this pair")
            return None
        unread = voting and not self._warned and not self.answers.all_read
        if unread and not self.answers.laid_out:
            self._refuse("this pair was not on the screen yet")
            return None
        self._take()
        if unread:
            self._warned = True
            self._show_told(f"{self.answers.unread}, or the same key again")
            return None
        return self.item

    def action_pick(self, place: int, strength: int = 1) -> None:
        item = self._ready()
        if item is None:
            return
        if place >= len(item.responses):
            self._refuse(f"there are {len(item.responses)} answers")
            return
        if place in self.ranking:
            self._refuse(f"{place + 1} has its place; u takes one back")
            return
        self._rank([*self.ranking, place])
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
        if item is None:
            return
        if self.ranking:
            self._vote(item, "ranked", 1)
        else:
            self._refuse("Enter ends a ranking, and none is begun")

    def action_outcome(self, outcome: Outcome) -> None:
        item = self._ready()
        if item is not None:
            self._vote(item, outcome, None)

    def _vote(self, item: Item, outcome: Outcome, strength: int | None) -> None:
        seconds = ticks() - self._shown_at
        rater = self.rater
        voter = self._voter or rater
        jumped = bool(self._jumped)
        ranking = []
        if outcome == "ranked":
            ranking = [item.shown[place] for place in self.ranking]
        reason = ", ".join(self.reasons) or None
        seen_end = self.answers.all_read
        known = self._known
        project = self.project
        self.ranking = []

        def work(ratings: Ratings) -> tuple[Vote | None, Vote | None, str]:
            """(another window's vote, ours, what is told of a known answer)."""
            with ratings.transaction():  # both or neither: what is told as not saved is not there
                other = ratings.voted(item.id, voter)
                if other is not None and other.id != known:
                    return other, None, ""
                vote = ratings.vote(
                    item.id,
                    voter,
                    self.session,
                    outcome,
                    ranking,
                    strength=strength,
                    reason=reason,
                    seen_end=seen_end,
                    dwell_ms=round(seconds * 1000),
                )
                if not jumped:
                    queue_repeat(ratings, rater, None, REPEAT_SHARE, 0)
                told = ""
                if project.feedback and item.kind == "gold":
                    told = feedback(item, vote, *history.gold_score(ratings, rater))
                return None, vote, told

        def then(found: tuple[Vote | None, Vote | None, str]) -> None:
            other, vote, told = found
            if other is not None:
                self._known = other.id
                self._rank([])
                self._show_told(
                    f"you rated this one in another window meanwhile: {said(other)}. A vote replaces that, "
                    "s leaves it"
                )
                return
            assert vote is not None
            self._voted(item, vote, seconds, told)

        self._do(work, then)

    def _voted(self, item: Item, vote: Vote, seconds: float, told: str) -> None:
        """A vote is on disk: the next one."""
        if not self._jumped:
            self._paces = [*self._paces[-20:], seconds]
        self.counted(1)
        if self._voter:
            self.newest = vote
            self.count_marks()
            self.settle_next()
            return
        if self.project.reveal and item.kind == "normal":
            told = revealed(item, vote, self._wins)
        if self.goal and self.votes_now == self.goal:
            told = f"{self.goal} votes: the goal of this session is reached   {told}"
            self.app.bell()
        self.next(told)

    def action_flag(self) -> None:
        """Where a disagreement is settled, everybody's flag on it is dealt with."""
        item = self.item
        if item is None or not is_settled(self._voter):
            super().action_flag()
            return
        rater = self.rater
        self._do(
            lambda ratings: history.clear_flags(ratings, item.id, rater, self.session),
            lambda by: self._marked(
                f"looked at: no flag of {', '.join(by)} any more" if by else "nobody has flagged it"
            ),
        )

    def action_skip(self) -> None:
        if self._jumped and not self.busy:
            self.next()
            return
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
            self._rank(self.ranking[:-1])
            self._show_told()
            return
        self._undo(-1)

    # keys that mean something else in `ondevice rate`, or did here

    def action_letter(self) -> None:
        """No vote and no deed: by habit from the plain terminal, or from earlier versions, it would
        be another one.
        """
        self._show_told(
            "a b g n p do nothing here: ← → or 1 2 say which is better, x that all are bad, m gives "
            "more pairs, N is a note, Y says why this pair"
        )


def _settles(others: Sequence[Vote]) -> str:
    """What a vote decides, with what each rater says."""
    told = ", ".join(f"{other.rater}: {said(other)}" for other in others)
    return f"your vote settles it ({told})"
