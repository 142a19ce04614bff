"""Stories to order: of a text that tells something a request for it, and the text as the answer.

`orders:SOURCE` reads the texts of SOURCE (a file, a folder, `hub:…`) as rows {"prompt",
"completion", "kind"} with those of the columns `begins`, `words`, `ends` and `word_count` that the
prompt asks for. `sft` learns the answers; `sample` asks the prompts; `grpo` checks what a model
writes by the rewards of the columns' names (`rewards/text_rules.py`). Which parts a request has,
and which words, is drawn from the text alone: the same text makes the same request everywhere.

Words to use are the text's own, without those that stand in every story (`COMMON`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

PREFIX = "orders:"
KIND = "order"
LEAST_WORDS, MOST_WORDS = 20, 600
"""Of a text of which an order is made."""
_MOST_BEGINNING, _MOST_ENDING = 6, 16  # words that are quoted
_MOST_ASKED = 4  # words to use
_SHARES = {"begins": 0.5, "words": 0.75, "ends": 0.4, "word_count": 0.35}

_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")
_ENDS = re.compile(r"[.!?…][\"'”’)]*\Z")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_HEADS = (
    "Write a story",
    "Tell me a story",
    "Write a short story",
    "Please tell a story",
    "I would like a story",
    "Make up a story",
)
_COMMON = """
    a about after again all also always am an and another any are around as asked at away back be
    because been before began being best better big but by called came can come could day decided
    did didn't different do does doesn't doing don't done down each even ever every everyone
    everything felt few find first for found friend friends from full fun gave get girl give go
    going good got great had happened happily happy has have having he he's hear heard help helped
    her here him himself his home how i i'm if in inside into is it it's its itself just kept knew
    know laughed learned let let's like liked little lived long look looked looking lots
    loved made make many maybe me mom more most much must my named near never new next nice no not
    nothing now of off oh ok okay old on once one only or other others our out outside over own
    people place play played playing put ran realized really right said sad same saw say see she
    she's should showed small smiled so some someone something soon special started still stopped
    stories story such sure take tell than thank that that's the their them then there there's
    these they they're thing things think this thought three through time to together told too took
    tried try two under until up upon us use used very want wanted was wasn't way we we're well
    went were what when where which while who why will wish with without won't work would yes you
    you're your
    """
COMMON = frozenset(_COMMON.split())
"""Words that are in so many stories that asking for them asks for nothing."""


class Order(NamedTuple):
    """A request and the text that fulfils it. `columns`: what of it can be checked."""

    prompt: str
    completion: str
    columns: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """As rows of data are."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "kind": KIND,
            **self.columns,
        }


def order_of(text: str) -> Order | None:
    """The order that a text makes; None where it is too short or too long for one, or breaks off
    before the end of a sentence.
    """
    story = text.strip()
    found = _WORD.findall(story)
    if not LEAST_WORDS <= len(found) <= MOST_WORDS or not _ENDS.search(story):
        return None
    random = Random(f"order|{story}")
    drawn = {name for name, share in _SHARES.items() if random.random() < share}
    sentences = _SENTENCE.split(story)
    if "begins" in drawn:
        begins = _beginning(sentences[0], random)
    else:
        begins = ""
    ends = _ending(sentences) if "ends" in drawn else ""
    columns: dict[str, Any] = {}
    if begins:
        columns["begins"] = begins
    # a word that is quoted already would be given, not asked for
    asked = _words(found, _WORD.findall(f"{begins} {ends}"), random)
    if asked and ("words" in drawn or not begins + ends):
        columns["words"] = asked
    if ends:
        columns["ends"] = ends
    if "word_count" in drawn or not columns:
        columns["word_count"] = _bounds(len(found))
    return Order(_request(columns, random), story, columns)


def _beginning(sentence: str, random: Random) -> str:
    """The first words of a story, three to six; empty where they cannot be quoted."""
    ends = [match.end() for match in _WORD.finditer(sentence)]
    count = min(random.randint(3, _MOST_BEGINNING), len(ends))
    if not count:
        return ""
    return _quotable(sentence[: ends[count - 1]])


def _ending(sentences: Sequence[str]) -> str:
    """A story's last sentence; empty where it is long, is all there is, or cannot be quoted."""
    if len(sentences) < 3 or len(_WORD.findall(sentences[-1])) > _MOST_ENDING:
        return ""
    return _quotable(sentences[-1])


def _quotable(text: str) -> str:
    """The text on one line; empty where it holds a quotation mark."""
    if any(sign in text for sign in '"“”'):
        return ""
    return " ".join(text.split())


def _words(found: Sequence[str], given: Sequence[str], random: Random) -> list[str]:
    """Some of a story's own words but those `given`, each as it stands there in small letters, or
    else as it is.
    """
    forms: dict[str, str] = {}
    known = COMMON | set(map(_key, given))
    for word in found:
        key = _key(word)
        if len(key) < 3 or key in known:
            continue
        if key not in forms or word.islower():
            forms[key] = word
    chosen = random.sample(sorted(forms), min(random.randint(1, _MOST_ASKED), len(forms)))
    return [forms[key] for key in chosen]


def _key(word: str) -> str:
    return word.lower().replace("’", "'")


def _bounds(count: int) -> list[int]:
    """A round number of words below and one above."""
    return [count * 4 // 50 * 10, -(-count * 6 // 50) * 10]


def _request(columns: dict[str, Any], random: Random) -> str:
    """What is asked, in one sentence."""
    clauses = []
    for name, value in columns.items():
        match name:
            case "begins":
                clauses.append(f'begins with "{value}"')
            case "words":
                plural = "s" if len(value) > 1 else ""
                clauses.append(f"uses the word{plural} {_listed(value)}")
            case "ends":
                clauses.append(f'ends with "{value}"')
            case "word_count":
                clauses.append(f"has {value[0]} to {value[1]} words")
    request = f"{random.choice(_HEADS)} that {_listed(clauses)}"
    if request.endswith('."'):
        return request
    return f"{request}."


def _listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
