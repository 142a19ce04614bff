"""What `eval` measures on a person's own rows: problems with known answers, and pairs of which one was preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ondevice.backend import Backend
from ondevice.config.corpus import CorpusConfig
from ondevice.config.use import EvalConfig
from ondevice.decoding import Sampling, generator_of
from ondevice.errors import UserError
from ondevice.models.folder import Model, load_writer, writer
from ondevice.rating_stats import wilson
from ondevice.rewards.answers import final_answer
from ondevice.rewards.rewards import Rewards
from ondevice.rewards.tasks import Problem, problems
from ondevice.rollout import Scorer
from ondevice.stages.asked import need_template
from ondevice.stages.pairs import read_pairs, to_tokens
from ondevice.stages.reward import quality
from ondevice.talk import chat_ids, find_model

Messages = list[dict[str, Any]]
ANY = ("hash", "boxed", "tag", "last_number")
"""Forms that `any` tries, one after the other."""


def solved(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"accuracy", "interval" (Wilson's 95 %), "problems", "answered" (share with an answer in the asked form),
    "truncated" (share that did not end)} of greedy answers, and with `cfg.tries` {"pass_at", "tries"}: problems that at
    least one of so many answers at temperature 1 solves, and "pass@1", "pass@2", "pass@4" … of fewer.

    The first `cfg.shots` problems are shown with their answers before each of the others, and not asked. Raises
    UserError for data without problems, for a model without a chat template, and where a prompt leaves no room.
    """
    writer(model)
    need_template(model)
    found = problems(cfg.data, "all", 0, cfg.seed, CorpusConfig())
    shown, asked = found[:cfg.shots], found[cfg.shots:][:cfg.limit or None]
    if not asked:
        raise UserError(f"{len(found)} problems are all shown as examples", where="shots", hint="give fewer")
    prompts = [chat_ids(_conversation(cfg.system, shown, problem), model) for problem in asked]
    form = "whole" if cfg.answer == "any" else cfg.answer
    with Rewards(("correct", "format"), form=form) as rewards:
        rewards.check(_columns(asked))

        def judged(temperature: float, samples: int) -> tuple[Any, Any, Any]:
            """(right, in the asked form, cut at the limit): (problems, samples) bools each."""
            generator = generator_of(model, backend, Sampling(cfg.max_new_tokens, temperature, seed=cfg.seed))
            drawn = generator.run(model.params, prompts, stage="eval", samples=samples)
            rows = [problem for problem in asked for _ in range(samples)]
            texts = [model.tokenizer.decode(c.ids) for c in drawn]
            if cfg.answer == "any":
                texts = [any_answer(text) or "" for text in texts]
            scores = rewards.score([p.prompt for p in rows], texts, _columns(rows))
            cut = np.array([not c.stopped for c in drawn])
            right, formed = (scores.by_name[name].reshape(len(asked), samples) >= 1 for name in ("correct", "format"))
            return right, formed, cut.reshape(len(asked), samples)

        right, formed, cut = judged(0.0, 1)
        share = wilson(int(right.sum()), len(asked))
        out = {"accuracy": share.share, "interval": [share.low, share.high], "problems": len(asked),
               "answered": float(formed.mean()), "truncated": float(cut.mean())}
        if cfg.tries:
            counts = [int(n) for n in judged(1.0, cfg.tries)[0].sum(1)]
            out |= {"pass_at": sum(n > 0 for n in counts) / len(counts), "tries": cfg.tries}
            out |= {f"pass@{k}": sum(pass_at(k, cfg.tries, n) for n in counts) / len(counts)
                    for k in (2 ** n for n in range(cfg.tries.bit_length())) if k <= cfg.tries}
    return out


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of k answers is right where `right` of `samples` were, without bias (Chen 2021)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def any_answer(text: str) -> str | None:
    """The final answer in the first of the forms `ANY` that finds one."""
    return next((found for form in ANY if (found := final_answer(text, form)) is not None), None)


def preferred(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """How often a model prefers the chosen response of a pair: {"accuracy", "interval", "pairs", …}. A reward model by
    its score (with margin and calibration error); a model that writes by the log-probability of the whole response and
    ("accuracy_per_token") by its mean over tokens, with `cfg.reference` both less the reference's (DPO's implicit
    reward). Raises UserError for data without pairs, and for a reference that does not fit."""
    need_template(model)
    made = [to_tokens(row, model.tokenizer) for row in read_pairs(cfg.data)]
    fit = [pair for pair in made if pair.length <= model.cfg.max_position_embeddings][:cfg.limit or None]
    if not fit:
        raise UserError(f"none of {len(made)} pairs can be used", where=cfg.data,
                        hint=f"rows of prompt, chosen and rejected, within {model.cfg.max_position_embeddings} tokens")
    left_out = {"too_long": len(made) - len(fit)} if not cfg.limit and len(fit) < len(made) else {}
    scorer = Scorer(model, backend, batch_size=16)
    if model.cfg.num_labels == 1:
        if cfg.reference:
            raise UserError("a reward model needs none", where="reference", hint="leave it out")
        found = quality(model.params, fit, scorer)
        return {**{name: found[name] for name in ("accuracy", "interval", "pairs", "margin", "calibration_error")},
                **left_out}
    writer(model)
    rows = [side for pair in fit for side in (pair.chosen, pair.rejected)]
    logps = scorer.logprobs(model.params, rows)
    if cfg.reference:
        start = load_writer(find_model(cfg.reference), backend)
        if start.tokenizer.sha256() != model.tokenizer.sha256():
            raise UserError("has another tokenizer than the model", where=cfg.reference, hint="name its start")
        theirs = Scorer(start, backend, batch_size=16).logprobs(start.params, rows)
        logps = [one - other for one, other in zip(logps, theirs, strict=True)]
    sums, means = (np.array([how(part) for part in logps]) for how in (np.sum, np.mean))
    right = int((sums[0::2] > sums[1::2]).sum())
    share = wilson(right, len(fit))
    return {"accuracy": share.share, "interval": [share.low, share.high], "pairs": len(fit),
            "accuracy_per_token": float((means[0::2] > means[1::2]).mean()), **left_out}


def _conversation(system: str, shown: Sequence[Problem], asked: Problem) -> Messages:
    """Examples as turns that were answered before, then the question. A row's `solution` shows how, if it has one."""
    messages: Messages = [{"role": "system", "content": system}] if system else []
    for problem in shown:
        messages += [{"role": "user", "content": problem.prompt},
                     {"role": "assistant", "content": str(problem.columns.get("solution") or problem.answer)}]
    return [*messages, {"role": "user", "content": asked.prompt}]


def _columns(rows: Sequence[Problem]) -> dict[str, list[Any]]:
    """As rewards take them, None where a problem has none of that name."""
    names = dict.fromkeys(name for problem in rows for name in problem.columns)
    return {"answer": [problem.answer for problem in rows], "kind": [problem.kind for problem in rows],
            **{name: [problem.columns.get(name) for problem in rows] for name in names}}
