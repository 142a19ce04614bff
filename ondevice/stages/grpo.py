"""Stage 4: reasoning from verifiable rewards (GRPO, Shao 2024).

One step is one rollout: a group of completions for each prompt, read once; rewards that can be
checked; an advantage over the group; `updates` updates. Nothing but right answers is shown: how to
reach them is the policy's to find.

Chosen: the trained weights themselves write the rollout, so that no second engine gives other
probabilities (TRL corrects for vLLM's by importance sampling). The five `loss_type`s are one
objective with other denominators (`set_denominators`); as in TRL the default is `dapo` and the
distance to the start is off (`beta` 0). A group without spread has advantages of 0 and is kept: a
step has one shape.
Left out: old rollouts that are learned from again, and rollouts made while training goes on. A step
would then follow from more than the parameters, the seed and its number, and no resume would be
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from ondevice.config.preference import GRPOConfig
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.mixture import mixture, one_after_another
from ondevice.data.packing import Batch
from ondevice.datasets.prompts import (
    Prompt,
    Prompts,
    last_prompts,
    stored_prompts,
    thought_opening,
    without_heldout,
)
from ondevice.datasets.spec import DataSpec, corpus_of, report_rejected
from ondevice.inference.fixed_prompts import sampler
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.rewards.problems import Problem, file_problems, problems, some_of
from ondevice.rewards.scorer import Rewards, Scores
from ondevice.rl.advantages import group_advantages, without_spread
from ondevice.rl.micro_batches import (
    Floats,
    held_out,
    length_metrics,
    micro_batch_size,
    micro_batches,
    prompt_indices,
    repeat_per_token,
)
from ondevice.rl.rollout import Sampled, Sampler
from ondevice.rl.rollout_log import GroupLog, to_records
from ondevice.runs.context import Context, StageResult
from ondevice.seam.ops import Params
from ondevice.stages.no_signal import NoSignal
from ondevice.stages.tuning import load_start, with_adapter
from ondevice.training.heldout_metrics import BestMetric
from ondevice.training.loop import fit
from ondevice.training.losses import grpo_loss
from ondevice.training.sequence_logprobs import Scorer
from ondevice.training.step_source import StepPlan

HELD = 64  # held-out problems of a measurement
GOLDS = 2000  # problems whose right answers are looked at before the run
RIGHT = "correct"  # the reward that says what is right


def run(cfg: GRPOConfig, ctx: Context) -> StageResult:
    policy = with_adapter(require_generative(load_start(cfg.model, cfg, ctx)), cfg, ctx)
    require_chat_template(policy)
    with Rewards(
        cfg.judges(),
        cfg.reward_weights,
        cfg.answer,
        cfg.reward_file,
        cfg.reward_timeout,
        ctx.folder.path / "rewards.log",
    ) as rewards:
        feed = GRPOFeed(cfg, ctx, policy, rewards)
        loss = partial(
            grpo_loss,
            model=policy.network,
            clip_low=cfg.clip,
            clip_high=cfg.clip_high,
            beta=cfg.beta,
            sequence=cfg.loss_type == "gspo",
            temperature=cfg.temperature,
            checkpoint=cfg.checkpointing,
        )
        params = fit(
            policy,
            loss,
            feed,
            feed.watch,
            ctx,
            cfg,
            sample=sampler(policy, ctx),
            better=feed.better,
        )
        if feed.no_signal.steps >= cfg.steps:
            ctx.warn(f"none of the {cfg.steps} steps taught anything")
        notes = [f"rewards: {rewards.told()}"]
    return StageResult(policy.with_params(params), {"held_out": held_out(ctx)}, notes=notes)


class GRPOFeed:
    """Each step's rollout and updates: a function of the seed, the step and the parameters."""

    def __init__(self, cfg: GRPOConfig, ctx: Context, policy: Model, rewards: Rewards) -> None:
        self.cfg, self.ctx, self.rewards = cfg, ctx, rewards
        self.reference = policy.params
        self.asked, self.held, columns = self._asked(policy)
        rewards.check(columns)
        for one in rewards.check_answers(
            asked.known for asked in chain(islice(self.asked, GOLDS), self.held)
        ):
            ctx.warn(
                f"{one.text} can be given by no completion in the form {cfg.answer!r} (such as "
                f"{one.example[:60]!r}): the reward {one.reward} cannot teach them"
            )
        self.no_signal = NoSignal(ctx.warn)
        self.sampler = Sampler(
            policy,
            ctx.backend,
            temperature=cfg.temperature,
            max_new_tokens=cfg.max_new_tokens,
            seed=cfg.seed,
            batch_size=cfg.rollout_batch,
        )
        self.greedy = Sampler(
            policy,
            ctx.backend,
            temperature=0.0,
            max_new_tokens=cfg.max_new_tokens,
            seed=cfg.seed,
            batch_size=cfg.rollout_batch,
        )
        self.scorer = Scorer(
            policy, ctx.backend, temperature=cfg.temperature, batch_size=cfg.batch_size
        )
        self.log = GroupLog(ctx.folder.groups)
        self.better = BestMetric("accuracy" if RIGHT in rewards.weights else "reward", higher=True)
        ctx.say(f"{ctx.name}: rewards {rewards.told()}")
        if rewards.unused:
            ctx.warn(
                f"{', '.join(rewards.unused)} of {cfg.reward_file}: not used, for a reward takes `completions`"
            )
        ctx.events.emit(
            "data", rewards=rewards.weights, problems=len(self.asked), held_problems=len(self.held)
        )
        ctx.say(
            f"{ctx.name}: {len(self.asked):,} problems to learn from, {len(self.held):,} held out"
        )

    def plan_step(self, step: int, params: Callable[[], Params], number: int) -> StepPlan:
        cfg, now = self.cfg, params()
        asked = [
            self.asked[i]
            for i in prompt_indices(cfg.prompts, number, len(self.asked), cfg.seed, "problems")
        ]
        sampled = self.sampler.draw(
            now, [a.ids for a in asked], cfg.group_size, stage="grpo", step=number
        )
        scores = self.score(asked, sampled, cfg.group_size)
        totals = scores.total.reshape(len(asked), cfg.group_size)
        scale = "none" if cfg.loss_type == "dr_grpo" else cfg.scale_rewards
        advantages = group_advantages(totals, scale).reshape(-1)
        self.no_signal.look(
            step + 1, scores.by_name, scores.total, advantages, self._learned(sampled)
        )
        numbers = {
            **reward_metrics(scores, totals),
            **length_metrics(sampled),
            "groups": self.log.append(
                step + 1,
                to_records(
                    asked,
                    sampled,
                    scores.by_name,
                    scores.total,
                    advantages,
                    cfg.answer,
                    self.sampler.tokenizer,
                ),
            ),
        }
        return StepPlan(
            self.updates(now, sampled, advantages),
            numbers,
            sum(len(s.ids) for s in sampled),
            tuple(dict.fromkeys(("reward", self.better.name, "completion_length"))),
        )

    def score(self, asked: Sequence[Prompt], sampled: Sequence[Sampled], each: int) -> Scores:
        """The rewards of `each` completions a prompt; what goes wrong with one is told as a
        warning.
        """
        of = [one for one in asked for _ in range(each)]
        names = {name for one in asked for name in one.known}
        columns: dict[str, list[Any]] = {
            name: [one.known.get(name) for one in of] for name in names
        }
        columns |= {
            "completion_ids": [s.ids for s in sampled],
            "truncated": [not s.stopped for s in sampled],
        }
        scores = self.rewards.score(
            [one.text for one in of],
            [s.text for s in sampled],
            {**columns, "max_new_tokens": self.cfg.max_new_tokens},
            [thought_opening(one.ids, self.sampler.tokenizer) for one in of],
        )
        for warning in scores.warnings:
            self.ctx.warn(warning)
        return scores

    def updates(
        self, params: Params, sampled: Sequence[Sampled], advantages: Floats
    ) -> list[list[Batch]]:
        cfg = self.cfg
        rows = [s.row for s in sampled]
        tokens = {
            "advantages": repeat_per_token(advantages, sampled),
            "learned": repeat_per_token(self._learned(sampled), sampled),
        }
        if cfg.updates > 1:  # else they are the training forward's own, and cost nothing
            tokens["old_logps"] = self.scorer.logprobs(params, rows)
        if cfg.beta:
            tokens["ref_logps"] = self.scorer.logprobs(self.reference, rows)
        made = list(
            micro_batches(
                sampled,
                range(len(sampled)),
                micro_batch_size(cfg, len(sampled)),
                tokens,
                self.scorer.network.decoder_start_token_id,
            )
        )
        for batch, _ in made:
            batch["weights"] *= batch.pop("learned")
        set_denominators(cfg, [batch for batch, _ in made], len(sampled))
        return [[batch for batch, _ in made] for _ in range(cfg.updates)]

    def _learned(self, sampled: Sequence[Sampled]) -> Floats:
        """(N,) 0 for a completion that is left out."""
        return np.array([float(s.stopped or not self.cfg.mask_truncated) for s in sampled])

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
        )
        return {**figures, "groups": place}

    def _measured(self, params: Params) -> tuple[dict[str, float], list[Sampled], Scores]:
        sampled = self.greedy.draw(params, [a.ids for a in self.held], 1, stage="grpo held")
        scores = self.score(self.held, sampled, 1)
        return (
            {
                **accuracy(scores),
                "reward": _mean(scores.total),
                **length_metrics(sampled),
                "problems": len(sampled),
            },
            sampled,
            scores,
        )

    def finished(self, step: int) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """A rollout follows from the parameters and the step's number."""

    def _asked(self, policy: Model) -> tuple[Sequence[Prompt], Sequence[Prompt], set[str]]:
        """Problems to learn from, those held out, and the columns of all."""
        wanted = DataSpec.of(self.cfg).for_template(policy.tokenizer)
        held_of = wanted.held() or wanted.alone()
        each = -(-HELD // len(held_of))
        held = [
            self._of(one, "all" if wanted.validation else "validation", each, policy)
            for one in held_of
        ]
        train = without_heldout(
            [
                self._of(one, "train", one.limit, policy, whole=bool(wanted.validation))
                for one in wanted.alone()
            ],
            held,
            wanted,
            "problem",
            self.ctx,
        )
        names = {name for part in train for one in part for name in one.known}
        return mixture(train, wanted.weights, wanted.seed), one_after_another(held), names

    def _of(
        self,
        one: DataSpec,
        part: Literal["train", "validation", "all"],
        count: int,
        policy: Model,
        whole: bool = False,
    ) -> Prompts:
        """At most `count` problems (0: all) of one source; of a person's own the last tenth is
        `validation`, and in train only where `whole`."""
        seed, room, ctx = self.cfg.seed, self.cfg.max_new_tokens, self.ctx

        def asked(found: Iterable[Problem]) -> Iterator[Prompt]:
            return (
                Prompt(p.chat, prompt_ids(p.chat, policy.tokenizer), reward_columns(p))
                for p in found
            )

        if one.data.startswith("gym:") or corpus_of(one.data, ctx.corpus) is not None:
            part = "train" if part == "train" else "validation"  # they have their own
            return stored_prompts(
                one,
                lambda: asked(problems(one.data, part, count, seed, ctx.corpus)),
                f"{part} problems {count} {seed}",
                policy,
                room,
                ctx,
            )
        uses, answered = self.rewards.uses(), "answer" in self.rewards.needed()

        def own(one: DataSpec) -> Prompts:
            read = partial(
                file_problems,
                one.data,
                partial(report_rejected, ctx=ctx),
                one.limit,
                uses,
                answered,
                one.split,
                one.reading,
                one.template,
            )
            return stored_prompts(
                one,
                lambda: asked(read()),
                "problems" if answered else "problems, answered or not",
                policy,
                room,
                ctx,
            )

        if part == "all" or whole:
            found = own(one)
            if whole:
                return found
            return found.only(some_of(len(found), count, seed))
        warn = ctx.warn if part == "train" else None  # the other part says it no second time
        parts: tuple[Prompts, Prompts] = one.in_two(
            own, partial(last_prompts, what="problem", warn=warn)
        )
        if part == "train":
            return parts[0]
        held = parts[1]
        return held.only(some_of(len(held), count, seed))


def reward_columns(problem: Problem) -> dict[str, Any]:
    """What a reward may read of a problem. A gym's task judges without stating an answer."""
    answer = {"answer": problem.answer} if problem.answer or "gym" in problem.columns else {}
    return {**problem.columns, **answer, "kind": problem.kind}


def set_denominators(cfg: GRPOConfig, batches: Sequence[Batch], completions: int) -> None:
    """Fills `scale` (K,) and `denominator`: what each loss type divides by (TRL's `loss_type`; Yu
    2025, DAPO; Liu 2025, Dr. GRPO). Completions of which nothing is learned count as rows, not as
    tokens."""
    total = sum(float(b["weights"].sum()) for b in batches)
    for batch in batches:
        weights, member = batch["weights"], batch["member"]
        scale, denominator = weights, max(total, 1.0)
        if cfg.loss_type in ("grpo", "gspo"):
            lengths = np.maximum((member * weights).sum(1), 1.0)
            scale, denominator = weights * (member / lengths[:, None]).sum(0), float(completions)
        elif cfg.loss_type == "bnpo":
            denominator = max(float(weights.sum()), 1.0) * len(batches)
        elif cfg.loss_type == "dr_grpo":
            denominator = float(completions * cfg.max_new_tokens)
        batch["scale"] = scale.astype(np.float32)
        batch["denominator"] = np.asarray(denominator, np.float32)


def reward_metrics(scores: Scores, totals: Floats) -> dict[str, Any]:
    """What a step's event says of the rewards: all of them, each by itself, and how many groups
    teach nothing.
    """
    spreads = np.array(
        [np.nanstd(group, ddof=1) for group in totals if np.isfinite(group).sum() > 1]
    )
    return {
        "reward": _mean(scores.total),
        "reward_std": _mean(spreads),
        "zero_spread": float(without_spread(totals).mean()),
        **accuracy(scores),
        **{f"reward/{name}": _mean(values) for name, values in scores.by_name.items()},
    }


def accuracy(scores: Scores) -> dict[str, float]:
    """{"accuracy"}: the share of right answers among those that were judged; empty where nothing
    says what is right: a total of 1 is no right answer."""
    if RIGHT not in scores.by_name:
        return {}
    judged = scores.by_name[RIGHT][np.isfinite(scores.by_name[RIGHT])]
    return {"accuracy": float(np.mean(judged == 1.0)) if len(judged) else float("nan")}


def _mean(values: Floats) -> float:
    if np.isfinite(values).any():
        return float(np.nanmean(values))
    return float("nan")
