"""Stage 4: reasoning from verifiable rewards (GRPO, Shao 2024).

One step is one rollout: a group of completions for each prompt, read once; rewards that can be
checked; an advantage over the group; `updates` updates. Nothing but right answers is shown: how to
reach them is the policy's to find.

Chosen: the trained weights themselves write the rollout, so that no second engine gives other
probabilities (TRL corrects for vLLM's by importance sampling). The five `loss_type`s are one
objective with other denominators (`loss_scales`); as in TRL the default is `dapo` and the distance
to the start is off (`beta` 0). A completion whose advantage is 0, as all have in a group without
spread, adds nothing to the gradient: it counts in every denominator and is not computed.
Left out: old rollouts that are learned from again, and rollouts made while training goes on. A step
would then follow from more than the parameters, the seed and its number, and no resume would be
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ondevice.config.auto import is_auto
from ondevice.config.preference import GRPOConfig
from ondevice.data.mixture import Lazy
from ondevice.data.packing import Batch
from ondevice.data.shared_prompts import room_for
from ondevice.datasets.chats_beside import ChatsBeside
from ondevice.datasets.prompts import Prompt
from ondevice.datasets.rewarded import Rewarded
from ondevice.inference.fixed_prompts import held_questions, sampler
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.rewards.isolate import Limits
from ondevice.rewards.scorer import Rewards, Scores
from ondevice.rl.advantages import group_advantages
from ondevice.rl.answer_form import BUILTIN, answer_form
from ondevice.rl.loss_scales import loss_scales
from ondevice.rl.micro_batches import (
    Floats,
    decode_batch,
    group_scoring_batch,
    held_out,
    length_metrics,
    micro_batches,
    prompt_indices,
    repeat_per_token,
)
from ondevice.rl.problem_prompts import ProblemPrompts, Problems
from ondevice.rl.prompt_widths import PromptWidths, whole_room
from ondevice.rl.rollout import Sampled, Sampler, count_tokens, rows_of
from ondevice.rl.rollout_log import GroupLog, to_records
from ondevice.rl.rollout_rewards import (
    RIGHT,
    accuracy,
    gathered,
    judged,
    mean_known,
    reward_metrics,
)
from ondevice.rl.step_times import StepTimes
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend
from ondevice.stages.no_signal import NoSignal
from ondevice.stages.pairs_beside import PairsBeside
from ondevice.stages.settled import prompt_facts, settle
from ondevice.stages.tuning import (
    least_prompt_rows,
    load_start,
    reference_params,
    shares_reference,
    with_adapter,
)
from ondevice.training.heldout_metrics import BestMetric
from ondevice.training.loop import fit
from ondevice.training.losses_beside import with_losses_beside
from ondevice.training.policy_losses import grpo_loss
from ondevice.training.sequence_logprobs import Scorer
from ondevice.training.step_source import Cut, StepPlan

GOLDS = 2000  # problems whose right answers are looked at before the run
NOTHING_LEARNED = {"loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "entropy": None}
"""What a step says of its update where no completion adds to the gradient."""


def rewards_of(cfg: GRPOConfig, log: Path) -> Rewards:
    """The rewards that the settings name; `log` is for what a reward file prints. An answer's form
    that is left to a rule follows from the problems: `Rewards.read_in`. Raises UserError."""
    return Rewards(
        cfg.judges(),
        cfg.reward_weights,
        BUILTIN if is_auto(cfg, "answer") else cfg.answer,
        cfg.reward_file,
        cfg.reward_timeout,
        log,
        Limits(cfg.code_seconds, cfg.code_memory << 20),
        cfg.code_reward == "share",
    )


def run(cfg: GRPOConfig, ctx: Context) -> StageResult:
    policy = with_adapter(start_model(cfg, ctx.backend), cfg, ctx)
    require_chat_template(policy)
    with rewards_of(cfg, ctx.folder.path / "rewards.log") as rewards:
        problems = ProblemPrompts(cfg, ctx.data, policy, rewards).parts()
        form = read_answers(cfg, problems, rewards, ctx)
        facts = partial(prompt_facts, problems[0], "problems", cfg.data, form)
        cfg = settle(cfg, policy, facts, ctx)
        feed = GRPOFeed(cfg, ctx, policy, rewards, problems)
        held = bool(cfg.beta) and shares_reference(policy, ctx.backend)
        own = partial(
            grpo_loss,
            model=policy.network,
            clip_low=cfg.clip,
            clip_high=cfg.clip_high,
            beta=cfg.beta,
            sequence=cfg.loss_type == "gspo",
            temperature=cfg.temperature,
            checkpoint=cfg.checkpointing,
        )
        loss = with_losses_beside(
            own,
            model=policy.network,
            sft_coef=feed.chats.coef,
            pair_coef=feed.pairs.coef,
            pair_beta=cfg.pair_beta,
            checkpoint=cfg.checkpointing,
        )
        params = fit(
            policy,
            loss,
            feed,
            feed.watch,
            ctx,
            cfg,
            sample=sampler(policy, ctx, cfg, partial(held_questions, feed.held, policy.tokenizer)),
            better=feed.better,
            restart=None if held else lambda: start_model(cfg, ctx.backend).params,
        )
        if feed.no_signal.steps >= cfg.steps:
            ctx.warn(f"none of the {cfg.steps} steps taught anything")
        notes = [f"rewards: {rewards.told()}"]
    return StageResult(policy.with_params(params), {"held_out": held_out(ctx.taken)}, notes=notes)


def read_answers(
    cfg: GRPOConfig, problems: Problems, rewards: Rewards, ctx: Context
) -> tuple[str, str]:
    """Has the rewards read answers in the form that is named, or that suits the problems; the form,
    and why. Warns of right answers that no completion can give in it. Raises UserError for problems
    that the rewards cannot judge."""
    asked, held, columns = problems
    rewards.check(columns)
    form = cfg.answer, "named"
    if is_auto(cfg, "answer"):
        form = answer_form(cfg, asked)
    rewards.read_in(form[0])
    for one in rewards.check_answers(prompt.known for prompt in chain(islice(asked, GOLDS), held)):
        ctx.warn(
            f"{one.text} can be given by no completion in the form {form[0]!r} (such as "
            f"{one.example[:60]!r}): the reward {one.reward} cannot teach them"
        )
    return form


class Updates(NamedTuple):
    """A step's updates, a cut of all its completions, and how many of them the updates compute."""

    cuts: list[Cut]
    everything: Cut
    completions: int


def start_model(cfg: GRPOConfig, backend: Backend) -> Model:
    """The model that the stage begins from. Raises UserError for one that writes no text."""
    return require_generative(load_start(cfg.model, cfg, backend))


class GRPOFeed:
    """Each step's rollout and updates: a function of the seed, the step and the parameters."""

    def __init__(
        self, cfg: GRPOConfig, ctx: Context, policy: Model, rewards: Rewards, problems: Problems
    ) -> None:
        """`cfg` has no auto; `problems`: what `ProblemPrompts` gives."""
        self.cfg = cfg
        self.ctx = ctx
        self.rewards = rewards
        self.policy = policy
        # read where beta is not 0
        self.reference = reference_params(policy, ctx.backend) if cfg.beta else {}
        self.asked, self.held, _ = problems
        self.no_signal = NoSignal(ctx.warn_sick)
        self.prompt_rows = least_prompt_rows(policy, ctx)
        self.sampler = self._sampler(policy, cfg.temperature)
        self.greedy = self._sampler(policy, 0.0)
        self.scorer = Scorer(policy, ctx.backend, temperature=cfg.temperature)
        self.widths = PromptWidths(
            lambda number: [len(self.asked[i].ids) for i in self._prompts_of(number)],
            len(self.asked),
            cfg.prompts,
            cfg.group_size,
        )
        asked = Lazy(lambda n: self.asked[n].ids, np.arange(len(self.asked)))
        rewarded = Rewarded(asked, policy.tokenizer)
        self.chats = ChatsBeside(cfg, policy, ctx, rewarded)
        self.pairs = PairsBeside(cfg, policy, ctx, rewarded)
        self.log = GroupLog(ctx.folder.groups)
        told = not set(RIGHT).isdisjoint(rewards.weights)
        self.better = BestMetric("accuracy" if told else "reward", higher=True)
        self._tell()

    def _sampler(self, policy: Model, temperature: float) -> Sampler:
        return Sampler(
            policy,
            self.ctx.backend,
            temperature=temperature,
            max_new_tokens=self.cfg.max_new_tokens,
            seed=self.cfg.seed,
        )

    def _tell(self) -> None:
        """Tells the rewards and the problems: people, and an event."""
        cfg = self.cfg
        ctx = self.ctx
        rewards = self.rewards
        ctx.tell(f"rewards {rewards.told()}")
        if rewards.unused:
            ctx.warn(
                f"{', '.join(rewards.unused)} of {cfg.reward_file}: not used, for a reward takes `completions`"
            )
        ctx.events.emit(
            "data", rewards=rewards.weights, problems=len(self.asked), held_problems=len(self.held)
        )
        ctx.tell(f"{len(self.asked):,} problems to learn from, {len(self.held):,} held out")

    def _prompts_of(self, number: int) -> list[int]:
        """The problems of the step of this number."""
        cfg = self.cfg
        return prompt_indices(cfg.prompts, number, len(self.asked), cfg.seed, "problems")

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        cfg = self.cfg
        now = params()
        asked = [self.asked[i] for i in self._prompts_of(number)]
        ids = [prompt.ids for prompt in asked]
        self._set_rows_at_once(self.sampler, ids)
        times = StepTimes()
        with times.of("sampling"):
            sampled = self.sampler.draw(now, ids, cfg.group_size, stage="grpo", step=number)
        scores, logps = self._judged_and_read(now, asked, sampled, times)
        totals = scores.total.reshape(len(asked), cfg.group_size)
        scale = "none" if cfg.loss_type == "dr_grpo" else cfg.scale_rewards
        advantages = group_advantages(totals, scale).reshape(-1)
        updates = self.updates(sampled, advantages, logps, number)
        # from here on nothing is asked of the device: what is told is told once
        self.no_signal.look(
            step + 1, scores.by_name, scores.total, advantages, self._learned(sampled)
        )
        if "correct" in scores.by_name:
            self._look_at_answers(step + 1, asked, sampled)
        groups = to_records(
            asked,
            sampled,
            scores.by_name,
            scores.total,
            advantages,
            cfg.answer,
            self.sampler.tokenizer,
            scores.tests,
        )
        numbers = {
            **reward_metrics(scores, totals),
            **length_metrics(sampled),
            **times.numbers(),
            "groups": self.log.append(step + 1, groups),
        }
        if not (updates.completions or self._beside):
            numbers |= NOTHING_LEARNED
        return StepPlan(
            updates.cuts,
            len(sampled),
            numbers,
            count_tokens(sampled),
            tuple(dict.fromkeys(("reward", self.better.name, "completion_length"))),
            updates.everything,
        )

    def _set_rows_at_once(self, sampler: Sampler, prompts: Sequence[Sequence[int]]) -> None:
        """Takes over what is in force, for writing and for scoring."""
        cfg = self.cfg
        longest = max(len(prompt) for prompt in prompts)
        context = longest + self.cfg.max_new_tokens
        sampler.batch_size = decode_batch(self.ctx, self.policy, context)
        if sampler is self.greedy:
            written = sampler.generator
            written.room = whole_room(written, longest, cfg.max_new_tokens)
            return
        self.widths.set_up(sampler, cfg.max_new_tokens)
        rows = group_scoring_batch(self.ctx, cfg.prompts * cfg.group_size)
        self.scorer.batch_size = rows
        self.scorer.width_of = self.widths.scored(self.ctx.device_batch.micro_batch or rows).of

    def _look_at_answers(
        self, step: int, asked: Sequence[Prompt], sampled: Sequence[Sampled]
    ) -> None:
        """Tells of answers that another form would find; a gym's tasks judge theirs themselves."""
        right = []
        for prompt in asked:
            known = None if prompt.known.get("gym") is not None else prompt.known.get("answer")
            right += [None if known is None else str(known)] * self.cfg.group_size
        texts = [one.text for one in sampled]
        self.no_signal.look_at_answers(step, self.cfg.answer, texts, right)

    def _judged_and_read(
        self,
        params: Params,
        asked: Sequence[Prompt],
        sampled: Sequence[Sampled],
        times: StepTimes,
    ) -> tuple[Scores, dict[str, list[Floats]]]:
        """The rewards, and the log-probabilities that the updates need beside their own. Rewards
        are the processor's, or another process's: they are found while the device reads.
        """
        each = self.cfg.group_size
        if self.cfg.updates == 1 and not self.cfg.beta:
            with times.of("rewards"):
                return self.score(asked, sampled, each), {}
        with ThreadPoolExecutor(1, "rewards") as beside:
            judging = beside.submit(self._judge, asked, sampled, each)
            with times.of("scoring"):
                logps = self._logps(params, sampled)
            with times.of("rewards"):
                scores = self._told(judging.result(), each)
            return scores, logps

    def _logps(self, params: Params, sampled: Sequence[Sampled]) -> dict[str, list[Floats]]:
        """By the policy as it is, where it changes between updates; by the reference, where the
        distance to it counts.
        """
        rows = rows_of(sampled)
        found = {}
        if self.cfg.updates > 1:  # else they are the training forward's own, and cost nothing
            found["old_logps"] = self.scorer.logprobs(params, rows)
        if self.cfg.beta:
            found["ref_logps"] = self.scorer.logprobs(self.reference, rows)
        return found

    def score(self, asked: Sequence[Prompt], sampled: Sequence[Sampled], each: int) -> Scores:
        """The rewards of `each` completions of every prompt; what goes wrong with one is told as a
        warning.
        """
        return self._told(self._judge(asked, sampled, each), each)

    def _told(self, scores: Scores, each: int) -> Scores:
        for warning in scores.warnings:
            self.ctx.warn(warning)
        return gathered(scores, each, self.ctx.group)

    def _judge(self, asked: Sequence[Prompt], sampled: Sequence[Sampled], each: int) -> Scores:
        """Those of this process's share of the prompts."""
        group = self.ctx.group
        if group.several:
            sampled = [one for n, one in enumerate(sampled) if n // each % group.size == group.rank]
            asked = group.share(asked)
        return judged(self.rewards, asked, sampled, each, self.cfg, self.sampler.tokenizer)

    def updates(
        self,
        sampled: Sequence[Sampled],
        advantages: Floats,
        logps: Mapping[str, Sequence[Floats]],
        number: int = 0,
    ) -> Updates:
        """The step's updates, which all learn from the same completions: from those that add to the
        gradient. `logps`: `_logps`'; `number`: the step's, which says what is learned beside them.
        """
        cfg = self.cfg
        rows = rows_of(sampled)
        learned = self._learned(sampled)
        scale, denominator = loss_scales(cfg, sampled, learned)
        tokens = {
            "advantages": repeat_per_token(advantages, sampled),
            "scale": repeat_per_token(scale, sampled),
            **logps,
        }
        start = self.scorer.network.decoder_start_token_id

        def cut(chosen: Sequence[int], micro_batch: int | None) -> list[Batch]:
            batches: list[Batch] = []
            most = min(len(sampled), micro_batch or len(sampled))
            size = most
            if chosen:
                size = room_for([rows[i] for i in chosen], most, start, self.prompt_rows)
            width_of = self.widths.learned(most, cfg.updates, cfg.updates > 1 or cfg.beta > 0).of
            parts = micro_batches(sampled, chosen, size, tokens, start, self.prompt_rows, width_of)
            for batch, _ in parts:
                batch["denominator"] = np.asarray(denominator, np.float32)
                batches.append(batch)
            return batches

        everything = range(len(sampled))
        taught = [i for i in everything if learned[i] and (advantages[i] or cfg.beta)]
        # what is learned beside needs a batch to lie in: one completion that adds nothing
        chosen = taught or ([0] if self._beside else [])
        cuts = []
        for n in range(cfg.updates):
            cuts.append(self._with_beside(partial(cut, chosen), number * cfg.updates + n))
        return Updates(cuts, self._with_beside(partial(cut, everything), number), len(taught))

    @property
    def _beside(self) -> bool:
        """Whether anything is learned beside the rewards."""
        return bool(self.chats.coef or self.pairs.coef)

    def _with_beside(self, cut: Cut, number: int) -> Cut:
        """The update of this number with its chats and pairs."""
        if not self._beside:
            return cut

        def both(micro_batch: int | None) -> list[Batch]:
            batches = cut(micro_batch)
            self.chats.add(batches, number)
            self.pairs.add(batches, number)
            return batches

        return both

    def _learned(self, sampled: Sequence[Sampled]) -> Floats:
        """(N,) 0 for a completion that is left out, 1 for every other."""
        learned = np.ones(len(sampled))
        if self.cfg.mask_truncated:
            for i, one in enumerate(sampled):
                if not one.stopped:
                    learned[i] = 0.0
        return learned

    def watch(self, params: Params) -> dict[str, float]:
        """Greedy answers to held-out problems. Those to a few of them, always the same, go to the
        groups' file.
        """
        figures, sampled, scores = self._measured(params)
        place = self.log.append_held_out(
            self.held,
            sampled,
            scores.by_name,
            scores.total,
            self.cfg.answer,
            self.sampler.tokenizer,
            scores.tests,
        )
        return {**figures, "groups": place}

    def _measured(self, params: Params) -> tuple[dict[str, float], list[Sampled], Scores]:
        """The figures, the answers, their rewards."""
        ids = [prompt.ids for prompt in self.held]
        self._set_rows_at_once(self.greedy, ids)
        sampled = self.greedy.draw(params, ids, 1, stage="grpo held")
        scores = self.score(self.held, sampled, 1)
        figures = {
            **accuracy(scores),
            "reward": mean_known(scores.total),
            **length_metrics(sampled),
            "problems": len(sampled),
        }
        return figures, sampled, scores

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """A rollout follows from the parameters and the step's number."""
