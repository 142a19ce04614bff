"""Short stories: plots of a few steps, each step in several wordings.

Slots: {a} and {b} are people, {he} {him} {his} follow {a}, {He} and {His} begin a sentence; {home}
{job} {pet} {food} {colour} are true of {a} in the world, {bhome} and {bfood} of {b}; {item} {room}
{other_room} {spot} are drawn for the story; {some} is a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from ondevice.data.builtin import lexicon
from ondevice.data.builtin.lexicon import article, sentence
from ondevice.data.builtin.reading import PAIRS
from ondevice.data.builtin.world import Person, Thing, World

TIMES = (
    "One morning", "One day", "In the evening", "On a cold day", "On a warm day", "After lunch", "In the spring",
    "Last week", "On Monday", "At noon", "Long ago", "Early in the year",
)  # fmt: skip

PLOTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "{some} {a} could not find the {item}.",
            "{some} the {item} of {a} was gone.",
            "{some} {a} lost {his} {item}.",
        ),
        (
            "{He} looked in the {room}, but it was not there.",
            "First {he} searched the {room}.",
            "{He} walked through the {room} twice and saw nothing.",
        ),
        (
            "Then {b} came and helped {him}.",
            "{b} heard of it and came over from {bhome}.",
            "{He} asked {b} for help.",
        ),
        (
            "They found the {item} on the {spot}.",
            "At last {b} saw the {item} on the {spot}.",
            "The {item} had been on the {spot} all the time.",
        ),
        (
            "{a} was so glad that {he} made {bfood} for {b}.",
            "{a} thanked {b} and gave {b} some {bfood}.",
            "To say thank you, {a} bought {bfood}, which {b} loves.",
        ),
    ),
    "market": (
        (
            "{some} {a} went to the market of {home}.",
            "{some} there was a market in {home}, and {a} went there.",
            "{some} {a} took a bag and walked to the market.",
        ),
        (
            "{He} wanted to buy {item_a} and some {food}.",
            "{He} needed {item_a}, and of course {he} wanted {food}.",
            "{He} had a little money for {item_a} and for {food}.",
        ),
        (
            "There {he} met {b}.",
            "{b} was there too.",
            "{b} sold things at the market that day.",
        ),
        (
            "{b} had {colour} paint, and {a} took it at once.",
            "{b} showed {him} {colour_item}, and {a} liked it.",
            "Everything {colour} was too dear for {him}.",
        ),
        (
            "In the end {a} came home with {food} and nothing else.",
            "{He} carried the {item} home and ate the {food} on the way.",
            "{He} went back to {home} with a full bag.",
        ),
    ),
    "visit": (
        (
            "{some} {a} travelled from {home} to {bhome}.",
            "{some} {a} left {home} to see {b}.",
            "{some} {a} wrote to {b} and then set out.",
        ),
        (
            "The road was long, and it rained.",
            "{His} {pet} came along.",
            "{He} took some {food} for the road.",
        ),
        (
            "{b} stood at the door and waved.",
            "{b} was waiting in the {room}.",
            "{b} opened the door and laughed.",
        ),
        (
            "They ate {bfood} together.",
            "They had {bfood} for dinner, as always at {b}'s.",
            "They sat in the {room} and talked until night.",
        ),
        (
            "The next day {a} went home to {home}.",
            "{a} stayed for a week.",
            "When {a} left, {b} gave {him} {item_a}.",
        ),
    ),
    "pet": (
        (
            "{some} the {pet} of {a} ran away.",
            "{some} {a} saw that the {pet} was gone.",
            "{some} {a} left the door open, and the {pet} ran out.",
        ),
        (
            "{a} called and called.",
            "{He} looked for it in the {other_room}.",
            "{He} asked everybody in {home}.",
        ),
        (
            "{b} had seen it near the {room}.",
            "{b} said that it was asleep in the {room}.",
            "It was {b} who found it in the {room}.",
        ),
        (
            "The {pet} was eating {pet_food}.",
            "{a} held out some {pet_food}, and the {pet} came at once.",
            "The {pet} was hungry for {pet_food}.",
        ),
        (
            "Since then {a} shuts the door.",
            "{a} carried the {pet} home.",
            "Now the {pet} is back home in {home}.",
        ),
    ),
    "gift": (
        (
            "{some} it was {a}'s birthday.",
            "{some} {a} had a birthday.",
            "{some} everybody came to {a}'s party in {home}.",
        ),
        (
            "{b} wanted to give {him} {item_a}.",
            "{b} came with {item_a}.",
            "{b} had packed {item_a} in paper.",
        ),
        (
            "It had to be {colour}, for {a} likes {colour} things.",
            "The {item} was {colour}, just as {a} likes it.",
            "{b} had painted the {item} {colour}.",
        ),
        (
            "{a} was happy and put the {item} on the {spot}.",
            "{a} laughed and showed the {item} to everybody.",
            "{a} said that it was the best gift of all.",
        ),
        (
            "Then everybody got some {food}.",
            "They ate {food} and sang.",
            "{His} {pet} got the paper to play with.",
        ),
    ),
    "work": (
        (
            "{some} {a}, the {job} of {home}, was tired.",
            "{some} {a} had too much work, for a good {job} is never alone.",
            "{some} {a} did not want to be {job_a} any more.",
        ),
        (
            "{He} sat down in the {room} and closed {his} eyes.",
            "{He} went for a walk and left the {item} behind.",
            "{He} put the {item} on the {spot} and slept.",
        ),
        (
            "Then {b} came and asked for help.",
            "{b} knocked at the door.",
            "But {b} needed {job_a}.",
        ),
        (
            "{a} got up again and did the work.",
            "{a} could not say no.",
            "{a} smiled and took the {item}.",
        ),
        (
            "{b} paid with {food}, and {a} was content.",
            "In the evening they shared some {food}.",
            "It was good to be {job_a} after all.",
        ),
    ),
    "rain": (
        (
            "{some} it rained so hard that the {room} was full of water.",
            "{some} a storm came over {home}.",
            "{some} the wind blew the {item} off the {spot}.",
        ),
        (
            "{a} ran out to save the {pet}.",
            "{a} stayed at home with {his} {pet}.",
            "{a} was alone with the {pet} and some {food}.",
        ),
        (
            "{b} called from the other side of the road.",
            "{b} came from {bhome} with a boat.",
            "Only {b} was not afraid.",
        ),
        (
            "Together they carried everything to the {other_room}.",
            "They sat in the {other_room} until the sun came back.",
            "They shut the door of the {other_room} and waited.",
        ),
        (
            "The next morning all was dry and quiet.",
            "After that {a} painted the house {colour}.",
            "Later {a} cooked {food} for both.",
        ),
    ),
    "thing": (
        (
            "{some} {a} went to {thing_place} to see the {thing}.",
            "{some} {a} heard of the {thing} in {thing_place}.",
            "{some} {a} dreamed of the {thing_colour} {thing}.",
        ),
        (
            "{b} went with {him}.",
            "{He} told {b} about it.",
            "{b} knew the way.",
        ),
        (
            "The {thing} was {thing_colour} and very old.",
            "There stood the {thing}, as {thing_colour} as ever.",
            "People in {thing_place} are proud of their {thing_colour} {thing}.",
        ),
        (
            "{a} wanted to take it home to {home}.",
            "{a} drew a picture of it.",
            "{a} would have liked {colour} better.",
        ),
        (
            "But the {thing} stayed in {thing_place}.",
            "Then they ate {food} and went home.",
            "{b} laughed and said that it belongs to {thing_place}.",
        ),
    ),
}
QUESTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lost": (("What could {a} not find?", "The {item}"), ("Who helped {a}?", "{b}")),
    "market": (("Whom did {a} meet?", "{b}"), ("Who met {b}?", "{a}")),
    "visit": (("Whom did {a} visit?", "{b}"), ("Who visited {b}?", "{a}")),
    "gift": (("Who gave something to {a}?", "{b}"), ("What was the gift of {b}?", "{Item_a}")),
    "work": (("Who was tired?", "{a}"), ("Who needed help?", "{b}")),
    "thing": (("What was this story about?", "The {thing}"), ("Who went with {a}?", "{b}")),
}
"""Asked at the end of some stories; true whatever wordings were drawn."""


def story(random: Random, world: World) -> str:
    """One story about two people."""
    a, b = random.sample(world.people, 2)
    while a.home == b.home:  # nobody travels from a town to the same town
        a, b = random.sample(world.people, 2)
    far = [thing for thing in world.things if thing.place != a.home and thing.colour != a.colour]
    name = random.choice([plot for plot in PLOTS if far or plot != "thing"])
    slots = _slots(random, world, a, b, random.choice(far or world.things))
    told = " ".join(sentence(random.choice(step).format(**slots)) for step in PLOTS[name])
    if name not in QUESTIONS or random.random() < 0.5:
        return told
    asked = random.sample(QUESTIONS[name], random.randint(1, 2))
    pair = random.choice(PAIRS)
    for question, answer in asked:
        told += pair.format(q=question.format(**slots), a=answer.format(**slots))
    return told


def _slots(random: Random, world: World, a: Person, b: Person, thing: Thing) -> dict[str, str]:
    item, (room, other_room) = random.choice(lexicon.ITEMS), random.sample(lexicon.ROOMS, 2)
    pet = next(kind for kind in world.animals if kind.one == a.pet)
    return {
        "a": a.name, "b": b.name, "he": a.he, "him": a.him, "his": a.his, "He": sentence(a.he), "His": sentence(a.his),
        "home": a.home, "job": a.job, "job_a": article(a.job), "pet": a.pet, "pet_food": pet.eats, "food": a.food,
        "colour": a.colour, "colour_item": f"{article(a.colour)} {item}", "bhome": b.home, "bfood": b.food,
        "item": item, "item_a": article(item), "Item_a": sentence(article(item)), "room": room,
        "other_room": other_room, "spot": random.choice(lexicon.SPOTS), "some": random.choice(TIMES),
        "thing": thing.name, "thing_place": thing.place, "thing_colour": thing.colour,
    }  # fmt: skip
