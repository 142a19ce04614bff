"""Home: the road of stages of the chosen run, what is sensible next, and the list of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Click
from textual.widget import Widget
from textual.widgets import OptionList

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import StageFolder
from ondevice_tui import run_lines, run_status, stage_processes
from ondevice_tui.moved_keys import moved
from ondevice_tui.run_status import HALTED, Row, startable
from ondevice_tui.screens.page import Page
from ondevice_tui.screens.run_actions import RunActions
from ondevice_tui.stage_lines import enter_parts, first_answers, stage_line
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.run_list import AGES_S, RunList
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled
from ondevice_tui.widgets.welcome import Welcome


class RoadScreen(RunActions, Page):
    # not the first that can have it: Welcome, where Enter, typed ahead, would begin a run
    AUTO_FOCUS = "#stages"
    ABOUT = """\
The road from random weights to a model that reasons. Each row is a stage of the chosen run: its state, its main \
numbers, its time. Enter does what is sensible with the highlighted stage: it begins it, or shows its curves.

Stages are processes of their own: they go on when this app is closed, and runs that were started from the command \
line appear here too. A run whose process is gone is shown as died; R goes on from its newest checkpoint.

tab goes to the list of runs and back, / searches in it: words of a name, a note or a tag, state:done, tag:good, \
exact>0.5. There runs are ordered, ticked, compared, noted, tagged and renamed; ? names the keys. Of a figure each run \
shows the newest stage's that has it; … is not read yet, – is none.

D moves the highlighted run, or the ticked ones, to a trash folder beside the runs, u brings the last one back; \
`ondevice runs empty-trash` deletes what lies there."""
    SHORT_ROWS = 3
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "n",
            "new",
            "new run",
            tooltip="Begin a run: a recipe, or one stage from any model folder",
        ),
        Binding(
            "g", "start", "start", tooltip="Start the highlighted stage (a form with its settings)"
        ),
        # the keys of the other screens, which take what is highlighted here along
        Binding("2", "watch", "train", tooltip="Curves and samples of the highlighted stage"),
        Binding("3", "open('reason')", "rewards", tooltip="Rewards and groups of PPO and GRPO"),
        Binding("4", "open('rate')", "rate", tooltip="Say which of two answers is better"),
        Binding("5", "open('ladder')", "ladder", tooltip="What every stage achieved, side by side"),
        Binding("6", "chat", "chat", tooltip="Talk with the highlighted stage's model"),
        Binding(
            "7", "open('push')", "push", tooltip="Send a model or ratings to the Hugging Face Hub"
        ),
        Binding(
            "R",
            "resume",
            "resume",
            tooltip="Go on with an unfinished stage from its newest checkpoint",
        ),
        Binding(
            "X",
            "stop",
            "stop",
            tooltip="Ask the stage that trains to finish its step, save and stop",
        ),
        Binding("tab", "lists", "lists", tooltip="From the stages to the runs and back"),
        Binding("shift+tab", "lists", show=False),
        Binding("slash", "search", "search", key_display="/", tooltip="Search among the runs"),
        Binding("L", "details", "log", tooltip="Last lines and messages of the highlighted stage"),
        Binding(
            "D,delete",
            "trash",
            "trash",
            key_display="D",
            tooltip="Move the highlighted run, or the ticked ones, to the trash; u brings it back",
        ),
        Binding("u", "untrash", "undo", tooltip="Bring back the run that went to the trash"),
        Binding("escape,1", "none", "", show=False),
        *moved(s="g", w="2", r="4", l="5", c="6", p="7", d="L"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Row] = []
        self._shown_run: Path | None = None
        self._road_width = 0  # cells of the road when it was last to be seen
        self._seen: object = None  # what was last drawn
        self._seen_of: list[dict[str, Any]] | None = None
        self._proposed: int | None = None  # the row that was highlighted as the next sensible one

    def body(self) -> Iterable[Widget]:
        welcome = Welcome()
        welcome.display = False
        yield welcome
        with Horizontal(id="home"):
            with Vertical(id="home-left"):
                stages = Rows(id="stages")
                titled(stages, "the road")
                yield stages
                yield SafeText(id="run-card", classes="box")
                yield SafeText(id="next")
                yield RunList(self.do_with_run)
            with Vertical(id="answers", classes="box"):
                yield SafeText(id="answers-text")

    def on_mount(self) -> None:
        titled(self.query_one("#answers"), "the same prompt, after each stage")
        self.query_one("#run-card").display = False
        self.query_one("#stages").focus()

    def entered(self) -> None:
        self.show_all()

    def runs_changed(self) -> None:
        """Each second: where nothing has changed, nothing is drawn."""
        ui = self.ui
        now = (
            ui.chosen,
            ui.unread,
            ui.runs_trouble,
            ui.machine,
            ui.starting,
            clock() // AGES_S,
            None if ui.runs is None else list(map(id, ui.runs)),
        )
        if now != self._seen:
            # keeps these records, so that no other has their identity
            self._seen, self._seen_of = now, ui.runs
            self.show_all()

    def show_all(self) -> None:
        state = self.ui.run_state
        self.found = []
        if self.ui.runs is not None:
            self.found = run_status.rows(state, self.ui.starting)
        self._show_top(state)
        if self._show_welcome():
            return
        self._show_stages(state)
        self.run_list.show(self.ui.runs)
        self._show_card()
        self._show_next()
        self._show_answers()

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_all)

    # what is shown

    def _show_top(self, state: dict[str, Any] | None) -> None:
        name = str(self.ui.runs_folder)
        if state:
            name = state["path"]
        self.top((cell(name, min(cell_len(name), 34)), "bold"), "  ", (self.ui.machine, "$muted"))

    def _show_stages(self, state: dict[str, Any] | None) -> None:
        rows = self.query_one("#stages", Rows)
        states = {}
        if state:
            states = {stage["stage"]: stage for stage in state["stages"]}
        # while the list has the screen, and in the moment after, the road has no size
        self._road_width = rows.size.width or self._road_width
        width = max(self._road_width - 2, 40)
        options = []
        for row in self.found:
            options.append((row.stage, stage_line(row, states.get(row.stage), width)))
        used = next(filter(None, map(run_status.time_used, states.values())), "")
        titled(self.query_one("#stages"), "the road", used or run_status.place_in_recipe(state))
        fresh = self._shown_run != self.ui.chosen or not rows.option_count
        unmoved = not self._moved
        rows.show(options)
        if (fresh or unmoved) and self.found:
            self._proposed = rows.highlighted = run_status.next_row(self.found)
        self._shown_run = self.ui.chosen

    def _show_welcome(self) -> bool:
        """Whether there is no run at all: then one card stands in place of everything else."""
        nothing = self.ui.runs == [] and not (
            self.ui.unread or self.ui.started or self.ui.runs_trouble
        )
        welcome, home = self.query_one(Welcome), self.query_one("#home")
        if nothing and not welcome.display:
            home.display, welcome.display = False, True
            welcome.begin()
        elif not nothing and welcome.display:
            home.display, welcome.display = True, False
            self.query_one("#stages").focus()
        return nothing

    def _show_card(self) -> None:
        """The highlighted run, while the list has the screen."""
        run = self.run_list.highlighted
        if not self.lists:
            return
        if run is None:
            self.query_one("#run-card", SafeText).show("")
            titled(self.query_one("#run-card"), self.unless_reading("no run"))
            return
        self.query_one("#run-card", SafeText).show(lines(run_lines.card(run)))
        titled(self.query_one("#run-card"), str(run["run"]), "Enter opens it")

    def show_highlighted(self) -> None:
        """What is told of the highlighted run, or stage."""
        self._show_card()
        self._show_next()

    def _show_next(self) -> None:
        self.query_one("#next", SafeText).show(self._next_line(), layout=False)

    def _next_line(self) -> Content | str:
        """What is wrong, what is under way, or what Enter does."""
        wrong = self._trouble()
        if wrong:
            return line((" ✗ ", "bold $error"), (wrong, "$error"))
        if self.ui.runs is None:
            reading = f"reading the runs in {self.ui.runs_folder}"
            return line((" … ", "bold $primary"), (reading, "$muted"))
        if self.lists:
            return self._told_of_list()
        row = self.highlighted
        if row is None:
            return ""
        return line((" Enter ▸ ", "bold $primary"), *enter_parts(row))

    def _told_of_list(self) -> Content | str:
        """What Enter does with the highlighted run, or what is ticked."""
        run = self.run_list.highlighted
        if run is None:
            return line((" … ", "bold $primary"), ("no run fits: esc ends the search", "$muted"))
        ticked = len(self.ui.ticked_runs)
        if ticked:
            told = f"{ticked} ticked   o overlay   d differences   # tags   D trash   esc unticks"
            return line((f" {run_lines.TICK} ", "bold $primary"), told)
        return line((" Enter ▸ ", "bold $primary"), ("open ", "bold"), str(run["run"]))

    def _trouble(self) -> str:
        """Why the runs, or the chosen one, cannot be read; empty where they can."""
        if self.ui.runs_trouble:
            return self.ui.runs_trouble
        state = self.ui.run_state
        if state is not None and state.get("wrong"):
            return f"{state['run']} cannot be read: {state['wrong']}"
        return ""

    def _show_answers(self) -> None:
        text = content(
            "Each finished stage answers the same prompts; the answers appear here.", "$muted"
        )
        run = self.ui.run_folder
        if run and self.query_one("#answers").display:
            rows = first_answers(run)
            if rows:
                text = lines(rows)
        self.query_one("#answers-text", SafeText).show(text)

    @property
    def highlighted(self) -> Row | None:
        at = self.query_one("#stages", Rows).highlighted
        if at is not None and at < len(self.found):
            return self.found[at]
        return None

    # keys

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self.show_highlighted()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_list.id == "runs":
            self.take(Path(event.option_id or ""))
            self.show_lists(False)
        elif self.highlighted is not None and self.highlighted.enter == "start":
            self.action_start()
        elif self.highlighted is not None and self.highlighted.enter == "rate":
            self.ui.action_go("rate")
        elif self.highlighted is not None and self.highlighted.enter == "watch":
            self.ui.stage = self.highlighted.stage
            self.ui.action_go("train")
        elif self.highlighted is not None:
            self.ui.say(f"{self.highlighted.stage}: {self.highlighted.why}")

    @property
    def _moved(self) -> bool:
        """Whether another stage is highlighted than was proposed."""
        return self.query_one("#stages", Rows).highlighted != self._proposed

    @property
    def run_list(self) -> RunList:
        return self.query_one(RunList)

    @property
    def lists(self) -> bool:
        """Whether the list of runs has the screen, and the road is a card."""
        return bool(self.query_one("#run-card").display)

    def show_lists(self, on: bool) -> None:
        """Gives the screen to the list of runs, or back to the road."""
        stages, card = self.query_one("#stages"), self.query_one("#run-card")
        stages.display, card.display = not on, on
        self.set_class(on, "-lists")
        # at once, not by a message: the next key is for it
        self.set_focus(self.run_list.rows if on else stages)
        self.show_all()
        self.call_after_refresh(self.show_all)  # by its width, which is known now

    def take(self, run: Path) -> None:
        """Makes this run the one that all screens show."""
        if run != self.ui.chosen:
            self.ui.choose(run)
        self.show_all()

    def _take_highlighted(self) -> None:
        """A key that is about a run means the highlighted one while the list has the screen."""
        run = self.run_list.highlighted
        if self.lists and run is not None:
            self.take(Path(run["path"]))

    def on_click(self, event: Click) -> None:
        if event.widget is self.query_one("#run-card"):
            self._take_highlighted()
            self.show_lists(False)

    def action_lists(self) -> None:
        if self.query_one("#home").display:
            self.show_lists(not self.lists)

    def action_search(self) -> None:
        if self.query_one("#home").display:
            self.show_lists(True)
            self.run_list.begin_search()

    def action_open(self, mode: str) -> None:
        self._take_highlighted()
        self.ui.action_go(mode)

    def action_none(self) -> None:
        """It is at home already; the other screens have a key each in the foot."""

    def action_new(self) -> None:
        from ondevice_tui.screens.new_run import ChooseScreen

        self.app.push_screen(ChooseScreen())

    def action_start(self) -> None:
        from ondevice_tui.proposals import proposal
        from ondevice_tui.screens.start import StartScreen

        self._take_highlighted()
        row = self.highlighted
        if row is None or row.stage not in STAGES:
            self.ui.say(self.unless_reading("no stage is highlighted"))
            return
        if not startable(row.stage):  # rate: people do it there
            self.ui.action_go("rate")
        else:
            self.app.push_screen(StartScreen(row.stage, proposal(row.stage, self.ui.run_folder)))

    def action_watch(self) -> None:
        """The highlighted stage, where somebody has highlighted one that has begun; else as before,
        or what trains, or the newest."""
        self._take_highlighted()
        row = self.highlighted
        if self._moved and row is not None and row.state not in run_status.OPEN:
            self.ui.stage = row.stage
        self.ui.action_go("train")

    def action_chat(self) -> None:
        """With the highlighted stage's model, where it has been begun; else as before, or with the
        run's newest.
        """
        self._take_highlighted()
        row = self.highlighted
        if row is not None and row.state not in (*run_status.OPEN, "starting"):
            # again, where another model was taken meanwhile
            self.ui.talk_with = (row.stage, self.ui.talk_with[1] + 1)
        self.ui.action_go("chat")

    def action_stop(self) -> None:
        from ondevice_tui.screens.confirm import ask_to_stop

        self._take_highlighted()
        stage = ""
        if self.highlighted is not None:
            stage = self.highlighted.stage
        ask_to_stop(self.ui, stage)

    def action_resume(self) -> None:
        self._take_highlighted()
        row, run = self.highlighted, self.ui.run_folder
        if row is not None and row.state == "starting":
            self.ui.say(f"{row.stage} is starting already")
            return
        halted = [one for one in self.found if one.state in HALTED and startable(one.stage)]
        if row is not None and row.state not in HALTED and len(halted) == 1:
            [row] = halted  # no other can be meant
        if row is None or run is None or row.state not in HALTED:
            none = "nothing to resume: highlight a stage that stopped, failed or died"
            self.ui.say(self.unless_reading(none))
            return
        try:
            words = stage_processes.resume_words(run, StageFolder(run.path / row.stage))
            self.ui.start(words, run.path)
        except UserError as problem:
            self.ui.say(str(problem), bad=True)

    def action_details(self) -> None:
        from ondevice_tui.screens.confirm import show_details

        self._take_highlighted()
        if self.highlighted is not None and self.ui.run_folder is not None:
            show_details(self.ui, self.ui.run_folder, self.highlighted.stage)
