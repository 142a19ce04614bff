"""Which form of answers suits problems and model, where a person names none.

By the data and the model alone: what the questions ask for, what the model has learned in a stage
here, what the answers are. A model from elsewhere that is asked for a number usually says a sentence
with it; a number alone, as the built-in sums want it, is rare there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.preference import GRPOConfig
from ondevice.data.builtin.scoring import plain
from ondevice.data.formats import to_chat
from ondevice.data.mixture import is_by_name, is_generated
from ondevice.datasets.chats_beside import sft_settings, stage_settings, stages_before
from ondevice.datasets.prompts import Prompt
from ondevice.datasets.spec import DataSpec, builtin_in, convert_rows
from ondevice.rewards.answers import FORMS, find_answer, number
from ondevice.runs.folder import StageFolder

LOOKED_AT = 2000  # problems
CHATS = 200
"""Chats of a stage sft that are looked at."""
BUILTIN = "number"
NUMBERS = ("number", "last_number")
_MARKED = {"boxed": "\\boxed", "tag": "<answer>", "hash": "####"}
_ASKED, _LEARNED = 0.9, 0.5  # of the questions, of the chats


def answer_form(cfg: GRPOConfig, problems: Iterable[Prompt]) -> tuple[str, str]:
    """The form (`answers.FORMS`) and why. `problems`: those to learn from."""
    if is_generated(cfg.data):
        return BUILTIN, "the form of the built-in sums"
    looked = list(islice(problems, LOOKED_AT))
    answers = []
    for problem in looked:
        if problem.known.get("answer") is not None and problem.known.get("gym") is None:
            answers.append(str(problem.known["answer"]))
    if not answers:
        return BUILTIN, "no problem has an answer"
    for form, mark in _MARKED.items():
        asking = sum(_asks(problem, mark) for problem in looked)
        if asking >= _ASKED * len(looked):
            return form, f"{asking:,} of {len(looked):,} questions ask for {mark}"
    numbers = sum(number(plain(answer)) is not None for answer in answers)
    learned = _learned(cfg.model)
    if learned is not None and (numbers == len(answers) or learned[0] not in NUMBERS):
        return learned
    if numbers == len(answers):
        return "last_number", "all answers are numbers, and nothing says how they are to be given"
    return "whole", f"{len(answers) - numbers:,} of {len(answers):,} answers are no numbers"


def _asks(problem: Prompt, mark: str) -> bool:
    return any(mark in str(message.get("content", "")) for message in problem.messages)


def _learned(model: str) -> tuple[str, str] | None:
    """The form in which the model has learned to answer in a stage here; None where it has learned
    none, or that is not known."""
    for stage in stages_before(model):
        settings = stage_settings(stage)
        if stage.name == "grpo" and settings.get("answer") in FORMS:
            return str(settings["answer"]), f"as the model has learned it in {stage.path}"
        if stage.name == "sft":
            form = _form_of_chats(stage)
            if form is not None:
                return form, f"as the model has learned it in {stage.path}"
    return None


def _form_of_chats(stage: StageFolder) -> str | None:
    """The marked form that most of the chats' last answers have; of the built-in chats theirs."""
    cfg, corpus = sft_settings(stage)
    if builtin_in(cfg.data, corpus) is not None:
        return BUILTIN
    answers: list[str] = []
    try:
        for one in DataSpec.of(cfg).alone():
            if is_by_name(one.data):
                continue  # which is not fetched for this
            chats = convert_rows(one.rows(), to_chat)
            answers += [_last_answer(chat) for _, chat in islice(chats, CHATS)]
    except UserError:
        return None  # the data has gone since: the answers themselves say it
    return most_marked(answers)


def _last_answer(chat: Mapping[str, Any]) -> str:
    said = [str(m.get("content", "")) for m in chat["messages"] if m.get("role") == "assistant"]
    return said[-1] if said else ""


def most_marked(answers: Sequence[str]) -> str | None:
    """The form with a mark that most of the answers have."""
    forms: Counter[str] = Counter()
    for answer in answers:
        forms.update(form for form in _MARKED if find_answer(answer, form) is not None)
    best = forms.most_common(1)
    if best and best[0][1] > _LEARNED * len(answers):
        return best[0][0]
    return None
