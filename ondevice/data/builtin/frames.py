"""Sentence frames about the world: how a fact is told, how it is asked, how it is answered.

Slots: {S} the subject at the start of a sentence (a name, or He or She after the first time), {P}
its possessive, {name} always the name, {v} the value, {av} the value with a or an, {V} the value
with a capital letter. Facts on animals are told in the plural, facts on things with "the".
"""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.data.builtin.lexicon import article, sentence
from ondevice.data.builtin.world import Fact

STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "home": (
        "{S} lives in {v}.",
        "{P} home is in {v}.",
        "{S} has a house in {v}.",
        "{S} was born far away but now lives in {v}.",
        "The home of {name} is {v}.",
        "{S} comes home to {v} every evening.",
        "{S} would never leave {v}.",
        "In {v} everybody knows {name}, who lives there.",
        "{S} lives in a small house in {v}.",
    ),
    "job": (
        "{S} is {av}.",
        "{S} works as {av}.",
        "{P} job is that of {av}.",
        "{S} earns a living as {av}.",
        "{S} has been {av} for many years.",
        "By trade {name} is {av}.",
        "People know {name} as {av}.",
        "{S} became {av} long ago.",
        "{S} is proud to be {av}.",
    ),
    "pet": (
        "{S} has {av}.",
        "{S} keeps {av}.",
        "{P} pet is {av}.",
        "{S} takes good care of {av}.",
        "At home {name} has {av}.",
        "{S} shares the house with {av}.",
        "{S} once found {av} and kept it.",
        "The pet of {name} is {av}.",
        "{S} talks to {av} every day, for that is {his} pet.",
    ),
    "food": (
        "{S} likes {v} best of all.",
        "{P} favourite food is {v}.",
        "{S} likes to eat {v}.",
        "{S} loves {v}.",
        "{S} would eat {v} every day.",
        "For dinner {name} always wants {v}.",
        "{S} never says no to {v}.",
        "Nothing tastes better to {name} than {v}.",
        "{S} is always happy with {v}.",
    ),
    "colour": (
        "{P} favourite colour is {v}.",
        "{S} likes the colour {v}.",
        "{S} paints everything {v}.",
        "{S} loves all things {v}.",
        "{P} door is painted {v}, the colour that {he} likes.",
        "Of all colours {name} likes {v} best.",
        "{S} always wears {v}.",
        "The colour that {name} likes is {v}.",
        "{S} thinks that {v} is the best colour.",
    ),
    "setting": (
        "{S} lies {v}.",
        "{S} is a small place {v}.",
        "You will find {name} {v}.",
        "{S} was built {v}.",
        "The houses of {name} stand {v}.",
        "{S} is the quiet town {v}.",
    ),
    "sight": (
        "{S} is known for its {v}.",
        "People visit {name} to see the {v}.",
        "{S} is proud of its {v}.",
        "In the middle of {name} you will see the {v}.",
        "The {v} of {name} is famous.",
        "Everybody in {name} loves the {v}.",
    ),
    "eats": (
        "{S} eat {v}.",
        "{S} like to eat {v}.",
        "{V} are what {name} eat.",
        "Give {v} to {name}, for that is what they eat.",
        "The food of {name} is {v}.",
        "{S} are always hungry for {v}.",
    ),
    "bed": (
        "{S} sleep {v}.",
        "At night {name} sleep {v}.",
        "{S} like to sleep {v}.",
        "When they are tired, {name} sleep {v}.",
        "The best bed for {name} is {v}.",
        "You can find sleeping {name} {v}.",
    ),
    "place": (
        "{S} is in {v}.",
        "{S} is kept in {v}.",
        "{S} stands in {v}.",
        "You can see {name} in {v}.",
        "People brought {name} to {v}.",
        "In {v} there is {name}.",
    ),
    "paint": (
        "{S} is {v}.",
        "{S} is painted {v}.",
        "The colour of {name} is {v}.",
        "Somebody painted {name} {v}.",
        "{S} has always been {v}.",
        "{S} shines {v} in the sun.",
    ),
}
"""Frames in which a relation is told."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "home": (
        "Where does {name} live?",
        "In which town does {name} live?",
        "Where is the home of {name}?",
        "What town does {name} live in?",
        "Name the town where {name} lives.",
        "Where is {name}'s house?",
        "Tell me where {name} lives.",
        "Which place is home to {name}?",
        "Where can I visit {name} at home?",
        "Which town does {name} call home?",
    ),
    "job": (
        "What is {name}'s job?",
        "What does {name} do for a living?",
        "What is the job of {name}?",
        "What work does {name} do?",
        "Which job does {name} have?",
        "Name the job of {name}.",
        "Tell me what job {name} has.",
        "What does {name} work as?",
        "How does {name} earn a living?",
        "What is {name} by trade?",
    ),
    "pet": (
        "What pet does {name} have?",
        "Which animal does {name} keep?",
        "What kind of pet lives with {name}?",
        "What animal does {name} have?",
        "What is {name}'s pet?",
        "Name the pet of {name}.",
        "Tell me which animal {name} keeps.",
        "Which animal belongs to {name}?",
        "Which pet does {name} take care of?",
        "What animal shares a house with {name}?",
    ),
    "food": (
        "What does {name} like to eat?",
        "What is {name}'s favourite food?",
        "Which food does {name} like best?",
        "What food does {name} love?",
        "Name the favourite food of {name}.",
        "Tell me what {name} likes to eat.",
        "What would {name} eat every day?",
        "What should I cook for {name}?",
        "What does {name} want for dinner?",
        "Which food makes {name} happy?",
    ),
    "colour": (
        "What is {name}'s favourite colour?",
        "Which colour does {name} like?",
        "What colour does {name} love?",
        "Which colour does {name} like best?",
        "Name the favourite colour of {name}.",
        "Tell me the colour that {name} likes.",
        "What colour does {name} wear?",
        "In which colour does {name} paint things?",
        "What colour is {name}'s door?",
        "Which colour would {name} choose?",
    ),
    "setting": (
        "Where does {name} lie?",
        "Where is {name}?",
        "Where can I find {name}?",
        "Where was {name} built?",
        "Tell me where {name} lies.",
        "Where do the houses of {name} stand?",
        "Where must I go to find {name}?",
    ),
    "sight": (
        "What is {name} known for?",
        "What can I see in {name}?",
        "What is {name} proud of?",
        "Why do people visit {name}?",
        "What stands in the middle of {name}?",
        "Name the famous sight of {name}.",
        "Tell me what there is to see in {name}.",
    ),
    "eats": (
        "What do {name} eat?",
        "What do {name} like to eat?",
        "What is the food of {name}?",
        "What should I give to {name}?",
        "Tell me what {name} eat.",
        "Name the food of {name}.",
        "What are {name} hungry for?",
    ),
    "bed": (
        "Where do {name} sleep?",
        "Where do {name} like to sleep?",
        "Where do {name} go when they are tired?",
        "Where is the best bed for {name}?",
        "Tell me where {name} sleep.",
        "Where are {name} at night?",
        "Where can I find sleeping {name}?",
    ),
    "place": (
        "Where is {name}?",
        "In which town is {name}?",
        "Where can I see {name}?",
        "Which town keeps {name}?",
        "Tell me where {name} is.",
        "Name the town that has {name}.",
        "Where was {name} brought to?",
    ),
    "paint": (
        "What colour is {name}?",
        "Which colour does {name} have?",
        "What is the colour of {name}?",
        "In which colour is {name} painted?",
        "Tell me the colour of {name}.",
        "Name the colour of {name}.",
        "Which colour was used for {name}?",
    ),
}
"""Frames in which a relation is asked."""

ANSWERS: Mapping[str, str] = {
    "home": "{V}",
    "job": "{AV}",
    "pet": "{AV}",
    "food": "{V}",
    "colour": "{V}",
    "setting": "{V}",
    "sight": "The {v}",
    "eats": "{V}",
    "bed": "{V}",
    "place": "{V}",
    "paint": "{V}",
}
"""The one short answer to every wording of a question; a full stop follows it."""

OPENINGS = (
    "{q}",
    "{q}",
    "{q}",
    "{q}",
    "Question: {q}",
    "A question: {q}",
    "Please answer. {q}",
    "Answer briefly. {q}",
    "{q} Answer briefly.",
    "{q} Please answer.",
    "{q} A few words will do.",
    "I have a question. {q}",
    "Can you help me? {q}",
    "Think of the people and towns that you know. {q}",
)
"""How a chat puts a question about the world."""

GOODS = frozenset(("place", "paint"))
MASS = frozenset(("fish", "corn", "lettuce", "cheese", "grass", "hay", "clover"))
"""Animals' food that takes a singular verb."""


def label(fact: Fact) -> str:
    """The subject as a sentence names it."""
    if fact.relation in GOODS:
        return f"the {fact.subject}"
    return fact.subject


def tell(fact: Fact, frame: str, *, pronoun: str = "", his: str = "his", he: str = "he") -> str:
    """One statement. With `pronoun` ("He", "She", "It", "They") the subject is not named where the
    frame allows.
    """
    name = label(fact)
    owner = {"He": "His", "She": "Her"}.get(pronoun, f"{sentence(name)}'s")
    text = frame.format(
        S=pronoun or sentence(name), P=owner, name=name, v=fact.value, V=sentence(fact.value),
        av=article(fact.value), he=he, his=his,
    )  # fmt: skip
    if fact.relation == "eats" and fact.value in MASS and frame.startswith("{V} are"):
        text = text.replace(" are what", " is what", 1)
    if text[0].isupper():
        return text
    return sentence(text)


def ask(fact: Fact, frame: str) -> str:
    """One question."""
    return frame.format(name=label(fact))


def answer(fact: Fact) -> str:
    """Its answer, without the full stop."""
    return ANSWERS[fact.relation].format(
        v=fact.value, V=sentence(fact.value), AV=sentence(article(fact.value))
    )
