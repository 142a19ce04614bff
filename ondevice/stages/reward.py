"""Stage 3, reward model: Bradley–Terry on pairs, saved as …ForSequenceClassification with one
score.

The score is read at a response's last token, its stop token. What a person needs to trust it is
measured on held-out prompts: accuracy with its interval, how far apart the two scores are, and
whether σ(difference) means what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ondevice.common.errors import UserError
from ondevice.config.preference import RewardConfig
from ondevice.data.packing import Batch
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.shared_prompts import NO_SHARING, judged_batch
from ondevice.evaluation.reward_model import quality
from ondevice.models.compute_type import cast_once
from ondevice.models.model import Model
from ondevice.models.score_head import need_scores, with_head
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.stages.pairs import load_pairs
from ondevice.stages.tuning import least_prompt_rows, load_start, with_adapter
from ondevice.training.heldout_metrics import heldout_metrics
from ondevice.training.loop import fit
from ondevice.training.preference_losses import reward_loss
from ondevice.training.sequence_logprobs import Scorer


def run(cfg: RewardConfig, ctx: Context) -> StageResult:
    model = load_start(cfg.model, cfg, ctx.backend, backbone_only=True)
    need_scores(model)
    cfg, data = load_pairs(cfg, model, ctx)
    if cfg.strength_margin and not data.strong:
        raise UserError(
            "no pair is of a strength above 1, so that it would change nothing",
            where="strength_margin",
            hint="leave it out",
        )
    if data.strong and not cfg.strength_margin:
        ctx.warn(
            f"that {data.strong:,} pairs are of a strength above 1 is not used: give --strength-margin"
        )
    _tell_of_head(model, ctx)
    model = with_adapter(_with_score(model, cfg.seed, ctx.backend), cfg, ctx)
    source = partial(
        PairSource,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        make=partial(
            score_batch,
            cfg=cfg,
            reads=model.network.pooling,
            shared=bool(least_prompt_rows(model, ctx)),
        ),
    )
    loss = partial(
        reward_loss, model=model.network, center=cfg.center, checkpoint=cfg.checkpointing
    )
    measure = heldout_metrics(model.network, loss, source(data.held), ctx, cfg, "pairs")
    params = fit(
        model,
        loss,
        source(data.train),
        measure,
        ctx,
        cfg,
        restart=lambda: _start_params(cfg, ctx.backend),
    )
    marks = quality(
        cast_once(model, params, ctx.backend), data.held, Scorer(model, ctx.backend, batch_size=32)
    )
    return StageResult(
        model.with_params(params), {**marks, "simulated": data.simulated}, notes=data.notes
    )


def _start_params(cfg: RewardConfig, backend: Backend) -> Params:
    """The parameters that the stage begins from, where all weights are trained."""
    model = load_start(cfg.model, cfg, backend, backbone_only=True)
    return _with_score(model, cfg.seed, backend).params


def _with_score(start: Model, seed: int, backend: Backend) -> Model:
    """The model under a head of one score: a reward model under its own, any other under a new one."""
    if start.cfg.num_labels == 1:
        return start
    return with_head(start, backend, seed)


def _tell_of_head(start: Model, ctx: Context) -> None:
    """Tells what becomes of a head of scores that is there."""
    if start.cfg.num_labels == 1:
        ctx.tell(f"the head of {start.folder}, a reward model, goes on")
    elif start.cfg.num_labels:
        ctx.warn(f"a new head takes the place of that of {start.folder}, which tells classes apart")


def score_batch(
    group: Sequence[int],
    rows: Sequence[TokenPair],
    size: int,
    *,
    cfg: RewardConfig,
    reads: str = "last",
    shared: bool = False,
) -> Batch:
    """Chosen rows, then rejected ones, `size` of each, those beyond the group filled with its first
    pair, which then counts nothing; `weights` count the tokens that are read. `shared`: the sides
    of a pair share their prompt where that takes fewer places.
    """
    members = [rows[i] for i in group]
    filled = [*members, *members[:1] * (size - len(members))]
    texts = [pair.chosen for pair in filled] + [pair.rejected for pair in filled]
    batch = judged_batch(texts, 2 * size, reads, size if shared else NO_SHARING)
    margin, real = np.zeros(size, np.float32), np.zeros(size, np.float32)
    margin[: len(members)] = [p.margin + cfg.strength_margin * (p.strength - 1) for p in members]
    real[: len(members)] = 1.0
    tokens = np.array([float(p.chosen.length + p.rejected.length) for p in members], np.float32)
    return {**batch, "margin": margin, "pairs": real, "weights": tokens}
