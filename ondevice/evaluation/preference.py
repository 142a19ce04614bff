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
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.config.use import EvalConfig
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
from ondevice.models.load import load_generative, load_model
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.models.network import is_generative
from ondevice.runs.resolve import find_model, find_reward_model
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Scorer

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
    judge = load_model(find_reward_model(cfg.judge), backend)
    if is_generative(judge.cfg) or judge.cfg.num_labels != 1:
        raise UserError(
            "is no reward model: it has no head of one score",
            where=cfg.judge,
            hint="ondevice reward makes one",
        )
    require_chat_template(judge)
    judge = _told_what_it_reads(judge, cfg)
    chats, greedy = (
        conversations(cfg.data, cfg.limit, Reading.of(cfg)),
        Sampling(cfg.max_new_tokens, temperature=0.0),
    )
    said = answers(require_generative(model), backend, chats, greedy)
    against = with_kwargs(
        load_generative(find_model(cfg.against), backend), cfg.chat_template_kwargs
    )
    other = answers(against, backend, chats, greedy)
    ours, theirs = _scores(judge, backend, chats, said), _scores(judge, backend, chats, other)
    wins, ties = int((ours > theirs).sum()), int((ours == theirs).sum())
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


def _told_what_it_reads(judge: Model, cfg: EvalConfig) -> Model:
    """The judge, whose template is given what the models' are, as `ppo` gives it. What it does not
    read, a judge of another family may do without; stderr says so."""
    kwargs, read = (
        parse_template_kwargs(cfg.chat_template_kwargs),
        set(judge.tokenizer.kwargs_read()),
    )
    if not kwargs:
        return with_kwargs(judge, cfg.chat_template_kwargs)
    if unread := sorted(set(kwargs) - read):
        print(
            sanitize(
                f"eval: the chat template of the judge does not read {', '.join(unread)}",
                newlines=False,
            ),
            file=sys.stderr,
        )
    own = {name: kwargs[name] for name in set(kwargs) & read}
    return replace(judge, tokenizer=judge.tokenizer.with_kwargs(own))


def _scores(
    judge: Model, backend: Backend, chats: Sequence[Messages], said: Sequence[str]
) -> NDArray[np.float32]:
    """(N,) the judge's score of each answer, in its own tokens. Raises UserError for what it cannot
    read to the end.
    """
    rows = [
        completion_row(chat, text, judge.tokenizer) for chat, text in zip(chats, said, strict=True)
    ]
    longest = max(row.length for row in rows)
    if longest > judge.cfg.max_position_embeddings:
        raise UserError(
            f"an answer with its prompt has {longest} tokens, the judge's context holds "
            f"{judge.cfg.max_position_embeddings}",
            where="max_new_tokens",
            hint="lower it",
        )
    scores = Scorer(judge, backend, batch_size=ROWS).scores(
        judge.params, [prompt_and_completion(row) for row in rows]
    )
    return np.asarray(scores, np.float32)


def _token_pairs(cfg: EvalConfig, tokenizer: Tokenizer) -> list[TokenPair]:
    """Raises UserError where too many pairs cannot be read, or the template refuses too many."""
    made: list[TokenPair] = []
    bad: list[str] = []
    for row in read_pairs(cfg.data, Reading.of(cfg)):
        try:
            made.append(to_tokens(row, tokenizer))
        except BadRow as error:
            bad.append(str(error))
    if len(bad) > cfg.bad_share * (len(made) + len(bad)):
        raise UserError(
            f"{bad[0]}; {len(bad)} of {len(made) + len(bad)} pairs are bad",
            where=cfg.data,
            hint="mend them or take them out",
        )
    return made


def preference_accuracy(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """How often a model prefers the chosen response of a pair: {"accuracy", "interval", "pairs",
    …}. A reward model by its score (with margin and calibration error); a model that writes by the
    log-probability of the whole response and ("accuracy_per_token") by its mean over tokens, with
    `cfg.reference` both less the reference's (DPO's implicit reward). Raises UserError for data
    without pairs, and for a reference that does not fit."""
    require_chat_template(model)
    made = _token_pairs(cfg, model.tokenizer)
    room = model.cfg.max_position_embeddings
    fit = [pair for pair in made if pair.places(model.network.decoder_start_token_id) <= room][
        : cfg.limit or None
    ]
    if not fit:
        raise UserError(
            f"none of {len(made)} pairs can be used",
            where=cfg.data,
            hint=f"rows of prompt, chosen and rejected, within {model.cfg.max_position_embeddings} tokens",
        )
    left_out = {"too_long": len(made) - len(fit)} if not cfg.limit and len(fit) < len(made) else {}
    scorer = Scorer(model, backend, batch_size=16)
    if model.cfg.num_labels == 1:
        if cfg.reference:
            raise UserError("a reward model needs none", where="reference", hint="leave it out")
        found = quality(model.params, fit, scorer)
        return {
            **{
                name: found[name]
                for name in ("accuracy", "interval", "pairs", "margin", "calibration_error")
            },
            **left_out,
        }
    require_generative(model)
    rows = [side for pair in fit for side in (pair.chosen, pair.rejected)]
    logps = scorer.logprobs(model.params, rows)
    if cfg.reference:
        start = with_kwargs(
            load_generative(find_model(cfg.reference), backend), cfg.chat_template_kwargs
        )
        if start.tokenizer.sha256() != model.tokenizer.sha256():
            raise UserError(
                "has another tokenizer than the model", where=cfg.reference, hint="name its start"
            )
        theirs = Scorer(start, backend, batch_size=16).logprobs(start.params, rows)
        logps = [one - other for one, other in zip(logps, theirs, strict=True)]
    sums, means = (np.array([how(part) for part in logps]) for how in (np.sum, np.mean))
    right = int((sums[0::2] > sums[1::2]).sum())
    share = wilson(right, len(fit))
    return {
        "accuracy": share.share,
        "interval": [share.low, share.high],
        "pairs": len(fit),
        "accuracy_per_token": float((means[0::2] > means[1::2]).mean()),
        **left_out,
    }
