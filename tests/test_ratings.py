"""The preference database: what it keeps, what it refuses, and what is learned from it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import pytest

from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import held_out, pairs_of, split, unpaired_of
from ondevice.preferences.schema import VERSION
from ondevice.preferences.sqlite_store import Replaced
from ondevice.preferences.votes import Response, is_simulated

AB = (Response("good", "sft", {"tokens": 1}), Response("bad", "base"))


@pytest.fixture
def ratings(tmp_path: Path) -> Ratings:
    return Ratings.open(tmp_path / "ratings.db", create=True)


def ask(ratings: Ratings, count: int, *, batch: str = "one", width: int = 2) -> list[int]:
    answers = [Response(f"answer {slot}", f"model {slot}") for slot in range(width)]
    with ratings.transaction():
        return [ratings.add(batch, f"question {n}", answers, seed=0) for n in range(count)]


def raw(ratings: Ratings) -> sqlite3.Connection:
    """A connection without our pragmas, as any other program has one."""
    return sqlite3.connect(ratings.path)


def test_an_item_is_kept_as_it_was_given(ratings: Ratings) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hä?"}]
    first = ratings.add("b", "Why?", AB, meta={"temperature": 0.7}, seed=3)
    second = ratings.add("b", chat, AB, kind="gold", gold=1, seed=3)
    item = ratings.item(first)
    assert item.prompt == "Why?" and item.messages == [{"role": "user", "content": "Why?"}]
    assert item.prompt_sha == sha256(b"Why?").hexdigest()
    assert item.meta == {"form": "text", "temperature": 0.7} and item.responses == AB
    assert sorted(item.shown) == [0, 1] and item.kind == "normal" and item.gold is None
    gold = ratings.item(second)
    assert (
        gold.messages == chat
        and gold.meta["form"] == "messages"
        and gold.kind == "gold"
        and gold.gold == 1
    )
    assert ratings.items("b") == [item, gold] == ratings.items() and ratings.items("other") == []
    assert ratings.batches() == ["b"]


def test_one_user_message_is_the_same_prompt_in_both_forms(ratings: Ratings) -> None:
    ids = [
        ratings.add("b", prompt, AB, seed=0)
        for prompt in ("Why?", [{"role": "user", "content": "Why?"}])
    ]
    assert ratings.item(ids[0]).prompt_sha == ratings.item(ids[1]).prompt_sha


@pytest.mark.parametrize("width", [2, 3, 4])
def test_sides_are_balanced_by_design(ratings: Ratings, width: int) -> None:
    """Every slot at every place equally often, every two slots in either order, and never in a
    pattern.
    """
    count = 48
    orders = [ratings.item(i).shown for i in ask(ratings, count, width=width)]
    places = Counter((place, slot) for shown in orders for place, slot in enumerate(shown))
    assert set(places.values()) == {count // width} and len(places) == width * width
    pairs = Counter(pair for shown in orders for pair in combinations(shown, 2))
    assert set(pairs.values()) == {count // 2}
    block = len(set(orders))
    assert block == {2: 2, 3: 6, 4: 8}[width]
    # not simply in turn
    assert len({tuple(orders[n : n + block]) for n in range(0, count, block)}) > 1
    with Ratings.open(ratings.path.parent / "again.db", create=True) as again:
        assert [again.item(i).shown for i in ask(again, count, width=width)] == orders


def test_sources_are_balanced_whatever_slot_they_have(ratings: Ratings) -> None:
    lefts = Counter[str]()
    for n in range(40):
        answers = [Response("x", "old"), Response("y", "new")]
        item = ratings.item(ratings.add("b", str(n), answers[:: 1 if n % 3 else -1], seed=1))
        lefts[item.responses[item.shown[0]].source] += 1
    assert lefts == {"old": 20, "new": 20}


def test_balance_goes_on_after_another_program_has_queued(ratings: Ratings) -> None:
    with Ratings.open(ratings.path) as other:
        ids = [ask(which, 1)[0] for which in (ratings, other) * 10]
    assert Counter(ratings.item(i).shown[0] for i in ids) == {0: 10, 1: 10}


def test_a_repeat_has_its_sides_swapped_and_is_for_one_rater(ratings: Ratings) -> None:
    first, second = ask(ratings, 2)
    ratings.vote(first, "ann", "s", ranking=[0])
    again = ratings.repeat(first, "ann")
    repeat = ratings.item(again)
    assert repeat.shown == ratings.item(first).shown[::-1] and repeat.repeat_of == first
    assert ratings.queue("ann") == [again, second] and ratings.queue("bob") == [first, second]


def test_votes_are_append_only(ratings: Ratings) -> None:
    item = ask(ratings, 1)[0]
    vote = ratings.vote(item, "ann", "s", ranking=[1])
    other = raw(ratings)
    row = other.execute("SELECT * FROM vote").fetchone()
    for statement in (
        "UPDATE vote SET rater = 'bob'",
        "DELETE FROM vote",
        f"INSERT OR REPLACE INTO vote VALUES ({','.join('?' * len(row))})",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement, row if "?" in statement else ())
        other.rollback()
    assert other.execute("SELECT * FROM vote").fetchall() == [row] and ratings.votes() == [vote]


def test_an_undo_is_only_of_ones_own_vote_and_once(ratings: Ratings) -> None:
    item, other = ask(ratings, 2)
    vote = ratings.vote(item, "ann", "s", ranking=[1])
    row = {
        "item": item,
        "rater": "ann",
        "session": "s",
        "action": "undo",
        "outcome": None,
        "ranking": None,
        "strength": None,
        "shown": None,
        "undoes": vote.id,
        "reason": None,
        "note": None,
        "seen_end": None,
        "dwell_ms": None,
        "at": 0.0,
        "app": "test",
    }
    for wrong in ({"rater": "bob"}, {"item": other}, {"undoes": 99}):
        with pytest.raises(sqlite3.IntegrityError):
            ratings.insert_vote({**row, **wrong})
    ratings.insert_vote(row)
    with pytest.raises(sqlite3.IntegrityError):
        ratings.insert_vote(row)
    with pytest.raises(sqlite3.IntegrityError):  # an undo cannot be undone
        ratings.insert_vote({**row, "undoes": 2})
    assert ratings.live_votes() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "like"},
        {"outcome": "won"},
        {"outcome": None},
        {"ranking": None},
        {"strength": 3},
        {"item": 99},
        {"ranking": "no json"},
        {"seen_end": 2},
        {"outcome": "tie"},
        {"action": "skip"},
        {"rater": None},
        {"at": "noon"},
    ],
)
def test_the_tables_refuse_what_means_nothing(ratings: Ratings, wrong: dict[str, object]) -> None:
    ask(ratings, 1)
    row = {
        "item": 1,
        "rater": "ann",
        "session": "s",
        "action": "vote",
        "outcome": "ranked",
        "ranking": "[0,1]",
        "strength": 1,
        "shown": "[0,1]",
        "undoes": None,
        "reason": None,
        "note": None,
        "seen_end": 1,
        "dwell_ms": 10,
        "at": 0.0,
        "app": "test",
    }
    with pytest.raises(sqlite3.IntegrityError):
        ratings.insert_vote({**row, **wrong})
    ratings.insert_vote(row)


def test_undo_goes_back_without_limit_and_over_sessions(ratings: Ratings) -> None:
    ids = ask(ratings, 5)
    for item in ids[:3]:
        ratings.vote(item, "ann", "monday", "tie")
    ratings.skip(ids[3], "ann", "tuesday")
    ratings.vote(ids[0], "bob", "monday", ranking=[0])
    ratings.vote(ids[0], "ann", "tuesday", ranking=[1, 0])  # changed her mind
    undone = []
    while (item := ratings.undo("ann", "wednesday")) is not None:
        undone.append(item.id)
    assert undone == [ids[0], ids[3], ids[2], ids[1], ids[0]]
    assert [(vote.rater, vote.item) for vote in ratings.live_votes()] == [("bob", ids[0])]
    assert ratings.queue("ann") == ids
    ratings.vote(ids[0], "ann", "wednesday", ranking=[0])
    assert ratings.undo("ann", "thursday").id == ids[0]  # type: ignore[union-attr]
    assert ratings.undo("ann", "thursday") is None


def test_undo_brings_an_earlier_vote_back(ratings: Ratings) -> None:
    item = ask(ratings, 1)[0]
    ratings.vote(item, "ann", "s", ranking=[0])
    ratings.vote(item, "ann", "s", ranking=[1])
    assert [vote.ranking for vote in ratings.live_votes()] == [(1, 0)]
    ratings.undo("ann", "s")
    assert [vote.ranking for vote in ratings.live_votes()] == [(0, 1)]


def test_queue_and_progress(ratings: Ratings) -> None:
    ids = ask(ratings, 5)
    wide = ask(ratings, 2, batch="wide", width=4)
    ratings.skip(ids[0], "ann", "s")
    ratings.skip(ids[1], "ann", "s")
    ratings.skip(ids[0], "ann", "s")
    ratings.vote(ids[2], "ann", "s", "all_bad")
    ratings.note(ids[3], "ann", "s", "odd")
    ratings.flag(ids[3], "ann", "s")
    assert ratings.queue("ann", "one") == [ids[3], ids[4], ids[1], ids[0]]
    ratings.vote(wide[0], "ann", "s", ranking=[2])  # better than 3 others
    ratings.vote(wide[1], "ann", "s", ranking=[2, 0, 1])  # all 6 pairs
    ratings.vote(ids[3], "ann", "s", "tie")
    progress = ratings.progress("ann")
    assert (progress.rated, progress.total, progress.skipped, progress.usable) == (4, 7, 2, 9)
    assert (progress.ties, progress.all_bad) == (1, 1) and str(
        progress
    ) == "4 of 7 rated, 9 usable pairs"
    assert ratings.progress("ann", "wide").total == 2 and ratings.progress("bob").rated == 0
    assert [vote.action for vote in ratings.votes(raters=["ann"])].count("note") == 1


def test_a_vote_s_row_says_everything(ratings: Ratings) -> None:
    item = ratings.add("b", "Why?", AB, seed=0)
    vote = ratings.vote(
        item,
        "ann",
        "s1",
        ranking=[1],
        strength=2,
        reason="style",
        note="dull",
        seen_end=False,
        dwell_ms=1234,
    )
    assert (vote.item, vote.rater, vote.session, vote.action, vote.outcome) == (
        item,
        "ann",
        "s1",
        "vote",
        "ranked",
    )
    assert vote.ranking == (1, 0) and vote.strength == 2 and vote.shown == ratings.item(item).shown
    assert (vote.reason, vote.note, vote.seen_end, vote.dwell_ms) == ("style", "dull", False, 1234)
    assert vote.app.startswith("ondevice") and vote.at > 1.7e9 and ratings.live_votes("b") == [vote]


def test_half_characters_and_nul_are_kept_or_cleaned(ratings: Ratings) -> None:
    item = ratings.item(
        ratings.add(
            "b\ud800",
            "a\0b\ud800\udc00c",
            [Response("\udfff", "\ud800"), Response("\0")],
            meta={"\ud800": "\udfff\0"},
            seed=0,
        )
    )
    assert (
        item.prompt == "a\0b\ufffd\ufffdc"
        and item.responses[0].text == "\ufffd"
        and item.responses[1].text == "\0"
    )
    assert (
        item.meta["\ufffd"] == "\ufffd\0"
        and item.prompt_sha == sha256(item.prompt.encode()).hexdigest()
    )
    ratings.vote(item.id, "ann\ud800", "s", "tie", note="\udc00")
    assert (
        ratings.queue("ann\ud800") == []
        and ratings.live_votes(raters=["ann\ud800"])[0].note == "\ufffd"
    )
    chat = ratings.item(ratings.add("b", [{"role": "system", "content": "\ud800"}], AB, seed=0))
    assert chat.messages == [{"role": "system", "content": "\ufffd"}]


def test_a_transaction_is_whole_or_not_there(ratings: Ratings) -> None:
    with pytest.raises(ZeroDivisionError), ratings.transaction():
        ask(ratings, 3)
        raise ZeroDivisionError
    assert ratings.items() == [] and ratings.item(ask(ratings, 2)[1]).id == 2
    assert Counter(item.shown for item in ratings.items()) == {(0, 1): 1, (1, 0): 1}


def test_settings_of_the_file(ratings: Ratings) -> None:
    pragma = {
        name: ratings._pragma(name)
        for name in ("synchronous", "foreign_keys", "busy_timeout", "user_version")
    }
    assert pragma == {
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "user_version": VERSION,
    }
    assert raw(ratings).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert raw(ratings).execute(
        "SELECT count(*) FROM pragma_table_list WHERE strict"
    ).fetchone() == (6,)


def test_a_database_that_another_program_makes_this_moment_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "ratings.db"
    file.touch()  # as SQLite leaves it until its first transaction ends
    made = threading.Timer(0.3, lambda: Ratings.open(file, create=True).close())
    made.start()
    try:
        with Ratings.open(file, patience_s=60) as ratings:
            assert list(ratings.items()) == []
    finally:
        made.join()


def test_open_refuses_what_is_no_ratings_database(tmp_path: Path) -> None:
    text, empty, foreign = tmp_path / "notes.txt", tmp_path / "empty", tmp_path / "other.db"
    text.write_text("not a database, though it is longer than a header of SQLite is")
    empty.touch()
    with sqlite3.connect(foreign) as other:
        other.execute("CREATE TABLE item(id)")
    for file, create in (
        (text, False),
        (text, True),
        (empty, False),
        (foreign, False),
        (foreign, True),
    ):
        with pytest.raises(UserError, match="is not a ratings database"):
            Ratings.open(file, create=create, patience_s=0.1)
    with sqlite3.connect(foreign) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # untouched
    with pytest.raises(UserError, match=r"missing\.db: no such ratings database"):
        Ratings.open(tmp_path / "missing.db")
    with pytest.raises(UserError, match=r"ratings\.db: no such"):
        Ratings.open(tmp_path)
    assert not (tmp_path / "missing.db").exists()
    Ratings.open(empty, create=True).close()
    with Ratings.open(tmp_path / "new" / "run" / "ratings.db", create=True):
        pass
    with Ratings.open(tmp_path / "new" / "run") as found:
        assert found.path.name == "ratings.db"


def test_open_refuses_a_newer_file(ratings: Ratings) -> None:
    raw(ratings).execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(UserError, match="newer"):
        Ratings.open(ratings.path)


def test_open_refuses_a_file_that_cannot_be_written(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write whatever its mode says
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        Ratings.open(ratings.path)


def test_a_damaged_file_and_a_held_one_are_named(
    ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(ratings, 200)
    ratings._rows("PRAGMA wal_checkpoint(TRUNCATE)")
    ratings._rows("PRAGMA busy_timeout = 1")
    other = raw(ratings)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another program"):
        ratings.skip(1, "ann", "s")
    other.rollback()
    other.close()
    ratings.close()
    data = bytearray(ratings.path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    ratings.path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        Ratings.open(ratings.path).items()


def test_a_home_that_is_nobodys_is_a_name_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.expanduser` raises RuntimeError there, which would reach a person as a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such ratings database"):
        Ratings.open("~nobody-of-that-name/run")


def test_nothing_is_stored_in_a_file_that_is_not_there_any_more(
    ratings: Ratings, tmp_path: Path
) -> None:
    """Deleted, or another put in its place: whoever opens the path would not find the vote."""
    ask(ratings, 2)
    ratings.skip(1, "ann", "s")
    ratings._rows("PRAGMA wal_checkpoint(TRUNCATE)")
    os.rename(ratings.path, tmp_path / "aside.db")
    with pytest.raises(Replaced, match="was moved"):
        ratings.skip(2, "ann", "s")
    (tmp_path / "other").mkdir()
    with Ratings.open(tmp_path / "other", create=True) as other:
        ask(other, 1)
    os.rename(other.path, ratings.path)
    with pytest.raises(Replaced, match="replaced"), ratings.transaction():
        raise AssertionError("never begun")
    os.rename(tmp_path / "aside.db", ratings.path)
    ratings.skip(2, "ann", "s")
    assert len(ratings.votes()) == 2


def test_pairs_by_hand(ratings: Ratings) -> None:
    """Six items, three raters; what the majority says of each pair is worked out beside it."""
    ids = ask(ratings, 6)
    three = ratings.add("one", "wide", [Response(t, t) for t in "xyz"], seed=0)
    same = ratings.add("one", "same", [Response("x"), Response("x")], seed=0)
    gold = ratings.add("one", "gold", AB, kind="gold", gold=0, seed=0)
    say = {  # (ann, bob, simulated:len): a slot, "t", "x", "s", or nothing
        ids[0]: (1, None, None),  # 1 > 0
        ids[1]: (0, 0, 1),  # 0 > 1, one against
        ids[2]: (0, 1, None),  # no majority
        ids[3]: ("t", "t", 1),  # a tie
        ids[4]: ("x", None, None),  # all bad
        ids[5]: ("s", 1, "t"),  # one of two opinions: no majority; a skip
        same: (0, None, None),
        gold: (0, None, None),
    }
    for item, said in say.items():
        for rater, what in zip(("ann", "bob", "simulated:len"), said, strict=True):
            if what == "s":
                ratings.skip(item, rater, "s")
            elif isinstance(what, int):
                ratings.vote(
                    item, rater, "s", ranking=[what], strength=2 if rater == "bob" else None
                )
            elif what:
                ratings.vote(item, rater, "s", "tie" if what == "t" else "all_bad")
    ratings.vote(three, "ann", "s", ranking=[2])  # z above x and y, which nobody ordered
    again = ratings.repeat(ids[0], "ann")
    ratings.vote(again, "ann", "s", ranking=[0])
    found = pairs_of(ratings)
    assert [(p.item, p.chosen, p.rejected, p.raters, p.against, p.strength) for p in found] == [
        (ids[0], "answer 1", "answer 0", ("ann",), 0, 1.0),
        (ids[1], "answer 0", "answer 1", ("ann", "bob"), 1, 1.5),
        (three, "z", "x", ("ann",), 0, 1.0),
        (three, "z", "y", ("ann",), 0, 1.0),
    ]
    assert found.left_out == {
        "disagreement": 2,
        "tie": 1,
        "all_bad": 1,
        "skip": 1,
        "identical": 1,
        "gold": 1,
        "repeat": 1,
        "unordered": 1,
    }
    assert (found.votes, found.simulated_votes) == (16, 3) and not any(
        pair.simulated for pair in found
    )
    first = found.rows[0]
    assert first.prompt == [{"role": "user", "content": "question 0"}]
    assert (first.source_chosen, first.source_rejected, first.batch) == (
        "model 1",
        "model 0",
        "one",
    )
    alone = pairs_of(ratings, raters=["simulated:len"])
    assert [(p.item, p.simulated) for p in alone] == [(ids[1], True), (ids[3], True)]
    assert [p.item for p in pairs_of(ratings, simulated=False)] == [
        ids[0],
        ids[1],
        ids[5],
        three,
        three,
    ]
    assert len(pairs_of(ratings, "other")) == 0


def test_unpaired_by_hand(ratings: Ratings) -> None:
    one, two, tie = ask(ratings, 3)
    wide = ask(ratings, 1, width=4)[0]
    ratings.vote(one, "ann", "s", ranking=[1])
    ratings.vote(two, "ann", "s", "all_bad")
    ratings.vote(two, "bob", "s", "all_bad")
    ratings.vote(two, "cat", "s", ranking=[0])  # bad by two of three, and by all
    ratings.vote(tie, "ann", "s", "tie")
    ratings.vote(wide, "ann", "s", ranking=[3, 1, 0, 2])
    found = unpaired_of(ratings)
    assert [(u.item, u.completion, u.label, u.against) for u in found] == [
        (one, "answer 0", False, 0),
        (one, "answer 1", True, 0),
        (two, "answer 0", False, 1),
        (two, "answer 1", False, 0),
        (wide, "answer 2", False, 0),
        (wide, "answer 3", True, 0),
    ]
    assert found.left_out == {"tie": 2, "unordered": 2} and found.rows[1].source == "model 1"


def test_no_prompt_is_in_both_parts(ratings: Ratings) -> None:
    with ratings.transaction():
        for n in range(300):
            ratings.vote(
                ratings.add("b", f"question {n % 100}", AB, seed=0), "ann", "s", ranking=[0]
            )
    train, held = split(pairs_of(ratings), 0.3)
    assert len(train) + len(held) == 300 and not {p.prompt_sha for p in train} & {
        p.prompt_sha for p in held
    }
    assert 45 <= len(held) <= 135 and len(held) % 3 == 0
    assert all(held_out(p.prompt_sha, 0.4) for p in held)  # a larger part holds the smaller one
    assert split(pairs_of(ratings), 0.0)[1] == [] and split(pairs_of(ratings), 1.0)[0] == []
    assert {p.prompt_sha for p in split(pairs_of(ratings), 0.3, seed=1)[1]} != {
        p.prompt_sha for p in held
    }


def test_a_simulated_rater_is_known_by_its_name() -> None:
    assert (
        is_simulated("simulated:longer")
        and not is_simulated("Simon")
        and not is_simulated("my simulated:x")
    )
