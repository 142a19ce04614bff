"""Reasoning rewards: how reward and accuracy go, and the groups of completions that they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList

from ondevice.common.progress import number
from ondevice_tui.rollout_groups import FILTERS, Answer, Browser, Group, HeldOut, warnings
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
BAR = 6  # cells of an advantage

NO_STAGE = (
    "No stage with rewards in this run yet: grpo or ppo write them. esc goes home, s starts one."
)

NO_SUCH = "No such group in the last steps. f: another filter, p: every problem."
NO_HELD = "No held-out problem measured yet: eval_every says when. h: the groups."


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
        self._shown: list[
            tuple[str, str, str, Answer]
        ] = []  # (name on its card, title of its own, prompt, answer)

    def wanted(self) -> str:
        """The stage that was asked for where it has rewards, else the newest that has some."""
        state = self.ui.run_state
        stages = list(reversed(state["stages"])) if state else []
        with_rewards = [
            s["stage"] for s in stages if s["stage"] in ("grpo", "ppo") or "reward" in s["numbers"]
        ]
        if self.ui.stage in with_rewards:
            return self.ui.stage
        return (with_rewards or [""])[0]

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
        file = self.folder.groups if self.folder is not None else None
        self.browser = Browser(file, self.history) if file is not None else None
        self.held_out = HeldOut(file, self.history) if file is not None else None

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_history)

    # what is shown

    def show_history(self) -> None:
        self.top(*(self.status() if self.folder is not None else ["rewards"]))
        with self.history.lock:
            self._show_curve()
            self._show_rewards()
            self._show_told()
        self._show_answers()

    def _show_curve(self) -> None:
        curve = self.query_one("#reward-curve", Curve)
        names = [name for name in CURVES if name in self.history.steps]
        name = self._curve if self._curve in names else (names or [""])[0]
        series = self.history.steps.get(name)
        if series is None or series.span is None:
            curve.show((), (0, 1), "no step yet" if self.folder is not None else "no rewards")
            titled(curve, "reward")
            return
        first, last = series.span[0], float(max(self.history.total, series.span[1]))
        columns = series.columns(curve.places, first, last)
        band = self.history.steps.get("reward_std") if name == "reward" else None
        if band is not None:
            columns = _with_spread(columns, band.columns(curve.places, first, last))
        traces = [Trace(columns)]
        # as PPO calls it
        measured = "score" if name == "reward" and "score" in self.history.evals else name
        held = self.history.evals.get(measured)
        title = f"{SHORT.get(name, name)} {number(series.last)}"
        if band is not None:
            title += f" ±{number(band.last)}"
        if held is not None and len(held):
            traces.append(Trace(held.columns(curve.places // 2, first, last), "o", "second"))
            title += f"  o held-out {number(held.last)}"
        curve.show(traces, (first, max(last, first)))
        titled(curve, title, f"v curve  y: {curve.scale}")

    def _show_rewards(self) -> None:
        box = self.query_one("#per-reward")
        width = max(box.size.width - 2, 20)
        names = [name for name in self.history.steps if name.startswith("reward/")]
        rows = []
        for name in [*names, *(n for n in CURVES[1:] if n in self.history.steps)]:
            series = self.history.steps[name]
            course = spark(series.columns(64).mean, max(min(width - 24, 16), 4))
            shown = SHORT.get(name, name.removeprefix("reward/").replace("_", " "))
            rows.append(
                line(
                    (cell(shown, 14), "bold" if name in names else "$muted"),
                    cell(number(series.last), 8, right=True),
                    "  ",
                    (course, "$primary"),
                )
            )
        titled(box, "each reward, and what to watch" if names else "what to watch")
        self.query_one("#per-reward-text", SafeText).show(
            lines(rows) if rows else content("nothing yet", "$muted")
        )

    def _show_told(self) -> None:
        told = warnings(self.history)
        ended = self.ended_line()
        rows = [ended] if ended is not None else []
        rows += [line((" ! ", "bold $warning"), ("; ".join(told), "$warning"))] if told else []
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
        truth = (
            ("   truth ", "$muted"),
            (cell(group.answer, 24).rstrip(), "bold $success") if group.answer else "",
        )
        self.query_one("#prompt", SafeText).show(
            line((cell(group.prompt, 200).rstrip(), "bold"), *truth)
        )

    def _show_held_out(self) -> None:
        rows = self.query_one("#completions", Rows)
        course, at, of = self.held_out.course() if self.held_out is not None else ([], 0, 0)
        passing = [
            group
            for group in course
            if self.browser is not None and FILTERS[self.browser.filter](group)
        ]
        if not passing:
            self._show_nothing(
                "held-out problems",
                NO_SUCH if course else NO_STAGE if self.folder is None else NO_HELD,
            )
            return
        right = sum(group.right for group in course)
        if course[0].answers[0].right is not None:
            told = f" · right at {right} of {len(course)} measurements"
        else:
            told = ""
        titled(
            self.query_one("#group"),
            f"held-out problem {at + 1} of {of}{told}",
            f"h training  [ ] problem  {self._filter_told()}",
        )
        self._show_prompt(passing[0])
        names = list(dict.fromkeys(name for group in passing for name in group.answers[0].rewards))
        width = max(rows.size.width - 1, 30)
        self.query_one("#head", SafeText).show(line((head(names, width, held_out=True), "$muted")))
        newest = not rows.highlighted
        self._shown = [
            (
                step := f"step {group.step:,}",
                f"{step} · held-out problem {at + 1}",
                group.prompt,
                group.answers[0],
            )
            for group in passing
        ]
        rows.show(
            [
                (
                    f"held {group.step}",
                    answer_line(f"{group.step:,}", group.answers[0], names, width, held_out=True),
                )
                for group in passing
            ]
        )
        if newest:
            rows.highlighted = 0

    def _show_group(self) -> None:
        box, rows = self.query_one("#group"), self.query_one("#completions", Rows)
        group, at, of = self.browser.current() if self.browser is not None else (None, 0, 0)
        self._group = group
        if group is None:
            self._show_nothing("groups", self._why_empty())
            return
        following = self.browser is not None and self.browser.place is None
        known = any(answer.right is not None for answer in group.answers)
        if known:
            told = f"{group.right} of {len(group.answers)} right"
        else:
            told = f"completions {len(group.answers)}"
        titled(
            box,
            f"step {group.step:,} · group {at + 1} of {of} · {told} · spread {number(group.spread)}",
            f"{'newest' if following else 'n newest'}  {self._filter_told()}",
        )
        self._show_prompt(group)
        names = list(dict.fromkeys(name for a in group.answers for name in a.rewards))
        width = max(rows.size.width - 1, 30)
        self.query_one("#head", SafeText).show(line((head(names, width), "$muted")))
        self._shown = [
            (name := f"completion {i + 1}", f"step {group.step:,} · {name}", group.prompt, answer)
            for i, answer in enumerate(group.answers)
        ]
        rows.show(
            [
                (str(i), answer_line(str(i + 1), a, names, width))
                for i, a in enumerate(group.answers)
            ]
        )

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
        return f"f: {browser.filter}" + ("  p: one problem" if browser.pinned else "")

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
        name, _, _, answer = self._shown[at]
        titled(box, f"{name} · {answer.tokens} tokens")
        text.show(marked(answer))

    # keys

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._show_completion()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        from ondevice_tui.screens.confirm import Details

        event.stop()
        if event.option_index < len(self._shown):
            _, title, prompt, answer = self._shown[event.option_index]
            told = line(("prompt  ", "$muted"), cell(prompt, 2000).rstrip())
            marks = line(
                ("reward  ", "$muted"),
                number(answer.reward),
                *(
                    []
                    if self._watching
                    else [("   advantage  ", "$muted"), f"{answer.advantage:+.2f}"]
                ),
                ("   parsed  ", "$muted"),
                cell(answer.parsed or "–", 60).rstrip(),
            )
            self.app.push_screen(Details(title, lines([told, marks, content(""), marked(answer)])))

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
                self.ui.say(f"{text!r} is no step: a whole number is wanted", bad=True)

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
            self.browser.filter = "all" if self.browser.filter == "no spread" else "no spread"
            self.browser.place = None
            self._show_answers()

    def action_pin(self) -> None:
        if self.browser is not None:
            self.browser.pinned = (
                "" if self.browser.pinned or self._group is None else self._group.prompt
            )
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
            names = [name for name in CURVES if name in self.history.steps]
        if names:
            at = names.index(self._curve) if self._curve in names else -1
            self._curve = names[(at + 1) % len(names)]
            self.show_history()

    def action_scale(self) -> None:
        curve = self.query_one("#reward-curve", Curve)
        curve.scale = SCALES[(SCALES.index(curve.scale) + 1) % len(SCALES)]
        self.show_history()


def head(names: list[str], width: int, *, held_out: bool = False) -> str:
    """The columns' names above the completions."""
    rewards = "".join(f" {cell(name, 8, right=True)}" for name in _fit(names, width))
    return (
        "  step    reward" if held_out else f"  #    reward  advantage{'':{BAR - 4}}"
    ) + f"{rewards}  answer"


def answer_line(
    label: str, answer: Answer, names: list[str], width: int, *, held_out: bool = False
) -> Content:
    """`1 ✓  1.200  +1.63 ██████  1.00  0.20  43   the first words`, in `width` cells; a held-out
    answer has no advantage."""
    mark, style = {
        True: ("✓", "bold $success"),
        False: ("✗", "bold $error"),
        None: ("·", "$muted"),
    }[answer.right]
    advantage = ("",) if held_out else ("  ", f"{answer.advantage:+6.2f} ", bar(answer.advantage))
    made = line(
        f"{label:>{6 if held_out else 3}} ",
        (mark, style),
        "…" if answer.truncated else " ",
        cell(number(answer.reward), 7, right=True),
        *advantage,
        *(f" {cell(number(answer.rewards.get(n)), 8, right=True)}" for n in _fit(names, width)),
        "  ",
        (cell(answer.parsed if answer.parsed is not None else "–", 8), "bold"),
        " ",
    )
    return line(made, (cell(answer.text, max(width - made.cell_length, 0)), "$muted"))


def bar(advantage: float) -> Content:
    """An advantage as a bar of BAR cells; the glyph tells the sign, not the colour alone. Two
    deviations fill it.
    """
    full = min(round(abs(advantage) / 2 * BAR), BAR)
    glyph, style = ("█", "$success") if advantage > 0 else ("▒", "$warning")
    return line((glyph * full, style), " " * (BAR - full))


def marked(answer: Answer) -> Content:
    """A completion with the answer that was read from it made visible."""
    if answer.span is None:
        return content(answer.text)
    start, end = answer.span
    style = {True: "bold reverse $success", False: "bold reverse $error", None: "bold reverse"}[
        answer.right
    ]
    return Content("").join(
        [
            content(answer.text[:start]),
            content(answer.text[start:end], style),
            content(answer.text[end:]),
        ]
    )


def _fit(names: list[str], width: int) -> list[str]:
    """As many rewards as leave room for some of the answer."""
    return names[: max((width - 46) // 9, 0)]


def _with_spread(means: Columns, spread: Columns) -> Columns:
    """The band of a mean and its standard deviation, column by column."""
    if len(spread.mean) != len(means.mean):
        return means
    low = [m - s for m, s in zip(means.mean, spread.mean, strict=True)]
    high = [m + s for m, s in zip(means.mean, spread.mean, strict=True)]
    return Columns(means.x, low, high, means.mean, means.gaps)
