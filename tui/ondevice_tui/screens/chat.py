"""Chat: talk with any stage's model, or with two side by side. How what was said is kept is in
`chat_keeping`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget

from ondevice.common.errors import UserError
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice_tui.screens.chat_keeping import ANOTHER, BUSY, KeepingPage
from ondevice_tui.screens.chat_pane import KWARGS, Pane, ending, pace
from ondevice_tui.screens.chat_settings import Settings, is_sampling
from ondevice_tui.screens.choose_model import ChooseModel
from ondevice_tui.widgets.safe import SafeArea
from ondevice_tui.widgets.say_area import SayArea
from ondevice_tui.worker_client import ModelProcess, WorkerGone, memory_warning, models_in

SHOW_EVERY_S = 0.1  # between two repaints of an answer that is being written

NO_MODEL = "No model yet. esc goes home; n begins a run, and every finished stage can be talked to."


class ChatScreen(KeepingPage):
    ABOUT = """\
A conversation with a stage's model. The model is loaded into a process of its own at the first message and let go \
when you leave this screen. A model before sft has no chat format: it continues your text instead of answering it.

It begins with the model of the run and stage that you come from. Another model goes on with the conversation that \
stands there; ctrl+n begins anew. With a second model beside it, both get the same messages and the same draws.

A chat template is told what it was told when the model was trained (a switch for thinking, for example): the box \
shows it beside the model's name, and ctrl+e changes it.

ctrl+r asks for another answer in place of the newest one, F2 takes your last message back to change it, ↑ brings back \
earlier ones, F3 sets a system prompt, ctrl+y copies the newest answer. The box's title says how much of the model's \
context is used (412/512 tokens).

ctrl+s saves the conversation into the run's folder chats/, with the model's name and the settings, as a row that sft \
reads; saved again, it goes on in the same file. ctrl+l takes up a saved one.

F4 keeps a good or bad answer as a preference pair in the run's ratings: the model writes another one (or the \
second model's is taken), and you say which is better."""
    SHORT_ROWS = 2
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+t",
            "model(0)",
            "model",
            tooltip="Choose the model; it goes on with the conversation",
        ),
        Binding(
            "ctrl+x", "stop", "stop", priority=True, tooltip="Stop the answer that is being written"
        ),
        Binding(
            "ctrl+r", "again", "again", priority=True, tooltip="Another answer to the same message"
        ),
        Binding(
            "f2",
            "edit",
            "edit",
            tooltip="Take the last message back, to send another in its place (↑: earlier ones)",
        ),
        Binding(
            "ctrl+e",
            "settings",
            "settings",
            priority=True,
            tooltip="Temperature, top-p, length, seed, what the chat template is told",
        ),
        Binding("ctrl+y", "copy", "copy", priority=True, tooltip="Copy the newest answer"),
        Binding(
            "ctrl+o",
            "second",
            "second",
            tooltip="A second model beside it: it takes the talk up; or none",
        ),
        Binding("f3", "system", "system", tooltip="The system prompt, from here on"),
        Binding(
            "ctrl+n",
            "anew",
            "anew",
            tooltip="Begin the conversation anew; again: the one before is back",
        ),
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
            "f4",
            "keep",
            "keep",
            tooltip="Keep the answer as a preference pair: better or worse than another",
        ),
        Binding(
            "pageup",
            "scroll(-1)",
            "scroll",
            key_display="pgup",
            priority=True,
            tooltip="Scroll the conversation; pgdn: to what is newer",
        ),
        Binding("pagedown", "scroll(1)", "newer", show=False, priority=True),
        Binding(
            "ctrl+q", "app.leave", "quit", priority=True, tooltip="Close this app; training goes on"
        ),
    ]

    TYPES = True

    def __init__(self) -> None:
        super().__init__()
        # (run, stage) that the first model was taken for
        self._of: tuple[Path | None, tuple[str, int]] | None = None

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="panes"):
            yield from self.all_panes
        yield SayArea(
            placeholder="say something: Enter sends, ctrl+j a line, ↑ brings back", id="say"
        )

    def on_mount(self) -> None:
        self.all_panes[1].display = False
        self.sampling |= self.ui.remembered.get("sampling", is_sampling) or {}
        self.query_one("#say").focus()

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
        of = (self.ui.chosen, self.ui.talk_with)
        if self.all_panes[0].model is None or (of != self._of and not self.busy):
            self._follow(of)
        self._show_top()

    def _follow(self, of: tuple[Path | None, tuple[str, int]]) -> None:
        """The model of the run and stage that a person comes from; the run's newest where that
        stage has none.
        """
        first = self.all_panes[0]
        chosen, (stage, _) = of
        known = models_in(self.ui.runs or ())
        here = [found for found in known if Path(found[1]).parent.parent == chosen]
        asked = [found for found in here if Path(found[1]).parent.name == stage]
        self._of = None
        if known:
            self._of = of
        model = next(iter(asked or here or known), None)
        if model is None:
            first.told = self.unless_reading(NO_MODEL)
            first.show()
            return
        if model != first.model:
            self._take_model(0, model)
        if stage and not asked:
            self.ui.say(f"{stage} of this run has no model that writes: this is {model[0]}")

    # talking

    def on_safe_area_sent(self, event: SafeArea.Sent) -> None:
        said = event.text.strip()
        if not said:
            return
        if self.busy:
            self.ui.say(BUSY)
            return
        if self.panes[0].model is None:
            self.ui.say(self.unless_reading(NO_MODEL))
            return
        event.area.text = ""
        if isinstance(event.area, SayArea):
            event.area.remember(said)
        self.busy = True
        self.run_worker(self._answer(said), group="chat")

    async def _answer(self, said: str) -> None:
        try:
            for pane in self.panes:
                pane.add("user", said)
                pane.again = 0
            await asyncio.gather(*(self._answer_in(pane, said) for pane in self.panes))
        finally:
            self.busy = False

    async def _answer_anew(self) -> None:
        """Another answer in each pane; where none comes, the one before stands there again."""
        try:
            await asyncio.gather(*(self._anew_in(pane) for pane in self.panes))
        finally:
            self.busy = False

    async def _anew_in(self, pane: Pane) -> None:
        said = pane.last_said
        if said is None:
            return
        before, speaker = pane.turns[-1], pane.speakers[-1]
        pane.take_back()
        pane.again += 1
        await self._answer_in(pane, said, anew=True)
        if pane.turns[-1]["role"] == "user":
            pane.turns.append(before)
            pane.speakers.append(speaker)
            pane.show()

    async def _answer_in(self, pane: Pane, said: str, *, anew: bool = False) -> None:
        """The answer to the last turn. `anew`: where none comes, the turn stays."""
        pane.told = ""
        pane.writing = ""
        pane.pace = ""
        try:
            await self._open(pane)
            await self._listen(pane, said, anew)
        except WorkerGone as gone:
            if not anew:
                pane.take_back()
            pane.told = f"The model's process ended: {gone}"
            if pane.writing.strip():
                pane.told += f"\nIt had begun: {pane.writing.strip()}"
            if not anew:
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
        if warning and busy:
            pane.told += f" ({warning}; {busy[0][1]} trains beside it)"
        elif warning:
            pane.told += f" ({warning})"
        pane.show()
        process = ModelProcess(pane.model[1])
        pane.process = process
        pane.ready = await process.open()
        pane.told = ""
        if not pane.ready.get("chat"):
            pane.told = "This model has no chat format: it continues your text."
        pane.show()

    async def _listen(self, pane: Pane, said: str, anew: bool) -> None:
        process = pane.process
        if process is None:
            return
        asked: dict[str, Any] = {"text": said}
        if process.ready.get("chat"):
            asked = {"messages": pane.turns}
        shown = time.monotonic()
        sampling = {**self.sampling, KWARGS: self._setting_of(pane)}
        number = len(pane.turns) + 2 * ANOTHER * pane.again
        async for event in process.ask(sampling, number=number, **asked):
            kind = event.get("event")
            if kind == "token":
                pane.writing += str(event.get("text", ""))
                if time.monotonic() - shown >= SHOW_EVERY_S:
                    shown = time.monotonic()
                    pane.show()
            elif kind == "error":
                pane.told = f"✗ {_refusal(event)}"
                if not anew:
                    pane.take_back()
                    self._give_back(said)
            elif kind == "done":
                pane.add("assistant", str(event.get("text", "")))
                pane.told = ending(event, sampling, process.ready.get("context"))
                pane.pace = pace(event)
                pane.used = int(event.get("prompt_tokens") or 0) + int(event.get("tokens") or 0)

    def _setting_of(self, pane: Pane) -> str:
        """What a person has set for the chat template. A name that only the other model's template
        reads is not for this one."""
        given = parse_template_kwargs(pane.setting)
        foreign: set[str] = set()
        for other in self.panes:
            foreign.update(other.reads)
        foreign.difference_update(pane.reads)
        mine = {name: value for name, value in given.items() if name not in foreign}
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

    def action_again(self) -> None:
        if self.busy:
            self.ui.say(BUSY)
        elif all(pane.last_said is None for pane in self.panes):
            self.ui.say("no answer yet that could be written again")
        else:
            self.busy = True
            self.run_worker(self._answer_anew(), group="chat")

    def action_edit(self) -> None:
        """The last message and its answer are taken back; the message stands in the input."""
        if self.busy:
            self.ui.say(BUSY)
            return
        said = self.panes[0].last_said
        if said is None:
            self.ui.say("no message yet that could be changed")
            return
        for pane in self.panes:
            if pane.last_said == said:
                pane.take_back()
                pane.take_back()
                pane.told = pane.pace = ""
                pane.used = 0
                pane.show()
        area = self.query_one("#say", SayArea)
        if area.text.strip() and area.text != said:
            area.remember(area.text)
            self.ui.say("↑ brings back what you were typing")
            area.text = ""
        self._give_back(said)

    def action_system(self) -> None:
        from ondevice_tui.screens.text_card import Note

        def take(text: str | None) -> None:
            if text is None:
                return
            for pane in self.panes:
                if text.strip() != pane.system:
                    pane.set_system(text.strip())
                    pane.told = "The system prompt holds from here on."
                    pane.show()

        if self.busy:
            self.ui.say(BUSY)
        elif self.panes[0].ready and not self.panes[0].ready.get("chat"):
            self.ui.say("this model has no chat format: it reads no system prompt")
        else:
            self.app.push_screen(Note("system prompt; empty: none", self.panes[0].system), take)

    def action_copy(self) -> None:
        """The newest answer; what is selected, where something is."""
        text = self.screen.get_selected_text()
        if not text:
            answers = [turn for turn in self.panes[0].turns if turn["role"] == "assistant"]
            text = answers[-1]["content"] if answers else ""
        if text:
            self.app.copy_to_clipboard(text.encode("utf-8", "replace").decode())
            self.ui.say("copied")
        else:
            self.ui.say("nothing to copy yet: ask something first")

    def action_anew(self) -> None:
        if self.busy:
            self.ui.say(BUSY)
            return
        if any(pane.turns for pane in self.all_panes):
            for pane in self.all_panes:
                pane.put_aside()
                pane.show()
            self.ui.say("begun anew: ctrl+n again brings the conversation back")
        elif any(pane.aside for pane in self.all_panes):
            for pane in self.all_panes:
                pane.take_up()
                pane.show()

    def action_scroll(self, by: int) -> None:
        for scroll in self.query(VerticalScroll):
            if by < 0:
                scroll.scroll_page_up(animate=False)
            else:
                scroll.scroll_page_down(animate=False)

    def action_model(self, at: int) -> None:
        known = models_in(self.ui.runs or ())
        if not known:
            self.ui.say(self.unless_reading(NO_MODEL))
        elif self.busy:
            self.ui.say(BUSY)
        else:
            self.app.push_screen(ChooseModel(known), lambda model: self._take_model(at, model))

    def _take_model(self, at: int, model: tuple[str, str] | None) -> None:
        if model is None:
            return
        pane = self.all_panes[at]
        first = self.all_panes[0]
        pane.display = True
        had_another = pane.model not in (None, model)
        pane.told = ""
        pane.pace = ""
        if pane.model != model:
            pane.model = model
            pane.ready = {}
        if at:
            pane.begin(first.turns, first.speakers)
        if pane.turns:
            pane.told = f"From here on {model[0]} answers. ctrl+n begins anew."
        if had_another and not at and self.sampling[KWARGS]:
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

    def on_unmount(self) -> None:
        for pane in self.all_panes:
            if pane.process is not None:
                pane.process.kill()


def _refusal(event: dict[str, Any]) -> UserError:
    """The error that a model's process has sent in place of an answer."""
    return UserError(
        str(event.get("message") or ""),
        where=str(event.get("where") or "") or "your message",
        hint=str(event.get("hint") or ""),
    )
