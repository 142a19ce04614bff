"""What the rewards screen shows: the curves, and below them one of three views of the groups of
completions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.worker import get_current_worker

from ondevice.common.progress import number
from ondevice_tui.group_browser import At, Browser, HeldOut
from ondevice_tui.messages import GroupFound
from ondevice_tui.problems import ORDERS as PROBLEM_ORDERS
from ondevice_tui.problems import Problem, Problems, read_problems
from ondevice_tui.rollout_groups import Group, warnings
from ondevice_tui.screens.reward_curves import RewardCurves
from ondevice_tui.screens.reward_lines import (
    Shown,
    answer_line,
    head,
    marked,
    problem_head,
    problem_line,
    reward_names,
    strip_width,
)
from ondevice_tui.screens.stage_page import StagePage
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

NO_STAGE = "No stage with rewards in this run yet: g at home starts grpo or ppo."
NO_SUCH = "No such group. F: another filter, p: every problem, / and Enter: no search."
LOOKING = "Looking through all steps …"
NO_HELD = "No held-out problem measured yet: eval_every says when. h: the groups."
MOST_LISTED = 300  # problems; / finds the others


class RewardPage(StagePage):
    """Everything but the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.browser: Browser | None = None
        self.held_out: HeldOut | None = None
        self.problems: Problems | None = None  # read once somebody asks for them
        self._looked_at: tuple[int, int, str] = (0, 0, "")  # (step, group, search) that was shown
        self._view = "groups"  # or "held", one held-out problem over the steps, or "problems"
        self._group: Group | None = None
        self._shown: list[Shown] = []
        self._listed: list[Problem] = []
        self._problem_order = PROBLEM_ORDERS[0]
        self._compare: str | None = None  # the prompt to compare, once its groups are read
        self._search_number = 0  # of the newest search in the background
        self._looking = False
        self._in_vain: tuple[object, ...] | None = None  # what was looked for and is nowhere

    def wanted(self) -> str:
        """The stage that was asked for where it has rewards, else the newest that has some."""
        state = self.ui.run_state
        if not state:
            return ""
        with_rewards = []
        for stage in reversed(state["stages"]):
            if stage["stage"] in ("grpo", "ppo") or "reward" in stage["numbers"]:
                with_rewards.append(stage["stage"])
        if not with_rewards:
            return ""
        if self.ui.stage in with_rewards:
            return self.ui.stage
        return str(with_rewards[0])

    def body(self) -> Iterable[Widget]:
        yield RewardCurves()
        yield SafeText(id="reason-told")
        with Horizontal(id="reason-groups"):
            with Vertical(id="group", classes="box"):
                yield SafeText(id="prompt")
                yield SafeText(id="head")
                yield Rows(id="completions")
            with VerticalScroll(id="completion", classes="box"):
                yield SafeText(id="completion-text")

    def on_mount(self) -> None:
        self.query_one("#completions").focus()

    def stage_changed(self) -> None:
        self._stop_looking()
        self.workers.cancel_group(self, "problems")
        self.browser = self.held_out = self.problems = None
        self._compare = None
        if self.folder is not None:
            self.browser = Browser(self.folder.groups, self.history)
            self.held_out = HeldOut(self.folder.groups, self.history)
            if self._view == "problems":
                self._read_problems()

    def left(self) -> None:
        super().left()
        self._stop_looking()
        self.workers.cancel_group(self, "problems")

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_history)

    # what is shown

    def show_history(self) -> None:
        if self.folder is not None:
            self.top(*self.status())
        else:
            self.top("rewards")
        with self.history.lock:
            empty = "no step yet" if self.folder is not None else "no rewards"
            self.query_one(RewardCurves).show(self.history, empty)
            self._show_told()
        self._show_answers()

    def _show_told(self) -> None:
        rows = []
        ended = self.ended_line()
        if ended is not None:
            rows.append(ended)
        found = warnings(self.history)
        if found:
            rows.append(line((" ! ", "bold $warning"), ("; ".join(found), "$warning")))
        shown = self.query_one("#reason-told", SafeText)
        shown.display = bool(rows)
        shown.show(lines(rows))

    def _show_answers(self) -> None:
        if self._view == "held":
            self._show_held_out()
        elif self._view == "problems":
            self._show_problems()
        else:
            self._show_group()
        self._show_spread()
        self._show_completion()

    def _show_spread(self) -> None:
        groups: list[Group] = []
        if self.browser is not None and self._group is not None:
            groups = self.browser.of_step(self._group.step)
        self.query_one(RewardCurves).show_spread(groups)

    def _show_nothing(self, title: str, why: str) -> None:
        self._shown = []
        self._listed = []
        self.query_one("#completions", Rows).show([])
        self.query_one("#head", SafeText).show("")
        self.query_one("#prompt", SafeText).show(content(why, "$muted"))
        titled(self.query_one("#group"), title, self._filter_told())

    def _show_prompt(self, group: Group) -> None:
        parts: list[str | tuple[str, str]] = [
            (cell(group.prompt, 200).rstrip(), "bold"),
            ("   truth ", "$muted"),
        ]
        if group.answer:
            parts.append((cell(group.answer, 24).rstrip(), "bold $success"))
        self.query_one("#prompt", SafeText).show(line(*parts))

    @property
    def _width(self) -> int:
        """Cells of a row of the list."""
        return max(self.query_one("#completions", Rows).size.width - 1, 30)

    def _show_held_out(self) -> None:
        rows = self.query_one("#completions", Rows)
        course: list[Group] = []
        at = of = 0
        if self.held_out is not None:
            course, at, of = self.held_out.course()
        passing: list[Group] = []
        if self.browser is not None:
            passing = [group for group in course if self.browser.passes(group)]
        if not passing:
            self._show_nothing("held-out problems", self._why_no_held_out(course))
            return
        title = f"held-out problem {at + 1} of {of}"
        if course[0].answers[0].right is not None:
            right = sum(group.right for group in course)
            title += f" · right at {right} of {len(course)} measurements"
        titled(self.query_one("#group"), title, f"h training  [ ] problem  {self._filter_told()}")
        self._show_prompt(passing[0])
        names = reward_names(group.answers[0] for group in passing)
        self.query_one("#head", SafeText).show(
            line((head(names, self._width, held_out=True), "$muted"))
        )
        newest = not rows.highlighted
        self._shown = []
        options = []
        for group in passing:
            step, answer = f"{group.step:,}", group.answers[0]
            own_title = f"step {step} · held-out problem {at + 1}"
            self._shown.append(Shown(f"step {step}", own_title, group.prompt, answer, True))
            text = answer_line(
                step, answer, names, self._width, held_out=True, search=self._searched
            )
            options.append((f"held {group.step}", text))
        rows.show(options)
        if newest:
            rows.highlighted = 0

    def _why_no_held_out(self, course: list[Group]) -> str:
        if course:
            return NO_SUCH
        if self.folder is None:
            return self.unless_reading(NO_STAGE)
        return NO_HELD

    @property
    def _searched(self) -> str:
        return self.browser.search if self.browser is not None else ""

    def _show_group(self) -> None:
        box, rows = self.query_one("#group"), self.query_one("#completions", Rows)
        group, at, of, newest = None, 0, 0, "$ newest"
        if self.browser is not None:
            group, at, of = self.browser.current()
            if self.browser.place is None:
                newest = "newest"
        self._group = group
        if group is None or self.browser is None:
            self._show_nothing("groups", self._why_empty())
            return
        count = f"completions {len(group.answers)}"
        if any(answer.right is not None for answer in group.answers):
            count = f"{group.right} of {len(group.answers)} right"
        titled(
            box,
            f"step {group.step:,} · group {at + 1} of {of} · {count} · spread {number(group.spread)}",
            f"{newest}  {self._filter_told()}",
        )
        self._show_prompt(group)
        names = reward_names(group.answers)
        self.query_one("#head", SafeText).show(line((head(names, self._width), "$muted")))
        self._shown = []
        options = []
        for i, answer in self.browser.answers(group):
            name = f"completion {i + 1}"
            title = f"step {group.step:,} · {name}"
            self._shown.append(Shown(name, title, group.prompt, answer, False))
            text = answer_line(str(i + 1), answer, names, self._width, search=self._searched)
            options.append((str(i), text))
        rows.show(options)
        looked_at = (group.step, at, self._searched)
        if self._searched and looked_at != self._looked_at:  # what was looked for, not the first
            found = [shown.answer.mentions(self._searched) for shown in self._shown]
            rows.highlighted = found.index(True) if any(found) else 0
        self._looked_at = looked_at

    def _why_empty(self) -> str:
        browser = self.browser
        if browser is None:
            return self.unless_reading(NO_STAGE)
        if browser.plain:
            return "No group written yet. The first step writes some."
        wanted = (browser.filter, browser.pinned, browser.search)
        if browser.rest is not None and not self._looking and self._in_vain != wanted:
            self._look_further(browser.rest, -1)
        return LOOKING if self._looking else NO_SUCH

    def _filter_told(self) -> str:
        browser = self.browser
        if browser is None:
            return ""
        if self._view == "problems":
            told = f"O: {self._problem_order}"
        else:
            told = f"F: {browser.filter}"
            if browser.order != "as written" and self._view == "groups":
                told += f"  O: {browser.order}"
            if browser.pinned:
                told += "  p: one problem"
        if browser.search:
            told += f"  /{cell(browser.search, 20).rstrip()}"
        return told

    def _show_problems(self) -> None:
        problems = self.problems
        if problems is None:
            self._show_nothing("problems", self.unless_reading(NO_STAGE))
            return
        with problems.lock:
            found = problems.listed(self._problem_order, self._searched)
            self._listed = found[:MOST_LISTED]
            rate = (problems.low, problems.high) == (0.0, 1.0)
            strip = strip_width(self._width)
            options = [
                (
                    one.key.hex(),
                    problem_line(one, problems.strip(one, strip), self._width, rate=rate),
                )
                for one in self._listed
            ]
            unread, left_out = problems.unread, problems.left_out
        if not options:
            why = "No problem was asked yet." if not self._searched else NO_SUCH
            self._show_nothing("problems", f"reading, {unread >> 20} MB left" if unread else why)
            return
        self._shown = []
        told = f"{len(found):,} problems"
        if len(found) > MOST_LISTED:
            told += f", {MOST_LISTED} shown: / finds others"
        if left_out:
            told += f", more than {len(problems.found):,} are not kept apart"
        if unread > 1 << 20:
            told += f" · reading, {unread >> 20} MB left"
        titled(self.query_one("#group"), told, f"l groups  Enter its groups  {self._filter_told()}")
        kind = "right answers" if rate else "mean reward"
        self.query_one("#prompt", SafeText).show(
            content(f"{kind} to each over the steps; h: held out", "$muted")
        )
        self.query_one("#head", SafeText).show(line((problem_head(self._width), "$muted")))
        self.query_one("#completions", Rows).show(options)

    def _show_completion(self) -> None:
        box, text = self.query_one("#completion"), self.query_one("#completion-text", SafeText)
        if not box.display:
            return
        at = self.query_one("#completions", Rows).highlighted
        if at is not None and at < len(self._listed) and self._view == "problems":
            titled(box, "problem")
            text.show(content(self._listed[at].prompt))
            return
        if at is None or at >= len(self._shown):
            titled(box, "completion")
            text.show(
                content(
                    "The highlighted completion in full; the answer that was read from it is marked.",
                    "$muted",
                )
            )
            return
        shown = self._shown[at]
        title = f"{shown.name} · {shown.answer.tokens} tokens"
        if shown.answer.tests:
            title += f" · {shown.answer.tests.partition(':')[0]}"
        titled(box, title)
        text.show(marked(shown.answer))

    # searches through all steps, and the problems, in the background

    def _look_further(self, start: At, by: int) -> None:
        browser = self.browser
        if browser is None:
            return
        self._stop_looking()
        self._looking = True
        number = self._search_number

        def look() -> None:
            worker = get_current_worker()
            found = browser.find(start, by, lambda: worker.is_cancelled)
            if not worker.is_cancelled:
                self.post_message(GroupFound(number, found))

        self.run_worker(look, thread=True, group="looking")

    def _stop_looking(self) -> None:
        self._search_number += 1
        self._looking = False
        self.workers.cancel_group(self, "looking")

    def on_group_found(self, message: GroupFound) -> None:
        browser = self.browser
        if browser is None or message.number != self._search_number:
            return
        self._looking = False
        if message.place is not None:
            browser.place = message.place
        else:
            self._in_vain = (browser.filter, browser.pinned, browser.search)
            if self._group is not None:
                self.ui.say("no such group further on")
        self._show_answers()

    def _read_problems(self) -> None:
        if self.problems is None and self.folder is not None:
            self.problems = Problems(self.folder.groups)
            reading = partial(read_problems, self, self.problems)
            self.run_worker(reading, thread=True, group="problems")
