"""Problems with known answers, solved by a model: how many greedily, and how many in several tries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.intervals import wilson
from ondevice.config.corpus import CorpusConfig
from ondevice.config.evaluation import EvalConfig
from ondevice.data.rows import Reading
from ondevice.datasets.prompts import thought_opening
from ondevice.datasets.spec import check_rejected
from ondevice.inference.chat import chat_ids
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.inference.together import write_together
from ondevice.models.model import Model, require_chat_template, require_generative
from ondevice.rewards.answers import final_answer, last_code
from ondevice.rewards.problems import Problem, problems
from ondevice.rewards.scorer import Rewards
from ondevice.rewards.unit_tests import BESIDE, COLUMNS
from ondevice.seam.protocols import Backend

Messages = list[dict[str, Any]]
ANY = ("hash", "boxed", "tag", "last_number")
"""Forms that `any` tries, one after the other."""
CODE = "code"
"""The answer is code, and the reward of this name judges it."""
CODE_COLUMNS = (*COLUMNS, *BESIDE)


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
    rows = problems(
        cfg.data,
        "all",
        0,
        cfg.seed,
        CorpusConfig(),
        settle=check_rejected,
        uses=CODE_COLUMNS if cfg.answer == CODE else ("answer", "solution"),
        reading=Reading.of(cfg),
        answered=cfg.answer != CODE,
        tested=cfg.answer == CODE,
    )
    shown = rows[: cfg.shots]
    tested = rows[cfg.shots :][: cfg.limit or None]
    if not tested:
        raise UserError(
            f"{len(rows)} problems are all shown as examples", where="shots", hint="give fewer"
        )
    prompts = [chat_ids(_conversation(cfg.system, shown, problem), model) for problem in tested]
    form = cfg.answer
    if form in ("any", CODE):
        form = "whole"
    if cfg.answer == CODE:
        names: tuple[str, ...] = (CODE,)
    else:
        names = ("correct", "format")
    with Rewards(names, form=form) as rewards:
        rewards.check(_columns(tested))
        unreadable = rewards.check_answers(map(_with_answer, tested))
        exam = _Exam(cfg, model, backend, rewards, tested, prompts)
        greedy = exam.judge(0.0, 1)
        out = _greedy_figures(greedy)
        if unreadable:
            out["unreadable"] = unreadable[0].bad
        # of any other model a prompt that is too long is refused
        if model.network.decoder_start_token_id is not None:
            longest = model.cfg.max_position_embeddings
            out["cut_prompts"] = sum(len(prompt) > longest for prompt in prompts)
        if cfg.tries:
            out |= _pass_figures(exam.judge(1.0, cfg.tries).right, cfg.tries)
    return out


@dataclass(frozen=True)
class _Judged:
    """(problems, samples) bools each: the answer is right; it has the asked form; it was cut at the
    limit."""

    right: NDArray[np.bool_]
    formed: NDArray[np.bool_]
    cut: NDArray[np.bool_]


@dataclass(frozen=True)
class _Exam:
    """Problems, their prompts, and what answers and judges them."""

    cfg: EvalConfig
    model: Model
    backend: Backend
    rewards: Rewards
    asked: Sequence[Problem]
    prompts: Sequence[Sequence[int]]

    def judge(self, temperature: float, samples: int) -> _Judged:
        """Draws `samples` answers to each problem and judges them."""
        sampling = Sampling(self.cfg.max_new_tokens, temperature, seed=self.cfg.seed)
        generator = generator_of(self.model, self.backend, sampling)
        drawn = write_together(
            generator, self.model.params, self.prompts, stage="eval", samples=samples
        )
        texts = [self.model.tokenizer.decode(completion.ids) for completion in drawn]
        own = self.backend.group.share(range(len(self.asked)))
        of_own = [texts[i * samples : (i + 1) * samples] for i in own]
        if own:
            judged = self._scored(own, list(chain.from_iterable(of_own)), samples)
        else:
            judged = ([], [])
        right, formed = (self.backend.group.join(column) for column in judged)
        cut = [not completion.stopped for completion in drawn]
        shape = (len(self.asked), samples)
        return _Judged(np.array(right), np.array(formed), np.array(cut).reshape(shape))

    def _scored(
        self, places: Sequence[int], texts: Sequence[str], samples: int
    ) -> tuple[list[list[bool]], list[list[bool]]]:
        """(right, in the asked form) of each of the `samples` answers to these problems."""
        rows: list[Problem] = []
        openings: list[str] = []
        for i in places:
            rows += [self.asked[i]] * samples
            openings += [thought_opening(self.prompts[i], self.model.tokenizer)] * samples
        if self.cfg.answer == "any":
            texts = _found_answers(openings, texts)
            openings = []
        chats = [problem.prompt for problem in rows]
        scores = self.rewards.score(chats, texts, _columns(rows), openings)
        shape = (len(places), samples)
        if self.cfg.answer == CODE:
            right = scores.by_name[CODE]
            turns = map("".join, zip(openings, texts, strict=True))
            formed = np.array([last_code(turn) is not None for turn in turns])
        else:
            right, formed = scores.by_name["correct"], scores.by_name["format"] >= 1
        return (right.reshape(shape) >= 1).tolist(), formed.reshape(shape).tolist()


def _greedy_figures(judged: _Judged) -> dict[str, Any]:
    """What is told of one greedy answer to each problem."""
    count = len(judged.right)
    share = wilson(int(judged.right.sum()), count)
    return {
        "accuracy": share.share,
        "interval": [share.low, share.high],
        "problems": count,
        "answered": float(judged.formed.mean()),
        "truncated": float(judged.cut.mean()),
    }


def _pass_figures(right: NDArray[np.bool_], tries: int) -> dict[str, Any]:
    """{"pass_at": the share of problems that at least one of `tries` answers solves, "tries"}, and
    "pass@k" for each power of two k up to `tries`."""
    counts: list[int] = right.sum(1).tolist()
    out: dict[str, Any] = {"pass_at": sum(n > 0 for n in counts) / len(counts), "tries": tries}
    k = 1
    while k <= tries:
        out[f"pass@{k}"] = sum(pass_at(k, tries, n) for n in counts) / len(counts)
        k *= 2
    return out


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of k answers is right where `right` of `samples` were, without bias (Chen
    2021).
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def any_answer(text: str) -> str | None:
    """The final answer in the first of the forms `ANY` that finds one."""
    for form in ANY:
        answer = final_answer(text, form)
        if answer is not None:
            return answer
    return None


def _found_answers(openings: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The final answer of each text, with what its prompt opens before it; empty where it has
    none."""
    answers = []
    for opening, text in zip(openings, texts, strict=True):
        answers.append(any_answer(opening + text) or "")
    return answers


def _conversation(system: str, shown: Sequence[Problem], question: Problem) -> Messages:
    """Examples as turns that were answered before, then the question. A row's `solution` shows how,
    if it has one.
    """
    messages: Messages = []
    if system:
        messages.append({"role": "system", "content": system})
    for problem in shown:
        answer = str(problem.columns.get("solution") or problem.answer)
        messages += _turns(problem, bool(messages))
        messages.append({"role": "assistant", "content": answer})
    messages += _turns(question, bool(messages))
    return messages


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


def _with_answer(problem: Problem) -> dict[str, Any]:
    """A problem's columns and its answer, None where it has none."""
    return {**problem.columns, "answer": problem.answer or None}


def _columns(rows: Sequence[Problem]) -> dict[str, list[Any]]:
    """As rewards take them, None where a problem has none of that name."""
    names: dict[str, None] = {}
    for problem in rows:
        names.update(dict.fromkeys(problem.columns))
    columns: dict[str, list[Any]] = {
        "answer": [problem.answer for problem in rows],
        "kind": [problem.kind for problem in rows],
    }
    for name in names:
        columns[name] = [problem.columns.get(name) for problem in rows]
    return columns
