"""Reasoning rewards: how reward and accuracy go, and the groups of completions that they come from."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import OptionList

from ondevice_tui.group_browser import At
from ondevice_tui.messages import ProblemsRead
from ondevice_tui.moved_keys import moved
from ondevice_tui.problems import ORDERS as PROBLEM_ORDERS
from ondevice_tui.problems import Problem, group_of
from ondevice_tui.rollout_groups import FILTERS, ORDERS, Group, groups_at
from ondevice_tui.screens.reward_cards import FirstAndNow, FullCompletion
from ondevice_tui.screens.reward_curves import RewardCurves
from ondevice_tui.screens.reward_page import RewardPage
from ondevice_tui.widgets.rows import Rows


class ReasonScreen(RewardPage):
    ABOUT = """\
Stages that learn from rewards (PPO, GRPO). Above: the mean reward with its spread, or another curve (tab), held-out \
measurements as o from before the first step on, and each reward by itself, \
where a step's time goes, or how its completions are spread (%). Below: \
a prompt with its completions, their rewards and advantages; ✓ right, ✗ wrong, … cut at the length limit. █ is an \
advantage above the group's mean, ▒ one below: what has █ becomes likelier. Without [ or ] the newest group is shown \
as training goes on. l lists the problems with a strip each: how many completions were right over training (where \
nothing tells, their reward), low ▁ to high █, a space where it was not asked. h watches a held-out problem, from \
which nothing is learned. d sets the problem as it was answered first against now."""
    SHORT_ROWS = 3
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left_square_bracket",
            "group(-1)",
            "group",
            key_display="[ ]",
            tooltip="The group before",
        ),
        Binding("right_square_bracket", "group(1)", "newer group", show=False, key_display="]"),
        Binding(
            "left_curly_bracket",
            "step(-1)",
            "step",
            key_display="{ }",
            tooltip="The groups of the step before",
        ),
        Binding("right_curly_bracket", "step(1)", "newer step", show=False, key_display="}"),
        Binding("0", "go_to(0)", "first", tooltip="The first group of the training"),
        Binding(
            "dollar_sign",
            "newest",
            "newest",
            key_display="$",
            tooltip="Follow the newest group again",
        ),
        Binding("G", "which_step", "to step", tooltip="The groups of a step: a number, then Enter"),
        Binding(
            "enter", "full", "full", tooltip="The highlighted one in full width; ctrl+y copies it"
        ),
        Binding("O", "sort", "order", tooltip="Completions as written, by reward, by length"),
        Binding("slash", "search", "search", tooltip="Only groups that mention some words"),
        Binding(
            "escape",
            "clear",
            "home",
            key_display="esc",
            tooltip="End the search; where there is none, back to the road",
        ),
        Binding(
            "F",
            "filter(1)",
            "filter",
            tooltip="Groups shown: all, all right, all wrong, mixed, cut, no spread",
        ),
        Binding(
            "underscore",
            "no_spread",
            "flat",
            key_display="_",
            tooltip="Only groups that taught nothing, or all again",
        ),
        Binding("p", "pin", "same", tooltip="Only this problem, over all steps; or all again"),
        Binding(
            "l", "problems", "problems", tooltip="Every problem over training, or the groups again"
        ),
        Binding(
            "h",
            "held_out",
            "held",
            tooltip="One held-out problem over the steps, or the groups again",
        ),
        Binding("d", "compare", "diff", tooltip="This problem, first against now"),
        Binding(
            "tab",
            "curve",
            "curve",
            tooltip="Reward, accuracy, KL, entropy, length, spread, clipping",
        ),
        Binding("y", "scale", "scale", tooltip="y axis: fit, full, logarithmic"),
        Binding(
            "percent_sign",
            "panel",
            "time",
            key_display="%",
            tooltip="Beside the curve: each reward, a step's time, how completions are spread",
        ),
        Binding("Z", "freeze", "freeze", tooltip="Hold the view still; training goes on"),
        Binding("L", "details", "log", tooltip="The end of the log, messages"),
        Binding("X", "stop", "stop", tooltip="Ask the stage to finish its step, save and stop"),
        Binding("R", "resume", "resume", tooltip="Go on from the newest checkpoint"),
        *moved(n="$", s="O", f="F", z="_", m="l", c="d", v="tab", t="%", space="Z"),
    ]

    # the problems, in the background

    def on_problems_read(self, message: ProblemsRead) -> None:
        problems = self.problems
        if problems is None or message.problems is not problems or not self.is_current:
            return
        if self._compare is not None and not problems.unread:
            prompt, self._compare = self._compare, None
            with problems.lock:
                problem = problems.problem_of(prompt, False)
            self._compare_problem(problem)
        if self._view == "problems" and not self.frozen:
            self._show_answers()

    # keys

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._show_completion()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_full()

    def action_full(self) -> None:
        """The highlighted completion in full width; of the problems, the groups of one."""
        rows = self.query_one("#completions", Rows)
        at = rows.highlighted
        if at is None:
            return
        if self._view == "problems" and at < len(self._listed):
            self._open_problem(self._listed[at])
        elif at < len(self._shown):

            def closed(last: int | None) -> None:
                if last is not None and last < rows.option_count:
                    rows.highlighted = last

            self.app.push_screen(FullCompletion(self._shown, at), closed)

    def _open_problem(self, problem: Problem) -> None:
        assert self.browser is not None
        group = self._group_of(problem, problem.newest)
        if group is None:
            self.ui.say("its groups are not in the file any more")
        elif problem.held_out and self.held_out is not None:
            self._view = "held"
            course, _, of = self.held_out.course()
            for number_ in range(of):
                self.held_out.problem = number_
                course = self.held_out.course()[0]
                if course and course[0].prompt == group.prompt:
                    break
        else:
            self._view = "groups"
            self.browser.pinned = group.prompt
            self.browser.search = ""
            self.browser.filter = "all"
            self.browser.go_to(problem.newest[0])
        self._show_answers()

    def _group_of(self, problem: Problem, place: At) -> Group | None:
        assert self.folder is not None
        return group_of(problem, groups_at(self.folder.groups, *place))

    def action_group(self, by: int) -> None:
        self._stop_looking()
        if self._view == "held" and self.held_out is not None:
            self.held_out.problem += by
        elif self._view == "groups" and self.browser is not None and not self.browser.move(by):
            if self.browser.rest is not None:
                self._look_further(self.browser.rest, by)
            else:
                self.ui.say("no such group further back")
        self._show_answers()

    def action_step(self, by: int) -> None:
        self._to_groups()
        self._stop_looking()
        if self.browser is not None and not self.browser.move_step(by):
            if self.browser.rest is not None:
                self._look_further(self.browser.rest, by)
            else:
                self.ui.say("no such group in a step further on")
        self._show_answers()

    def _to_groups(self) -> None:
        self._view = "groups"

    def action_go_to(self, step: int) -> None:
        self._to_groups()
        self._stop_looking()
        if self.browser is not None and not self.browser.go_to(step):
            if self.browser.rest is not None:
                self._look_further((step, -1), 1)
            else:
                self.ui.say("no such group near that step")
        self._show_answers()

    def action_which_step(self) -> None:
        from ondevice_tui.screens.text_card import Ask

        def take(typed: str | None) -> None:
            text = (typed or "").strip().replace(",", "")
            if text.isdecimal():
                self.action_go_to(int(text))
            elif text:
                self.ui.say(f"{text!r} is not a step: a whole number is wanted", bad=True)

        self.app.push_screen(Ask("which step?", ""), take)

    def action_search(self) -> None:
        from ondevice_tui.screens.text_card import Ask

        def take(typed: str | None) -> None:
            if typed is not None and self.browser is not None:
                self.browser.search = typed.strip().lower()
                self._look_anew()

        self.app.push_screen(
            Ask("words in prompts and completions; none: all", self._searched), take
        )

    def action_clear(self) -> None:
        """esc ends the search that is in front; without one it leads home."""
        if self.browser is not None and self.browser.search:
            self.browser.search = ""
            self._look_anew()
        else:
            self.ui.action_go("road")

    def _look_anew(self) -> None:
        """From the newest group on, by another filter."""
        self._stop_looking()
        self._in_vain = None
        if self.browser is not None:
            self.browser.place = None
        self._show_answers()

    def action_sort(self) -> None:
        if self._view == "problems":
            at = PROBLEM_ORDERS.index(self._problem_order)
            self._problem_order = PROBLEM_ORDERS[(at + 1) % len(PROBLEM_ORDERS)]
        elif self._view == "held":
            self.ui.say("measurements stand by their steps, the newest first")
        elif self.browser is not None:
            names = list(ORDERS)
            self.browser.order = names[(names.index(self.browser.order) + 1) % len(names)]
        self._show_answers()

    def action_problems(self) -> None:
        self._view = "groups" if self._view == "problems" else "problems"
        if self._view == "problems":
            self._read_problems()
        self._show_answers()

    def action_held_out(self) -> None:
        self._view = "groups" if self._view == "held" else "held"
        self._show_answers()

    def action_compare(self) -> None:
        """The problem in view as it was answered first, and now."""
        at = self.query_one("#completions", Rows).highlighted
        if self._view == "problems" and at is not None and at < len(self._listed):
            self._compare_problem(self._listed[at])
        elif self._view == "held" and self.held_out is not None:
            course = self.held_out.course()[0]
            self._show_compared(course[-1] if course else None, course[0] if course else None)
        elif self._view == "groups" and self._group is not None:
            self._read_problems()
            assert self.problems is not None
            with self.problems.lock:
                read = not self.problems.unread
                problem = self.problems.problem_of(self._group.prompt, False)
            if read:
                self._compare_problem(problem)
            else:
                self._compare = self._group.prompt
                self.ui.say("reading all groups: the problem's first one comes in a moment")

    def _compare_problem(self, problem: Problem | None) -> None:
        if problem is None:
            self.ui.say("this problem is not among those that are kept apart")
            return
        self._show_compared(
            self._group_of(problem, problem.first), self._group_of(problem, problem.newest)
        )

    def _show_compared(self, first: Group | None, now: Group | None) -> None:
        if first is None or now is None or not first.answers or not now.answers:
            self.ui.say("nothing to compare yet")
        elif first.step == now.step:
            self.ui.say(f"this problem was asked at step {now.step:,} alone, so far")
        else:
            self.app.push_screen(FirstAndNow(first, now))

    def action_filter(self, by: int) -> None:
        if self.browser is not None:
            names = list(FILTERS)
            self.browser.filter = names[(names.index(self.browser.filter) + by) % len(names)]
            self._look_anew()

    def action_no_spread(self) -> None:
        if self.browser is not None:
            without = self.browser.filter == "no spread"
            self.browser.filter = "all" if without else "no spread"
            self._look_anew()

    def action_pin(self) -> None:
        if self.browser is not None:
            pinned = ""
            if not self.browser.pinned and self._group is not None:
                pinned = self._group.prompt
            self.browser.pinned = pinned
            self._in_vain = None
            self._show_answers()

    def action_newest(self) -> None:
        rows = self.query_one("#completions", Rows)
        if self._view == "held" and rows.option_count:
            rows.highlighted = 0
        elif self.browser is not None:
            self._to_groups()
            self._stop_looking()
            self.browser.place = None
        self._show_answers()

    def action_curve(self) -> None:
        with self.history.lock:
            self.query_one(RewardCurves).next_curve(self.history)
        self.show_history()

    def action_scale(self) -> None:
        self.query_one(RewardCurves).next_scale()
        self.show_history()

    def action_panel(self) -> None:
        self.query_one(RewardCurves).next_panel()
        self.show_history()
