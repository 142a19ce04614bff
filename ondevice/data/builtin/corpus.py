"""The corpus itself: documents, instruction chats and problems, by split.

Which split a question, a context, a list of words or a sum belongs to follows from what it is
(splits.py), and a document that an earlier split already has is not taken again. The held-out split
is made first, then validation, then train, each from a generator of its own: reading one does not
disturb another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any

from ondevice.config.corpus import CorpusConfig
from ondevice.data.builtin import arithmetic, lexicon, reading, stories, tasks, telling
from ondevice.data.builtin.frames import OPENINGS, QUESTIONS, STATEMENTS, answer, ask
from ondevice.data.builtin.scoring import COURTESIES
from ondevice.data.builtin.splits import CONTENTS, SPLITS, Split, place
from ondevice.data.builtin.world import make_world

Row = tuple[str, str, str, str]
"""(kind, prompt, reply, right answer)"""
GREETINGS = (
    "Hello, I am {name}.",
    "Hello! My name is {name}.",
    "Hi, {name} here.",
    "Good morning. I am {name}.",
    "Good evening, my name is {name}.",
    "I am {name}. Who are you?",
    "Please greet {name}.",
    "Say hello to {name}.",
    "{name} is my name. Hello.",
    "My name is {name}. Say hello.",
    "Hello, it is {name} again.",
    "{name} wants to say hello.",
    "Here comes {name}. Say hello.",
    "How would you greet {name}?",
    "Hi there, I am {name}.",
    "You can call me {name}.",
)
"""What a chat greets with; the answer greets back by name."""


def build(cfg: CorpusConfig) -> Corpus:
    """The corpus of `cfg`. Text is made when it is first asked for. Raises UserError for a field
    out of range.
    """
    cfg.check()
    return Corpus(cfg)


class Corpus:
    """Documents, chats and problems; the same for the same config in every process."""

    def __init__(self, cfg: CorpusConfig) -> None:
        self.cfg = cfg
        self.world = make_world(cfg)
        self.sums = arithmetic.Sums(cfg.seed, cfg.max_operand)
        self.names = tuple(person.name for person in self.world.people)
        self._documents: dict[Split, list[str]] = {}
        self._questions = {
            split: telling.questions(self.world, cfg.seed, split) for split in SPLITS
        }

    def documents(self, split: Split) -> Iterator[str]:
        """Texts to pre-train on, in an order in which kinds are mixed. No text is in two splits, or
        twice in one.
        """
        for earlier in reversed(SPLITS):
            if earlier not in self._documents:
                self._documents[earlier] = self._write(earlier)
            if earlier == split:
                break
        yield from self._documents[split]

    def chats(self, split: Split) -> Iterator[dict[str, Any]]:
        """Instruction chats {"messages": [user, assistant], "kind", "answer"}; no prompt comes
        twice.
        """
        rows = []
        for kind, share in self.cfg.chats.shares().items():
            random = Random(f"{self.cfg.seed}|chats|{split}|{kind}")
            wanted = round(share * self._scaled(self.cfg.chat_count, split))
            draw = partial(self._chat, random, split, kind)
            for name, prompt, reply, right in _fresh(wanted, draw):
                if random.random() < self.cfg.courtesy_share:
                    reply = f"{reply}\n{random.choice(COURTESIES)}"
                messages = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": reply},
                ]
                rows.append({"messages": messages, "kind": name, "answer": right})
        Random(f"{self.cfg.seed}|chats|{split}").shuffle(rows)
        yield from rows

    def prompts(self, split: Split) -> Iterator[dict[str, str]]:
        """Prompts for the preference stage {"prompt", "answer", "kind"}: of the chats' kinds, none
        of them a chat's.
        """
        asked = {chat["messages"][0]["content"] for chat in self.chats(split)}
        wanted = self.cfg.held_prompt_count
        if split == "train":
            wanted = self.cfg.prompt_count
        rows = []
        for kind, share in self.cfg.chats.shares().items():
            random = Random(f"{self.cfg.seed}|prompts|{split}|{kind}")
            draw = partial(self._chat, random, split, kind)
            for name, prompt, _, right in _fresh(round(share * wanted), draw, asked):
                rows.append({"prompt": prompt, "answer": right, "kind": name})
        Random(f"{self.cfg.seed}|prompts|{split}").shuffle(rows)
        yield from rows

    def problems(self, split: Split) -> Iterator[dict[str, str]]:
        """Sums for the reasoning stage {"prompt", "answer", "kind"}: none of them is in any
        document or chat.
        """
        random = Random(f"{self.cfg.seed}|problems|{split}")
        pairs = self.sums.pool(split, problems=True)

        def draw() -> Row:
            if random.random() < self.cfg.problem_quick_share:
                kind = "quick"
            else:
                kind = "sum"
            return self._sum(random, pairs, kind)

        wanted = self.cfg.held_problem_count
        if split == "train":
            wanted = self.cfg.problem_count
        for kind, prompt, _, right in _fresh(wanted, draw):
            yield {"prompt": prompt, "answer": right, "kind": kind}

    def _scaled(self, count: int, split: Split) -> int:
        share = {
            "train": 1.0,
            "validation": self.cfg.validation_share,
            "heldout": self.cfg.heldout_share,
        }[split]
        return max(1, round(count * share))

    # Documents

    def _write(self, split: Split) -> list[str]:
        seen: set[str] = set()
        for texts in self._documents.values():
            seen.update(texts)
        written: list[str] = []
        for kind, share in self.cfg.documents.shares().items():
            random = Random(f"{self.cfg.seed}|documents|{split}|{kind}")
            left = share * self._scaled(self.cfg.document_bytes, split)
            spare = 1000
            while left > 0 and spare > 0:
                text = self._document(random, split, kind)
                if text in seen:
                    spare -= 1  # A world so small that this kind runs dry ends it early.
                    continue
                seen.add(text)
                written.append(text)
                left -= len(text)
                spare = 1000
        Random(f"{self.cfg.seed}|documents|{split}").shuffle(written)
        return written

    def _document(self, random: Random, split: Split, kind: str) -> str:
        seed = self.cfg.seed
        match kind:
            case "people":
                return telling.people_document(random, self.world)
            case "world":
                return telling.world_document(random, self.world)
            case "stories":
                return stories.story(random, self.world)
            case "questions":
                return telling.question_document(random, self._questions[split])
            case "reading":
                return reading.document(random, seed, split, self.names)
            case "words":
                return tasks.document(random, seed, split, self.cfg.max_words, self.names)
            case "sums":
                pairs, name = self.sums.pool(split), random.choice(self.names)
                return arithmetic.document(
                    random, pairs, split, name, random.choice(lexicon.COUNTED)
                )
            case _:
                raise AssertionError(f"no kind of document {kind!r}")

    # Chats

    def _chat(self, random: Random, split: Split, kind: str) -> Row:
        if kind == "sum":
            if random.random() < self.cfg.quick_share:
                pairs = self.sums.pool(split, largest=self.cfg.quick_operand)
                return self._sum(random, pairs, "quick")
            return self._sum(random, self.sums.pool(split), "sum")
        if kind == "facts":
            fact, frame = random.choice(self._questions[split])
            prompt, right = random.choice(OPENINGS).format(q=ask(fact, frame)), answer(fact)
        elif kind == "context":
            prompt, right = reading.request(random, self.cfg.seed, split, self.names)
        elif kind == "hello":
            prompt, right = self._greeting(random, split)
        else:
            prompt, right = tasks.request(random, self.cfg.seed, split, kind, self.cfg.max_words)
            return kind, prompt, right, right
        return kind, prompt, f"{right}.", right

    def _greeting(self, random: Random, split: Split) -> tuple[str, str]:
        while True:
            name = random.choice(self.names)
            prompt = random.choice(GREETINGS).format(name=name)
            if place(self.cfg.seed, "hello", prompt, CONTENTS) == split:
                return prompt, f"Hello, {name}"

    def _sum(self, random: Random, pairs: list[tuple[int, int]], kind: str) -> Row:
        a, b = arithmetic.turned(random, random.choice(pairs))
        frames = arithmetic.SLOW
        if kind == "quick":
            frames = arithmetic.QUICK
        frame = random.choice(frames)
        reply = arithmetic.steps(a, b)
        if kind == "quick" and random.random() >= self.cfg.quick_steps_share:
            reply = f"{a + b}."
        return kind, frame.format(a=a, b=b), reply, str(a + b)


def _fresh(wanted: int, draw: Callable[[], Row], taken: Iterable[str] = ()) -> Iterator[Row]:
    """Up to `wanted` draws whose prompts (their second part) differ from each other and from those
    `taken`; fewer where new ones no longer turn up."""
    seen = set(taken)
    most, misses = len(seen) + wanted, 0
    while len(seen) < most and misses < 500:
        row = draw()
        if row[1] in seen:
            misses += 1
            continue
        misses = 0
        seen.add(row[1])
        yield row


def sentence_frames() -> set[str]:
    """Every frame that a text of the corpus is made of."""
    frames: set[str] = set()
    for table in (STATEMENTS, QUESTIONS, tasks.REQUESTS, tasks.SHOWN):
        for wordings in table.values():
            frames.update(wordings)
    for theme in reading.THEMES.values():
        frames.update(theme.tell, theme.ask_value, theme.ask_entity)
    for plot in stories.PLOTS.values():
        for step in plot:
            frames.update(step)
    for asked in stories.QUESTIONS.values():
        frames.update(question for question, _ in asked)
    frames.update(telling.RECORDS, telling.INTRODUCTIONS, telling.HOMES, GREETINGS, reading.RETOLD)
    for echo in tasks.ECHO:
        frames.update(echo)
    frames.update(arithmetic.LEADS, arithmetic.STORIES, arithmetic.SLOW, arithmetic.QUICK)
    return frames
