"""Chat: talk with any stage's model, or with two side by side."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input

from ondevice.common.errors import UserError
from ondevice.common.progress import number
from ondevice.config.load import from_mapping
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.config.use import SamplingConfig
from ondevice.inference.conversations import Conversation, load, new_file, save, saved
from ondevice.preferences.votes import Response
from ondevice_tui.fields import fields_of, settings
from ondevice_tui.screens.choose_chat import ChooseChat
from ondevice_tui.screens.choose_model import ChooseModel
from ondevice_tui.screens.keep_pair import Keep, Kept
from ondevice_tui.screens.page import Card, Page
from ondevice_tui.widgets.safe import SafeArea, SafeInput, SafeText, content, line, lines, titled
from ondevice_tui.worker_client import (
    ModelProcess,
    Refused,
    WorkerGone,
    memory_warning,
    models_in,
    sampling_defaults,
)

SHOW_EVERY_S = 0.1  # between two repaints of an answer that is being written
ANOTHER = 1000  # draws of answers to compare with are numbered from here
KWARGS = "chat_template_kwargs"
SHOWN_TURNS = 60  # older ones stay in the conversation, but off the screen

NO_MODEL = "No model yet. esc goes home; n begins a run, and every finished stage can be talked to."


class Pane(Vertical):
    """One model's side of the conversation."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, classes="box")
        self.process: ModelProcess | None = None
        self.model: tuple[str, str] | None = None  # (run · stage, folder)
        self.turns: list[dict[str, str]] = []
        self.speakers: list[
            str
        ] = []  # who said each turn: a model that takes another's place goes on with its turns
        self.writing = ""
        self.told = ""
        self.pace = ""
        # chat_template_kwargs, as a person has set it: JSON, empty where nobody has
        self.setting = ""
        # that this conversation is kept in, once somebody has saved it
        self.file: Path | None = None
        self.saved = 0  # turns in it
        self.ready: dict[
            str, Any
        ] = {}  # what the model's process said of it, once it has been loaded

    def compose(self) -> ComposeResult:
        with VerticalScroll() as scroll:
            scroll.can_focus = False
            yield SafeText(classes="turns")

    @property
    def name_shown(self) -> str:
        if self.model:
            return self.model[0]
        return "no model"

    @property
    def reads(self) -> list[str]:
        """What the chat template may be told, once that is known."""
        return [str(name) for name in self.ready.get("template_reads") or []]

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the chat template is told: what a person has set, else what it was told in training."""
        if self.setting:
            given = parse_template_kwargs(self.setting)
            return {
                name: value for name, value in given.items() if not self.ready or name in self.reads
            }
        trained = self.ready.get("template_kwargs")
        if isinstance(trained, dict):
            return trained
        return {}

    def add(self, role: str, text: str) -> None:
        self.turns.append({"role": role, "content": text})
        self.speakers.append(self.name_shown)

    def begin(
        self,
        turns: Sequence[dict[str, str]] = (),
        speakers: Sequence[str] = (),
        file: Path | None = None,
    ) -> None:
        """Another conversation, or none."""
        self.turns, self.speakers, self.file, self.saved = (
            list(turns),
            list(speakers),
            file,
            len(turns),
        )
        self.told, self.pace = "", ""

    def take_back(self) -> None:
        """The last turn: no answer came to it."""
        self.turns.pop()
        self.speakers.pop()

    def show(self) -> None:
        who = _stage_of(self.name_shown)
        rows = []
        for turn, by in list(zip(self.turns, self.speakers, strict=True))[-SHOWN_TURNS:]:
            who_said = {"user": "you", "system": "system"}.get(turn["role"], _stage_of(by))
            rows += [
                content(
                    who_said, "bold $primary" if turn["role"] == "assistant" else "bold $muted"
                ),
                content(turn["content"].strip() or "(nothing)"),
                content(""),
            ]
        if self.writing:
            rows += [content(who, "bold $primary"), content(self.writing + "▌")]
        if self.told:
            rows.append(content(self.told, "$muted"))
        self.query_one(SafeText).show(
            lines(rows)
            if rows
            else content(
                "Write below, Enter sends. The first answer waits for the model to load.", "$muted"
            )
        )
        told = [f"{name} {json.dumps(value)}" for name, value in self.kwargs.items()]
        titled(self, " · ".join([self.name_shown, *told]), self.pace)
        self.query_one(VerticalScroll).scroll_end(animate=False)

    async def let_go(self) -> None:
        """Closes the model's process; the conversation stays."""
        process, self.process = self.process, None
        if process is not None:
            await process.close()


class ChatScreen(Page):
    ABOUT = """\
A conversation with a stage's model. The model is loaded into a process of its own at the first message and let go \
when you leave this screen. A model before sft has no chat format: it continues your text instead of answering it.

It begins with the model of the run and stage that you come from. Another model goes on with the conversation that \
stands there; ctrl+n begins anew. With a second model beside it, both get the same messages and the same draws.

A chat template is told what it was told when the model was trained (a switch for thinking, for example): the box \
shows it beside the model's name, and ctrl+e changes it.

ctrl+s saves the conversation into the run's folder chats/, with the model's name and the settings, as a row that sft \
reads; saved again, it goes on in the same file. ctrl+l takes up a saved one.

ctrl+g keeps a good or bad answer as a preference pair in the run's ratings: the model writes another one (or the \
second model's is taken), and you say which is better."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+t",
            "model(0)",
            "model",
            tooltip="Choose the model; it goes on with the conversation",
        ),
        Binding(
            "ctrl+o",
            "second",
            "second",
            tooltip="A second model beside it: it takes the talk up; or none",
        ),
        Binding(
            "ctrl+e",
            "settings",
            "settings",
            priority=True,
            tooltip="Temperature, top-p, length, seed, what the chat template is told",
        ),
        Binding("ctrl+n", "anew", "anew", tooltip="Begin the conversation anew"),
        Binding(
            "ctrl+s",
            "save",
            "save",
            priority=True,
            tooltip="Save the conversation as a row that sft reads",
        ),
        Binding(
            "ctrl+l",
            "load",
            "load",
            priority=True,
            tooltip="Go on with a saved conversation of this run",
        ),
        Binding(
            "ctrl+x", "stop", "stop", priority=True, tooltip="Stop the answer that is being written"
        ),
        Binding(
            "ctrl+g",
            "keep",
            "keep",
            tooltip="Keep the answer as a preference pair: better or worse than another",
        ),
        Binding(
            "pageup",
            "scroll(-1)",
            "scroll",
            key_display="pgup pgdn",
            priority=True,
            tooltip="Scroll the conversation",
        ),
        Binding("pagedown", "scroll(1)", "newer", show=False, priority=True),
        Binding(
            "ctrl+q", "app.leave", "quit", priority=True, tooltip="Close this app; training goes on"
        ),
    ]

    TYPES = True

    def __init__(self) -> None:
        super().__init__()
        self.sampling = sampling_defaults()
        self.busy = False
        # (run, stage) that the first model was taken for
        self._of: tuple[Path | None, tuple[str, int]] | None = None
        self.all_panes = [Pane("pane-a"), Pane("pane-b")]

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="panes"):
            yield from self.all_panes
        yield SafeArea(placeholder="say something: Enter sends, ctrl+j begins a line", id="say")

    def on_mount(self) -> None:
        self.all_panes[1].display = False
        self.sampling |= self.ui.remembered.get("sampling", _samples) or {}
        self.query_one("#say").focus()

    @property
    def panes(self) -> list[Pane]:
        return [pane for pane in self.all_panes if pane.display]

    def entered(self) -> None:
        self.runs_changed()
        self.query_one("#say").focus()

    def left(self) -> None:
        self.run_worker(self._let_go(), group="closing")

    async def _let_go(self) -> None:
        for pane in self.all_panes:
            if pane.process is not None:
                pane.process.cancel()
            await pane.let_go()

    def runs_changed(self) -> None:
        first, of = self.all_panes[0], (self.ui.chosen, self.ui.talk_with)
        if first.model is None or (of != self._of and not self.busy):
            self._follow(of)
        self._show_top()

    def _follow(self, of: tuple[Path | None, tuple[str, int]]) -> None:
        """The model of the run and stage that a person comes from; the run's newest where that
        stage has none.
        """
        first, (chosen, (stage, _)) = self.all_panes[0], of
        known = models_in(self.ui.runs or ())
        here = [m for m in known if chosen is not None and Path(m[1]).parent.parent == chosen]
        asked = [m for m in here if Path(m[1]).parent.name == stage]
        model = next(iter(asked or here or known), None)
        self._of = of if known else None
        if model is None:
            first.told = "" if self.ui.runs is None else NO_MODEL
            first.show()
        elif model != first.model:
            self._take_model(0, model)
        if model is not None and stage and not asked:
            self.ui.say(f"{stage} of this run has no model that writes: this is {model[0]}")

    def _show_top(self) -> None:
        s = self.sampling
        self.top(
            ("chat", "bold"),
            (
                f"  temperature {s['temperature']:g} · top-p {s['top_p']:g} · seed {s['seed']} · "
                f"{s['max_new_tokens']} tokens",
                "$muted",
            ),
        )

    # talking

    def on_safe_area_sent(self, event: SafeArea.Sent) -> None:
        said = event.text.strip()
        if not said:
            return
        if self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
            return
        if self.panes[0].model is None:
            self.ui.say(NO_MODEL)
            return
        event.area.text = ""
        self.busy = True
        self.run_worker(self._answer(said), group="chat")

    async def _answer(self, said: str) -> None:
        try:
            await asyncio.gather(*(self._answer_in(pane, said) for pane in self.panes))
        finally:
            self.busy = False

    async def _answer_in(self, pane: Pane, said: str) -> None:
        pane.add("user", said)
        pane.told, pane.writing, pane.pace = "", "", ""
        try:
            await self._open(pane)
            await self._listen(pane, said)
        except WorkerGone as gone:
            pane.take_back()
            had = f"\nIt had begun: {pane.writing.strip()}" if pane.writing.strip() else ""
            pane.told = f"The model's process ended: {gone}{had}"
            self._give_back(said)
            await pane.let_go()
        pane.writing = ""
        pane.show()

    async def _open(self, pane: Pane) -> None:
        if pane.process is not None or pane.model is None:
            return
        warning = await asyncio.to_thread(memory_warning, pane.model[1])
        busy = self.ui.training()
        pane.told = "loading the model …"
        if warning:
            pane.told += f" ({warning}{'; ' + busy[0][1] + ' trains beside it' if busy else ''})"
        pane.show()
        process = ModelProcess(pane.model[1])
        pane.process = process
        pane.ready = ready = await process.open()
        pane.told = (
            "" if ready.get("chat") else "This model has no chat format: it continues your text."
        )
        pane.show()

    async def _listen(self, pane: Pane, said: str) -> None:
        process = pane.process
        if process is None:
            return
        chats = bool(process.ready.get("chat"))
        asked: dict[str, Any] = {"messages": pane.turns} if chats else {"text": said}
        shown = time.monotonic()
        sampling = {**self.sampling, KWARGS: self._setting_of(pane)}
        async for event in process.ask(sampling, number=len(pane.turns), **asked):
            kind = event.get("event")
            if kind == "token":
                pane.writing += str(event.get("text", ""))
                if time.monotonic() - shown >= SHOW_EVERY_S:
                    shown = time.monotonic()
                    pane.show()
            elif kind == "error":
                pane.take_back()
                said_so = {key: str(event.get(key) or "") for key in ("message", "where", "hint")}
                pane.told = (
                    f"✗ {UserError(**{**said_so, 'where': said_so['where'] or 'your message'})}"
                )
                self._give_back(said)
            elif kind == "done":
                pane.add("assistant", str(event.get("text", "")))
                pane.told, pane.pace = (
                    _ending(event, sampling, process.ready.get("context")),
                    _pace(event),
                )

    def _setting_of(self, pane: Pane) -> str:
        """What a person has set for the chat template. A name that only the other model's template
        reads is not for this one."""
        given = parse_template_kwargs(pane.setting)
        others = [name for other in self.panes if other is not pane for name in other.reads]
        mine = {
            name: value for name, value in given.items() if name in pane.reads or name not in others
        }
        if mine == given:
            return pane.setting
        return json.dumps(mine)

    def _give_back(self, said: str) -> None:
        """What was not answered stands in the input again, unless something else was typed
        meanwhile.
        """
        area = self.query_one("#say", SafeArea)
        if not area.text.strip():
            area.text = said
            area.move_cursor(area.document.end)

    # keys

    def action_stop(self) -> None:
        for pane in self.panes:
            if pane.process is not None and self.busy:
                pane.process.cancel()

    def action_anew(self) -> None:
        if self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
            return
        for pane in self.all_panes:
            pane.begin()
            pane.show()

    def action_save(self) -> None:
        if self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
        elif not any(pane.turns for pane in self.panes):
            self.ui.say("nothing to save yet: ask something first")
        else:
            self.run_worker(self._save([pane for pane in self.panes if pane.turns]), group="kept")

    async def _save(self, panes: list[Pane]) -> None:
        """Each conversation in a file of its own, in the run of its model; in a thread, for a disk
        may be slow.
        """
        told = []
        for pane in panes:
            assert pane.model is not None
            stage = Path(pane.model[1]).parent
            spoke = list(
                dict.fromkeys(
                    by
                    for by, turn in zip(pane.speakers, pane.turns, strict=True)
                    if turn["role"] == "assistant"
                )
            )
            made = Conversation(
                list(pane.turns),
                spoke[0] if len(spoke) == 1 else spoke,
                {**self.sampling, KWARGS: pane.setting},
                pane.kwargs,
            )
            file = pane.file or new_file(stage.parent, stage.name)
            try:
                await asyncio.to_thread(save, file, made)
            except UserError as problem:
                self.ui.say(f"not saved: {problem}", bad=True)
                return
            pane.file, pane.saved = file, len(made.messages)
            told.append(f"{file.parent.parent.name}/{file.parent.name}/{file.name}")
        self.ui.say(f"saved as {' and '.join(told)}: a row that sft reads")

    def action_load(self) -> None:
        """A saved conversation of the model's run goes on."""
        first = self.all_panes[0]
        run = Path(first.model[1]).parent.parent if first.model else None
        known = saved(run) if run is not None else []
        if self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
        elif not known:
            self.ui.say("this run has no saved conversation yet: ctrl+s saves this one")
        elif len(first.turns) > first.saved:
            self.ui.say("what was said here is not saved: ctrl+s saves it, ctrl+n begins anew")
        else:
            self.app.push_screen(ChooseChat(known), self._take_chat)

    def _take_chat(self, file: Path | None) -> None:
        if file is None:
            return
        try:
            found = load(file)
        except UserError as problem:
            self.ui.say(str(problem), bad=True)
            return
        by = found.model if isinstance(found.model, str) else " and ".join(map(str, found.model))
        turns = [
            {"role": str(turn["role"]), "content": str(turn["content"])} for turn in found.messages
        ]
        for pane in self.panes:
            pane.begin(turns, [by] * len(turns), file if pane is self.all_panes[0] else None)
        if _samples(found.sampling):
            self._set({**self.sampling, **found.sampling})
        self.all_panes[
            0
        ].told = f"Saved in {file.name}; {self.all_panes[0].name_shown} goes on with it."
        for pane in self.panes:
            pane.show()

    def action_scroll(self, by: int) -> None:
        for scroll in self.query(VerticalScroll):
            scroll.scroll_page_up(animate=False) if by < 0 else scroll.scroll_page_down(
                animate=False
            )

    def action_keep(self) -> None:
        if self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
        elif any(
            pane.turns[-1:] == [] or pane.turns[-1]["role"] != "assistant" for pane in self.panes
        ):
            self.ui.say("nothing to keep yet: ask something first")
        elif any(pane.process is None or not pane.process.ready.get("chat") for pane in self.panes):
            self.ui.say("only answers of a model that chats can be kept, while it is loaded")
        elif len({str(pane.turns[:-1]) for pane in self.panes}) > 1:
            self.ui.say(
                "the two have answered differently before: after ctrl+n their first answers can be kept"
            )
        else:
            self.busy = True
            self.run_worker(self._keep(), group="chat")

    async def _keep(self) -> None:
        """The two answers on a card; the second one is drawn where only one model talks."""
        panes = self.panes
        try:
            texts = [pane.turns[-1]["content"] for pane in panes]
            if len(texts) == 1:
                texts.append(await self._another(panes[0]))
        except (WorkerGone, Refused) as reason:
            self.ui.say(f"nothing to compare it with: {reason}", bad=True)
            return
        finally:
            self.busy = False
        sources = [
            name.replace(" · ", "-")
            for name in (
                panes[0].speakers[-1],
                panes[1].speakers[-1] if len(panes) > 1 else panes[0].name_shown,
            )
        ]
        answers = tuple(Response(text, source) for text, source in zip(texts, sources, strict=True))
        model = panes[0].model
        if len(set(texts)) == 1:
            self.ui.say(
                "it says the same again: a higher temperature (ctrl+e) gives another answer"
            )
        elif model is not None:
            kept = Kept(Path(model[1]).parent.parent, panes[0].turns[:-1], answers)  # type: ignore[arg-type]
            self.app.push_screen(Keep(kept), lambda choice: self._store(kept, choice))

    async def _another(self, pane: Pane) -> str:
        """Another answer to what was said last."""
        if pane.process is None:
            raise WorkerGone("the model was closed")
        pane.told = "writing another answer to compare it with …"
        pane.show()
        try:
            done = await pane.process.write(
                pane.turns[:-1], self.sampling, ANOTHER + len(pane.turns)
            )
        finally:
            pane.told = ""
            pane.show()
        return str(done.get("text", ""))

    def _store(self, kept: Kept, choice: str | None) -> None:
        if choice is not None:
            self.run_worker(self._stored(kept, choice), group="kept")

    async def _stored(self, kept: Kept, choice: str) -> None:
        """In a thread: another program may hold the database for seconds."""
        try:
            self.ui.say(await asyncio.to_thread(kept.store, choice))
        except UserError as problem:
            self.ui.say(f"not kept: {problem}", bad=True)
            self.app.push_screen(Keep(kept), lambda again: self._store(kept, again))

    def action_model(self, at: int) -> None:
        known = models_in(self.ui.runs or ())
        if not known:
            self.ui.say(NO_MODEL)
        elif self.busy:
            self.ui.say("the answer is still being written; ctrl+x stops it")
        else:
            self.app.push_screen(ChooseModel(known), lambda model: self._take_model(at, model))

    def _take_model(self, at: int, model: tuple[str, str] | None) -> None:
        if model is None:
            return
        pane, first = self.all_panes[at], self.all_panes[0]
        pane.display = True
        another, pane.told, pane.pace = pane.model not in (None, model), "", ""
        if pane.model != model:
            pane.model, pane.ready = model, {}
        if at:
            pane.begin(first.turns, first.speakers)
        if pane.turns:
            pane.told = f"From here on {model[0]} answers. ctrl+n begins anew."
        if another and not at and self.sampling[KWARGS]:
            self._set({**self.sampling, KWARGS: ""})
            self.ui.say(
                "its chat template is told what it was told in training again; ctrl+e changes it"
            )
        self.run_worker(pane.let_go(), group="closing")
        pane.show()

    def action_second(self) -> None:
        second = self.all_panes[1]
        if not second.display:
            self.action_model(1)
        elif not self.busy:
            second.display = False
            self.run_worker(second.let_go(), group="closing")

    def action_settings(self) -> None:
        self.app.push_screen(
            Settings(self.sampling, [pane.ready for pane in self.panes]), self._take_settings
        )

    def _take_settings(self, made: dict[str, Any] | None) -> None:
        if made is not None:
            self._set(made)
            self.ui.keep("sampling", {**made, KWARGS: ""})  # these are for one model's template

    def _set(self, sampling: dict[str, Any]) -> None:
        self.sampling = sampling
        for pane in self.all_panes:
            pane.setting = sampling[KWARGS]
            pane.show()
        self._show_top()

    def on_unmount(self) -> None:
        for pane in self.all_panes:
            if pane.process is not None:
                pane.process.kill()


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
        at_field = problem.where in self._helps
        self.query_one("#settings-verdict", SafeText).show(
            "" if at_field else f"✗ {problem}", "$error"
        )
        for name, told in self._helps.items():
            wrong = ((f"✗ {problem}  ", "$error"),) if name == problem.where else ()
            self.query_one(f"#help-{name}", SafeText).show(line(*wrong, (told, "$muted")))
        if at_field:
            self.query_one(f"#set-{problem.where}").focus()
        seen = f"#help-{problem.where}" if at_field else "#settings-verdict"
        # once its lines have their place
        self.call_after_refresh(self.query_one(seen).scroll_visible, animate=False)

    def _of_templates(self) -> str:
        """What the models' chat templates were told in training, and what they may be told."""
        if not self._models:
            return "What this model's template reads is known once the model has been loaded."
        told = []
        for ready in self._models:
            trained, reads = ready.get("template_kwargs") or {}, ready.get("template_reads") or []
            told.append(
                f"in training: {json.dumps(trained) if trained else 'nothing'}; "
                f"it reads: {', '.join(map(str, reads)) or 'nothing'}."
            )
        return f"The template was told {' The second one was told '.join(told)}"

    def _check_kwargs(self, setting: str) -> None:
        """Raises UserError where no model that is loaded reads one of these names."""
        known = [set(ready.get("template_reads") or []) for ready in self._models]
        for name in parse_template_kwargs(setting):
            if known and not any(name in reads for reads in known):
                raise UserError(
                    f"the chat template does not read {name!r}",
                    where=KWARGS,
                    hint=f"it reads: {', '.join(sorted(set().union(*known))) or 'nothing'}",
                )

    def on_input_submitted(self) -> None:
        texts: dict[str, str | bool] = {
            s.name: self.query_one(f"#set-{s.name}", Input).value for s in self._specs
        }
        try:
            made = from_mapping(SamplingConfig, {**settings(self._specs, texts), "model": "-"})
            self._check_kwargs(made.chat_template_kwargs)
        except UserError as problem:
            self._say_wrong(problem)
            return
        self.dismiss({spec.name: getattr(made, spec.name) for spec in self._specs})


def _samples(values: Any) -> bool:
    """Whether these are settings of answers, whole and within their bounds."""
    usual = sampling_defaults()
    if not isinstance(values, Mapping) or {*values, KWARGS} != {
        *usual
    }:  # an older app knew nothing of a template
        return False
    try:
        from_mapping(SamplingConfig, {**values, "model": "-"})
    except UserError:
        return False
    return True


def _stage_of(name: str) -> str:
    """The stage of a model's name (run · stage)."""
    return name.rsplit(" ", 1)[-1]


def _ending(event: dict[str, Any], sampling: dict[str, Any], context: Any) -> str:
    told = []
    if event.get("cancelled"):
        told.append("stopped")
    elif not event.get("stopped"):
        limit = sampling["max_new_tokens"]
        if int(event.get("tokens") or 0) >= limit:
            told.append(f"cut at max_new_tokens, {limit}; ctrl+e changes it")
        else:
            told.append(
                f"cut: the model's context of {context} tokens is full, {event.get('prompt_tokens')} of them "
                "with what was said before; ctrl+n begins anew"
            )
    if event.get("forgotten"):
        told.append(f"the first {event['forgotten']} turns no longer fit and were forgotten")
    if event.get("cut"):
        told.append("the message is longer than the model's context: only a part of it was read")
    if told:
        return f"({', '.join(told)})"
    return ""


def _pace(event: dict[str, Any]) -> str:
    tokens, seconds = event.get("tokens") or 0, event.get("seconds") or 0
    if seconds:
        return f"{tokens} tokens  {number(tokens / seconds)} tok/s"
    return f"{tokens} tokens"
