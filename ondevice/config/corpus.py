"""The settings of the built-in corpus. Standard library only.

Everything that the corpus holds follows from these fields: the same fields give the same bytes in
every process.

What the instruction data covers of arithmetic (so that a later reasoning stage has something to
gain): sums asked for *slowly* ("Add 47 and 85 step by step.") are answered with the written-out
steps, for operands up to `max_operand`. Sums asked for *quickly* ("What is 47+85?") make up
`quick_share` of the arithmetic chats and have no operand above `quick_operand`; their answers show
the number alone, but for `quick_steps_share` of them, which show the steps all the same: without
any, a policy would never try what it is to find out. Quick requests with larger operands are asked
by `problems()` only, about sums that stand nowhere else in the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ondevice.common.errors import UserError

POOLS: Mapping[str, int] = {"people": 48, "places": 20, "animals": 18, "things": 24}
"""How many of each the word lists can name; a test holds them to ondevice.data.builtin.lexicon."""
LEAST: Mapping[str, int] = {"people": 6}
"""How many of each there must be, 4 where nothing is said: a context names six people."""


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Weights of kinds: only their ratios matter, 0 leaves a kind out."""

    def shares(self) -> dict[str, float]:
        """Kind → its part of the whole; the parts add up to 1. Raises UserError like check()."""
        self.check()
        weights: dict[str, float] = {item.name: getattr(self, item.name) for item in fields(self)}
        total = sum(weights.values())
        return {kind: weight / total for kind, weight in weights.items() if weight > 0}

    def check(self, where: str = "") -> None:
        """Raises UserError naming a negative weight, or saying that all are 0."""
        weights: dict[str, float] = {item.name: getattr(self, item.name) for item in fields(self)}
        for kind, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UserError(
                    f"{weight} is not a weight",
                    where=f"{where}.{kind}".lstrip("."),
                    hint="give 0 or more",
                )
        if not any(weights.values()):
            hint = f"give one of {', '.join(weights)} more than 0"
            raise UserError("every kind has weight 0", where=where, hint=hint)


@dataclass(frozen=True, kw_only=True)
class DocumentShares(_Shares):
    """Weights of the kinds of document, by bytes."""

    people: float = 22
    """Who lives where, does what and likes what."""
    world: float = 7
    """Places, animals and things: where they are and what they are like."""
    stories: float = 9
    """Short stories."""
    questions: float = 7
    """Questions about the world with their answers."""
    reading: float = 18
    """A few sentences, then questions that only these sentences answer."""
    words: float = 30
    """Lists of words: repeated (this teaches to copy, without which no task on the prompt's words
    is learned), counted, reversed, written in capitals."""
    sums: float = 10
    """Sums written out digit by digit."""


@dataclass(frozen=True, kw_only=True)
class ChatShares(_Shares):
    """Weights of the kinds of instruction, by number of chats."""

    facts: float = 22
    """Questions about the world: the answer stands in the train documents."""
    context: float = 20
    """Questions about sentences given in the prompt."""
    count: float = 7
    """How many words are these?"""
    first: float = 6
    """The first word of a list."""
    last: float = 6
    """The last word of a list."""
    list: float = 7
    """Words written as a numbered list."""
    reverse: float = 8
    """Words in the opposite order."""
    upper: float = 7
    """Words in capital letters."""
    pick: float = 5
    """The one word of a list that is an animal, a food or a colour."""
    hello: float = 2
    """Greetings that name the speaker."""
    sum: float = 16
    """Sums, asked for slowly or quickly."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What the built-in corpus holds."""

    seed: int = 0
    """Decides the world and every draw."""
    people: int = 30
    """People of the world: each has a home, a job, a pet, a favourite food and a favourite colour.
    """
    places: int = 12
    """Places of the world."""
    animals: int = 14
    """Kinds of animal."""
    things: int = 20
    """Things that stand somewhere in the world."""
    document_bytes: int = 7_400_000
    """Bytes of the train documents (about 3.1 a token with a vocabulary of 1,024)."""
    chat_count: int = 34_000
    """Instruction chats of the train split."""
    courtesy_share: float = 0.25
    """Part of the chats whose answer ends with a line of courtesy: manners that preference learning
    can change.
    """
    prompt_count: int = 6_000
    """Prompts of the preference stage's train split: of the chats' kinds, but none of the chats'
    own.
    """
    held_prompt_count: int = 400
    """Prompts of its validation split, and of its held-out split."""
    problem_count: int = 2_400
    """Problems of the reasoning stage's train split."""
    held_problem_count: int = 400
    """Problems of its validation split, and of its held-out split."""
    validation_share: float = 0.03
    """Documents and chats of the validation split, as a part of the train split's."""
    heldout_share: float = 0.04
    """Documents and chats of the held-out split, as a part of the train split's."""
    max_operand: int = 99
    """Largest operand of a sum."""
    quick_share: float = 0.3
    """Part of the arithmetic chats that ask quickly: their answers show the number alone."""
    quick_steps_share: float = 0.1
    """Part of these that show the steps all the same."""
    quick_operand: int = 29
    """Largest operand of the sums that arithmetic chats ask quickly; larger ones are left to the
    reasoning stage.
    """
    problem_quick_share: float = 0.5
    """Part of the reasoning stage's problems that ask quickly, with operands up to max_operand."""
    max_words: int = 6
    """Longest list of words in a text task."""
    documents: DocumentShares = field(default_factory=DocumentShares)
    """Weights of the kinds of document."""
    chats: ChatShares = field(default_factory=ChatShares)
    """Weights of the kinds of instruction."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        for name, most in POOLS.items():
            _between(self, name, LEAST.get(name, 4), most)
        _between(self, "seed", 0, None)
        for name in (
            "document_bytes",
            "chat_count",
            "prompt_count",
            "held_prompt_count",
            "problem_count",
            "held_problem_count",
        ):
            _between(self, name, 1000 if name == "document_bytes" else 1, None)
        for name in ("validation_share", "heldout_share"):
            _between(self, name, 0.001, 0.5)
        _between(self, "max_operand", 19, 999)
        _between(self, "quick_operand", 19, self.max_operand)
        _between(self, "quick_share", 0, 1)
        _between(self, "quick_steps_share", 0, 1)
        _between(self, "courtesy_share", 0, 1)
        _between(self, "problem_quick_share", 0, 1)
        _between(self, "max_words", 4, 8)
        self.documents.check("documents")
        self.chats.check("chats")


def _between(cfg: CorpusConfig, name: str, low: float, high: float | None) -> None:
    value: Any = getattr(cfg, name)
    if value < low or (high is not None and value > high):
        wanted = f"give {low} or more" if high is None else f"give {low} to {high}"
        raise UserError(f"{value} is out of range", where=name, hint=wanted)
