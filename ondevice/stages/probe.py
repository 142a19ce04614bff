"""Whether reasoning from rewards can begin: a model that never earns one learns nothing from them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ondevice.common.clock import ticks
from ondevice.config.auto import is_auto
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import GRPOConfig
from ondevice.data.context import DataContext, silent
from ondevice.models.compute_type import cast_once
from ondevice.models.model import require_chat_template
from ondevice.rl.answer_form import answer_form
from ondevice.rl.micro_batches import prompt_indices
from ondevice.rl.problem_prompts import ProblemPrompts
from ondevice.rl.rollout import Sampler, count_tokens
from ondevice.rl.rollout_rewards import RIGHT, judged
from ondevice.seam.protocols import Backend
from ondevice.stages.grpo import rewards_of, start_model

ANSWERS = 64


@dataclass(frozen=True)
class Probe:
    """Of `answers` at the stage's temperature `rewarded` ones earned a reward: were right, where
    the rewards tell right from wrong. `tokens` were written in `seconds`."""

    answers: int
    rewarded: int
    tokens: int
    seconds: float


def probe(cfg: GRPOConfig, backend: Backend, corpus: CorpusConfig) -> Probe:
    """Has the stage's model answer problems of its data, and judges the answers; nothing is kept.
    Raises UserError as the stage does for a model or data that it cannot use."""
    policy = start_model(cfg, backend)
    require_chat_template(policy)
    count = -(-ANSWERS // cfg.group_size)
    with TemporaryDirectory(prefix="ondevice-") as folder, nullcontext(Path(folder)) as place:
        ctx = DataContext(place, corpus, tell=silent, warn=silent)
        with rewards_of(cfg, place / "rewards.log") as rewards:
            problems, _, columns = ProblemPrompts(cfg, ctx, policy, rewards).parts()
            rewards.check(columns)
            if is_auto(cfg, "answer"):
                rewards.read_in(answer_form(cfg, problems)[0])
            chosen = prompt_indices(count, 0, len(problems), cfg.seed, "problems")
            asked = [problems[i] for i in chosen]
            sampler = Sampler(
                policy,
                backend,
                temperature=cfg.temperature,
                max_new_tokens=cfg.max_new_tokens,
                seed=cfg.seed,
            )
            params = cast_once(policy, policy.params, backend)
            began = ticks()
            ids = [prompt.ids for prompt in asked]
            sampled = sampler.draw(params, ids, cfg.group_size, stage="probe")
            seconds = ticks() - began
            scores = judged(rewards, asked, sampled, cfg.group_size, cfg, policy.tokenizer)
    right = next((name for name in RIGHT if name in scores.by_name), None)
    earned = (scores.total if right is None else scores.by_name[right]) > 0
    return Probe(len(sampled), int(np.count_nonzero(earned)), count_tokens(sampled), seconds)
