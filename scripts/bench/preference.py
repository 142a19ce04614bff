"""The same for preference and reasoning: a reward model's step, DPO, PPO and GRPO, as train.py
compares the rest.

    python scripts/bench/preference.py --trl112 DIR --mlx-lm-lora DIR

PPO was last in TRL 1.12.0, and mlx-lm-lora wants other versions than ours: each lies in a folder of
its own.

    pip install --no-deps --target DIR trl==1.12.0
    pip install --no-deps --target DIR mlx-lm-lora

A rollout's tokens are those of its completions, none of which stops before its limit.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import prepare, prepare_preference  # noqa: E402
from train import Comparison, bench, parsed, parser  # noqa: E402

FOLDERS = {"trl_ppo": ("trl112", "trl==1.12.0"), "mlx_lm_lora": ("mlx_lm_lora", "mlx-lm-lora")}


def _torch(
    what: str,
    title: str,
    peer: str = "trl_preference",
    clip_norm: float = 1.0,
    same_steps: bool = True,
) -> Comparison:
    return Comparison(what, "torch", peer, title, clip_norm, same_steps, "trl", "ours_preference")


def _mlx(what: str, title: str) -> Comparison:
    return Comparison(what, "mlx", "mlx_lm_lora", title, 0.0, False, "mlx_lm", "ours_preference")


COMPARISONS = (
    _torch("reward", "reward model, against TRL's RewardTrainer"),
    _torch("dpo", "DPO, both with the reference computed beforehand, against TRL's DPOTrainer"),
    _torch("dpo-live", "DPO, TRL with its reference beside it (its default)"),
    _torch("ppo", "PPO, 4 epochs, against TRL 1.12's PPOTrainer", "trl_ppo", 0.0, False),
    _torch("grpo", "GRPO, against TRL's GRPOTrainer", same_steps=False),
    _mlx("dpo", "DPO, against mlx-lm-lora (its reference beside it)"),
    _mlx("grpo", "GRPO with a reference, against mlx-lm-lora"),
    _mlx("grpo-wide", "GRPO with a reference, against mlx-lm-lora made to decode all rows at once"),
)


def main() -> None:
    asked = parser(__doc__, COMPARISONS)
    for option, package in FOLDERS.values():
        asked.add_argument(
            f"--{option.replace('_', '-')}",
            type=Path,
            metavar="DIR",
            help=f"made by: pip install --no-deps --target DIR {package}",
        )
    args = parsed(asked)
    found = []
    for c in COMPARISONS:
        option, package = FOLDERS.get(c.peer, ("", ""))
        if option and getattr(args, option) is None:
            if c.backend in args.backend:
                print(
                    f"left out: {c.title}; pip install --no-deps --target DIR {package}, "
                    f"then --{option.replace('_', '-')} DIR",
                    file=sys.stderr,
                )
            continue
        found.append(c._replace(folder=getattr(args, option) if option else None))
    bench(args, found, _make, 1e-4)


def _make(work: Path, size: str, backend: str, steps: int) -> None:
    prepare(work, size, backend, steps)
    prepare_preference(work, size, backend, steps)


if __name__ == "__main__":
    main()
