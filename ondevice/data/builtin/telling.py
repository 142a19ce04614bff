"""Documents that tell and ask what is true of the world."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from ondevice.data.builtin.frames import QUESTIONS, STATEMENTS, answer, ask, tell
from ondevice.data.builtin.lexicon import article, sentence
from ondevice.data.builtin.reading import PAIRS
from ondevice.data.builtin.splits import QUESTIONS as PARTS
from ondevice.data.builtin.splits import Split, place
from ondevice.data.builtin.world import Fact, Person, World

RECORDS = (
    "Name: {name}\nHome: {home}\nJob: {job}\nPet: {pet}\nFood: {food}\nColour: {colour}",
    "{name}: {job}, lives in {home}, has {pet_a}, likes {food} and the colour {colour}.",
    "{name} is {job_a} from {home} who likes {food}, has {pet_a} and wears {colour}.",
    "{name} of {home} is {job_a} with {pet_a}. {Colour} is {his} colour, {food} {his} favourite food.",
    "Here is {name}, {job_a}. {He} came from {home} with {his} {pet}, a bag of {food} and {colour_a} hat.",
)
"""All of a person in one breath."""
INTRODUCTIONS = (
    "This is about {name}.",
    "Let me tell you about {name}.",
    "Do you know {name}?",
    "Here is something about {name}.",
    "Who is {name}?",
)
HOMES = (
    "In {town} live {names}.",
    "{town} is home to {names}.",
    "The people of {town} are {names}.",
    "If you go to {town}, you will meet {names}.",
)
RELATIONS = ("home", "job", "pet", "food", "colour")


def people_document(random: Random, world: World) -> str:
    """One person at length, a person's record, or one relation of several people."""
    style = random.random()
    if style < 0.55:
        person = random.choice(world.people)
        return _profile(random, person, random.choice((3, 4, 5, 5)))
    if style < 0.75:
        people = random.sample(world.people, random.choice((1, 2, 3)))
        record = random.choice(RECORDS)
        return "\n".join(record.format(**_slots(person)) for person in people)
    if style < 0.95:
        relation = random.choice(RELATIONS)
        people = random.sample(world.people, random.randint(3, 5))
        return " ".join(_told(random, relation, person) for person in people)
    return _neighbours(random, world)


def _profile(random: Random, person: Person, count: int) -> str:
    relations = random.sample(RELATIONS, count)
    told = []
    if random.random() < 0.2:
        told.append(random.choice(INTRODUCTIONS).format(name=person.name))
    for index, relation in enumerate(relations):
        # The name stands in most sentences: what a sentence teaches should not hang on a pronoun.
        pronoun = ""
        if index and random.random() < 0.4:
            pronoun = sentence(person.he)
        told.append(_told(random, relation, person, pronoun))
    return " ".join(told)


def _told(random: Random, relation: str, person: Person, pronoun: str = "") -> str:
    fact = Fact(relation, person.name, getattr(person, relation))
    return tell(
        fact, random.choice(STATEMENTS[relation]), pronoun=pronoun, he=person.he, his=person.his
    )


def _slots(person: Person) -> dict[str, str]:
    return {
        "name": person.name, "home": person.home, "job": person.job, "job_a": article(person.job), "pet": person.pet,
        "pet_a": article(person.pet), "food": person.food, "colour": person.colour, "Colour": sentence(person.colour),
        "colour_a": article(person.colour), "his": person.his, "He": sentence(person.he),
    }  # fmt: skip


def _neighbours(random: Random, world: World) -> str:
    told = []
    for town in random.sample(world.places, min(3, len(world.places))):
        names = [person.name for person in world.people if person.home == town.name]
        random.shuffle(names)
        if len(names) > 1:
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
            told.append(random.choice(HOMES).format(town=town.name, names=listed))
    return " ".join(told)


def world_document(random: Random, world: World) -> str:
    """Some places, animals or things with what is true of them."""
    subjects: list[tuple[str, list[Fact]]] = []
    kind = random.choice(("places", "animals", "things", "things"))
    for item in random.sample(getattr(world, kind), random.randint(1, 3)):
        if kind == "places":
            subjects.append(
                (
                    "It",
                    [
                        Fact("setting", item.name, item.setting),
                        Fact("sight", item.name, item.sight),
                    ],
                )
            )
        elif kind == "animals":
            subjects.append(
                ("They", [Fact("eats", item.many, item.eats), Fact("bed", item.many, item.bed)])
            )
        else:
            subjects.append(
                (
                    "It",
                    [Fact("place", item.name, item.place), Fact("paint", item.name, item.colour)],
                )
            )
    told = []
    for pronoun, facts in subjects:
        random.shuffle(facts)
        frame = ""
        for fact in facts:
            # A pronoun is clear only after a sentence that had the same subject.
            short = ""
            if frame.startswith("{S}") and random.random() < 0.6:
                short = pronoun
            frame = random.choice(STATEMENTS[fact.relation])
            told.append(tell(fact, frame, pronoun=short))
    return " ".join(told)


def questions(world: World, seed: int, split: Split) -> list[tuple[Fact, str]]:
    """Every (fact, wording) whose question belongs to `split`."""
    return [
        (fact, frame)
        for fact in world.facts()
        for frame in QUESTIONS[fact.relation]
        if place(seed, "question", ask(fact, frame), PARTS) == split
    ]


def question_document(random: Random, asked: Sequence[tuple[Fact, str]]) -> str:
    """A few questions about the world with their answers."""
    pair = random.choice(PAIRS)
    chosen = random.sample(asked, min(len(asked), random.randint(2, 4)))
    return "".join(
        pair.format(q=ask(fact, frame), a=answer(fact)) for fact, frame in chosen
    ).strip()
