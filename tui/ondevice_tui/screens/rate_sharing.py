"""What the rating screen opens beside the voting: votes so far, the project that raters share, what
is asked only, where pairs come from, what the votes are worth, and the stages that learn from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ondevice.common.errors import UserError
from ondevice.config.recipe import STAGES
from ondevice.inference.conversations import Conversation, new_file, save
from ondevice.preferences import history, rubric
from ondevice.preferences.database import Ratings
from ondevice.preferences.project import Project, change_project, read_project
from ondevice.preferences.rating_queue import choices
from ondevice.preferences.votes import Item, Vote
from ondevice_tui.screens.confirm import Details, ask
from ondevice_tui.screens.rate_cards import Reasons, ScoreCard, why_this
from ondevice_tui.screens.rate_history import AllOf, History, Jump
from ondevice_tui.screens.rate_project import Asked, AskOnly, ChangeProject, Guidelines
from ondevice_tui.screens.rate_queue import Look
from ondevice_tui.screens.rate_reading import ReadingPage
from ondevice_tui.screens.text_card import Ask, Note

if TYPE_CHECKING:
    from ondevice_tui.screens.sample_pairs import Found


@dataclass(frozen=True)
class Earlier:
    """An item that was rated before: the vote that the next one replaces, and, where it is to be
    settled, what each rater says."""

    item: Item
    vote: Vote | None
    others: list[Vote]
    settle: bool


class SharingPage(ReadingPage):
    """A rating screen with the cards around it. `reasons` are for the next vote, `goal` the votes
    that the rater means to give in this session."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.goal = 0

    # votes so far

    def action_history(self) -> None:
        rater = self.rater
        self._do(lambda ratings: history.history(ratings, rater), self._show_history, opens=True)

    def _show_history(
        self, entries: list[history.Entry], wanted: history.Filter | None = None
    ) -> None:
        if not entries:
            self._show_told("nothing has been said yet")
            return
        if wanted is None:
            wanted = "mine"
            if not any(entry.fits("mine", self.rater) for entry in entries):
                wanted = "all"
        card = History(entries, self.rater, wanted)
        self.app.push_screen(card, lambda jump: self._jump(jump, card.wanted))

    def _jump(self, jump: Jump | AllOf | None, wanted: history.Filter) -> None:
        if isinstance(jump, AllOf):
            self.ask_to_leave_out(jump.items, f"of the list '{wanted}'", jump.own)
        elif jump is not None and jump.flag:
            self._flag_there(jump.entry, wanted)
        elif jump is not None:
            self._go_to(jump.entry.item, jump.settle)

    def _flag_there(self, entry: history.Entry, wanted: history.Filter) -> None:
        """Everybody's flags on an entry are taken back, or it is flagged; then the list again."""
        rater, session = self.rater, self.session

        def work(ratings: Ratings) -> list[history.Entry]:
            if not history.clear_flags(ratings, entry.item, rater, session):
                history.flag(ratings, entry.item, rater, session)
            return history.history(ratings, rater)

        def then(entries: list[history.Entry]) -> None:
            self.count_marks()
            self._show_history(entries, wanted)

        self._do(work, then, opens=True)

    def _go_to(self, item: int, settle: bool, *, follows: bool = False) -> None:
        """To an item that was rated before: to change the own vote, or to settle a disagreement."""
        name = history.settler(self.rater) if settle else self.rater

        def work(ratings: Ratings) -> Earlier:
            others = history.votes_on(ratings, item) if settle else []
            return Earlier(ratings.item(item), ratings.voted(item, name), others, settle)

        self._do(work, self.show_chosen, follows=follows)

    def show_chosen(self, earlier: Earlier) -> None:
        raise NotImplementedError

    def settle_next(self) -> None:
        """The next disagreement that nobody has settled; the queue where none is left."""
        self._do(history.disagreements, self._settle_first, follows=True)

    def _settle_first(self, left: list[int]) -> None:
        if left:
            self._go_to(left[0], settle=True, follows=True)
        else:
            self.next("nothing is left to settle")

    # an answer that is better than all

    def action_own_answer(self) -> None:
        """A text of the rater's own in place of one of the answers."""
        item = self._here()
        if item is None:
            return
        place = getattr(self.answers.one, "place", 0)
        self._ask_own(item, item.responses[item.shown[place]].text)

    def _ask_own(self, item: Item, text: str, title: str = "a better answer, for sft") -> None:
        def keep(written: str | None) -> None:
            run = self.ui.run_folder
            if not written or not written.strip() or run is None:
                return
            answer = {"role": "assistant", "content": written.strip()}
            try:
                file = new_file(run.path, "rate")
                save(file, Conversation([*item.messages, answer]))
            except UserError as problem:
                self._ask_own(item, written, f"not saved ({problem.message}): Enter tries again")
                return
            self._show_told(f"kept for sft: {file.parent.name}/{file.name}", "$success")

        self.app.push_screen(Note(title, text), keep)

    # what raters share

    @property
    def project(self) -> Project:
        return self.turn.project if self.turn is not None else Project()

    def action_guidelines(self) -> None:
        if self.ratings is None:
            self.ui.say("no pairs yet: what raters agree on is kept with them")
            return
        self._do(read_project, self._show_guidelines, opens=True)

    def _show_guidelines(self, project: Project) -> None:
        def then(change: bool | None) -> None:
            if change:
                self.app.push_screen(ChangeProject(project), self._change_project)

        self.app.push_screen(Guidelines(project), then)

    def _change_project(self, project: Project | None) -> None:
        if project is not None:
            changes = {name: getattr(project, name) for name in vars(project)}
            self._do(
                lambda ratings: change_project(ratings, **changes),
                lambda _: self.next("kept: all raters of this run see it"),
            )

    def action_reasons(self) -> None:
        if self._here() is not None:
            card = Reasons(self.reasons, self.project.reasons)
            self.app.push_screen(card, lambda _: self._show_told())

    def action_scores(self) -> None:
        """Each answer on the project's scales, beside the vote."""
        item, rater, scales = self._here(), self.rater, self.project.rubric
        if item is None:
            return
        if not scales:
            self._show_told("no scales in this project yet: I, then F2 names some (rubric)")
            return

        self._do(
            lambda ratings: rubric.scores_of(ratings, item.id, rater),
            lambda before: self._ask_scores(item, rater, scales, before),
            opens=True,
        )

    def _ask_scores(
        self, item: Item, rater: str, scales: tuple[str, ...], before: dict[tuple[int, str], int]
    ) -> None:
        def keep(scores: dict[tuple[int, str], int] | None) -> None:
            if scores is None:
                return

            def failed(problem: UserError) -> None:
                self._not_saved(problem)
                self._ask_scores(item, rater, scales, scores)  # what was typed stays

            self._do(
                lambda ratings: rubric.give(ratings, item.id, rater, self.session, scores),
                lambda count: self._scored(rubric.in_words(scores, item.shown, scales), count),
                failed,
            )

        self.app.push_screen(ScoreCard(item.shown, scales, before), keep)

    def _scored(self, told: str, count: int) -> None:
        self._show_told(f"scored: {told or 'nothing'}" if count else "no new score", "$success")

    # what is asked

    def action_wanted(self) -> None:
        self._do(choices, self._ask_wanted, opens=True)

    def _ask_wanted(self, found: tuple[list[str], list[str]]) -> None:
        def take(asked: Asked | None) -> None:
            if asked is not None:
                self.wanted = asked.wanted
                self.goal = asked.goal
                self.next()

        self.app.push_screen(AskOnly(Asked(self.wanted, self.goal), *found), take)

    def ask_only(self, batch: str) -> None:
        """What was queued under this name, from now on; / asks others again."""
        self.wanted = replace(self.wanted, batch=batch)
        self._open(create=True)
        self.next()

    def action_rater(self) -> None:
        def take(name: str | None) -> None:
            if not name or not name.strip():
                return
            try:
                self.rater = history.check_name(name)
            except UserError as problem:
                self.ui.say(str(problem), bad=True)
                return
            self._skipped = set()
            self.ui.keep("rater", self.rater)
            self._forget_undone()
            self.next()

        self.app.push_screen(Ask("who rates?", self.rater), take)

    def action_why(self) -> None:
        if self._here() is not None:
            self._do(self.look, self._explain, opens=True)

    def _explain(self, found: Look) -> None:
        if self.item is not None:
            told = why_this(self.item, self.pairing, found.turn.waiting)
            self.app.push_screen(Details("why this pair", told))

    # where pairs come from, and what votes are worth

    def action_more(self) -> None:
        from ondevice_tui.screens.sample_pairs import MorePairs

        if self.ui.run_folder is None:
            self.ui.say(self.unless_reading("no run yet: esc, then n begins one"))
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

    def action_rounds(self) -> None:
        from ondevice_tui.screens.rounds import open_rounds

        open_rounds(self)

    def action_generate(self) -> None:
        self._open_form("sample")

    def action_learn(self, stage: str) -> None:
        """The form of a stage that learns from these votes, filled."""
        usable = self.progress.usable if self.progress is not None else 0
        if not usable and self.marks.pairs <= 0:
            self.ui.say("no usable pair yet: a vote that prefers one answer makes some")
        else:
            self._open_form(stage)

    def _open_form(self, stage: str) -> None:
        from ondevice_tui.proposals import proposal
        from ondevice_tui.screens.start import StartScreen

        if stage in STAGES:
            self.app.push_screen(StartScreen(stage, proposal(stage, self.ui.run_folder)))

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
