"""What a stage says at its end, on stderr: how it went on held-out data, over how many tokens, in
what time, and where the model is. Steps, tokens and losses come from the stage's events, so that a
resumed stage tells of all its steps; the time is that of all its processes, up to the checkpoint
from which each went on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ondevice.common.numbers import number_or_none
from ondevice.common.progress import duration
from ondevice.common.sanitize import sanitize
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.model import Model
from ondevice.reports.achieved import achieved, worse
from ondevice.runs import events
from ondevice.runs.context import Context

UNITS = ("tokens", "pairs", "completions", "texts", "problems", "prompts")
"""What held-out figures are taken over: the names of their counts."""


@dataclass(frozen=True)
class Outcome:
    """A stage's training in figures; None where it has none. What was measured is of the very
    weights that the stage gives, those of step `measured`: `figure` is the name of what decides
    which ones are best, and `value` how they are; `loss` is in nats a token on held-out data.
    `before` and `after` are all figures, before the first step and of those weights; they were
    taken over `held` of `unit` (tokens, pairs, texts, problems, prompts). `epochs` says how often
    the data was gone through."""

    steps: int = 0
    tokens: int = 0
    epochs: float | None = None
    loss: float | None = None
    measured: int | None = None
    held: int | None = None
    unit: str | None = None
    bits_per_byte: float | None = None
    figure: str | None = None
    value: float | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    def mapping(self) -> dict[str, Any]:
        return asdict(self)


def outcome(ctx: Context) -> Outcome:
    """What the events of this stage come to, and what was measured of the weights that it gives."""
    ctx.events.flush()
    recorded = list(events.read(ctx.folder.events))
    data: Mapping[str, Any] = next((e for e in reversed(recorded) if e["event"] == "data"), {})
    step: Mapping[str, Any] = next((e for e in reversed(recorded) if e["event"] == "step"), {})
    tokens = int(step.get("tokens", 0))
    if data.get("tokens"):
        epochs = tokens / data["tokens"]
    else:
        epochs = None
    taken = ctx.taken
    if taken is None:  # nothing was trained
        return Outcome(int(step.get("step", 0)), tokens, epochs)
    loss, size = number_or_none(taken.figures.get("loss")), data.get("held_bytes_per_token")
    if loss is not None and size:
        bits = loss / math.log(2) / size
    else:
        bits = None
    unit = next((name for name in UNITS if name in taken.figures), None)
    return Outcome(
        int(step.get("step", 0)),
        tokens,
        epochs,
        loss,
        taken.step,
        taken.figures.get(unit or ""),
        unit,
        bits,
        taken.name,
        taken.value,
        *(
            None
            if part is None
            else {
                name: number_or_none(value)
                for name, value in part.items()
                if name not in ("groups", *UNITS)
            }
            for part in (taken.before, taken.figures)
        ),
    )


def bytes_per_token(batches: Iterable[Mapping[str, np.ndarray]], tokenizer: Tokenizer) -> float:
    """UTF-8 bytes of text that a target of these batches stands for, on average: it turns a loss
    into bits per byte.
    """
    size = count = 0.0
    for batch in batches:
        size += float((tokenizer.token_bytes(batch["targets"]) * batch["weights"]).sum())
        count += float(batch["weights"].sum())
    return size / max(count, 1.0)


def summary(ctx: Context, model: Model, record: Mapping[str, Any], ended: Outcome) -> str:
    """Some lines for a person. `record` is what done.json holds."""
    spent = f"{duration(record['seconds'])} ({record['cpu_seconds']:.0f} CPU seconds)"
    low = model.adapter
    if low:
        kind = f"an adapter beside {sanitize(low.base, newlines=False)}"
    else:
        kind = model.cfg.model_type
    if low:
        weights = sum(math.prod(model.params[n].shape) for n in low.trained)
    else:
        weights = model.size
    lines = [f"{ctx.name}: done in {spent}"]
    if ended.steps:
        often = f", {ended.epochs:.1f} times through the data" if ended.epochs else ""
        lines.append(f"  trained    {ended.steps:,} steps, {ended.tokens:,} tokens{often}")
    if figures := achieved(ended.mapping()):
        lines.append(f"  held out   {figures}")
    if ctx.taken is not None and worse(ended.mapping(), ctx.taken.higher):
        lines.append(f"             that is worse than before the first step: {ended.figure}")
    if exam := _exam(record.get("marks") or {}):
        lines.append(f"  exam       {exam}")
    lines.append(
        f"  model      {sanitize(str(ctx.folder.model), newlines=False)} ({kind}, "
        f"{weights:,} parameters{' trained' if low else ''}, {model.tokenizer.vocab_size:,} tokens in its "
        "vocabulary)"
    )
    return "\n".join(lines)


def _exam(marks: Mapping[str, Any]) -> str:
    parts = []
    if marks.get("bits_per_byte") is not None:
        parts.append(f"{marks['bits_per_byte']:.3f} bits per byte")
    if marks.get("exact_match") is not None:
        questions = sum(count for _, count in marks["by_kind"].values())
        parts.append(f"{marks['exact_match']:.1%} of {questions:,} questions answered rightly")
    if marks.get("rewards") and marks.get("points"):
        points = marks["points"]
        means = [
            f"{name} {mean:.2f}" for name, mean in marks["rewards"].items() if mean is not None
        ]
        parts.append(
            f"reward {sum(points) / len(points):.3f} of answers to {len(points):,} held-out prompts "
            f"({', '.join(means)})"
        )
    return ", ".join(parts)
