"""The work of one step of a stage, as its sources cut it: which batches are learned from, which are
read alone, what is written.

The batches are made by the stages' own sources, of a sample of the data: padding, packing and shared
prompts are as they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ondevice.common.rng import permutation
from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.preference import (
    DPOConfig,
    GRPOConfig,
    PairsConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
)
from ondevice.config.stages import PretrainConfig, TrainingConfig
from ondevice.data.completion_batches import Row, text_batch
from ondevice.data.packing import Batch, bucket
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.shared_prompts import NO_SHARING, answer_batch, cut_rows, judged_batch
from ondevice.datasets.objectives import rows_of, source_of
from ondevice.models.model import Model
from ondevice.planning.data_facts import chat_rows, unknown_prompts
from ondevice.planning.source_facts import DataFacts
from ondevice.runs.device_batch import Device, choose_decode_batch, fitting_micro_batch
from ondevice.seam.group import at_once

STEPS = 4  # whose batches are looked at
HELD_PROMPTS = 64  # that rollouts are measured on
KL_PROMPTS = 128  # that DPO answers at its end
_AROUND = 2  # tokens around a text that is told apart


@dataclass(frozen=True)
class Pass:
    """A batch that goes through the model: so many `places`, each of which attends to `attended` on
    average; `targets` of them are given to the head. `sources`: places beside them that an encoder
    reads. `masked`: attention has a mask of its own, and does not only look back. `models`: that it
    goes through, PPO's value model too. `times` of it are in a step. `shared`: rows without padding
    share their prompts. `entropy`: of each target's distribution it is computed too.
    """

    places: float
    attended: float
    targets: float
    rows: int
    sources: float = 0.0
    source_width: float = 0.0
    masked: bool = False
    models: int = 1
    times: float = 1.0
    shared: bool = False
    entropy: bool = False


@dataclass(frozen=True)
class Decode:
    """`rows` completions of `written` tokens each, `at_once` side by side, after `prompts` prompts of
    `prompt` tokens that are read first. `longest`: tokens of a row, prompt included, at most.
    """

    rows: int
    written: float
    at_once: int
    prompts: int
    prompt: float
    longest: int


@dataclass(frozen=True)
class Work:
    """Of one step: `learned` batches go forward and backward, `read` ones forward by the policy,
    `judged` ones by a model beside it; `updates` of the optimizer. `tokens` are learned (written,
    where the stage learns from its own text). `rows` of the data are read. `ends`: what is written
    once, after the last step.
    """

    learned: Sequence[Pass] = ()
    read: Sequence[Pass] = ()
    judged: Sequence[Pass] = ()
    decodes: Sequence[Decode] = ()
    updates: int = 0
    tokens: float = 0.0
    rows: float = 0.0
    micro_batch: int | None = None
    ends: Sequence[Decode] = ()


@dataclass
class Step:
    """What the parts of a stage's work follow from."""

    model: Model
    data: DataFacts
    device: Device
    answer: float | None = None  # tokens of an answer on average
    processes: int = 1
    starts: int | None = field(init=False)
    prompt_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.starts = self.model.network.decoder_start_token_id
        self.prompt_rows = 1 if self.model.network.shares_prompts else NO_SHARING


Cut = Callable[[int, int | None], list[Batch]]
"""The batches of a step's number, cut to so many rows at most; None: in one."""


def training_work(cfg: TrainingConfig, step: Step) -> tuple[Work, Work]:
    """(one step's work, that of one measurement on what is held out)."""
    if isinstance(cfg, RolloutConfig):
        return _rollouts(cfg, step)
    cut = _cut_of(cfg, step)
    micro_batch = _micro_batch(cfg, step, cfg.batch_size, lambda size: cut(0, size))
    passes: list[Pass] = []
    for number in range(STEPS):
        for batch in cut(number, micro_batch):
            passes.append(pass_of(batch, 1 / STEPS))
    learned = sum(one.targets * one.times for one in passes)
    if isinstance(cfg, RewardConfig):
        learned = sum(one.places * one.times for one in passes)
    work = Work(
        [*passes, *_chats_beside(cfg, 1)],
        updates=1,
        tokens=learned,
        rows=float(cfg.batch_size),
        micro_batch=micro_batch,
        ends=_distance_measured(cfg, step) if isinstance(cfg, DPOConfig) else (),
    )
    if isinstance(cfg, DPOConfig) and cfg.loss_type == "kto":
        work = replace(work, read=[replace(one, times=one.times / 2) for one in passes])
    held = step.data.held / cfg.batch_size
    if isinstance(cfg, PretrainConfig):
        held /= cfg.sequence_length
    batches = min(cfg.eval_batches, held or cfg.eval_batches)
    measured = [replace(one, times=one.times * batches) for one in passes]
    return work, Work(read=measured)


def share_of(work: Work, processes: int) -> Work:
    """What one of several processes does of a step: the batches and the rows that are written are
    shared, each updates."""

    def part(passes: Sequence[Pass]) -> list[Pass]:
        return [replace(one, times=one.times / processes) for one in passes]

    decodes = []
    for one in work.decodes:
        rows = -(-one.rows // processes)
        prompts = -(-one.prompts // processes)
        decodes.append(replace(one, rows=rows, prompts=prompts, at_once=min(one.at_once, rows)))
    return replace(
        work,
        learned=part(work.learned),
        read=part(work.read),
        judged=part(work.judged),
        decodes=decodes,
    )


def once_before(cfg: TrainingConfig, work: Work, data: DataFacts) -> list[Pass]:
    """What is read once before the first step: the reference's log-probabilities of every pair."""
    if not isinstance(cfg, DPOConfig) or cfg.loss_type in ("orpo", "simpo"):
        return []
    if data.rows is None:
        return []
    share = (data.rows + data.held) / cfg.batch_size
    return [replace(one, times=one.times * share) for one in work.learned]


def _micro_batch(
    cfg: TrainingConfig, step: Step, rows: int, cut: Callable[[int | None], list[Batch]]
) -> int:
    if cfg.micro_batch != "auto":
        found = min(cfg.micro_batch, rows)
    else:
        found = fitting_micro_batch(
            step.model, step.device, rows, cut, checkpointing=cfg.checkpointing
        )
    if step.processes == 1:
        return found
    return at_once(found, rows, step.processes)


def pass_of(batch: Mapping[str, Any], times: float = 1.0) -> Pass:
    """How much a batch is."""
    rows, width = batch["ids"].shape
    places = float(rows * width)
    attended = float(width)
    sources, source_width = 0.0, 0.0
    if "places" in batch:  # all rows one after another, each attending within itself
        attended = _scores(batch) / places
    if "prompt_ids" in batch:
        prompts, longest = batch["prompt_ids"].shape
        attended = (places * (width + longest) + prompts * longest * longest) / (
            places + prompts * longest
        )
        places += prompts * longest
    if "source_ids" in batch:
        sources = float(batch["source_ids"].size)
        source_width = float(batch["source_ids"].shape[1])
    if "targets" in batch:
        targets = len(batch["targets"])
    else:
        targets = len(batch["read"])
    masked = any(name in batch for name in ("segments", "prompt_ids", "prompt_places"))
    return Pass(
        places,
        attended,
        float(targets),
        rows,
        sources,
        source_width,
        masked,
        times=times,
        shared="prompt_places" in batch,
    )


def _scores(batch: Mapping[str, Any]) -> float:
    """Pairs of query and key of a batch without padding (`models/padding_free.py`), of one head."""
    rows, width = batch["places"].shape
    if "prompt_places" not in batch:
        return float(rows * width * width)
    prompts, longest = batch["prompt_places"].shape
    return float(rows * width * (width + longest) + prompts * longest * longest)


# ---- what is learned from data --------------------------------------------------------------------


def _cut_of(cfg: TrainingConfig, step: Step) -> Cut:
    """The batches of a stage's steps, by its own source over the examples."""
    if isinstance(cfg, PretrainConfig):
        tokens = step.data.examples[0] if step.data.examples else np.ones(4096, np.int32)
        rows = cfg.batch_size * cfg.sequence_length * STEPS + 1
        tokens = np.resize(tokens, min(max(len(tokens), rows), 1 << 20))
        source = source_of(cfg, step.model)(tokens)
    elif isinstance(cfg, SFTConfig):
        source = rows_of(cfg, step.model)(chat_rows(step.data, cfg.sequence_length))
    elif isinstance(cfg, PairsConfig):
        source = _pair_source(cfg, step)
    elif isinstance(cfg, ClassifyConfig):
        return _texts(cfg, step)
    else:
        raise AssertionError(f"no stage learns from {type(cfg).__name__}")

    def cut(number: int, micro_batch: int | None) -> list[Batch]:
        batches: list[Batch] = source.batch(number, micro_batch)
        return batches

    return cut


def _pair_source(cfg: PairsConfig, step: Step) -> PairSource:
    shared = step.model.network.shares_prompts

    def make(group: Sequence[int], pairs: Sequence[TokenPair], size: int) -> Batch:
        filled = [*group, *[group[0]] * (size - len(group))]
        sides = [pairs[i].chosen for i in filled] + [pairs[i].rejected for i in filled]
        room = size if shared else NO_SHARING
        if isinstance(cfg, RewardConfig):
            batch = judged_batch(sides, 2 * size, step.model.network.pooling, room)
        else:
            batch = answer_batch(sides, 2 * size, start=step.starts, prompt_rows=room)
        return {**batch, "pairs": np.ones(size, np.float32)}

    fitting = [pair for pair in step.data.examples if pair.length <= cfg.sequence_length]
    return PairSource(
        fitting or _unknown_pairs(cfg), batch_size=cfg.batch_size, seed=cfg.seed, make=make
    )


def _unknown_pairs(cfg: PairsConfig) -> list[TokenPair]:
    """Stand for pairs that cannot be looked at: half as long as they may be."""
    made = []
    length = max(2, cfg.sequence_length // 2)
    for prompt in unknown_prompts(max(1, length // 2)):
        chosen = Row(prompt, [1] * (length - len(prompt)))
        made.append(TokenPair(chosen, Row(prompt, [2] * (length // 3 + 1))))
    return made


def _distance_measured(cfg: DPOConfig, step: Step) -> Sequence[Decode]:
    """The answers to held-out prompts by which the distance to the start is measured."""
    count = int(min(KL_PROMPTS, step.data.held))
    pairs = step.data.examples[:count]  # as many as are answered are about as long
    if not pairs:
        return ()
    longest = max(max(len(p.chosen.completion), len(p.rejected.completion)) for p in pairs)
    prompts = [len(pair.chosen.prompt) for pair in pairs]
    context = max(prompts) + longest
    at_once = min(count, choose_decode_batch(step.model, step.device, context))
    written = completion_length(longest, step.answer)
    return (Decode(count, written, at_once, count, sum(prompts) / len(prompts), context),)


def _texts(cfg: ClassifyConfig, step: Step) -> Cut:
    examples = step.data.examples or unknown_prompts(cfg.sequence_length // 2)
    most = cfg.sequence_length - _AROUND
    ids = [[1, *example[:most], 1] for example in examples]

    def cut(number: int, micro_batch: int | None) -> list[Batch]:
        order = permutation(cfg.seed, "planned texts", number, len(ids))
        chosen = np.resize(order, cfg.batch_size)
        size = min(micro_batch or cfg.batch_size, cfg.batch_size)
        batches = []
        for first in range(0, len(chosen), size):
            part = [ids[i] for i in chosen[first : first + size]]
            batches.append(text_batch(part, size, step.model.network.pooling))
        return batches

    return cut


# ---- what a stage writes itself -------------------------------------------------------------------


def _rollouts(cfg: RolloutConfig, step: Step) -> tuple[Work, Work]:
    """Completions are taken to be as long as answers are known to be, else as long as they may be."""
    each = cfg.group_size if isinstance(cfg, GRPOConfig) else 1
    rows = _written_rows(cfg, step, cfg.prompts, each)
    decode = decode_of(cfg, step, rows, each)
    updates = cfg.updates if isinstance(cfg, GRPOConfig) else 1
    parts = 1
    if isinstance(cfg, PPOConfig):
        updates, parts = cfg.epochs * cfg.minibatches, cfg.minibatches
    a_part = -(-len(rows) // parts)
    room = step.prompt_rows if isinstance(cfg, GRPOConfig) else NO_SHARING

    def cut(micro_batch: int | None) -> list[Batch]:
        count = a_part
        if isinstance(cfg, GRPOConfig):
            count = min(bucket(a_part, 1, finer=2), len(rows))
        size = min(count, micro_batch or count)
        chosen = rows[:a_part]
        groups = cut_rows(chosen, size, step.starts, room)
        return [
            answer_batch([chosen[i] for i in group], size, start=step.starts, prompt_rows=room)
            for group in groups
        ]

    micro_batch = _micro_batch(cfg, step, a_part, cut)
    models = 2 if isinstance(cfg, PPOConfig) else 1
    learned = []
    for batch in cut(micro_batch):
        learned.append(replace(pass_of(batch, float(updates)), models=models, entropy=True))
    learned += [*_chats_beside(cfg, updates), *_pairs_beside(cfg, rows, updates)]
    read, judged = _scored(cfg, step, rows, micro_batch)
    written = sum(len(row.completion) for row in rows)
    work = Work(
        learned, read, judged, [decode], updates, float(written), float(cfg.prompts), micro_batch
    )
    return work, _measured(cfg, step, micro_batch)


def _chats_beside(cfg: TrainingConfig, updates: int) -> list[Pass]:
    """The chats that are learned beside each update."""
    if not isinstance(cfg, ChatsBesideConfig) or not cfg.sft_coef:
        return []
    width = 128
    places = float(cfg.sft_batch * width)
    return [Pass(places, width, places / 2, cfg.sft_batch, masked=True, times=float(updates))]


def _pairs_beside(cfg: RolloutConfig, rows: Sequence[Row], updates: int) -> list[Pass]:
    """The pairs that GRPO learns from beside each update: answers of the length of its own."""
    if not isinstance(cfg, GRPOConfig) or not cfg.pair_coef:
        return []
    width = max(row.length for row in rows)
    places = float(2 * cfg.pair_batch * width)
    return [Pass(places, width, places / 2, 2 * cfg.pair_batch, times=float(updates))]


def _written_rows(cfg: RolloutConfig, step: Step, prompts: int, each: int) -> list[Row]:
    asked = step.data.examples or unknown_prompts()
    written = completion_length(cfg.max_new_tokens, step.answer)
    rows = []
    for n in range(prompts):
        prompt = asked[n * len(asked) // prompts % len(asked)]
        for m in range(each):
            length = cfg.max_new_tokens
            if written < length:  # around the mean, so that padding is as of real answers
                length = min(length, max(1, round(written * _spread(n * each + m))))
            rows.append(Row(prompt, [1] * length))
    return rows


def completion_length(most: int, answer: float | None) -> float:
    """Tokens of a completion on average, of which `most` may be written."""
    if answer is None:
        return float(most)
    return float(min(most, answer))


def _spread(number: int) -> float:
    """Between 0.5 and 1.5, 1 on average."""
    return 0.5 + (number * 5 % 8) / 7


def _scored(
    cfg: RolloutConfig, step: Step, rows: Sequence[Row], micro_batch: int
) -> tuple[list[Pass], list[Pass]]:
    """What is read of a rollout before its updates: (by the policy, by models beside it)."""
    batches = _score_batches(step, rows, micro_batch)
    if isinstance(cfg, PPOConfig):
        # policy and reference, value model and reward model
        return [replace(one, times=2.0) for one in batches], [
            replace(one, times=2.0, targets=float(one.rows)) for one in batches
        ]
    times = float(cfg.updates > 1) + float(cfg.beta > 0) if isinstance(cfg, GRPOConfig) else 0.0
    return [replace(one, times=times) for one in batches if times], []


def _score_batches(step: Step, rows: Sequence[Row], size: int) -> list[Pass]:
    found = []
    for group in cut_rows(rows, size, step.starts, step.prompt_rows):
        some = [rows[i] for i in group]
        batch = answer_batch(some, size, start=step.starts, prompt_rows=step.prompt_rows)
        found.append(pass_of(batch))
    return found


def _measured(cfg: RolloutConfig, step: Step, micro_batch: int) -> Work:
    """A measurement: held-out prompts are answered, by PPO also scored."""
    count = int(min(HELD_PROMPTS, step.data.held or HELD_PROMPTS))
    rows = _written_rows(cfg, step, max(1, count), 1)
    decode = decode_of(cfg, step, rows, 1)
    if not isinstance(cfg, PPOConfig):
        return Work(decodes=[decode])
    batches = _score_batches(step, rows, micro_batch)
    return Work(read=[replace(one, times=2.0) for one in batches], judged=batches, decodes=[decode])


def decode_of(cfg: Any, step: Step, rows: Sequence[Row], each: int) -> Decode:
    """The writing of these rows, `each` of a prompt, by the settings of a stage that writes."""
    longest_prompt = max(len(row.prompt) for row in rows)
    context = longest_prompt + cfg.max_new_tokens
    at_once = cfg.decode_batch
    if at_once == "auto":
        at_once = choose_decode_batch(step.model, step.device, context)
    written = sum(len(row.completion) for row in rows) / len(rows)
    prompt = sum(len(row.prompt) for row in rows) / len(rows)
    return Decode(len(rows), written, min(at_once, len(rows)), len(rows) // each, prompt, context)
