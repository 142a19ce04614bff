"""The words of the built-in world. Plain data: every other module draws from these lists.

The lists are short on purpose: with a vocabulary of 1,024 tokens most of these words become one token, and a model of
a million parameters then sees each of them often enough.
"""

from __future__ import annotations

from typing import NamedTuple

WOMEN = (
    "Mia", "Ada", "Ella", "Nora", "Rosa", "Ruth", "Anna", "Clara", "Emma", "Jane", "Kate", "Lucy",
    "Maya", "Nina", "Olga", "Pia", "Sara", "Tess", "Vera", "Wendy", "Zoe", "Alma", "Beth", "Dora",
)  # fmt: skip
MEN = (
    "Tom", "Ben", "Sam", "Leo", "Finn", "Hugo", "Jack", "Karl", "Liam", "Noah", "Omar", "Paul",
    "Ravi", "Rolf", "Theo", "Walt", "Adam", "Carl", "Dan", "Eric", "Fred", "Gus", "Ian", "Luke",
)  # fmt: skip
PLACES = (
    "Arden", "Belmont", "Corby", "Dunmore", "Elmton", "Farley", "Garth", "Holt", "Kelso", "Linden",
    "Marl", "Norwood", "Orrin", "Penby", "Selby", "Tarn", "Upton", "Weston", "Yarrow", "Zell",
)  # fmt: skip
SETTINGS = (
    "by the sea", "by the river", "in the hills", "in the forest", "on the lake", "in the valley", "near the desert",
    "on the plain", "under the mountain", "at the border",
)  # fmt: skip
SIGHTS = (
    "old bridge", "tall tower", "night market", "stone mill", "rose garden", "white church", "long wall", "deep well",
    "glass house", "round square", "warm spring", "black castle", "singing school", "wooden theatre", "big harbour",
)  # fmt: skip


class Animal(NamedTuple):
    one: str
    many: str
    eats: str


ANIMALS = (
    Animal("cat", "cats", "fish"),
    Animal("dog", "dogs", "bones"),
    Animal("rabbit", "rabbits", "carrots"),
    Animal("parrot", "parrots", "seeds"),
    Animal("goat", "goats", "leaves"),
    Animal("hen", "hens", "corn"),
    Animal("pony", "ponies", "oats"),
    Animal("duck", "ducks", "snails"),
    Animal("turtle", "turtles", "lettuce"),
    Animal("mouse", "mice", "cheese"),
    Animal("goose", "geese", "grass"),
    Animal("owl", "owls", "moths"),
    Animal("donkey", "donkeys", "hay"),
    Animal("frog", "frogs", "flies"),
    Animal("sheep", "sheep", "clover"),
    Animal("lizard", "lizards", "crickets"),
    Animal("pigeon", "pigeons", "crumbs"),
    Animal("pig", "pigs", "turnips"),
)
BEDS = (
    "in the barn", "in a basket", "under the stairs", "by the stove", "in the garden", "on the roof", "in a box",
    "behind the house", "under a tree", "in the attic", "on an old coat", "beside the well",
)  # fmt: skip
THINGS = (
    "drum", "lamp", "kite", "clock", "ladder", "basket", "bell", "map", "flute", "wheel", "mirror", "barrel",
    "anchor", "statue", "piano", "boat", "wagon", "flag", "spade", "kettle", "vase", "globe", "harp", "sledge",
)  # fmt: skip
JOBS = (
    "baker", "farmer", "teacher", "doctor", "painter", "sailor", "cook", "driver", "singer", "gardener",
    "nurse", "tailor", "miller", "writer", "builder", "judge", "potter", "dancer", "pilot", "actor",
)  # fmt: skip
FOODS = (
    "soup", "bread", "rice", "cheese", "apples", "pears", "plums", "honey", "cake", "fish",
    "pasta", "beans", "nuts", "grapes", "eggs", "pie", "porridge", "cherries", "salad", "butter",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple", "orange", "pink", "grey", "silver")
ITEMS = (
    "ball", "book", "cup", "key", "hat", "coin", "ring", "bag", "shoe", "pen",
    "scarf", "spoon", "letter", "stone", "glove", "brush", "plate", "doll", "torch", "umbrella",
)  # fmt: skip
ROOMS = (
    "kitchen", "garden", "attic", "cellar", "barn", "hall", "library", "shop",
    "tower", "yard", "school", "mill", "stable", "office", "park", "bakery",
)  # fmt: skip
COUNTED = ("apples", "eggs", "nuts", "books", "cups", "coins", "stones", "hens", "sheep", "plums")
SPOTS = ("table", "shelf", "floor", "bench", "wall", "bed", "desk", "roof", "step", "stove", "chair", "cart")

CATEGORIES = {"animal": tuple(animal.one for animal in ANIMALS), "food": FOODS, "colour": COLOURS, "job": JOBS}
"""What a word can be picked for; no word stands in two of them."""
TASK_WORDS = tuple(
    dict.fromkeys(word for pool in (CATEGORIES["animal"], FOODS, COLOURS, ITEMS) for word in pool if len(word) < 8)
)
"""Words of the text tasks."""


def article(noun: str) -> str:
    """The noun with its indefinite article. The lists hold no silent h and no "you" sound but "uni…"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
