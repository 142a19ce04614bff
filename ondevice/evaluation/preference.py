"""What is preferred: the chosen response of a pair, by a model; one of two models, by a reward
model (a win rate).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.common.sanitize import sanitize
from ondevice.config.evaluation import EvalConfig
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.data.completion_batches import prompt_and_completion
from ondevice.data.messages import BadRow
from ondevice.data.preference_batches import TokenPair, completion_row, to_tokens
from ondevice.data.rows import Reading
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.preference_pairs import read_pairs
from ondevice.evaluation.reward_model import quality
from ondevice.inference.chat import with_kwargs
from ondevice.inference.next_token import Sampling
from ondevice.inference.side_by_side import Messages, answers, conversations
from ondevice.models.load import load_for_use, load_generative
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.models.network import is_generative
from ondevice.runs.resolve import find_model, find_reward_model
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Floats, Scorer

ROWS = 32


def win_rate(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"win_rate", "interval", "wins", "ties", "losses", "prompts", "score", "other_score"} of
    greedy answers against those of the model `against`, by the reward model `judge`; a tie (the
    same text, or the same score) is half a win. Raises UserError where one of the two is not named
    or does not fit."""
    for name in ("against", "judge"):
        if not getattr(cfg, name):
            raise UserError(
                "a win rate needs another model and a judge",
                where=name,
                hint="--against MODEL --judge REWARD_MODEL",
            )
    judge = _judge(cfg, backend)
    chats = conversations(cfg.data, cfg.limit, Reading.of(cfg))
    greedy = Sampling(cfg.max_new_tokens, temperature=0.0)
    said = answers(require_generative(model), backend, chats, greedy)
    other = answers(_other_model(cfg.against, cfg, backend), backend, chats, greedy)
    ours = _scores(judge, backend, chats, said)
    theirs = _scores(judge, backend, chats, other)
    # among other texts the judge reads the same one with another rounding
    alike = np.array([one == another for one, another in zip(said, other, strict=True)])
    wins = int(((ours > theirs) & ~alike).sum())
    ties = int(((ours == theirs) | alike).sum())
    share = wilson(wins + ties / 2, len(chats))
    return {
        "win_rate": share.share,
        "interval": [share.low, share.high],
        "wins": wins,
        "ties": ties,
        "losses": len(chats) - wins - ties,
        "prompts": len(chats),
        "score": float(ours.mean()),
        "other_score": float(theirs.mean()),
    }


def _judge(cfg: EvalConfig, backend: Backend) -> Model:
    """The reward model `cfg.judge`. Raises UserError for any other model."""
    judge = load_for_use(find_reward_model(cfg.judge), backend)
    if is_generative(judge.cfg) or judge.cfg.num_labels != 1:
        raise UserError(
            "is not a reward model: it has no head of one score",
            where=cfg.judge,
            hint="ondevice reward makes one",
        )
    require_chat_template(judge)
    return _told_what_it_reads(judge, cfg)


def _other_model(name: str, cfg: EvalConfig, backend: Backend) -> Model:
    """A model that writes, its template given what the evaluated one's is."""
    return with_kwargs(load_generative(find_model(name), backend), cfg.chat_template_kwargs)


def _told_what_it_reads(judge: Model, cfg: EvalConfig) -> Model:
    """The judge, whose template is given what the models' are, as `ppo` gives it. What it does not
    read, a judge of another family may do without; stderr says so."""
    kwargs = parse_template_kwargs(cfg.chat_template_kwargs)
    read = set(judge.tokenizer.kwargs_read())
    if not kwargs:
        return with_kwargs(judge, cfg.chat_template_kwargs)
    unread = sorted(set(kwargs) - read)
    if unread:
        line = f"eval: the chat template of the judge does not read {', '.join(unread)}"
        print(sanitize(line, newlines=False), file=sys.stderr)
    own = {name: kwargs[name] for name in set(kwargs) & read}
    return replace(judge, tokenizer=judge.tokenizer.with_kwargs(own))


def _scores(
    judge: Model, backend: Backend, chats: Sequence[Messages], said: Sequence[str]
) -> NDArray[np.float32]:
    """(N,) the judge's score of each answer, in its own tokens. Raises UserError for what it cannot
    read to the end.
    """
    rows = []
    for chat, text in zip(chats, said, strict=True):
        rows.append(completion_row(chat, text, judge.tokenizer))
    longest = max(row.length for row in rows)
    if longest > judge.cfg.max_position_embeddings:
        raise UserError(
            f"an answer with its prompt has {longest} tokens, the judge's context holds "
            f"{judge.cfg.max_position_embeddings}",
            where="max_new_tokens",
            hint="lower it",
        )
    scorer = Scorer(judge, backend, batch_size=ROWS)
    scores = scorer.scores(judge.params, list(map(prompt_and_completion, rows)))
    return np.asarray(scores, np.float32)


def _token_pairs(cfg: EvalConfig, tokenizer: Tokenizer) -> list[TokenPair]:
    """Raises UserError where too many pairs cannot be read, or the template refuses too many."""
    pairs: list[TokenPair] = []
    bad: list[str] = []
    for row in read_pairs(cfg.data, Reading.of(cfg)):
        try:
            pairs.append(to_tokens(row, tokenizer))
        except BadRow as error:
            bad.append(str(error))
    if len(bad) > cfg.bad_share * (len(pairs) + len(bad)):
        raise UserError(
            f"{bad[0]}; {len(bad)} of {len(pairs) + len(bad)} pairs are bad",
            where=cfg.data,
            hint="mend them or take them out",
        )
    return pairs


def preference_accuracy(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """How often a model prefers the chosen response of a pair: {"accuracy", "interval", "pairs",
    …}. A reward model by its score (with margin and calibration error); a model that writes by the
    log-probability of the whole response and ("accuracy_per_token") by its mean over tokens, with
    `cfg.reference` both less the reference's (DPO's implicit reward). Raises UserError for data
    without pairs, and for a reference that does not fit."""
    require_chat_template(model)
    pairs = _token_pairs(cfg, model.tokenizer)
    fit = _that_fit(pairs, model, cfg)
    scorer = Scorer(model, backend, batch_size=16)
    if model.cfg.num_labels == 1:
        if cfg.reference:
            raise UserError("a reward model needs none", where="reference", hint="leave it out")
        quality_of = quality(model.params, fit, scorer)
        names = ("accuracy", "interval", "pairs", "margin", "calibration_error")
        figures = {name: quality_of[name] for name in names}
    else:
        require_generative(model)
        figures = _by_logprobs(_logprobs(cfg, model, backend, scorer, fit))
    if not cfg.limit and len(fit) < len(pairs):
        figures["too_long"] = len(pairs) - len(fit)
    return figures


def _that_fit(pairs: Sequence[TokenPair], model: Model, cfg: EvalConfig) -> list[TokenPair]:
    """The pairs that the model's context holds, at most `cfg.limit`. Raises UserError where there
    is none."""
    room = model.cfg.max_position_embeddings
    start = model.network.decoder_start_token_id
    fit = [pair for pair in pairs if pair.places(start) <= room][: cfg.limit or None]
    if not fit:
        raise UserError(
            f"none of {len(pairs)} pairs can be used",
            where=cfg.data,
            hint=f"rows of prompt, chosen and rejected, within {room} tokens",
        )
    return fit


def _logprobs(
    cfg: EvalConfig, model: Model, backend: Backend, scorer: Scorer, fit: Sequence[TokenPair]
) -> list[Floats]:
    """Log-probabilities of the tokens of each chosen response and of the rejected one after it, less
    those of `cfg.reference`. Raises UserError for a reference with another tokenizer."""
    rows = []
    for pair in fit:
        rows += [pair.chosen, pair.rejected]
    logps = scorer.logprobs(model.params, rows)
    if not cfg.reference:
        return logps
    start = _other_model(cfg.reference, cfg, backend)
    if start.tokenizer.sha256() != model.tokenizer.sha256():
        raise UserError(
            "has another tokenizer than the model", where=cfg.reference, hint="name its start"
        )
    theirs = Scorer(start, backend, batch_size=16).logprobs(start.params, rows)
    return [one - other for one, other in zip(logps, theirs, strict=True)]


def _by_logprobs(logps: Sequence[Floats]) -> dict[str, Any]:
    """How often the chosen response is the likelier one, by all of its tokens and by their mean."""
    sums = np.array([part.sum() for part in logps])
    means = np.array([part.mean() for part in logps])
    right = int((sums[0::2] > sums[1::2]).sum())
    pairs = len(logps) // 2
    share = wilson(right, pairs)
    return {
        "accuracy": share.share,
        "interval": [share.low, share.high],
        "pairs": pairs,
        "accuracy_per_token": float((means[0::2] > means[1::2]).mean()),
    }
