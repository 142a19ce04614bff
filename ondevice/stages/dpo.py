"""Stage 3 without a reward model: DPO and its family. The reference is the stage's start, frozen.

The reference's log-probabilities are computed once and kept beside the stage: a step then costs one
model, not two. TRL computes them at every step unless `precompute_ref_log_probs` is set; on one
laptop the memory of a second model decides.

Chosen: one objective of two sums of log-probabilities for the whole family (`PAIR_LOSSES` in
`training/preference_losses.py`), so that a further loss is one function of their difference. KTO, which knows
no pairs, takes each prompt with another prompt's completion as its estimate of the distance, as TRL
does, but over all rows of a step (`Drift`). Left out: a reference that follows the policy (TR-DPO);
it has to be computed at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ondevice.common.files import digest
from ondevice.config.preference import DPOConfig
from ondevice.data.completion_batches import Row
from ondevice.data.few_shapes import FewShapes
from ondevice.data.mixture import Lazy
from ondevice.data.packing import Batch
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.shared_prompts import NO_SHARING, answer_batch
from ondevice.data.token_cache import cached
from ondevice.datasets.chats_beside import ChatsBeside
from ondevice.datasets.preference_pairs import PairData
from ondevice.inference.fixed_prompts import held_prompts, sampler
from ondevice.models.compute_type import cast_once
from ondevice.models.model import Model, require_generative
from ondevice.rl.rollout import Sampler, mean_kl, rows_of
from ondevice.runs.context import Context, StageResult
from ondevice.runs.device_batch import DeviceBatch
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.stages.pairs import load_pairs
from ondevice.stages.tuning import (
    least_prompt_rows,
    load_start,
    reference_params,
    with_adapter,
)
from ondevice.training.heldout_metrics import heldout_metrics
from ondevice.training.loop import fit
from ondevice.training.losses_beside import with_losses_beside
from ondevice.training.preference_losses import WITHOUT_REFERENCE, preference_loss
from ondevice.training.sequence_logprobs import Scorer
from ondevice.training.step_source import BatchSource, Prefetcher, StepPlan, StepSource

TOGETHER = 1000  # responses of which every token's figure is in memory at once
MOST_GOOD = 4 / 3  # times that good completions are to count as much as bad ones, at most
HELD = 128  # held-out prompts at which the distance to the start is measured


def run(cfg: DPOConfig, ctx: Context) -> StageResult:
    model = with_adapter(start_model(cfg, ctx.backend), cfg, ctx)
    cfg, found = load_pairs(cfg, model, ctx)
    _warn_of_pairs(found, cfg, ctx)
    least_prompt_rows(model, ctx)
    scorer = reference_scorer(_scored_sides(found.train, found.judged, cfg), cfg, model, ctx)
    train, drift = _source("train", found.train, found.judged, cfg, model, ctx, scorer)
    held_out, held_drift = _source("held", found.held, found.judged, cfg, model, ctx, scorer)
    own = partial(
        preference_loss,
        model=model.network,
        kind=cfg.loss_type,
        beta=cfg.beta,
        smoothing=cfg.label_smoothing,
        gamma=cfg.gamma,
        desirable=cfg.desirable_weight,
        undesirable=cfg.undesirable_weight,
        checkpoint=cfg.checkpointing,
    )
    chats = ChatsBeside(cfg, model, ctx)
    loss = with_losses_beside(
        own, model=model.network, sft_coef=chats.coef, checkpoint=cfg.checkpointing
    )
    unit = "completions" if found.judged else "pairs"
    source: BatchSource | StepSource = chats.around(train)
    beside = None
    if drift is not None and held_drift is not None:
        size = ctx.group.size
        source = DriftSource(chats.around(train), train, cfg.steps, ctx.device_batch, drift, size)
        beside = partial(_heldout_drift, held_drift, held_out.eval_rows(cfg.eval_batches))
    measure = heldout_metrics(model.network, own, held_out, ctx, cfg, unit, beside)
    params = fit(
        model,
        loss,
        source,
        measure,
        ctx,
        cfg,
        sample=sampler(
            model,
            ctx,
            cfg,
            lambda: held_prompts(map(_prompt_of, found.held), model.tokenizer),
        ),
        restart=lambda: start_model(cfg, ctx.backend).params,
    )
    used = cast_once(model, params, ctx.backend)
    held = measure(used)
    figures = {name: held[name] for name in ("accuracy", "margin")}
    marks = {
        "judged" if found.judged else "pairs": figures,
        "simulated": found.simulated,
        "kl": kl_from_start(used, model, found.held, cfg, ctx, scorer),
    }
    return StageResult(model.with_params(params), marks, notes=found.notes)


def _prompt_of(pair: TokenPair) -> list[int]:
    return [int(token) for token in pair.chosen.prompt]


def start_model(cfg: DPOConfig, backend: Backend) -> Model:
    """The model that the stage begins from, its reference. Raises UserError for one that writes no
    text."""
    return require_generative(load_start(cfg.model, cfg, backend))


def _warn_of_pairs(found: PairData, cfg: DPOConfig, ctx: Context) -> None:
    """Warns of what the pairs say and the loss does not use, and of good and bad completions out of
    balance.
    """
    unused = []
    if found.strong:
        unused.append(f"the strength of {found.strong:,} pairs")
    if found.margins:
        unused.append(f"the margin of {found.margins:,} pairs")
    if unused:
        verb = "are" if len(unused) > 1 else "is"
        ctx.warn(f"{' and '.join(unused)} {verb} not used: reward learns from them")
    if found.judged:
        unbalanced = advice(found.good, len(found.train) - found.good, cfg)
        if unbalanced:
            ctx.warn(unbalanced)


def _source(
    name: str,
    pairs: Sequence[TokenPair],
    judged: bool,
    cfg: DPOConfig,
    model: Model,
    ctx: Context,
    scorer: Scorer,
) -> tuple[PairSource, Drift | None]:
    """The train or held-out pairs, with the reference's log-probabilities where the loss takes
    them, and for KTO what tells the policy's drift.
    """
    scored = _scored_sides(pairs, judged, cfg)
    sides = sides_of(pairs, judged)
    crossed = scored[len(sides) :]
    reference = None
    if cfg.loss_type not in WITHOUT_REFERENCE:
        reference = reference_logps(name, scored, cfg, model, ctx, scorer)

    def groups(size: int) -> Iterator[Sequence[Row]]:
        each = size // len(sides)
        if name == "train":
            numbers = source.numbers(each)
        else:
            numbers = source.eval_numbers(each, cfg.eval_batches)
        for some in numbers:
            yield _both_sides(some, each, sides)

    make = partial(
        pair_batch,
        sides=sides,
        reference=reference,
        start=model.network.decoder_start_token_id,
        shared=model.network.shares_prompts,
        losses=2.0 if crossed and not judged else 1.0,
        few=FewShapes(groups),
    )
    source = PairSource(pairs, batch_size=cfg.batch_size, seed=cfg.seed, make=make)
    drift = None
    if crossed:
        assert reference is not None
        drift = Drift(Scorer(model, ctx.backend), crossed[0], reference[len(sides)], ctx)
    return source, drift


def _scored_sides(pairs: Sequence[TokenPair], judged: bool, cfg: DPOConfig) -> list[Sequence[Row]]:
    """What the reference scores: the pairs' sides and, under KTO, what tells the policy's drift."""
    sides = sides_of(pairs, judged)
    if cfg.loss_type == "kto":
        sides.append(crossed_rows(pairs))
    return sides


class Drift:
    """How far the policy has moved away from the reference, as KTO estimates it: the mean, over the
    rows of a step, of the log-ratio of completions to other prompts, and not below 0.

    Of all rows of a step together: TRL takes the mean of each micro-batch, so that its loss follows
    from the machine's memory.
    """

    def __init__(
        self, scorer: Scorer, crossed: Sequence[Row], reference: NDArray[np.float32], ctx: Context
    ) -> None:
        self.scorer = scorer
        self.crossed = crossed
        self.reference = reference
        self.ctx = ctx

    def of(self, params: Params, rows: Sequence[int]) -> NDArray[np.float32]:
        """() the drift, by the rows of these numbers."""
        self.scorer.batch_size = self.ctx.device_batch.micro_batch or self.scorer.batch_size
        each = self.scorer.logprobs(params, [self.crossed[i] for i in rows])
        sums = np.array([row.sum(dtype=np.float64) for row in each])
        apart = sums - self.reference[list(rows)]
        estimate = max(0.0, float(apart.mean()))
        return np.asarray(estimate, np.float32)


def _heldout_drift(
    drift: Drift, rows: Sequence[int], params: Params
) -> dict[str, NDArray[np.float32]]:
    return {"drift": drift.of(params, rows)}


class DriftSource(Prefetcher):
    """Pairs or completions, each step's with the policy's drift at that step."""

    def __init__(
        self,
        source: BatchSource,
        pairs: PairSource,
        steps: int,
        device_batch: DeviceBatch,
        drift: Drift,
        processes: int = 1,
    ) -> None:
        super().__init__(source, steps, device_batch, processes)
        self.pairs = pairs
        self.drift = drift

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        rows = [row for _, row in self.pairs.rows_of_step(number + self.first)]
        now = self.drift.of(params(), rows)
        plan = super().plan_step(step, params, number)

        def cut(micro_batch: int | None) -> list[Batch]:
            return [{**batch, "drift": now} for batch in plan.updates[0](micro_batch)]

        return replace(plan, updates=[cut])


def advice(good: int, bad: int, cfg: DPOConfig) -> str:
    """What to say where the weights leave good and bad completions far out of balance; empty
    elsewhere.

    Good ones should count 1 to 4/3 times as much as bad ones in all (Ethayarajh 2024, eq. 8; TRL
    advises the same). A tenth more or less is not worth a word.
    """
    if not good or not bad:
        return ""  # that is said by itself
    ratio = good * cfg.desirable_weight / (bad * cfg.undesirable_weight)
    if 0.9 <= ratio <= 1.1 * MOST_GOOD:
        return ""
    low = bad * cfg.undesirable_weight / good
    high = MOST_GOOD * bad * cfg.undesirable_weight / good
    less = good * cfg.desirable_weight / (MOST_GOOD * bad)
    more = good * cfg.desirable_weight / bad
    return (
        f"{good:,} good completions count {ratio:.3g} times as much as {bad:,} bad ones, where KTO is to have 1 to "
        f"1.33: give --desirable-weight {low:.3g} to {high:.3g}, or --undesirable-weight {less:.3g} to {more:.3g}"
    )


def kl_from_start(
    params: Params,
    model: Model,
    held: Sequence[TokenPair],
    cfg: DPOConfig,
    ctx: Context,
    scorer: Scorer,
) -> float:
    """Nats per completion between policy and start, over one completion at temperature 1 of each
    held-out prompt.
    """
    longest = 0
    for pair in held:
        longest = max(longest, len(pair.chosen.completion), len(pair.rejected.completion))
    sampler = Sampler(model, ctx.backend, temperature=1.0, max_new_tokens=longest, seed=cfg.seed)
    prompts = [list(map(int, pair.chosen.prompt)) for pair in held[:HELD]]
    sampled = sampler.draw(params, prompts, 1, stage="dpo held")
    rows = rows_of(sampled)
    scorer.batch_size = 2 * _rows(cfg, ctx)
    own = scorer.logprobs(params, rows)
    # where all weights are trained, the loop has taken those of the start
    start = reference_params(model, ctx.backend) or start_model(cfg, ctx.backend).params
    return mean_kl(own, scorer.logprobs(start, rows))


def _rows(cfg: DPOConfig, ctx: Context) -> int:
    """Pairs that are scored at once, both sides of each."""
    if ctx.device_batch.micro_batch is not None:
        return ctx.device_batch.micro_batch
    return cfg.batch_size if cfg.micro_batch == "auto" else cfg.micro_batch


def sides_of(pairs: Sequence[TokenPair], judged: bool = False) -> list[Sequence[Row]]:
    """Chosen rows and rejected rows; of completions that are `judged` one by one there is one side."""
    numbers = np.arange(len(pairs))

    def chosen(i: int) -> Row:
        return pairs[i].chosen

    def rejected(i: int) -> Row:
        return pairs[i].rejected

    if judged:
        return [Lazy(chosen, numbers)]
    return [Lazy(chosen, numbers), Lazy(rejected, numbers)]


def crossed_rows(pairs: Sequence[TokenPair]) -> Sequence[Row]:
    """Each prompt with the chosen completion of the next pair of another prompt, no longer than the
    longest pair.
    """
    longest = max(pair.length for pair in pairs)

    def crossed(i: int) -> Row:
        prompt = pairs[i].chosen.prompt
        other = mismatched_completion(pairs, i).chosen.completion
        return Row(prompt, other[: longest - len(prompt)])

    return Lazy(crossed, np.arange(len(pairs)))


def mismatched_completion(pairs: Sequence[TokenPair], i: int) -> TokenPair:
    """The next pair after number i, in a circle, whose prompt is another; the next one where all
    have the same.
    """
    count = len(pairs)
    prompt = pairs[i].chosen.prompt
    for n in range(1, count):
        other = pairs[(i + n) % count]
        if not np.array_equal(other.chosen.prompt, prompt):
            return other
    return pairs[(i + 1) % count]


def reference_logps(
    name: str,
    sides: Sequence[Sequence[Row]],
    cfg: DPOConfig,
    model: Model,
    ctx: Context,
    scorer: Scorer | None = None,
    start: str = "",
) -> NDArray[np.float32]:
    """(sides, pairs) summed log-probabilities that the reference `model` gives each completion,
    read from a file beside the stage where an earlier process has left it. `start` names its
    weights; empty: they are those that the stage begins with."""
    scorer = scorer or reference_scorer(sides, cfg, model, ctx)
    flat = Lazy.over(sides, np.arange(sum(map(len, sides))))
    start = start or ctx.start.fingerprint.get("model", str(model.folder))
    key = digest([start, ctx.backend.name, ctx.backend.dtype, _rows_hash(flat)])
    file = ctx.data.cache / f"reference-{name}-{key}.npy"

    group = ctx.group

    def write(path: Path) -> None:
        group.call("score")  # the others have no file to look into
        sums = _scored_by_reference(flat, len(sides), model, ctx, scorer)
        with path.open("wb") as out:
            np.save(out, sums)

    kept = np.zeros((len(sides), len(sides[0])), np.float32)
    if group.leader:
        kept = np.load(cached(file, write, ctx.warn), allow_pickle=False)
        group.call("")
    else:
        group.follow(score=lambda: _scored_by_reference(flat, len(sides), model, ctx, scorer))
    sent = group.send_bytes(kept.tobytes(), kept.nbytes)
    return np.frombuffer(sent, np.float32).reshape(kept.shape)


def _scored_by_reference(
    flat: Lazy[Row], sides: int, model: Model, ctx: Context, scorer: Scorer
) -> NDArray[np.float32]:
    """(sides, pairs) summed log-probabilities of the completions, side after side in `flat`."""
    ctx.tell(f"scoring {len(flat):,} responses with the reference, once")
    params = cast_once(model, model.params, ctx.backend)
    parts = _parts(len(flat), sides)
    scored = np.zeros(len(flat), np.float32)
    for part in ctx.data.progress(parts, "thousands scored"):
        each = scorer.logprobs(params, [flat[i] for i in part])
        scored[part] = [row.sum(dtype=np.float64) for row in each]
    return scored.reshape(sides, -1)


def _parts(count: int, sides: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of rows that are scored together, a pair's sides one after the other, for they
    share their prompt."""
    numbers = np.arange(count).reshape(sides, -1).T.reshape(-1)
    return (numbers[n : n + TOGETHER] for n in range(0, count, TOGETHER))


def reference_scorer(
    sides: Sequence[Sequence[Row]], cfg: DPOConfig, model: Model, ctx: Context
) -> Scorer:
    """What scores these rows and others like them."""
    scorer = Scorer(model, ctx.backend, batch_size=2 * _rows(cfg, ctx))
    flat = Lazy.over(sides, np.arange(sum(map(len, sides))))
    scorer.expect(lambda: ([flat[i] for i in part] for part in _parts(len(flat), len(sides))))
    return scorer


def _rows_hash(rows: Iterable[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for ids in row:
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, np.int32).tobytes())
    return digest.hexdigest()


def _filled(group: Sequence[int], size: int) -> list[int]:
    return [*group, *[group[0]] * (size - len(group))]


def _both_sides(group: Sequence[int], size: int, sides: Sequence[Sequence[Row]]) -> list[Row]:
    return [side[i] for side in sides for i in _filled(group, size)]


def pair_batch(
    group: Sequence[int],
    rows: Sequence[TokenPair],
    size: int,
    *,
    sides: Sequence[Sequence[Row]],
    reference: NDArray[np.float32] | None,
    start: int | None = None,
    losses: float = 1.0,
    shared: bool = False,
    few: FewShapes | None = None,
) -> Batch:
    """`size` rows of each side, those beyond the group filled with its first pair, which then
    counts nothing. `losses`: how many each pair has; KTO has one for each completion. `shared`: the
    sides of a pair share their prompt where that takes fewer places. `few`: the stage's shapes.
    """
    filled = _filled(group, size)
    completions = _both_sides(group, size, sides)
    prompt_rows = size if shared else NO_SHARING
    batch = answer_batch(
        completions, size * len(sides), start=start, prompt_rows=prompt_rows, few=few
    )
    batch["pairs"] = np.zeros(size, np.float32)
    batch["pairs"][: len(group)] = 1.0
    real = np.tile(batch["pairs"], len(sides))
    batch["weights"] *= (batch["member"] * real[:, None]).sum(0)
    if reference is not None:
        sums = reference[: len(sides), filled].reshape(-1)
        batch["ref_logps"] = (sums * real).astype(np.float32)
    if rows[group[0]].label:
        batch["label"] = np.array([rows[i].label for i in filled], np.float32)
    batch["losses"] = np.asarray(losses)
    return batch
