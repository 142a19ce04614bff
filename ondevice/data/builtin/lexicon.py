"""The words of the built-in world. Plain data: every other module draws from these lists.

The lists are short on purpose: with a vocabulary of 1,024 tokens most of these words become one
token, and a model of a million parameters then sees each of them often enough.
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
    "baker", "farmer", "teacher", "doctor", "painter", "sailor", "cook", "driver",
    "singer", "gardener", "nurse", "miller", "writer", "judge", "potter", "actor",
)  # fmt: skip
FOODS = (
    "soup", "bread", "rice", "cheese", "apples", "pears", "plums", "honey",
    "cake", "fish", "beans", "nuts", "grapes", "eggs", "pie", "butter",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange", "pink", "grey")
ITEMS = (
    "ball",
    "book",
    "cup",
    "key",
    "hat",
    "coin",
    "ring",
    "bag",
    "shoe",
    "pen",
    "letter",
    "stone",
    "umbrella",
)
COUNTED = ("apples", "eggs", "nuts", "books", "cups", "coins", "stones", "hens", "pears", "plums")
ROOMS = (
    "kitchen",
    "garden",
    "barn",
    "hall",
    "shop",
    "tower",
    "yard",
    "school",
    "mill",
    "office",
    "park",
    "house",
)
SPOTS = ("table", "shelf", "floor", "bench", "wall", "bed", "roof", "step", "chair", "cart")

CATEGORIES = {
    "animal": ("cat", "dog", "hen", "goat", "duck", "owl", "frog", "pony", "mouse"),
    "food": ("soup", "bread", "rice", "cheese", "cake", "pie", "nuts", "eggs", "honey"),
    "colour": ("red", "blue", "green", "white", "black", "brown", "pink", "grey", "yellow"),
    "thing": ("ball", "book", "cup", "key", "hat", "coin", "ring", "bag", "pen"),
}
"""The words of the text tasks, by what they can be picked for. No word stands in two of them."""
TASK_WORDS = tuple(word for words in CATEGORIES.values() for word in words)
"""Few, so that a small model soon sees each of them come back: with 66 words it learned to copy
three times later.
"""


def article(noun: str) -> str:
    """The noun with its indefinite article. The lists hold no silent h and no "you" sound but
    "uni…".
    """
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
