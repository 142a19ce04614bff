"""What is kept of a chat: conversations, saved as rows and taken up again, and answers, as preference
pairs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.inference.conversations import load, new_file, save, saved
from ondevice.preferences.votes import Response
from ondevice_tui.live_sampling import rater_name
from ondevice_tui.screens.chat_pane import KWARGS, Pane
from ondevice_tui.screens.chat_settings import is_sampling
from ondevice_tui.screens.choose_chat import ChooseChat
from ondevice_tui.screens.keep_pair import Keep, Kept
from ondevice_tui.screens.page import Page
from ondevice_tui.worker_client import Refused, WorkerGone, sampling_defaults

ANOTHER = 1000  # draws of answers to compare with are numbered from here
BUSY = "the answer is still being written; ctrl+x stops it"


class KeepingPage(Page):
    """A chat in one pane or two, and what can be kept of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling = sampling_defaults()
        self.busy = False
        self.all_panes = [Pane("pane-a"), Pane("pane-b")]

    @property
    def panes(self) -> list[Pane]:
        return [pane for pane in self.all_panes if pane.display]

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

    def _set(self, sampling: dict[str, Any]) -> None:
        self.sampling = sampling
        for pane in self.all_panes:
            pane.setting = sampling[KWARGS]
            pane.show()
        self._show_top()

    # conversations

    def action_save(self) -> None:
        if self.busy:
            self.ui.say(BUSY)
        elif not any(pane.turns for pane in self.panes):
            self.ui.say("nothing to save yet: ask something first")
        else:
            self.run_worker(self._save([pane for pane in self.panes if pane.turns]), group="kept")

    async def _save(self, panes: list[Pane]) -> None:
        """Each conversation in a file of its own, in the run of its model; in a thread, because a
        disk may be slow.
        """
        names = []
        for pane in panes:
            assert pane.model is not None
            stage = Path(pane.model[1]).parent
            conversation = pane.conversation(self.sampling)
            file = pane.file or new_file(stage.parent, stage.name)
            try:
                await asyncio.to_thread(save, file, conversation)
            except UserError as problem:
                self.ui.say(f"not saved: {problem}", bad=True)
                return
            pane.file = file
            pane.saved = len(conversation.messages)
            names.append(f"{file.parent.parent.name}/{file.parent.name}/{file.name}")
        self.ui.say(f"saved as {' and '.join(names)}: a row that sft reads")

    def action_load(self) -> None:
        """A saved conversation of the model's run goes on."""
        first = self.all_panes[0]
        known: list[Path] = []
        if first.model is not None:
            known = saved(Path(first.model[1]).parent.parent)
        if self.busy:
            self.ui.say(BUSY)
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
        if isinstance(found.model, str):
            by = found.model
        else:
            by = " and ".join(map(str, found.model))
        turns = []
        for turn in found.messages:
            turns.append({"role": str(turn["role"]), "content": str(turn["content"])})
        for pane in self.panes:
            pane.begin(turns, [by] * len(turns))
        first = self.all_panes[0]
        first.file = file
        if is_sampling(found.sampling):
            self._set({**self.sampling, **found.sampling})
        first.told = f"Saved in {file.name}; {first.name_shown} goes on with it."
        for pane in self.panes:
            pane.show()

    # answers

    def action_keep(self) -> None:
        if self.busy:
            self.ui.say(BUSY)
            return
        obstacle = _not_to_keep(self.panes)
        if obstacle:
            self.ui.say(obstacle)
            return
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
        if len(set(texts)) == 1:
            self.ui.say(
                "it says the same again: a higher temperature (ctrl+e) gives another answer"
            )
            return
        second = panes[0].name_shown
        if len(panes) > 1:
            second = panes[1].speakers[-1]
        answers = (
            Response(texts[0], panes[0].speakers[-1].replace(" · ", "-")),
            Response(texts[1], second.replace(" · ", "-")),
        )
        model = panes[0].model
        if model is not None:
            run = Path(model[1]).parent.parent
            rater = rater_name(self.ui.remembered)  # as on the screen that rates
            kept = Kept(run, panes[0].turns[:-1], answers, rater)
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


def _not_to_keep(panes: list[Pane]) -> str:
    """Why the newest answers cannot become a preference pair; empty where they can."""
    for pane in panes:
        if not pane.turns or pane.turns[-1]["role"] != "assistant":
            return "nothing to keep yet: ask something first"
    for pane in panes:
        if pane.process is None or not pane.process.ready.get("chat"):
            return "only answers of a model that chats can be kept, while it is loaded"
    before = panes[0].turns[:-1]
    for pane in panes[1:]:
        if pane.turns[:-1] != before:
            return "the two have answered differently before: after ctrl+n their first answers can be kept"
    return ""
