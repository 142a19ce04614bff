"""A recipe run in a time: before each stage what is left of it is divided anew among those that are
still to come, by what the stages before them have taken.

A stage that has begun keeps its steps: no schedule is cut. What is decided stands in `dial.json`
(`planning/dial/record.py`), and a resume takes it from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondevice.common.clock import ticks
from ondevice.common.progress import duration
from ondevice.config.auto import BY_RULE, EPOCHS
from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import GRPOConfig
from ondevice.config.recipe import ExamConfig, Recipe
from ondevice.config.stages import InitConfig, StageConfig, TrainingConfig
from ondevice.planning.dial import inputs
from ondevice.planning.dial.costs import (
    BESIDE,
    LEARNING,
    START_S,
    WRITING,
    Cost,
    Factors,
    kind_of,
)
from ondevice.planning.dial.fit import Fitted, TooShort, divided_recipe, told_short
from ondevice.planning.dial.record import DialRecord
from ondevice.planning.machine import Machine
from ondevice.planning.model_facts import facts_of
from ondevice.planning.stage_facts import Read, Surroundings
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.run_time import RunTime
from ondevice.seam.select import load_backend
from ondevice.stages.pace import pace
from ondevice.stages.probe import probe

PACE_S, PACE_SHARE = 4.0, 0.02
"""Seconds that measuring the pace takes at most, and part of the time."""


@dataclass
class Timed:
    """The stages of a run that has a time. `now` gives seconds that only grow; `began`: when this
    process's part of the run did, None: now."""

    recipe: Recipe
    record: DialRecord
    folder: RunFolder
    machine: Machine
    exam: ExamConfig | None
    say: Callable[[str], None]
    now: Callable[[], float] = ticks
    began: float | None = None
    read: Read = field(default_factory=Read)

    def __post_init__(self) -> None:
        self._mark = (
            self.now() if self.began is None else self.began
        )  # since when nothing is added to what is used
        self._cost: Cost | None = None
        self._stage = ""
        self._over = 0.0  # seconds beyond the time that were told of

    @property
    def used(self) -> float:
        """Seconds of the time."""
        return self.record.used + self.now() - self._mark

    def time(self) -> RunTime:
        """How much of the time is used."""
        names = [name for name in self.recipe.stages if name not in self.record.left_out]
        if self._stage in names:
            place = names.index(self._stage) + 1
        else:
            place = len(names)
        return RunTime(place, len(names), self.used, self.record.seconds)

    def ended(self) -> str:
        """What to say once all is done."""
        used, asked = self.used, self.record.seconds
        line = f"{duration(used)} of {duration(asked)} used"
        if used < 0.9 * asked:
            line += ": more steps of these stages were of no use, or a stage was left out"
        return line

    def told(self) -> list[str]:
        """What the report says: how much of the time each stage was given and took, what is left
        out."""
        lines = [self.ended()]
        given: dict[str, float] = {}
        for plan in self.record.plans:
            given |= {name: seconds for name, (_, seconds) in list(plan["stages"].items())[:1]}
        for name in self.record.ended:
            done = self.folder.stage(name).done_record() or {}
            took = duration(float(done.get("seconds", 0.0)))
            foreseen = f", {duration(given[name])} foreseen as it began" if name in given else ""
            lines.append(f"{name}: {took}{foreseen}")
        return [*lines, *inputs.told(self.record.left_out)]

    # ---- before a stage ------------------------------------------------------------------------

    def before(self, name: str, given: Mapping[str, str]) -> StageConfig | None:
        """The settings that the stage begins with; None: it is left out. `given`: what the stages
        before it have made."""
        self._stage = name
        if name in self.record.left_out:
            return None
        if name not in self.record.decided:
            self._decide(name, given)
        if name in self.record.left_out:
            return None
        cfg: StageConfig = replace(self.recipe.stages[name], **self.record.decided[name])
        return cfg

    def _decide(self, name: str, given: Mapping[str, str]) -> None:
        coming = self._coming(name)
        self._probe(coming, given)
        coming = [one for one in coming if one not in self.record.left_out]
        if name not in coming:
            self.record.save(self.folder.path)
            return
        around = self._around(given)
        self._measure_pace(name, around, given)
        fit = self._fit(coming, around)
        changes = _decided(fit.recipe.stages[name])
        self.recipe = replace(self.recipe, stages={**self.recipe.stages, **_of(fit.recipe, coming)})
        self._cost = fit.costs[name]
        self.record.decided[name] = changes
        if isinstance(self.recipe.stages[name], SFTConfig):
            self.record.answer = fit.answer or 0.0
        self.record.note(self._before(name), _steps(fit))
        self.record.save(self.folder.path)
        if self.record.ended:
            self.say(f"{self.recipe.name}: {told_short(fit, self.record.seconds, self.used)}")

    def _coming(self, name: str) -> list[str]:
        names = list(self.recipe.stages)
        after = names[names.index(name) :]
        return [
            one
            for one in after
            if one not in self.record.left_out and (one == name or one not in self.record.decided)
        ]

    def _before(self, name: str) -> str:
        if self.record.ended:
            return self.record.ended[-1]
        return ""

    def _around(self, given: Mapping[str, str]) -> Surroundings:
        """What the next stage begins from, by the models that are there."""
        policy = reward = None
        if "policy" in given:
            policy = replace(facts_of(given["policy"]), answer=self.record.answer or None)
        if "reward" in given:
            reward = facts_of(given["reward"])
        return Surroundings(
            self.machine,
            self.recipe.corpus,
            self.folder.path,
            self.exam,
            policy=policy,
            reward=reward,
            read=self.read,
        )

    def _fit(self, coming: Sequence[str], around: Surroundings) -> Fitted:
        """What is left divided; where it does not suffice, all have their least steps."""
        left = self.record.seconds - self.used
        factors = Factors(self.record.factors)
        scale = self.record.scale
        try:
            return divided_recipe(self.recipe, scale, left, around, factors, coming)
        except TooShort as error:
            self._warn(error.seconds - left)
            enough = error.seconds * 1.01 + 1
            return divided_recipe(self.recipe, scale, enough, around, factors, coming)

    def _warn(self, over: float) -> None:
        """Says by how much the time will be exceeded, where that is more than was said."""
        if over > 1.5 * self._over + 0.02 * self.record.seconds:
            self._over = over
            self.say(
                f"{self.recipe.name}: this machine is slower than was planned; with the least steps of "
                f"what is left the time will be exceeded by about {duration(over)}"
            )

    def _measure_pace(self, name: str, around: Surroundings, given: Mapping[str, str]) -> None:
        """Where no stage of this run has learned yet: how fast this machine learns now."""
        cfg = self.recipe.stages[name]
        if LEARNING in self.record.factors or kind_of(cfg) != LEARNING or "policy" not in given:
            return
        if getattr(cfg, "adapter", "none") != "none":
            return
        fit = self._fit([name], around)
        settled: Any = replace(fit.recipe.stages[name], **_settled(fit, name))
        backend = load_backend(settled.backend, settled.device, settled.dtype)
        seconds = min(PACE_S, PACE_SHARE * self.record.seconds)
        found = pace(settled, Path(given["policy"]), backend, self.machine, seconds)
        self.record.factors = dict(Factors(self.record.factors).with_(LEARNING, found).found)

    # ---- the probe of rewards ------------------------------------------------------------------

    def _probe(self, coming: Sequence[str], given: Mapping[str, str]) -> None:
        """Leaves reasoning out where a model that has learned all that it learns before never earns
        a reward: once, before the first stage that writes."""
        name = next((n for n in coming if isinstance(self.recipe.stages[n], GRPOConfig)), "")
        first = self.recipe.stages[coming[0]]
        learns = isinstance(first, InitConfig) or kind_of(first) == LEARNING
        if not name or self.record.probe or (learns and name != coming[0]):
            return
        policy: dict[str, Any] = {"model": given.get("policy", "")}
        cfg: Any = replace(self.recipe.stages[name], **policy)
        backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
        found = probe(cfg, backend, self.recipe.corpus)
        self.record.probe = dataclasses.asdict(found)
        self.record.answer = max(1.0, found.tokens / found.answers)
        told_of = f"{name}: a probe of {found.answers} answers earns {found.rewarded} rewards"
        if found.rewarded:
            self.say(told_of)
            return
        why = (
            f"none of {found.answers} answers earned a reward, without which nothing is learned; "
            "more time, or easier problems, may change that"
        )
        self.record.left_out[name] = why
        self.say(f"{name} is left out: {why}")

    # ---- after a stage -------------------------------------------------------------------------

    def after(self, name: str) -> None:
        """Counts what the stage has taken."""
        if name in self.record.ended:
            self._mark = self.now()  # a resume found it complete
            return
        stage = self.folder.stage(name)
        done = stage.done_record() or {}
        whole = float(done.get("seconds", 0.0))
        self.record.used += max(self.now() - self._mark, whole)
        self._mark = self.now()
        self.record.ended.append(name)
        if self._cost is not None and self._cost.stage == name:
            self._learn_from(stage, whole, self._cost)
        self._cost = None
        self.record.save(self.folder.path)

    def _learn_from(self, stage: StageFolder, whole: float, cost: Cost) -> None:
        """What the stage took, as a part of what was planned."""
        cfg = replace(self.recipe.stages[stage.name], **self.record.decided[stage.name])
        factors = Factors(self.record.factors)
        kind = kind_of(cfg)
        if isinstance(cfg, TrainingConfig):
            taken = _step_seconds(stage)
            measured = sum(taken)
            planned = factors.step(kind, cost.planned_step, cost.plan.writing) / factors.of(kind)
            if planned and measured:
                factors = factors.with_(kind, measured / (planned * len(taken)))
            factors = factors.with_(BESIDE, (whole - measured) / cost.planned_fixed)
        elif kind == WRITING and cost.planned_step:
            prompts = getattr(cfg, "prompts", 0) or 1
            factors = factors.with_(kind, max(whole - START_S, 0.1) / (cost.planned_step * prompts))
        self.record.factors = dict(factors.found)


def _step_seconds(stage: StageFolder) -> list[float]:
    found = []
    for event in read(stage.events):
        seconds = event.get("seconds")
        if event.get("event") == "step" and isinstance(seconds, int | float):
            found.append(float(seconds))
    return found


def _of(recipe: Recipe, names: Sequence[str]) -> dict[str, StageConfig]:
    return {name: recipe.stages[name] for name in names}


def _steps(fit: Fitted) -> dict[str, tuple[int, float]]:
    """Stage → (steps or prompts, seconds)."""
    found = {}
    for name, seconds in fit.seconds.items():
        cfg: Any = fit.recipe.stages[name]
        count = getattr(cfg, "steps", None) or getattr(cfg, "prompts", 0)
        found[name] = (int(count) if isinstance(count, int) else 0, seconds)
    return found


def _settled(fit: Fitted, name: str) -> dict[str, Any]:
    """The numbers that a stage's settings at auto will have, about."""
    known = fit.costs[name].plan.settings
    return {
        key: value
        for key, value in known.items()
        if getattr(fit.recipe.stages[name], key) == "auto"
    }


def _decided(cfg: StageConfig) -> dict[str, Any]:
    """The settings that a time may change, as they are now."""
    names = (*BY_RULE, *EPOCHS)
    return {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
