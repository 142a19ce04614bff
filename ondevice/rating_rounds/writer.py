"""Writes the pairs of a run's rounds: answers of the newest version, its own beside each other or
against the start's, and how little is known of each.

One model is in memory at a time: what is asked of the newest version is asked of it together, then
the start is loaded where it has something to write or to score. An answer follows from the weights,
the seed and its place in the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.rng import generator
from ondevice.config.preference import DPOConfig
from ondevice.config.rounds import RoundsConfig
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import completion_row
from ondevice.datasets.prompts import Prompt
from ondevice.models.load import load_for_use, load_generative
from ondevice.models.model import Model
from ondevice.preferences.distinct import TRIES, DistinctResponses
from ondevice.preferences.rating_queue import uncertainty
from ondevice.preferences.votes import Response
from ondevice.rating_rounds.choice import MEASURE, TAUGHT, chosen
from ondevice.rating_rounds.places import Version, name_of
from ondevice.rl.rollout import Sampled, Sampler
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Scorer

LATELY = 20  # prompts before these that are looked at for variety


@dataclass(frozen=True)
class Written:
    """A pair to be rated. `number`: of its prompt; `why` it is asked; `doubt` in bits, where the
    newest version has an opinion."""

    prompt: Prompt
    number: int
    responses: list[Response]
    why: str
    place: int
    doubt: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Writer:
    """`start` is the start's folder, `prompts` all that can be asked."""

    def __init__(
        self, cfg: RoundsConfig, backend: Backend, start: Path, prompts: Sequence[Prompt]
    ) -> None:
        self.cfg = cfg
        self.backend = backend
        self.start = start
        self.prompts = prompts
        self._tries = 0  # of this process: prompts whose answers were alike are not drawn again
        self._loaded: tuple[Path, Model] | None = None
        self._samplers: dict[Path, Sampler] = {}
        self._scorers: dict[Path, Scorer] = {}

    def write(
        self,
        version: Version | None,
        places: Sequence[tuple[int, str]],
        used: set[int],
        lately: Sequence[str],
    ) -> list[Written]:
        """The pairs for these places of the stream (each with why it is asked), fewer where answers
        are alike. `version`: the newest one, None before there is one. `used`: the numbers of the
        prompts that were asked already."""
        self._tries += 1
        asked = self._draw_prompts(places, used)
        newest, folder = name_of(0), self.start
        if version is not None and version.last is not None:
            newest, folder = version.name, version.last.model
        both = [n for numbers in asked.values() for n in numbers]
        own = self.answers(folder, both, places[0][0], newest, 2 * TRIES - 2)
        meeting = [n for place, why in places if why == MEASURE for n in asked[place]]
        theirs = self.answers(self.start, meeting, places[0][0], name_of(0), 1)
        found: list[Written] = []
        taught: list[Written] = []
        for place, why in places:
            for number in asked[place]:
                if why == MEASURE:
                    pair = _meeting(own[number][0], newest, theirs[number][0])
                else:
                    pair = _pair(own[number], newest)
                if pair is None:
                    continue
                one = Written(self.prompts[number], number, pair, why, place)
                if why == TAUGHT:
                    taught.append(one)
                    continue
                found.append(one)
                break
        return [*found, *self._most_taught(version, folder, taught, places, lately)]

    def _draw_prompts(
        self, places: Sequence[tuple[int, str]], used: set[int]
    ) -> dict[int, list[int]]:
        """Place → the numbers of the prompts that are tried for it: some of those that were not
        asked yet; where all were, of all."""
        free = [n for n in range(len(self.prompts)) if n not in used]
        drawn: dict[int, list[int]] = {}
        for place, why in places:
            wanted = self.cfg.pool if why == TAUGHT else 2
            if len(free) < wanted:
                free = list(range(len(self.prompts)))
            draw = generator(self.cfg.seed, "rounds prompts", place, self._tries)
            picked = draw.choice(len(free), min(wanted, len(free)), replace=False)
            drawn[place] = [free[int(n)] for n in picked]
            gone = set(drawn[place])
            free = [n for n in free if n not in gone]
        return drawn

    def answers(
        self, folder: Path, numbers: Sequence[int], place: int, name: str, each: int
    ) -> dict[int, list[Sampled]]:
        """Number of a prompt → completions of it."""
        if not numbers:
            return {}
        model = self._model(folder)
        sampler = self._samplers.get(folder)
        if sampler is None:
            sampler = Sampler(
                model,
                self.backend,
                temperature=self.cfg.temperature,
                max_new_tokens=self.cfg.max_new_tokens,
                seed=self.cfg.seed,
            )
            self._samplers = {folder: sampler}
        ids = [self.prompts[n].ids for n in numbers]
        drawn = sampler.draw(model.params, ids, each, stage=f"rounds {name}", step=place)
        return {n: drawn[i * each : (i + 1) * each] for i, n in enumerate(numbers)}

    def _most_taught(
        self,
        version: Version | None,
        folder: Path,
        pairs: list[Written],
        places: Sequence[tuple[int, str]],
        lately: Sequence[str],
    ) -> list[Written]:
        """Of the pairs that were written as a choice those whose votes teach most, in the places
        that are to teach."""
        wanted = [place for place, why in places if why == TAUGHT]
        if not pairs:
            return []
        doubts = self._doubts(version, folder, pairs)
        texts = [one.prompt.text for one in pairs]
        known = [1.0 if doubt is None else doubt for doubt in doubts]
        best = chosen(texts, known, len(wanted), lately[-LATELY:])
        made = []
        for place, n in zip(wanted, best, strict=False):
            one = pairs[n]
            made.append(
                Written(one.prompt, one.number, one.responses, TAUGHT, place, doubts[n], one.meta)
            )
        return made

    def _doubts(
        self, version: Version | None, folder: Path, pairs: Sequence[Written]
    ) -> list[float | None]:
        """Bits that the newest version does not know of each choice; None where there is no opinion
        yet."""
        if version is None:
            return [None] * len(pairs)
        rows = []
        for one in pairs:
            for response in one.responses:
                rows.append((one.prompt, response.text))
        scores = self.scores(version, folder, rows)
        return [uncertainty(two.tolist()) for two in scores.reshape(-1, 2)]

    def scores(self, version: Version, folder: Path, rows: Sequence[tuple[Prompt, str]]) -> Any:
        """(N,) what a version, whose model lies in `folder`, thinks of answers: its reward model,
        else DPO's implicit reward."""
        judge = version.path / "reward" / "model"
        if judge.is_dir():
            return self._judged(judge, rows)
        return DPOConfig.beta * (self._logps(folder, rows) - self._logps(self.start, rows))

    def _logps(self, folder: Path, rows: Sequence[tuple[Prompt, str]]) -> Any:
        """(N,) summed log-probabilities of the answers."""
        model = self._model(folder)
        tokens = [completion_row(p.messages, text, model.tokenizer) for p, text in rows]
        each = self._scorer(folder, model).logprobs(model.params, _fitting(tokens, model))
        return np.array([row.sum(dtype=np.float64) for row in each])

    def _judged(self, folder: Path, rows: Sequence[tuple[Prompt, str]]) -> Any:
        """(N,) the reward model's scores."""
        model = self._model(folder)
        texts = []
        for prompt, text in rows:
            row = completion_row(prompt.messages, text, model.tokenizer)
            both = np.concatenate([row.prompt, row.completion])
            texts.append(both[-model.cfg.max_position_embeddings :])
        return np.asarray(self._scorer(folder, model).scores(model.params, texts), np.float64)

    def _scorer(self, folder: Path, model: Model) -> Scorer:
        scorer = self._scorers.get(folder)
        if scorer is None:
            scorer = Scorer(model, self.backend)
            self._scorers = {folder: scorer}
        return scorer

    def _model(self, folder: Path) -> Model:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None  # the one before is gone before the next one comes
            self._samplers = {}
            self._scorers = {}
            scores = (folder / "config.json").is_file() and folder.parent.name == "reward"
            load = load_for_use if scores else load_generative
            self._loaded = (folder, load(folder, self.backend))
        return self._loaded[1]


def _fitting(rows: Sequence[Row], model: Model) -> list[Row]:
    """The rows, cut at the end where they are longer than the model's context."""
    most = model.cfg.max_position_embeddings
    return [Row(row.prompt, row.completion[: most - len(row.prompt)]) for row in rows]


def _pair(own: Sequence[Sampled], name: str) -> list[Response] | None:
    """Two different answers of one model; None where all are alike."""
    chosen = DistinctResponses(2)
    for one in own:
        if chosen.take(Response(one.text, name, _about(one))) and chosen.complete:
            return chosen.responses
    return None


def _meeting(own: Sampled, name: str, start: Sampled) -> list[Response] | None:
    """The first answer of either model, whatever it is: choosing among several would change what is
    measured. None where the two are the same, of which nobody can prefer one."""
    if own.text == start.text:
        return None
    return [Response(own.text, name, _about(own)), Response(start.text, name_of(0), _about(start))]


def _about(one: Sampled) -> dict[str, Any]:
    return {"tokens": len(one.ids), "stopped": one.stopped}
