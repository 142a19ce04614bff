"""Golden numbers for PPO, recorded inside the last trainer of TRL that had it. Writes
tests/golden/ppo_trl_1_12.json.

    pip install --no-deps --target DIR trl==1.12.0     # later releases have no PPO
    python scripts/golden/ppo.py DIR                   # torch, transformers, accelerate, datasets of the environment

TRL computes the rewards, the advantages and the losses inline in `PPOTrainer.train`. So a real
trainer runs on tiny models with random weights, on the CPU in float32, and hooks read the local
variables of `train`: at each backward pass (what that update sees) and where the step is logged
(what the whole batch shares). No formula of TRL's is copied. The responses alone are prescribed, so
that every kind of row occurs; their log-probabilities are the policy's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

VERSION = "1.12.0"
TARGET = Path(__file__).parents[2] / "tests" / "golden" / "ppo_trl_1_12.json"
PAD, EOS, VOCABULARY = 0, 1, 12

# Two rows that end early (padding; the first leaves two places after its EOS, the second exactly
# one), one that fills the length and ends in EOS, one that fills it and has none.
RESPONSES = [
    [5, 9, 3, 7, EOS, PAD, PAD],
    [4, 8, 2, 6, 11, EOS, PAD],
    [10, 3, 5, 2, 8, 7, EOS],
    [6, 6, 9, 4, 2, 10, 3],
]
SHORT = [
    [2, EOS, PAD, PAD, PAD],
    [3, 4, EOS, PAD, PAD],
    [5, 6, 7, EOS, PAD],
    [8, 9, 10, 11, EOS],
    [11, 2, 4, 6, 8],
    [7, 7, EOS, PAD, PAD],
    [EOS, PAD, PAD, PAD, PAD],
    [9, 5, 3, 2, 4],
]

CASES: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
    "k1": (
        RESPONSES,
        {
            "kl_estimator": "k1",
            "kl_coef": 0.2,
            "gamma": 0.97,
            "lam": 0.9,
            "cliprange": 0.2,
            "cliprange_value": 0.2,
            "vf_coef": 0.5,
            "missing_eos_penalty": 1.0,
            "temperature": 0.9,
            "num_ppo_epochs": 3,
            "num_mini_batches": 1,
        },
    ),
    "k3, two minibatches": (
        RESPONSES,
        {
            "kl_estimator": "k3",
            "kl_coef": 0.05,
            "gamma": 1.0,
            "lam": 0.95,
            "cliprange": 0.1,
            "cliprange_value": 0.3,
            "vf_coef": 0.1,
            "missing_eos_penalty": None,
            "temperature": 1.0,
            "num_ppo_epochs": 2,
            "num_mini_batches": 2,
        },
    ),
    "whitened rewards": (
        SHORT,
        {
            "kl_estimator": "k1",
            "kl_coef": 0.1,
            "gamma": 0.99,
            "lam": 0.95,
            "cliprange": 0.2,
            "cliprange_value": 0.2,
            "vf_coef": 0.1,
            "missing_eos_penalty": 0.5,
            "temperature": 1.0,
            "num_ppo_epochs": 2,
            "num_mini_batches": 1,
            "whiten_rewards": True,
        },
    ),
}

CONVENTIONS = {
    "layout": "Arrays are (B, T); index t is token t of the response, from 0; T is the response length. "
    "Masks: 1 is kept.",
    "mask": "1 for each token of the response, its EOS too: TRL's ~padding_mask. Advantages, policy loss, pg_clipfrac.",
    "value_mask": "mask and one position more where the row has room: TRL's ~padding_mask_p1. Value loss, vf_clipfrac, "
    "whitening of rewards.",
    "logprobs": "log p(token t | what is before it) at the sampling temperature; 1.0 where mask is 0, in logprobs, "
    "ref_logprobs and new_logprobs alike, so that their differences are 0 there.",
    "values": "V(what is before token t): the value head one position to the left of token t. values[length] is "
    "V(the whole response) where the row has room; 0 where value_mask is 0.",
    "scores": "The reward model's, after missing_eos_penalty was taken off rows without EOS; scores_of_model: before.",
    "kl": "k1: logprobs - ref_logprobs. k3: exp(r) - 1 - r with r = ref_logprobs - logprobs.",
    "rewards": "-kl_coef * kl, and the score at score_position: the index after the last token, or the last token's "
    "where the row is full. Then whitened over value_mask (mean kept, 0 elsewhere) where whiten_rewards.",
    "raw_advantages": "GAE over all T positions without a mask; the value after index T-1 is 0. Index length (after "
    "the last token) has one as well: score - values[length].",
    "returns": "raw_advantages + values, at all positions.",
    "advantages": "raw_advantages whitened over mask: unbiased variance, rsqrt(variance + 1e-8); 0 elsewhere.",
    "updates": "In order. rows: indices into the batch. Arrays are those rows'. Gradients are of `loss`. approxkl is "
    "0.5 * mean of squares over all positions, padding too; ratio_mean likewise. The first: ratio is 1.",
    "masked_whiten": "shift_mean false adds the mean back. Positions outside the mask are transformed too.",
}


def plain(value: Any) -> Any:
    """Tensors inside `value` as lists; floats as the nine digits that give a float32 back."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        value = (array.astype(int) if array.dtype.kind in "bi" else array).tolist()
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def pretty(value: Any, indent: str = "") -> str:
    """JSON in which a row of numbers is one line."""
    if not isinstance(value, dict | list) or not any(
        isinstance(v, dict | list) for v in (value.values() if isinstance(value, dict) else value)
    ):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        items, (left, right) = (
            [f"{json.dumps(k)}: {pretty(v, inner)}" for k, v in value.items()],
            "{}",
        )
    else:
        items, (left, right) = [pretty(v, inner) for v in value], "[]"
    return f"{left}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{right}"


def functions(ppo: Any) -> dict[str, Any]:
    """`masked_mean` and `masked_whiten` on arrays of their own."""
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    return {
        "values": values,
        "mask": mask,
        "masked_mean": ppo.masked_mean(values, mask).item(),
        "masked_var": ppo.masked_var(values, mask).item(),
        "masked_whiten": ppo.masked_whiten(values, mask),
        "masked_whiten_keeping_the_mean": ppo.masked_whiten(values, mask, shift_mean=False),
    }


def trainer(
    ppo: Any, config: Any, rows: int, tokens: int, settings: Mapping[str, Any], folder: str
) -> Any:
    """A real PPOTrainer for one batch of `rows` episodes: four different models, prompts of two
    lengths.
    """
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        pad_token=f"w{PAD}",
        eos_token=f"w{EOS}",
        padding_side="left",
    )
    head: dict[str, Any] = {"num_labels": 1}
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        tie_word_embeddings=False,
        **head,
    )
    policy, reference = LlamaForCausalLM(shape), LlamaForCausalLM(shape)
    # A reference near the policy, as it is in practice: log-ratios of some tenths.
    for own, other in zip(reference.parameters(), policy.parameters(), strict=True):
        own.data = other.data + 0.05 * torch.randn_like(other)
    prompts = Dataset.from_list([{"input_ids": [2 + i, 3, 4, 5][: 3 + i % 2]} for i in range(rows)])
    args = config(
        output_dir=folder,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=0.005,
        optim="adamw_torch",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        total_episodes=rows,
        response_length=tokens,
        stop_token="eos",
        num_sample_generations=0,
        seed=0,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return ppo.PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=LlamaForSequenceClassification(shape),
        value_model=LlamaForSequenceClassification(shape),
        train_dataset=prompts,
        eval_dataset=prompts,
    )


def record(
    ppo: Any, config: Any, responses: list[list[int]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train one batch and return what its hooks saw: inputs, the shared arrays, each update."""
    set_seed(0)
    prescribed = torch.tensor(responses)
    whitened: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    updates: list[dict[str, Any]] = []
    batch: dict[str, Any] = {}
    original = {
        name: getattr(ppo, name) for name in ("batch_generation", "get_reward", "masked_whiten")
    }

    def batch_generation(
        model: Any, queries: torch.Tensor, size: int, pad: int, generation: Any
    ) -> Any:
        """As TRL's, with the sampled tokens given: generation's scores are the logits over the
        temperature.
        """
        with torch.no_grad():
            joined = torch.cat([queries, prescribed], 1)
            logits = ppo.forward(model, joined, pad).logits[:, queries.shape[1] - 1 : -1]
        return joined, logits / generation.temperature

    def get_reward(model: Any, *rest: Any) -> Any:
        out = original["get_reward"](model, *rest)
        if model is run.reward_model:
            scores.append(out[1].clone())
        return out

    def masked_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> Any:
        whitened.append(values.clone())
        return original["masked_whiten"](values, mask, shift_mean)

    def backward(loss: torch.Tensor) -> None:
        seen = sys._getframe(1).f_locals
        slopes = torch.autograd.grad(loss, [seen["new_logprobs"], seen["vpred"]], retain_graph=True)
        updates.append(
            {
                "epoch": seen["ppo_epoch_idx"],
                "minibatch": seen["minibatch_idx"],
                "rows": seen["micro_batch_inds"].copy(),
                "new_logprobs": seen["new_logprobs"].detach().clone(),
                "new_values": seen["vpred"].detach().clone(),
                "pg_loss": seen["pg_loss"].item(),
                "vf_loss": seen["vf_loss"].item(),
                "loss": loss.item(),
                "grad_new_logprobs": slopes[0],
                "grad_new_values": slopes[1],
            }
        )
        backward_of_accelerate(loss)

    def log(metrics: dict[str, float]) -> None:
        seen = sys._getframe(1).f_locals
        for update in updates:
            at = update["epoch"], update["minibatch"], 0
            for name in ("pg_clipfrac", "vf_clipfrac", "approxkl", "ratio"):
                update[name if name != "ratio" else "ratio_mean"] = seen[f"{name}_stats"][at].item()
        batch.update(
            inputs={
                "responses": prescribed,
                "mask": ~seen["padding_mask"],
                "value_mask": ~seen["padding_mask_p1"],
                "logprobs": seen["logprobs"],
                "ref_logprobs": seen["ref_logprobs"],
                "values": seen["values"],
                "scores_of_model": scores[0],
                "has_eos": seen["contain_eos_token"],
            },
            expected={
                "scores": seen["scores"],
                "kl": seen["kl"],
                "score_position": seen["actual_end"],
                **(
                    {"rewards_before_whitening": whitened[0]}
                    if settings.get("whiten_rewards")
                    else {}
                ),
                "rewards": seen["rewards"],
                "raw_advantages": whitened[-1],
                "advantages": seen["advantages"],
                "returns": seen["returns"],
                "mean_kl_of_rows": seen["mean_kl"].item(),
            },
        )

    with tempfile.TemporaryDirectory() as folder:
        run = trainer(ppo, config, len(responses), len(responses[0]), settings, folder)
        backward_of_accelerate = run.accelerator.backward
        run.accelerator.backward, run.log = backward, log
        try:
            ppo.batch_generation, ppo.get_reward, ppo.masked_whiten = (
                batch_generation,
                get_reward,
                masked_whiten,
            )
            run.train()
        finally:
            for name, function in original.items():
                setattr(ppo, name, function)
    return {"settings": {"whiten_rewards": False, **settings}, **batch, "updates": updates}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help=f"where TRL {VERSION} lies")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases")
    given = parser.parse_args()
    sys.path.insert(0, given.folder)
    import trl

    if trl.__version__ != VERSION:
        sys.exit(
            f"with {given.folder} first on the path, TRL is {trl.__version__}; these numbers are of {VERSION}"
        )
    import trl.experimental.ppo.ppo_trainer as ppo
    from trl.experimental.ppo import PPOConfig

    torch.set_num_threads(1)
    golden: dict[str, Any] = {
        "about": f"Recorded by scripts/golden/ppo.py in PPOTrainer.train of TRL {VERSION}, float32, CPU, torch "
        f"{torch.__version__.split('+')[0]}.",
        "conventions": CONVENTIONS,
        "functions": functions(ppo),
        "cases": {name: record(ppo, PPOConfig, *CASES[name]) for name in given.only},
    }
    given.out.write_text(pretty(plain(golden)) + "\n")
    for name, case in golden["cases"].items():
        for update in case["updates"]:
            print(name, {k: round(v, 6) for k, v in update.items() if isinstance(v, float)})


if __name__ == "__main__":
    main()
