"""The settings of preference fine-tuning: sampling pairs, rating them, reward model, PPO, DPO.
Standard library only.

As in `stages`: a field's name is the flag's, the string under it is its help everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO, AutoFloat, AutoInt, auto, is_auto
from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.drawing import check_temperature
from ondevice.config.effects import only
from ondevice.config.finetuning import TuningConfig
from ondevice.config.rows import RowsConfig
from ondevice.config.stages import STEPS, RowsAtOnce, StageConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs

PairKind = Literal["sigmoid", "robust", "hinge", "ipo", "kto", "orpo", "simpo"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig(RowsConfig, StageConfig, WithTemplateKwargs):
    """Stage 3, first step: several responses to each prompt, queued in ratings.db for somebody to
    choose among them.
    """

    model: str = ""
    """The checkpoint that writes: any decoder folder with a chat template."""
    other: str = ""
    """A second checkpoint: then each writes one response. Empty: all are the first one's."""
    data: str = "builtin"
    """Prompts: a file, a folder, builtin[:RECIPE], or several with their shares of the rows:
    a.jsonl:2,b.jsonl:1.
    """
    ratings: str = ""
    """Where the pairs go: a ratings.db. Empty: the run folder's."""
    prompts: int = 1000
    """Prompts to answer at most; 0: all."""
    responses: int = 2
    """Different responses to each prompt, 2 to 4."""
    temperature: float = 1.0
    """Higher is more varied."""
    top_k: int = 0
    """Draw among this many likeliest tokens only; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    max_new_tokens: int = 64
    """Longest response in tokens."""
    decode_batch: RowsAtOnce = "auto"
    """Responses written at the same time. auto: as many as suit the machine, 256 at most."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'; in
    a recipe also as keys and values. A row's own column of this name wins."""

    gives = "ratings"
    gone = {"batch_size": "give --decode-batch, responses written at the same time"}

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._at_least(0, "prompts", "top_k")
        self._at_least(1, "max_new_tokens")
        self._check_rows_at_once("decode_batch")
        self._above(0, "top_p")
        check_temperature(self.temperature, greedy=False)
        self._between(0, 1, "top_p")
        self._between(2, 4, "responses")
        parse_template_kwargs(self.chat_template_kwargs)
        if self.other and self.responses != 2:
            raise UserError(
                "two checkpoints write one response each", where="responses", hint="leave it at 2"
            )


_OTHER_START = "the reference is a stage's start, and would be another one; begin with the finished stage as the model"


_BY_ANSWERS: tuple[Callable[[Any], bool], str] = (
    lambda cfg: cfg.rater == "simulated" and not cfg.rewards,
    "a person rates, or rewards do",
)
_BY_REWARDS: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.rater == "simulated" and bool(cfg.rewards),
    "the rule does not go by rewards",
    "give --rewards too",
)


@dataclass(frozen=True, kw_only=True)
class RaterConfig(StageConfig):
    """Stage 3, second step: a choice among the responses to each prompt, a person's or, unattended,
    a rule's.

    The rule gives an answer `right` points where it is the right one and `courtesy` points where it
    ends with a line of courtesy, or what `rewards` give it; the one with more points is chosen. What
    it says is labelled simulated wherever it appears.
    """

    rater: Literal["simulated", "person"] = "simulated"
    """simulated: the rule rates at once. person: the run stops here until enough pairs are rated
    with ondevice rate.
    """
    ratings: str = ""
    """The ratings.db. Empty: the run folder's."""
    right: float = only(1.0, *_BY_ANSWERS)
    """Points of the rule for the right answer."""
    courtesy: float = only(1.5, *_BY_ANSWERS)
    """Points of the rule for a line of courtesy after an answer."""
    rewards: tuple[str, ...] = only((), lambda cfg: cfg.rater == "simulated", "a person rates")
    """Rewards by name (those of grpo, except length and overlong) that the rule goes by instead,
    where the prompts' data has their columns: words,finished,repetition."""
    reward_weights: tuple[float, ...] = only((), *_BY_REWARDS)
    """A weight for each of them; none named: each one's own."""
    answer: str = only("number", *_BY_REWARDS)
    """Where a response's answer stands, for the rewards correct, format and choice: number, hash
    (####), boxed, tag (<answer>), last_number, whole."""
    needed: int = only(
        100, lambda cfg: cfg.rater == "person", "the rule rates all pairs", "give rater: person too"
    )
    """Usable pairs that a person must have rated before the run goes on."""

    gives = "ratings"

    def check(self) -> None:
        super().check()
        self._at_least(0, "right", "courtesy")
        self._at_least(1, "needed")
        if self.reward_weights and len(self.rewards) != len(self.reward_weights):
            raise UserError(
                f"{len(self.reward_weights)} weights for {len(self.rewards)} rewards",
                where="reward_weights",
                hint="give one for each of rewards",
            )


@dataclass(frozen=True, kw_only=True)
class PairsConfig(TuningConfig):
    """What every stage that learns from pairs has."""

    model: str = ""
    """The instruction-tuned folder to start from."""
    data: str = ""
    """Pairs: a ratings.db, a run folder, a file of prompt, chosen, rejected (for the loss kto also
    of prompt, completion, label), builtin[:RECIPE] (right answers and others), or several with
    their shares of the pairs: mine.db:2,b.jsonl:1. Empty: the run folder's ratings.db."""
    validation: str = ""
    """Held-out pairs; empty: a part of the data, no prompt of which is in the other part."""
    held_share: float = only(0.1, lambda cfg: not cfg.validation, "all of validation is held out")
    """About which part of the prompts is held out where no validation is given: each prompt's text
    decides.
    """
    sequence_length: AutoInt = auto()
    """Longest prompt and response together; longer pairs are left out and counted. auto: what 99 %
    of the pairs need, up to the model's context."""
    batch_size: AutoInt = auto()
    """Pairs that one optimizer step learns from. auto: 16, and fewer of few pairs, so that there
    are about 100 steps."""

    def check(self) -> None:
        super().check()
        self._at_least(2, "sequence_length")
        self._between(0.01, 0.5, "held_share")


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PairsConfig):
    """Stage 3, reward model: a score whose differences say which response would be chosen
    (Bradley–Terry).
    """

    center: float = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards around 0; 0: off."""
    strength_margin: float = 0.0
    """The margin that a vote of strength 2 asks for between the two rewards; one of strength 1 asks
    for none.
    """

    gives = "reward"
    without_effect = {
        "sample_every": "a reward model writes no answers",
        "sample_prompts": "a reward model writes no answers",
    }

    def check(self) -> None:
        super().check()
        self._at_least(0, "center", "strength_margin")


_KTO_ALONE: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.loss_type == "kto",
    "only kto weighs good and bad completions",
    "give --loss-type kto too",
)


@dataclass(frozen=True, kw_only=True)
class DPOConfig(ChatsBesideConfig, PairsConfig):
    """Stage 3 without a reward model: learn from the pairs directly. The reference is the stage's
    start, frozen.
    """

    loss_type: PairKind = "sigmoid"
    """sigmoid (DPO), robust, hinge, ipo, kto; without a reference: orpo, simpo."""
    beta: float = 0.1
    """How far the policy may move: larger stays closer (simpo: the scale, orpo: the weight of the
    odds).
    """
    label_smoothing: float = only(
        0.0,
        lambda cfg: cfg.loss_type in ("sigmoid", "robust", "simpo"),
        "this loss has no label smoothing",
        "sigmoid, robust and simpo have it",
    )
    """Share of pairs whose labels are taken to be wrong (sigmoid, robust, simpo)."""
    gamma: float = only(
        0.5,
        lambda cfg: cfg.loss_type == "simpo",
        "only simpo has a margin",
        "give --loss-type simpo too",
    )
    """The margin of simpo."""
    desirable_weight: float = only(1.0, *_KTO_ALONE)
    """Weight of the loss of good completions (kto)."""
    undesirable_weight: float = only(1.0, *_KTO_ALONE)
    """Weight of the loss of bad completions (kto). Where good and bad ones are not equally many,
    one of the two weights is to even that out: good completions should count 1 to 1.33 times as
    much as bad ones in all."""

    without_effect = {"continue_from": _OTHER_START}

    def check(self) -> None:
        super().check()
        self._above(0, "beta", "desirable_weight", "undesirable_weight")
        self._between(0, 0.49, "label_smoothing")
        self._at_least(0, "gamma")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(ChatsBesideConfig):
    """What every stage that learns from its own text has. One step is one rollout with all its
    updates.
    """

    model: str = ""
    """The folder to start from; it is the reference too."""
    prompts: AutoInt = auto()
    """Prompts of one rollout. auto: 64, and fewer of few prompts, so that there are about 100
    rollouts."""
    max_new_tokens: int = 64
    """Longest completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature; completions are scored at the same one."""
    decode_batch: RowsAtOnce = "auto"
    """Completions written at the same time. auto: as many as suit the machine, 256 at most. Halved
    where memory runs out.
    """

    gone = {
        **TuningConfig.gone,
        "rollout_batch": "give --decode-batch, completions written at the same time",
    }
    without_effect = {
        "continue_from": _OTHER_START,
        "batch_size": "a step learns from all completions of its prompts",
        "eval_batches": "it is measured on 64 held-out prompts",
    }

    def check(self) -> None:
        super().check()
        self._at_least(1, "prompts", "max_new_tokens")
        self._check_rows_at_once("decode_batch")
        check_temperature(self.temperature, greedy=False)


_FIRST_UPDATE = (
    "in the only update of a rollout the ratio is 1",
    "give --epochs or --minibatches too",
)


def _updates(cfg: Any) -> int:
    """Updates of a rollout."""
    return int(cfg.epochs * cfg.minibatches)


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutConfig):
    """Stage 3 with a reward model: proximal policy optimization. The reference is the stage's
    start, frozen.
    """

    reward_model: str = ""
    """The reward model's folder. The value model begins from it."""
    data: str = "builtin"
    """Prompts: a file, a folder, builtin[:RECIPE], or several with their shares of the rows:
    a.jsonl:2,b.jsonl:1.
    """
    steps: AutoInt = only(AUTO, *STEPS)
    """Rollouts. auto: as many as prompt_epochs needs; 20 on the built-in corpus, which has no
    end."""
    prompt_epochs: AutoFloat = only(
        AUTO, lambda cfg: is_auto(cfg, "steps"), "steps says it", "give one of the two"
    )
    """Times that the prompts are gone through, in place of steps. auto: once."""
    epochs: int = 4
    """Times that a rollout is learned from."""
    minibatches: int = 1
    """Parts into which each of these goes through the optimizer."""
    learning_rate: AutoFloat = auto()
    """Peak rate of AdamW, policy and value model. auto: what is published for PPO and the model's
    size, ten times that for an adapter."""
    kl_coef: float = 0.05
    """Price of moving away from the reference: taken from the reward of each token."""
    target_kl: float = only(
        0.0, lambda cfg: cfg.kl_coef, "kl_coef is 0, and stays so", "give --kl-coef too"
    )
    """Distance (nats a completion) that kl_coef is steered towards; 0: kl_coef stays as it is."""
    gamma: float = 1.0
    """Discount a token."""
    lam: float = 0.95
    """Lambda of the generalized advantage estimate."""
    clip: float = only(0.2, lambda cfg: _updates(cfg) > 1, *_FIRST_UPDATE)
    """How far a token's probability ratio counts."""
    value_clip: float = only(
        0.2,
        lambda cfg: cfg.value_coef and _updates(cfg) > 1,
        "the value loss counts nothing, or there is one update, before which no value has moved",
        "give --value-coef, and --epochs or --minibatches",
    )
    """How far a value counts from what it was at the rollout."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    missing_eos_penalty: float = 1.0
    """Taken from the score of a completion that did not stop."""
    most_kl: float = 50.0
    """The stage stops with a diagnosis where the distance to the reference (nats a completion)
    passes this.
    """

    epochs_field = "prompt_epochs"

    def check(self) -> None:
        super().check()
        self._at_least(1, "epochs", "minibatches")
        if not is_auto(self, "prompts") and self.minibatches > self.prompts:
            raise UserError(
                f"{self.prompts} completions do not fill {self.minibatches} parts",
                where="minibatches",
                hint="lower it, or raise prompts",
            )
        self._at_least(0, "kl_coef", "target_kl", "value_coef", "missing_eos_penalty")
        self._between(0, 1, "gamma", "lam")
        self._above(0, "clip", "value_clip", "most_kl")


def _judged_apart(cfg: Any) -> bool:
    """Whether some reward runs in a process of its own: a person's, or what text could hang."""
    return bool(
        cfg.reward_file
        or {"regex", "json"} & set(cfg.judges())
        or ("correct" in cfg.judges() and (cfg.answer == "boxed" or "gym:" in cfg.data))
    )


_PAIRS: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.pair_coef,
    "no pairs are learned from",
    "give --pair-coef too",
)
_CODE: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: "code" in cfg.judges(),
    "no code is run",
    "give --rewards code too, or leave it out",
)
_SEVERAL: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.updates > 1,
    "in the only update of a rollout the ratio is 1",
    "give --updates 2 or more too",
)


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RolloutConfig):
    """Stage 4: reasoning from verifiable rewards. A completion is better or worse than the others
    of its group.
    """

    data: str = "builtin"
    """Problems with answers: builtin[:RECIPE], a file of prompt and answer, gym:NAME
    (reasoning-gym), or several with their shares: a.jsonl:2,gym:NAME:1."""
    validation: str = ""
    """Held-out problems; empty: a part of the data (builtin and gym have their own)."""
    steps: AutoInt = only(AUTO, *STEPS)
    """Rollouts. auto: as many as epochs needs; 60 on the built-in corpus and gyms, which have no
    end."""
    prompts: AutoInt = auto()
    """Prompts of one rollout. auto: 16, and fewer of few problems, so that there are about 100
    rollouts."""
    group_size: int = 8
    """Completions of each prompt."""
    learning_rate: AutoFloat = auto()
    """Peak rate of AdamW. auto: what is published for GRPO and the model's size, ten times that
    for an adapter."""
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo"] = "dapo"
    """What divides what: tokens of the whole rollout (dapo), each completion by its length (grpo),
    tokens of a partition (bnpo), completions times max_new_tokens (dr_grpo); gspo: one ratio a
    completion."""
    partition: int = only(
        64,
        lambda cfg: cfg.loss_type == "bnpo",
        "only bnpo divides by the tokens of a part of the rollout",
        "give --loss-type bnpo too",
    )
    """Completions of a part of the rollout over whose tokens bnpo takes its mean."""
    scale_rewards: Literal["group", "batch", "none"] = only(
        "group",
        lambda cfg: cfg.loss_type != "dr_grpo" or cfg.scale_rewards == "none",
        "dr_grpo divides by none",
    )
    """Whose standard deviation divides an advantage; dr_grpo means none."""
    updates: int = 1
    """Times that a rollout is learned from."""
    clip: float = only(0.2, *_SEVERAL)
    """How far a probability ratio counts below 1."""
    clip_high: float = only(0.2, *_SEVERAL)
    """The same above 1."""
    beta: float = 0.0
    """Weight of the distance to the stage's start (k3); 0: off."""
    pair_coef: float = 0.0
    """Weight of the loss of pairs (DPO) beside it, which keeps what preferences taught; 0: off."""
    pair_data: str = only("", *_PAIRS)
    """These pairs: a ratings.db, a run folder, or a file of prompt, chosen, rejected. Empty: the
    ratings of the run that the model is from; where it has none, none are learned, which is said."""
    pair_batch: int = only(8, *_PAIRS)
    """Pairs beside each update."""
    pair_beta: float = only(0.1, *_PAIRS)
    """beta of their loss. Its reference is the model of the run's stage sft, else the stage's
    start."""
    mask_truncated: bool = False
    """Learn nothing from completions that did not stop."""
    rewards: tuple[str, ...] = ()
    """Rewards by name: correct, format, truncated, exact, choice, regex, json, think, length,
    overlong, language, code (unit tests, in an isolator); of text that was ordered words, begins,
    ends, finished, word_count, repetition. Unset: those of reward_file alone, or without one
    correct, format, truncated."""
    reward_weights: tuple[float, ...] = ()
    """A weight for each; none named: each one's own."""
    reward_file: str = ""
    """Rewards of your own: reward.py, or reward.py:NAME for some of its functions. They count
    beside those that rewards names, or alone."""
    answer: str = auto()
    """Where a completion's answer stands: number, hash (####), boxed, tag (<answer>), last_number,
    whole. auto: as the questions ask for it, else as the model has learned it here, else
    last_number for numbers and whole for any other answers; number for the built-in sums."""
    reward_timeout: float = only(
        10.0, _judged_apart, "no reward of this run has a process of its own"
    )
    """Seconds that a reward of your own, or one that text could hang, may take for one rollout."""

    code_reward: Literal["all", "share"] = only("all", *_CODE)
    """code: 1 for all unit tests of a row and 0 else (all), or the share of them that pass."""
    code_seconds: float = only(5.0, *_CODE)
    """code: seconds of processor time that a unit test may take; twice that and one by the clock."""
    code_memory: int = only(512, *_CODE)
    """code: MB of memory that a unit test may take."""

    def check(self) -> None:
        super().check()
        self._at_least(2, "group_size")
        self._at_least(1, "updates", "partition", "pair_batch")
        self._above(0, "clip", "clip_high", "reward_timeout", "code_seconds", "pair_beta")
        self._at_least(0, "beta", "pair_coef")
        self._at_least(64, "code_memory")
        if self.reward_weights and len(self.judges()) != len(self.reward_weights):
            raise UserError(
                f"{len(self.reward_weights)} weights for {len(self.judges())} rewards that are named",
                where="reward_weights",
                hint="give one for each of --rewards, your own among them",
            )
        if self.reward_weights and not any(self.reward_weights):
            raise UserError(
                "all are 0: no completion would be better than another",
                where="reward_weights",
                hint="give one that is not 0",
            )

    def judges(self) -> tuple[str, ...]:
        """The rewards that are named, or else the usual ones; none where a file of one's own counts
        alone (as in TRL).
        """
        return self.rewards or (() if self.reward_file else ("correct", "format", "truncated"))
