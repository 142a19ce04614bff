"""groups.jsonl: what a rollout wrote and what it earned, one line per step, for whoever watches or
looks back.

A line is {"step", "groups": [{"prompt", "answer", "completions": [{"text", "tokens", "truncated",
"rewards": {name: number}, "reward", "advantage", "parsed", "span"}]}]}, of code that unit tests
judge also "tests": {"passed", "of", "why"}; a step's event says at which byte its line begins. Each
measurement on held-out prompts adds {"held_out": true, "step", "groups"}: one completion of each of
the same few prompts, whose place the eval event tells, so that a prompt that is never learned from
can be watched over training. A resumed stage repeats the steps after its checkpoint: what the
process before it wrote of them is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common import bounded
from ondevice.common.json_files import parse_json
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.prompts import Prompt, thought_opening
from ondevice.rewards.answers import find_answer
from ondevice.rewards.code_judge import Verdict
from ondevice.rl.rollout import Sampled
from ondevice.runs.events import LineFile

WATCHED = 8  # held-out prompts whose completions are kept at each measurement


class GroupLog:
    """Appends lines; each is on its way to the disk when `append` returns, before the event that
    tells its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = False
        self._step = 0

    def append(self, step: int, groups: Sequence[Mapping[str, Any]]) -> int:
        """The byte offset of the new line."""
        if (not self._begun or step <= self._step) and self.path.exists():  # resumed, or gone back
            cut_from(self.path, step)
        self._begun = True
        self._step = step
        with LineFile(self.path) as file:
            return file.append({"step": step, "groups": list(groups)})

    def append_held_out(
        self,
        prompts: Sequence[Prompt],
        sampled: Sequence[Sampled],
        rewards: Mapping[str, Any],
        totals: Any,
        form: str = "",
        tokenizer: Tokenizer | None = None,
        tests: Sequence[Verdict | None] = (),
    ) -> int:
        """The same of a measurement, of one completion per prompt, after the step that was appended
        last: the first few prompts, always the same. Arguments as of `to_records`."""
        few = slice(WATCHED)
        few_rewards = {name: values[few] for name, values in rewards.items()}
        no_advantages = np.zeros(WATCHED)
        groups = to_records(
            prompts[few],
            sampled[few],
            few_rewards,
            totals[few],
            no_advantages,
            form,
            tokenizer,
            tests[few],
        )
        with LineFile(self.path) as file:
            return file.append({"held_out": True, "step": self._step, "groups": groups})


def cut_from(path: Path, step: int) -> None:
    """Cuts off the lines of this step and of all later ones, and whatever is not a whole line."""
    end = 0
    with bounded.open_plain(path) as file:
        for line in bounded.lines(file):
            line = line or b""
            try:
                kept = line.endswith(b"\n") and parse_json(line)["step"] < step
            except (ValueError, TypeError, KeyError):
                kept = False
            if not kept:
                break
            end += len(line)
    os.truncate(path, end)


def to_records(
    prompts: Sequence[Prompt],
    sampled: Sequence[Sampled],
    rewards: Mapping[str, Any],
    totals: Any,
    advantages: Any,
    form: str = "",
    tokenizer: Tokenizer | None = None,
    tests: Sequence[Verdict | None] = (),
) -> list[dict[str, Any]]:
    """The groups of a rollout: len(sampled) / len(prompts) completions each. `rewards`: name → a
    number per completion; `form` says how answers are written, where there are any to be parsed, and
    `tokenizer` whether a prompt has opened a thought; `tests`: what unit tests said of each."""
    size = len(sampled) // len(prompts)
    groups = []
    for g, prompt in enumerate(prompts):
        opened = ""
        if tokenizer is not None:
            opened = thought_opening(prompt.ids, tokenizer)
        completions = []
        for i in range(g * size, (g + 1) * size):
            completion = {
                "text": sampled[i].text,
                "tokens": len(sampled[i].ids),
                "truncated": not sampled[i].stopped,
                "rewards": {name: _number(values[i]) for name, values in rewards.items()},
                "reward": _number(totals[i]),
                "advantage": _number(advantages[i]),
                **_parsed(sampled[i].text, opened, form),
            }
            if i < len(tests):
                verdict = tests[i]
            else:
                verdict = None
            if verdict is not None:
                completion["tests"] = {
                    "passed": verdict.passed,
                    "of": verdict.tests,
                    "why": verdict.why,
                }
            completions.append(completion)
        answer = prompt.known.get("answer")
        groups.append({"prompt": prompt.text, "answer": answer, "completions": completions})
    return groups


def _parsed(text: str, opened: str, form: str) -> dict[str, Any]:
    """The answer that a completion states and its place in the text, after what the prompt has
    `opened` of a thought; None where it states none, or answers have no form.
    """
    answer = find_answer(opened + text, form) if form else None
    if answer is None:
        return {"parsed": None, "span": None}
    span = [answer.start - len(opened), answer.end - len(opened)]
    return {"parsed": answer.text, "span": span}


def _number(value: Any) -> float | None:
    if np.isfinite(value):
        return round(float(value), 6)
    return None
