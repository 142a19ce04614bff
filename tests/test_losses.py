"""Preference and rollout losses from given log-probabilities: values and gradients are TRL's, or
those worked by hand.

The oracles take (rows, T) arrays with masks, ours flat targets of batches that the stages make
themselves: completions become rows, the stage's own functions divide them among micro-batches, fill
their denominators and fold rows back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gradients import graded, on_device
from ondevice.config.preference import DPOConfig, GRPOConfig, RewardConfig
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.rl.loss_scales import loss_scales
from ondevice.rl.micro_batches import micro_batches, repeat_per_token
from ondevice.rl.rollout import Sampled
from ondevice.seam.protocols import Backend
from ondevice.stages.dpo import crossed_rows, pair_batch, sides_of
from ondevice.stages.reward import score_batch
from ondevice.training.policy_losses import grpo_objective, k3
from ondevice.training.preference_losses import (
    WITHOUT_REFERENCE,
    log_sigmoid,
    preference_objective,
    reward_objective,
)

Array = np.ndarray
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # float32 against float64


def drawn(lengths: Sequence[int], seed: int = 0, apart: float = 0.35) -> dict[str, list[Array]]:
    """Log-probabilities of rows of these lengths: a policy's, and others' around it."""
    rng = np.random.default_rng(seed)
    new = [-np.abs(rng.normal(1.5, 0.7, n)) - 0.05 for n in lengths]
    return {
        "logps": new,
        **{name: [row + rng.normal(0, apart, len(row)) for row in new] for name in ("old", "ref")},
    }


def squared(rows: Sequence[Array], width: int) -> Array:
    """(rows, width), 0 beyond a row's end."""
    return np.stack([np.pad(np.asarray(row, np.float64), (0, width - len(row))) for row in rows])


# ---- GRPO and its family --------------------------------------------------------------------------------------------

LENGTHS, LONGEST = [7, 3, 5, 4, 1, 6], 9
ADVANTAGES = np.array([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])


class Group:
    """Completions with given log-probabilities, some of them cut short."""

    def __init__(self, truncated: Sequence[int] = ()) -> None:
        self.given = drawn(LENGTHS)
        self.sampled = [
            Sampled([1, 2], [3] * n, i not in truncated, "") for i, n in enumerate(LENGTHS)
        ]
        self.learned = np.array([float(s.stopped) for s in self.sampled])

    def batches(
        self, cfg: GRPOConfig, size: int, old: bool
    ) -> list[tuple[dict[str, Array], list[int]]]:
        """What the stage makes of it, and whose rows are where."""
        scale, denominator = loss_scales(cfg, self.sampled, self.learned)
        tokens = {
            "learned": repeat_per_token(self.learned, self.sampled),
            "advantages": repeat_per_token(ADVANTAGES, self.sampled),
            "scale": repeat_per_token(scale, self.sampled),
            "ref_logps": self.given["ref"],
            "logps": self.given["logps"],
        }
        if old:
            tokens["old_logps"] = self.given["old"]
        made = list(micro_batches(self.sampled, range(len(self.sampled)), size, tokens))
        for batch, _ in made:
            batch["weights"] *= batch.pop("learned")
            batch["denominator"] = np.asarray(denominator, np.float32)
        return made

    def ours(
        self, backend: Backend, cfg: GRPOConfig, size: int, old: bool = True
    ) -> tuple[float, Array]:
        total, gradient = 0.0, np.zeros((len(LENGTHS), max(LENGTHS)))
        for batch, rows in self.batches(cfg, size, old):
            logps = batch.pop("logps")
            arrays = on_device(backend, batch)
            loss, (slope,) = graded(
                backend,
                lambda x, a=arrays: grpo_objective(
                    backend.ops,
                    x,
                    a,
                    clip_low=cfg.clip,
                    clip_high=cfg.clip_high,
                    beta=cfg.beta,
                    sequence=cfg.loss_type == "gspo",
                )[0],
                logps,
            )
            total += loss
            for r, row in enumerate(rows):
                mine = batch["member"][r] > 0
                gradient[row, : int(mine.sum())] = slope[mine]
            assert not slope[batch["weights"] == 0].any()
        return total, gradient

    def theirs(
        self, cfg: GRPOConfig, rows: Sequence[int], items: float, parts: int = 1, old: bool = True
    ) -> tuple[float, Array]:
        import trl_oracles as oracle

        width = max(LENGTHS)
        mask = (np.arange(width) < np.array(LENGTHS)[:, None]) * self.learned[:, None]
        given = {name: squared(part, width)[list(rows)] for name, part in self.given.items()}
        return oracle.grpo(
            given["logps"],
            given["old"] if old else None,
            given["ref"],
            ADVANTAGES[list(rows)],
            mask[list(rows)],
            loss_type="grpo" if cfg.loss_type == "gspo" else cfg.loss_type,
            level="sequence" if cfg.loss_type == "gspo" else "token",
            beta=cfg.beta,
            epsilon=cfg.clip,
            epsilon_high=cfg.clip_high,
            max_completion_length=cfg.max_new_tokens,
            num_items=items,
            accumulation_steps=parts,
        )


def grpo_config(kind: str, **changes: Any) -> GRPOConfig:
    return GRPOConfig(loss_type=kind, max_new_tokens=LONGEST, clip=0.2, clip_high=0.28, **changes)


KINDS = ["dapo", "grpo", "bnpo", "dr_grpo", "gspo"]


@pytest.mark.slow
@pytest.mark.parametrize("truncated", [(), (2, 5)], ids=["all", "two masked"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_grpo_is_trls(backend: Backend, kind: str, beta: float, truncated: tuple[int, ...]) -> None:
    """Ratios beyond both bounds with gains of either sign; rows of which nothing is learned count
    as TRL's do.
    """
    pytest.importorskip("trl")
    cfg, group = grpo_config(kind, beta=beta), Group(truncated)
    ratio = np.exp(np.concatenate(group.given["logps"]) - np.concatenate(group.given["old"]))
    assert (ratio < 0.8).any() and (ratio > 1.28).any()
    loss, gradient = group.ours(backend, cfg, len(LENGTHS))
    tokens = float((np.array(LENGTHS) * group.learned).sum())
    want, slope = group.theirs(cfg, range(len(LENGTHS)), tokens)
    np.testing.assert_allclose(loss, want, **CLOSE)
    np.testing.assert_allclose(gradient, slope, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_grpo_of_one_update_is_trls(backend: Backend, kind: str) -> None:
    """Without old log-probabilities the ratio is 1, its slope is not 0."""
    pytest.importorskip("trl")
    cfg, group = grpo_config(kind), Group((2,))
    loss, gradient = group.ours(backend, cfg, len(LENGTHS), old=False)
    want, slope = group.theirs(
        cfg, range(len(LENGTHS)), float((np.array(LENGTHS) * group.learned).sum()), old=False
    )
    np.testing.assert_allclose(loss, want, **CLOSE)
    np.testing.assert_allclose(gradient, slope, **CLOSE)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo", "gspo"])
def test_grpo_of_micro_batches_is_that_of_the_whole(backend: Backend, kind: str, size: int) -> None:
    """Also where the last micro-batch is not full (4 + 2), and where one holds nothing to learn
    from (row by row).
    """
    cfg, group = grpo_config(kind, beta=0.1), Group((2, 4))
    whole, parts = group.ours(backend, cfg, len(LENGTHS)), group.ours(backend, cfg, size)
    np.testing.assert_allclose(parts[0], whole[0], **CLOSE)
    np.testing.assert_allclose(parts[1], whole[1], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_grpo_of_micro_batches_is_trls(backend: Backend, kind: str) -> None:
    """TRL divides every micro-batch by their number (dapo by the tokens of all): its bnpo depends on
    the division, which `partition` says here.
    """
    pytest.importorskip("trl")
    cfg, group = grpo_config(kind, beta=0.1, partition=2), Group((5,))
    tokens = float((np.array(LENGTHS) * group.learned).sum())
    dealt = [rows for _, rows in group.batches(cfg, 2, True)]
    assert sorted(sum(dealt, [])) == list(range(len(LENGTHS))) and len(dealt) == 3
    parts = [group.theirs(cfg, rows, tokens, len(dealt)) for rows in dealt]
    loss, gradient = group.ours(backend, cfg, 2)
    np.testing.assert_allclose(loss, sum(part[0] for part in parts), **CLOSE)
    for rows, (_, slope) in zip(dealt, parts, strict=True):
        np.testing.assert_allclose(gradient[rows], slope, **CLOSE)
    # theirs follows from the division, ours from `partition`
    np.testing.assert_allclose(loss, group.ours(backend, cfg, len(LENGTHS))[0], **CLOSE)


def test_grpo_by_hand(backend: Backend) -> None:
    """Two completions, of one token and of two. Ratios 2, 1/2 and 1 of gains 1, −1 and −1, clipped
    at 0.8 and 1.28: losses −1.28, 0.8 and 1 (the worse of both: −1/2 would be too good for a bad
    token)."""
    sampled = [Sampled([1], [5], True, ""), Sampled([1], [5, 6], True, "")]
    tokens = {
        "advantages": repeat_per_token([1.0, -1.0], sampled),
        "old_logps": [np.log([0.2]), np.log([0.4, 0.3])],
        "logps": [np.log([0.4]), np.log([0.2, 0.3])],
    }
    wanted = {
        "dapo": (-1.28 + 0.8 + 1) / 3,
        "bnpo": (-1.28 + 0.8 + 1) / 3,
        "grpo": (-1.28 + (0.8 + 1) / 2) / 2,
        "dr_grpo": (-1.28 + 0.8 + 1) / (2 * LONGEST),
    }
    for kind, value in wanted.items():
        scale, denominator = loss_scales(grpo_config(kind), sampled, np.ones(2))
        tokens["scale"] = repeat_per_token(scale, sampled)
        ((batch, _),) = micro_batches(sampled, [0, 1], 2, tokens)
        batch["denominator"] = np.asarray(denominator, np.float32)
        loss, metrics = grpo_objective(
            backend.ops,
            backend.array(batch.pop("logps")),
            on_device(backend, batch),
            clip_low=0.2,
            clip_high=0.28,
        )
        assert float(backend.numpy(loss)) == pytest.approx(value, rel=1e-5), kind
        cut, count = (float(backend.numpy(x)) for x in metrics["clip_fraction"])
        assert (cut, count) == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_of_which_nothing_is_learned_is_0_without_a_nan(
    backend: Backend, kind: str
) -> None:
    cfg, group = grpo_config(kind, beta=0.1), Group(range(len(LENGTHS)))
    for size in (len(LENGTHS), 4):
        loss, gradient = group.ours(backend, cfg, size)
        assert loss == 0 and not gradient.any()


def test_the_distance_of_padding_overflows_nothing(backend: Backend) -> None:
    """A padded target, or one that is masked, may be so unlikely that exp of the difference is
    infinite.
    """
    cfg, group = grpo_config("dapo", beta=0.1), Group((0,))
    ((batch, _),) = group.batches(cfg, len(LENGTHS), True)
    logps = np.where(batch["weights"] > 0, batch.pop("logps"), -200.0)
    arrays = on_device(backend, batch)
    loss, (slope,) = graded(
        backend,
        lambda x: grpo_objective(backend.ops, x, arrays, clip_low=0.2, clip_high=0.2, beta=0.1)[0],
        logps,
    )
    assert (
        math.isfinite(loss) and np.isfinite(slope).all() and not slope[batch["weights"] == 0].any()
    )


def test_k3_by_hand(backend: Backend) -> None:
    got = backend.numpy(
        k3(
            backend.ops,
            backend.array(np.log(np.array([0.5, 0.1, 0.3], np.float32))),
            backend.array(np.log(np.array([0.25, 0.2, 0.3], np.float32))),
        )
    )
    np.testing.assert_allclose(got, [0.5 - math.log(0.5) - 1, 2 - math.log(2) - 1, 0], atol=1e-6)


# ---- pairs ----------------------------------------------------------------------------------------------------------

CHOSEN, REJECTED = [7, 3, 5, 2], [2, 5, 4, 3]


class Pairs:
    """Pairs with given log-probabilities; what the stage makes of them, a group after the other."""

    def __init__(self, chosen: Sequence[int], rejected: Sequence[int], kind: str) -> None:
        self.kind, self.lengths = kind, [*chosen, *rejected]
        pairs = [
            TokenPair(Row([1, 2], [3] * c), Row([1, 2], [3] * r))
            for c, r in zip(chosen, rejected, strict=True)
        ]
        self.pairs, self.sides = pairs, sides_of(pairs)
        # KTO's drift is told by rows of their own
        crossed = [crossed_rows(pairs)] if kind == "kto" else []
        rows = [len(row.completion) for side in [*self.sides, *crossed] for row in side]
        self.given = drawn(rows, seed=3)

    def batches(self, size: int) -> list[tuple[dict[str, Array], list[int]]]:
        """A step's micro-batches as the source makes them, and their rows' places in `given`."""
        n = len(self.pairs)
        reference = (
            None
            if self.kind in WITHOUT_REFERENCE
            else np.array([row.sum() for row in self.given["ref"]], np.float32).reshape(-1, n)
        )
        groups: list[list[int]] = []

        def make(group: Sequence[int], rows: Any, size: int) -> dict[str, Array]:
            groups.append(list(group))
            losses = 2.0 if self.kind == "kto" else 1.0
            batch = pair_batch(
                group, rows, size, sides=self.sides, reference=reference, losses=losses
            )
            if self.kind == "kto":
                batch["drift"] = self.drift()
            return batch

        source = PairSource(self.pairs, batch_size=n, seed=0, make=make)
        made = source.batch(0, size)
        return [
            (batch, [side * n + i for side in range(len(self.sides)) for i in group])
            for batch, group in zip(made, groups, strict=True)
        ]

    def drift(self) -> Array:
        """KTO's, by hand."""
        mismatched = range(2 * len(self.pairs), 3 * len(self.pairs))
        ratios = [
            float(self.given["logps"][i].sum() - self.given["ref"][i].sum()) for i in mismatched
        ]
        return np.asarray(max(0.0, float(np.mean(ratios))), np.float32)

    def ours(self, backend: Backend, size: int, **settings: float) -> tuple[float, list[Array]]:
        total, slopes = 0.0, [np.zeros(len(row)) for row in self.given["logps"]]
        for batch, rows in self.batches(size):
            logps = np.zeros(len(batch["weights"]), np.float32)
            for r, row in enumerate(rows):
                logps[batch["member"][r] > 0] = self.given["logps"][row]
            arrays = on_device(backend, batch)
            loss, (slope,) = graded(
                backend,
                lambda x, a=arrays: preference_objective(
                    backend.ops, x, a, kind=self.kind, **settings
                )[0],
                logps,
            )
            total += loss
            for r, row in enumerate(rows):
                slopes[row] += slope[batch["member"][r] > 0]
        return total, slopes

    def squares(self, name: str, side: int) -> Array:
        n = len(self.pairs)
        return squared(self.given[name][side * n : (side + 1) * n], max(map(len, self.given[name])))

    def mask(self, side: int) -> Array:
        return self.squares("logps", side) != 0


def check_pairs(
    backend: Backend,
    pairs: Pairs,
    settings: dict[str, float],
    theirs: Callable[[Pairs], tuple[float, Array, Array]],
) -> None:
    """One batch and two micro-batches give the oracle's loss, and its slope in every
    log-probability.
    """
    want, *slopes = theirs(pairs)
    n = len(pairs.pairs)
    for size in (n, n // 2):
        loss, got = pairs.ours(backend, size, **settings)
        np.testing.assert_allclose(loss, want, **CLOSE)
        for side, slope in enumerate(slopes):
            mine = squared(got[side * n : (side + 1) * n], slope.shape[1])
            np.testing.assert_allclose(mine, slope, **CLOSE)
            assert np.abs(mine).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "smoothing"),
    [("sigmoid", 0.0), ("robust", 0.0), ("robust", 0.15), ("hinge", 0.0), ("ipo", 0.0)],
)
def test_dpo_is_trls(backend: Backend, kind: str, smoothing: float) -> None:
    pytest.importorskip("trl")
    import trl_oracles as oracle

    check_pairs(
        backend,
        Pairs(CHOSEN, REJECTED, kind),
        {"beta": 0.3, "smoothing": smoothing},
        lambda p: oracle.dpo(
            p.squares("logps", 0),
            p.squares("logps", 1),
            p.squares("ref", 0),
            p.squares("ref", 1),
            p.mask(0),
            p.mask(1),
            loss_type=kind,
            beta=0.3,
            label_smoothing=smoothing,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_is_trls(backend: Backend, smoothing: float) -> None:
    pytest.importorskip("trl")
    import trl_oracles as oracle

    check_pairs(
        backend,
        Pairs(CHOSEN, REJECTED, "simpo"),
        {"beta": 2.0, "gamma": 0.5, "smoothing": smoothing},
        lambda p: oracle.simpo(
            p.squares("logps", 0),
            p.squares("logps", 1),
            p.mask(0),
            p.mask(1),
            beta=2.0,
            gamma=0.5,
            label_smoothing=smoothing,
        ),
    )


@pytest.mark.slow
def test_orpo_is_trls_for_responses_of_one_length(backend: Backend) -> None:
    """TRL's likelihood is a mean over the tokens of the batch (its prompts' too); ours is the mean
    over pairs of the mean over a response's own tokens, as Hong 2024 writes it. They agree where
    all are of one length."""
    pytest.importorskip("trl")
    import trl_oracles as oracle

    check_pairs(
        backend,
        Pairs([4] * 4, REJECTED, "orpo"),
        {"beta": 0.3},
        lambda p: oracle.orpo(
            p.squares("logps", 0), p.squares("logps", 1), p.mask(0), p.mask(1), beta=0.3
        ),
    )


def test_orpo_by_hand(backend: Backend) -> None:
    """Probabilities 1/2 and 1/4 a token: odds 1 and 1/3, so log 2 + beta·log(1 + 1/3); lengths play
    no part.
    """
    c, r = math.log(0.5), math.log(0.25)
    for lengths in ([1, 1], [3, 2]):
        pairs = Pairs(lengths[:1], lengths[1:], "orpo")
        pairs.given["logps"] = [np.full(lengths[0], c), np.full(lengths[1], r)]
        loss, _ = pairs.ours(backend, 1, beta=0.3)
        assert loss == pytest.approx(math.log(2) + 0.3 * math.log(4 / 3), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "weights"),
    [(-0.4, (1.0, 1.0)), (0.4, (1.0, 1.0)), (0.4, (2.5, 0.75))],
    ids=["no drift", "drift", "weighed"],
)
def test_kto_is_trls(backend: Backend, shift: float, weights: tuple[float, float]) -> None:
    """TRL takes 2P single completions and its drift from mismatched ones of the batch; ours are P
    pairs, however they are cut, and the drift of the whole step.
    """
    pytest.importorskip("trl")
    import trl_oracles as oracle

    pairs = Pairs(CHOSEN, REJECTED, "kto")
    for row in range(8, 12):
        pairs.given["logps"][row] = pairs.given["ref"][row] + shift
    both = [
        np.concatenate([pairs.squares(name, 0), pairs.squares(name, 1)])
        for name in ("logps", "ref")
    ]
    mask = np.concatenate([pairs.mask(0), pairs.mask(1)])
    labels = np.repeat([True, False], 4)
    want, slope, drift = oracle.kto(
        *both,
        mask,
        labels,
        pairs.squares("logps", 2),
        pairs.squares("ref", 2),
        pairs.mask(2),
        beta=0.3,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    assert (drift > 0) == (shift > 0)
    assert float(pairs.drift()) == pytest.approx(float(drift), rel=1e-5)
    for size in (4, 2, 1):
        loss, got = pairs.ours(
            backend, size, beta=0.3, desirable=weights[0], undesirable=weights[1]
        )
        np.testing.assert_allclose(loss, want, **CLOSE)
        np.testing.assert_allclose(squared(got[:8], slope.shape[1]), slope, **CLOSE)
        assert not any(row.any() for row in got[8:])


def hand(backend: Backend, kind: str, c: float, r: float, **settings: float) -> float:
    """The loss of one pair, a token each, whose log-ratios are c and r; a filled row beside it
    counts nothing.
    """
    pairs = Pairs([1], [1], kind)
    pairs.given = {
        "ref": [np.array([-1.0])] * len(pairs.given["ref"]),
        "logps": [
            np.array([c - 1]),
            np.array([r - 1]),
            *([np.array([c - 1])] if kind == "kto" else []),
        ],
    }
    alone = pairs.ours(backend, 1, **settings)[0]
    batch = pair_batch(
        [0],
        pairs.pairs,
        2,
        sides=pairs.sides,
        reference=np.full((len(pairs.sides), 1), -1.0, np.float32),
    )
    batch.pop("losses")
    if kind == "kto":
        batch["drift"] = pairs.drift()
    logps = np.zeros(len(batch["weights"]), np.float32)
    for n, side in enumerate(range(len(pairs.sides))):
        logps[2 * n], logps[2 * n + 1] = (
            pairs.given["logps"][side][0],
            pairs.given["logps"][side][0],
        )
    batch["denominator"] = np.float32(2 if kind == "kto" else 1)
    filled = preference_objective(
        backend.ops, backend.array(logps), on_device(backend, batch), kind=kind, **settings
    )[0]  # type: ignore[arg-type]
    assert float(backend.numpy(filled)) == pytest.approx(alone, rel=1e-6)
    return alone


def test_pair_losses_by_hand(backend: Backend) -> None:
    """Log-ratios log 3 / 0.1 apart, so that σ(beta·difference) is 3/4."""
    c, r = math.log(3) / 0.1, 0.0
    assert hand(backend, "sigmoid", c, r, beta=0.1) == pytest.approx(-math.log(0.75), rel=1e-5)
    assert hand(backend, "sigmoid", c, r, beta=0.1, smoothing=0.2) == pytest.approx(
        -0.8 * math.log(0.75) - 0.2 * math.log(0.25), rel=1e-5
    )  # cDPO, which TRL's sigmoid leaves out
    assert hand(backend, "robust", c, r, beta=0.1, smoothing=0.2) == pytest.approx(
        (-0.8 * math.log(0.75) + 0.2 * math.log(0.25)) / 0.6, rel=1e-5
    )
    assert hand(backend, "hinge", 2.0, -1.0, beta=0.1) == pytest.approx(0.7, rel=1e-5)
    assert hand(backend, "hinge", 12.0, -1.0, beta=0.1) == 0
    assert hand(backend, "ipo", 2.0, -1.0, beta=0.1) == pytest.approx((3 - 5) ** 2, rel=1e-5)
    # KTO with one pair: the mismatched completion is the chosen one, so the drift is c and the
    # chosen loss is 1/2
    assert hand(backend, "kto", c, r, beta=0.1) == pytest.approx((0.5 + 1 - 0.75) / 2, rel=1e-5)


def test_before_the_first_step_every_pair_costs_log_2(backend: Backend) -> None:
    pairs = Pairs(CHOSEN, REJECTED, "sigmoid")
    pairs.given["logps"] = pairs.given["ref"]
    assert pairs.ours(backend, 2, beta=0.1)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_log_sigmoid_is_finite_far_out(backend: Backend) -> None:
    x = np.array([-200, -30, -1, 0, 1, 30, 200], np.float32)
    got = backend.numpy(log_sigmoid(backend.ops, backend.array(x)))
    np.testing.assert_allclose(got, -np.logaddexp(0, -x.astype(np.float64)), rtol=1e-6, atol=1e-7)
    _, (slope,) = graded(backend, lambda z: backend.ops.sum(log_sigmoid(backend.ops, z)), x)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(x.astype(np.float64))), atol=1e-6)


# ---- the reward model -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strengths", [None, (1.0, 2.0, 1.5, 2.0)])
@pytest.mark.parametrize("center", [0.0, 0.05])
def test_reward_is_trls(
    backend: Backend, strengths: tuple[float, ...] | None, center: float
) -> None:
    pytest.importorskip("trl")
    import trl_oracles as oracle

    chosen, rejected = np.array([0.5, -0.2, 1.5, 0.1]), np.array([0.7, -1.0, 0.2, 0.1])
    margin = None if strengths is None else 0.4 * (np.array(strengths) - 1)
    want, *slopes = oracle.reward(chosen, rejected, margin, center or None)
    cfg = RewardConfig(strength_margin=0.4, center=center)
    pairs = [TokenPair(Row([1], [3]), Row([1], [4]), s) for s in strengths or (1.0,) * 4]
    for size in (4, 3):  # 3: a batch of three, and one of a single pair with two places filled
        groups = [list(range(4))[n : n + size] for n in range(0, 4, size)]
        loss, got = 0.0, np.zeros((2, 4))
        for group in groups:
            batch = score_batch(group, pairs, size, cfg=cfg)
            batch["denominator"] = np.float32(4)
            scores = np.full(2 * size, 9.0)  # filled rows have scores too
            scores[: len(group)], scores[size : size + len(group)] = chosen[group], rejected[group]
            arrays = on_device(backend, batch)
            part, (slope,) = graded(
                backend,
                lambda x, a=arrays: reward_objective(backend.ops, x, a, center=center)[0],
                scores,
            )
            loss += part
            got[:, group] = slope.reshape(2, size)[:, : len(group)]
            assert not slope.reshape(2, size)[:, len(group) :].any()
        np.testing.assert_allclose(loss, want, **CLOSE)
        np.testing.assert_allclose(got, np.stack(slopes), **CLOSE)


def test_what_a_source_of_pairs_divides_by() -> None:
    """Held-out pairs come each once; KTO has a loss for each completion."""
    pairs = Pairs(CHOSEN, REJECTED, "sigmoid")
    source = PairSource(
        pairs.pairs,
        batch_size=3,
        seed=0,
        make=lambda g, rows, size: pair_batch(
            g, rows, size, sides=pairs.sides, reference=np.zeros((2, 4), np.float32)
        ),
    )
    held = list(source.eval_batches())
    assert (
        [float(b["pairs"].sum()) for b in held] == [3, 1] == [float(b["denominator"]) for b in held]
    )
    assert float(source.batch(0)[0]["denominator"]) == 3
    three = Pairs(CHOSEN, REJECTED, "kto")
    assert {float(batch["denominator"]) for batch, _ in three.batches(2)} == {8.0}


def test_every_kind_that_may_be_asked_for_has_a_loss() -> None:
    from typing import get_args

    from ondevice.config.preference import PairKind
    from ondevice.training.preference_losses import PAIR_LOSSES

    assert {*PAIR_LOSSES, "kto"} == set(get_args(PairKind)) and DPOConfig().loss_type in PAIR_LOSSES
