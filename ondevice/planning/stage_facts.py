"""What a stage begins from and leaves: the model with the head and template that it gives it, its data,
and what the stages after it find.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.auto import is_auto
from ondevice.config.corpus import CorpusConfig
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.preference import (
    GRPOConfig,
    PairsConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
    SampleConfig,
)
from ondevice.config.recipe import ExamConfig
from ondevice.config.stages import InitConfig, PretrainConfig, StageConfig
from ondevice.data.chat_encoding import add_template, with_template_kwargs
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import TokenPair
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import SENTINELS, train_tokenizer
from ondevice.models.encoder_config import ENCODERS
from ondevice.planning import data_facts as data
from ondevice.planning.machine import Machine
from ondevice.planning.model_facts import ModelFacts, facts_of
from ondevice.planning.source_facts import UNKNOWN, DataFacts


@dataclass(frozen=True)
class Read:
    """What was read of models and data, which plans with other settings need not read again."""

    models: dict[str, ModelFacts] = field(default_factory=dict)
    data: dict[Any, DataFacts] = field(default_factory=dict)

    def model(self, name: str) -> ModelFacts:
        """As `facts_of`."""
        if name not in self.models:
            self.models[name] = facts_of(name)
        return self.models[name]


@dataclass(frozen=True)
class Surroundings:
    """What a stage's plan follows from beside its settings: the machine, what `builtin` means, the
    run folder, whether the built-in corpus's exam is taken at the end, and what earlier stages of
    the same recipe leave. `read`: shared by plans of the same models and data."""

    machine: Machine
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    run: Path = Path(".")
    exam: ExamConfig | None = None
    policy: ModelFacts | None = None
    reward: ModelFacts | None = None
    pairs: DataFacts | None = None
    read: Read = field(default_factory=Read)


# ---- the model ------------------------------------------------------------------------------------


def stand_in(cfg: InitConfig, corpus: CorpusConfig) -> Tokenizer:
    """The tokenizer that is named, or one of a sample of the text, to count with; of the built-in
    corpus where the text cannot be looked at.
    """
    if cfg.tokenizer:
        return Tokenizer.load(Path(cfg.tokenizer))
    fills = cfg.family in (*ENCODERS, "bart")
    return _trained(cfg.data, corpus, cfg.vocab_size, fills, SENTINELS if cfg.family == "t5" else 0)


@lru_cache(maxsize=8)  # sizes of model are compared by the same one
def _trained(named: str, corpus: CorpusConfig, size: int, fills: bool, sentinels: int) -> Tokenizer:
    texts = data.sample_texts(named, corpus) or data.sample_texts("builtin", corpus)
    return train_tokenizer(texts, size, fills=fills, sentinels=sentinels)


def start_model(cfg: StageConfig, around: Surroundings) -> ModelFacts:
    """The model that the stage begins from. Raises UserError where none is named or made before."""
    named = getattr(cfg, "model", "")
    if named:
        found = around.read.model(named)
        if around.policy is not None and around.policy.answer is not None:
            found = replace(found, answer=around.policy.answer)
        return found
    if around.policy is None:
        raise UserError("no model was named", where="model", hint="give a model's folder")
    return around.policy


def prepared(cfg: StageConfig, facts: ModelFacts) -> ModelFacts:
    """The model under the head and the chat template that the stage gives it."""
    if isinstance(cfg, RewardConfig):
        facts = facts.with_head(1)
    elif isinstance(cfg, ClassifyConfig):
        facts = facts.with_head(max(2, facts.cfg.num_labels))
    elif isinstance(cfg, PretrainConfig | SFTConfig | RolloutConfig | SampleConfig):
        facts = facts.with_head(0)
    tokenizer = facts.model.tokenizer
    named = getattr(cfg, "chat_template", "")
    if named:
        tokenizer = add_template(tokenizer, named)
    tokenizer = with_template_kwargs(tokenizer, getattr(cfg, "chat_template_kwargs", ""))
    return replace(facts, model=replace(facts.model, tokenizer=tokenizer))


def judge(cfg: StageConfig, around: Surroundings) -> ModelFacts | None:
    """PPO's reward model; None where it is to be of the policy's shape, and for every other stage."""
    if not isinstance(cfg, PPOConfig):
        return None
    if cfg.reward_model:
        return around.read.model(cfg.reward_model)
    return around.reward


def after(
    cfg: StageConfig, facts: ModelFacts, found: DataFacts, around: Surroundings
) -> Surroundings:
    """What the stage leaves for the next one."""
    if cfg.gives == "ratings":
        return replace(around, pairs=found)
    if cfg.gives == "reward":
        return replace(around, reward=facts)
    if cfg.gives != "policy":
        return around
    if isinstance(cfg, SFTConfig):
        facts = replace(facts, answer=_answer_length(found))
    return replace(around, policy=facts)


def _answer_length(found: DataFacts) -> float | None:
    """Tokens of an answer on average, that a model which has learned these chats gives."""
    learned = [float(row.mask.sum()) for row in found.examples]
    learned = [length for length in learned if length]
    if not learned:
        return None
    return sum(learned) / len(learned)


def data_of(cfg: StageConfig, facts: ModelFacts, around: Surroundings) -> DataFacts:
    """What the stage learns from, encoded by the model's tokenizer. Raises UserError for data that is
    not there, and for a model without a chat template where one is needed."""
    tokenizer, corpus = facts.model.tokenizer, around.corpus
    if isinstance(cfg, PretrainConfig):
        return data.text_facts(cfg, tokenizer, corpus)
    if isinstance(cfg, ClassifyConfig):
        return data.label_facts(cfg, tokenizer, corpus)
    if tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template",
            where=str(facts.model.folder),
            hint="give --chat-template chatml to sft",
        )
    if isinstance(cfg, SFTConfig):
        return data.chat_facts(cfg, tokenizer, corpus)
    if isinstance(cfg, PairsConfig):
        if not cfg.data and around.pairs is not None:
            return _pairs_to_come(cfg, around.pairs, facts)
        return data.pair_facts(cfg, tokenizer, corpus, around.run)
    assert isinstance(cfg, SampleConfig | RolloutConfig)
    return data.prompt_facts(cfg, tokenizer, corpus, problems=isinstance(cfg, GRPOConfig))


def _pairs_to_come(cfg: PairsConfig, asked: DataFacts, facts: ModelFacts) -> DataFacts:
    """Of pairs that an earlier stage is to sample and rate: a prompt each, with answers as long as
    the model's are."""
    most = 256  # where nothing is known
    if not is_auto(cfg, "sequence_length"):
        most = cfg.sequence_length
    length = max(1, round(facts.answer or most / 4))
    pairs = []
    for n, prompt in enumerate(asked.examples):
        one, other = length + n % 5, max(1, length - n % 5)
        pairs.append(TokenPair(Row(prompt, [1] * one), Row(prompt, [1] * other)))
    if not is_auto(cfg, "sequence_length"):
        pairs = [pair for pair in pairs if pair.length <= most]
    count = asked.rows
    if count is None or not pairs:
        return UNKNOWN
    held = count * cfg.held_share
    tokens = sum(pair.chosen.length + pair.rejected.length for pair in pairs) / len(pairs)
    return DataFacts("pairs", count - held, tokens * (count - held), False, pairs, held)
