"""Stage 3 without a reward model: DPO and its family. The reference is the stage's start, frozen.

The reference's log-probabilities are computed once and kept beside the stage: a step then costs one
model, not two. TRL computes them at every step unless `precompute_ref_log_probs` is set; on one
laptop the memory of a second model decides.

Chosen: one objective of two sums of log-probabilities for the whole family (`PAIR_LOSSES` in
`training/losses.py`), so that a further loss is one function of their difference. KTO, which knows
no pairs, takes each prompt with another prompt's completion as its estimate of the distance, as TRL
does. Left out: a reference that follows the policy (TR-DPO); it has to be computed at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ondevice.common.files import digest
from ondevice.common.progress import with_progress
from ondevice.config.preference import DPOConfig
from ondevice.data.completion_batches import Row, completion_batch
from ondevice.data.mixture import Lazy
from ondevice.data.packing import Batch
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.token_cache import made_once
from ondevice.datasets.preference_pairs import PairData, pairs
from ondevice.inference.fixed_prompts import sampler
from ondevice.models.model import Model, require_generative
from ondevice.rl.rollout import Sampler, mean_kl
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params
from ondevice.stages.tuning import load_start, with_adapter
from ondevice.training.heldout_metrics import heldout_metrics
from ondevice.training.loop import fit
from ondevice.training.losses import WITHOUT_REFERENCE, preference_loss
from ondevice.training.sequence_logprobs import Scorer

TOGETHER = 1000  # responses of which every token's figure is in memory at once
MOST_GOOD = 4 / 3  # times that good completions are to count as much as bad ones, at most
HELD = 128  # held-out prompts at which the distance to the start is measured


def run(cfg: DPOConfig, ctx: Context) -> StageResult:
    model = with_adapter(require_generative(load_start(cfg.model, cfg, ctx)), cfg, ctx)
    found = pairs(cfg, model, ctx)
    _warn_of_pairs(found, cfg, ctx)
    make_train = _batch_maker("train", found.train, found.judged, cfg, model, ctx)
    make_held = _batch_maker("held", found.held, found.judged, cfg, model, ctx)
    train = PairSource(
        found.train,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        make=make_train,
        accumulate=cfg.accumulate,
    )
    held_out = PairSource(found.held, batch_size=cfg.batch_size, seed=cfg.seed, make=make_held)
    loss = partial(
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
    unit = "completions" if found.judged else "pairs"
    measure = heldout_metrics(loss, held_out, ctx, cfg, unit)
    params = fit(model, loss, train, measure, ctx, cfg, sample=sampler(model, ctx))
    held = measure(params)
    figures = {name: held[name] for name in ("accuracy", "margin")}
    marks = {
        "judged" if found.judged else "pairs": figures,
        "simulated": found.simulated,
        "kl": kl_from_start(params, model, found.held, cfg, ctx),
    }
    return StageResult(model.with_params(params), marks, notes=found.notes)


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


def _batch_maker(
    name: str, pairs: Sequence[TokenPair], judged: bool, cfg: DPOConfig, model: Model, ctx: Context
) -> Callable[..., Batch]:
    """`pair_batch` for the train or held-out pairs, with the reference's log-probabilities where
    the loss takes them.
    """
    sides = sides_of(pairs, cfg.loss_type, judged)
    reference = None
    if cfg.loss_type not in WITHOUT_REFERENCE:
        reference = reference_logps(name, sides, cfg, model, ctx)
    return partial(
        pair_batch,
        sides=sides,
        reference=reference,
        start=model.network.decoder_start_token_id,
    )


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
    params: Params, model: Model, held: Sequence[TokenPair], cfg: DPOConfig, ctx: Context
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
    rows = [one.row for one in sampled]
    scorer = Scorer(model, ctx.backend, batch_size=2 * cfg.batch_size)
    return mean_kl(scorer.logprobs(params, rows), scorer.logprobs(model.params, rows))


def sides_of(pairs: Sequence[TokenPair], kind: str, judged: bool = False) -> list[Sequence[Row]]:
    """Chosen rows, rejected rows and, for KTO, each prompt with the chosen completion of the next
    pair of another prompt, no longer than the longest pair. Of completions that are `judged` one by
    one there is one side, and this."""
    numbers = np.arange(len(pairs))

    def chosen(i: int) -> Row:
        return pairs[i].chosen

    def rejected(i: int) -> Row:
        return pairs[i].rejected

    if kind != "kto":
        return [Lazy(chosen, numbers), Lazy(rejected, numbers)]
    longest = max(pair.length for pair in pairs)

    def crossed(i: int) -> Row:
        prompt = pairs[i].chosen.prompt
        other = mismatched_completion(pairs, i).chosen.completion
        return Row(prompt, other[: longest - len(prompt)])

    if judged:
        return [Lazy(chosen, numbers), Lazy(crossed, numbers)]
    return [Lazy(chosen, numbers), Lazy(rejected, numbers), Lazy(crossed, numbers)]


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
    name: str, sides: Sequence[Sequence[Row]], cfg: DPOConfig, model: Model, ctx: Context
) -> NDArray[np.float32]:
    """(sides, pairs) summed log-probabilities that the stage's start gives each completion, read
    from a file beside the stage where an earlier process has left it."""
    flat = Lazy.over(sides, np.arange(sum(map(len, sides))))
    start = ctx.fingerprint.get("model", str(model.folder))
    key = digest([start, ctx.backend.name, ctx.backend.dtype, _rows_hash(flat)])
    file = ctx.folder.path / "data" / f"reference-{name}-{key}.npy"
    if file.is_file():
        sums: NDArray[np.float32] = np.load(file)
        return sums
    ctx.say(f"{ctx.name}: scoring {len(flat):,} responses with the reference, once")
    scorer = Scorer(model, ctx.backend, batch_size=2 * cfg.batch_size)
    parts = (flat[n : n + TOGETHER] for n in range(0, len(flat), TOGETHER))
    each = []
    for part in with_progress(parts, f"{ctx.name}: thousands scored"):
        for row in scorer.logprobs(model.params, list(part)):
            each.append(row.sum(dtype=np.float64))
    sums = np.array(each, np.float32).reshape(len(sides), -1)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            np.save(out, sums)

    made_once(file, write)
    return sums


def _rows_hash(rows: Iterable[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for ids in row:
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, np.int32).tobytes())
    return digest.hexdigest()


def pair_batch(
    group: Sequence[int],
    rows: Sequence[TokenPair],
    size: int,
    *,
    sides: Sequence[Sequence[Row]],
    reference: NDArray[np.float32] | None,
    start: int | None = None,
) -> Batch:
    """`size` rows of each side, those beyond the group filled with its first pair, which then
    counts nothing.
    """
    filled = [*group, *[group[0]] * (size - len(group))]
    completions: list[Row] = []
    for side in sides:
        completions += [side[i] for i in filled]
    batch = completion_batch(completions, size * len(sides), start=start)
    if reference is not None:
        batch["ref_logps"] = reference[:, filled].reshape(-1).astype(np.float32)
    batch["pairs"] = np.zeros(size, np.float32)
    batch["pairs"][: len(group)] = 1.0
    if rows[group[0]].label:
        batch["label"] = np.array([rows[i].label for i in filled], np.float32)
    if len(sides) == 3:
        batch["losses"] = np.asarray(2.0)  # KTO has a loss for each completion
    return batch
