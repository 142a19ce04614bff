"""Which of two models is preferred: a win rate by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.backend import Backend
from ondevice.config.corpus import CorpusConfig
from ondevice.config.use import EvalConfig
from ondevice.data.formats import to_prompt
from ondevice.decoding import Generator, Sampling
from ondevice.errors import UserError
from ondevice.models.folder import Model, load_model, load_writer, writer
from ondevice.models.network import writes
from ondevice.rating_stats import wilson
from ondevice.rollout import Scorer
from ondevice.stages import material
from ondevice.stages.asked import need_template
from ondevice.stages.pairs import completion_row
from ondevice.stages.reward import whole
from ondevice.talk import chat_ids, find_model, find_reward_model

Chat = list[dict[str, Any]]
ROWS = 32


def duel(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"win_rate", "interval", "wins", "ties", "losses", "prompts", "score", "other_score"} of greedy answers against
    those of the model `against`, by the reward model `judge`; a tie (the same text, or the same score) is half a win.
    Raises UserError where one of the two is not named or does not fit."""
    for name in ("against", "judge"):
        if not getattr(cfg, name):
            raise UserError("a win rate needs another model and a judge", where=name,
                            hint="--against MODEL --judge REWARD_MODEL")
    judge = load_model(find_reward_model(cfg.judge), backend)
    if writes(judge.cfg) or judge.cfg.num_labels != 1:
        raise UserError("is no reward model: it has no head of one score", where=cfg.judge,
                        hint="ondevice reward makes one")
    need_template(judge)
    chats = _chats(cfg)
    sampling = Sampling(cfg.max_new_tokens, temperature=0.0)
    said = _answers(writer(model), backend, chats, sampling)
    other = _answers(load_writer(find_model(cfg.against), backend), backend, chats, sampling)
    ours, theirs = _scores(judge, backend, chats, said), _scores(judge, backend, chats, other)
    wins, ties = int((ours > theirs).sum()), int((ours == theirs).sum())
    share = wilson(wins + ties / 2, len(chats))
    return {"win_rate": share.share, "interval": [share.low, share.high], "wins": wins, "ties": ties,
            "losses": len(chats) - wins - ties, "prompts": len(chats), "score": float(ours.mean()),
            "other_score": float(theirs.mean())}


def _chats(cfg: EvalConfig) -> list[Chat]:
    """Conversations that end with the user: a person's, or the built-in corpus's held-out prompts."""
    corpus = material.corpus_of(cfg.data, CorpusConfig())
    if corpus is not None:
        from ondevice.data.builtin import build

        found = [[{"role": "user", "content": row["prompt"]}] for row in build(corpus).prompts("heldout")]
    else:
        found = [messages for messages, _ in material.plain_rows(cfg.data, to_prompt)]
    if not found:
        raise UserError("holds no prompts", where=cfg.data, hint="give rows of prompt, question or messages")
    return found[:cfg.limit or None]


def _answers(model: Model, backend: Backend, chats: Sequence[Chat], how: Sampling) -> list[str]:
    need_template(model)
    found = Generator(model, backend, how).run(model.params, [chat_ids(chat, model) for chat in chats], stage="win")
    return [model.tokenizer.decode(one.ids) for one in found]


def _scores(judge: Model, backend: Backend, chats: Sequence[Chat], said: Sequence[str]) -> NDArray[np.float32]:
    """(N,) the judge's score of each answer, in its own tokens. Raises UserError for what it cannot read to the end."""
    rows = [completion_row(chat, text, judge.tokenizer) for chat, text in zip(chats, said, strict=True)]
    longest = max(row.length for row in rows)
    if longest > judge.cfg.max_position_embeddings:
        raise UserError(f"an answer with its prompt has {longest} tokens, the judge's context holds "
                        f"{judge.cfg.max_position_embeddings}", where="max_new_tokens", hint="lower it")
    scores = Scorer(judge, backend, batch_size=ROWS).scores(judge.params, [whole(row) for row in rows])
    return np.asarray(scores, np.float32)
