"""Which of two models is preferred: a win rate by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.backend import Backend
from ondevice.comparing import Messages, answers, conversations
from ondevice.config.use import EvalConfig
from ondevice.data.token_pairs import completion_row
from ondevice.decoding import Sampling
from ondevice.errors import UserError
from ondevice.models.folder import Model, load_model, load_writer, writer
from ondevice.models.network import writes
from ondevice.rating_stats import wilson
from ondevice.rollout import Scorer
from ondevice.stages.asked import need_template
from ondevice.stages.reward import whole
from ondevice.talk import find_model, find_reward_model

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
    chats, greedy = conversations(cfg.data, cfg.limit), Sampling(cfg.max_new_tokens, temperature=0.0)
    said = answers(writer(model), backend, chats, greedy)
    other = answers(load_writer(find_model(cfg.against), backend), backend, chats, greedy)
    ours, theirs = _scores(judge, backend, chats, said), _scores(judge, backend, chats, other)
    wins, ties = int((ours > theirs).sum()), int((ours == theirs).sum())
    share = wilson(wins + ties / 2, len(chats))
    return {"win_rate": share.share, "interval": [share.low, share.high], "wins": wins, "ties": ties,
            "losses": len(chats) - wins - ties, "prompts": len(chats), "score": float(ours.mean()),
            "other_score": float(theirs.mean())}


def _scores(judge: Model, backend: Backend, chats: Sequence[Messages], said: Sequence[str]) -> NDArray[np.float32]:
    """(N,) the judge's score of each answer, in its own tokens. Raises UserError for what it cannot read to the end."""
    rows = [completion_row(chat, text, judge.tokenizer) for chat, text in zip(chats, said, strict=True)]
    longest = max(row.length for row in rows)
    if longest > judge.cfg.max_position_embeddings:
        raise UserError(f"an answer with its prompt has {longest} tokens, the judge's context holds "
                        f"{judge.cfg.max_position_embeddings}", where="max_new_tokens", hint="lower it")
    scores = Scorer(judge, backend, batch_size=ROWS).scores(judge.params, [whole(row) for row in rows])
    return np.asarray(scores, np.float32)
