"""Writes the pairs of a run's rounds: answers of the newest version, its own beside each other or
against the start's, and what a vote on each would teach.

One model is in memory at a time: what is asked of the newest version is asked of it together, then
the start is loaded where it has something to write or to read. An answer follows from the weights,
the seed and its place in the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.files import digest
from ondevice.common.rng import generator
from ondevice.config.rounds import RoundsConfig
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import completion_row
from ondevice.datasets.prompts import Prompt
from ondevice.models.load import load_generative
from ondevice.models.model import Model
from ondevice.preferences.distinct import TRIES, DistinctResponses
from ondevice.preferences.votes import Response
from ondevice.rating_rounds.choice import MEASURE, TAUGHT, chosen
from ondevice.rating_rounds.places import Version, name_of
from ondevice.rating_rounds.taste import Forecast, Taste
from ondevice.rl.rollout import Sampled, Sampler
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Scorer

LATELY = 20  # prompts before these that are looked at for variety
MOST_VOTES = 600  # of the newest ones that a choice goes by: so many are fitted in a moment
Text = tuple[Sequence[Mapping[str, Any]], str]
"""Messages and an answer to them."""


@dataclass(frozen=True)
class Said:
    """What a vote says of two answers: `win` 1 where the first one is better, ½ where neither is."""

    prompt: Sequence[Mapping[str, Any]]
    one: str
    other: str
    win: float


@dataclass(frozen=True)
class Written:
    """A pair to be rated. `number`: of its prompt; `why` it is asked; `bits` that a vote on it would
    teach, where something is known."""

    prompt: Prompt
    number: int
    responses: list[Response]
    why: str
    place: int
    bits: float | None = None
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
        self._known: dict[str, Any] = {}  # features of what was voted on

    def write(
        self,
        version: Version | None,
        places: Sequence[tuple[int, str]],
        used: set[int],
        lately: Sequence[str],
        voted: Sequence[Said],
    ) -> list[Written]:
        """The pairs for these places of the stream (each with why it is asked), fewer where answers
        are alike. `version`: the newest one, None before there is one. `used`: the numbers of the
        prompts that were asked already; `voted`: what was said so far, the last one last."""
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
        return [*found, *self._most_taught(taught, places, lately, voted)]

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
        pairs: list[Written],
        places: Sequence[tuple[int, str]],
        lately: Sequence[str],
        voted: Sequence[Said],
    ) -> list[Written]:
        """Of the pairs that were written as a choice those whose votes teach most, in the places
        that are to teach."""
        wanted = [place for place, why in places if why == TAUGHT]
        if not pairs:
            return []
        best = chosen(
            [one.prompt.text for one in pairs],
            self._forecast(pairs, voted),
            len(wanted),
            lately[-LATELY:],
        )
        made = []
        for place, (n, bits) in zip(wanted, best, strict=False):
            one = pairs[n]
            made.append(
                Written(one.prompt, one.number, one.responses, TAUGHT, place, bits, one.meta)
            )
        return made

    def _forecast(self, pairs: Sequence[Written], voted: Sequence[Said]) -> Forecast | None:
        """What the votes so far say of these pairs; None before the first one."""
        voted = voted[-MOST_VOTES:]
        if not voted:
            return None
        own = []
        for one in pairs:
            own += [(one.prompt.messages, response.text) for response in one.responses]
        said = []
        for vote in voted:
            said += [(vote.prompt, vote.one), (vote.prompt, vote.other)]
        unknown = [text for text in said if _name(text) not in self._known]
        made = self._features([*own, *unknown])
        for text, features in zip(unknown, made[len(own) :], strict=True):
            self._known[_name(text)] = features
        answers = made[: len(own)]
        votes = np.array([self._known[_name(text)] for text in said])
        wins = np.array([vote.win for vote in voted])
        taste = Taste(votes[::2], votes[1::2], wins, np.concatenate([answers, votes]))
        return taste.forecast(answers[::2], answers[1::2])

    def _features(self, texts: Sequence[Text]) -> Any:
        """(N, 2 H) what the start makes of answers."""
        model = self._model(self.start)
        tokens = [completion_row(prompt, text, model.tokenizer) for prompt, text in texts]
        scorer = self._scorers.get(self.start)
        if scorer is None:
            scorer = Scorer(model, self.backend)
            self._scorers = {self.start: scorer}
        return scorer.features(model.params, _fitting(tokens, model))

    def _model(self, folder: Path) -> Model:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None  # the one before is gone before the next one comes
            self._samplers = {}
            self._scorers = {}
            self._loaded = (folder, load_generative(folder, self.backend))
        return self._loaded[1]


def _name(text: Text) -> str:
    return digest([list(text[0]), text[1]])


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
