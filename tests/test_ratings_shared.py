"""One ratings database, several programs: real processes in any order, some of them killed.

Every vote that a person saw accepted is in the file, and SQLite finds nothing wrong with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import small_stages
from hub_server import HubServer, environment, running
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import pairs_of
from ondevice.preferences.votes import Response
from ondevice.seam.select import load_backend

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def pairs(run: Path, count: int) -> None:
    run.mkdir(parents=True)
    with Ratings.open(run, create=True) as ratings, ratings.transaction():
        for n in range(count):
            ratings.add(
                "first",
                f"Question {n}?",
                [Response(f"one {n}", "a"), Response(f"two {n}", "b")],
                seed=0,
            )


class App:
    """The app on the Rate screen, as a process. `accepted`: what it said it had stored, by action."""

    def __init__(self, runs: Path, rater: str) -> None:
        self.rater, self.accepted = rater, Counter[str]()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "rating_app.py"), str(runs)],
            env={**os.environ, "LOGNAME": rater},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def press(self, key: str) -> dict[str, Any]:
        self.send(key)
        said = self._answer()
        done = {
            "left": "vote",
            "right": "vote",
            "t": "vote",
            "f": "flag",
            "s": "skip",
            "u": "undo",
        }.get(key)
        if (
            done
            and not said["told"].startswith("not saved")
            and (said["pair"] is not None if key != "u" else "taken back" in said["told"])
        ):
            self.accepted[done] += 1
        return said

    def send(self, key: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{key}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the app ended with {self.process.wait()}"
        return dict(json.loads(line))


def command(*words: str, said: str = "", env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", *words],
        input=said,
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def check(run: Path, apps: list[App], uncertain: int = 0) -> None:
    """What each app was told is there; `uncertain`: keys whose answer nobody waited for."""
    with Ratings.open(run) as ratings:
        assert ratings.damage() == ""
        rows = Counter((row.rater, row.action) for row in ratings.votes())
    for app in apps:
        for action in ("vote", "flag", "skip", "undo"):
            found, accepted = rows[app.rater, action], app.accepted[action]
            assert accepted <= found <= accepted + uncertain, (app.rater, action, found, accepted)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    pairs(tmp_path / "runs" / "one", 30)
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text("stages: {}\n")
    return tmp_path / "runs" / "one"


def on_disk(run: Path, rater: str) -> int:
    """By a program of its own, that closes the file when it is done."""
    ours = (
        "import sys; from ondevice.preferences.database import Ratings\n"
        "with Ratings.open(sys.argv[1]) as r: print(len(r.votes(raters=[sys.argv[2]])))"
    )
    return int(
        subprocess.run(
            [sys.executable, "-c", ours, str(run), rater],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_votes_beside_stats_are_on_the_disk(run: Path) -> None:
    app = App(run.parent, "ann")
    app.press("left")
    time.sleep(1.5)  # the app looks at its runs once a second
    assert on_disk(run, "ann") == 1
    command("ratings", "stats", str(run))
    for key in ("left", "right", "t"):
        app.press(key)
        time.sleep(0.4)
    assert on_disk(run, "ann") == 4
    app.kill()
    assert on_disk(run, "ann") == 4


def test_votes_of_one_app_outlive_another_that_quits(run: Path) -> None:
    ann, bob = App(run.parent, "ann"), App(run.parent, "bob")
    for _ in range(3):
        ann.press("left")
        bob.press("right")
    time.sleep(1.2)
    ann.leave()
    for _ in range(4):
        bob.press("left")
    assert on_disk(run, "bob") == 7 and on_disk(run, "ann") == 3
    bob.leave()
    check(run, [ann, bob])


def test_an_import_beside_the_app_damages_nothing(run: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"imported {n}" + "y" * 300, "chosen": "a" * 400, "rejected": "b" * 400}
        for n in range(300)
    ]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    app = App(run.parent, "ann")
    for _ in range(3):
        app.press("left")
    time.sleep(1.2)
    command("ratings", "stats", str(run))
    app.press("left")
    command("ratings", "import", str(run), str(tmp_path / "more.jsonl"))
    for _ in range(3):
        app.press("right")
    app.leave()
    check(run, [app])
    assert app.accepted["vote"] == 7


class Programs(RuleBasedStateMachine):
    """Apps and commands on one database, in any order. What each of them needs is made once
    (`Programs.files`).
    """

    files: Path
    server: HubServer
    env: dict[str, str]
    count = 0

    @initialize()
    def begin(self) -> None:
        Programs.count += 1
        self.home = self.files / f"case-{Programs.count}"
        self.run = self.home / "runs" / "one"
        pairs(self.run, 40)
        (self.run / "recipe.yaml").write_text("stages: {}\n")
        self.open: list[App] = []
        self.apps: list[App] = []  # the closed and killed ones too
        self.uncertain = 0
        self.calls = 0
        self.open_app()

    def name(self, what: str) -> str:
        self.calls += 1
        return str(self.home / f"{self.calls}-{what}")

    @precondition(lambda self: len(self.open) < 2)
    @rule()
    def open_app(self) -> None:
        self.open.append(App(self.run.parent, f"rater{len(self.apps)}"))
        self.apps.append(self.open[-1])

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 1),
        keys=st.lists(
            st.sampled_from(["left", "right", "t", "s", "f", "u", "look"]), min_size=2, max_size=5
        ),
    )
    def press(self, which: int, keys: list[str]) -> None:
        for key in keys:
            self.open[which % len(self.open)].press(key)
        time.sleep(0.25)  # the app looks at its runs meanwhile

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1))
    def leave_app(self, which: int) -> None:
        self.open.pop(which % len(self.open)).leave()

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1), after=st.sampled_from(["", "left"]))
    def kill_app(self, which: int, after: str) -> None:
        """While it is idle, or while it stores a vote."""
        app = self.open.pop(which % len(self.open))
        if after:
            app.send(after)
            self.uncertain += 1
        app.kill()

    @rule()
    def stats(self) -> None:
        command("ratings", "stats", str(self.run))

    @rule()
    def import_pairs(self) -> None:
        file = Path(self.name("more.jsonl"))
        rows = [
            {"prompt": f"{file.name} {n}", "chosen": "yes", "rejected": "no"} for n in range(30)
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
        command("ratings", "import", str(self.run), str(file))

    @rule(after=st.floats(0.3, 1.0))
    def kill_an_import(self, after: float) -> None:
        file = Path(self.name("killed.jsonl"))
        file.write_text(
            "\n".join(
                json.dumps({"prompt": f"k{n}", "chosen": "a", "rejected": "b"}) for n in range(2000)
            )
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "ondevice", "ratings", "import", str(self.run), str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(after)
        process.kill()
        process.wait()

    @rule(form=st.sampled_from(["votes", "preference"]))
    def export(self, form: str) -> None:
        command("ratings", "export", str(self.run), self.name("out.jsonl"), "--form", form)

    @rule()
    def rate(self) -> None:
        command("rate", str(self.run), "--rater", "tty", said="a\nt\nu\nf\nq\n")

    @rule(stage=st.sampled_from(["sample", "dpo", "reward"]))
    def stage(self, stage: str) -> None:
        out = self.name(stage)
        policy = str(self.files / "policy")
        small = ("--device", "cpu", "--out", out)
        train = (
            "--steps",
            "1",
            "--batch_size",
            "2",
            "--sequence_length",
            "60",
            "--eval_every",
            "0",
            *small,
        )
        if stage == "sample":
            command(
                "sample",
                policy,
                str(self.files / "prompts.jsonl"),
                "--ratings",
                str(self.run / "ratings.db"),
                "--prompts",
                "2",
                "--max_new_tokens",
                "4",
                *small,
            )
        else:
            self.some_votes()
            command(stage, policy, str(self.run / "ratings.db"), *train)

    def some_votes(self) -> None:
        """As many as a stage needs."""
        with Ratings.open(self.run) as ratings:
            enough = len(pairs_of(ratings)) >= 10
        if not enough:
            command("rate", str(self.run), "--rater", "tty", said="a\n" * 12 + "q\n")

    @rule()
    def push(self) -> None:
        self.some_votes()
        command(
            "push",
            str(self.run),
            f"me/votes{Programs.count}-{self.calls}",
            "--dataset",
            "--yes",
            env=self.env,
        )
        self.calls += 1

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "run"):
            check(self.run, self.apps, self.uncertain)

    def teardown(self) -> None:
        for app in getattr(self, "open", []):
            app.kill()
        if hasattr(self, "run"):
            connection = sqlite3.connect(self.run / "ratings.db")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()


@pytest.mark.parametrize("orders", [2, 5])
def test_any_order_of_programs(tmp_path: Path, orders: int) -> None:
    small_stages.make(tmp_path, load_backend("torch", device="cpu", dtype="float32"))
    with running() as server:
        Programs.files, Programs.server = tmp_path, server
        Programs.env = environment(server, tmp_path / "home")
        machine = Programs.TestCase
        machine.settings = settings(
            max_examples=orders,
            stateful_step_count=16,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        machine("runTest").runTest()
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
