"""The model card: what a folder is and how it came to be, from what happened and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.config.load import to_mapping
from ondevice.config.stages import StageConfig
from ondevice.context import Made
from ondevice.models.network import fills

WHAT: Mapping[str, str] = {
    "init": "random weights", "pretrain": "learning from plain text", "sft": "instruction tuning on chats",
    "classify": "a classifier: it tells texts apart, and writes none",
    "reward": "a reward model: it scores a whole conversation, and writes no text",
    "dpo": "preference tuning on pairs, without a reward model", "ppo": "preference tuning by a reward model (PPO)",
    "grpo": "reasoning, from verifiable rewards (GRPO)"}
_LEFT_OUT = {"out", "resume", "backend", "device", "dtype", "model", "keep", "save_every", "sample_every"}


def model_card(stage: str, cfg: StageConfig, made: Made, run: str) -> str:
    """Markdown with the metadata that the Hub reads; settings as they were, who rated where somebody did."""
    judges = made.model is not None and made.model.cfg.num_labels
    filling = made.model is not None and fills(made.model.cfg)
    task = "text-classification" if judges else "fill-mask" if filling else "text-generation"
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags: [ondevice]",
             "---", "", f"# {run}: {stage}", "", f"Made by ondevice: {WHAT.get(stage, stage)}.", ""]
    if start := getattr(cfg, "model", ""):
        lines += [f"Start: `{start}`", ""]
    lines += [f"* {note}" for note in made.notes] + ([""] if made.notes else [])
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | `{value}` |" for name, value in to_mapping(cfg).items()
              if name not in _LEFT_OUT and value != ""]
    return "\n".join(lines) + "\n"
