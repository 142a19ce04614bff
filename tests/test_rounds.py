"""Rating and training in turns: what is asked, what is known of the versions, and that a loop goes
on where it was."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.config.rounds import RoundsConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.strengths import Comparison, preferred_to
from ondevice.preferences.votes import Response
from ondevice.rating_rounds import process as rounds_process
from ondevice.rating_rounds import trainer
from ondevice.rating_rounds.choice import MEASURE, RANDOM, TAUGHT, chosen, kind_of_place
from ondevice.rating_rounds.command import rounds
from ondevice.rating_rounds.loop import Loop, start_process, write_votes
from ondevice.rating_rounds.places import RoundsFolder, Version, batch_of
from ondevice.rating_rounds.process import start_loop
from ondevice.rating_rounds.standing import (
    DUEL,
    Rounds,
    Standing,
    difference,
    duels,
    refusal,
    render,
    sentence,
    share_of,
    standing,
    told,
)
from ondevice.rating_rounds.taste import PRIOR, Taste
from ondevice.rating_rounds.trainer import train
from ondevice.runs import folder as folder_module
from ondevice.runs.events import first_event
from ondevice.seam.select import load_backend

RATER = "simulated:short"
ASKED = list(itertools.permutations(small_stages.WORDS[:7], 2))


# ---- what is asked -------------------------------------------------------------------------------


def test_one_pair_in_five_meets_the_start_and_a_share_is_drawn() -> None:
    def kinds(seed: int, version: int, active: bool = True) -> list[str]:
        return [
            kind_of_place(p, seed, 0.2, 0.25, version=version, active=active) for p in range(200)
        ]

    assert Counter(kinds(0, 1)) == {MEASURE: 40, RANDOM: 40, TAUGHT: 120}
    assert MEASURE not in kinds(0, 0)  # there is no version yet
    assert Counter(kinds(0, 1, active=False)) == {MEASURE: 40, RANDOM: 160}
    assert kinds(0, 1) != kinds(1, 1)  # nobody can foresee them
    for first in range(0, 200, 20):
        assert Counter(kinds(3, 1)[first : first + 20])[MEASURE] == 4


def test_what_teaches_most_of_various_prompts_comes_first() -> None:
    texts = ["add 1 and 2", "add 2 and 1", "where does Nora live", "name a colour"]

    def numbers(bits: Sequence[float] | None, count: int, lately: Sequence[str]) -> list[int]:
        known = None if bits is None else Told(list(bits))
        return [n for n, _ in chosen(texts, known, count, lately)]  # type: ignore[arg-type]

    assert numbers([1.0, 1.0, 0.9, 0.2], 3, []) == [0, 2, 1]
    assert numbers([0.1, 0.2, 0.9, 1.0], 1, []) == [3]
    assert numbers([1.0, 0.1, 0.9, 0.3], 1, ["add 1 and 2"]) == [2]  # it was just asked
    assert sorted(numbers([0.0] * 4, 9, [])) == [0, 1, 2, 3]
    assert numbers(None, 2, ["add 1 and 2"]) == [2, 3]  # by their prompts alone
    assert chosen(texts, None, 1, []) == [(0, None)]


class Told:
    """A forecast whose bits are given; votes on other pairs change none of them."""

    def __init__(self, bits: list[float]) -> None:
        self._bits = bits

    def bits(self) -> np.ndarray:
        return np.array(self._bits)

    def after(self, pair: int) -> Told:
        return self


def test_the_votes_are_fitted_as_a_regression_is() -> None:
    """The dual form's mode is the one that a search over the weights finds, and its variance that of
    the curvature there."""
    rng = np.random.default_rng(5)
    first, second, one, other = rng.normal(size=(4, 12, 5))
    wins = np.array([1, 1, 0.5, 0, 1, 0.5, 1, 0, 1, 1, 1, 0.5])
    usual = np.concatenate([first, second, one, other])
    taste = Taste(first, second, wins, usual)
    forecast = taste.forecast(one, other)
    scale = 1 / ((usual.std(0) + 1e-6) * np.sqrt(5))
    x = (first - second) * scale
    weights = np.zeros(5)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = np.eye(5) / PRIOR + x.T @ (x * (p * (1 - p))[:, None])
        weights += np.linalg.solve(curvature, x.T @ (wins - p) - weights / PRIOR)
    apart = (one - other) * scale
    np.testing.assert_allclose(forecast.mean, apart @ weights, rtol=1e-4, atol=1e-6)
    expected = apart @ np.linalg.inv(curvature) @ apart.T
    np.testing.assert_allclose(forecast.covariance, expected, rtol=1e-4, atol=1e-6)
    # a pair that is as good as voted on teaches less; two alike answers teach nothing
    before, after = forecast.bits(), forecast.after(3).bits()
    assert after[3] < before[3] and (after <= before + 1e-12).all() and (before <= 1).all()
    assert not taste.forecast(one, one).bits().round(6).any()


def test_a_taste_is_found_and_what_is_known_of_it_is_not_asked() -> None:
    """A rater who likes one thing about answers: pairs that differ in it are told apart after a few
    votes, and a vote teaches more where the answers differ in what was not asked about."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 60, 6)) * np.array([2, 2, 0.01, 0.01, 0.01, 0.01])
    one[:40, 1] = other[:40, 1]  # what the second feature is worth was never asked
    wins = (one[:40, 0] > other[:40, 0]).astype(float)
    taste = Taste(one[:40], other[:40], wins, np.concatenate([one, other]))
    liked, new = np.zeros((2, 1, 6))
    liked[0, 0], new[0, 1] = 4.0, 4.0
    zero = np.zeros((1, 6))
    assert taste.forecast(liked, zero).mean[0] > 2 > abs(taste.forecast(new, zero).mean[0])
    assert taste.forecast(new, zero).bits()[0] > 2 * taste.forecast(liked, zero).bits()[0]
    # ties say that there is little in it
    same = Taste(one[:40], other[:40], np.full(40, 0.5), np.concatenate([one, other]))
    assert abs(same.forecast(liked, zero).mean[0]) < 1e-6
    assert same.forecast(liked, zero).bits()[0] < same.forecast(new, zero).bits()[0]


# ---- what is known of the versions ---------------------------------------------------------------


def against_start(wins: float, of: int, source: str = "version 1") -> list[Comparison]:
    return [Comparison(source, "start", float(n < wins), f"p{n}", True, 0) for n in range(of)]


def test_the_sentence_says_how_far_a_version_is_preferred_and_when_nothing_is_known() -> None:
    known = Standing(4, "ready", 120, wilson(34, 48), None)
    assert told(known) == "you prefer version 4 to the start in 71 % of 48 pairs (57 to 82)"
    few = Standing(1, "ready", 30, wilson(5, 6), None)
    assert told(few) == "version 1 against the start: not yet known (6 pairs)"
    assert sentence([known, few], 4) == told(known)
    assert sentence([], 0) == "there is no version yet"
    lost = Standing(2, "refused", 60, wilson(3, 20), None, refused="you prefer the start")
    assert sentence([lost], 0).endswith("it is not used (you prefer the start)")


@pytest.mark.parametrize(
    ("wins", "of", "refused"), [(1, 9, False), (2, 10, False), (1, 12, True), (20, 48, False)]
)
def test_a_version_is_refused_where_the_start_is_preferred(
    wins: int, of: int, refused: bool
) -> None:
    """By the upper end of the interval, and not by a handful of pairs."""
    share = share_of(against_start(wins, of), "version 1")
    assert bool(refusal(share, {}, {})) is refused
    if refused:
        assert share.high is not None and share.high < 0.5


def marks(right: int, asked: int, solved: float) -> dict[str, Any]:
    return {
        "by_kind": {"facts": [right, asked]},
        "reasoning": {"accuracy": solved, "asked": 60},
        "bits_per_byte": 0.9,
    }


def test_a_version_is_refused_where_a_skill_falls_by_more_than_its_interval() -> None:
    nobody = wilson(0, 0)
    before = marks(180, 240, 0.8)
    assert refusal(nobody, before, marks(170, 240, 0.75)) == ""
    assert refusal(nobody, before, marks(150, 240, 0.8)) == "exact match fell by 12 points"
    assert refusal(nobody, before, marks(185, 240, 0.5)).startswith("reasoning fell by 30")
    assert refusal(nobody, {}, marks(1, 240, 0.1)) == ""  # what was not measured cannot fall
    # Newcombe 1998, table II (b): 9/10 and 3/10
    change, high = difference((9, 10), (3, 10))
    assert change == pytest.approx(-0.6) and high == pytest.approx(-0.1705, abs=1e-4)


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    skills = {"exact_match": 0.729, "reasoning": 1.0, "bits_per_byte": 0.867}
    found = [
        Standing(999, state, 1200, wilson(71, 100), None, skills, refused)
        for state, refused in (("training", ""), ("refused", "exact match fell by 12 points"))
    ]
    table = render(Rounds(found, 0, 1200, 0, sentence(found, 0), skills).mapping())
    assert all(len(row) <= 80 for row in table.split("\n\n")[0].splitlines())
    assert "version 999 refused: exact match fell by 12 points" in table and "71 % of 100" in table


def test_the_curve_is_bradley_terrys_against_the_start() -> None:
    compared = against_start(12, 16) + against_start(4, 16, "version 2")
    one, other = preferred_to(compared, "start")
    assert (one.source, other.source) == ("version 1", "version 2")
    # of one opponent Bradley–Terry is the share of wins, but for what standing left takes
    assert one.low < one.share < one.high and other.share < 0.5 < one.share
    swapped = [Comparison(c.right, c.left, 1 - c.score, c.prompt_sha, True, 0) for c in compared]
    both = preferred_to(compared + swapped, "start", bootstraps=20)
    assert both[0].share == pytest.approx(12 / 16, abs=0.01)
    assert math.isclose(both[1].share, 4 / 16, abs_tol=0.01)
    assert preferred_to(compared, "nobody") == []


# ---- the loop ------------------------------------------------------------------------------------


class Now:
    """A training that is over once it is begun."""

    def poll(self) -> int:
        return 0


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a stage sft, and prompts."""
    folder = tmp_path_factory.mktemp("rounds")
    backend = load_backend("torch", device="cpu", dtype="float32")
    files = small_stages.make(folder / "files", backend)
    shutil.copytree(files / "policy", folder / "run" / "sft" / "model")
    asked = [f"{one} {other} {n}" for n in range(9) for one, other in ASKED]
    lines = [json.dumps({"prompt": text}) + "\n" for text in asked]
    (files / "asked.jsonl").write_text("".join(lines))
    return folder


def loop_of(material: Path, run: Path, **changes: Any) -> Loop:
    shutil.copytree(material / "run", run)
    trained: list[int] = changes.pop("trained", [])

    def made(folder: RoundsFolder, version: Version) -> Now:
        """The start's own weights as a version, in place of a training."""
        trained.append(version.number)
        stage = version.path / "dpo"
        shutil.copytree(material / "run" / "sft" / "model", stage / "model")
        (stage / "done.json").write_text(json.dumps({"marks": {}}))
        return Now()

    fields = {
        "every": 4,
        "data": str(material / "files" / "asked.jsonl"),
        "max_new_tokens": 8,
        "simulated": True,
        "rater": RATER,
        "backend": "torch",
        "measure_share": 0.5,
        **changes,
    }
    cfg = RoundsConfig(run=str(run), **fields)
    RoundsFolder(run).keep_settings(cfg)
    return Loop(cfg, train=made, say=lambda text: None)


def vote_on_all(loop: Loop) -> int:
    """The shorter answer of every pair that waits."""
    count = 0
    with Ratings.open(loop.folder.run.path) as ratings:
        for number in ratings.queue(RATER, loop.batch):
            lengths = [len(one.text) for one in ratings.item(number).responses]
            best = int(np.argmin(lengths))
            ratings.vote(number, RATER, "s", "ranked", [best])
            count += 1
    return count


def test_versions_follow_votes_and_the_next_pairs_are_the_newest_ones(
    material: Path, tmp_path: Path
) -> None:
    trained: list[int] = []
    loop = loop_of(material, tmp_path / "run", trained=trained)
    for _ in range(6):
        loop.turn()
        vote_on_all(loop)
    assert trained == list(range(1, len(trained) + 1)) and len(trained) >= 3
    with Ratings.open(tmp_path / "run") as ratings:
        items = ratings.items(loop.batch)
        now = standing(loop.folder, ratings, simulated=True)
        nobody = standing(loop.folder, ratings)
    assert [one.learned for one in now.versions] == sorted(one.learned for one in now.versions)
    assert now.current == trained[-1] and nobody.usable == 0  # programs count only where asked
    numbers = [item.meta["number"] for item in items]
    assert len(set(numbers)) == len(numbers)  # no prompt twice while there are others
    for item in items:
        sources = {one.source for one in item.responses}
        if item.meta["why"] == DUEL:
            assert sources == {"start", f"version {item.meta['version']}"}
        else:
            expected = f"version {item.meta['version']}" if item.meta["version"] else "start"
            assert sources == {expected}
            assert "bits" not in item.meta or item.meta["why"] == TAUGHT
    taught = [item.meta for item in items if item.meta["why"] == TAUGHT]
    # before the first vote nothing is known
    assert "bits" not in taught[0] and all("bits" in meta for meta in taught if meta["version"])
    assert {item.meta["version"] for item in items} >= {0, 1, 2}
    # pairs against the start count for their version, and the versions after it learn from them
    last = [json.loads(line) for line in loop.folder.version(trained[-1]).votes.open()]
    met = [item for item in items if item.meta["why"] == DUEL and item.meta["version"] == 1]
    learned = {row["prompt"][0]["content"] for row in last}
    assert met and any(item.prompt in learned for item in met)
    first = {
        json.loads(line)["prompt"][0]["content"] for line in loop.folder.version(1).votes.open()
    }
    assert not any(item.prompt in first for item in met)


def test_a_refused_version_gives_way_to_the_one_before(material: Path, tmp_path: Path) -> None:
    loop = loop_of(material, tmp_path / "run", every=2, measure_share=0.5)
    for _ in range(2):
        loop.turn()
        vote_on_all(loop)
    loop.turn()
    with Ratings.open(tmp_path / "run") as ratings:
        newest = standing(loop.folder, ratings, simulated=True).current
        assert newest >= 2
        for n in range(14):
            pair = [Response(f"a {n}", f"version {newest}"), Response(f"b {n}", "start")]
            meta = {"why": DUEL, "version": newest, "number": -1, "place": -1}
            item = ratings.add(loop.batch, f"asked {n}", pair, meta=meta, seed=0)
            ratings.vote(item, RATER, "s", "ranked", [1])
        now = standing(loop.folder, ratings, simulated=True)
    assert now.current < newest
    refused = next(one for one in now.versions if one.number == newest)
    assert refused.state == "refused" and "prefer the start" in refused.refused
    assert f"version {newest}" in render(now.mapping())
    with Ratings.open(tmp_path / "run") as ratings:
        assert len(duels(ratings, simulated=True)) >= 14 and not duels(ratings)


def test_it_goes_on_wherever_it_was_killed(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that dies at its votes' file, at the start of a training or at queueing leaves nothing
    that the next one cannot go on with: no version is lost, none is begun twice."""
    from ondevice.rating_rounds import loop as module

    class Killed(BaseException):
        pass

    def die(*args: object, **named: object) -> Any:
        raise Killed

    trained: list[int] = []
    first = loop_of(material, tmp_path / "run", every=3, trained=trained)
    first.turn()
    vote_on_all(first)
    for name in ("write_file", "write_votes"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, die)
            first.turn()
        assert not first.folder.versions() and not trained
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(first, "_train", die)
        first.turn()
    assert [v.number for v in first.folder.versions()] == [1] and not trained
    votes = first.folder.version(1).votes.read_bytes()
    vote_on_all(first)
    again = Loop(first.cfg, train=first._train, say=lambda text: None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(again._writer, "write", die)
        again.turn()
    assert trained == [1] and first.folder.version(1).votes.read_bytes() == votes
    third = Loop(first.cfg, train=first._train, say=lambda text: None)
    for _ in range(3):
        third.turn()
        vote_on_all(third)
    assert trained[:2] == [1, 2]


def test_a_training_that_dies_twice_is_given_up_and_said(material: Path, tmp_path: Path) -> None:
    loop = loop_of(material, tmp_path / "run", every=2)
    loop.turn()
    vote_on_all(loop)

    class Dead:
        def poll(self) -> int:
            return 1

    def dead(folder: RoundsFolder, version: Version) -> Dead:
        (version.path / "train.log").write_text("no memory left\n")
        return Dead()

    made, loop._train = loop._train, dead
    for _ in range(4):
        loop.turn()
    with Ratings.open(tmp_path / "run") as ratings:
        (failed,) = standing(loop.folder, ratings, simulated=True).versions
    assert (failed.state, failed.refused) == ("failed", "no memory left")
    loop._train = made
    for _ in range(3):
        vote_on_all(loop)
        loop.turn()
    assert loop.folder.version(2).last is not None  # the next votes make the next version


def test_a_full_disk_is_waited_for(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondevice.common.disk import DiskFull
    from ondevice.rating_rounds import loop as module

    said: list[str] = []
    loop = loop_of(material, tmp_path / "run")
    loop._say = said.append
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    turns = iter([DiskFull(tmp_path / "ratings.db"), DiskFull(tmp_path / "ratings.db"), None])
    done: list[bool] = []

    def turn() -> bool:
        problem = next(turns)
        if problem is not None:
            raise problem
        done.append(True)
        return True

    monkeypatch.setattr(loop, "turn", turn)
    loop.run(lambda: bool(done))
    assert done and len(said) == 1 and "full" in said[0] and "trying again" in said[0]


def test_bad_settings_are_one_clear_line(material: Path, tmp_path: Path) -> None:
    for fields, where in (
        ({"run": ""}, "run"),
        ({"run": "x", "every": 1}, "every"),
        ({"run": "x", "measure_share": 0.9}, "measure_share"),
        ({"run": "x", "choose": "random", "pool": 9}, "pool"),
        ({"run": "x", "until": 5}, "until"),
        ({"run": "x", "learning_rate": 0.0}, "learning_rate"),
    ):
        with pytest.raises(UserError) as refused:
            od.rounds(**fields)
        assert refused.value.where == where
    with pytest.raises(UserError, match="nothing says what is to be asked"):
        Loop(RoundsConfig(run=str(material / "run"), backend="torch", rater="me"))
    with pytest.raises(UserError, match="no tuned model"):
        od.rounds(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        od.rounds(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no rounds yet"):
        rounds(RoundsConfig(run=str(material / "run"), show=True))


@pytest.mark.slow
def test_headless_trains_what_the_votes_say(material: Path, tmp_path: Path) -> None:
    """`od.rounds(headless)` with votes that were given before, by real training in a process of its
    own; and the stages' own resume goes on with a version that was begun."""
    loop = loop_of(material, tmp_path / "run", every=4)
    run = tmp_path / "run"
    loop.turn()
    vote_on_all(loop)
    fields = {name: getattr(loop.cfg, name) for name in ("every", "data", "max_new_tokens")}
    heard: list[str] = []
    found = od.rounds(
        run,
        **fields,
        headless=True,
        until=4,
        simulated=True,
        rater=RATER,
        backend="torch",
        learning_rate=1e-3,
        tell=heard.append,
    )
    assert found["current"] == 1 and found["versions"][0]["learned"] >= 4
    assert found["sentence"] in heard[-1]
    version = loop.folder.version(1)
    assert (version.path / "dpo" / "pairs.jsonl").is_file()
    again = train(loop.folder, version)
    assert again == version.path / "dpo" / "model"


@pytest.mark.slow
def test_a_version_by_a_reward_model_and_ppo(material: Path, tmp_path: Path) -> None:
    """Both stages by real training; the next pairs are the version's."""
    loop = loop_of(material, tmp_path / "run", every=4, method="ppo", learning_rate=1e-3)

    def made(folder: RoundsFolder, version: Version) -> Now:
        assert train(folder, version) == version.path / "ppo" / "model"
        return Now()

    loop._train = made
    for _ in range(3):
        loop.turn()
        vote_on_all(loop)
    first = loop.folder.version(1)
    assert first.last is not None and first.last.path == first.path / "ppo"
    assert [stage.name for stage in first.stages] == ["reward", "ppo"]
    learned = json.loads((first.path / "ppo" / "settings.json").read_text())
    asked = first_event(first.path / "ppo" / "events.jsonl")["config"]
    assert learned["settings"]["steps"] >= 1 and asked["max_new_tokens"] == 8
    assert asked["reward_model"] == str(first.path / "reward" / "model")
    with Ratings.open(tmp_path / "run") as ratings:
        items = ratings.items(loop.batch)
        assert standing(loop.folder, ratings, simulated=True).current == 2
    sources = {one.source for item in items for one in item.responses}
    assert "version 1" in sources
    # gone on with, where a kill came between the two stages
    (first.path / "ppo" / "done.json").unlink()
    assert first.last is None
    assert train(loop.folder, first) == first.path / "ppo" / "model"


def test_the_training_of_an_earlier_loop_is_left_alone_and_asked_to_leave(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process reads, or measures the start, before any stage's lock is held: the next loop must
    neither start a second one nor give the version up, and who leaves must reach it."""
    trained: list[int] = []
    loop = loop_of(material, tmp_path / "run", trained=trained)
    loop.turn()
    vote_on_all(loop)
    version = loop.folder.version(1)
    with Ratings.open(tmp_path / "run") as ratings:
        write_votes(version, ratings, simulated=True)
    asked: list[int] = []
    monkeypatch.setattr(rounds_process.os, "kill", lambda pid, number: asked.append(pid))
    with version.trainer.locked():
        assert version.working
        loop.turn()
        assert not trained and not version.why_failed()
        monkeypatch.setattr(folder_module, "LOCK_PATIENCE_S", 0.1)
        assert trainer.main([str(tmp_path / "run"), "1"]) == 0
        assert not version.failed.exists()
        rounds_process.stop_training(loop.folder)
        assert asked == [os.getpid()]
    rounds_process.stop_training(loop.folder)
    loop.turn()
    assert trained == [1] and len(asked) == 1


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on(material: Path, tmp_path: Path) -> None:
    """kill -9 of the process that trains, and of the loop's memory: the next loop finds the version
    and trains it to its end, from the votes that it was begun with."""
    loop = loop_of(material, tmp_path / "run", every=4, learning_rate=1e-3)
    loop.turn()
    vote_on_all(loop)
    begun: list[Any] = []

    def started(folder: RoundsFolder, version: Version) -> Any:
        begun.append(start_process(folder, version))
        return begun[-1]

    first = Loop(loop.cfg, train=started, say=lambda text: None)
    first.turn()
    version = first.folder.version(1)
    wait_for(lambda: (version.path / "dpo" / "events.jsonl").exists())
    votes = version.votes.read_bytes()
    begun[0].kill()
    begun[0].wait()
    assert version.last is None and not version.working
    second = Loop(loop.cfg, train=started, say=lambda text: None)
    wait_for(lambda: [second.turn(), version.last is not None][1])
    assert 2 <= len(begun) <= 3 and version.votes.read_bytes() == votes
    with Ratings.open(tmp_path / "run") as ratings:
        assert standing(second.folder, ratings, simulated=True).current == 1


@pytest.mark.slow
def test_one_loop_a_run_and_it_ends_with_who_began_it(material: Path, tmp_path: Path) -> None:
    loop = loop_of(material, tmp_path / "run")
    folder = loop.folder
    process = start_loop(folder)
    assert process is not None
    try:
        wait_for(lambda: folder.busy)
        assert start_loop(folder) is None
        with pytest.raises(UserError, match="at work already"):
            od.rounds(tmp_path / "run", headless=True)
        with Ratings.open(tmp_path / "run", create=True) as ratings:
            wait_for(lambda: bool(ratings.queue(RATER, batch_of(loop.cfg))))
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert not folder.busy


def wait_for(holds: Any) -> None:
    import time

    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_votes_files_hold_the_usable_pairs(tmp_path: Path) -> None:
    version = RoundsFolder(tmp_path).version(7)
    with Ratings.open(tmp_path, create=True) as ratings:
        for n, said in enumerate([[0], [1], None]):
            pair = [Response(f"one {n}"), Response(f"two {n}")]
            item = ratings.add("b", f"asked {n}", pair, seed=0)
            if said is None:
                ratings.vote(item, "me", "s", "tie")
            else:
                ratings.vote(item, "me", "s", "ranked", said, strength=2)
        write_votes(version, ratings, simulated=False)
    rows: Sequence[Any] = [json.loads(line) for line in version.votes.open()]
    assert [(row["chosen"], row["strength"]) for row in rows] == [("one 0", 2.0), ("two 1", 2.0)]
    assert version.path.name == "v007" and RoundsFolder(tmp_path).versions() == [version]
