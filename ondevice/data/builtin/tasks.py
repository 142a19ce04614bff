"""Simple text tasks on lists of words: how they are asked and answered, and texts that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from ondevice.data.builtin.lexicon import CATEGORIES, ITEMS, ROOMS, SPOTS, TASK_WORDS, article
from ondevice.data.builtin.splits import CONTENTS, Split, place

REQUESTS: Mapping[str, tuple[str, ...]] = {
    "count": (
        "How many words are here: {words}",
        "Count the words: {words}",
        "Count these words: {words}",
        "What is the number of words in this list: {words}",
        "How many words do you see? {words}",
        "Tell me how many words these are: {words}",
        "{words}. How many words is that?",
        "How long is this list? {words}",
    ),
    "first": (
        "What is the first word: {words}",
        "Give me the first word: {words}",
        "Which word comes first? {words}",
        "Take the first word of this list: {words}",
        "Write only the first word: {words}",
        "Say the word that stands first: {words}",
        "{words}. Which word comes first?",
        "How does this list begin? {words}",
    ),
    "last": (
        "What is the last word: {words}",
        "Give me the last word: {words}",
        "Which word comes last? {words}",
        "Take the last word of this list: {words}",
        "Write only the last word: {words}",
        "Say the word that stands last: {words}",
        "{words}. Which word comes last?",
        "How does this list end? {words}",
    ),
    "list": (
        "Make a list: {words}",
        "Write these as a numbered list: {words}",
        "Number these words: {words}",
        "Put numbers before the words: {words}",
        "Turn this into a list: {words}",
        "Please make a numbered list of {words}.",
        "List these words, one a line: {words}",
        "I need a list of {words}.",
    ),
    "reverse": (
        "Reverse the words: {words}",
        "Write these words backwards: {words}",
        "Turn the order around: {words}",
        "Put the words in the opposite order: {words}",
        "Say the words from last to first: {words}",
        "Reverse this list: {words}",
        "{words}. Now backwards, please.",
        "Begin with the last word and end with the first: {words}",
    ),
    "upper": (
        "Write in capital letters: {words}",
        "Make this upper case: {words}",
        "Put these words in capitals: {words}",
        "Upper case, please: {words}",
        "Use only capital letters: {words}",
        "Shout this: {words}",
        "{words}. The same in capitals, please.",
        "Change to upper case: {words}",
    ),
    "pick": (
        "Which of these is {kind}: {words}",
        "Find {kind}: {words}",
        "Pick the word for {kind}: {words}",
        "One of these is {kind}. Which one? {words}",
        "{words}. Which word is {kind}?",
        "Which word names {kind}? {words}",
        "Look for {kind} here: {words}",
        "I am looking for {kind}: {words}",
    ),
}
SHOWN: Mapping[str, tuple[str, ...]] = {
    "again": (
        "Say {words}. Again: {words}.",
        "Say {words}. And once more: {words}.",
        "Here are {words}. The same words again: {words}.",
        "Repeat: {words}. Repeated: {words}.",
        "{name} said: {words}. Then {name} said it again: {words}.",
        "These are {words}. Once more: {words}. And again: {words}.",
    ),
    "reverse": (
        "Words: {words}. Backwards: {turned}.",
        "The words {words}, turned around:\n{turned}",
        "The words {words}, from last to first: {turned}.",
        "In one order: {words}. In the opposite order: {turned}.",
        "{name} wrote {words}. Read backwards that is {turned}.",
        "Reverse {words}\n{turned}",
    ),
    "upper": (
        "Words: {words}. In capitals: {capitals}.",
        "The words {words} in upper case:\n{capitals}",
        "In small letters: {words}. In capital letters: {capitals}.",
        "{name} whispered {words}. Then {name} shouted {capitals}.",
        "Capitals: {capitals}. In small letters: {words}.",
        "Write {words} in capitals\n{capitals}",
    ),
    "ends": (
        "Words: {words}. The first word is {first} and the last word is {last}.",
        "The list {words} begins with {first} and ends with {last}.",
        "Words: {words}. First: {first}. Last: {last}.",
        "In the list {words} the word {first} stands first and {last} stands last.",
        "First of {words}\n{first}\nLast of {words}\n{last}",
    ),
    "count": (
        "Words: {words}. Number of words: {count}.",
        "Words: {words}. That makes {count} words.",
        "There are {count} words in this list: {words}.",
        "{name} counted {words}: {count} words.",
        "How many words are {words}? There are {count}.",
    ),
    "list": (
        "The words {words} as a list:\n{lines}",
        "{name} wrote a list of {words}:\n{lines}",
        "A list of {words}:\n{lines}",
        "Numbers before the words {words}:\n{lines}",
    ),
    "pick": (
        "Words: {words}. Only {pick} is {kind}.",
        "Of the words {words} one is {kind}: {pick}.",
        "In the list {words} there is {kind}, namely {pick}.",
        "Which word of {words} is {kind}? It is {pick}.",
        "Find {kind} in {words}\n{pick}",
    ),
}
ECHO = (
    ("Say {words}", " and again {words}"),
    ("Words: {words}", "\nAgain: {words}"),
    ("Say {words}", "\n{words}"),
    ("Listen: {words}.", " Once more: {words}."),
    ("{name} sang {words}", " and all sang {words}"),
    ("First {words}", " and then {words}"),
    ("{name} said {words}", "\n{name} said {words}"),
)
"""A list that is said again: how it begins and how it goes on."""
ECHOES = 0.6
"""Part of the documents on words that are of this kind."""
WEIGHTS = {"again": 3, "reverse": 4, "upper": 3, "ends": 4, "count": 2, "list": 3, "pick": 3}


GAPS = (" ", " ", ", ")
"""What stands between the words of a list; an answer keeps it."""
OBJECTS = SPOTS + tuple(item for item in ITEMS if item not in TASK_WORDS)
"""More words to repeat. None of them is a task's word: a part of such a list could be another
split's list.
"""
PICKED = ("animal", "food", "colour")


def words_for(
    random: Random, seed: int, split: Split, low: int, high: int, pool: Sequence[str] = TASK_WORDS
) -> list[str]:
    """Different words in an order of their own; any order of the same words belongs to the same
    split.
    """
    while True:
        words = random.sample(pool, random.randint(low, high))
        if place(seed, "words", " ".join(sorted(words)), CONTENTS) == split:
            return words


def words_to_pick(random: Random, seed: int, split: Split, high: int) -> tuple[list[str], str, str]:
    """Words of which just one belongs to the category: (words, category, that word)."""
    category = random.choice(PICKED)
    others = [word for word in TASK_WORDS if word not in CATEGORIES[category]]
    while True:
        pick = random.choice(CATEGORIES[category])
        words = [pick, *random.sample(others, random.randint(2, max(2, min(4, high - 1))))]
        random.shuffle(words)
        if place(seed, "words", " ".join(sorted(words)), CONTENTS) == split:
            return words, category, pick


def numbered(words: Sequence[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def solve(kind: str, words: Sequence[str], gap: str = ", ") -> str:
    """The right answer to a request of REQUESTS; empty for "pick", whose answer the words alone do
    not tell.
    """
    match kind:
        case "count":
            return str(len(words))
        case "first":
            return words[0]
        case "last":
            return words[-1]
        case "list":
            return numbered(words)
        case "reverse":
            return joined(reversed(words), gap)
        case "upper":
            return joined(words, gap).upper()
        case _:
            return ""


def joined(words: Iterable[str], gap: str) -> str:
    return gap.join(words)


def request(random: Random, seed: int, split: Split, kind: str, most: int) -> tuple[str, str]:
    """One instruction and its answer."""
    frame, gap = random.choice(REQUESTS[kind]), random.choice(GAPS)
    if kind == "pick":
        words, category, pick = words_to_pick(random, seed, split, most)
        return frame.format(words=joined(words, gap), kind=article(category)), pick
    low, high = 2, most
    if kind == "upper":
        low, high = 1, min(4, most)
    elif kind == "reverse":
        high = min(5, most)
    words = words_for(random, seed, split, low, high)
    return frame.format(words=joined(words, gap)), solve(kind, words, gap)


def _echo(random: Random, seed: int, split: Split, names: Sequence[str]) -> str:
    """A short list said several times: what teaches a small model to copy from its context.

    Tried on the tiny model with such texts alone: three to eight words said twice are copied after
    300 steps, said four times after 130; lists of 8 to 14 words, or commas in every list, are not
    copied after 500. With commas in a third of the lists, those come free with the others.
    """
    pool = random.choice((TASK_WORDS, TASK_WORDS, TASK_WORDS, names, ROOMS, OBJECTS))
    words = words_for(random, seed, split, 3, 6, pool)
    first, again = random.choice(ECHO)
    told = [first] + [again] * random.randint(2, 4)
    return "".join(told).format(
        words=joined(words, random.choice((*GAPS, "\n"))), name=random.choice(names)
    )


def document(random: Random, seed: int, split: Split, most: int, names: Sequence[str]) -> str:
    """One list of words in several ways: whatever follows its first mention can be worked out from
    it.
    """
    if random.random() < ECHOES:
        return _echo(random, seed, split, names)
    category = pick = ""
    if random.random() < 0.25:
        words, category, pick = words_to_pick(random, seed, split, most)
    else:
        words = words_for(random, seed, split, 2, most)
    gap = random.choice(GAPS)
    kinds = [kind for kind in WEIGHTS if category or kind != "pick"]
    drawn = random.choices(kinds, [WEIGHTS[kind] for kind in kinds], k=random.randint(3, 5))
    slots = {
        "words": joined(words, gap), "turned": joined(words[::-1], gap), "capitals": joined(words, gap).upper(),
        "first": words[0], "last": words[-1], "count": len(words), "lines": numbered(words), "pick": pick,
        "kind": article(category or "x"), "name": random.choice(names),
    }  # fmt: skip
    parts = []
    for kind in dict.fromkeys(drawn):
        asked = random.choice(("first", "last") if kind == "ends" else (kind,))
        if asked in REQUESTS and random.random() < 0.5:
            parts.append(
                f"{random.choice(REQUESTS[asked]).format(**slots)}\n{solve(asked, words, gap) or pick}"
            )
        else:
            parts.append(random.choice(SHOWN[kind]).format(**slots))
    return "\n".join(parts)
