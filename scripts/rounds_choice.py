"""How fast a rater's taste is found by each way of choosing, for scripts/rounds.py: votes of a rule on
answers of the start, many times over, with nothing trained but what the choice itself goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.rng import generator
from ondevice.config.rounds import RoundsConfig
from ondevice.data.context import DataContext
from ondevice.data.preference_batches import completion_row
from ondevice.datasets.prompts import prompts
from ondevice.datasets.spec import DataSpec
from ondevice.models.load import load_generative
from ondevice.rating_rounds.choice import chosen
from ondevice.rating_rounds.places import RoundsFolder, start_model
from ondevice.rating_rounds.taste import Taste
from ondevice.rating_rounds.trainer import corpus_of_run
from ondevice.rating_rounds.writer import Writer
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer

MARKS = (16, 32, 64, 128, 240)
AT_ONCE = 8
SEEN = 20  # prompts before these that are looked at for variety


class Answers:
    """Two answers of the start to each of `count` prompts, and their features (N, H) each."""

    def __init__(self, run: Path, seed: int, count: int, backend: str) -> None:
        loaded = load_backend(backend, "auto", "auto")
        cfg = RoundsConfig(run=str(run), seed=seed, max_new_tokens=40, data="builtin")
        start = start_model(cfg)
        model = load_generative(start, loaded)
        folder = RoundsFolder(run)
        data = DataContext(folder.path / "choice", corpus_of_run(folder))
        asked = prompts(DataSpec(cfg.data, seed=seed), "all", model, cfg.max_new_tokens, data)
        asked = asked[:count]
        drawn = Writer(cfg, loaded, start, asked).answers(start, range(len(asked)), 0, "choice", 4)
        self.prompts: list[str] = []
        self.texts: list[tuple[str, str]] = []
        rows = []
        for n, prompt in enumerate(asked):
            two = list(dict.fromkeys(one.text for one in drawn[n]))[:2]
            if len(two) == 2:
                self.prompts.append(prompt.text)
                self.texts.append((two[0], two[1]))
                rows += [completion_row(prompt.messages, text, model.tokenizer) for text in two]
        features = Scorer(model, loaded).features(model.params, rows)
        self.one, self.other = features[::2], features[1::2]

    def taste(self, asked: Sequence[int], votes: Any) -> Taste:
        usual = np.concatenate([self.one, self.other])
        wins = 0.5 * (votes[list(asked)] + 1)
        return Taste(self.one[asked], self.other[asked], wins, usual)


def choice_measured(
    bases: Mapping[int, Path], people: Mapping[str, Any], options: Any
) -> list[dict[str, Any]]:
    """Rows: person, way, votes, the share of held-out pairs that is ordered as the rule does, and how
    many of the votes were usable; means over seeds and repeats."""
    found = []
    tried: dict[tuple[str, str, int], list[tuple[float, int]]] = {}
    for seed, base in bases.items():
        answers = Answers(base, seed, options.choice_prompts, options.backend)
        for name, person in people.items():
            apart = [person.points(one) - person.points(other) for one, other in answers.texts]
            for way in ("random", "taught"):
                for repeat in range(options.choice):
                    case = (seed, name, repeat)
                    for votes, said in _trial(answers, np.sign(apart), way, person, case):
                        tried.setdefault((name, way, votes), []).append(said)
    for (name, way, votes), each in tried.items():
        right, usable = (float(np.mean([one[n] for one in each])) for n in (0, 1))
        row = {"person": name, "choose": way, "votes": votes, "right": right, "usable": usable}
        found.append(row | {"trials": len(each)})
    return found


def _trial(
    answers: Answers, rule: Any, way: str, person: Any, case: tuple[int, str, int]
) -> list[tuple[int, tuple[float, int]]]:
    """(votes, (share ordered as the rule does, usable votes)) of one order of the prompts."""
    seed, name, repeat = case
    draw = generator(seed, "choice", repeat)
    order = draw.permutation(len(rule))
    noise = generator(seed, "choice noise", repeat).random(len(rule)) < person.noise
    votes = np.where(noise, -rule, rule)
    held = [n for n in order[: len(rule) // 3] if rule[n]]
    free = [int(n) for n in order[len(rule) // 3 :]]
    asked: list[int] = []
    found = []
    for mark in MARKS:
        while len(asked) < mark <= len(free) + len(asked):
            some = _next(answers, votes, way, asked, free)
            asked += some
            free = [n for n in free if n not in some]
            draw.shuffle(free)
        if len(asked) < mark or not held:
            break
        mean = answers.taste(asked, votes).forecast(answers.one[held], answers.other[held]).mean
        usable = sum(bool(votes[n]) for n in asked)
        found.append((mark, (float((np.sign(mean) == rule[held]).mean()), usable)))
    return found


def _next(
    answers: Answers, votes: Any, way: str, asked: Sequence[int], free: Sequence[int]
) -> list[int]:
    """The next pairs: as the loop has it, a quarter drawn, the others the best of four each."""
    if way == "random" or not asked:
        return list(free[:AT_ONCE])
    drawn = AT_ONCE // 4
    pool = list(free[drawn : drawn + 4 * (AT_ONCE - drawn)])
    forecast = answers.taste(asked, votes).forecast(answers.one[pool], answers.other[pool])
    lately = [answers.prompts[n] for n in asked[-SEEN:]]
    picked = chosen([answers.prompts[n] for n in pool], forecast, AT_ONCE - drawn, lately)
    return [*free[:drawn], *(pool[n] for n, _ in picked)]
