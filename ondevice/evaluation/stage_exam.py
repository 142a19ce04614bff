"""The exam that is taken after every stage: on the built-in corpus, or on data of a recipe's own. What
it asks follows from a mapping, so that several processes can take it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.recipe import ExamConfig
from ondevice.evaluation.held_out import EvalSuite, builtin_exam, measure
from ondevice.evaluation.ordered import OrderedExam
from ondevice.models.model import Model
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.seam.protocols import Backend


class BuiltinExam:
    """That of the built-in corpus: its held-out texts in rows of `sequence_length`, questions and
    problems as `cfg` has them; duels where there is a rule to judge."""

    def __init__(
        self,
        corpus: CorpusConfig,
        sequence_length: int = EvalSuite.sequence_length,
        cfg: ExamConfig | None = None,
        rule: SimulatedRater | None = None,
    ) -> None:
        self.corpus, self.sequence_length = corpus, sequence_length
        self.cfg, self.rule = cfg or ExamConfig(), rule
        self.suite = cache(lambda: builtin_exam(corpus, sequence_length, self.cfg, rule))

    def __call__(self, model: Model, backend: Backend, cache: Path) -> Mapping[str, Any]:
        return measure(model, backend, self.suite(), cache).mapping()

    def to_mapping(self) -> dict[str, Any]:
        """What `exam_of` makes it of again."""
        return {
            "corpus": to_mapping(self.corpus),
            "sequence_length": self.sequence_length,
            "exam": to_mapping(self.cfg),
            "rule": None if self.rule is None else asdict(self.rule),
        }


def exam_of(told: Mapping[str, Any] | None) -> BuiltinExam | OrderedExam | None:
    """The exam of which another process has told this mapping."""
    if told is None:
        return None
    cfg = from_mapping(ExamConfig, told["exam"], "exam")
    if "corpus" not in told:
        return OrderedExam(cfg)
    if told["rule"] is None:
        rule = None
    else:
        rule = SimulatedRater(**told["rule"])
    corpus = from_mapping(CorpusConfig, told["corpus"], "corpus")
    return BuiltinExam(corpus, told["sequence_length"], cfg, rule)
