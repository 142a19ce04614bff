"""The card with the settings of a chat's answers, and which settings are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input

from ondevice.common.errors import UserError
from ondevice.config.load import from_mapping
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.config.use import SamplingConfig
from ondevice_tui.fields import fields_of, settings
from ondevice_tui.screens.chat_pane import KWARGS
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeInput, SafeText, line, titled
from ondevice_tui.worker_client import sampling_defaults


class Settings(Card[dict[str, Any] | None]):
    """The fields of `SamplingConfig`, with its help and its checks."""

    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close", key_display="esc")
    ]

    def __init__(self, values: dict[str, Any], models: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._values = values
        # of those that have been loaded, what they said
        self._models = [ready for ready in models if ready]
        self._specs = [spec for spec in fields_of(SamplingConfig) if spec.name in values]
        self._helps = {spec.name: spec.help for spec in self._specs}
        self._helps[KWARGS] = f"{self._of_templates()} {self._helps[KWARGS]}"

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card") as card:
            titled(card, "how answers are drawn", "Enter takes them   esc leaves")
            for spec in self._specs:
                with Horizontal(classes="field-row"):
                    yield SafeText(spec.name, classes="field-name")
                    yield SafeInput(
                        spec.text(self._values[spec.name]), compact=True, id=f"set-{spec.name}"
                    )
                yield SafeText(
                    self._helps[spec.name], "$muted", classes="field-help", id=f"help-{spec.name}"
                )
            yield SafeText(id="settings-verdict")

    def _say_wrong(self, problem: UserError) -> None:
        """Under the field at fault, which gets the cursor; under all of them where it is not one of
        these.
        """
        for name, told in self._helps.items():
            shown = line((told, "$muted"))
            if name == problem.where:
                shown = line((f"✗ {problem}  ", "$error"), (told, "$muted"))
            self.query_one(f"#help-{name}", SafeText).show(shown)
        verdict = self.query_one("#settings-verdict", SafeText)
        seen = verdict
        if problem.where in self._helps:
            verdict.show("")
            self.query_one(f"#set-{problem.where}").focus()
            seen = self.query_one(f"#help-{problem.where}", SafeText)
        else:
            verdict.show(f"✗ {problem}", "$error")
        # once its lines have their place
        self.call_after_refresh(seen.scroll_visible, animate=False)

    def _of_templates(self) -> str:
        """What the models' chat templates were told in training, and what they may be told."""
        if not self._models:
            return "What this model's template reads is known once the model has been loaded."
        told = []
        for ready in self._models:
            given = "nothing"
            if ready.get("template_kwargs"):
                given = json.dumps(ready["template_kwargs"])
            reads = ", ".join(map(str, ready.get("template_reads") or [])) or "nothing"
            told.append(f"in training: {given}; it reads: {reads}.")
        return f"The template was told {' The second one was told '.join(told)}"

    def _check_kwargs(self, setting: str) -> None:
        """Raises UserError where no model that is loaded reads one of these names."""
        names = parse_template_kwargs(setting)
        if not self._models:
            return
        known: set[str] = set()
        for ready in self._models:
            known.update(ready.get("template_reads") or [])
        for name in names:
            if name not in known:
                raise UserError(
                    f"the chat template does not read {name!r}",
                    where=KWARGS,
                    hint=f"it reads: {', '.join(sorted(known)) or 'nothing'}",
                )

    def on_input_submitted(self) -> None:
        texts: dict[str, str | bool] = {}
        for spec in self._specs:
            texts[spec.name] = self.query_one(f"#set-{spec.name}", Input).value
        try:
            made = from_mapping(SamplingConfig, {**settings(self._specs, texts), "model": "-"})
            self._check_kwargs(made.chat_template_kwargs)
        except UserError as problem:
            self._say_wrong(problem)
            return
        self.dismiss({spec.name: getattr(made, spec.name) for spec in self._specs})


def is_sampling(values: Any) -> bool:
    """Whether these are settings of answers, whole and within their bounds."""
    if not isinstance(values, Mapping):
        return False
    names = {*values, KWARGS}  # an older app kept nothing of a template
    if names != set(sampling_defaults()):
        return False
    try:
        from_mapping(SamplingConfig, {**values, "model": "-"})
    except UserError:
        return False
    return True
