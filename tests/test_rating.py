"""Rating in the terminal: lines from a pipe, single keys on a pseudo-terminal, and what a kill
leaves.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.ratings import RateConfig
from ondevice.preferences import terminal as rating
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.project import change_project
from ondevice.preferences.project_command import project_text
from ondevice.preferences.votes import Response, said
from typed_keys import Typed

PROMPT = b"? help > "
HOSTILE = "\x1b]52;c;QQ==\x07\x1b[2J \u202eevil a\0b \x9b31m\r\n[B]\nno"


def fill(path: Path, count: int, width: int = 2) -> Path:
    with Ratings.open(path, create=True) as ratings, ratings.transaction():
        for n in range(count):
            ratings.add(
                "b",
                f"question {n}",
                [Response(f"text {s}", f"SECRET{s}") for s in range(width)],
                seed=0,
            )
    return path


def rate(path: Path, typed: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", "rate", str(path), "--rater", "ann", *flags],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        errors="surrogateescape",
    )


def best(ratings: Ratings, item: int, letter: str) -> tuple[int, ...]:
    shown = ratings.item(item).shown
    first = "abcd".index(letter)
    return (shown[first], *(slot for slot in shown if slot != shown[first]))


def test_lines_from_a_pipe(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 6)
    done = rate(path, "a\nB\nt\nx\nwhat\n\ns\nn\nodd one\nf\n?\nq\n")
    assert done.returncode == 0 and done.stderr == ""
    assert (
        "'what' means nothing here" in done.stdout
        and "213 " in done.stdout
        and "SECRET" not in done.stdout
    )
    assert done.stdout.endswith("ann: 4 votes now, 4 of 6 rated, 2 usable pairs\n")
    with Ratings.open(path) as ratings:
        votes = ratings.votes()
        assert [(v.item, v.action, v.outcome, v.strength) for v in votes] == [
            (1, "vote", "ranked", 1),
            (2, "vote", "ranked", 2),
            (3, "vote", "tie", None),
            (4, "vote", "all_bad", None),
            (5, "skip", None, None),
            (6, "note", None, None),
            (6, "flag", None, None),
        ]
        assert votes[0].ranking == best(ratings, 1, "a") and votes[1].ranking == best(
            ratings, 2, "b"
        )
        assert votes[5].note == "odd one" and all(v.dwell_ms is not None for v in votes[:5])
        assert len({v.session for v in votes}) == 1 and votes[0].seen_end is True


def test_answers_stand_in_the_stored_order(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 8)
    said = rate(path, "a\n" * 8, "--repeat-share", "0").stdout
    found = re.findall(r"\[A\]\n│ text (\d)\n\n\[B\]\n│ text (\d)", said)
    with Ratings.open(path) as ratings:
        assert [tuple(map(int, pair)) for pair in found] == [item.shown for item in ratings.items()]
    assert "nothing is left to rate: 8 of 8 rated, 8 usable pairs" in said
    again = rate(path, "")
    assert "nothing is left to rate: 8 of 8" in again.stdout and again.returncode == 0


def test_an_order_of_more_than_two(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3, width=4)
    said = rate(path, "dbac\nc\nab\ne\naa\naB\nq\n")
    assert (
        said.stdout.count("means nothing here") == 0
        and "3 of 3 rated, 14 usable pairs" in said.stdout
    )
    with Ratings.open(path) as ratings:
        shown = [ratings.item(n).shown for n in (1, 2, 3)]
        assert [vote.ranking for vote in ratings.votes()] == [
            tuple(shown[0]["abcd".index(x)] for x in "dbac"),
            (shown[1][2],),
            shown[2][:2],
        ]


def test_reasons_flags_redo_and_a_change(tmp_path: Path) -> None:
    """u then U, f twice, r with numbers, H to an earlier vote and another answer there."""
    path = fill(tmp_path / "r.db", 3)
    typed = "r\n1 3\na\nu\nU\nf\nf\nb\nH\n\n1\nt\nI\nq\n"
    done = rate(path, typed, "--repeat-share", "0", "--goal", "3")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for told in (
        "why: wrong, style",
        "undone: here it is again (it was: A is better)",
        "stored again: A is better",
        "the flag is taken back",
        "it was: A is better; an answer replaces that",
        "3 votes: the goal of this session is reached",
        "reasons: 1 wrong, 2 unhelpful",
    ):
        assert told in done.stdout, told
    with Ratings.open(path) as ratings:
        votes = {vote.item: vote for vote in ratings.live_votes()}
    assert (votes[1].outcome, votes[2].outcome) == ("tie", "ranked") and sorted(votes) == [1, 2]


def test_disagreements_are_settled(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3)
    with Ratings.open(path) as ratings:
        for item in (1, 2):
            ratings.vote(item, "Ada", "s", ranking=[0])
            ratings.vote(item, "Bob", "s", ranking=[1])
        assert len(pairs_of(ratings)) == 0
        ratings.flag(1, "Ada", "s")
    listed = od.manage_ratings(action="disagreements", ratings=str(path))["disagreements"]
    assert [row["item"] for row in listed] == [1, 2] and listed[0]["settled"] is None
    done = rate(path, "f\na\nu\nb\ns\n", "--settle")
    assert "looked at: no flag of Ada any more" in done.stdout
    assert "Ada: " in done.stdout and "nothing is left to settle" in done.stdout
    with Ratings.open(path) as ratings:
        [pair] = pairs_of(ratings)
        assert pair.raters == ("settled:ann",) and pair.item == 1
        assert {vote.rater for vote in ratings.live_votes()} == {"Ada", "Bob", "settled:ann"}


def test_only_what_is_wanted_is_asked(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3)
    assert "nothing is left to rate" in rate(path, "", "--source", "nobody").stdout
    assert "nothing is left to rate" in rate(path, "", "--longest", "3").stdout
    assert "question 0" in rate(path, "q\n", "--source", "SECRET1", "--longest", "6").stdout


def test_a_project_by_the_command(tmp_path: Path) -> None:
    path, file = fill(tmp_path / "r.db", 2), tmp_path / "guide.md"
    file.write_text("# Better\nThe *shorter* one.\n")
    told = od.manage_ratings(
        action="project",
        ratings=str(path),
        file=str(file),
        reasons=("false", "rude"),
        overlap=1,
        feedback="yes",
        reveal="yes",
    )
    assert told["guidelines"] == "# Better\nThe *shorter* one." and told["overlap"] == 1
    shown = od.manage_ratings(action="project", ratings=str(path))
    assert shown == told and "each pair is asked of 1" in project_text(shown)
    done = rate(path, "I\nr\n2\na\nq\n")
    for said_ in ("The *shorter* one.", "1 false", "why: rude", "A was by SECRET"):
        assert said_ in done.stdout
    with pytest.raises(UserError, match="cannot be read"):
        od.manage_ratings(action="project", ratings=str(path), file=str(tmp_path / "none.md"))


def test_a_known_answer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with Ratings.open(path, create=True) as ratings:
        ratings.add("b", "?", [Response("yes"), Response("no")], kind="gold", gold=0, seed=0)
        change_project(ratings, feedback=True)
        letter = "AB"[ratings.item(1).shown.index(0)]
    done = rate(path, f"{letter.lower()}\n")
    assert f"known answer: {letter} is better, as you said (1 of 1 right)" in done.stdout


def test_the_keys_of_the_app_do_the_same_here(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3, width=4)
    rate(path, "4213\n3\n1\nq\n")
    with Ratings.open(path) as ratings:
        shown = [ratings.item(n).shown for n in (1, 2, 3)]
        assert [vote.ranking for vote in ratings.votes()] == [
            tuple(shown[0]["abcd".index(x)] for x in "dbac"),
            (shown[1][2],),
            (shown[2][0],),
        ]


@pytest.mark.parametrize(
    "wrong", ["3", "11", "1B", "c", "aa", "aB", "abc", "tt", "y", "\udcff", "\x1b[A"]
)
def test_what_means_nothing_votes_nothing(tmp_path: Path, wrong: str) -> None:
    path = fill(tmp_path / "r.db", 1)
    done = rate(path, f"{wrong}\n")
    assert (
        "means nothing here" in done.stdout and done.returncode == 0 and "\x1b" not in done.stdout
    )
    with Ratings.open(path) as ratings:
        assert ratings.votes() == []


@pytest.mark.slow
def test_undo_over_sessions(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3)
    rate(path, "a\na\nq\n")
    out = rate(path, "u\nu\ny\ny\nu\ny\nu\nb\nb\nb\n").stdout  # u held down asks and asks
    assert out.count("of an earlier session (it was: A is better); y takes it back") == 3
    assert out.count("undone: here it is again (it was: A is better)") == 2
    assert out.count("nothing was asked") == 1 and "nothing to undo" in out
    with Ratings.open(path) as ratings:
        assert [(v.item, v.ranking) for v in ratings.live_votes()] == [
            (n, best(ratings, n, "b")) for n in (1, 2, 3)
        ]
        assert len(ratings.votes()) == 7


@pytest.mark.slow
def test_skipped_items_come_again_once(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3)
    said = rate(path, "s\na\na\nq\n").stdout
    assert "2 of 3 rated, 2 usable pairs; 1 that you skipped come again another time" in said
    said = rate(path, "s\na\n").stdout
    assert "1 that you skipped" in said
    assert "3 of 3 rated" in rate(path, "a\n").stdout


@pytest.mark.slow
def test_repeats_come_with_their_sides_swapped(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 40)
    rate(path, "a\n" * 60, "--repeat-share", "0.3")
    with Ratings.open(path) as ratings:
        repeats = [item for item in ratings.items() if item.kind == "repeat"]
        assert 6 <= len(repeats) <= 18 and len({item.repeat_of for item in repeats}) == len(repeats)
        order = [vote.item for vote in ratings.live_votes()]
        for item in repeats:
            assert (
                item.repeat_of is not None
                and item.shown == ratings.item(item.repeat_of).shown[::-1]
            )
            assert order.index(item.id) - order.index(item.repeat_of) > 5
        assert order[-1] == 40 or order[-1] in {item.id for item in repeats}
        assert (
            str(ratings.progress("ann")) == "40 of 40 rated, 40 usable pairs"
            and len(pairs_of(ratings)) == 40
        )
    assert (
        rate(fill(tmp_path / "none.db", 20), "a\n" * 30, "--repeat-share", "0").stdout.count("[A]")
        == 20
    )


def test_hostile_text_reaches_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with Ratings.open(path, create=True) as ratings:
        chat = [
            {"role": "system\x1b[31m", "content": HOSTILE},
            {"role": "user", "content": "\ud800"},
        ]
        ratings.add("b\x1b", chat, [Response(HOSTILE), Response("x" * 1_000_000)], seed=0)
    done = rate(path, "n\n\x1b[2J\udcff\na\n", "--rater", "m\x1be")
    assert done.returncode == 0 and not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr
    )
    assert "│ [B]" in done.stdout and len(re.findall(r"(?m)^\[B\]$", done.stdout)) == 1
    assert "980," in done.stdout and "more characters" in done.stdout
    with Ratings.open(path) as ratings:
        note, vote = ratings.votes()
        assert (
            note.note
            and note.note.startswith("\x1b[2J")
            and vote.seen_end is False
            and vote.rater == "m\x1be"
        )


def test_an_unknown_batch_is_named(tmp_path: Path) -> None:
    done = rate(fill(tmp_path / "r.db", 1), "a\n", "--batch", "c")
    assert done.returncode == 2 and "no items in the batch 'c' (known: b)" in done.stderr


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.modes: list[object] = []
        self.master, slave = pty.openpty()
        self.modes = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ondevice", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self.seen = b""

    def wait_for(self, text: bytes, count: int = 1) -> None:
        """Until `text` was written `count` more times."""
        end = time.monotonic() + 60
        start, found = 0, 0
        while found < count:
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 1 << 16)
            while found < count and (at := self.seen.find(text, start)) >= 0:
                found, start = found + 1, at + len(text)
        self.seen = self.seen[start:]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """The exit code, everything written read."""
        code = None
        while code is None:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 1 << 16)
            code = self.process.poll()
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 1 << 16)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self.master, self.slave):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal("rate", str(fill(tmp_path / "r.db", 5)), "--rater", "ann")
    yield made
    made.close()


def test_a_vote_of_another_window_is_not_replaced_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fill(tmp_path / "r.db", 2)
    with Ratings.open(path) as ratings:
        session = rating.Session(
            ratings, Typed("", interactive=False), RateConfig(ratings=str(path), rater="ann")
        )  # type: ignore[arg-type]
        item = ratings.item(1)
        with Ratings.open(path) as other:
            other.vote(1, "ann", "another window", "tie")
            other.vote(1, "bob", "his", "all_bad")
        assert session._do(item, "a", 1000) is item
        assert "you have rated this one in another window meanwhile: tie" in capsys.readouterr().out
        assert ratings.voted(1, "ann").outcome == "tie"  # type: ignore[union-attr]
        assert session._do(item, "f", 1000) is item, (
            "another key between the two: it is asked again"
        )
        assert session._do(item, "a", 1000) is item
        assert session._do(item, "a", 1000) is None and session._next() == ratings.item(2)
        assert ratings.voted(1, "ann").ranking[:1] == (item.shown[0],)  # type: ignore[union-attr]
        assert ratings.voted(1, "bob").outcome == "all_bad"  # type: ignore[union-attr]
        with Ratings.open(path) as other:
            other.vote(2, "ann", "another window", "all_bad")
        assert session._do(ratings.item(2), "s", 1000) is None and session._next() is None
        assert ratings.voted(2, "ann").outcome == "all_bad", "a skip takes no vote back"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "width, given, told",
    [
        (2, {"outcome": "ranked", "ranking": [1]}, "B is better"),
        (2, {"outcome": "tie"}, "tie"),
        (2, {"outcome": "ranked", "ranking": [0], "strength": 2}, "A is much better"),
        (2, {"outcome": "all_bad"}, "all bad"),
        (4, {"outcome": "ranked", "ranking": [2, 0]}, "C > A"),
        (4, {"outcome": "ranked", "ranking": [2]}, "C is better"),
    ],
)
def test_a_vote_in_words(tmp_path: Path, width: int, given: dict[str, Any], told: str) -> None:
    with Ratings.open(fill(tmp_path / "r.db", 1, width)) as ratings:
        if "ranking" in given:
            given = {
                **given,
                "ranking": [ratings.item(1).shown[place] for place in given["ranking"]],
            }
        assert said(ratings.vote(1, "ann", "s", **given), "ABCD") == told
        assert said(ratings.newest("ann"), "ABCD") == told  # type: ignore[arg-type]
        assert ratings.newest("bob") is None


@pytest.mark.slow
def test_single_keys_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    # an arrow up or down is no key here, and letters are other keys in the app: they are no votes
    for keys in (b"\x1b[D", b"\x1b[1;2C", b"a", b"n", b"\x1b[A\x1bOB\x1b[1;5Bu", b"t"):
        terminal.wait_for(PROMPT)
        terminal.type(keys)
    terminal.wait_for(PROMPT)
    terminal.type(b"N")
    terminal.wait_for(b"note: ")
    terminal.type("größer\n".encode())
    terminal.wait_for(PROMPT)
    terminal.type(b"\x11")  # ctrl+q: the terminal holds nothing back for it
    assert terminal.end() == 0
    assert termios.tcgetattr(terminal.slave) == terminal.modes and b"SECRET" not in terminal.seen
    with Ratings.open(tmp_path / "r.db") as ratings:
        assert [(v.item, v.action, v.outcome, v.strength) for v in ratings.votes()] == [
            (1, "vote", "ranked", 1),
            (2, "vote", "ranked", 2),
            (2, "undo", None, None),
            (2, "vote", "tie", None),
            (3, "note", None, None),
        ]
        assert ratings.votes()[-1].note == "größer"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("ctrl-c", 130), ("SIGTERM", 130), ("ctrl-d", 0)])
def test_the_terminal_is_put_back(terminal: Terminal, tmp_path: Path, how: str, code: int) -> None:
    terminal.wait_for(PROMPT)
    assert termios.tcgetattr(terminal.slave) != terminal.modes
    terminal.type(b"1")
    terminal.wait_for(PROMPT)
    if how == "ctrl-d":
        terminal.type(b"\x04")
    else:  # without a controlling terminal Ctrl-C arrives as what it stands for
        terminal.process.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    assert terminal.end() == code
    assert termios.tcgetattr(terminal.slave) == terminal.modes and b"Traceback" not in terminal.seen
    with Ratings.open(tmp_path / "r.db") as ratings:
        assert len(ratings.live_votes()) == 1


@pytest.mark.slow
def test_an_order_typed_key_by_key(tmp_path: Path) -> None:
    path = fill(tmp_path / "r.db", 3, width=3)
    terminal = Terminal("rate", str(path), "--rater", "ann")
    try:
        for keys in (b"31", b"2\r", b"12\x7f"):
            terminal.wait_for(PROMPT)
            terminal.type(keys)
            terminal.wait_for(b"rated")
    finally:
        terminal.close()
    with Ratings.open(path) as ratings:
        shown = [ratings.item(n).shown for n in (1, 2, 3)]
        assert [vote.ranking for vote in ratings.votes()][:2] == [
            (shown[0][2], shown[0][0], shown[0][1]),
            (shown[1][1],),
        ]


@pytest.mark.slow
def test_every_vote_outlives_a_kill(tmp_path: Path) -> None:
    """After each vote, as soon as the next pair is asked for, the program is killed: the vote is
    there, and the next start goes on at the next pair."""
    path = fill(tmp_path / "r.db", 6)
    for count, key in enumerate((b"1", b"2", b"t", b"x"), 1):
        terminal = Terminal("rate", str(path), "--rater", "ann")
        try:
            terminal.wait_for(PROMPT)
            terminal.type(key)
            terminal.wait_for(PROMPT)
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        finally:
            terminal.close()
        with Ratings.open(path) as ratings:
            votes = ratings.live_votes()
            assert [vote.item for vote in votes] == list(range(1, count + 1))
    assert [vote.outcome for vote in votes] == ["ranked", "ranked", "tie", "all_bad"]


def test_a_program_that_rates_is_called_one(tmp_path: Path) -> None:
    done = rate(fill(tmp_path / "r.db", 2), "a\nq\n", "--rater", "simulated:first")
    assert done.stdout.splitlines()[-1].startswith(
        "simulated:first (simulated): 1 vote now, 1 of 2 rated"
    )
