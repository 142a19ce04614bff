"""One model's side of a chat: its turns, who said them, and what its process says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content

from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.inference.conversations import Conversation
from ondevice_tui.widgets.safe import SafeText, content, lines, titled
from ondevice_tui.worker_client import ModelProcess

KWARGS = "chat_template_kwargs"
SHOWN_TURNS = 60  # older ones stay in the conversation, but off the screen


class Pane(Vertical):
    """One model's side of the conversation."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, classes="box")
        self.process: ModelProcess | None = None
        self.model: tuple[str, str] | None = None  # (run · stage, folder)
        self.turns: list[dict[str, str]] = []
        # who said each turn: a model that takes another's place goes on with its turns
        self.speakers: list[str] = []
        self.writing = ""
        self.told = ""
        self.pace = ""
        self.used = 0  # tokens of the model's context, up to the end of the newest answer
        self.again = 0  # how often the newest answer was asked for anew
        # chat_template_kwargs, as a person has set it: JSON, empty where nobody has
        self.setting = ""
        # that this conversation is kept in, once somebody has saved it
        self.file: Path | None = None
        self.saved = 0  # turns in it
        # its turns, speakers, file and what is saved, while another one has begun
        self.aside: tuple[list[dict[str, str]], list[str], Path | None, int] | None = None
        # what the model's process said of it, once it has been loaded
        self.ready: dict[str, Any] = {}

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
            if not self.ready:
                return dict(given)
            return {name: value for name, value in given.items() if name in self.reads}
        trained = self.ready.get("template_kwargs")
        if isinstance(trained, dict):
            return trained
        return {}

    @property
    def system(self) -> str:
        """The system prompt; empty where there is none."""
        if self.turns and self.turns[0]["role"] == "system":
            return self.turns[0]["content"]
        return ""

    def set_system(self, text: str) -> None:
        """For what is said from here on; the conversation goes on in another file."""
        if self.system:
            self.turns.pop(0)
            self.speakers.pop(0)
        if text:
            self.turns.insert(0, {"role": "system", "content": text})
            self.speakers.insert(0, self.name_shown)
        self.leave_file()

    def leave_file(self) -> None:
        """What is said is not any more the beginning of what was saved."""
        self.file = None
        self.saved = 0

    @property
    def last_said(self) -> str | None:
        """The newest message of a person that has an answer; None where there is none."""
        roles = [turn["role"] for turn in self.turns[-2:]]
        if roles == ["user", "assistant"]:
            return self.turns[-2]["content"]
        return None

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
        self.turns = list(turns)
        self.speakers = list(speakers)
        self.file = file
        self.saved = len(turns)
        self.told = ""
        self.pace = ""
        self.used = 0
        self.again = 0

    def put_aside(self) -> None:
        """A new conversation; `take_up` goes on with this one, until another one is put aside."""
        self.aside = (self.turns, self.speakers, self.file, self.saved)
        self.begin()

    def take_up(self) -> None:
        """Goes on with the conversation that was put aside."""
        if self.aside is not None:
            turns, speakers, file, saved = self.aside
            self.begin(turns, speakers, file)
            self.saved = saved
            self.aside = None

    def take_back(self) -> None:
        """The last turn: no answer came to it, or another one is wanted."""
        self.turns.pop()
        self.speakers.pop()
        if len(self.turns) < self.saved:
            self.leave_file()

    def show(self) -> None:
        rows = self._rows()
        if not rows:
            rows = [
                content(
                    "Write below, Enter sends. The first answer waits for the model to load.",
                    "$muted",
                )
            ]
        self.query_one(SafeText).show(lines(rows))
        told = [f"{name} {json.dumps(value)}" for name, value in self.kwargs.items()]
        context = self.ready.get("context")
        if isinstance(context, int) and self.used:
            told.append(f"{self.used}/{context} tokens")
        titled(self, " · ".join([self.name_shown, *told]), self.pace)
        self.query_one(VerticalScroll).scroll_end(animate=False)

    def _rows(self) -> list[Content]:
        """The newest turns, the answer that is being written, and what else is said of them."""
        rows: list[Content] = []
        for turn, by in list(zip(self.turns, self.speakers, strict=True))[-SHOWN_TURNS:]:
            rows.append(_heading(turn["role"], by))
            rows.append(content(turn["content"].strip() or "(nothing)"))
            rows.append(content(""))
        if self.writing:
            rows.append(content(_stage_of(self.name_shown), "bold $primary"))
            rows.append(content(self.writing + "▌"))
        if self.told:
            rows.append(content(self.told, "$muted"))
        return rows

    def conversation(self, sampling: dict[str, Any]) -> Conversation:
        """What is said here, as it is saved: with the one model that spoke, or all of them."""
        spoke: list[str] = []
        for by, turn in zip(self.speakers, self.turns, strict=True):
            if turn["role"] == "assistant" and by not in spoke:
                spoke.append(by)
        model: str | list[str] = spoke
        if len(spoke) == 1:
            model = spoke[0]
        return Conversation(
            list(self.turns), model, {**sampling, KWARGS: self.setting}, self.kwargs
        )

    async def let_go(self) -> None:
        """Closes the model's process; the conversation stays."""
        process = self.process
        self.process = None
        if process is not None:
            await process.close()


def _heading(role: str, speaker: str) -> Content:
    """Who said a turn: a person, the system prompt, or the stage of the model."""
    if role == "user":
        return content("you", "bold $muted")
    if role == "assistant":
        return content(_stage_of(speaker), "bold $primary")
    if role == "system":
        return content("system", "bold $muted")
    return content(_stage_of(speaker), "bold $muted")


def _stage_of(name: str) -> str:
    """The stage of a model's name (run · stage)."""
    return name.rsplit(" ", 1)[-1]


def ending(event: dict[str, Any], sampling: dict[str, Any], context: Any) -> str:
    """How an answer ended, where that was not by itself, and what of the conversation was not read."""
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


def pace(event: dict[str, Any]) -> str:
    """The length of an answer, and how fast it was written."""
    tokens = event.get("tokens") or 0
    seconds = event.get("seconds") or 0
    if seconds:
        return f"{tokens} tokens  {tokens / seconds:,.3g} tok/s"
    return f"{tokens} tokens"
