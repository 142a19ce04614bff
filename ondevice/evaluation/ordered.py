"""What is measured after every stage of a recipe whose exam has data of its own: one answer at
temperature 1 to each of its held-out prompts, judged by rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.files import digest
from ondevice.config.load import to_mapping
from ondevice.config.recipe import ExamConfig
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.completion_batches import context_length
from ondevice.datasets.spec import check_rejected
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import Completion
from ondevice.inference.together import write_together
from ondevice.models.model import Model
from ondevice.models.network import is_generative
from ondevice.rewards.problems import Problem, file_problems
from ondevice.rewards.scorer import Rewards
from ondevice.seam.protocols import Backend

ROWS = 128  # answers written at the same time


class OrderedExam:
    """The exam of `cfg.data`. A model that writes no answers, or has no chat template, takes none.
    Raises UserError for a reward that there is not."""

    def __init__(self, cfg: ExamConfig) -> None:
        self.cfg = cfg
        self.problems = cache(self._read)
        with Rewards(cfg.rewards, form=cfg.answer) as rewards:
            self.needed = rewards.needed()

    def _read(self) -> tuple[Problem, ...]:
        """The first prompts of the data, as many as there are to be duels."""
        cfg = self.cfg
        answered = "answer" in self.needed
        rows = file_problems(
            cfg.data, check_rejected, cfg.duels, self.needed, answered=answered, split="test"
        )
        return tuple(rows)

    def to_mapping(self) -> dict[str, Any]:
        """What `stage_exam.exam_of` makes it of again."""
        return {"exam": to_mapping(self.cfg)}

    def digest(self) -> str:
        """A hash of what is asked. Raises UserError for data that cannot be read."""
        return digest([[one.prompt, one.answer, one.columns] for one in self.problems()])

    def __call__(self, model: Model, backend: Backend, cache: Path) -> Mapping[str, Any]:
        """{"points": the weighted sum of the rewards of each answer, "rewards": the mean of each
        reward over the answers that it judges}; nothing of a model that takes no exam."""
        if not is_generative(model.cfg) or model.tokenizer.chat_template is None:
            return {}
        asked, prompts = self._fitting(model)
        if not asked:
            return {}
        sampling = Sampling(max_new_tokens=self.cfg.max_new_tokens, temperature=1.0)
        generator = generator_of(model, backend, sampling)
        written = write_together(generator, model.params, prompts, stage="exam", batch_size=ROWS)
        group = backend.group
        own = list(zip(group.share(asked), group.share(written), strict=True))
        judged = group.join(self._judged(own, model) if own else [])
        points = [total for total, _ in judged]
        means = {name: _mean([by[name] for _, by in judged]) for name in judged[0][1]}
        return {"points": np.nan_to_num(points).tolist(), "rewards": means}

    def _judged(
        self, answered: Sequence[tuple[Problem, Completion]], model: Model
    ) -> list[tuple[float, dict[str, float]]]:
        """(weighted sum, each reward) of each answer, NaN where nothing judges it."""
        asked = [problem for problem, _ in answered]
        columns: dict[str, Any] = {
            "answer": [problem.answer or None for problem in asked],
            "completion_ids": [one.ids for _, one in answered],
            "truncated": [not one.stopped for _, one in answered],
            "max_new_tokens": self.cfg.max_new_tokens,
        }
        with Rewards(self.cfg.rewards, form=self.cfg.answer) as rewards:
            for name in self.needed - {"answer"}:
                columns[name] = [problem.columns.get(name) for problem in asked]
            texts = [model.tokenizer.decode(one.ids) for _, one in answered]
            scores = rewards.score([problem.prompt for problem in asked], texts, columns)
        by_answer = []
        for n, total in enumerate(scores.total.tolist()):
            by_name = {name: float(values[n]) for name, values in scores.by_name.items()}
            by_answer.append((total, by_name))
        return by_answer

    def _fitting(self, model: Model) -> tuple[list[Problem], list[list[int]]]:
        """The problems that leave room for an answer, and their prompts as ids."""
        asked, prompts = [], []
        start = model.network.decoder_start_token_id
        for problem in self.problems():
            ids = prompt_ids(problem.chat, model.tokenizer)
            room = context_length(len(ids), self.cfg.max_new_tokens, start)
            if room <= model.cfg.max_position_embeddings:
                asked.append(problem)
                prompts.append(ids)
        return asked, prompts


def _mean(values: Any) -> float | None:
    if np.isfinite(values).any():
        return float(np.nanmean(values))
    return None
