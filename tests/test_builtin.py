"""The built-in corpus: splits that never overlap, answers that are right, the same bytes in every
process.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from ondevice.common.errors import UserError
from ondevice.config.corpus import LEAST, POOLS, ChatShares, CorpusConfig, DocumentShares
from ondevice.config.load import from_mapping
from ondevice.data.builtin import arithmetic, lexicon
from ondevice.data.builtin.corpus import Corpus, build, sentence_frames
from ondevice.data.builtin.frames import QUESTIONS, STATEMENTS, answer, ask, tell
from ondevice.data.builtin.lexicon import TASK_WORDS
from ondevice.data.builtin.scoring import COURTESIES, courteous, score, without_courtesy
from ondevice.data.builtin.splits import SPLITS, Split
from ondevice.data.builtin.world import Fact, World

SMALL = CorpusConfig(
    people=10,
    places=5,
    animals=5,
    things=6,
    document_bytes=700_000,
    chat_count=6_000,
    problem_count=500,
    held_problem_count=150,
    max_operand=49,
    validation_share=0.1,
    heldout_share=0.1,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build(SMALL)


def sums_in(text: str) -> set[tuple[int, int]]:
    """The problems a+b that a text states, smaller operand first; columns like 7+5+0 are none of
    them.
    """
    found = re.findall(r"(?<![\d+])(\d+)\+(\d+)(?![\d+])", text)
    found += re.findall(r"(?<!\d)(\d+) (?:and|to|plus|do) (\d+)(?!\d)", text)
    return {(min(int(a), int(b)), max(int(a), int(b))) for a, b in found}


def everything(corpus: Corpus, split: Split) -> Iterator[str]:
    yield from corpus.documents(split)
    for chat in corpus.chats(split):
        yield "\n".join(message["content"] for message in chat["messages"])


def test_no_document_or_prompt_is_in_two_splits_or_twice_in_one(corpus: Corpus) -> None:
    for read in (
        corpus.documents,
        lambda split: (chat["messages"][0]["content"] for chat in corpus.chats(split)),
        lambda split: (problem["prompt"] for problem in corpus.problems(split)),
    ):
        texts = {split: list(read(split)) for split in SPLITS}
        for split in SPLITS:
            assert len(texts[split]) == len(set(texts[split])) > 0
        for one, other in combinations(SPLITS, 2):
            assert not set(texts[one]) & set(texts[other])


def test_no_sum_is_in_two_splits_and_problems_stand_nowhere_else(corpus: Corpus) -> None:
    parts: dict[str, set[tuple[int, int]]] = {}
    parts |= {split: set().union(*map(sums_in, everything(corpus, split))) for split in SPLITS}
    parts |= {
        f"problems {split}": set().union(
            *(sums_in(row["prompt"]) for row in corpus.problems(split))
        )
        for split in SPLITS
    }
    for one, other in combinations(parts, 2):
        assert not parts[one] & parts[other], (one, other)
    assert all(len(part) > 30 for part in parts.values())
    for part in parts:
        if part != "train":
            # the table of one-digit sums is taught, never asked
            assert all(b > 9 for _, b in parts[part])


def test_no_question_about_the_world_is_in_two_splits(corpus: Corpus) -> None:
    asked = {
        ask(fact, frame) for fact in corpus.world.facts() for frame in QUESTIONS[fact.relation]
    }
    wording = re.compile("|".join(sorted(map(re.escape, asked), key=len, reverse=True)))
    found = {
        split: {hit for text in everything(corpus, split) for hit in wording.findall(text)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other]
    assert all(found.values())


def test_no_list_of_words_is_in_two_splits(corpus: Corpus) -> None:
    words = set(TASK_WORDS)
    listed = re.compile(rf"\b(?:{'|'.join(words)})(?:,? (?:{'|'.join(words)})){{2,}}\b")
    found: dict[Split, set[frozenset[str]]] = {}
    for split in SPLITS:
        lists = (hit.split() for text in everything(corpus, split) for hit in listed.findall(text))
        found[split] = {frozenset(word.strip(",") for word in row) for row in lists}
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other]
    assert all(len(part) > 20 for part in found.values())


def test_no_context_is_in_two_splits(corpus: Corpus) -> None:
    # The wording and the order may differ: what counts is who goes with what.
    seen: dict[Split, set[tuple[str, ...]]] = {split: set() for split in SPLITS}
    pattern = re.compile(
        r"([A-Z][a-z]+|The [a-z]+) (?:is (?:now |waiting |working )?in|went to|sits in|ran into) the "
        r"([a-z]+)\."
    )
    for split in SPLITS:
        for chat in corpus.chats(split):
            if chat["kind"] == "context":
                pairs = pattern.findall(chat["messages"][0]["content"])
                if len(pairs) > 1:
                    seen[split].add(tuple(sorted(map(" ".join, pairs))))
    assert len(seen["train"]) > 50
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_what_heldout_questions_ask_is_told_in_train_documents(corpus: Corpus) -> None:
    text = "\n".join(corpus.documents("train"))
    people = {person.name: person for person in corpus.world.people}
    for fact in corpus.world.facts():
        person = people.get(fact.subject)
        his, he = (person.his, person.he) if person else ("its", "it")
        told = [tell(fact, frame, his=his, he=he) for frame in STATEMENTS[fact.relation]]
        assert sum(text.count(sentence) for sentence in told) >= 5, fact


def truths(world: World) -> dict[str, str]:
    return {
        ask(fact, frame): answer(fact)
        for fact in world.facts()
        for frame in QUESTIONS[fact.relation]
    }


def test_answers_are_right(corpus: Corpus) -> None:
    right = truths(corpus.world)
    kinds: Counter[str] = Counter()
    shown: Counter[tuple[bool, str]] = Counter()
    for chat in corpus.chats("train"):
        prompt, reply = (message["content"] for message in chat["messages"])
        kinds[chat["kind"]] += 1
        assert score(chat["kind"], reply, chat["answer"]), chat
        reply = without_courtesy(reply)
        match chat["kind"]:
            case "facts":
                assert [right[question] for question in right if question in prompt].count(
                    chat["answer"]
                ) >= 1, chat
            case "context":
                assert chat["answer"].split()[-1].lower() in prompt.lower(), chat
            case "sum" | "quick":
                a, b = map(int, re.findall(r"\d+", prompt))
                assert chat["answer"] == str(a + b), chat
                shown["so" in reply, chat["kind"]] += 1
                assert chat["kind"] == "sum" or max(a, b) <= SMALL.quick_operand
            case "upper":
                assert chat["answer"].lower() in prompt and chat["answer"].isupper(), chat
            case "reverse":
                gap = ", " if "," in reply else " "
                assert gap.join(reply.split(gap)[::-1]) in prompt, chat
            case "count":
                assert chat["answer"] == str(
                    len(re.findall(rf"\b(?:{'|'.join(TASK_WORDS)})\b", prompt))
                ), chat
    assert not shown[False, "sum"]
    assert shown[True, "quick"] / kinds["quick"] == pytest.approx(
        corpus.cfg.quick_steps_share, abs=0.06
    )
    assert set(kinds) == {*ChatShares().shares(), "quick"}
    assert all(count > 20 for count in kinds.values())


def test_prompts_to_rate_stand_in_no_chat_and_in_one_split(corpus: Corpus) -> None:
    asked = {split: [row["prompt"] for row in corpus.prompts(split)] for split in SPLITS}
    everything = [prompt for split in SPLITS for prompt in asked[split]]
    assert len(everything) == len(set(everything)) and all(asked.values())
    chats = {chat["messages"][0]["content"] for split in SPLITS for chat in corpus.chats(split)}
    assert not chats & set(everything)


def test_a_courtesy_is_manners_and_no_part_of_the_answer(corpus: Corpus) -> None:
    replies = [chat["messages"][1]["content"] for chat in corpus.chats("train")]
    polite = sum(map(courteous, replies)) / len(replies)
    assert polite == pytest.approx(corpus.cfg.courtesy_share, abs=0.05)
    assert score("sum", f"8+9: 8+9+0=17; so 17.\n{COURTESIES[0]}", "17")
    assert without_courtesy(COURTESIES[0]) == COURTESIES[0] and not courteous(COURTESIES[0])
    for twice in (
        f"Red.\n{COURTESIES[0]}\n{COURTESIES[1]}",
        f"Red. {COURTESIES[0]}",
        f"{COURTESIES[0]}\nRed.",
    ):
        assert not score("facts", twice, "Red")


def test_context_questions_have_one_answer(corpus: Corpus) -> None:
    for chat in corpus.chats("validation"):
        if chat["kind"] == "context":
            named = chat["answer"].split()[-1].lower()
            sentences = [
                text
                for text in re.split(r"(?<=[.?:])\s", chat["messages"][0]["content"])
                if "?" not in text
            ]
            assert sum(named in re.findall(r"[a-z]+", text.lower()) for text in sentences) == 1, (
                chat
            )


def test_written_out_sums() -> None:
    assert arithmetic.steps(47, 85) == "47+85: 7+5+0=12; 4+8+1=13; so 132."
    assert arithmetic.steps(5, 3) == "5+3: 5+3+0=8; so 8."
    assert arithmetic.steps(7, 95) == "7+95: 7+5+0=12; 0+9+1=10; so 102."
    assert arithmetic.steps(100, 900) == "100+900: 0+0+0=0; 0+0+0=0; 1+9+0=10; so 1000."
    for a in range(0, 130, 7):
        for b in range(0, 130, 3):
            assert arithmetic.steps(a, b).endswith(f"so {a + b}.")


def test_both_orders_of_a_sum_are_asked(corpus: Corpus) -> None:
    orders = {
        int(a) < int(b)
        for row in corpus.problems("train")
        for a, b in [re.findall(r"\d+", row["prompt"])]
    }
    assert orders == {True, False}


@pytest.mark.parametrize(("kind", "completion", "answer", "right"), [
    ("facts", "Arden.", "Arden", True),
    ("facts", " Arden \n", "Arden", True),
    ("facts", "arden", "Arden", False),
    ("facts", "Arden. Arden.", "Arden", False),
    ("facts", "", "Arden", False),
    ("list", "1. cat\n2. cup", "1. cat\n2. cup", True),
    ("list", "1. cat 2. cup", "1. cat\n2. cup", False),
    ("count", "3", "3", True),
    ("count", "13", "3", False),
    ("upper", "CAT, CUP", "CAT, CUP", True),
    ("upper", "Cat, cup", "CAT, CUP", False),
    ("sum", "47+85: 7+5+0=12; 4+8+1=13; so 132.", "132", True),
    ("sum", "132", "132", True),
    ("sum", "47+85: 7+5+0=12; 4+8+1=13", "13", False),
    ("sum", "so 132. so 133.", "132", False),
    ("sum", "so 132 and more", "132", False),
    ("quick", "0132", "132", False),
    ("quick", "132.", "132", True),
    ("quick", "131 132", "132", False),
    ("quick", "also 132", "132", False),
    ("quick", "", "132", False),
])  # fmt: skip
def test_score_is_strict(kind: str, completion: str, answer: str, right: bool) -> None:
    assert score(kind, completion, answer) is right


def test_wordings() -> None:
    frames = sentence_frames()
    assert len(frames) >= 200
    text = "\n".join(frames)
    assert "  " not in text
    # Texts in which "a" stands before a vowel, or "an" before a consonant.
    for split in SPLITS:
        for text in everything(build(SMALL), split):
            assert not re.search(r"\b[Aa] [aeio]\w*|\b[Aa]n [^aeiou\W]\w*|\{|\}|  |\.\.", text), (
                text
            )
            assert text == text.strip() and text


def test_pronouns_and_possessives() -> None:
    assert tell(Fact("home", "Mia", "Arden"), "{P} home is in {v}.") == "Mia's home is in Arden."
    assert (
        tell(Fact("home", "Mia", "Arden"), "{P} home is in {v}.", pronoun="She")
        == "Her home is in Arden."
    )
    assert tell(Fact("pet", "Mia", "owl"), "{S} has {av}.", pronoun="She") == "She has an owl."
    assert (
        tell(Fact("eats", "cats", "fish"), "{V} are what {name} eat.") == "Fish is what cats eat."
    )
    assert tell(Fact("paint", "bell", "red"), "{S} is {v}.") == "The bell is red."


def test_words_stand_in_one_category_only() -> None:
    pools = list(lexicon.CATEGORIES.values())
    for one, other in combinations(pools, 2):
        assert not set(one) & set(other)
    assert not set(lexicon.THINGS) & set(lexicon.ITEMS)
    assert len(set(lexicon.WOMEN + lexicon.MEN)) == POOLS["people"]
    sizes = {"places": lexicon.PLACES, "animals": lexicon.ANIMALS, "things": lexicon.THINGS}
    assert {name: len(set(pool)) for name, pool in sizes.items()} == {
        k: v for k, v in POOLS.items() if k != "people"
    }


def digest(seed: int) -> str:
    cfg = CorpusConfig(
        seed=seed, people=6, places=4, animals=4, things=4, document_bytes=60_000, chat_count=500
    )
    corpus, total = build(cfg), hashlib.sha256()
    for split in SPLITS:
        rows = [
            list(corpus.documents(split)),
            list(corpus.chats(split)),
            list(corpus.problems(split)),
        ]
        total.update(json.dumps(rows).encode())
    return total.hexdigest()


def test_the_same_bytes_in_every_process() -> None:
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); from test_builtin import *; print(digest(0))"
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert run.stdout.strip() == digest(0)
    assert digest(1) != digest(0)


def test_reading_one_part_does_not_change_another(corpus: Corpus) -> None:
    other = build(SMALL)
    assert list(other.problems("heldout")) == list(corpus.problems("heldout"))
    assert list(other.documents("heldout")) == list(corpus.documents("heldout"))
    assert list(other.documents("heldout")) == list(corpus.documents("heldout"))


@pytest.mark.slow
def test_sizes_and_shares_of_the_default_corpus() -> None:
    began = time.process_time()
    corpus = build(CorpusConfig())
    documents = list(corpus.documents("train"))
    chats = list(corpus.chats("train"))
    assert time.process_time() - began < 10
    assert sum(map(len, documents)) >= 6_500_000 and all(text.isascii() for text in documents)
    assert len(chats) >= 30_000
    kinds = Counter("sum" if chat["kind"] == "quick" else chat["kind"] for chat in chats)
    for kind, share in ChatShares().shares().items():
        assert kinds[kind] / len(chats) == pytest.approx(share, abs=0.02)
    assert sum(map(len, corpus.documents("heldout"))) >= 250_000
    assert len(list(corpus.problems("heldout"))) == CorpusConfig().held_problem_count


def test_kinds_can_be_left_out() -> None:
    cfg = CorpusConfig(
        document_bytes=20_000,
        chat_count=200,
        documents=DocumentShares(sums=0, stories=0),
        chats=ChatShares(sum=0, facts=0, hello=0),
    )
    corpus = build(cfg)
    assert not any(sums_in(text) for text in everything(corpus, "train"))
    assert {chat["kind"] for chat in corpus.chats("train")} == set(cfg.chats.shares())


def test_a_world_that_runs_dry_ends_early() -> None:
    only = {kind: 0 for kind in ChatShares().shares()} | {"hello": 1}
    cfg = CorpusConfig(people=6, chat_count=5000, document_bytes=20_000, chats=ChatShares(**only))
    assert 20 < len(list(build(cfg).chats("train"))) <= 6 * 16


@pytest.mark.parametrize(("mapping", "named"), [
    ({"people": 1000}, "people"), ({"people": 0}, "people"), ({"max_operand": 5}, "max_operand"),
    ({"quick_operand": 150}, "quick_operand"), ({"heldout_share": 0}, "heldout_share"),
    ({"documents": {"sums": -1}}, "documents.sums"), ({"chats": {"sing": 1}}, "chats"),
    ({"chats": dict.fromkeys(ChatShares().shares(), 0)}, "chats"), ({"seed": -1}, "seed"),
])  # fmt: skip
def test_settings_out_of_range_are_named(mapping: dict[str, object], named: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(CorpusConfig, mapping)
    assert caught.value.where == named


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_world_that_may_be_asked_for_can_be_told(seed: int) -> None:
    least = {name: LEAST.get(name, 4) for name in POOLS}
    cfg = CorpusConfig(
        **least,
        seed=seed,
        max_operand=19,
        quick_operand=19,
        max_words=4,
        document_bytes=60_000,
        chat_count=600,
        prompt_count=60,
        held_prompt_count=10,
        problem_count=60,
        held_problem_count=10,
    )
    cfg.check()
    made = build(cfg)
    assert all(
        list(part("train")) for part in (made.documents, made.chats, made.prompts, made.problems)
    )
