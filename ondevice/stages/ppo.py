"""Stage 3 with a reward model: PPO (Schulman 2017; Ouyang 2022; details after Huang 2024).

One step is one rollout: completions sampled from the policy, scored by the reward model, a price
for every token that moves away from the reference (the stage's start, frozen), advantages by GAE
under a value model of its own, and then `epochs` × `minibatches` updates of policy and value model
together. The value model begins from the reward model and is kept with the checkpoints and beside
the result.

Chosen: a value model of its own, as in TRL, and not a second head on the policy: what the value
learns then does not move the policy. The price of distance is a reward per token, not a term of the
loss (InstructGPT does the same). Advantages are whitened over the rollout.
Left out: whitened rewards, which TRL has as an option and leaves off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import permutation
from ondevice.config.preference import PPOConfig
from ondevice.data.completion_batches import Row, prompt_and_completion
from ondevice.data.packing import Batch
from ondevice.data.preference_batches import completion_row
from ondevice.data.shared_prompts import NO_SHARING
from ondevice.datasets.chats_beside import ChatsBeside
from ondevice.datasets.prompts import Prompt, prompts, thought_opening
from ondevice.datasets.spec import DataSpec
from ondevice.inference.fixed_prompts import held_questions, sampler
from ondevice.models.model import Model, require_generative
from ondevice.models.score_head import with_head
from ondevice.models.shapes import shapes
from ondevice.rl.advantages import explained_variance, gae, whiten
from ondevice.rl.micro_batches import (
    Floats,
    decode_batch,
    held_out,
    length_metrics,
    micro_batches,
    prompt_indices,
    scoring_batch,
)
from ondevice.rl.rollout import Sampled, Sampler, count_tokens, mean_kl, rows_of
from ondevice.rl.rollout_log import GroupLog, to_records
from ondevice.rl.step_times import StepTimes
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params, sub
from ondevice.seam.protocols import Backend
from ondevice.stages.no_signal import NoSignal
from ondevice.stages.settled import prompt_facts, settle
from ondevice.stages.tuning import load_start, reference_params, shares_reference, with_adapter
from ondevice.training.heldout_metrics import BestMetric
from ondevice.training.loop import fit
from ondevice.training.losses_beside import with_losses_beside
from ondevice.training.policy_losses import ppo_loss
from ondevice.training.sequence_logprobs import Scorer
from ondevice.training.step_source import Cut, StepPlan, count_targets

HELD = 64  # held-out prompts of a measurement


def run(cfg: PPOConfig, ctx: Context) -> StageResult:
    policy, judge, value = start_models(cfg, ctx.backend)
    if not begins_as(judge, policy):
        ctx.tell(
            "the reward model is not of the policy's shape: the value model begins from the policy"
        )
    policy = with_adapter(policy, cfg, ctx)
    value = with_adapter(value, cfg, ctx)
    judge = judge.with_params(reference_params(judge, ctx.backend))
    feed = PPOFeed(cfg, ctx, policy, judge, value)
    cfg = settle(cfg, policy, partial(prompt_facts, feed.asked, "prompts", cfg.data), ctx)
    feed.cfg = cfg  # which follows from the prompts that the feed has read
    names = list(policy.params)
    ppo = partial(
        ppo_loss,
        model=policy.network,
        clip=cfg.clip,
        value_clip=cfg.value_clip,
        value_coef=cfg.value_coef,
        temperature=cfg.temperature,
        checkpoint=cfg.checkpointing,
    )
    loss = with_losses_beside(
        ppo, model=policy.network, sft_coef=feed.chats.coef, checkpoint=cfg.checkpointing
    )
    params = fit(
        policy,
        loss,
        feed,
        feed.watch,
        ctx,
        cfg,
        sample=sampler(policy, ctx, cfg, partial(held_questions, feed.held, policy.tokenizer)),
        beside={"value": value},
        better=BestMetric("score", higher=True),
        restart=None
        if shares_reference(policy, ctx.backend)
        else lambda: _start_params(cfg, ctx.backend),
    )
    own = {name: params[name] for name in names}
    beside = {"value_model": value.with_params(sub(params, "value."))}
    return StageResult(
        policy.with_params(own),
        {"held_out": held_out(ctx.taken)},
        beside,
        [f"rewarded by {'/'.join(Path(cfg.reward_model).parts[-3:])}"],
    )


def start_models(cfg: PPOConfig, backend: Backend) -> tuple[Model, Model, Model]:
    """The policy, the reward model and the value model that the stage begins from. Raises UserError
    as `load_reward_model`, and for a policy that writes no text."""
    policy = require_generative(load_start(cfg.model, cfg, backend))
    judge = load_reward_model(cfg, backend)
    return policy, judge, value_model(policy, judge, cfg, backend)


def _start_params(cfg: PPOConfig, backend: Backend) -> Params:
    """The parameters that the stage begins from, where all weights are trained."""
    policy, _, value = start_models(cfg, backend)
    return {**policy.params, **{f"value.{name}": p for name, p in value.params.items()}}


def load_reward_model(cfg: PPOConfig, backend: Backend) -> Model:
    """The reward model, of whatever architecture. Raises UserError: none named, no reward model, or
    one of another tokenizer that has no chat template to read a conversation by."""
    if not cfg.reward_model:
        raise UserError(
            "no reward model was named", where="reward_model", hint="ondevice reward makes one"
        )
    judge = load_start(cfg.reward_model, cfg, backend)
    if judge.cfg.num_labels != 1:
        raise UserError(
            "is not a reward model: it has no head of one score",
            where=cfg.reward_model,
            hint="ondevice reward makes one",
        )
    if judge.tokenizer.chat_template is None:
        raise UserError(
            "has no chat template", where=cfg.reward_model, hint="ondevice reward needs one too"
        )
    return judge


def value_model(policy: Model, judge: Model, cfg: PPOConfig, backend: Backend) -> Model:
    """Begun from the reward model where that has the policy's shape and tokenizer, else from the
    policy: a value stands before every token, which only a model that reads from left to right can
    tell."""
    if begins_as(judge, policy):
        return judge.with_params(dict(judge.params))
    return with_head(policy, backend, cfg.seed)


def begins_as(judge: Model, policy: Model) -> bool:
    """Whether the reward model has the policy's shape and tokenizer."""
    wanted = replace(policy.cfg, num_labels=1)
    return (
        isinstance(judge.cfg, type(wanted))
        and shapes(judge.cfg) == shapes(wanted)
        and same_tokenizer(judge, policy)
    )


def same_tokenizer(one: Model, other: Model) -> bool:
    return one.tokenizer.padded_apart().sha256() == other.tokenizer.padded_apart().sha256()


class PPOFeed:
    """Each step's rollout and updates: a function of the seed, the step, the parameters and
    kl_coef.
    """

    def __init__(
        self, cfg: PPOConfig, ctx: Context, policy: Model, judge: Model, value: Model
    ) -> None:
        self.cfg = cfg
        self.ctx = ctx
        self.judge = judge
        self.by_ids = same_tokenizer(judge, policy)  # else by their text, in the judge's own tokens
        self.policy = policy
        self.reference = reference_params(policy, ctx.backend)
        room = cfg.max_new_tokens
        wanted = DataSpec.of(cfg)
        self.asked = prompts(wanted, "train", policy, room, ctx.data)
        self.held = prompts(wanted, "validation", policy, room, ctx.data)[-HELD:]
        self.sampler = Sampler(
            policy,
            ctx.backend,
            temperature=cfg.temperature,
            max_new_tokens=room,
            seed=cfg.seed,
        )
        self.scorer = Scorer(policy, ctx.backend, temperature=cfg.temperature)
        self.critic = Scorer(value, ctx.backend)
        self.marker = Scorer(judge, ctx.backend)
        self.chats = ChatsBeside(cfg, policy, ctx)
        self.log = GroupLog(ctx.folder.groups)
        self.leash = KLController(cfg)
        self.no_signal = NoSignal(ctx.warn_sick)

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        now = params()
        chosen = prompt_indices(self.cfg.prompts, number, len(self.asked), self.cfg.seed, "prompts")
        asked = [self.asked[i] for i in chosen]
        ids = [prompt.ids for prompt in asked]
        self._set_rows_at_once(ids)
        times = StepTimes()
        with times.of("sampling"):
            sampled = self.sampler.draw(now, ids, 1, stage="ppo", step=number)
        found = self.rollout(now, asked, sampled, times)
        self.no_signal.look_at_scores(step + 1, found.scores)
        advantages = [float(row.mean()) for row in found.tokens["advantages"]]
        groups = to_records(asked, sampled, {"score": found.scores}, found.scores, advantages)
        numbers = {
            **found.numbers,
            **length_metrics(sampled),
            **times.numbers(),
            "kl_coef": self.leash.coef,
            "groups": self.log.append(step + 1, groups),
        }
        self.leash.pull(found.numbers["kl"])
        return StepPlan(
            self.updates(number, sampled, found),
            -(-len(sampled) // self.cfg.minibatches),
            numbers,
            count_tokens(sampled),
            ("reward", "kl", "completion_length"),
        )

    def _set_rows_at_once(self, prompts: Sequence[Sequence[int]]) -> None:
        """Takes over what is in force, for writing and for scoring."""
        longest = max(len(prompt) for prompt in prompts)
        context = longest + self.cfg.max_new_tokens
        self.sampler.batch_size = decode_batch(self.ctx, self.policy, context)
        for scorer in (self.scorer, self.critic, self.marker):
            scorer.batch_size = scoring_batch(self.ctx)

    def rollout(
        self,
        params: Params,
        asked: Sequence[Prompt],
        sampled: Sequence[Sampled],
        times: StepTimes,
    ) -> Rollout:
        """The completions with all that the updates learn from them."""
        rows = rows_of(sampled)
        with times.of("scoring"):
            old = self.scorer.logprobs(params, rows)
            ref = self.scorer.logprobs(self.reference, rows)
            values = self.critic.values(sub(params, "value."), rows)
        with times.of("rewards"):
            scores = self.scores(asked, sampled)
        return assemble(old, ref, values, scores, self.leash.coef, self.cfg.gamma, self.cfg.lam)

    def scores(self, asked: Sequence[Prompt], sampled: Sequence[Sampled]) -> NDArray[np.float32]:
        """(N,) the reward model's scores, less where a completion did not stop. Raises UserError
        for one that is not a number: no advantage of the whole rollout would be one."""
        most = self.judge.cfg.max_position_embeddings
        texts = []
        for prompt, one in zip(asked, sampled, strict=True):
            texts.append(prompt_and_completion(self._judged_row(prompt, one))[-most:])
        found = self.marker.scores(self.judge.params, texts)
        if not np.isfinite(found).all():
            raise UserError(
                f"{(~np.isfinite(found)).sum()} of {len(found)} scores are not finite",
                where=self.cfg.reward_model,
                hint="train the reward model anew, with a lower learning_rate",
            )
        endless = np.array([not one.stopped for one in sampled])
        return (found - self.cfg.missing_eos_penalty * endless).astype(np.float32)

    def _judged_row(self, prompt: Prompt, one: Sampled) -> Row:
        """A completion after its prompt, in the reward model's tokens."""
        if self.by_ids:
            return one.row
        text = thought_opening(prompt.ids, self.sampler.tokenizer) + one.text
        return completion_row(prompt.messages, text, self.judge.tokenizer)

    def updates(self, step: int, sampled: Sequence[Sampled], found: Rollout) -> list[Cut]:
        """A step's updates, each of some completions; each epoch deals the completions anew."""
        cfg = self.cfg
        out: list[Cut] = []
        for epoch in range(cfg.epochs):
            order = permutation(cfg.seed, f"ppo {step}", epoch, len(sampled))
            for part in np.array_split(order, cfg.minibatches):
                number = step * cfg.epochs * cfg.minibatches + len(out)
                out.append(partial(self._minibatch, sampled, part.tolist(), found, number))
        return out

    def _minibatch(
        self,
        sampled: Sequence[Sampled],
        chosen: Sequence[int],
        found: Rollout,
        number: int,
        micro_batch: int | None,
    ) -> list[Batch]:
        """The `chosen` completions in batches of `micro_batch`, with their common denominator, and
        the chats of the update of this number.
        """
        network = self.scorer.network
        start = network.decoder_start_token_id
        prompt_rows = 1 if network.shares_prompts else NO_SHARING
        size = min(micro_batch or len(chosen), len(chosen))
        made = micro_batches(sampled, chosen, size, found.tokens, start, prompt_rows)
        batches = [batch for batch, _ in made]
        total = np.asarray(count_targets(batches), np.float32)
        for batch in batches:
            batch["denominator"] = total
        self.chats.add(batches, number)
        return batches

    def watch(self, params: Params) -> dict[str, float]:
        """The mean score of completions of held-out prompts, and their distance to the reference.
        The completions of a few of the prompts, always the same, go to the groups' file."""
        figures, sampled, scores = self._measured(params)
        place = self.log.append_held_out(self.held, sampled, {"score": scores}, scores)
        return {**figures, "groups": place}

    def _measured(
        self, params: Params
    ) -> tuple[dict[str, float], list[Sampled], NDArray[np.float32]]:
        """The figures, the completions, (N,) their scores. The random numbers are the same at every
        measurement.
        """
        ids = [prompt.ids for prompt in self.held]
        self._set_rows_at_once(ids)
        sampled = self.sampler.draw(params, ids, 1, stage="ppo held")
        rows = rows_of(sampled)
        now = self.scorer.logprobs(params, rows)
        ref = self.scorer.logprobs(self.reference, rows)
        scores = self.scores(self.held, sampled)
        figures = {
            "score": float(scores.mean()),
            "kl": mean_kl(now, ref),
            **length_metrics(sampled),
            "prompts": len(sampled),
        }
        return figures, sampled, scores

    def finished(self, step: int) -> str:
        return self.leash.diagnosis

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.leash.coef}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        self.leash.coef = float(kept["kl_coef"])


@dataclass(frozen=True)
class Rollout:
    """What the updates of a step learn from. `tokens`: name in the batch → for each completion one
    value per token; `scores` (N,) are the completions', `numbers` what the step's event tells."""

    tokens: Mapping[str, Sequence[Floats]]
    scores: NDArray[np.float32]
    numbers: dict[str, float]


def assemble(
    old: Sequence[Floats],
    ref: Sequence[Floats],
    values: Sequence[Floats],
    scores: NDArray[np.float32],
    kl_coef: float,
    gamma: float,
    lam: float,
) -> Rollout:
    """Rewards (−kl_coef·(log π − log π_ref) per token, the score at the last), GAE, whitened
    advantages.
    """
    apart = []
    for own, other in zip(old, ref, strict=True):
        apart.append(np.asarray(own, np.float64) - np.asarray(other, np.float64))
    rewards = [-kl_coef * row for row in apart]
    for row, score in zip(rewards, scores, strict=True):
        row[-1] += float(score)
    advantages, returns = gae(rewards, values, gamma, lam)
    known = np.concatenate(returns)
    seen = np.concatenate([np.asarray(row, np.float64) for row in values])
    spread = 0.0
    if len(scores) > 1:
        spread = float(scores.std(ddof=1))
    numbers = {
        "reward": float(scores.mean()),
        "reward_std": spread,
        "kl": float(np.mean([row.sum() for row in apart])),
        "return": float(np.mean([row.sum() for row in rewards])),
        "explained_variance": explained_variance(known, seen),
    }
    tokens = {
        "old_logps": old,
        "old_values": values,
        "advantages": [row.astype(np.float32) for row in whiten(advantages)],
        "returns": [row.astype(np.float32) for row in returns],
    }
    return Rollout(tokens, scores, numbers)


class KLController:
    """kl_coef from step to step. With a target it is steered as in Ziegler 2019: per step by a tenth
    of how far the distance is off, relative to the target and at most a fifth."""

    def __init__(self, cfg: PPOConfig) -> None:
        self.cfg = cfg
        self.coef = cfg.kl_coef
        self.diagnosis = ""

    def pull(self, kl: float) -> None:
        """After a rollout whose completions were `kl` nats away from the reference."""
        if self.cfg.target_kl:
            off = min(max(kl / self.cfg.target_kl - 1, -0.2), 0.2)
            self.coef *= 1 + 0.1 * off
        if kl > self.cfg.most_kl:
            self.diagnosis = (
                f"the policy has collapsed: its completions are {kl:.1f} nats away from the reference, "
                f"more than most_kl {self.cfg.most_kl:g}; raise kl_coef or lower learning_rate"
            )
