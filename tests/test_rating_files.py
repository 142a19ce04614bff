"""Ratings out to files and in again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ondevice
from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice.preferences.import_export import render
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.votes import Response

HOSTILE = "\x1b]52;c;QQ==\x07\x1b[2J[/b] \u202eevil\u2066 a\0b \x9b31m \ud800 [A]\r\n│ [B]"


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def full(tmp_path: Path) -> Ratings:
    """Everything that a database can hold, hostile text included."""
    ratings = Ratings.open(tmp_path / "full.db", create=True)
    chat = [{"role": "system", "content": "é"}, {"role": "user", "content": "?"}]
    one = ratings.add(
        "first",
        HOSTILE,
        [Response(HOSTILE, "s\x1b1", {"seed": 1}), Response("x" * 1_000_000)],
        seed=1,
    )
    two = ratings.add(
        "second", chat, [Response(t) for t in "wxyz"], seed=1, meta={"temperature": 0.1 + 0.2}
    )
    gold = ratings.add(
        "second", "gold", [Response("g"), Response("h")], kind="gold", gold=1, seed=1
    )
    ratings.vote(
        one,
        "ann\x1b",
        "s",
        ranking=[1],
        strength=2,
        note="n\u202e",
        reason="style",
        seen_end=True,
        dwell_ms=7,
    )
    ratings.vote(two, "bob", "s", ranking=[3])
    ratings.undo("bob", "s")
    ratings.vote(two, "bob", "s", ranking=[3, 0, 1, 2], seen_end=False)
    ratings.vote(two, "simulated:x", "s", "all_bad")
    ratings.skip(gold, "bob", "s")
    ratings.undo("bob", "t")
    ratings.flag(gold, "bob", "t")
    ratings.note(one, "bob", "t", HOSTILE)
    ratings.vote(ratings.repeat(one, "bob"), "bob", "t", "tie")
    return ratings


def test_whole_votes_come_back_as_they_were(full: Ratings, tmp_path: Path) -> None:
    file, again = tmp_path / "votes.jsonl", tmp_path / "again.jsonl"
    first = ondevice.manage_ratings(action="export", ratings=full.path, form="votes", file=file)
    assert first["rows"] == len(full.items()) + len(full.votes()) == len(lines(file))
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "new.db", file=file)
    assert (done["items"], done["votes"], done["bad_rows"]) == (4, len(full.votes()), 0)
    with Ratings.open(tmp_path / "new.db") as new:
        assert new.items() == full.items() and new.votes() == full.votes()
        assert new.live_votes() == full.live_votes() and pairs_of(new) == pairs_of(full)
    ondevice.manage_ratings(action="export", ratings=tmp_path / "new.db", form="votes", file=again)
    assert again.read_bytes() == file.read_bytes()
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "new.db", file=file)
    assert (done["items"], done["votes"], done["already_there"]) == (0, 0, first["rows"])


def test_whole_votes_get_new_ids_beside_others(full: Ratings, tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    ondevice.manage_ratings(action="export", ratings=full.path, form="votes", file=file)
    with Ratings.open(tmp_path / "other.db", create=True) as other:
        mine = other.add("mine", "q", [Response("a"), Response("b")], seed=0)
        vote = other.vote(mine, "ann\x1b", "s", "tie")
        ondevice.manage_ratings(action="import", ratings=other.path, file=file)
        items, votes = other.items(), other.votes()
        assert items[0].id == mine and votes[0] == vote
        assert [
            replace(item, id=item.id - 1, repeat_of=item.repeat_of and item.repeat_of - 1)
            for item in items[1:]
        ] == full.items()
        assert [
            replace(v, id=v.id - 1, item=v.item - 1, undoes=v.undoes and v.undoes - 1)
            for v in votes[1:]
        ] == full.votes()
        assert {v.rater for v in other.live_votes()} == {"ann\x1b", "bob", "simulated:x"}


def test_copies_rated_apart_become_one(full: Ratings, tmp_path: Path) -> None:
    """Two people rate copies of one database; what both had is there once."""
    file = tmp_path / "votes.jsonl"
    ondevice.manage_ratings(action="export", ratings=full.path, form="votes", file=file)
    ondevice.manage_ratings(action="import", ratings=tmp_path / "copy.db", file=file)
    with Ratings.open(tmp_path / "copy.db") as copy:
        copy.vote(1, "cat", "s", ranking=[0])
    ondevice.manage_ratings(action="export", ratings=tmp_path / "copy.db", form="votes", file=file)
    before = len(full.votes())
    done = ondevice.manage_ratings(action="import", ratings=full.path, file=file)
    assert (done["items"], done["votes"]) == (0, 1) and len(full.votes()) == before + 1


@pytest.mark.parametrize(
    "change",
    [
        {"item": 99},
        {"action": "like"},
        {"ranking": [0, 0]},
        {"ranking": [7]},
        {"ranking": []},
        {"strength": 5},
        {"undoes": 1},
        {"at": float("nan")},
        {"at": True},
        {"rater": None},
        {"dwell_ms": 10**30},
        {"outcome": "won"},
        {"id": "x"},
        {"seen_end": "yes"},
        {"record": "user"},
    ],
)
def test_a_damaged_vote_is_named(full: Ratings, tmp_path: Path, change: dict[str, Any]) -> None:
    rows = ondevice.manage_ratings(action="export", ratings=full.path, form="votes")["data"]
    rows = json.loads(json.dumps(rows))
    rows[4].update(change)
    with pytest.raises(UserError, match=r"votes\.jsonl:5: "):
        ondevice.manage_ratings(
            action="import", ratings=tmp_path / "n.db", file=write(tmp_path / "votes.jsonl", *rows)
        )
    assert not (tmp_path / "n.db").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"responses": []},
        {"responses": [{"text": "x"}, {"text": 1}]},
        {"shown": [0, 0]},
        {"shown": [0]},
        {"kind": "x"},
        {"gold": 1},
        {"repeat_of": 3},
        {"meta": None},
        {"meta": {"x": float("inf")}},
        {"prompt": "another"},
        {"created": "now"},
    ],
)
def test_a_damaged_item_is_named(full: Ratings, tmp_path: Path, change: dict[str, Any]) -> None:
    rows = json.loads(
        json.dumps(
            ondevice.manage_ratings(action="export", ratings=full.path, form="votes")["data"]
        )
    )
    rows[1].update(change)
    with pytest.raises(UserError, match=r"votes\.jsonl:2: "):
        ondevice.manage_ratings(
            action="import", ratings=tmp_path / "n.db", file=write(tmp_path / "votes.jsonl", *rows)
        )


def test_pairs_go_out_as_trl_reads_them(full: Ratings, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    done = ondevice.manage_ratings(action="export", ratings=full.path, file=file, simulated=False)
    rows = lines(file)
    assert done["rows"] == len(rows) == 7 and done["simulated_votes"] == 0
    assert done["left_out"] == {"repeat": 1}
    assert set(rows[1]) == {"prompt", "chosen", "rejected"} and rows[0]["strength"] == 2
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "x" * 1_000_000}]
    assert rows[0]["prompt"] == [{"role": "user", "content": HOSTILE.replace("\ud800", "\ufffd")}]
    assert rows[1]["prompt"][0] == {"role": "system", "content": "é"}
    assert file.read_text(encoding="utf-8").isascii() and "\x1b" not in file.read_text(
        encoding="utf-8"
    )
    with_raters = ondevice.manage_ratings(
        action="export", ratings=full.path, with_raters=True, raters=["bob"]
    )["data"]
    assert [(row["item"], row["raters"], row["strength"]) for row in with_raters] == [
        (2, ["bob"], 1.0)
    ] * 6


def test_single_answers_go_out_for_kto(full: Ratings) -> None:
    rows = ondevice.manage_ratings(
        action="export", ratings=full.path, form="kto", raters=["simulated:x"]
    )["data"]
    assert [row["completion"][0]["content"] for row in rows] == list("wxyz")
    assert all(
        row["label"] is False and set(row) == {"prompt", "completion", "label"} for row in rows
    )


def test_exported_pairs_come_in_again(full: Ratings, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    ondevice.manage_ratings(action="export", ratings=full.path, file=file)
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "n.db", file=file)
    assert done["items"] == done["votes"] == len(lines(file))
    with Ratings.open(tmp_path / "n.db") as new:
        assert new.batches() == ["pairs"] and {vote.rater for vote in new.votes()} == {"imported"}
        assert [pair.trl() for pair in pairs_of(new)] == lines(file)


def test_raters_and_strength_of_an_exported_pair_come_in_again(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "chosen": "good",
        "rejected": "bad",
        "strength": 2,
        "raters": ["ann", "bob"],
        "against": 1,
    }
    file = write(tmp_path / "pairs.jsonl", row)
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "n.db", file=file)
    assert (done["votes"], done["not_used"]) == (2, f"against (1 row, first {file}:1)")
    with Ratings.open(tmp_path / "n.db") as new:
        [pair] = pairs_of(new)
        assert (pair.raters, pair.strength) == (("ann", "bob"), 2)
    mean = write(tmp_path / "mean.jsonl", {**row, "strength": 1.5})
    with pytest.raises(UserError, match="strength is 1 or 2, not 1.5"):
        ondevice.manage_ratings(action="import", ratings=tmp_path / "n.db", file=mean)


def test_pairs_of_every_form_come_in(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "q"}]
    good, bad = (
        [{"role": "assistant", "content": "good"}],
        [{"role": "assistant", "content": "bad"}],
    )
    file = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": asked, "chosen": good, "rejected": bad},
        {"prompt": "q", "chosen": asked + good, "rejected": asked + bad},
        {"chosen": asked + good, "rejected": asked + bad},
    )
    ondevice.manage_ratings(
        action="import", ratings=tmp_path / "r.db", file=file, batch="mine", raters=["ann"]
    )
    with Ratings.open(tmp_path / "r.db") as found:
        assert [(p.prompt, p.chosen, p.rejected, p.raters) for p in pairs_of(found, "mine")] == [
            (asked, "good", "bad", ("ann",))
        ] * 4
        assert len({item.prompt_sha for item in found.items()}) == 1
        assert sorted(item.shown for item in found.items()) == [(0, 1), (0, 1), (1, 0), (1, 0)]


def test_answers_to_rate_come_in(tmp_path: Path) -> None:
    file = write(
        tmp_path / "to_rate.jsonl",
        {"prompt": "q", "a": "x", "b": "y", "votes": ["a", "tie", "bad"], "models": "old_new"},
        {"prompt": "q", "a": "x", "b": ""},
        {"prompt": "q", "responses": ["x", {"text": "y", "source": "s"}, "z"], "votes": ["c"]},
    )
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "r.db", file=file)
    assert (done["items"], done["votes"]) == (3, 4)
    with Ratings.open(tmp_path / "r.db") as found:
        items = found.items()
        assert [[r.text for r in item.responses] for item in items] == [
            ["x", "y"],
            ["x", ""],
            ["x", "y", "z"],
        ]
        assert [r.source for r in items[0].responses] == ["old", "new"] and items[2].responses[
            1
        ].source == "s"
        assert [(v.rater, v.outcome, v.ranking) for v in found.votes()] == [
            ("imported-1", "ranked", (0, 1)),
            ("imported-2", "tie", ()),
            ("imported-3", "all_bad", ()),
            ("imported", "ranked", (2,)),
        ]
        assert found.queue("me") == [1, 2, 3]


def test_gold_comes_in_without_votes(tmp_path: Path) -> None:
    file = write(
        tmp_path / "gold.jsonl",
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": "q", "a": "x", "b": "y", "votes": ["b"]},
    )
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "r.db", file=file, gold=True)
    assert (done["items"], done["votes"]) == (2, 0)
    with Ratings.open(tmp_path / "r.db") as found:
        assert [(item.kind, item.gold) for item in found.items()] == [("gold", 0), ("gold", 1)]
    assert (done["left_out"], done["votes_not_kept"]) == ({}, 1)
    for row, why in (
        ({"prompt": "q", "a": "x", "b": "y"}, "without a vote"),
        ({"prompt": "q", "a": "x", "b": "y", "votes": ["tie"]}, "tie or all bad"),
    ):
        with pytest.raises(
            UserError, match=rf"no row says which answer is the better one \(1 {why}"
        ):
            ondevice.manage_ratings(
                action="import",
                ratings=tmp_path / "r.db",
                file=write(tmp_path / "no.jsonl", row),
                gold=True,
            )


def test_gold_are_the_pairs_whose_raters_agree(tmp_path: Path) -> None:
    """Whatever their number; the others are left out and counted, and so are the votes, which gold
    does not keep.
    """
    pair = {"prompt": "q", "chosen": "x", "rejected": "y"}
    said = [["b", "b"], ["a", "b"], ["a", "tie"], []]
    file = write(
        tmp_path / "gold.jsonl",
        {**pair, "raters": ["ann", "bob"], "strength": 1.5},
        *({"prompt": f"q{n}", "a": "x", "b": "y", "votes": votes} for n, votes in enumerate(said)),
    )
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "r.db", file=file, gold=True)
    with Ratings.open(tmp_path / "r.db") as found:
        assert [(item.kind, item.gold) for item in found.items()] == [("gold", 0), ("gold", 1)]
    assert done["left_out"] == {
        "with votes that differ": 1,
        "tie or all bad": 1,
        "without a vote": 1,
    }
    assert (done["items"], done["votes"], done["votes_not_kept"], done["bad_rows"]) == (2, 0, 4, 0)
    assert "left out: 1 with votes that differ, 1 tie or all bad, 1 without a vote" in render(done)


def test_our_own_export_of_two_raters_can_be_gold(tmp_path: Path) -> None:
    with Ratings.open(tmp_path / "r.db", create=True) as ratings:
        item = ratings.add("b", "q", [Response("x"), Response("y")], seed=0)
        for rater, strength in (("ann", 1), ("bob", 2)):
            ratings.vote(item, rater, "s", ranking=[1], strength=strength)
    pairs, votes = str(tmp_path / "pairs.jsonl"), str(tmp_path / "votes.jsonl")
    common = {"action": "export", "ratings": tmp_path / "r.db"}
    assert ondevice.manage_ratings(**common, file=pairs, with_raters=True)["rows"] == 1
    done = ondevice.manage_ratings(
        action="import", ratings=tmp_path / "gold.db", file=pairs, gold=True
    )
    assert (done["items"], done["votes_not_kept"]) == (1, 2)
    ondevice.manage_ratings(**common, file=votes, form="votes")
    with pytest.raises(UserError, match="keeps its kind: gold is for pairs"):
        ondevice.manage_ratings(
            action="import", ratings=tmp_path / "gold.db", file=votes, gold=True
        )


@pytest.mark.parametrize(
    "row",
    [
        {"text": "x"},
        {"prompt": "q"},
        {"prompt": "q", "a": "x"},
        {"prompt": "q", "chosen": "x", "rejected": None},
        {"prompt": 3, "chosen": "x", "rejected": "y"},
        {"chosen": "x", "rejected": "y"},
        {"prompt": "q", "responses": ["x"]},
        {"prompt": "q", "responses": list("abcde")},
        {"prompt": "q", "a": "x", "b": "y", "votes": ["c"]},
        {"prompt": "q", "a": "x", "b": "y", "votes": "a"},
        {"prompt": "q", "a": "\ud800", "b": "y"},
        {"prompt": "q", "responses": [{"text": "x", "source": 1}, "y"]},
        {
            "chosen": [{"role": "assistant", "content": "x"}],
            "rejected": [{"role": "assistant", "content": "y"}],
        },
        {"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "y"},
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, row: dict[str, Any]) -> None:
    file = write(tmp_path / "rows.jsonl", {"prompt": "q", "a": "x", "b": "y"}, row)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*1 of 2 rows are bad"):
        ondevice.manage_ratings(action="import", ratings=tmp_path / "r.db", file=file)
    assert not (tmp_path / "r.db").exists()


def test_one_bad_row_in_many_is_counted(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl", *[{"prompt": "q", "a": "x", "b": "y"}] * 150, {"prompt": "q"}
    )
    done = ondevice.manage_ratings(action="import", ratings=tmp_path / "r.db", file=file)
    assert (done["items"], done["bad_rows"]) == (150, 1) and "rows.jsonl:151: none of" in done[
        "first_bad_row"
    ]


@pytest.mark.slow
def test_the_command(full: Ratings, tmp_path: Path) -> None:
    shown = command("ratings", "stats", str(full.path))
    assert (
        shown.returncode == 0
        and "4, 1 of them simulated" in shown.stdout
        and "\x1b" not in shown.stdout
    )
    found = json.loads(command("ratings", "stats", str(full.path), "--json").stdout)
    assert found["votes"] == 4 and found["outcomes"]["tie"] == 1
    out = command("ratings", "export", str(full.path), "--form", "kto", "--raters", "bob").stdout
    assert [json.loads(line)["label"] for line in out.splitlines()] == [
        False,
        True,
    ] and "\x1b" not in out
    done = command("ratings", "export", str(full.path), str(tmp_path / "p.jsonl"))
    for part in ("rows: 1", "simulated votes: 1", "left out: 6 disagreement"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ratings", "stats", "{}/no.db"), "no such ratings database"),
        (("ratings", "stats", "{}/text.jsonl"), "is not a ratings database"),
        (("ratings", "stats", "{}"), "ratings.db: no such ratings database"),
        (("ratings", "stats"), "RATINGS is missing"),
        (("ratings", "starts", "{}/r.db"), "'starts' is none of its values"),
        (("ratings", "import", "{}/r.db"), "nothing to import"),
        (("ratings", "import", "{}/r.db", "{}/no.jsonl"), "no such file"),
        (("ratings", "import", "{}/text.jsonl", "{}/rows.jsonl"), "is not a ratings database"),
        (("ratings", "export", "{}/ok.db", "{}/no/where.jsonl"), "folder does not exist"),
        (("ratings", "export", "{}/ok.db", "{}"), "is a folder"),
        (("ratings", "export", "{}/ok.db", "--form", "dpo"), "none of its values"),
        (("rate", "{}/no.db"), "no such ratings database"),
        (("rate", "{}/ok.db"), "has nothing to rate yet (ondevice sample queues some)"),
        (("rate",), "RATINGS is missing"),
        (("rate", "{}/ok.db", "--repeat-share", "2"), "--repeat-share: 2.0 is out of range"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ondevice.cli import main

    (tmp_path / "text.jsonl").write_text("not a database\n")
    write(tmp_path / "rows.jsonl", {"prompt": "q", "a": "x", "b": "y"})
    Ratings.open(tmp_path / "ok.db", create=True).close()
    code = main([argument.format(tmp_path) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2 and says in said.err and said.err.count("\n") == 1 and said.out == ""
