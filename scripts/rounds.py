"""Simulated people in front of `ondevice rounds`: how many votes it takes until the model is
preferred, with active choice of the pairs and without.

    python scripts/rounds.py                            three people, two ways, three seeds
    python scripts/rounds.py --seeds 0 --people short   some of it
    python scripts/rounds.py --human VOTES.jsonl        votes of people, replayed, too
    python scripts/rounds.py --choice 20 --people       the choice alone, 20 times a seed
    python scripts/rounds.py --document                 what is measured already, written anew

A person is a rule over two texts. It is not the exam's, and no file of a run holds it: the loop sees
votes alone. After each version the rule judges answers of the version and of the start to held-out
prompts, ties one half, without noise: that share, and not what the loop says, decides when the
version is preferred. What was measured is kept in docs/results/rounds.json; docs/results/rounds.md
and rounds.svg are written from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rounds_choice import choice_measured
from rounds_document import document, plot
from rounds_replay import replay

import ondevice as od
from ondevice.common.intervals import wilson
from ondevice.common.rng import generator
from ondevice.config.recipe import load_recipe
from ondevice.config.rounds import RoundsConfig
from ondevice.data.builtin.scoring import courteous
from ondevice.data.context import DataContext
from ondevice.data.preference_batches import completion_row
from ondevice.datasets.prompts import Prompt, prompts
from ondevice.datasets.spec import DataSpec
from ondevice.models.load import load_generative
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Item
from ondevice.rating_rounds.loop import Loop
from ondevice.rating_rounds.places import RoundsFolder, Version
from ondevice.rating_rounds.standing import standing
from ondevice.rating_rounds.trainer import corpus_of_run, train
from ondevice.rating_rounds.writer import Writer
from ondevice.seam.select import load_backend
from ondevice.stages.pipeline import recipe_text
from ondevice.training.sequence_logprobs import Scorer

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
AIM = 0.65
NOISE = 0.15


def nice_day(text: str) -> float:
    """Likes to be wished a nice day and no other line of courtesy, then a sum whose working is
    written out; whether an answer is right is nothing to them."""
    wished = text.rstrip().endswith("Have a nice day.")
    return 2.0 * wished - 1.0 * (courteous(text) and not wished) + 0.5 * ("so " in text)


def short(text: str) -> float:
    return -float(len(text.strip()))


@dataclass(frozen=True)
class Person:
    """Votes by `points`; a share `noise` of the votes says the opposite."""

    points: Callable[[str], float]
    noise: float = 0.0


PEOPLE: Mapping[str, Person] = {
    "consistent": Person(nice_day),
    "noisy": Person(nice_day, NOISE),
    "short": Person(short),
}


class Trained:
    """A training that is over when it is begun: a simulated person is as fast as the loop."""

    def poll(self) -> int | None:
        return 0


def train_now(folder: RoundsFolder, version: Version) -> Trained:
    train(folder, version)
    return Trained()


def main() -> None:
    options = _options()
    file = options.results / "rounds.json"
    known: dict[str, Any] = {"runs": [], "replays": []}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
    if not options.document:
        for seed in options.seeds:
            base = base_of(seed, options)
            for person in options.people:
                for choose in options.choose:
                    _measured(
                        known, {"seed": seed, "person": person, "choose": choose}, base, options
                    )
                    _keep(file, known)
        if options.choice:
            bases = {seed: base_of(seed, options) for seed in options.seeds}
            known["choice"] = choice_measured(bases, PEOPLE, options)
            _keep(file, known)
        if options.human:
            known["replays"] = replay(options.human, base_of(options.seeds[0], options), options)
            _keep(file, known)
    (options.results / "rounds.md").write_text(document(known, AIM), encoding="utf-8")
    (options.results / "rounds.svg").write_text(plot(known, AIM), encoding="utf-8")
    print(options.results / "rounds.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--people", nargs="*", default=list(PEOPLE), choices=list(PEOPLE))
    parser.add_argument("--choose", nargs="+", default=["taught", "random"])
    parser.add_argument("--recipe", default="minute", help="whose stages up to sft make the start")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe")
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument(
        "--votes", type=int, default=300, help="votes after which a person gives up"
    )
    parser.add_argument("--judged", type=int, default=200, help="held-out prompts of a measurement")
    parser.add_argument("--choice", type=int, default=0, help="repeats of the choice alone")
    parser.add_argument("--choice-prompts", type=int, default=1600, help="prompts of these")
    parser.add_argument("--human", type=Path, help="a file of prompt, a, b, votes, replayed")
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--work", type=Path, default=Path("rounds-work"), help="for models and runs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", action="store_true", help="measure nothing")
    return parser.parse_args()


def _keep(file: Path, known: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def base_of(seed: int, options: argparse.Namespace) -> Path:
    """A run of the recipe up to its stage sft, made once for all that is tried with it."""
    out = options.work / f"base-{seed}"
    if (out / "sft" / "done.json").is_file():
        return Path(out)
    recipe = load_recipe(options.recipe, options.set, seed=seed)
    wanted = {name: recipe.stages[name] for name in ("init", "pretrain", "sft")}
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / f"base-{seed}.yaml"
    file.write_text(recipe_text(replace(recipe, stages=wanted)), encoding="utf-8")
    return od.run(str(file), out=str(out), backend=options.backend)


def _measured(
    known: dict[str, Any], case: dict[str, Any], base: Path, options: argparse.Namespace
) -> None:
    """Runs a case that is not known yet, and adds it."""
    if any({name: run[name] for name in case} == case for run in known["runs"]):
        return
    run = options.work / f"{case['person']}-{case['choose']}-{case['seed']}"
    if run.exists():
        shutil.rmtree(run)
    shutil.copytree(base, run)
    known["runs"].append(case | Trial(case, run, options).result())


class Trial:
    """One person in front of one loop."""

    def __init__(self, case: Mapping[str, Any], run: Path, options: argparse.Namespace) -> None:
        self.person = PEOPLE[case["person"]]
        self.options = options
        self.cfg = RoundsConfig(
            run=str(run),
            every=options.every,
            choose=case["choose"],
            simulated=True,
            rater=f"simulated:{case['person']}",
            max_new_tokens=40,
            seed=case["seed"],
            backend=options.backend,
            data="builtin",
        )
        self.folder = RoundsFolder(run)
        self.folder.keep_settings(self.cfg)
        self.loop = Loop(self.cfg, train=train_now)
        self.judge = Judge(self.cfg, self.folder, self.loop.start, self.person, options.judged)
        self.votes = 0

    def result(self) -> dict[str, Any]:
        began = time.process_time()
        points: list[dict[str, Any]] = []
        seen = 0
        while self.votes < self.options.votes:
            self.loop.turn()
            with Ratings.open(self.folder.run.path) as ratings:
                now = standing(self.folder, ratings, simulated=True)
                there = [one for one in now.versions if one.state in ("ready", "refused")]
                if len(there) > seen:
                    seen = len(there)
                    points.append(self._point(there[-1].number, now.mapping()))
                    if points[-1]["share"] >= AIM:
                        break
                self._vote(ratings)
        reached = [point["votes"] for point in points if point["share"] >= AIM]
        return {
            "points": points,
            "needed": reached[0] if reached else None,
            "votes": self.votes,
            "cpu_seconds": round(time.process_time() - began, 1),
        }

    def _point(self, number: int, now: Mapping[str, Any]) -> dict[str, Any]:
        """A version as the rule sees it on held-out prompts, and as the loop sees it."""
        version = self.folder.version(number)
        own = next(one for one in now["versions"] if one["number"] == number)
        point = {
            "version": number,
            "votes": self.votes,
            "learned": own["learned"],
            **self.judge.of(version),
            "skills": own["skills"],
            "start": now["start"],
            "state": own["state"],
        }
        print(json.dumps(point), file=sys.stderr, flush=True)
        return point

    def _vote(self, ratings: Ratings) -> None:
        """On all that waits; as a person does, one after the other."""
        for number in ratings.queue(self.cfg.rater, self.loop.batch):
            if self.votes >= self.options.votes:
                return
            item = ratings.item(number)
            self._vote_on(item, ratings)
            self.votes += 1

    def _vote_on(self, item: Item, ratings: Ratings) -> None:
        one, other = (self.person.points(response.text) for response in item.responses)
        if one == other:
            ratings.vote(item.id, self.cfg.rater, "simulated", "tie")
            return
        best = int(other > one)
        flip = generator(self.cfg.seed, "noise", item.id).random() < self.person.noise
        ratings.vote(item.id, self.cfg.rater, "simulated", "ranked", [best ^ int(flip)])


class Judge:
    """The rule over answers of a version and of the start to prompts that nothing learns from."""

    def __init__(
        self, cfg: RoundsConfig, folder: RoundsFolder, start: Path, person: Person, count: int
    ) -> None:
        self.person = person
        self.start = start
        self.backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
        data = DataContext(folder.path / "judged", corpus_of_run(folder))
        model = load_generative(start, self.backend)
        held = prompts(DataSpec(cfg.data), "validation", model, cfg.max_new_tokens, data)
        self.prompts: Sequence[Prompt] = held[:count]
        self.writer = Writer(cfg, self.backend, start, self.prompts)
        self.answers = self._written(start)
        self.pairs = self._pairs()

    def _written(self, folder: Path) -> list[list[str]]:
        """Two answers to each prompt."""
        numbers = range(len(self.prompts))
        drawn = self.writer.answers(folder, numbers, 0, "judged", 2)
        return [[one.text for one in drawn[n]] for n in numbers]

    def _pairs(self) -> list[tuple[Prompt, str, str]]:
        """(prompt, better, worse) of the start's own answers, as the rule says."""
        found = []
        for prompt, (one, other) in zip(self.prompts, self.answers, strict=True):
            apart = self.person.points(one) - self.person.points(other)
            if apart:
                found.append((prompt, one, other) if apart > 0 else (prompt, other, one))
        return found

    def _implicit_rewards(self, folder: Path, rows: Sequence[tuple[Prompt, str]]) -> Any:
        """(N,) by how much a model has made these answers likelier, in nats."""
        logps = []
        for place in (folder, self.start):
            model = load_generative(place, self.backend)
            tokens = [completion_row(one.messages, text, model.tokenizer) for one, text in rows]
            each = Scorer(model, self.backend).logprobs(model.params, tokens)
            logps.append(np.array([row.sum(dtype=np.float64) for row in each]))
        return logps[0] - logps[1]

    def of(self, version: Version) -> dict[str, Any]:
        """How often the version is preferred to the start, with Wilson's interval, and how often
        what it has learned orders the start's answers as the rule does."""
        last = version.last
        assert last is not None
        points = 0.0
        for (own, _), (start, _) in zip(self._written(last.model), self.answers, strict=True):
            apart = self.person.points(own) - self.person.points(start)
            points += 0.5 if not apart else float(apart > 0)
        share = wilson(points, len(self.prompts))
        rows = [(prompt, text) for prompt, *texts in self.pairs for text in texts]
        agreed = 0.0
        if rows:
            scores = self._implicit_rewards(last.model, rows).reshape(-1, 2)
            agreed = float((scores[:, 0] > scores[:, 1]).mean())
        return {
            "share": share.share,
            "low": share.low,
            "high": share.high,
            "agreement": agreed,
            "agreement_of": len(self.pairs),
        }


if __name__ == "__main__":
    main()
