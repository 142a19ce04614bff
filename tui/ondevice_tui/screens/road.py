"""Home: the road of stages of the chosen run, what is sensible next, and the list of runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList

from ondevice.common.clock import clock
from ondevice.common.errors import UserError
from ondevice.common.progress import duration, size
from ondevice.config.recipe import STAGES
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice_tui import run_status, stage_processes
from ondevice_tui.run_status import HALTED, MARKS, STYLES, Row, startable
from ondevice_tui.screens.page import Page
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

AGES_S = 10  # between two looks at how long ago the runs of the list began
NO_RUNS = "No run yet. n begins one: the recipe minute needs no data of yours."


class RoadScreen(Page):
    ABOUT = """\
The road from random weights to a model that reasons. Each row is a stage of the chosen run: its state, its main \
numbers, its time. Enter does what is sensible with the highlighted stage: it begins it, or shows its curves.

Stages are processes of their own: they go on when this app is closed, and runs that were started from the command \
line appear here too. A run whose process is gone is shown as died; R goes on from its newest checkpoint.

The list of runs says what each takes of the disk. D moves the highlighted run to a trash folder beside the runs, u \
brings the last one back; `ondevice runs empty-trash` deletes what lies there."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "n",
            "new",
            "new run",
            tooltip="Begin a run: a recipe, or one stage from any model folder",
        ),
        Binding(
            "s", "start", "start", tooltip="Start the highlighted stage (a form with its settings)"
        ),
        Binding("w", "watch", "watch", tooltip="Curves and samples of the highlighted stage"),
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
        Binding("tab", "app.focus_next", "lists", tooltip="From the stages to the runs and back"),
        Binding("r", "app.go('rate')", "rate", tooltip="Say which of two answers is better"),
        Binding(
            "l", "app.go('ladder')", "ladder", tooltip="What every stage achieved, side by side"
        ),
        Binding("g", "app.go('reason')", "rewards", tooltip="Rewards and groups of PPO and GRPO"),
        Binding("c", "chat", "chat", tooltip="Talk with the highlighted stage's model"),
        Binding(
            "p", "app.go('push')", "push", tooltip="Send a model or ratings to the Hugging Face Hub"
        ),
        Binding(
            "d", "details", "details", tooltip="Last lines and messages of the highlighted stage"
        ),
        Binding(
            "D",
            "trash",
            "trash",
            tooltip="Move the highlighted run to the trash; u brings it back",
        ),
        Binding("u", "untrash", "undo", tooltip="Bring back the run that went to the trash"),
        Binding("escape", "none", "", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Row] = []
        self._shown_run: Path | None = None
        self._drawn: object = None  # what the list of runs was drawn from
        # keeps these records, so that no other has their identity
        self._drawn_of: list[dict[str, Any]] | None = None
        self._trashed: list[tuple[str, Path]] = []  # (its name in the trash, the folder of runs)
        self._proposed: int | None = None  # the row that was highlighted as the next sensible one

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="home"):
            with Vertical(id="home-left"):
                stages = Rows(id="stages")
                titled(stages, "the road")
                yield stages
                yield SafeText(id="next")
                runs = Rows(id="runs")
                titled(runs, "runs", "Enter chooses")
                yield runs
            with Vertical(id="answers", classes="box"):
                yield SafeText(id="answers-text")

    def on_mount(self) -> None:
        titled(self.query_one("#answers"), "the same prompt, after each stage")
        self.query_one("#stages").focus()

    def entered(self) -> None:
        self.runs_changed()

    def runs_changed(self) -> None:
        state = self.ui.run_state
        self.found = []
        if self.ui.runs is not None:
            self.found = run_status.rows(state, self.ui.starting)
        self._show_top(state)
        self._show_stages(state)
        self._show_runs()
        self._show_next()
        self._show_answers()

    def on_resize(self) -> None:
        self.call_after_refresh(self.runs_changed)

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
        width = max(rows.size.width - 2, 40)
        options = []
        for i, row in enumerate(self.found):
            options.append((row.stage, stage_line(i, row, states.get(row.stage), width)))
        used = next(filter(None, map(run_status.time_used, states.values())), "")
        titled(self.query_one("#stages"), "the road", used)
        fresh = self._shown_run != self.ui.chosen or not rows.option_count
        unmoved = rows.highlighted == self._proposed  # nobody has chosen another row
        rows.show(options)
        if (fresh or unmoved) and self.found:
            self._proposed = rows.highlighted = run_status.next_row(self.found)
        self._shown_run = self.ui.chosen

    def _show_runs(self) -> None:
        rows = self.query_one("#runs", Rows)
        width = max(rows.size.width - 2, 40)
        runs = self.ui.runs
        identities, hint = None, "being read …"
        if runs is not None:
            identities, hint = list(map(id, runs)), "n begins one"
        if runs:
            hint = "Enter chooses"
        drawn = (self.ui.chosen, width, clock() // AGES_S, identities)
        if drawn == self._drawn:  # a record that was not read again is the same object
            return
        self._drawn, self._drawn_of = drawn, runs
        options = []
        for run in runs or ():
            is_chosen = Path(run["path"]) == self.ui.chosen
            options.append((run["path"], run_line(run, is_chosen, width)))
        rows.show(options)
        titled(rows, f"runs in {self.ui.runs_folder}", hint)

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
        if self.ui.runs == [] and not self.ui.started:
            return line((" next ▸ ", "bold $primary"), NO_RUNS)
        row = self.highlighted
        if row is None:
            return ""
        return line((" Enter ▸ ", "bold $primary"), *enter_parts(row))

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
        self._show_next()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_list.id == "runs":
            self.ui.choose(Path(event.option_id or ""))
            self.runs_changed()
            self.query_one("#stages").focus()
        elif self.ui.runs == [] and not self.ui.started:
            self.action_new()
        elif self.highlighted is not None and self.highlighted.enter == "start":
            self.action_start()
        elif self.highlighted is not None and self.highlighted.enter == "rate":
            self.ui.action_go("rate")
        elif self.highlighted is not None and self.highlighted.enter == "watch":
            self.action_watch()
        elif self.highlighted is not None:
            self.ui.say(f"{self.highlighted.stage}: {self.highlighted.why}")

    def action_none(self) -> None:
        """Escape is at home already."""

    def action_new(self) -> None:
        from ondevice_tui.screens.new_run import ChooseScreen

        self.app.push_screen(ChooseScreen())

    def action_start(self) -> None:
        from ondevice_tui.proposals import proposal
        from ondevice_tui.screens.start import StartScreen

        row = self.highlighted
        if row is None or row.stage not in STAGES:
            return
        if not startable(row.stage):  # rate: people do it there
            self.ui.action_go("rate")
        else:
            self.app.push_screen(StartScreen(row.stage, proposal(row.stage, self.ui.run_folder)))

    def action_watch(self) -> None:
        if self.highlighted is not None:
            self.ui.stage = self.highlighted.stage
            self.ui.action_go("train")

    def action_chat(self) -> None:
        """With the highlighted stage's model, where it has been begun; else as before, or with the
        run's newest.
        """
        row = self.highlighted
        if row is not None and row.state not in (*run_status.OPEN, "starting"):
            # again, where another model was taken meanwhile
            self.ui.talk_with = (row.stage, self.ui.talk_with[1] + 1)
        self.ui.action_go("chat")

    def action_stop(self) -> None:
        from ondevice_tui.screens.confirm import ask_to_stop

        stage = ""
        if self.highlighted is not None:
            stage = self.highlighted.stage
        ask_to_stop(self.ui, stage)

    def action_resume(self) -> None:
        row, run = self.highlighted, self.ui.run_folder
        if row is not None and row.state == "starting":
            self.ui.say(f"{row.stage} is starting already")
            return
        if row is None or run is None or row.state not in HALTED:
            self.ui.say("nothing to resume: highlight a stage that stopped, failed or died")
            return
        try:
            words = stage_processes.resume_words(run, StageFolder(run.path / row.stage))
            self.ui.start(words, run.path)
        except UserError as problem:
            self.ui.say(str(problem), bad=True)

    def action_trash(self) -> None:
        """The run that is highlighted in the list, or the chosen one."""
        from ondevice_tui.screens.confirm import ask

        rows = self.query_one("#runs", Rows)
        run = self.ui.chosen
        if rows.has_focus and rows.highlighted is not None:
            run = Path(rows.get_option_at_index(rows.highlighted).id or "")
        if run is None:
            self.ui.say("there is no run to take away")
            return
        chosen = run
        ask(
            self.ui,
            "trash",
            f"Move {chosen.name} to the trash? u brings it back.",
            "move it",
            lambda: self.run_worker(self._move_away(chosen)),
        )

    async def _move_away(self, run: Path) -> None:
        """In a thread: all other runs are asked whether they need it."""
        from ondevice.runs import trash

        try:
            [moved] = await asyncio.to_thread(trash.remove_runs, [str(run)], run.parent)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
            return
        self._trashed.append((Path(moved["trash"]).name, run.parent))
        self.ui.say(f"{run.name} is in the trash: u brings it back")
        self.ui.look()

    async def action_untrash(self) -> None:
        from ondevice.runs import trash

        if not self._trashed:
            self.ui.say("nothing was moved to the trash here (ondevice runs restore NAME)")
            return
        name, folder = self._trashed[-1]
        try:
            back = await asyncio.to_thread(trash.restore_run, name, folder)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
            return
        self._trashed.pop()
        self.ui.choose(back)
        self.ui.say(f"{back.name} is back")
        self.ui.look()

    def action_details(self) -> None:
        from ondevice_tui.screens.confirm import show_details

        if self.highlighted is not None and self.ui.run_folder is not None:
            show_details(self.ui, self.ui.run_folder, self.highlighted.stage)


def first_answers(run: RunFolder) -> list[Content]:
    """The first prompt that a run's finished stages were asked, with the answer of each."""
    rows: list[Content] = []
    for stage in run.stages():
        answers = (stage.done_record() or {}).get("answers")
        if not isinstance(answers, list) or not answers:
            continue
        first = answers[0]
        if not isinstance(first, dict) or not first:
            continue
        if not rows:
            rows = [line("> ", (str(first.get("prompt", "")), "bold")), content("")]
        rows += [
            content(stage.name, "bold $primary"),
            content(str(first.get("answer", "")).strip(), limit=1200),
            content(""),
        ]
    return rows


def enter_parts(row: Row) -> list[str | tuple[str, str]]:
    """What Enter does with this stage, and what else is worth doing."""
    why = f"   {row.why}" if row.why else ""
    if row.state == "training":
        return [("watch ", "bold"), row.stage, "   X stops it (saved)"]
    if row.enter == "rate":
        return [("rate ", "bold"), "answers two by two", (why, "$muted")]
    if row.state == "failed" and row.enter == "start":
        return [("start ", "bold"), row.stage, " once more   d details", (f" {row.told}", "$muted")]
    if row.state in HALTED:
        if row.why:
            why = f" {row.why.splitlines()[0]}"
        return [("look at ", "bold"), row.stage, "   R resumes it   d details", (why, "$muted")]
    if row.enter == "watch":
        return [("look at ", "bold"), row.stage]
    if row.enter == "start":
        return [("start ", "bold"), row.stage, (why, "$muted")]
    return [(row.why, "$muted")]


def stage_line(number: int, row: Row, state: dict[str, Any] | None, width: int) -> Content:
    """`0 init  ✓ done  loss 2.3 …  1:12  2h ago`, in `width` cells."""
    word = row.state
    style = STYLES[row.state]
    if state and state.get("waiting"):
        word, style = "paused", STYLES["stopped"]
    elif row.state == "training" and row.share is None:
        word = "running"
    elif row.state == "training":
        word = f"{row.share:.0%}"
    elif row.state == "next":
        word = "ready"
    head = line(
        f"{number} ",
        (cell(row.stage, 10), "bold"),
        " ",
        (f"{MARKS[row.state]} ", f"bold {style}"),
        (cell(word, 8), style),
        " ",
    )
    end = []
    if row.state == "training" and state:
        end.append(run_status.left(state))
    elif row.seconds is not None:
        end.append(duration(row.seconds))
    if width >= 70 and row.last is not None and row.state != "training":
        end.append(f"{run_status.ago(row.last):>8}")
    tail = ""
    if end:
        tail = " " + "  ".join(filter(None, end))
    room = width - head.cell_length - len(tail)
    style = "" if state else "$muted"
    return line(head, (cell(row.told, max(room, 0)), style), (tail, "$muted"))


def run_line(run: dict[str, Any], chosen: bool, width: int) -> Content:
    """A run and its stages' marks in one line."""
    marks = []
    for stage in run["stages"]:
        mark = f"{MARKS[stage['state']]} {stage['stage']}  "
        marks.append((mark, STYLES[stage["state"]]))
    head = line("  ", (cell(run["run"], 30), ""), " ")
    if chosen:
        head = line("▸ ", (cell(run["run"], 30), "bold"), " ")
    began = f"{run_status.ago(run['began']):>10}"
    if width >= 60:
        taken = run.get("bytes")
        # not read yet is not 0
        began = f"{'…' if taken is None else size(taken):>9}{began}"
    told = line(head, *(marks or [_nothing_begun(run)]))
    if run.get("wrong"):
        mark = f"{MARKS['wrong']} cannot be read: "
        room = max(width - head.cell_length - len(began) - len(mark), 0)
        told = line(head, (mark, STYLES["wrong"]), cell(str(run["wrong"]), room))
    elif told.cell_length + len(began) > width and marks:  # only the newest stage's name has room
        signs = [(MARKS[stage["state"]], STYLES[stage["state"]]) for stage in run["stages"][:-1]]
        told = line(head, *signs, " ", marks[-1])
    room = max(width - told.cell_length - len(began), 1)
    return line(told, " " * room, (began, "$muted"))


def _nothing_begun(run: dict[str, Any]) -> tuple[str, str]:
    """What there is of a run without stages, and its style."""
    if unstarted := run.get("unstarted"):
        return f"{MARKS['failed']} {' '.join(unstarted)} did not start", STYLES["failed"]
    if run.get("ratings"):
        return "pairs to rate", "$muted"
    return "nothing begun", "$muted"
