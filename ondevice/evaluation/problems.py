"""Problems with known answers, solved by a model: how many greedily, and how many in several tries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.config.corpus import CorpusConfig
from ondevice.config.use import EvalConfig
from ondevice.data.rows import Reading
from ondevice.datasets.prompts import thought_opening
from ondevice.datasets.spec import check_rejected
from ondevice.inference.chat import chat_ids
from ondevice.inference.generator import Sampling, generator_of
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.rewards.answers import final_answer
from ondevice.rewards.problems import Problem, problems
from ondevice.rewards.scorer import Rewards
from ondevice.seam.protocols import Backend

Messages = list[dict[str, Any]]
ANY = ("hash", "boxed", "tag", "last_number")
"""Forms that `any` tries, one after the other."""


def solve_rate(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"accuracy", "interval" (Wilson's 95 %), "problems", "unreadable" (right answers that no
    completion in the asked form can give; left out where there is none), "answered" (share with an
    answer in the asked form), "truncated" (share that did not end), of an encoder-decoder
    "cut_prompts" (how many were read in part)} of greedy answers, and with `cfg.tries` {"pass_at",
    "tries"}: problems that at least one of so many answers at temperature 1 solves, and "pass@1",
    "pass@2", "pass@4" … of fewer.

    The first `cfg.shots` problems are shown with their answers before each of the others, and not
    asked. Raises UserError for data without problems, for a model without a chat template, and
    where a prompt leaves no room.
    """
    require_generative(model)
    require_chat_template(model)
    found = problems(
        cfg.data,
        "all",
        0,
        cfg.seed,
        CorpusConfig(),
        settle=check_rejected,
        uses=("answer", "solution"),
        reading=Reading.of(cfg),
    )
    shown, asked = found[: cfg.shots], found[cfg.shots :][: cfg.limit or None]
    if not asked:
        raise UserError(
            f"{len(found)} problems are all shown as examples", where="shots", hint="give fewer"
        )
    prompts = [chat_ids(_conversation(cfg.system, shown, problem), model) for problem in asked]
    form = "whole" if cfg.answer == "any" else cfg.answer
    with Rewards(("correct", "format"), form=form) as rewards:
        rewards.check(_columns(asked))
        unreadable = rewards.check_answers({**p.columns, "answer": p.answer or None} for p in asked)

        def judged(temperature: float, samples: int) -> tuple[Any, Any, Any]:
            """(right, in the asked form, cut at the limit): (problems, samples) bools each."""
            generator = generator_of(
                model, backend, Sampling(cfg.max_new_tokens, temperature, seed=cfg.seed)
            )
            drawn = generator.run(model.params, prompts, stage="eval", samples=samples)
            rows = [problem for problem in asked for _ in range(samples)]
            texts = [model.tokenizer.decode(c.ids) for c in drawn]
            openings = [
                thought_opening(ids, model.tokenizer) for ids in prompts for _ in range(samples)
            ]
            if cfg.answer == "any":
                texts, openings = (
                    [any_answer(o + t) or "" for o, t in zip(openings, texts, strict=True)],
                    [],
                )
            scores = rewards.score([p.prompt for p in rows], texts, _columns(rows), openings)
            cut = np.array([not c.stopped for c in drawn])
            right, formed = (
                scores.by_name[name].reshape(len(asked), samples) >= 1
                for name in ("correct", "format")
            )
            return right, formed, cut.reshape(len(asked), samples)

        right, formed, cut = judged(0.0, 1)
        share = wilson(int(right.sum()), len(asked))
        out = {
            "accuracy": share.share,
            "interval": [share.low, share.high],
            "problems": len(asked),
            "answered": float(formed.mean()),
            "truncated": float(cut.mean()),
        }
        if unreadable:
            out["unreadable"] = unreadable[0].bad
        if (
            model.network.decoder_start_token_id is not None
        ):  # of any other model a prompt that is too long is refused
            longest = model.cfg.max_position_embeddings
            out["cut_prompts"] = sum(len(prompt) > longest for prompt in prompts)
        if cfg.tries:
            counts = [int(n) for n in judged(1.0, cfg.tries)[0].sum(1)]
            out |= {"pass_at": sum(n > 0 for n in counts) / len(counts), "tries": cfg.tries}
            out |= {
                f"pass@{k}": sum(pass_at(k, cfg.tries, n) for n in counts) / len(counts)
                for k in (2**n for n in range(cfg.tries.bit_length()))
                if k <= cfg.tries
            }
    return out


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of k answers is right where `right` of `samples` were, without bias (Chen
    2021).
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def any_answer(text: str) -> str | None:
    """The final answer in the first of the forms `ANY` that finds one."""
    return next((found for form in ANY if (found := final_answer(text, form)) is not None), None)


def _conversation(system: str, shown: Sequence[Problem], asked: Problem) -> Messages:
    """Examples as turns that were answered before, then the question. A row's `solution` shows how,
    if it has one.
    """
    messages: Messages = [{"role": "system", "content": system}] if system else []
    for problem in shown:
        messages += [
            *_turns(problem, bool(messages)),
            {
                "role": "assistant",
                "content": str(problem.columns.get("solution") or problem.answer),
            },
        ]
    return [*messages, *_turns(asked, bool(messages))]


def _turns(problem: Problem, later: bool) -> Messages:
    """A problem's chat; a system prompt of its own has no place in the middle of a conversation.
    Raises UserError.
    """
    if later and problem.chat[0]["role"] == "system":
        raise UserError(
            "problems with a system prompt of their own cannot follow anything",
            where="shots",
            hint="leave shots and system out",
        )
    return problem.chat


def _columns(rows: Sequence[Problem]) -> dict[str, list[Any]]:
    """As rewards take them, None where a problem has none of that name."""
    names = dict.fromkeys(name for problem in rows for name in problem.columns)
    return {
        "answer": [problem.answer for problem in rows],
        "kind": [problem.kind for problem in rows],
        **{name: [problem.columns.get(name) for problem in rows] for name in names},
    }
