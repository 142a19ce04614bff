"""Pairs beside a stage's own loss: DPO (Rafailov 2023) against the model that had not learned from
preferences yet, so that what they taught stays.

Chosen: the reference is the model of the run's stage sft, not the stage's start, as far as it is
there. Against its start the stage would go on learning preferences with the full slope of a new
DPO; against the model before them a pair that is still told apart has hardly a slope, and one that
is being forgotten a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ondevice.config.preference import DPOConfig, GRPOConfig
from ondevice.data.mixture import Lazy
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.datasets.chats_beside import put_beside, sft_before
from ondevice.datasets.pairs_beside import kept_pairs
from ondevice.datasets.preference_pairs import pairs
from ondevice.datasets.rewarded import Rewarded
from ondevice.models.digest import model_digest
from ondevice.models.model import Model
from ondevice.runs.context import Context
from ondevice.stages.dpo import pair_batch, reference_logps, sides_of
from ondevice.stages.tuning import load_start
from ondevice.training.losses_beside import PAIRS
from ondevice.training.step_source import Batches


class PairsBeside:
    """Pairs beside each update: a function of (seed, number of the update). Those that answer what
    is `rewarded` are left out."""

    def __init__(self, cfg: GRPOConfig, model: Model, ctx: Context, rewarded: Rewarded) -> None:
        self.coef = 0.0
        self._source: PairSource | None = None
        if not cfg.pair_coef:
            return
        kept = kept_pairs(cfg, ctx.folder.path.parent)
        if kept is None:
            ctx.warn(
                "no pairs are learned beside (no run here has ratings): pair_coef has no effect"
            )
            return
        context = model.cfg.max_position_embeddings
        every = pairs(kept, model, ctx.data, lambda lengths, unit: context).train
        compared = ctx.data.progress(every, "pairs compared")
        left = np.flatnonzero(~rewarded.rows(pair.chosen for pair in compared))
        if not len(left):
            ctx.warn(
                f"no pairs are learned beside (all of {kept.data} answer what the rewards judge): "
                "pair_coef has no effect"
            )
            return
        learned = Lazy(every.__getitem__, left)
        self.coef = cfg.pair_coef
        self._source = _source(kept, learned, model, ctx)
        ctx.tell(
            f"{len(left):,} pairs are learned beside, of {kept.data}; {len(every) - len(left):,} "
            "answer what the rewards judge and are left out"
        )

    def add(self, batches: Batches, number: int) -> None:
        """Puts the pairs of the update of this number beside its micro-batches."""
        if self._source is None or not batches:
            return
        each = -(-self._source.batch_size // len(batches))
        rows = self._source.batch(number, each)
        nothing = {**rows[0], "pairs": rows[0]["pairs"] * 0, "weights": rows[0]["weights"] * 0}
        rows += [nothing] * (len(batches) - len(rows))
        put_beside(batches, rows, PAIRS)


def _source(
    kept: DPOConfig, learned: Sequence[TokenPair], model: Model, ctx: Context
) -> PairSource:
    sides = sides_of(learned)
    reference, start = _reference(kept, model, ctx)
    make = partial(
        pair_batch,
        sides=sides,
        reference=reference_logps("kept", sides, kept, reference, ctx, start=start),
        start=model.network.decoder_start_token_id,
        shared=model.network.shares_prompts,
    )
    return PairSource(learned, batch_size=kept.batch_size, seed=kept.seed, make=make)


def _reference(kept: DPOConfig, model: Model, ctx: Context) -> tuple[Model, str]:
    """The model that had not learned from preferences yet, and what names its weights: empty where
    it is the stage's start."""
    before = sft_before(kept.model)
    if before is not None and before.has_model:
        found = load_start(str(before.model), kept, ctx.backend)
        same = found.tokenizer.padded_apart().sha256() == model.tokenizer.padded_apart().sha256()
        if same:
            return found, model_digest(before.model)
    ctx.tell("their reference is the stage's start: no stage sft of its tokenizer is there")
    return model, ""
