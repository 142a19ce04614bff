"""What each stage takes: put together from the model's facts, the data's facts and the machine's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.corpus import CorpusConfig
from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import PairsConfig, RaterConfig, SampleConfig
from ondevice.config.recipe import ExamConfig
from ondevice.config.rows import RowsConfig
from ondevice.config.stages import InitConfig, StageConfig, TrainingConfig
from ondevice.data.batches import token_type
from ondevice.data.completion_batches import Row
from ondevice.datasets.spec import builtin_in, corpus_of
from ondevice.models.initial_config import model_config
from ondevice.models.model import Model
from ondevice.planning.calibration import Speeds
from ondevice.planning.data_facts import unknown_prompts
from ondevice.planning.dimensions import Dimensions, dimensions
from ondevice.planning.memory import (
    Bytes,
    bytes_of_stage,
    checkpoint_bytes,
    disk_bytes,
    sent_bytes,
)
from ondevice.planning.model_facts import ModelFacts
from ondevice.planning.seconds import read_terms, step_seconds
from ondevice.planning.settings import settings_of, with_settings
from ondevice.planning.source_facts import UNKNOWN, DataFacts
from ondevice.planning.stage_facts import (
    Surroundings,
    after,
    data_of,
    judge,
    prepared,
    stand_in,
    start_model,
)
from ondevice.planning.trained import Trained, trained_by
from ondevice.planning.work import (
    Decode,
    Step,
    Work,
    completion_length,
    decode_of,
    once_before,
    share_of,
    training_work,
)
from ondevice.preferences.distinct import TRIES
from ondevice.runs.device_batch import cache_bytes
from ondevice.seam.select import check_shard

_FLOAT = 4
_OF_DATA = {
    *(f.name for f in fields(RowsConfig)),
    *("data", "validation", "limit", "seed", "text", "label", "pair", "prompts", "held_share"),
    *("chat_template", "chat_template_kwargs"),
}
"""Settings that decide what of the data is looked at."""
_STOPPED = 12  # tokens that an answer has beyond what it says, where answers are read
_CHAT_ROW = 1.5  # of encoding a chat, where encoding a prompt takes 1
_UNTAUGHT = 52.0  # tokens of an answer of a model that has not learned to end one


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes. `rows`, `tokens` of the data, `times` that they are gone through: None
    where they are not known before the stage reads them; `exact`: they were counted, not taken from
    a sample. `memory` bytes at the peak, `grown` of them above the process before it reads a model;
    `seconds` None: this machine is not calibrated. `disk` bytes that it needs. `written`: its time
    follows from how long answers are, of which only the most is known; `writing` seconds of each
    step are it.
    """

    stage: str
    trained: int
    frozen: int
    unit: str
    rows: float | None
    tokens: float | None
    exact: bool
    times: float | None
    steps: int
    tokens_per_step: float
    micro_batch: int | None
    checkpointing: bool
    memory: float
    grown: float
    seconds: float | None
    seconds_per_step: float | None
    disk: float
    data: str = ""
    written: bool = False
    writing: float = 0.0
    bytes: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that a rule may decide, with the numbers that they will have, about."""
    processes: int = 1
    """How many share the work; memory and time are those of each, without what is sent."""
    sent: float = 0.0
    """Bytes that each of several processes sends in a step."""

    def mapping(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def plan_stage(name: str, cfg: StageConfig, around: Surroundings) -> tuple[StagePlan, Surroundings]:
    """(what the stage takes, the surroundings of the stage after it). Raises UserError for a model
    or data that the stage could not begin with either."""
    if isinstance(cfg, InitConfig):
        return _init(name, cfg, around)
    if isinstance(cfg, RaterConfig):
        return _nothing(name), around
    facts = prepared(cfg, start_model(cfg, around))
    found = _data_of(name, cfg, facts, around)
    cfg = with_settings(cfg, facts, found, around.machine)
    trained = trained_by(cfg, facts, around.machine.dtype, judge(cfg, around))
    planned = _Planned(name, cfg, around, facts, found, trained)
    if isinstance(cfg, SampleConfig):
        plan = planned.sample()
    else:
        plan = planned.training()
    return plan, after(cfg, facts, found, around)


def _data_of(name: str, cfg: StageConfig, facts: ModelFacts, around: Surroundings) -> DataFacts:
    """As `data_of`, read once for all plans that share `around.read`."""
    to_come = isinstance(cfg, PairsConfig) and not cfg.data  # their length follows from settings
    if to_come or not isinstance(cfg, RowsConfig):
        return data_of(cfg, facts, around)
    tokenizer = facts.model.tokenizer
    fixed = {n: v for n, v in vars(cfg).items() if n in _OF_DATA}
    key = (name, repr(fixed), tokenizer.sha256(), tokenizer.chat_template)
    known = around.read.data
    if key not in known:
        known[key] = data_of(cfg, facts, around)
    return known[key]


@dataclass
class _Planned:
    """A stage that has a model and data."""

    name: str
    cfg: StageConfig
    around: Surroundings
    facts: ModelFacts
    data: DataFacts
    trained: Trained

    def __post_init__(self) -> None:
        self.machine = self.around.machine
        self.dims: Dimensions = dimensions(self.facts.cfg)
        self.processes = self.machine.processes
        self.step = Step(
            self.facts.model, self.data, self.machine, self.facts.answer, self.processes
        )

    def training(self) -> StagePlan:
        cfg = self.cfg
        assert isinstance(cfg, TrainingConfig)
        check_shard(cfg.shard, self.machine.backend, self.machine.costs.shards)
        work, measured = (share_of(one, self.processes) for one in training_work(cfg, self.step))
        per_step = self._seconds(work, cfg)
        seconds = None
        if per_step is not None:
            seconds = per_step * cfg.steps + self._beside(cfg, work, measured)
        used = self._bytes(work, measured)
        by_tokens = self.data.unit == "tokens"
        per = work.tokens if by_tokens else work.rows
        if by_tokens:
            all_of = self.data.tokens
        else:
            all_of = self.data.rows
        times = per * cfg.steps / all_of if all_of else None
        if isinstance(cfg, SFTConfig) and self.data.tokens:
            read = sum(one.places * one.times for one in work.learned) * self.processes
            times = read * cfg.steps / self.data.tokens
        return self._plan(work, cfg.steps, used, seconds, per_step, times)

    def sample(self) -> StagePlan:
        cfg = self.cfg
        assert isinstance(cfg, SampleConfig)
        if cfg.other:
            each = TRIES
        else:
            each = cfg.responses * TRIES - 2
        asked = self.data.examples or unknown_prompts()
        written = completion_length(cfg.max_new_tokens, self.facts.answer)
        rows = [Row(prompt, [1] * max(1, round(written))) for prompt in asked for _ in range(each)]
        one = decode_of(cfg, self.step, rows, each)
        count = self.data.rows or float(cfg.prompts or len(asked))
        models = 2 if cfg.other else 1
        share = count / len(asked) * models
        decode = replace(
            one,
            rows=max(one.at_once, round(one.rows * share)),
            prompts=max(1, round(one.prompts * share)),
        )
        work = Work(decodes=[decode], tokens=decode.rows * decode.written, rows=count)
        work = share_of(work, self.processes)
        seconds = self._seconds(work, None)
        used = self._bytes(replace(work, decodes=[one]), Work())
        return self._plan(work, 1, used, seconds, seconds, 1.0)

    def _plan(
        self,
        work: Work,
        steps: int,
        used: Bytes,
        seconds: float | None,
        per_step: float | None,
        times: float | None,
    ) -> StagePlan:
        cfg = self.cfg
        result = _FLOAT * (self.facts.parameters if not self.trained.low else self.trained.numbers)
        if isinstance(cfg, SampleConfig):
            result = 0
        return StagePlan(
            self.name,
            self.trained.numbers,
            self.trained.frozen,
            self.data.unit,
            self.data.rows,
            self.data.tokens,
            self.data.exact,
            times,
            steps,
            work.tokens,
            work.micro_batch,
            bool(getattr(cfg, "checkpointing", False)),
            self.machine.process + used.grown,
            used.grown,
            seconds,
            per_step,
            disk_bytes(cfg, self.trained, float(result)) + self._token_bytes(),
            self.data.told(),
            bool(work.decodes) and self.facts.answer is None,
            self._seconds(Work(decodes=work.decodes), None) or 0.0,
            used.mapping(),
            settings_of(cfg),
            self.processes,
            sent_bytes(cfg, self.trained, work, self.processes),
        )

    def _token_bytes(self) -> float:
        """Of the data's tokens on the disk, where their number is known: of running text two bytes
        a token, four of a large vocabulary; of rows four, and one that says which are learned."""
        if not self.data.tokens:
            return 0.0
        if self.data.unit != "tokens":
            return 5.0 * self.data.tokens
        return token_type(self.facts.model.tokenizer).itemsize * self.data.tokens

    def _bytes(self, work: Work, measured: Work) -> Bytes:
        return bytes_of_stage(
            self.cfg,
            self.trained,
            self.dims,
            work,
            measured,
            costs=self.machine.costs,
            dtype=self.machine.dtype,
            cache_bytes=cache_bytes(self.facts.model, self.machine.dtype),
            processes=self.processes,
        )

    def _seconds(self, work: Work, cfg: TrainingConfig | None) -> float | None:
        if self.machine.speeds is None:
            return None
        return step_seconds(
            work,
            cfg,
            self.trained,
            self.dims,
            costs=self.machine.costs,
            speeds=self.machine.speeds,
            size=2 if self.machine.dtype == "bfloat16" else _FLOAT,
        )

    def _beside(self, cfg: TrainingConfig, work: Work, measured: Work) -> float:
        """Seconds beside the steps: reading the data, what is scored once, measurements, saves, the
        exam."""
        speeds = self.machine.speeds
        assert speeds is not None
        seconds = self._reading(cfg, speeds)
        for one in once_before(cfg, work, self.data):
            seconds += one.times * speeds.reading.of(read_terms(one, self.dims, speeds))
        one_measurement = self._seconds(measured, None) or 0.0
        seconds += one_measurement * measurements(cfg)
        seconds += self._seconds(Work(decodes=work.ends), None) or 0.0
        saves = 1 + (cfg.steps // cfg.save_every if cfg.save_every else 0)
        written = saves * checkpoint_bytes(cfg, self.trained) + _FLOAT * self.facts.parameters
        seconds += 3 * written / speeds.bytes_per_second
        if self.around.exam is not None and cfg.gives == "policy":
            seconds += self.exam_seconds(self.around.exam)
        return seconds

    def _reading(self, cfg: TrainingConfig, speeds: Speeds) -> float:
        """Of reading and encoding the data, and what is learned beside them."""
        rows = (self.data.rows or 0.0) + self.data.held
        if self.data.unit == "tokens":
            rows = 0.0
        seconds = max(self.data.text_bytes / speeds.tokenizer, rows * self.data.row_seconds)
        corpus = self.around.corpus
        if isinstance(cfg, SFTConfig) and corpus_of(cfg.replay, corpus) is not None:
            seconds += corpus.document_bytes / speeds.tokenizer
        beside = isinstance(cfg, ChatsBesideConfig) and cfg.sft_coef
        if beside and corpus_of(getattr(cfg, "sft_data", "") or "builtin", corpus) is not None:
            seconds += _CHAT_ROW * corpus.chat_count * self.data.row_seconds
        return seconds

    def exam_seconds(self, exam: ExamConfig) -> float:
        """Of the exam's questions at a stage's end."""
        corpus, model = self.around.corpus, self.facts.model
        if (
            model.tokenizer.chat_template is None
            or model.network.decoder_start_token_id is not None
        ):
            return 0.0
        if exam.data:
            written = completion_length(exam.max_new_tokens, self.facts.answer)
            asked = Decode(exam.duels, written, min(exam.duels, 128), exam.duels, 48.0, 64)
            return self._seconds(Work(decodes=[asked]), None) or 0.0
        questions = round(corpus.chat_count * corpus.heldout_share)
        questions = min(questions, exam.questions or questions)
        rows = questions + exam.problems * (1 + exam.passes) + exam.duels
        answer = self.facts.answer or _UNTAUGHT
        decode = Decode(rows, answer + _STOPPED / 2, min(rows, 256), rows, 24.0, 64)
        return self._seconds(Work(decodes=[decode]), None) or 0.0


def measurements(cfg: TrainingConfig) -> int:
    """How often a stage measures: before the first step, every so often, at the end."""
    points = {cfg.steps}
    if cfg.eval_every:
        points |= set(range(cfg.eval_every, cfg.steps + 1, cfg.eval_every))
    return 1 + len(points)


def _nothing(name: str) -> StagePlan:
    """Of a stage that takes nothing worth a word."""
    return StagePlan(
        name, 0, 0, "pairs", None, None, False, None, 0, 0.0, None, False, 0.0, 0.0, 0.0, 0.0, 0.0
    )


def _init(name: str, cfg: InitConfig, around: Surroundings) -> tuple[StagePlan, Surroundings]:
    tokenizer = stand_in(cfg, around.corpus)
    shape = model_config(cfg, tokenizer)
    if not cfg.tokenizer and tokenizer.vocab_size < cfg.vocab_size:
        shape = replace(
            shape, vocab_size=cfg.vocab_size
        )  # of all the text there will be more words
    facts = ModelFacts(Model(shape, {}, tokenizer, Path(name)))
    grown = float(_FLOAT * facts.parameters + around.machine.costs.begun)
    seconds = None
    if around.machine.speeds is not None:
        seconds = 1e-8 * facts.parameters + 1.0
        if around.exam is not None:
            trained = Trained(0, facts.parameters, 0, False, 0.0)
            planned = _Planned(name, cfg, around, facts, UNKNOWN, trained)
            seconds += planned.exam_seconds(around.exam)
    plan = StagePlan(
        name,
        0,
        facts.parameters,
        "tokens",
        None,
        None,
        False,
        None,
        0,
        0.0,
        None,
        False,
        around.machine.process + grown,
        grown,
        seconds,
        None,
        float(_FLOAT * facts.parameters),
    )
    return plan, replace(around, policy=facts)


def seconds_of_all(plans: Sequence[StagePlan]) -> float | None:
    """Seconds of all stages together; None where one is not known."""
    seconds = [plan.seconds for plan in plans]
    if any(one is None for one in seconds):
        return None
    return math.fsum(one for one in seconds if one is not None)


def corpus_in(cfg: StageConfig) -> CorpusConfig | None:
    """The built-in corpus that a stage by itself reads; None where it reads none."""
    if getattr(cfg, "tokenizer", ""):
        return None
    return builtin_in(getattr(cfg, "data", ""), CorpusConfig())
