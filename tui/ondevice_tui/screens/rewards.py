"""Reasoning rewards: how reward and accuracy go, and the groups of completions that they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList

from ondevice.common.progress import number
from ondevice_tui.rollout_groups import FILTERS, Answer, Browser, Group, HeldOut, warnings
from ondevice_tui.screens.reward_lines import answer_line, head, marked, reward_names
from ondevice_tui.screens.stage_page import SHORT, StagePage
from ondevice_tui.series import Columns, spark
from ondevice_tui.widgets.curve import SCALES, Curve, Trace
from ondevice_tui.widgets.rows import Rows
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

CURVES = (
    "reward",
    "accuracy",
    "kl",
    "entropy",
    "completion_length",
    "zero_spread",
    "clip_fraction",
)
NO_STAGE = (
    "No stage with rewards in this run yet: grpo or ppo write them. esc goes home, s starts one."
)

NO_SUCH = "No such group in the last steps. f: another filter, p: every problem."
NO_HELD = "No held-out problem measured yet: eval_every says when. h: the groups."


class Shown(NamedTuple):
    """An answer in the list: its name beside it, the title of its own card, and its prompt."""

    name: str
    title: str
    prompt: str
    answer: Answer


class ReasonScreen(StagePage):
    ABOUT = """\
Stages that learn from rewards (PPO, GRPO). Above: the mean reward with its spread, or another curve (v), and each \
reward by itself. Below: a prompt with its completions, their rewards and advantages; ✓ right, ✗ wrong, … cut at the \
length limit. █ is an advantage above the group's mean, ▒ one below: what has █ becomes likelier. Without [ or ] the \
newest group is shown as training goes on. h watches a held-out problem, from which nothing is learned: its answer at \
each measurement, the newest first; [ ] go to another problem."""
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
            "f",
            "filter(1)",
            "filter",
            tooltip="Groups shown: all, all right, all wrong, mixed, cut, no spread",
        ),
        Binding(
            "z", "no_spread", "no spread", tooltip="Only groups that taught nothing, or all again"
        ),
        Binding(
            "p", "pin", "same problem", tooltip="Only this problem, over all steps; or all again"
        ),
        Binding(
            "h",
            "held_out",
            "held-out",
            tooltip="One held-out problem over the steps, or the groups again",
        ),
        Binding("n", "newest", "newest", tooltip="Follow the newest group again"),
        Binding("0", "go_to(0)", "first", tooltip="The first group of the training"),
        Binding("G", "which_step", "to step", tooltip="The groups of a step: a number, then Enter"),
        Binding(
            "v", "curve", "curve", tooltip="Reward, accuracy, KL, entropy, length, spread, clipping"
        ),
        Binding("y", "scale", "y scale", tooltip="y axis: fit, full, logarithmic"),
        Binding("space", "freeze", "freeze", tooltip="Hold the view still; training goes on"),
        Binding("d", "details", "details", tooltip="The end of the log, messages"),
        Binding("X", "stop", "stop", tooltip="Ask the stage to finish its step, save and stop"),
        Binding("R", "resume", "resume", tooltip="Go on from the newest checkpoint"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.browser: Browser | None = None
        self.held_out: HeldOut | None = None
        self._watching = False  # a held-out problem over the steps, in place of the groups
        self._curve = "reward"
        self._group: Group | None = None
        self._shown: list[Shown] = []

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
        with Horizontal(id="reason-top"):
            yield Curve("no step yet", id="reward-curve", classes="box")
            with Vertical(id="per-reward", classes="box"):
                yield SafeText(id="per-reward-text")
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
        self.browser = None
        self.held_out = None
        if self.folder is not None:
            self.browser = Browser(self.folder.groups, self.history)
            self.held_out = HeldOut(self.folder.groups, self.history)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_history)

    # what is shown

    def show_history(self) -> None:
        if self.folder is not None:
            self.top(*self.status())
        else:
            self.top("rewards")
        with self.history.lock:
            self._show_curve()
            self._show_rewards()
            self._show_told()
        self._show_answers()

    def _show_curve(self) -> None:
        curve = self.query_one("#reward-curve", Curve)
        name = self._curve_shown()
        series = self.history.steps.get(name)
        if series is None or series.span is None:
            why = "no step yet"
            if self.folder is None:
                why = "no rewards"
            curve.show((), (0, 1), why)
            titled(curve, "reward")
            return
        first, last = series.span[0], float(max(self.history.total, series.span[1]))
        columns = series.columns(curve.places, first, last)
        title = f"{SHORT.get(name, name)} {number(series.last)}"
        measured = name
        if name == "reward":
            band = self.history.steps.get("reward_std")
            if band is not None:
                columns = _with_spread(columns, band.columns(curve.places, first, last))
                title += f" ±{number(band.last)}"
            if "score" in self.history.evals:
                measured = "score"  # as PPO calls it
        traces = [Trace(columns)]
        held_out = self.history.evals.get(measured)
        if held_out is not None and len(held_out):
            traces.append(Trace(held_out.columns(curve.places // 2, first, last), "o", "second"))
            title += f"  o held-out {number(held_out.last)}"
        curve.show(traces, (first, max(last, first)))
        titled(curve, title, f"v curve  y: {curve.scale}")

    def _curves_there(self) -> list[str]:
        return [name for name in CURVES if name in self.history.steps]

    def _curve_shown(self) -> str:
        """The curve that was chosen, else the first that is there; empty without any."""
        names = self._curves_there()
        if self._curve in names:
            return self._curve
        if names:
            return names[0]
        return ""

    def _show_rewards(self) -> None:
        box = self.query_one("#per-reward")
        width = max(box.size.width - 2, 20)
        rewards = [name for name in self.history.steps if name.startswith("reward/")]
        watched = [name for name in self._curves_there() if name != CURVES[0]]
        rows = [self._course(name, "bold", width) for name in rewards]
        rows += [self._course(name, "$muted", width) for name in watched]
        title = "what to watch"
        if rewards:
            title = "each reward, and what to watch"
        titled(box, title)
        text = content("nothing yet", "$muted")
        if rows:
            text = lines(rows)
        self.query_one("#per-reward-text", SafeText).show(text)

    def _course(self, name: str, style: str, width: int) -> Content:
        """A figure's name, its newest value and its course."""
        series = self.history.steps[name]
        shown = SHORT.get(name, name.removeprefix("reward/").replace("_", " "))
        course = spark(series.columns(64).mean, max(min(width - 24, 16), 4))
        last = cell(number(series.last), 8, right=True)
        return line((cell(shown, 14), style), last, "  ", (course, "$primary"))

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
        if self._watching:
            self._show_held_out()
        else:
            self._show_group()
        self._show_completion()

    def _show_nothing(self, title: str, why: str) -> None:
        self._shown = []
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

    def _show_held_out(self) -> None:
        rows = self.query_one("#completions", Rows)
        course: list[Group] = []
        at = of = 0
        if self.held_out is not None:
            course, at, of = self.held_out.course()
        passing: list[Group] = []
        if self.browser is not None:
            passing = list(filter(FILTERS[self.browser.filter], course))
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
        width = max(rows.size.width - 1, 30)
        self.query_one("#head", SafeText).show(line((head(names, width, held_out=True), "$muted")))
        newest = not rows.highlighted
        self._shown = []
        options = []
        for group in passing:
            step, answer = f"{group.step:,}", group.answers[0]
            own_title = f"step {step} · held-out problem {at + 1}"
            self._shown.append(Shown(f"step {step}", own_title, group.prompt, answer))
            text = answer_line(step, answer, names, width, held_out=True)
            options.append((f"held {group.step}", text))
        rows.show(options)
        if newest:
            rows.highlighted = 0

    def _why_no_held_out(self, course: list[Group]) -> str:
        if course:
            return NO_SUCH
        if self.folder is None:
            return NO_STAGE
        return NO_HELD

    def _show_group(self) -> None:
        box, rows = self.query_one("#group"), self.query_one("#completions", Rows)
        group, at, of, newest = None, 0, 0, "n newest"
        if self.browser is not None:
            group, at, of = self.browser.current()
            if self.browser.place is None:
                newest = "newest"
        self._group = group
        if group is None:
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
        width = max(rows.size.width - 1, 30)
        self.query_one("#head", SafeText).show(line((head(names, width), "$muted")))
        self._shown = []
        options = []
        for i, answer in enumerate(group.answers):
            name = f"completion {i + 1}"
            title = f"step {group.step:,} · {name}"
            self._shown.append(Shown(name, title, group.prompt, answer))
            options.append((str(i), answer_line(str(i + 1), answer, names, width)))
        rows.show(options)

    def _why_empty(self) -> str:
        if self.folder is None:
            return NO_STAGE
        if self.browser is not None and (self.browser.filter != "all" or self.browser.pinned):
            return NO_SUCH
        return "No group written yet. The first step writes some."

    def _filter_told(self) -> str:
        browser = self.browser
        if browser is None:
            return ""
        if browser.pinned:
            return f"f: {browser.filter}  p: one problem"
        return f"f: {browser.filter}"

    def _show_completion(self) -> None:
        box, text = self.query_one("#completion"), self.query_one("#completion-text", SafeText)
        if not box.display:
            return
        at = self.query_one("#completions", Rows).highlighted
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

    # keys

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._show_completion()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        from ondevice_tui.screens.confirm import Details

        event.stop()
        if event.option_index < len(self._shown):
            shown = self._shown[event.option_index]
            answer = shown.answer
            prompt = line(("prompt  ", "$muted"), cell(shown.prompt, 2000).rstrip())
            parts: list[str | tuple[str, str]] = [("reward  ", "$muted"), number(answer.reward)]
            if not self._watching:
                parts += [("   advantage  ", "$muted"), f"{answer.advantage:+.2f}"]
            parts += [("   parsed  ", "$muted"), cell(answer.parsed or "–", 60).rstrip()]
            rows = [prompt, line(*parts), content(""), marked(answer)]
            if answer.tests:
                rows.insert(2, line(("tests  ", "$muted"), cell(answer.tests, 200).rstrip()))
            self.app.push_screen(Details(shown.title, lines(rows)))

    def action_group(self, by: int) -> None:
        if self._watching and self.held_out is not None:
            self.held_out.problem += by
        elif self.browser is not None and not self.browser.move(by):
            self.ui.say("no such group further back")
        self._show_answers()

    def action_go_to(self, step: int) -> None:
        if self._watching:
            self.action_held_out()
        if self.browser is not None and not self.browser.go_to(step):
            self.ui.say("no such group near that step")
        self._show_answers()

    def action_which_step(self) -> None:
        from ondevice_tui.screens.rate_cards import Ask

        def take(typed: str | None) -> None:
            text = (typed or "").strip().replace(",", "")
            if text.isdecimal():
                self.action_go_to(int(text))
            elif text:
                self.ui.say(f"{text!r} is not a step: a whole number is wanted", bad=True)

        self.app.push_screen(Ask("which step?", ""), take)

    def action_held_out(self) -> None:
        self._watching = not self._watching
        self._show_answers()

    def action_filter(self, by: int) -> None:
        if self.browser is not None:
            names = list(FILTERS)
            self.browser.filter = names[(names.index(self.browser.filter) + by) % len(names)]
            self.browser.place = None
            self._show_answers()

    def action_no_spread(self) -> None:
        if self.browser is not None:
            without = self.browser.filter == "no spread"
            self.browser.filter = "all" if without else "no spread"
            self.browser.place = None
            self._show_answers()

    def action_pin(self) -> None:
        if self.browser is not None:
            pinned = ""
            if not self.browser.pinned and self._group is not None:
                pinned = self._group.prompt
            self.browser.pinned = pinned
            self._show_answers()

    def action_newest(self) -> None:
        rows = self.query_one("#completions", Rows)
        if self._watching and rows.option_count:
            rows.highlighted = 0
        elif self.browser is not None:
            self.browser.place = None
        self._show_answers()

    def action_curve(self) -> None:
        with self.history.lock:
            names = self._curves_there()
        if names:
            following = 0
            if self._curve in names:
                following = names.index(self._curve) + 1
            self._curve = names[following % len(names)]
            self.show_history()

    def action_scale(self) -> None:
        curve = self.query_one("#reward-curve", Curve)
        curve.scale = SCALES[(SCALES.index(curve.scale) + 1) % len(SCALES)]
        self.show_history()


def _with_spread(means: Columns, spread: Columns) -> Columns:
    """The band of a mean and its standard deviation, column by column."""
    if len(spread.mean) != len(means.mean):
        return means
    low = [m - s for m, s in zip(means.mean, spread.mean, strict=True)]
    high = [m + s for m, s in zip(means.mean, spread.mean, strict=True)]
    return Columns(means.x, low, high, means.mean, means.gaps)
