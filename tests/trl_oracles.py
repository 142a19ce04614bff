"""TRL's losses as functions of numpy arrays: independent oracles for ours. No test by itself;
`python` it for a table.

The trainers' own methods run unbound on stubs, with a fake model that answers with given
log-probabilities; the gradient is autograd's. Everything is float64, except ORPO's odds ratio,
which TRL casts to float32.

Layout, everywhere: per-token arrays are (B, T), column t is the log-probability of target token t,
so they are already shifted (TRL puts one prompt column in front: its ids and masks are (B, T + 1)).
Masks are 0 or 1, 1 is a token that counts; what stands where a mask is 0 is ignored, and its
gradient is 0. A loss is TRL's mean, a gradient is of that mean with respect to the per-token array,
unmasked shape. TRL's names of settings are kept.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cache
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch

Array = np.ndarray


def selective_log_softmax(logits: Array, index: Array, temperature: float = 1.0) -> Array:
    """(..., V) logits and (...) ids -> (...) log-probabilities of those ids, of the softmax of
    logits / temperature.
    """
    from trl.trainer.utils import selective_log_softmax as function

    return function(_constant(logits), torch.as_tensor(index), temperature=temperature).numpy()


def entropy_from_logits(logits: Array) -> Array:
    """(..., V) logits -> (...) entropies in nats."""
    from trl.trainer.utils import entropy_from_logits as function

    return function(_constant(logits)).numpy()


def grpo(
    logps: Array,
    old: Array | None,
    ref: Array | None,
    advantages: Array,
    mask: Array,
    *,
    loss_type: str = "dapo",
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    level: str = "token",
    max_completion_length: int | None = None,
    num_items: float | None = None,
    bias_correction_kl: bool = False,
    accumulation_steps: int = 1,
    steps_per_generation: int | None = None,
    delta: float | None = None,
) -> tuple[float, Array]:
    """GRPO's loss and its gradient with respect to `logps`; `level` "sequence" is GSPO.

    `logps`, `old`, `ref`, `mask` (B, T), `advantages` (B,) or (B, T). `old` None: the same numbers
    as `logps`. `ref` is read where `beta` is not 0. `num_items` divides dapo's (and cispo's) sum:
    the tokens of the whole generation batch; None: this batch's. `max_completion_length` divides
    dr_grpo's; None: T. `bias_correction_kl` multiplies k3 by the ratio, TRL's default
    (`use_bias_correction_kl`); off is plain k3. Each loss is also divided by `accumulation_steps`
    (dapo: by its quotient with `steps_per_generation`, which is the same number if None).
    """
    from trl import GRPOTrainer

    new, (rows, length) = _leaf(logps), logps.shape
    config = SimpleNamespace(
        use_bias_correction_kl=bias_correction_kl,
        delta=delta,
        report_to=[],
        steps_per_generation=steps_per_generation or accumulation_steps,
    )
    stub = _stub(
        args=config,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=epsilon,
        epsilon_high=epsilon if epsilon_high is None else epsilon_high,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=accumulation_steps,
        max_completion_length=max_completion_length or length,
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
    )
    inputs = {
        "prompt_ids": _ids(rows, 1),
        "prompt_mask": _ids(rows, 1) + 1,
        "completion_ids": _ids(rows, length),
        "completion_mask": _mask(mask),
        "advantages": _constant(advantages),
        "old_per_token_logps": None if old is None else _constant(old),
        "ref_per_token_logps": None if ref is None else _constant(ref),
        "num_items_in_batch": torch.as_tensor(
            float(np.sum(mask) if num_items is None else num_items)
        ),
    }
    return _result(GRPOTrainer._compute_loss(stub, None, inputs), new)


def dpo(
    chosen_logps: Array,
    rejected_logps: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    chosen_mask: Array,
    rejected_mask: Array,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[float, Array, Array]:
    """DPO's loss and its gradients with respect to the chosen and the rejected per-token
    log-probabilities.

    Chosen arrays are (B, Tc), rejected ones (B, Tr). `loss_type`: sigmoid, hinge, ipo, robust,
    sigmoid_norm or another of TRL's. Note that sigmoid ignores `label_smoothing`, and that ipo and
    sigmoid_norm average a log-ratio over its row's tokens where the others sum it.
    """
    from trl import DPOTrainer

    leaves = _leaf(chosen_logps), _leaf(rejected_logps)
    masks = _mask(chosen_mask), _mask(rejected_mask)
    policy = _Model(_pair(*leaves, *masks))
    reference = _Model(_pair(_constant(ref_chosen), _constant(ref_rejected), *masks))
    completion = _shifted(_stack(*masks))
    stub = _stub(
        model=policy,
        ref_model=reference,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
    )
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }
    return _result(DPOTrainer._compute_loss(stub, policy, inputs, False), *leaves)


def kto(
    logps: Array,
    ref: Array,
    mask: Array,
    labels: Array,
    kl_logps: Array | None = None,
    kl_ref: Array | None = None,
    kl_mask: Array | None = None,
    *,
    loss_type: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[float, Array, float]:
    """KTO's loss, its gradient with respect to `logps`, and the KL term (from which no gradient
    flows).

    `logps`, `ref`, `mask` (B, T) of the rated answers; `labels` (B,), true is desirable.
    `kl_logps`, `kl_ref`, `kl_mask` (B', T') are of *mismatched* answers, in TRL each prompt with
    the answer of the row before it; the KL term is their log-ratios, summed over tokens, averaged
    over the B' rows, not less than 0. `loss_type` apo_zero_unpaired has no KL term and needs none
    of the three.
    """
    from trl import KTOTrainer

    leaf, tokens, wanted = (
        _leaf(logps),
        _mask(mask),
        torch.as_tensor(np.asarray(labels, dtype=bool)),
    )
    calculate = loss_type != "apo_zero_unpaired"
    answers, batch = [leaf * tokens], {"label": wanted}
    references = [_constant(ref) * tokens]
    if calculate:
        others = _mask(kl_mask)
        answers.append(_constant(kl_logps) * others)
        references.append(_constant(kl_ref) * others)
        # the fake model knows by an id which of its answers is wanted
        ids = torch.ones_like(_shifted(others))
        batch |= {
            "KL_input_ids": ids,
            "KL_attention_mask": ids,
            "KL_completion_mask": _shifted(others),
        }
    completion = _shifted(tokens)
    batch |= {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }
    policy = _Model(*answers)
    stub = _stub(
        model=policy,
        ref_model=_Model(*references),
        calculate_KL=calculate,
        precompute_ref_logps=False,
        loss_type=loss_type,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    stub._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(stub, model, batch)
    loss, gradient = _result(KTOTrainer._compute_loss(stub, policy, batch, False), leaf)
    return loss, gradient, stub._metrics["train"]["kl"][-1]


def orpo(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_mask: Array,
    rejected_mask: Array,
    *,
    beta: float = 0.1,
    chosen_attention: Array | None = None,
    rejected_attention: Array | None = None,
) -> tuple[float, Array, Array]:
    """ORPO's loss (likelihood of the chosen, and `beta` times the odds ratio) and both gradients.

    Arrays as `dpo`'s. The odds ratio is of log-probabilities averaged over the mask; the likelihood
    is averaged over all tokens of the batch's chosen rows, the prompt's too: `chosen_attention`
    says which (default: the mask alone, that is, rows without a prompt).
    """
    from trl.experimental.orpo import ORPOTrainer as Trainer

    attention = [
        mask if given is None else given
        for mask, given in ((chosen_mask, chosen_attention), (rejected_mask, rejected_attention))
    ]
    return _of_logits(
        Trainer, (chosen_logps, rejected_logps), (chosen_mask, rejected_mask), attention, beta=beta
    )


def simpo(
    chosen_logps: Array,
    rejected_logps: Array,
    chosen_mask: Array,
    rejected_mask: Array,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 0.0,
) -> tuple[float, Array, Array]:
    """SimPO's loss and both gradients. Arrays as `dpo`'s, without a reference.

    `gamma` is the target margin as it is subtracted from the rewards (not their ratio gamma /
    beta). `cpo_alpha` adds the likelihood of the chosen rows' masked tokens: TRL's default is 1.0,
    plain SimPO's is 0.
    """
    from trl.experimental.cpo import CPOTrainer as Trainer

    masks = (chosen_mask, rejected_mask)
    return _of_logits(
        Trainer,
        (chosen_logps, rejected_logps),
        masks,
        masks,
        beta=beta,
        loss_type="simpo",
        simpo_gamma=gamma,
        label_smoothing=label_smoothing,
        cpo_alpha=cpo_alpha,
        alpha=0.0,
    )


def reward(
    chosen_scores: Array,
    rejected_scores: Array,
    margin: Array | None = None,
    center_coefficient: float | None = None,
) -> tuple[float, Array, Array]:
    """The reward model's loss (Bradley-Terry) and its gradients with respect to both (B,) arrays of
    scores.

    `margin` (B,) is subtracted from the difference; `center_coefficient` times the mean of (chosen
    + rejected)^2 is added.
    """
    from trl import RewardTrainer

    leaves = _leaf(chosen_scores), _leaf(rejected_scores)
    inputs = {"attention_mask": _ids(2 * len(chosen_scores), 1) + 1}
    if margin is not None:
        inputs["margin"] = _constant(margin)
    stub = _stub(args=SimpleNamespace(center_rewards_coefficient=center_coefficient))
    scores = torch.cat(leaves)[:, None]
    return _result(
        RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=scores), inputs),
        *leaves,
    )


# What the trainers ask of a self, an accelerator and a model.


class _Accelerator:
    """One process on the CPU."""

    num_processes, device, sync_gradients = 1, torch.device("cpu"), True

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x

    gather_for_metrics = gather

    def reduce(self, x: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return x


class _Model(torch.nn.Module):
    """Answers with the log-probabilities (rows, T) numbered by the first of the ids it is called
    with.
    """

    is_gradient_checkpointing = False

    def __init__(self, *answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, *, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logps = self.answers[int(input_ids[0, 0])]
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=logps,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=None,
            aux_loss=None,
        )


def _stub(**own: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "model": SimpleNamespace(training=True),
            "accelerator": _Accelerator(),
            "aux_loss_enabled": False,
            "_metrics": {"train": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
        }
        | own
    )


def _of_logits(
    trainer: Any, logps: tuple[Array, Array], masks: Any, attention: Any, **settings: Any
) -> tuple[float, Array, Array]:
    """A loss of the trainers that still read logits: of two words, the target (id 0) and everything
    else.

    The target's logit is its log-probability, the other's is log(1 - p): their log-softmax is
    themselves, and its slope in the target's log-probability is exactly 1.
    """
    leaves = tuple(map(_leaf, logps))
    both = _stack(*leaves, fill=-1.0)
    both = torch.where(both < 0, both, -1.0)  # whatever stands in padding must be a log-probability
    words = torch.nn.functional.pad(
        torch.stack([both, torch.log(-torch.expm1(both))], -1), (0, 0, 0, 1)
    )
    batch = {}
    for side, mask, seen in zip(
        ("chosen", "rejected"), map(_mask, masks), map(_mask, attention), strict=True
    ):
        batch[f"{side}_input_ids"] = torch.zeros_like(_shifted(mask))
        batch[f"{side}_attention_mask"] = torch.cat([torch.ones_like(seen[:, :1]), seen], 1)
        batch[f"{side}_labels"] = torch.where(_shifted(mask) == 1, 0, -100)
    stub = _stub(is_encoder_decoder=False, padding_value=0, pad_token_id=0, **settings)
    stub.concatenated_inputs, stub.get_batch_logps = (
        trainer.concatenated_inputs,
        trainer.get_batch_logps,
    )
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(trainer, name):
            setattr(stub, name, getattr(trainer, name).__get__(stub))
    loss, _ = trainer.get_batch_loss_metrics(
        stub, lambda *_, **__: SimpleNamespace(logits=words), batch
    )
    return _result(loss, *leaves)


def _leaf(array: Array) -> torch.Tensor:
    return torch.tensor(np.array(array, dtype=np.float64), requires_grad=True)


def _constant(array: Array | None) -> torch.Tensor:
    assert array is not None
    return torch.tensor(np.array(array, dtype=np.float64))


def _mask(array: Array | None) -> torch.Tensor:
    assert array is not None
    return torch.tensor(np.asarray(array) != 0).long()


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.zeros(rows, length, dtype=torch.long)


def _shifted(mask: torch.Tensor) -> torch.Tensor:
    """A (rows, T) mask of targets as TRL's mask of ids, (rows, T + 1): one column of prompt in
    front.
    """
    return torch.nn.functional.pad(mask, (1, 0))


def _stack(chosen: torch.Tensor, rejected: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """(B, Tc) and (B, Tr) -> (2B, max T), chosen first."""
    length = max(chosen.shape[1], rejected.shape[1])
    return torch.cat(
        [
            torch.nn.functional.pad(x, (0, length - x.shape[1]), value=fill)
            for x in (chosen, rejected)
        ]
    )


def _pair(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_mask: torch.Tensor,
    rejected_mask: torch.Tensor,
) -> torch.Tensor:
    """Both sides as TRL's model gives them: 0 where the mask is."""
    return _stack(chosen * chosen_mask, rejected * rejected_mask)


def _result(loss: torch.Tensor, *leaves: torch.Tensor) -> Any:
    return loss.item(), *(g.numpy() for g in torch.autograd.grad(loss, leaves))


@cache
def samples(rows: int = 4, length: int = 7, seed: int = 0) -> dict[str, Array]:
    """Log-probabilities of a policy, of others near it, masks with short rows and an empty one,
    advantages.
    """
    draw = np.random.default_rng(seed)
    new = -np.abs(draw.normal(1.5, 0.7, (rows, length))) - 0.05
    lengths = np.resize([length, 3, 5, 0], rows)
    near = {name: new + draw.normal(0, 0.25, new.shape) for name in ("old", "ref")}
    return {
        "logps": new,
        **near,
        "mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
        "advantages": np.resize([1.0, -1.0, 0.5, -0.5], rows),
    }


def main() -> None:
    """A line for each oracle: that it runs, its loss, the norm of its gradient."""
    import trl

    s, r = samples(), samples(4, 5, seed=1)
    chosen, rejected = (
        np.maximum(s["mask"], [1, 0, 0, 0, 0, 0, 0]),
        np.maximum(r["mask"], [1, 0, 0, 0, 0]),
    )
    group = s["logps"], s["old"], s["ref"], s["advantages"], s["mask"]
    pairs = s["logps"], r["logps"], s["ref"], r["ref"], chosen, rejected
    rows: dict[str, tuple[Any, ...]] = {}
    for level in ("token", "sequence"):
        for kind in ("grpo", "bnpo", "dr_grpo", "dapo"):
            rows[f"grpo {kind} {level}"] = grpo(*group, loss_type=kind, level=level, beta=0.1)
    rows["grpo dapo token, KL corrected"] = grpo(*group, beta=0.1, bias_correction_kl=True)
    for kind in ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"):
        rows[f"dpo {kind}"] = dpo(*pairs, loss_type=kind, label_smoothing=0.1)
    for kind in ("kto", "apo_zero_unpaired"):
        rows[f"kto {kind}"] = kto(
            s["logps"],
            s["ref"],
            chosen,
            np.array([1, 0, 1, 0]),
            r["logps"],
            r["ref"],
            rejected,
            loss_type=kind,
        )[:2]
    rows["orpo"] = orpo(s["logps"], r["logps"], chosen, rejected)
    rows["simpo"] = simpo(s["logps"], r["logps"], chosen, rejected)
    rows["reward"] = reward(s["advantages"], s["advantages"][::-1], np.full(4, 0.2), 0.01)
    print(f"TRL {trl.__version__}\n{'oracle':<32}{'loss':>12}{'|gradient|':>14}")
    for name, (loss, *gradients) in rows.items():
        print(f"{name:<32}{loss:>12.6f}{np.sqrt(sum((g**2).sum() for g in gradients)):>14.6f}")


if __name__ == "__main__":
    main()
