"""What the settings of a stage are where they are left at `auto`.

What decides the result follows from the data and the model alone, so that it is the same on every
machine: `sequence_length`, `batch_size`, `prompts`, `steps` (by way of `epochs`), the learning
rates, `warmup_steps`, `eval_every`, `answer`. `save_every` decides nothing. What does not fit a machine's memory is
not made shorter here.

Everything is a pure function of what a person gave and of counts: a stage calls `resolved` at its
start, and who plans one calls it without a stage. The order is that in which one follows from
another: how long a row is, how many rows an epoch has, how many a step takes, how many steps there
are, and shares of these.

Sources. Rates are those published for a size, `RATES` and `SMALL_RATES`, and fall with the cube root of the
parameters, as those of GPT-3's eight sizes do (Brown 2020, table 2.1: 6.0e-4 for 125 M, 0.6e-4 for
175 B). An adapter takes ten times the rate of all weights (Schulman 2025, "LoRA Without Regret").
Text from random weights has a rule of its own (Kaplan 2020, equation D.1). A tenth of the steps to
warm up is BERT's, Zephyr's and Tülu 3's DPO's; 3 % are Alpaca's and Tülu 3's SFT's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ondevice.config.auto import AUTO, BY_DATA, is_auto
from ondevice.config.effects import effects
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.preference import (
    DPOConfig,
    GRPOConfig,
    PairsConfig,
    PPOConfig,
    RewardConfig,
)
from ondevice.config.stages import PretrainConfig, TrainingConfig
from ondevice.data.packing import best_fit

Config = TypeVar("Config", bound=TrainingConfig)
Value = TypeVar("Value")
Ints = NDArray[np.integer[Any]]

SHARE_WHOLE = 0.99  # of the rows, which no length cuts
_MULTIPLE = 8  # of which a length is one: no kernel wants an odd width
MOST_TEXT = 1024
"""Tokens of a row of running text at most, which itself has no length: GPT-2's (Radford 2019)."""
MOST_ROWS, LEAST_ROWS = 16, 4
"""Rows of a step. Few rows are as good for each row read as many (Shallue 2019; Marek 2025), and a
step of few takes little memory."""
TEXT_ROWS = 64
"""Rows of a step of running text at most, and tokens of it: far below the batch beyond which more
tokens per step help no more (McCandlish 2018; Kaplan 2020, equation 5.4: 40,000 tokens at a loss of
6, more later)."""
TEXT_TOKENS, LEAST_TEXT_TOKENS = 16_384, 2_048
WANTED_STEPS = 100
"""Steps that a run is to have, where fewer rows per step make that possible: the rate has to rise
and fall."""
MEASUREMENTS = 10  # of a run
MOST_PROMPTS: Mapping[type[TrainingConfig], int] = {PPOConfig: 64, GRPOConfig: 16}
LEAST_PROMPTS: Mapping[type[TrainingConfig], int] = {PPOConfig: 16, GRPOConfig: 4}
"""Prompts of a step, of one completion each or of a group."""
LORA_FACTOR = 10.0  # Schulman 2025
FRESH_MUON = 0.02  # Jordan 2024, from random weights


class Rate(NamedTuple):
    """A published peak rate of AdamW for all weights of a model of so many parameters."""

    value: float
    parameters: float
    source: str


RATES: Mapping[type[TrainingConfig], Rate] = {
    PretrainConfig: Rate(2e-5, 7e9, "as sft: the model has learned already"),
    SFTConfig: Rate(2e-5, 7e9, "Alpaca, Taori 2023"),
    ClassifyConfig: Rate(5e-5, 110e6, "BERT, Devlin 2019"),
    RewardConfig: Rate(1e-5, 7e9, "Llama 2, Touvron 2023"),
    DPOConfig: Rate(5e-7, 7e9, "Zephyr, Tunstall 2023; Tülu 3"),
    PPOConfig: Rate(3e-6, 1e9, "Huang 2024"),
    GRPOConfig: Rate(1e-6, 7e9, "DeepSeekMath, Shao 2024"),
}
SMALL_RATES: Mapping[type[TrainingConfig], Rate] = {
    GRPOConfig: Rate(5e-6, 1.5e9, "Open R1's recipe, Hugging Face 2025"),
}
"""Where small models are known to take another rate than the large one's: from there on down by
the cube root, as ever, and between the two sizes along the line between them. (Open R1 has recipes
from 5e-7 to 2e-5 at 1.5 B. With the highest of them text that is not trained on suffers,
docs/results/defaults.md.)"""
ORPO = Rate(8e-6, 7e9, "ORPO, Hong 2024")
"""Its loss is that of sft, and what it says of pairs beside it."""
_WARMUP: Mapping[type[TrainingConfig], float] = {
    PretrainConfig: 0.03,
    SFTConfig: 0.03,
    TrainingConfig: 0.1,
}
_BUILTIN_LENGTH: Mapping[type[TrainingConfig], int] = {
    PretrainConfig: 128,
    SFTConfig: 256,
    ClassifyConfig: 128,
    PairsConfig: 256,
}
_BUILTIN_STEPS: Mapping[type[TrainingConfig], int] = {
    PPOConfig: 20,
    GRPOConfig: 60,
    TrainingConfig: 1000,
}
"""What the built-in corpus is made for: its rows have no end that an epoch could be."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a model its settings follow from. `parameters`: all, frozen ones included; `context`:
    the tokens that a row of the stage may have; `packs`: whether a row may hold several chats;
    `fresh`: its weights are random, as `init` leaves them."""

    parameters: int
    context: int
    packs: bool = True
    fresh: bool = False


@dataclass(frozen=True)
class DataFacts:
    """What of the rows to learn from the settings follow from. `lengths` (N,): the tokens of a row
    that each of the data's rows takes (of running text: those of each document; of prompts: the
    prompt's). `unit`: what a row is, in the plural. `builtin`: all are generated ones, of the
    built-in corpus or a gym. `answer`: the form of answers that fits problems and model, and why;
    None where it is not known, which leaves the setting at auto."""

    lengths: Ints
    unit: str = "rows"
    builtin: bool = False
    answer: tuple[str, str] | None = None


class Resolved(NamedTuple):
    """Settings without any `auto`, a line of why for each that was one, and the rows that are gone
    through once."""

    cfg: Any
    why: dict[str, str]
    rows: int


def resolved(cfg: Config, model: ModelFacts, data: DataFacts) -> Resolved:
    """`cfg` with a value in place of each `auto` that the data and the model decide. `data` has a
    row at least.

    `checkpointing`, `micro_batch` and `decode_batch` are the machine's (`runs/device_batch.py`) and
    stay as they are.
    """
    assert len(data.lengths)
    rules = _Rules(cfg, model, data)
    length, *rest = BY_DATA
    rules.settle(length)
    rules.rows = rows_per_epoch(rules.cfg, model, data)
    for name in rest:
        rules.settle(name)
    return Resolved(rules.cfg, rules.why, rules.rows)


class _Rules:
    """A method for each setting, which gives its value and why. `cfg` has those that are settled."""

    rows: int

    def __init__(self, cfg: TrainingConfig, model: ModelFacts, data: DataFacts) -> None:
        self.cfg: Any = cfg
        self.model = model
        self.data = data
        self.why: dict[str, str] = {}

    def settle(self, name: str) -> None:
        if not hasattr(self.cfg, name) or not is_auto(self.cfg, name):
            return
        if name == "answer" and self.data.answer is None:
            return
        value, why = getattr(self, f"_{name}")()
        changes = {name: value}
        if name == "steps":
            changes[self.cfg.epochs_field] = AUTO  # the steps say it from here on
        cfg = replace(self.cfg, **changes)
        effect = effects(type(cfg)).get(name)
        if effect is None or effect.holds(cfg):  # a number without effect would be refused
            self.cfg = cfg
            self.why[name] = why

    def _sequence_length(self) -> tuple[int, str]:
        data = self.data
        most = self.model.context
        if data.builtin:
            return min(most, builtin_length(self.cfg)), "for which the built-in corpus is made"
        if isinstance(self.cfg, PretrainConfig):
            most = min(most, MOST_TEXT)
        length = row_length(data.lengths, most)
        if isinstance(self.cfg, PretrainConfig):
            return length, f"a row of running text, of {len(data.lengths):,} documents"
        longer = int((data.lengths > length).sum())
        what = "left out" if isinstance(self.cfg, PairsConfig) else "cut"
        why = f"holds {1 - longer / len(data.lengths):.1%} of {len(data.lengths):,} {data.unit}"
        if length == most and longer:
            why += ", all that the model's context allows"
        if longer:
            why += f"; {longer:,} are longer and are {what}"
        return length, why

    def _batch_size(self) -> tuple[int, str]:
        if self.data.builtin:
            return MOST_ROWS, "for which the built-in corpus is made"
        least, most = LEAST_ROWS, MOST_ROWS
        if isinstance(self.cfg, PretrainConfig):
            length = self.cfg.sequence_length
            least = max(1, min(TEXT_ROWS, LEAST_TEXT_TOKENS // length))
            most = max(1, min(TEXT_ROWS, TEXT_TOKENS // length))
        if not is_auto(self.cfg, "steps"):
            return most, "what a step usually has"
        wanted = _power_of_two(self.rows * epochs_of(self.cfg) / WANTED_STEPS)
        size = min(most, max(least, wanted))
        why = f"rows per step, of {self.rows:,}"
        if size < most:
            why += f": {most} would leave fewer than {WANTED_STEPS} steps"
        return size, why

    def _prompts(self) -> tuple[int, str]:
        least, most = _of(LEAST_PROMPTS, self.cfg), _of(MOST_PROMPTS, self.cfg)
        least = max(least, getattr(self.cfg, "minibatches", 1))
        if self.data.builtin:
            return max(least, most), "for which the built-in corpus is made"
        if not is_auto(self.cfg, "steps"):
            return max(least, most), "what a step usually has"
        wanted = _power_of_two(self.rows * epochs_of(self.cfg) / WANTED_STEPS)
        count = max(least, min(most, wanted))
        why = f"prompts per step, of {self.rows:,}"
        if count < most:
            why += f": {most} would leave fewer than {WANTED_STEPS} steps"
        return count, why

    def _answer(self) -> tuple[str, str]:
        assert self.data.answer is not None
        return self.data.answer

    def _steps(self) -> tuple[int, str]:
        if self.data.builtin and is_auto(self.cfg, self.cfg.epochs_field):
            return _of(_BUILTIN_STEPS, self.cfg), "the built-in data has no end"
        epochs = epochs_of(self.cfg)
        steps = steps_of(self.rows, epochs, rows_per_step(self.cfg))
        times = "once" if epochs == 1 else f"{epochs:g} times"
        why = f"{times} through {len(self.data.lengths):,} {self.data.unit}"
        if self.rows != len(self.data.lengths):
            why += f", in {self.rows:,} rows"
        return steps, why

    def _learning_rate(self) -> tuple[float, str]:
        return learning_rate_for(self.cfg, self.model)

    def _muon_learning_rate(self) -> tuple[float, str]:
        if self.model.fresh:
            return FRESH_MUON, "Jordan 2024, for random weights"
        fresh = kaplan_rate(self.model.parameters)
        value = _two_digits(FRESH_MUON * min(1.0, self.cfg.learning_rate / fresh))
        return value, f"{FRESH_MUON:g} is for random weights; in the same part as learning_rate"

    def _warmup_steps(self) -> tuple[int, str]:
        share = _of(_WARMUP, self.cfg)
        return round(share * self.cfg.steps), f"{share:.0%} of the steps"

    def _eval_every(self) -> tuple[int, str]:
        every = -(-self.cfg.steps // MEASUREMENTS)
        return every, "a tenth of the steps"

    def _save_every(self) -> tuple[int, str]:
        if not self.cfg.eval_every:
            return -(-2 * self.cfg.steps // MEASUREMENTS), "a fifth of the steps"
        return 2 * self.cfg.eval_every, "every second measurement"


def epochs_of(cfg: TrainingConfig) -> float:
    """How often the data is gone through where the steps follow from it: once, unless a person says
    otherwise. (Up to four times is nearly as good as new text, Muennighoff 2023: that is a person's
    choice.)"""
    given = getattr(cfg, cfg.epochs_field)
    return 1.0 if given == AUTO else float(given)


def steps_of(rows: int, epochs: float, per_step: int) -> int:
    """The steps that go through so many rows so often, the last of them whole: at least 1."""
    return max(1, math.ceil(round(rows * epochs / per_step, 6)))


def row_length(lengths: Ints, most: int) -> int:
    """The tokens of a row that leave 99 of 100 of the data's rows whole, `most` at most."""
    order = np.sort(np.asarray(lengths))
    needed = int(order[math.ceil(SHARE_WHOLE * len(order)) - 1])
    return min(most, -(-max(needed, 1) // _MULTIPLE) * _MULTIPLE)


def rows_per_epoch(cfg: TrainingConfig, model: ModelFacts, data: DataFacts) -> int:
    """Rows that are gone through once, with `sequence_length` settled: windows of running text,
    rows of packed chats with what is replayed beside them, pairs that fit, else the data's own."""
    if isinstance(cfg, PairsConfig):
        return max(1, int((np.asarray(data.lengths) <= cfg.sequence_length).sum()))
    if isinstance(cfg, PretrainConfig):
        tokens = int(np.asarray(data.lengths, np.int64).sum())
        return max(1, -(-(tokens - 1) // cfg.sequence_length))
    if not isinstance(cfg, SFTConfig):
        return len(data.lengths)
    lengths = np.clip(data.lengths, 1, cfg.sequence_length).astype(np.int64)
    if cfg.replay:
        share = cfg.replay_share
        pieces = round(share / (1 - share) * int(lengths.sum()) / cfg.sequence_length)
        lengths = np.append(lengths, np.full(pieces, cfg.sequence_length))
    if cfg.packing and model.packs:
        return best_fit(lengths, cfg.sequence_length).rows
    return len(lengths)


def rows_per_step(cfg: TrainingConfig) -> int:
    """Rows of the data that a step reads: of one that samples, its prompts."""
    if isinstance(cfg, PPOConfig | GRPOConfig):
        return cfg.prompts
    return cfg.batch_size


def learning_rate_for(cfg: TrainingConfig, model: ModelFacts) -> tuple[float, str]:
    """The peak rate of AdamW for the stage, the size and what is trained, and why."""
    if isinstance(cfg, PretrainConfig) and model.fresh:
        return kaplan_rate(model.parameters), "from random weights (Kaplan 2020)"
    rate = _of(RATES, cfg)
    if getattr(cfg, "loss_type", "") == "orpo":
        rate = ORPO
    value = _scaled(rate, SMALL_RATES.get(type(cfg), rate), model.parameters)
    trained = "all weights"
    if getattr(cfg, "adapter", "none") == "lora":
        value *= LORA_FACTOR
        trained = "an adapter"
    size = f"{_short(model.parameters)} parameters"
    small = SMALL_RATES.get(type(cfg), rate)
    if model.parameters < small.parameters:
        rate = small
    known = f"{rate.value:g} at {_short(rate.parameters)}, {rate.source}"
    return _two_digits(value), f"for {trained} of {size} ({known})"


def _scaled(large: Rate, small: Rate, parameters: int) -> float:
    """The rate for so many parameters: along the line between two published ones, on logarithmic
    scales, and with the cube root of the size beyond them."""
    if small.parameters < parameters < large.parameters:
        part = math.log(parameters / small.parameters) / math.log(
            large.parameters / small.parameters
        )
        return float(small.value * (large.value / small.value) ** part)
    near = small if parameters <= small.parameters else large
    return float(near.value * (near.parameters / parameters) ** (1 / 3))


def kaplan_rate(parameters: int) -> float:
    """The rate for text from random weights: 0.003239 − 0.0001395 ln N (Kaplan 2020, equation D.1),
    down to GPT-3's for 7 B, where the line has long left the data that it was fitted on."""
    return _two_digits(max(1.2e-4, 0.003239 - 0.0001395 * math.log(max(parameters, 1))))


def builtin_length(cfg: TrainingConfig) -> int:
    """Tokens of a row of the built-in corpus."""
    return _of(_BUILTIN_LENGTH, cfg)


def _of(table: Mapping[type[TrainingConfig], Value], cfg: TrainingConfig) -> Value:
    """The entry of the config's class, or of the nearest base that has one."""
    return next(table[base] for base in type(cfg).__mro__ if base in table)


def _power_of_two(value: float) -> int:
    """The largest power of two that is not above `value`, at least 1."""
    return 1 << max(0, math.floor(math.log2(max(value, 1.0))))


def _two_digits(value: float) -> float:
    """A rate as people write one."""
    return float(f"{value:.1e}")


def _short(count: float) -> str:
    """7 B, 135 M, 1.1 M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
