"""Push: what of a run goes to the Hugging Face Hub, looked at before anything is sent, and how far
it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input

from ondevice.common.progress import size
from ondevice_tui import push_process
from ondevice_tui.moved_keys import moved
from ondevice_tui.push_process import EVERY, VOTES, PlanFailed, Push
from ondevice_tui.screens.page import Page
from ondevice_tui.widgets.safe import SafeInput, SafeText, cell, content, line, lines, titled

SETTLE_S = 0.4  # after the last change, before the plan is asked for anew
READ_S = 0.2  # between two looks at a push's log
BAR = 30  # cells

EMPTY = "Nothing to send yet: no stage of this run has left a model. esc goes home."


class PushScreen(Page):
    ABOUT = """\
Sends a stage's model, every stage, or the ratings to the Hugging Face Hub. You see every file before it is sent; the \
repository is private unless you make it public. All files arrive in one commit, whose hashes are compared afterwards.

Logging in is the client's own: `hf auth login` in a terminal, or HF_TOKEN. A push goes on when this app is closed; an \
interrupted one is resumed and does not send again what has arrived."""
    SHORT_ROWS = 2
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "send", "send", tooltip="Send what is listed, after a question"),
        Binding("f2", "name", "name", tooltip="Change the repository: NAME, or OWNER/NAME"),
        Binding("tab", "what", "what", tooltip="The next stage, every stage, or the ratings"),
        Binding("A", "public", "public", tooltip="Private, or for everyone to see"),
        Binding(
            "B",
            "optimizer",
            "optimizer",
            tooltip="The optimizer's state too, so that training can go on from it",
        ),
        Binding("R", "resume", "resume", tooltip="Go on with a push that was interrupted"),
        *moved(n="F2", t="tab", v="A", o="B"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.what, self.public, self.optimizer = "", False, False
        self.plan: dict[str, Any] | None = None
        self.trouble = ""
        self.push: Push | None = None
        self.pushed_run = ""
        self._run: Path | None = None
        self._waiting: Timer | None = None

    def body(self) -> Iterable[Widget]:
        yield SafeInput(placeholder="repository: NAME, or OWNER/NAME", id="push-repo", compact=True)
        yield SafeText(id="push-told")
        with VerticalScroll(id="push-files", classes="box"):
            yield SafeText(id="push-list")
        yield SafeText(id="push-state")

    def on_mount(self) -> None:
        self.query_one("#push-files").focus()
        self.set_interval(READ_S, self._follow)

    def entered(self) -> None:
        self.query_one("#push-files").focus()
        before, run = self._run, self.ui.run_folder
        self.runs_changed()
        if (
            run is not None and run.path == before
        ):  # files may have come while another screen was open
            self._plan_anew()

    def left(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()

    def runs_changed(self) -> None:
        run = self.ui.run_folder
        found = push_process.choices(run)
        if run is not None and run.path != self._run:
            self._run = run.path
            self.what = found[0] if found else ""
            self.query_one("#push-repo", Input).value = push_process.repo_name(run)
            self._plan_anew()
        elif found and self.what not in found:
            self.what = found[0]
            self._plan_anew()
        self._show()

    # the plan

    def _plan_anew(self) -> None:
        """Asks for the plan once nothing changes any more."""
        self.plan, self.trouble = None, ""
        if self._waiting is not None:
            self._waiting.stop()
        if self.what:
            self._waiting = self.set_timer(
                SETTLE_S, lambda: self.run_worker(self._ask(), group="plan", exclusive=True)
            )
        self._show()

    async def _ask(self) -> None:
        values = self._values()
        if values is None:
            return
        try:
            plan = await push_process.ask_plan(values)
        except (PlanFailed, OSError) as problem:
            plan, self.trouble = None, str(problem)
        if values == self._values():
            self.plan = plan
            self._show()

    def _values(self, resume: bool = False) -> dict[str, Any] | None:
        run = self.ui.run_folder
        if run is None or not self.what:
            return None
        repo = self.query_one("#push-repo", Input).value.strip()
        return push_process.settings(
            run, self.what, repo, public=self.public, optimizer=self.optimizer, resume=resume
        )

    # what is shown

    def _show(self) -> None:
        run = self.ui.run_folder
        self.top((run.path.name if run else self.unless_reading("no run"), "bold"), "  push")
        told, files = self.query_one("#push-told", SafeText), self.query_one("#push-list", SafeText)
        box = self.query_one("#push-files")
        if not self.what:
            told.show("")
            titled(box, "files")
            files.show(content(self.unless_reading(EMPTY), "$muted"))
            self._show_state()
            return
        if self.public:
            seen = ("PUBLIC: everyone can see it", "bold $warning")
        else:
            seen = ("private", "bold $success")
        if self.optimizer and self.what not in (EVERY, VOTES):
            also = "  with the optimizer's state"
        else:
            also = ""
        where = f" → {self.plan['repo']}" if self.plan and self.plan.get("repo") else ""
        told.show(
            lines(
                [
                    line((f" {self.what}", "bold"), where, "  ", seen, (also, "$muted")),
                    self._login(),
                ]
            )
        )
        titled(box, "files", self._sum())
        files.show(self._files(max(box.size.width - 4, 20)))
        self._show_state()

    def _login(self) -> Content:
        if self.plan is None:
            return content(" ")
        login = self.plan.get("login") or {}
        if login.get("name"):
            return line((f" logged in as {login['name']}", "$muted"))
        return line(
            (
                f" ✗ {login.get('text') or 'nobody is logged in: `hf auth login` in a terminal'}",
                "$warning",
            )
        )

    def _sum(self) -> str:
        if self.plan:
            return f"{len(self.plan['files'])} files, {size(self.plan['bytes'])}"
        return ""

    def _files(self, width: int) -> Content:
        if self.trouble:
            return content(f"✗ {self.trouble}", "$error")
        if self.plan is None:
            return content("looking at the files …", "$muted")
        return lines(
            [
                line(
                    (cell(size(file["bytes"]), 9, right=True), "$muted"),
                    "  ",
                    cell(str(file["path"]), max(width - 11, 8)).rstrip(),
                )
                for file in self.plan["files"]
            ]
        )

    def _show_state(self) -> None:
        state = self.query_one("#push-state", SafeText)
        push = self.push
        if push is None:
            waits = self._run is not None and (self._run / push_process.PENDING).is_file()
            state.show(
                content(
                    " An interrupted push stands here: R goes on with it."
                    if waits
                    else " g sends what is listed",
                    "$muted",
                )
            )
            return
        if push.code is None:
            full = int(BAR * push.sent / push.of) if push.of else 0
            state.show(
                line(
                    (f" {'█' * full}{'░' * (BAR - full)} ", "$primary"),
                    f"{size(push.sent)} of {size(push.of)}  ",
                    (push.stage, "$muted"),
                )
            )
        elif push.code == 0 and push.url:
            state.show(
                lines(
                    [
                        line((" ✓ ", "bold $success"), (push.url, "bold")),
                        line(
                            (
                                f"   commit {push.commit[:12]}, {'private' if push.private else 'public'}",
                                "$muted",
                            )
                        ),
                    ]
                )
            )
        else:
            said = push.said or [f"it ended with code {push.code}"]
            state.show(
                lines([line((" ✗ ", "bold $error"), (text, "$error")) for text in said[-2:]])
            )

    # the push

    def _follow(self) -> None:
        push = self.push
        if push is None or push.code is not None or not push.read():
            return
        if push.code is not None:
            good = push.code == 0 and push.url
            self.ui.say(
                f"pushed: {push.url}" if good else f"{self.pushed_run}: the push did not arrive",
                bad=not good,
            )
        if self.composed:
            self._show_state()

    @property
    def busy(self) -> bool:
        return self.push is not None and self.push.code is None

    def _begin(self, values: dict[str, Any]) -> None:
        run = self.ui.run_folder
        if run is None or self.busy:
            return
        try:
            self.push = push_process.begin(run, values)
        except OSError as problem:
            self.ui.say(f"could not start: {problem}", bad=True)
            return
        self.pushed_run = run.path.name
        self._show_state()

    # keys

    def on_input_changed(self, event: Input.Changed) -> None:
        if self._run is not None:
            self._plan_anew()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one("#push-files").focus()

    def action_name(self) -> None:
        self.query_one("#push-repo").focus()

    def action_what(self) -> None:
        if self.focused is self.query_one("#push-repo"):  # tab leaves a field, here too
            self.query_one("#push-files").focus()
            return
        found = push_process.choices(self.ui.run_folder)
        if found:
            self.what = (
                found[(found.index(self.what) + 1) % len(found)] if self.what in found else found[0]
            )
            self._plan_anew()

    def action_public(self) -> None:
        self.public = not self.public
        self._plan_anew()

    def action_optimizer(self) -> None:
        self.optimizer = not self.optimizer
        self._plan_anew()

    def action_send(self) -> None:
        from ondevice_tui.screens.confirm import ask

        values, plan = self._values(), self.plan
        if self.busy:
            self.ui.say("a push is under way")
        elif values is None or plan is None:
            self.ui.say(
                self.trouble or "the files are still being looked at", bad=bool(self.trouble)
            )
        elif not (plan.get("login") or {}).get("name"):
            self.ui.say(str((plan.get("login") or {}).get("text")), bad=True)
        else:
            who = "everyone can see it" if self.public else "private"
            ask(
                self.ui,
                "push",
                f"Send {self._sum()} to {plan['repo']} ({who})?",
                "send it",
                lambda: self._begin(values),
            )

    def action_resume(self) -> None:
        run, values = self.ui.run_folder, self._values(resume=True)
        if run is None or values is None or not (run.path / push_process.PENDING).is_file():
            self.ui.say("no push was interrupted here")
        else:
            self._begin(values)
