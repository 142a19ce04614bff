"""Beam search: the likeliest texts rather than drawn ones. As transformers' `generate` with
`num_beams`, its scores, its end and what generation_config.json adds to them included, so that
texts are the same token by token.

K beams of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.inference.generator import Completion, Generator
from ondevice.models.generation_config import left_out, settings_of
from ondevice.seam.ops import Params


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a search chooses, in the words of generation_config.json; `length_penalty` is the power
    of the length that a finished text's log-probability is divided by."""

    length_penalty: float = 1.0
    early_stopping: bool | str = (
        False  # True: as soon as `beams` texts are finished; "never": when none can be better
    )
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
        if left := left_out(
            said, _LEFT_OUT, dict.fromkeys([*(field.name for field in fields(cls)), *_DRAWING])
        ):
            note(f"{file.name} asks for {', '.join(left)}: a search here does without")
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = said.get(field.name)
            if value is None:
                continue
            if not isinstance(value, _KINDS.get(field.name, int)):
                raise UserError(f"{field.name} is {value!r}", where=str(file), hint="leave it out")
            found[field.name] = value
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
    better, as long as it is, than all finished. Raises UserError for what is forced and is no
    token.
    """
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if not 0 <= (getattr(how, name) or 0) < generator.known:
            raise UserError(
                f"{name} is {getattr(how, name)}, the vocabulary has {generator.known}",
                where="generation_config.json",
                hint="leave it out",
            )
    start = generator.network.decoder_start_token_id
    rules = _Rules(how, list(prompt) if start is None else [start], sorted(generator.stop_ids))
    texts: list[list[int]] = [[]]
    scores = np.zeros(1, np.float32)
    done: list[Finished] = []
    reader = generator.reader(params, prompt)
    for length in range(1, reader.limit + 1):
        logp = reader.logprobs().astype(np.float32)
        rules.keep(logp, texts, last=length == reader.limit)
        logp += scores[:, None]
        vocabulary = logp.shape[1]
        # enough candidates that `beams` of them go on, whatever stops
        count = min((len(generator.stop_ids) + 1) * beams, logp.size)
        going: list[tuple[float, int, int]] = []
        for rank, place in enumerate(_best(logp.reshape(-1), count).tolist()):
            beam, token, score = (
                place // vocabulary,
                place % vocabulary,
                float(logp.reshape(-1)[place]),
            )
            stopped, full = token in generator.stop_ids, length == reader.limit
            if score == -np.inf:
                break
            if not stopped and not full:
                going.append((score, beam, token))
            elif rank < beams:
                ids = texts[beam] if stopped else [*texts[beam], token]
                done.append(
                    Finished(
                        score / length**how.length_penalty,
                        Completion(ids, token if stopped else None),
                    )
                )
        done = sorted(done, key=lambda one: -one.score)[:beams]
        going = going[:beams]
        if how.early_stopping == "never" and how.length_penalty > 0:
            longest = reader.limit
        else:
            longest = length
        if not going or (
            len(done) == beams
            and (
                how.early_stopping is True
                or going[0][0] / longest**how.length_penalty <= done[-1].score
            )
        ):
            break
        texts = [[*texts[beam], token] for _, beam, token in going]
        scores = np.array([score for score, _, _ in going], np.float32)
        reader.go_on([beam for _, beam, _ in going], [token for _, _, token in going])
    return done


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
            forced = self.how.forced_bos_token_id if len(written) == 1 else None
            if last and self.how.forced_eos_token_id is not None:
                forced = self.how.forced_eos_token_id
            else:
                forced = forced
            if forced is not None:
                row[:] = -np.inf
                row[forced] = 0.0


def _repeating(written: Sequence[int], size: int) -> list[int]:
    """Tokens that would end a row of `size` tokens that has been written before."""
    if not 0 < size <= len(written):
        return []
    end = written[len(written) - size + 1 :]
    return [
        written[at + size - 1]
        for at in range(len(written) - size + 1)
        if written[at : at + size - 1] == end
    ]


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, largest first."""
    part = np.argpartition(-values, count - 1)[:count]
    return part[np.argsort(-values[part], kind="stable")]
