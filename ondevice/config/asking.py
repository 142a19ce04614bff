"""The settings of questions that a model writes about documents, and of reviewing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import refuse_idle
from ondevice.config.rows import RowsConfig
from ondevice.config.use import SamplingConfig

MOST_QUESTIONS = 20
"""About one passage."""


@dataclass(frozen=True, kw_only=True)
class AskConfig(SamplingConfig, RowsConfig):
    """A model writes questions about documents, for answers that stand there, and finds them again;
    what passes the checks is rows that sft takes. In English alone."""

    action: Literal["ask"]
    """ask: questions about each passage, and their answers."""
    data: str
    """A file or a folder of documents, or rows of text."""
    out: str = "chats.jsonl"
    """File of rows to write. Beside it a file of the same name with .asked.jsonl keeps what was asked:
    the same command, or one that asks for more, goes on from there."""
    questions: int = 2
    """Questions about each passage, as far as it has so many answers: names, numbers, places, reasons.
    More of them later are asked beside those that are there."""
    passage_tokens: int = 256
    """Tokens of a passage at most."""
    limit: int = 0
    """Passages that are asked about, drawn from all over the documents; 0: all. A larger limit later
    asks about others beside these."""
    batch_size: int = 8
    """Questions that are written at once: more is faster, and takes memory."""
    max_new_tokens: int = 64
    """Longest question, in tokens."""
    temperature: float = 0.0
    """Of the questions; 0: the likeliest, which says best what stands there."""
    again: bool = False
    """Begin anew, and lose what was asked before."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.data:
            raise UserError(
                "no documents were named", where="data", hint="ondevice data ask FOLDER --model M"
            )
        super().check()
        self.check_rows()
        if not self.out.endswith(".jsonl"):
            raise UserError(f"{self.out!r} is no .jsonl file", where="out", hint="chats.jsonl")
        self._between(1, MOST_QUESTIONS, "questions")
        self._between(32, float("inf"), "passage_tokens")
        self._between(0, float("inf"), "limit")
        self._between(1, float("inf"), "batch_size")
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Keep or drop rows that a model wrote, one key each; sft then learns from what was kept."""

    action: Literal["review"]
    """review: one row after the other, k keeps it, d drops it."""
    data: str
    """The rows that `ondevice data ask` has written."""

    def check(self) -> None:
        """Raises UserError where no file was named."""
        if not self.data:
            raise UserError(
                "no rows were named", where="data", hint="ondevice data review chats.jsonl"
            )
