"""A damaged ratings.db: what can be read is saved, the old file stays, and both are told; copies at
each session.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ondevice.common.errors import UserError
from ondevice.preferences import lock as lock_file
from ondevice.preferences.backups import COPIES, copies, keep_copy, places
from ondevice.preferences.database import Ratings
from ondevice.preferences.repair import find_damage, open_for_rating, repair_if_damaged
from ondevice.preferences.sqlite_store import Damaged, ratings_file
from ondevice.preferences.votes import Response

PAGE = 4096


def fill(file: Path, count: int = 120, rater: str = "ann") -> None:
    with Ratings.open(file, create=True) as ratings, ratings.transaction():
        for n in range(count):
            two = [Response("a" * 300, "x"), Response("b" * 300, "y")]
            item = ratings.add("one", f"Question {n}? " + "q" * 200, two, seed=0)
            ratings.vote(item, rater, "s", ranking=[n % 2], note="n" * 100)
        ratings.undo(rater, "s")


def rows(file: Path) -> tuple[dict[int, Any], dict[int, Any]]:
    with Ratings.open(file) as ratings:
        return {item.id: item for item in ratings.items()}, {
            vote.id: vote for vote in ratings.votes()
        }


def spoil(file: Path, pages: list[int], seed: int = 0) -> None:
    data, draw = bytearray(file.read_bytes()), random.Random(seed)
    for page in pages:
        data[page * PAGE : (page + 1) * PAGE] = draw.randbytes(PAGE)
    file.write_bytes(data)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    fill(tmp_path / "ratings.db")
    return tmp_path / "ratings.db"


def test_a_sound_database_is_left_alone(file: Path) -> None:
    before = file.read_bytes()
    assert repair_if_damaged(file) is None and find_damage(file) == ""
    opened, told = open_for_rating(file)
    opened.close()
    assert told == [] and file.read_bytes() == before
    assert [path.name for path in copies(file)] == ["ratings.db.copy-1"]
    assert rows(copies(file)[0]) == rows(file)


@pytest.mark.parametrize("seed", range(12))
def test_what_can_be_read_is_saved(file: Path, seed: int) -> None:
    items, votes = rows(file)
    draw = random.Random(seed)
    # the first ones are roots: see below
    pages = draw.sample(range(18, file.stat().st_size // PAGE), 1 + seed % 4)
    spoil(file, pages, seed)
    damaged = file.read_bytes()
    repair = repair_if_damaged(file)
    assert repair is not None and find_damage(file) == ""
    saved_items, saved_votes = rows(file)
    # nothing is made up, and what is told is what is there
    assert all(items[number] == item for number, item in saved_items.items())
    assert all(votes[number] == vote for number, vote in saved_votes.items())
    assert (repair.items, repair.votes) == (len(saved_items), len(saved_votes))
    assert repair.lost_votes == len(votes) - len(saved_votes) and repair.lost_items == len(
        items
    ) - len(saved_items)
    assert len(saved_votes) > len(votes) - 40 * len(pages)  # a page holds some, the rest is saved
    # the old one is kept, byte for byte, and told of
    assert repair.kept.read_bytes() == damaged and repair.kept.name.startswith(
        "ratings.db.damaged-"
    )
    assert repair.kept.name in str(repair) and "\n" not in str(repair)
    # a vote that is lost gives its number to no other
    with Ratings.open(file) as ratings:
        assert ratings.skip(min(saved_items), "bob", "s").id > max(votes)


@pytest.mark.slow
@pytest.mark.parametrize("pages", [[0], [2], list(range(9)), [20, 21, 22]])
def test_a_copy_gives_what_cannot_be_read(file: Path, pages: list[int]) -> None:
    opened, _ = open_for_rating(file)
    opened.close()
    before = rows(file)
    spoil(file, pages)
    opened, told = open_for_rating(file)
    opened.close()
    assert len(told) == 1 and "came from a copy" in told[0] and rows(file) == before


def test_votes_after_the_copy_are_saved_beside_it(file: Path) -> None:
    opened, _ = open_for_rating(file)
    with opened as ratings:
        new = ratings.vote(5, "bob", "s", "tie")
    spoil(file, [20])
    assert repair_if_damaged(file) is not None
    assert rows(file)[1][new.id] == new and len(rows(file)[0]) == 120


def test_a_copy_of_another_database_is_not_mixed_in(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "ratings.db"
    other.parent.mkdir()
    fill(other, 200, "eve")
    os.replace(other, places(file)[0])
    for side in ("-wal", "-shm"):
        Path(f"{other}{side}").unlink(missing_ok=True)
    spoil(file, [30])
    repair = repair_if_damaged(file)
    assert (
        repair is not None
        and repair.copied == 0
        and "eve" not in {vote.rater for vote in rows(file)[1].values()}
    )


def test_nothing_readable_is_left_as_it_is(file: Path) -> None:
    spoil(file, list(range(1, 9)))  # the roots of all tables
    damaged = file.read_bytes()
    with pytest.raises(UserError, match="no pair in it can be read whole"):
        open_for_rating(file)
    assert file.read_bytes() == damaged
    assert (
        sorted(
            path.name
            for path in file.parent.iterdir()
            if "repair" in path.name or "damaged" in path.name
        )
        == []
    )


def test_a_text_that_is_none_is_left_out(file: Path) -> None:
    """SQLite keeps any bytes as text, and finds nothing wrong with them; nor with JSON of another
    kind.
    """
    with sqlite3.connect(file) as raw:
        raw.execute("UPDATE item SET prompt = CAST(x'ff00fe' AS TEXT) WHERE id = 3")
        raw.execute("UPDATE item SET shown = '7' WHERE id = 4")
    with Ratings.open(file) as ratings, pytest.raises(Damaged):
        ratings.items()
    repair = repair_if_damaged(file)
    assert repair is not None and (repair.lost_items, repair.lost_votes) == (2, 2)
    assert set(range(1, 121)) - set(rows(file)[0]) == {3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_damaged_is_saved_or_said(file: Path, seed: int) -> None:
    """Zeros where rows were read as rows of NULL; flipped bits make numbers of rows that were never
    given.
    """
    draw, data = random.Random(seed), bytearray(file.read_bytes())
    if seed % 2:
        start, count = draw.randrange(2 * PAGE, len(data)), draw.randrange(20_000)
        data[start : start + count] = bytes(len(data[start : start + count]))
    else:
        for _ in range(60):
            data[draw.randrange(2 * PAGE, len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    try:
        repair = repair_if_damaged(file)
    except UserError as problem:
        assert "no pair in it can be read" in str(problem)
        return
    items, votes = rows(file)
    assert repair is None or (repair.items, repair.votes) == (len(items), len(votes))
    assert find_damage(file) == ""


@pytest.mark.slow
def test_a_damaged_schema_that_is_no_text_is_named(file: Path) -> None:
    """SQLite quotes it in its message, which sqlite3 then cannot decode."""
    data = file.read_bytes()
    assert data.count(b"prompt_sha TEXT") == 1
    file.write_bytes(data.replace(b"prompt_sha TEXT", b"prompt_sha\xa0TEXT"))
    with pytest.raises(Damaged, match="is damaged"):
        Ratings.open(file)
    with pytest.raises(UserError, match="no pair in it can be read"):
        repair_if_damaged(file)


@pytest.mark.parametrize(
    ("whole", "spoilt"),
    [
        (b"CHECK(json_valid(shown))", b"CHECK(json_va2id(shown))"),
        (b"WHERE id = NEW.id OR", b"WHERE id = NEW.iq OR"),
        (b"BEFORE DELETE ON vote", b"BEFORE INSERT ON vote"),
    ],
)
def test_a_statement_of_the_file_that_is_damaged_is_found(
    file: Path, whole: bytes, spoilt: bytes
) -> None:
    """SQLite takes it for ours that cannot be run, and finds nothing wrong with the file."""
    data = file.read_bytes()
    assert whole in data
    file.write_bytes(data.replace(whole, spoilt))
    with (
        pytest.raises(UserError, match=r"ratings\.db: is damaged"),
        Ratings.open(file) as ratings,
    ):
        ratings.vote(
            ratings.add("b", "Q?", [Response("a"), Response("b")], seed=0), "ann", "s", ranking=[0]
        )
    repaired = repair_if_damaged(file)
    assert repaired is not None and repaired.lost_votes == 0
    with Ratings.open(file) as ratings:
        ratings.vote(1, "ann", "s", ranking=[0])


def test_a_damaged_version_is_found(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA user_version = 1")  # which had no project
    with pytest.raises(Damaged, match="is damaged"):
        Ratings.open(file)
    repaired = repair_if_damaged(file)
    assert repaired is not None and repaired.lost_votes == 0


def test_a_trigger_that_is_no_text_is_found(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data.replace(b"scores are append-only", b"scores are append-onl\xff"))
    repaired = repair_if_damaged(file)
    assert repaired is not None and repaired.lost_votes == 0


def test_a_table_that_is_missing_is_damage(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("DROP VIEW live")
    with pytest.raises(Damaged, match="lacks the table live"):
        Ratings.open(file)
    assert repair_if_damaged(file) is not None and len(rows(file)[1]) == 121


def test_nothing_is_repaired_under_another_program(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.preferences.repair.PATIENCE_S", 0.1)
    with Ratings.open(file):
        spoil(file, [30])
        with pytest.raises(UserError, match="another program has it open"):
            repair_if_damaged(file)
    assert repair_if_damaged(file) is not None


def test_nobody_opens_it_during_a_repair(file: Path) -> None:
    with lock_file.alone(file, 0.1), pytest.raises(UserError, match="is being repaired"):
        Ratings.open(file, patience_s=0.1)
    Ratings.open(file).close()


_KILLED = """
import os, signal, sys
from pathlib import Path
from ondevice.preferences.repair import repair_if_damaged
left = int(sys.argv[2])
def hook(event, args):
    global left
    if event in ("os.rename", "os.remove", "open") and "ratings.db" in str(args[0]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
repair_if_damaged(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_repair_that_is_killed_anywhere_is_finished(tmp_path: Path) -> None:
    base = tmp_path / "base.db"
    fill(base, 60)
    _, votes = rows(base)
    spoil(base, [19])
    damaged = base.read_bytes()
    for kill_at in range(30):
        run = tmp_path / f"run-{kill_at}"
        run.mkdir()
        (run / "ratings.db").write_bytes(damaged)
        code = subprocess.run(
            [sys.executable, "-c", _KILLED, str(run / "ratings.db"), str(kill_at)]
        ).returncode
        assert code in (0, -signal.SIGKILL)
        opened, _ = open_for_rating(run)
        with opened as ratings:
            found = {vote.id: vote for vote in ratings.votes()}
        assert (
            found
            and all(votes[number] == vote for number, vote in found.items())
            and find_damage(opened.path) == ""
        )
        kept = [
            path
            for path in run.iterdir()
            if path.name.startswith("ratings.db.damaged-")
            and not path.name.endswith(lock_file.SIDE_FILES)
        ]
        assert [path.read_bytes() for path in kept] == [damaged]
        if code == 0:
            break
    assert code == 0 and kill_at > 3


def test_the_last_three_copies_that_differ_are_kept(file: Path) -> None:
    for n in range(5):
        for _ in range(2):  # a session without a vote keeps nothing new
            opened, told = open_for_rating(file)
            opened.close()
            assert told == []
        with Ratings.open(file) as ratings:
            ratings.skip(1 + n, "ann", "s")
    assert len(copies(file)) == COPIES
    assert sorted(len(rows(copy)[1]) for copy in copies(file)) == [123, 124, 125]


def test_other_files_in_the_places_of_copies_stay(file: Path) -> None:
    for place in places(file):
        place.write_text("a thesis")
    opened, told = open_for_rating(file)
    opened.close()
    assert len(told) == 1 and "no copy of the ratings was kept" in told[0]
    assert [place.read_text() for place in places(file)] == ["a thesis"] * COPIES


@pytest.mark.slow
def test_a_full_disk_keeps_the_old_copy(file: Path) -> None:
    with Ratings.open(file) as ratings:
        assert keep_copy(ratings) is not None
        ratings.skip(1, "ann", "s")
    first = places(file)[0]
    before = first.read_bytes()
    for place in places(file)[1:]:
        place.mkdir()  # nothing can be opened there
    with Ratings.open(file) as ratings, sqlite3.connect(first) as held:
        held.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError):
            keep_copy(ratings)
    assert first.read_bytes() == before


def test_copies_that_a_full_disk_left_empty_go_first(file: Path) -> None:
    with Ratings.open(file) as ratings:
        good = keep_copy(ratings)
        assert good is not None
        before = good.read_bytes()
        for place in places(file)[1:]:
            place.touch()
        for n in range(COPIES - 1):
            ratings.skip(1 + n, "ann", "s")
            assert keep_copy(ratings) not in (good, None)
    assert good.read_bytes() == before and len(copies(file)) == COPIES


def test_a_link_is_the_database_that_it_leads_to(file: Path, tmp_path: Path) -> None:
    """One lock, one set of copies and one repair, by whichever name it is opened: else a repair
    would move the link, and those who open the file itself would go on writing to what is damaged.
    """
    link = tmp_path / "elsewhere" / "ratings.db"
    link.parent.mkdir()
    link.symlink_to("../ratings.db")
    with (
        Ratings.open(file),
        pytest.raises(UserError, match="another program has it open"),
        lock_file.alone(ratings_file(link.parent), 0.0),
    ):
        pass
    spoil(file, [6])
    repair = repair_if_damaged(link)
    assert repair is not None and repair.kept.parent == file.parent and not repair.kept.is_symlink()
    assert [path.name for path in link.parent.iterdir()] == ["ratings.db"] and link.is_symlink()
    assert rows(link) == rows(file)


def test_a_damaged_number_of_a_row_ends_the_search(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.preferences.repair._GAP", 1000)
    with closing(sqlite3.connect(file)) as damaged:
        damaged.execute(
            "INSERT INTO item SELECT 1 << 60, batch, prompt, prompt_sha, shown, kind, gold, repeat_of, "
            "meta, created FROM item WHERE id = 1"
        )
        damaged.commit()
        root = damaged.execute("SELECT rootpage FROM sqlite_master WHERE name = 'item'").fetchone()[
            0
        ]
        damaged.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = file.read_bytes()
    page = data[(root - 1) * PAGE : root * PAGE]
    # it has children: the second of them is damaged, the last one holds that number
    assert page[0] == 5
    cell = int.from_bytes(page[14:16], "big")
    spoil(file, [int.from_bytes(page[cell : cell + 4], "big") - 1])
    repair = repair_if_damaged(file)
    assert repair is not None and 0 < repair.votes < 121


def test_whoever_may_write_the_database_may_lock_it(file: Path) -> None:
    lock = file.with_name(".ratings.db.lock")
    lock.unlink()
    file.chmod(0o660)
    with Ratings.open(file):
        assert lock.stat().st_mode & 0o777 == 0o660


def test_the_watch_over_the_suite_sees_an_opening(file: Path) -> None:
    """What `conftest` forbids to all code of ours is noticed when it is done."""
    import conftest

    own = compile("open(path).close()", f"{conftest._OWN[0]}made_up.py", "exec")
    exec(own, {"path": str(file)})
    assert len(conftest._opened) == 1 and "made_up.py:1" in conftest._opened[0]
    conftest._opened.clear()
