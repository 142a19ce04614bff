"""The card that says where further pairs come from: one checkpoint at two temperatures, two
checkpoints, or a file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Select

from ondevice.common.errors import UserError
from ondevice.config.ratings import RatingsConfig
from ondevice.inference.pair_sampling import Plan, Writer
from ondevice.preferences.sqlite_store import FILE
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeInput, SafeText, cell, content, titled
from ondevice_tui.worker_client import models_in

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

SAME = ""
KEPT, SAMPLING = (
    "pair_sampling",
    ("temperatures", "answers", "longest"),
)  # from one time to the next
N = TypeVar("N", int, float)
Found = Plan | Literal["stop", "imported"] | None
_HELP = {
    "first": "Who writes the answers.",
    "second": "Another checkpoint, or the same one at another temperature.",
    "temperatures": "Of the first and of the second: higher is more varied.",
    "answers": "To each prompt, 2 to 4; the two write in turn.",
    "longest": "Tokens of an answer.",
    "prompts": "A file (JSONL, CSV, text …), builtin, or empty: what this run's ratings ask already.",
    "file": "Instead of all that: pairs from a file ({prompt, a, b}, or chosen and rejected).",
}


class MorePairs(Card[Found]):
    """Comes back with a plan to sample by, "stop" or "imported"; None where it was left."""

    AUTO_FOCUS = "#more-temperatures"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close", key_display="esc"),
        Binding("ctrl+g", "go", "begin", priority=True),
        Binding("ctrl+x", "stop", "stop", priority=True),
    ]

    def __init__(self, ui: OndeviceApp, plan: Plan | None) -> None:
        super().__init__()
        self._ui, self._plan = ui, plan
        here = ""
        if ui.chosen is not None:
            here = ui.chosen.name
        known = models_in(ui.runs or ())
        self._models = sorted(known, key=lambda model: not model[0].startswith(f"{here} ·"))

    def _texts(self) -> dict[str, str]:
        """What the fields hold at first: the plan that is there, or what is usual."""
        plan = self._plan
        if plan is not None:
            temperatures = [f"{writer.temperature:g}" for writer in plan.writers]
            return {
                "temperatures": ", ".join(temperatures),
                "answers": str(plan.responses),
                "longest": str(plan.max_new_tokens),
                "prompts": plan.data,
                "file": "",
            }
        prompts = "builtin"
        if self._ui.chosen is not None and (self._ui.chosen / FILE).is_file():
            prompts = ""
        usual = {"temperatures": "0.7, 1.1", "answers": "2", "longest": "64"}
        before = self._ui.remembered.get(KEPT, is_pair_sampling) or {}
        return {**usual, **before, "prompts": prompts, "file": ""}

    def compose(self) -> ComposeResult:
        writers: tuple[Writer, ...] = ()
        if self._plan is not None:
            writers = self._plan.writers
        with VerticalScroll(id="card") as card:
            card.can_focus = False
            titled(card, "further pairs", "Enter begins   ctrl+x no more   esc leaves")
            if self._models:
                yield from self._row(
                    "first",
                    Select(
                        self._named(),
                        value=self._folder(writers, 0),
                        allow_blank=False,
                        compact=True,
                        id="more-first",
                    ),
                )
                yield from self._row(
                    "second",
                    Select(
                        [(content("the same"), SAME), *self._named()],
                        value=self._folder(writers, 1),
                        allow_blank=False,
                        compact=True,
                        id="more-second",
                    ),
                )
            else:
                yield SafeText(
                    "No finished model of any run here yet: pairs can come from a file.", "$warning"
                )
            for name, text in self._texts().items():
                yield from self._row(name, SafeInput(text, compact=True, id=f"more-{name}"))
            yield SafeText(id="more-verdict")

    def _named(self) -> list[tuple[Content, str]]:
        """(name to show, folder) of every model."""
        return [(content(cell(name, 40).rstrip()), path) for name, path in self._models]

    def _row(self, name: str, control: Input | Select[str]) -> ComposeResult:
        with Horizontal(classes="field-row"):
            yield SafeText(name, classes="field-name -narrow-name")
            yield control
        yield SafeText(_HELP[name], "$muted", classes="field-help")

    def _folder(self, writers: tuple[Writer, ...], at: int) -> str:
        """What a list of models shows at first: what the plan has, else the newest of this run,
        then the same.
        """
        folders = [path for _, path in self._models]
        if at < len(writers) and writers[at].folder in folders:
            if at and writers[at].folder == writers[0].folder:
                return SAME
            return writers[at].folder
        if at:
            return SAME
        return folders[0]

    def on_input_submitted(self) -> None:
        self.action_go()

    def action_stop(self) -> None:
        self.dismiss("stop")

    def action_go(self) -> None:
        file = self._text("file")
        if file:
            self.run_worker(self._import(file), group="import")
            return
        try:
            plan = self._plan_asked()
        except UserError as problem:
            self._say_wrong(problem, problem.where)
            return
        self._ui.keep(KEPT, {name: self._text(name) for name in SAMPLING})
        self.dismiss(plan)

    async def _import(self, file: str) -> None:
        """`ondevice ratings import`, in a thread."""
        from ondevice.preferences.import_export import import_file

        self._say("reading …")
        cfg = RatingsConfig(action="import", ratings=str(self._ui.chosen), file=file)
        try:
            counts = await asyncio.to_thread(import_file, cfg)
        except UserError as problem:
            self._say_wrong(problem, "file")
            return
        parts = [f"{counts['items']} pairs came in, {counts['votes']} votes"]
        if counts["bad_rows"]:
            parts.append(f"{counts['bad_rows']} bad rows (first: {counts['first_bad_row']})")
        if "not_used" in counts:
            parts.append(f"not used: {counts['not_used']}")
        if counts["already_there"]:
            parts.append(f"{counts['already_there']} were there already")
        self._ui.say("; ".join(parts))
        self.dismiss("imported")

    def _plan_asked(self) -> Plan:
        """What the fields say. Raises UserError naming the field at fault."""
        if not self._models:
            raise UserError(
                "there is no model to write answers", where="file", hint="name a file of pairs"
            )
        first = str(self.query_one("#more-first", Select).value)
        second = str(self.query_one("#more-second", Select).value) or first
        temperatures = []
        for text in self._text("temperatures").split(","):
            if text.strip():
                temperatures.append(_number(text, "temperatures", float))
        temperatures = temperatures or [0.8]
        answers = _number(self._text("answers"), "answers", int)
        longest = _number(self._text("longest"), "longest", int)
        in_range = all(0 < temperature <= 10 for temperature in temperatures)
        if not in_range or len(temperatures) > 2:
            raise UserError("one or two numbers from 0 to 10, by a comma", where="temperatures")
        if not 2 <= answers <= 4:
            raise UserError("2 to 4", where="answers")
        if longest < 1:
            raise UserError("1 or more", where="longest")
        names = {path: name.replace(" · ", "-") for name, path in self._models}
        writers = []
        for folder, temperature in zip((first, second), (temperatures * 2)[:2], strict=True):
            name = names[folder]
            if first == second:
                name += f"@{temperature:g}"
            writers.append(Writer(name, folder, temperature))
        return Plan(tuple(dict.fromkeys(writers)), answers, self._text("prompts"), longest)

    def _text(self, name: str) -> str:
        return self.query_one(f"#more-{name}", Input).value.strip()

    def _say_wrong(self, problem: UserError, field: str) -> None:
        """What is wrong, with the cursor in the field at fault."""
        self._say(f"✗ {problem}")
        self.query_one(f"#more-{field}").focus()
        self.call_after_refresh(self.query_one("#more-verdict").scroll_visible, animate=False)

    def _say(self, text: str) -> None:
        self.query_one("#more-verdict", SafeText).show(text, "$error")


def is_pair_sampling(value: Any) -> bool:
    """Whether a value is what this card has remembered."""
    if not isinstance(value, dict) or set(value) != set(SAMPLING):
        return False
    return all(isinstance(text, str) and len(text) < 40 for text in value.values())


def _number(text: str, where: str, kind: type[N]) -> N:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{text.strip()!r} is not a number", where=where) from None
