"""Beam search: the likeliest texts rather than drawn ones. As transformers' `generate` with
`num_beams`, its scores, its end and what generation_config.json adds to them included, so that
texts are the same token by token.

K beams of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.inference.generator import Generator
from ondevice.inference.slots import Completion
from ondevice.models.generation_config import left_out, settings_of
from ondevice.seam.ops import Params


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a search chooses, in the words of generation_config.json; `length_penalty` is the power
    of the length that a finished text's log-probability is divided by."""

    length_penalty: float = 1.0
    # True: as soon as `beams` texts are finished; "never": when none can be better
    early_stopping: bool | str = False
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    @classmethod
    def of(cls, folder: Path, note: Callable[[str], None]) -> Search:
        """What a model's folder says; old ones say it in config.json. `note` is told what a search
        here leaves out. Raises UserError for a value of the wrong kind."""
        file, said = settings_of(folder)
        names = [field.name for field in fields(cls)]
        left = left_out(said, _LEFT_OUT, dict.fromkeys([*names, *_DRAWING]))
        if left:
            note(f"{file.name} asks for {', '.join(left)}: a search here does without")
        found: dict[str, Any] = {}
        for name in names:
            value = said.get(name)
            if value is None:
                continue
            if not isinstance(value, _KINDS.get(name, int)):
                raise UserError(f"{name} is {value!r}", where=str(file), hint="leave it out")
            found[name] = value
        return cls(**found)


_KINDS: dict[str, Any] = {
    "length_penalty": (int, float),
    "early_stopping": (bool, str),
    "repetition_penalty": (int, float),
}  # the others: int
# A search says how many beams there are, and draws nothing.
_DRAWING = (
    "num_beams",
    "min_p",
    "typical_p",
    "top_h",
    "epsilon_cutoff",
    "eta_cutoff",
    "penalty_alpha",
)
# Settings that change what a search finds, and with which of their values they do not.
_LEFT_OUT: dict[str, Any] = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "min_new_tokens": 0,
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "stop_strings": None,
    "exponential_decay_length_penalty": None,
}


@dataclass(frozen=True)
class Finished:
    """A text that has ended, and its log-probability divided by length^penalty."""

    score: float
    completion: Completion


def beam_search(
    generator: Generator, params: Params, prompt: Sequence[int], beams: int, how: Search = Search()
) -> list[Finished]:
    """Up to `beams` completions of a prompt, best first.

    Each step keeps the `beams` likeliest texts that go on. One that stops is finished where it is
    among the `beams` likeliest of the step; the search ends when no text that goes on scores
    better, as long as it is, than all finished. Raises UserError for what is forced and is not a
    token.
    """
    _check_forced(how, generator.known)
    reader = generator.reader(params, prompt)
    search = _Search(generator, prompt, beams, how, reader.limit)
    for length in range(1, reader.limit + 1):
        going = search.extend(reader.logprobs().astype(np.float32), length)
        if search.is_over(going, length):
            break
        search.keep(going)
        reader.go_on([one.beam for one in going], [one.token for one in going])
    return search.done


def _check_forced(how: Search, known: int) -> None:
    """Raises UserError for what is forced and is not a token of a vocabulary of `known`."""
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        token = getattr(how, name)
        if not 0 <= (token or 0) < known:
            raise UserError(
                f"{name} is {token}, the vocabulary has {known}",
                where="generation_config.json",
                hint="leave it out",
            )


class _Candidate(NamedTuple):
    """A text that goes on: its log-probability, the beam that it continues, and by which token."""

    score: float
    beam: int
    token: int


class _Search:
    """The texts that go on, with their log-probabilities, and those that are finished, best
    first."""

    def __init__(
        self, generator: Generator, prompt: Sequence[int], beams: int, how: Search, limit: int
    ) -> None:
        self.done: list[Finished] = []
        self._how = how
        self._beams = beams
        self._limit = limit
        self._stops = generator.stop_ids
        start = generator.network.decoder_start_token_id
        before = list(prompt)
        if start is not None:
            before = [start]
        self._rules = _Rules(how, before, sorted(self._stops))
        self._texts: list[list[int]] = [[]]
        self._scores = np.zeros(1, np.float32)

    def extend(self, logp: NDArray[np.float32], length: int) -> list[_Candidate]:
        """Takes (K, V) log-probabilities of the next token, the text's `length`th: adds what ends
        with it to `done`, and returns the likeliest texts that go on, at most `beams`."""
        full = length == self._limit
        self._rules.keep(logp, self._texts, last=full)
        logp += self._scores[:, None]
        vocabulary = logp.shape[1]
        flat = logp.reshape(-1)
        # enough candidates that `beams` of them go on, whatever stops
        count = min((len(self._stops) + 1) * self._beams, logp.size)
        going: list[_Candidate] = []
        for rank, place in enumerate(_best(flat, count).tolist()):
            beam, token = divmod(place, vocabulary)
            score = float(flat[place])
            if score == -np.inf:
                break
            stopped = token in self._stops
            if not stopped and not full:
                going.append(_Candidate(score, beam, token))
            elif rank < self._beams:
                self._finish(_Candidate(score, beam, token), stopped, length)
        self.done = sorted(self.done, key=_by_score)[: self._beams]
        return going[: self._beams]

    def _finish(self, last: _Candidate, stopped: bool, length: int) -> None:
        ids = self._texts[last.beam]
        stop: int | None = last.token
        if not stopped:
            ids = [*ids, last.token]
            stop = None
        score = last.score / length**self._how.length_penalty
        self.done.append(Finished(score, Completion(ids, stop)))

    def is_over(self, going: Sequence[_Candidate], length: int) -> bool:
        """Whether no text that goes on can be better than all that are finished."""
        if not going:
            return True
        if len(self.done) < self._beams:
            return False
        if self._how.early_stopping is True:
            return True
        longest = length
        if self._how.early_stopping == "never" and self._how.length_penalty > 0:
            longest = self._limit
        best: float = going[0].score / longest**self._how.length_penalty
        return best <= self.done[-1].score

    def keep(self, going: Sequence[_Candidate]) -> None:
        """Goes on with these texts."""
        self._texts = [[*self._texts[one.beam], one.token] for one in going]
        self._scores = np.array([one.score for one in going], np.float32)


def _by_score(one: Finished) -> float:
    return -one.score


@dataclass(frozen=True)
class _Rules:
    """What may come next, whatever the model says. `before` is what counts as written when a search
    begins.
    """

    how: Search
    before: list[int]
    stops: list[int]

    def keep(
        self, logp: NDArray[np.float32], texts: Sequence[Sequence[int]], *, last: bool
    ) -> None:
        """Sets (K, V) log-probabilities of what must not come after each text to -inf, in place."""
        for row, text in zip(logp, texts, strict=True):
            written = [*self.before, *text]
            if self.how.repetition_penalty != 1:
                had = sorted({token for token in written if token < len(row)})
                row[had] *= self.how.repetition_penalty  # log-probabilities: none is above 0
            row[_repeating(written, self.how.no_repeat_ngram_size)] = -np.inf
            if len(written) < self.how.min_length:
                row[self.stops] = -np.inf
            forced = None
            if last and self.how.forced_eos_token_id is not None:
                forced = self.how.forced_eos_token_id
            elif len(written) == 1:
                forced = self.how.forced_bos_token_id
            if forced is not None:
                row[:] = -np.inf
                row[forced] = 0.0


def _repeating(written: Sequence[int], size: int) -> list[int]:
    """Tokens that would end a row of `size` tokens that has been written before."""
    if not 0 < size <= len(written):
        return []
    end = written[len(written) - size + 1 :]
    found = []
    for at in range(len(written) - size + 1):
        if written[at : at + size - 1] == end:
            found.append(written[at + size - 1])
    return found


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, largest first."""
    part = np.argpartition(-values, count - 1)[:count]
    return part[np.argsort(-values[part], kind="stable")]
