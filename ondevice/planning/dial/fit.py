"""A recipe's settings for a time: the model's size where it follows from it, then the steps of each
stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.progress import duration
from ondevice.config.auto import is_auto
from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import RolloutConfig
from ondevice.config.recipe import Recipe
from ondevice.config.scaling import ScaleConfig, StageScale
from ondevice.config.stages import InitConfig, PretrainConfig, StageConfig, TrainingConfig
from ondevice.config.times import time_text
from ondevice.data.mixture import is_generated
from ondevice.planning.dial import inputs, laws
from ondevice.planning.dial.costs import Cost, Factors, cost_of, with_steps
from ondevice.planning.dial.shapes import (
    SHAPES,
    Shape,
    context_for,
    step_tokens,
    text_length,
)
from ondevice.planning.dial.shares import Part, divided, needed, taken
from ondevice.planning.stage_facts import Surroundings
from ondevice.planning.verdict import verdict

RESERVE, LEAST_RESERVE_S = 0.015, 2.0  # of the time, for the report and what nobody foresaw
_SFT_STEPS = 300  # that instruction tuning is to have, where fewer rows per step make that possible
_TRIED = 1024  # tokens of the vocabulary, until it is chosen


@dataclass(frozen=True)
class Fitted:
    """A recipe whose settings suit a time, and what each stage takes by them (of those that cannot
    be scaled too). `answer`: tokens of the answers that the model will give, where chats say it."""

    recipe: Recipe
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    answer: float | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class TooShort(Exception):
    """The time does not suffice for each stage's least steps; `seconds` would."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"needs {seconds:.0f} seconds")
        self.seconds = seconds


def reserve(seconds: float) -> float:
    """Seconds of a time that are not given to any stage."""
    return max(LEAST_RESERVE_S, RESERVE * seconds)


def fitted(
    recipe: Recipe,
    scale: ScaleConfig,
    seconds: float,
    around: Surroundings,
    factors: Factors,
    stages: Sequence[str] = (),
) -> Fitted:
    """The recipe with steps for so many seconds. `stages`: those that are still to come, all where
    none is named; the others stay as they are. Raises TooShort, and UserError for data or a model
    that a stage could not begin with."""
    coming = list(stages or recipe.stages)
    if scale.model == "fitted" and "init" in coming:
        return _Size(recipe, scale, seconds, around, factors).chosen()
    return divided_recipe(recipe, scale, seconds, around, factors, coming)


def divided_recipe(
    recipe: Recipe,
    scale: ScaleConfig,
    seconds: float,
    around: Surroundings,
    factors: Factors,
    coming: Sequence[str],
) -> Fitted:
    """The time shared out among the stages that are to come. Raises TooShort, UserError."""
    configs = dict(recipe.stages)
    costs, answer = _costs(configs, coming, around, factors)
    budget = seconds - reserve(seconds)
    parts, beside = _parts(scale, costs)
    if needed(parts) > budget - beside:
        raise TooShort(needed(parts) + beside + reserve(seconds))
    steps = divided(budget - beside, parts)
    settled = _small_batches(configs, steps)
    if settled:
        configs |= settled
        costs, answer = _costs(configs, coming, around, factors)
        parts, beside = _parts(scale, costs)
        steps = divided(budget - beside, parts)
    for name, count in steps.items():
        configs[name] = _with_decay(
            with_steps(configs[name], count), scale.stages[name], costs[name]
        )
    found = {part.stage: taken([part], steps) for part in parts}
    for name, cost in costs.items():
        found.setdefault(name, cost.fixed)
    seconds_of = {name: found[name] for name in coming}
    return Fitted(replace(recipe, stages=configs), costs, seconds_of, answer)


def _costs(
    configs: Mapping[str, StageConfig],
    coming: Sequence[str],
    around: Surroundings,
    factors: Factors,
) -> tuple[dict[str, Cost], float | None]:
    costs = {}
    for name in coming:
        costs[name], around = cost_of(name, configs[name], around, factors)
    return costs, around.policy.answer if around.policy is not None else None


def _parts(scale: ScaleConfig, costs: Mapping[str, Cost]) -> tuple[list[Part], float]:
    """(the claims of the stages that can be scaled, seconds of the others)."""
    parts = [cost.part(scale.stages[name]) for name, cost in costs.items() if name in scale.stages]
    beside = 0.0
    for name, cost in costs.items():
        if name not in scale.stages:
            beside += cost.fixed + cost.per_step * cost.plan.steps
    return parts, beside


def _with_decay(cfg: StageConfig, scale: StageScale, cost: Cost) -> StageConfig:
    """The settings with the weight decay for so many passes through the data."""
    if not (isinstance(cfg, TrainingConfig) and scale.decay and cost.epoch):
        return cfg
    passes = cfg.steps / cost.epoch
    return replace(cfg, weight_decay=laws.weight_decay(scale.decay, passes, scale.epochs))


def _small_batches(
    configs: Mapping[str, StageConfig], steps: Mapping[str, int]
) -> dict[str, StageConfig]:
    """Instruction tuning with rows per step left to the rules: fewer where there would be few
    steps."""
    found: dict[str, StageConfig] = {}
    for name, count in steps.items():
        cfg = configs[name]
        if isinstance(cfg, SFTConfig) and is_auto(cfg, "batch_size"):
            rows = 16
            while rows > 2 and count * 16 / rows < _SFT_STEPS:
                rows //= 2
            found[name] = replace(cfg, batch_size=rows)
    return found


# ---- the model's size -----------------------------------------------------------------------------


@dataclass
class _Size:
    """Chooses the size of the model that `init` makes: the one whose loss is lowest by the published
    laws, of those that fit the memory and leave each stage its least steps."""

    recipe: Recipe
    scale: ScaleConfig
    seconds: float
    around: Surroundings
    factors: Factors

    def __post_init__(self) -> None:
        init = self.recipe.stages["init"]
        assert isinstance(init, InitConfig)
        self.init = init
        if "pretrain" in self.recipe.stages:
            self.main = "pretrain"
        else:
            self.main = ""
        if not self.main:
            training = [n for n, c in self.recipe.stages.items() if isinstance(c, TrainingConfig)]
            self.main = training[0]

    def chosen(self) -> Fitted:
        if self.main in self.scale.stages:
            share = self.scale.stages[self.main].share
        else:
            share = 1.0
        shares = sum(one.share for n, one in self.scale.stages.items() if n in self.recipe.stages)
        seconds = 0.7 * self.seconds * share / max(shares, share)
        number, size = self._best(seconds, _TRIED)
        for _ in range(
            2
        ):  # what is left for the main stage follows from the size, and this from it
            try:
                found = self._with(number, seconds, size)
            except TooShort:
                break
            cost = found.costs[self.main]
            steps = getattr(found.recipe.stages[self.main], "steps", 1)
            seconds = cost.per_step * steps
            number, size = self._best(seconds, size)
        return self._largest_that_fits(number, seconds, size)

    def _largest_that_fits(self, number: int, seconds: float, size: int) -> Fitted:
        """This size, or the next smaller one with which every stage has its least steps."""
        while True:
            try:
                return self._with(number, seconds, size)
            except TooShort:
                if not number:
                    raise
                number -= 1

    def _with(self, number: int, seconds: float, size: int) -> Fitted:
        sized = self._sized(SHAPES[number], seconds, size)
        return divided_recipe(
            sized, self.scale, self.seconds, self.around, self.factors, list(sized.stages)
        )

    def _best(self, seconds: float, size: int) -> tuple[int, int]:
        """(number of the shape with the lowest loss, the vocabulary for it), where the main stage
        has so many seconds."""
        best, found = math.inf, (0, size)
        worse = 0
        for number, shape in enumerate(SHAPES):
            outcome = self._loss(shape, seconds, size)
            if outcome is None:
                break
            loss, vocabulary = outcome
            if loss < best:
                best, found, worse = loss, (number, vocabulary), 0
            else:
                worse += 1
            if worse == 2:
                break
        return found

    def _loss(self, shape: Shape, seconds: float, size: int) -> tuple[float, int] | None:
        """(loss by the laws, the best vocabulary for so much compute); None: it does not fit the
        memory."""
        sized = self._sized(shape, seconds, size)
        around = self.around
        for name, cfg in sized.stages.items():
            cost, after = cost_of(name, cfg, around, self.factors)
            if name == self.main:
                break
            around = after
        if verdict(cost.plan, cfg, around, None).fits == "no":
            return None
        inside = shape.parameters(0, tied=True)
        tokens = cost.plan.tokens_per_step * seconds / cost.per_step
        unique = cost.plan.tokens or tokens
        # what a text can no longer teach is no reason for a small model
        if self.main in self.scale.stages:
            limit = self.scale.stages[self.main].epochs
        else:
            limit = 0.0
        if limit and cost.plan.tokens:
            tokens = min(tokens, limit * cost.plan.tokens)
        width = shape.hidden
        vocabulary = laws.vocabulary(shape.parameters(size, tied=True), tokens, width, unique)
        return laws.loss(inside, tokens, unique), vocabulary

    def _sized(self, shape: Shape, seconds: float, size: int) -> Recipe:
        """The recipe for a model of this shape: its stages' rows and rates too."""
        init = replace(self.init, vocab_size=size, **shape.settings)
        tied = init.tie_word_embeddings
        parameters = shape.parameters(size, tied=tied)
        stages: dict[str, StageConfig] = {"init": init}
        for name, cfg in self.recipe.stages.items():
            if name == "init":
                continue
            if isinstance(cfg, TrainingConfig):
                cfg = _with_rates(cfg, self.scale.parameters, parameters)
            if isinstance(cfg, PretrainConfig):
                cfg = self._text(cfg, shape, seconds, init)
            stages[name] = cfg
        longest = max((_length(cfg) for cfg in stages.values()), default=0)
        stages["init"] = replace(init, max_position_embeddings=context_for(longest))
        return replace(self.recipe, stages=stages)

    def _text(
        self, cfg: PretrainConfig, shape: Shape, seconds: float, init: InitConfig
    ) -> StageConfig:
        """Rows of running text, and how many of them a step has."""
        changes: dict[str, Any] = {}
        if is_auto(cfg, "sequence_length") and not is_generated(cfg.data):
            changes["sequence_length"] = text_length(shape.parameters(0, tied=True))
        if is_auto(cfg, "batch_size"):
            length = changes.get("sequence_length", 128)
            if not is_auto(cfg, "sequence_length"):
                length = cfg.sequence_length
            tokens = seconds / self._token_seconds(shape, init)
            changes["batch_size"] = max(1, step_tokens(tokens) // length)
        return replace(cfg, **changes)

    def _token_seconds(self, shape: Shape, init: InitConfig) -> float:
        """Of learning from a token, roughly: the products alone, at half of their best speed."""
        speeds = self.around.machine.speeds
        assert speeds is not None
        parameters = shape.parameters(init.vocab_size, tied=True)
        return 2 * laws.FLOPS * parameters / speeds.product(shape.hidden)


_ANSWERS = 512  # tokens of a chat that a fitted model is to have room for


def _length(cfg: StageConfig) -> int:
    """Tokens of a row that the model is to have room for."""
    own = not is_generated(getattr(cfg, "data", "") or "builtin")
    if isinstance(cfg, RolloutConfig):
        return _ANSWERS + cfg.max_new_tokens if own else 0
    length = getattr(cfg, "sequence_length", 0)
    if isinstance(length, int):
        return length
    return _ANSWERS if own else 0


def _with_rates(cfg: TrainingConfig, known: int, parameters: int) -> TrainingConfig:
    """The recipe's rates, which are for a model of `known` parameters, for one of another size: with
    the cube root, as those of `training/defaults.py`."""
    if not known or is_auto(cfg, "learning_rate"):
        return cfg
    factor: float = (known / parameters) ** (1 / 3)
    return replace(cfg, learning_rate=float(f"{cfg.learning_rate * factor:.2g}"))


def too_short(recipe: Recipe, asked: float, error: TooShort) -> UserError:
    """What to say where a time does not suffice."""
    enough = math.ceil(error.seconds * 1.05 / 30) * 30
    return UserError(
        f"{time_text(asked)} is too short for {len(recipe.stages)} stages on this machine",
        where="time",
        hint=f"{recipe.name} takes {time_text(enough)} at least",
    )


Tell = Callable[[str], None]


def told(fit: Fitted, seconds: float, used: float, left_out: Mapping[str, str]) -> list[str]:
    """The plan in lines: what each stage does, and in which time."""
    recipe = fit.recipe
    head = f"{recipe.name} in {duration(seconds)}"
    if used:
        head += f", {duration(used)} of it used"
    lines = [head]
    for name, cost in fit.costs.items():
        lines.append(
            f"  {name:<10} {_what(recipe.stages[name], cost):<58} {duration(fit.seconds[name]):>7}"
        )
    lines.append(f"  {'':<10} {'together':<58} {duration(used + fit.total):>7}")
    return lines + [f"  {line}" for line in inputs.told(left_out)]


def told_short(fit: Fitted, seconds: float, used: float) -> str:
    """The plan of what is left, in a line."""
    words = []
    for name in fit.costs:
        cfg = fit.recipe.stages[name]
        count = ""
        if isinstance(cfg, TrainingConfig):
            count = f" {_steps(cfg, fit.costs[name]):,} steps"
        if fit.seconds[name] >= 2:
            words.append(f"{name}{count} {duration(fit.seconds[name])}")
    return f"{duration(used)} of {duration(seconds)} used; left: {', '.join(words)}"


def _what(cfg: StageConfig, cost: Cost) -> str:
    plan = cost.plan
    if isinstance(cfg, InitConfig):
        return (
            f"{_short(plan.frozen)} parameters: {cfg.num_hidden_layers} blocks of "
            f"{cfg.hidden_size}, vocabulary {cfg.vocab_size:,}"
        )
    if isinstance(cfg, TrainingConfig):
        steps = _steps(cfg, cost)
        words = f"{steps:,} steps of {plan.tokens_per_step:,.0f} tokens"
        if cost.epoch:
            words += f", {steps / cost.epoch:.2g} times through {plan.data.removeprefix('≈ ')}"
        return words
    if hasattr(cfg, "prompts"):
        return f"{cfg.prompts:,} prompts"
    return ""


def _steps(cfg: TrainingConfig, cost: Cost) -> int:
    """Those that were shared out; of a stage that is not scaled what the rules will say."""
    if is_auto(cfg, "steps"):
        return cost.plan.steps
    return cfg.steps


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
