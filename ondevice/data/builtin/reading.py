"""Contexts: a few sentences that say something for the moment, and questions that only they can
answer.

What they tell (who is in which room, who has what, what lies where, who bought or lost what) is
drawn anew each time and contradicts no fact of the world, so a right answer has to be read off the
context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from ondevice.data.builtin import lexicon
from ondevice.data.builtin.lexicon import sentence
from ondevice.data.builtin.splits import CONTENTS, Split, place


@dataclass(frozen=True)
class Theme:
    """One thing that a context tells of: `e` (an entity) goes with `v` (a value)."""

    entities: tuple[str, ...]
    """Pool of entities; empty: the people of the world."""
    values: tuple[str, ...]
    tell: tuple[str, ...]
    ask_value: tuple[str, ...]
    value_answer: str
    ask_entity: tuple[str, ...]
    entity_answer: str = "{e}"


THEMES: Mapping[str, Theme] = {
    "room": Theme(
        entities=(),
        values=lexicon.ROOMS,
        tell=(
            "{e} is in the {v}.",
            "{e} went to the {v}.",
            "{e} is waiting in the {v}.",
            "{e} sits in the {v}.",
            "{e} ran into the {v}.",
            "{e} is working in the {v}.",
            "{e} is now in the {v}.",
        ),
        ask_value=(
            "Where is {e}?",
            "In which room is {e}?",
            "Where can we find {e}?",
            "Where should we look for {e}?",
        ),
        value_answer="In the {v}",
        ask_entity=("Who is in the {v}?", "Who went to the {v}?", "Whom can we find in the {v}?"),
    ),
    "has": Theme(
        entities=(),
        values=lexicon.ITEMS,
        tell=(
            "{e} has the {v}.",
            "{e} took the {v}.",
            "{e} holds the {v}.",
            "{e} found the {v}.",
            "{e} carries the {v}.",
            "{e} picked up the {v}.",
            "{e} was given the {v}.",
        ),
        ask_value=(
            "What does {e} have?",
            "What has {e} got?",
            "Which thing is with {e}?",
            "What can {e} give us?",
        ),
        value_answer="The {v}",
        ask_entity=("Who has the {v}?", "Who has got the {v}?", "Whom should we ask for the {v}?"),
    ),
    "spot": Theme(
        entities=lexicon.ITEMS,
        values=lexicon.SPOTS,
        tell=(
            "The {e} is on the {v}.",
            "The {e} lies on the {v}.",
            "The {e} was left on the {v}.",
            "The {e} fell on the {v}.",
            "The {e} is there on the {v}.",
            "The {e} was put on the {v}.",
        ),
        ask_value=(
            "Where is the {e}?",
            "Where does the {e} lie?",
            "Where should we look for the {e}?",
        ),
        value_answer="On the {v}",
        ask_entity=(
            "What is on the {v}?",
            "Which thing is on the {v}?",
            "What was left on the {v}?",
        ),
        entity_answer="The {e}",
    ),
    "bought": Theme(
        entities=(),
        values=lexicon.FOODS,
        tell=(
            "{e} bought some {v}.",
            "{e} came home with {v}.",
            "{e} made {v}.",
            "{e} brought {v}.",
            "{e} chose the {v}.",
            "{e} got some {v}.",
        ),
        ask_value=("What did {e} bring?", "Which food does {e} have today?", "What did {e} get?"),
        value_answer="{V}",
        ask_entity=("Who brought {v}?", "Who has {v} today?", "Who came home with {v}?"),
    ),
    "met": Theme(
        entities=(),
        values=tuple(animal.one for animal in lexicon.ANIMALS),
        tell=(
            "{e} saw {av}.",
            "{e} met {av}.",
            "{e} fed {av}.",
            "{e} drew {av}.",
            "{e} dreamed of {av}.",
            "{e} heard {av}.",
        ),
        ask_value=(
            "Which animal was it for {e}?",
            "What animal did {e} meet or see?",
            "Which animal goes with {e}?",
        ),
        value_answer="{AV}",
        ask_entity=("Who tells of {av}?", "Who goes with {av}?", "Who knows about {av}?"),
    ),
}
LAYOUTS = (
    "{context} {q}",
    "{context} {q}",
    "{context}\n{q}",
    "Read this. {context} {q}",
    "Text: {context}\nQuestion: {q}",
    "{q} {context}",
    "Answer from the text. {context} {q}",
    "Listen: {context} Now tell me: {q}",
)
"""How a chat puts a context and a question about it."""
PAIRS = (
    " Question: {q} Answer: {a}.",
    "\nQuestion: {q}\nAnswer: {a}.",
    " {q} {a}.",
    "\n{q} {a}.",
    "\n- {q}\n- {a}.",
)
"""How a document puts questions and answers."""
RETOLD = (
    "{context} Once more: {again}",
    "{context}\nIn another order: {again}",
    "{context} That is all: {again}",
    "First: {context}\nThen: {again}",
)
"""How a document says a context again."""


@dataclass(frozen=True)
class Context:
    theme: Theme
    pairs: tuple[tuple[str, str], ...]
    told: tuple[str, ...]
    """One sentence a pair."""

    @property
    def text(self) -> str:
        return " ".join(self.told)

    def question(self, random: Random, index: int, backwards: bool) -> tuple[str, str]:
        """A question about pair `index` and its answer without the full stop; backwards asks for
        the entity.
        """
        e, v = self.pairs[index]
        slots = {
            "e": e,
            "v": v,
            "V": sentence(v),
            "av": lexicon.article(v),
            "AV": sentence(lexicon.article(v)),
        }
        frames, shape = self.theme.ask_value, self.theme.value_answer
        if backwards:
            frames, shape = self.theme.ask_entity, self.theme.entity_answer
        return random.choice(frames).format(**slots), shape.format(**slots)


def context(random: Random, seed: int, split: Split, people: Sequence[str], count: int) -> Context:
    """A context of `count` sentences; who goes with what decides its split, whatever the wording or
    the order.
    """
    name = random.choice(tuple(THEMES))
    theme = THEMES[name]
    while True:
        entities = random.sample(theme.entities or people, count)
        pairs = tuple(zip(entities, random.sample(theme.values, count), strict=True))
        if place(seed, "context", f"{name} {sorted(pairs)}", CONTENTS) == split:
            break
    # Half of the contexts repeat one wording: there the pairs alone tell the sentences apart.
    if random.random() < 0.5:
        frames = [random.choice(theme.tell)] * count
    else:
        frames = random.choices(theme.tell, k=count)
    told = (
        frame.format(e=e, v=v, av=lexicon.article(v))
        for frame, (e, v) in zip(frames, pairs, strict=True)
    )
    return Context(theme, pairs, tuple(told))


def request(random: Random, seed: int, split: Split, people: Sequence[str]) -> tuple[str, str]:
    """One instruction and its answer without the full stop."""
    found = context(random, seed, split, people, random.choice((2, 2, 3, 3, 4)))
    question, answer = found.question(
        random, random.randrange(len(found.pairs)), random.random() < 0.25
    )
    return random.choice(LAYOUTS).format(context=found.text, q=question), answer


def document(random: Random, seed: int, split: Split, people: Sequence[str]) -> str:
    """A context, then what it said once more: as answers to questions about all of it, or told in
    another order.

    Whole sentences as answers are the step between copying a text and looking up one thing in it.
    """
    found = context(random, seed, split, people, random.choice((2, 3, 3, 4, 4, 5)))
    order = list(range(len(found.pairs)))
    random.shuffle(order)
    style, pair = random.random(), random.choice(PAIRS)
    if style < 0.15:
        again = " ".join(found.told[index] for index in order)
        return random.choice(RETOLD).format(context=found.text, again=again)
    backwards = random.random() < 0.3
    text = found.text
    for index in order:
        question, reply = found.question(random, index, backwards)
        if style < 0.4:
            reply = found.told[index].removesuffix(".")
        text += pair.format(q=question, a=reply)
    return text
