"""Simple text tasks on lists of words: how they are asked and answered, and texts that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from ondevice.data.builtin.lexicon import CATEGORIES, TASK_WORDS, article
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
        "{words}. Again: {words}.",
        "Say {words}. And once more: {words}.",
        "{words}. The same words again: {words}.",
        "Repeat: {words}. Repeated: {words}.",
        "{name} said: {words}. Then {name} said it again: {words}.",
        "{words}. Once more: {words}. And again: {words}.",
    ),
    "reverse": (
        "Words: {words}. Backwards: {turned}.",
        "{words}. Turned around: {turned}.",
        "The words {words}, from last to first: {turned}.",
        "In one order: {words}. In the opposite order: {turned}.",
        "{name} wrote {words}. Read backwards that is {turned}.",
    ),
    "upper": (
        "Words: {words}. In capitals: {capitals}.",
        "{words}. In upper case: {capitals}.",
        "In small letters: {words}. In capital letters: {capitals}.",
        "{name} whispered {words}. Then {name} shouted {capitals}.",
        "{capitals}. In small letters: {words}.",
    ),
    "ends": (
        "Words: {words}. The first word is {first} and the last word is {last}.",
        "The list {words} begins with {first} and ends with {last}.",
        "{words}. First: {first}. Last: {last}.",
        "In the list {words} the word {first} stands first and {last} stands last.",
        "{name} bought {words}: first of all {first}, and {last} last of all.",
    ),
    "count": (
        "Words: {words}. Number of words: {count}.",
        "{words}. That makes {count} words.",
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
        "{words}. One of these words is {kind}: {pick}.",
        "In the list {words} there is {kind}, namely {pick}.",
        "Which word of {words} is {kind}? It is {pick}.",
    ),
}
WEIGHTS = {"again": 5, "reverse": 4, "upper": 3, "ends": 3, "count": 2, "list": 3, "pick": 3}


def words_for(random: Random, seed: int, split: Split, low: int, high: int) -> list[str]:
    """Different words in an order of their own; any order of the same words belongs to the same split."""
    while True:
        words = random.sample(TASK_WORDS, random.randint(low, high))
        if place(seed, "words", " ".join(sorted(words)), CONTENTS) == split:
            return words


def words_to_pick(random: Random, seed: int, split: Split, high: int) -> tuple[list[str], str, str]:
    """Words of which just one belongs to the category: (words, category, that word)."""
    category = random.choice(tuple(CATEGORIES))
    members = {*CATEGORIES[category], "fish"}  # fish is a food here, but nobody would call it no animal
    others = [word for word in TASK_WORDS if word not in members]
    while True:
        pick = random.choice(CATEGORIES[category])
        words = [pick, *random.sample(others, random.randint(2, max(2, min(4, high - 1))))]
        random.shuffle(words)
        if place(seed, "words", " ".join(sorted(words)), CONTENTS) == split:
            return words, category, pick


def numbered(words: Sequence[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def solve(kind: str, words: Sequence[str], pick: str = "") -> str:
    """The right answer to a request of REQUESTS."""
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
            return joined(reversed(words))
        case "upper":
            return joined(words).upper()
        case "pick":
            return pick
        case _:
            raise AssertionError(f"no text task {kind!r}")


def joined(words: Iterable[str]) -> str:
    return ", ".join(words)


def request(random: Random, seed: int, split: Split, kind: str, most: int) -> tuple[str, str]:
    """One instruction and its answer."""
    frame = random.choice(REQUESTS[kind])
    if kind == "pick":
        words, category, pick = words_to_pick(random, seed, split, most)
        return frame.format(words=joined(words), kind=article(category)), pick
    low, high = (1, min(4, most)) if kind == "upper" else (2, min(5, most)) if kind == "reverse" else (2, most)
    words = words_for(random, seed, split, low, high)
    return frame.format(words=joined(words)), solve(kind, words)


def document(random: Random, seed: int, split: Split, most: int, names: Sequence[str]) -> str:
    """Two to four texts on lists of words, often on the same list."""
    kinds, weights = tuple(WEIGHTS), tuple(WEIGHTS.values())
    parts = []
    words = words_for(random, seed, split, 3, most)
    for kind in random.choices(kinds, weights, k=random.randint(2, 4)):
        if random.random() < 0.6:
            words = words_for(random, seed, split, 2, most)
        category = pick = ""
        if kind == "pick":
            words, category, pick = words_to_pick(random, seed, split, most)
        parts.append(
            random.choice(SHOWN[kind]).format(
                words=joined(words), turned=joined(words[::-1]), capitals=joined(words).upper(), first=words[0],
                last=words[-1], count=len(words), lines=numbered(words), pick=pick, kind=article(category or "x"),
                name=random.choice(names),
            )
        )  # fmt: skip
    return "\n".join(parts)
