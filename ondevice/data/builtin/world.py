"""The small world that the corpus tells of: people, places, animals, things and what is true of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ondevice.config.corpus import CorpusConfig
from ondevice.data.builtin import lexicon


@dataclass(frozen=True)
class Person:
    name: str
    woman: bool
    home: str
    job: str
    pet: str
    food: str
    colour: str

    @property
    def he(self) -> str:
        if self.woman:
            return "she"
        return "he"

    @property
    def him(self) -> str:
        if self.woman:
            return "her"
        return "him"

    @property
    def his(self) -> str:
        if self.woman:
            return "her"
        return "his"


@dataclass(frozen=True)
class Place:
    name: str
    setting: str
    sight: str


@dataclass(frozen=True)
class AnimalKind:
    one: str
    many: str
    eats: str
    bed: str


@dataclass(frozen=True)
class Thing:
    name: str
    place: str
    colour: str


@dataclass(frozen=True)
class Fact:
    """One thing that is true: `relation` of `subject` is `value`, as the frames write it."""

    relation: str
    subject: str
    value: str


@dataclass(frozen=True)
class World:
    people: tuple[Person, ...]
    places: tuple[Place, ...]
    animals: tuple[AnimalKind, ...]
    things: tuple[Thing, ...]

    def facts(self) -> list[Fact]:
        """Everything that questions may ask about."""
        found = []
        for person in self.people:
            for relation in ("home", "job", "pet", "food", "colour"):
                found.append(Fact(relation, person.name, getattr(person, relation)))
        for town in self.places:
            found += [
                Fact("setting", town.name, town.setting),
                Fact("sight", town.name, town.sight),
            ]
        for animal in self.animals:
            found += [Fact("eats", animal.many, animal.eats), Fact("bed", animal.many, animal.bed)]
        for thing in self.things:
            found += [
                Fact("place", thing.name, thing.place),
                Fact("paint", thing.name, thing.colour),
            ]
        return found


def make_world(cfg: CorpusConfig) -> World:
    """The world of `cfg.seed`: names come in the lists' order, what is true of them is drawn."""
    random = Random(f"{cfg.seed}|world")
    names = [name for pair in zip(lexicon.WOMEN, lexicon.MEN, strict=True) for name in pair][
        : cfg.people
    ]
    towns = lexicon.PLACES[: cfg.places]
    kinds = lexicon.ANIMALS[: cfg.animals]
    homes, jobs = _deal(random, towns, cfg.people), _deal(random, lexicon.JOBS, cfg.people)
    pets, foods = (
        _deal(random, [kind.one for kind in kinds], cfg.people),
        _deal(random, lexicon.FOODS, cfg.people),
    )
    colours = _deal(random, lexicon.COLOURS, cfg.people)
    people = tuple(
        Person(name, name in lexicon.WOMEN, homes[i], jobs[i], pets[i], foods[i], colours[i])
        for i, name in enumerate(names)
    )
    settings, sights = (
        _deal(random, lexicon.SETTINGS, cfg.places),
        _deal(random, lexicon.SIGHTS, cfg.places),
    )
    beds = _deal(random, lexicon.BEDS, cfg.animals)
    stands, paints = _deal(random, towns, cfg.things), _deal(random, lexicon.COLOURS, cfg.things)
    return World(
        people=people,
        places=tuple(Place(*row) for row in zip(towns, settings, sights, strict=True)),
        animals=tuple(AnimalKind(*kind, bed) for kind, bed in zip(kinds, beds, strict=True)),
        things=tuple(
            Thing(*row) for row in zip(lexicon.THINGS[: cfg.things], stands, paints, strict=True)
        ),
    )


def _deal(random: Random, pool: Sequence[str], count: int) -> list[str]:
    """`count` draws in which every word of the pool comes up equally often, give or take one."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += random.sample(pool, len(pool))
    return dealt[:count]
