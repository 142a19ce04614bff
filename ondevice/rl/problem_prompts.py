"""The prompts of problems whose answers can be checked: what GRPO learns from and what it holds
out, with the columns that rewards read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from ondevice.config.preference import GRPOConfig
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.context import DataContext
from ondevice.data.mixture import mixture, one_after_another
from ondevice.datasets.prompts import (
    Prompt,
    Prompts,
    last_prompts,
    stored_prompts,
    without_heldout,
)
from ondevice.datasets.spec import DataSpec, corpus_of, report_rejected
from ondevice.models.model import Model
from ondevice.rewards.problems import Problem, file_problems, problems, some_of
from ondevice.rewards.scorer import Rewards

HELD = 64  # held-out problems of a measurement
Part = Literal["train", "validation", "all"]
Problems = tuple[Sequence[Prompt], Sequence[Prompt], set[str]]
"""Those to learn from, those held out, and the columns of all."""


class ProblemPrompts:
    """The problems that the settings name: those to learn from and those held out."""

    def __init__(self, cfg: GRPOConfig, ctx: DataContext, policy: Model, rewards: Rewards) -> None:
        self.cfg = cfg
        self.ctx = ctx
        self.policy = policy
        self.rewards = rewards

    def parts(self) -> Problems:
        """Problems to learn from, those held out, and the columns of all. Raises UserError for data
        that cannot be read or leaves no problem."""
        wanted = DataSpec.of(self.cfg).for_template(self.policy.tokenizer)
        held_of = wanted.held() or wanted.alone()
        each = -(-HELD // len(held_of))
        part: Part = "all" if wanted.validation else "validation"
        heldout = [self.source(one, part, each) for one in held_of]
        train = []
        for one in wanted.alone():
            train.append(self.source(one, "train", one.limit, whole=bool(wanted.validation)))
        train = without_heldout(train, heldout, wanted, "problem", self.ctx)
        names: set[str] = set()
        for prompts in train:
            for prompt in prompts:
                names.update(prompt.known)
        return mixture(train, wanted.weights, wanted.seed), one_after_another(heldout), names

    def source(self, one: DataSpec, part: Part, count: int, whole: bool = False) -> Prompts:
        """At most `count` problems (0: all) of one source; of a person's own the last tenth is
        `validation`, and in train only where `whole`."""
        if one.data.startswith("gym:") or corpus_of(one.data, self.ctx.corpus) is not None:
            # they have a held-out part of their own
            return self._generated(one, "train" if part == "train" else "validation", count)
        if whole:
            return self._read(one)
        if part == "all":
            return self._some(self._read(one), count)
        warn = self.ctx.warn if part == "train" else None  # the other part says it no second time
        split = partial(last_prompts, what="problem", warn=warn)
        parts: tuple[Prompts, Prompts] = one.in_two(self._read, split)
        if part == "train":
            return parts[0]
        return self._some(parts[1], count)

    def _some(self, prompts: Prompts, count: int) -> Prompts:
        return prompts.only(some_of(len(prompts), count, self.cfg.seed))

    def _generated(
        self, one: DataSpec, part: Literal["train", "validation"], count: int
    ) -> Prompts:
        """Problems of the built-in corpus or a gym."""
        seed = self.cfg.seed

        def read() -> Iterable[Problem]:
            return problems(one.data, part, count, seed, self.ctx.corpus)

        return self._stored(one, read, f"{part} problems {count} {seed}")

    def _read(self, one: DataSpec) -> Prompts:
        """Problems of a person's own files, or of a data set of the Hub."""
        answered = "answer" in self.rewards.needed()
        read = partial(
            file_problems,
            one.data,
            partial(report_rejected, ctx=self.ctx),
            one.limit,
            self.rewards.uses(),
            answered,
            one.split,
            one.reading,
            one.template,
            self.rewards.runs_tests,
        )
        kind = "problems" if answered else "problems, answered or not"
        if self.rewards.runs_tests:
            kind += ", tested"
        return self._stored(one, read, kind)

    def _stored(self, one: DataSpec, read: Callable[[], Iterable[Problem]], kind: str) -> Prompts:
        """The prompts of the problems that `read` gives, kept on disk under what they are."""

        def asked() -> Iterator[Prompt]:
            return map(self._prompt, read())

        return stored_prompts(one, asked, kind, self.policy, self.cfg.max_new_tokens, self.ctx)

    def _prompt(self, problem: Problem) -> Prompt:
        ids = prompt_ids(problem.chat, self.policy.tokenizer)
        return Prompt(problem.chat, ids, reward_columns(problem))


def reward_columns(problem: Problem) -> dict[str, Any]:
    """What a reward may read of a problem. A gym's task judges without stating an answer."""
    columns = dict(problem.columns)
    if problem.answer or "gym" in problem.columns:
        columns["answer"] = problem.answer
    columns["kind"] = problem.kind
    return columns
