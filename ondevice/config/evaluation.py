"""The settings of measuring a model on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import one_of, only, refuse_idle
from ondevice.config.rows import RowsConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs
from ondevice.config.use import UseConfig

# tasks of `eval` whose data serves no other
BY_ITSELF = ("problems", "preference", "win", "classes")
TOGETHER = ("text", "instructions", "reasoning")
_PROBLEMS = (
    one_of("tasks", "problems"),
    "it is about problems",
    "give --tasks problems too, or leave it out",
)
_PREFERENCE = (
    one_of("tasks", "preference"),
    "it is about pairs",
    "give --tasks preference too, or leave it out",
)
_WIN = one_of("tasks", "win"), "it is about a win rate", "give --tasks win too, or leave it out"


def _of_classes(cfg: Any) -> bool:
    # a classifier is measured by classes without naming them
    return not cfg.tasks or "classes" in cfg.tasks


_CLASSES = _of_classes, "it is for a classifier's rows (classes)"


def _draws_problems(cfg: Any) -> bool:
    return "problems" in cfg.tasks and bool(cfg.tries or cfg.data.startswith("gym:"))


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RowsConfig, UseConfig, WithTemplateKwargs):
    """Measure a model on held-out data."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU, float32 on a CPU, whatever is faster here: a figure does
    not change because a machine was measured."""
    data: str = "builtin"
    """Held-out text, chats, problems, pairs or prompts: a file, a folder,
    hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT], builtin[:RECIPE], for problems gym:NAME too."""
    tasks: tuple[
        Literal["text", "instructions", "reasoning", "problems", "preference", "win", "classes"],
        ...,
    ] = ()
    """text: bits per byte and perplexity; instructions: exact match by kind; reasoning: problems
    solved, greedily and in 8 tries (both of the built-in corpus); problems: those of your data,
    rows of question and answer; preference: how often the chosen response of a pair is preferred;
    win: how often the answers to your prompts beat those of another model; classes: a classifier's,
    rows of text and label. None named: what the model is for and the data allows."""
    limit: int = 0
    """Examples of each task at most; 0: all."""
    text: str = only("text", *_CLASSES)
    """Column of the text (classes)."""
    pair: str = only("", *_CLASSES)
    """Column of a second text that is read beside the first (classes). Empty: none."""
    label: str = only("label", *_CLASSES)
    """Column of the class (classes)."""
    answer: str = only("number", *_PROBLEMS)
    """Where an answer to a problem stands: number, hash (####), boxed, tag (<answer>), last_number,
    whole; any: as hash, boxed, tag or last_number; code: it is code, which the rows' unit tests
    judge in an isolator."""
    shots: int = only(0, *_PROBLEMS)
    """The first so many problems are shown with their answers before each of the others."""
    tries: int = only(0, *_PROBLEMS)
    """Answers to each problem at temperature 1 beside the greedy one, for pass@k; 0: none."""
    max_new_tokens: int = only(
        256,
        one_of("tasks", "problems", "win"),
        "no answer is written whose length it bounds",
        "give --tasks problems or win too, or leave it out",
    )
    """Longest answer to a problem or prompt, in tokens."""
    system: str = only("", *_PROBLEMS)
    """Instructions that stand before each problem."""
    reference: str = only("", *_PREFERENCE)
    """preference: the model from which a policy was tuned; with it the policy is judged by DPO's
    implicit reward.
    """
    against: str = only("", *_WIN)
    """win: the other model."""
    judge: str = only("", *_WIN)
    """win: the reward model that says which answer is better."""
    seed: int = only(
        0,
        _draws_problems,
        "nothing is drawn",
        "give --tasks problems and --tries too, or leave it out",
    )
    """Decides the draws of `tries`, and a gym's problems."""
    chat_template_kwargs: str = only(
        "",
        lambda cfg: not cfg.tasks or bool(set(cfg.tasks) - {"text", "classes"}),
        "text and classes are measured without a chat template",
        "leave it out, or name other tasks",
    )
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'.
    Empty: what it was told in the stage that made the model; '{}': nothing. A row's own column of
    this name wins."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._between(0, float("inf"), "limit", "shots", "tries", "seed")
        self._between(1, float("inf"), "max_new_tokens")
        parse_template_kwargs(self.chat_template_kwargs)
        if self.answer == "code" and self.shots:
            raise UserError(
                "problems of code are asked without examples", where="shots", hint="leave it out"
            )
        if len(self.tasks) > 1 and set(BY_ITSELF) & set(self.tasks):
            raise UserError(
                "problems, preference, win and classes are measured by themselves",
                where="tasks",
                hint="name one task",
            )
        refuse_idle(self)
