"""A recipe on a person's own files and from a model that is there: which stage learns from what, and
which have nothing to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO
from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.finetuning import SFTConfig
from ondevice.config.preference import GRPOConfig, RaterConfig, SampleConfig
from ondevice.config.recipe import WAYS, Recipe
from ondevice.config.stages import InitConfig, PretrainConfig, StageConfig, TrainingConfig
from ondevice.planning.model_facts import ModelFacts

_THOUGHT = 256  # tokens of an answer to a problem of one's own, whose length nothing tells
NAMED = ("text", "chats", "problems", "model")
"""Fields of `RunConfig` that name them."""


@dataclass(frozen=True)
class Inputs:
    """What a person has given; empty where nothing. `facts`: of the model."""

    text: str = ""
    chats: str = ""
    problems: str = ""
    model: str = ""
    facts: ModelFacts | None = None

    @property
    def own(self) -> bool:
        """Whether the built-in corpus is not used."""
        return bool(self.text or self.chats or self.problems)

    def check(self) -> None:
        """Raises UserError for a file or folder that is not there."""
        for name in ("text", "chats", "problems"):
            path = getattr(self, name)
            named = path.partition(":")[0] in ("hub", "hf", "gym", "builtin")
            if path and not named and not Path(path).exists():
                raise UserError("no such file or folder", where=name, hint=f"{path} is not there")


def with_inputs(recipe: Recipe, given: Inputs) -> tuple[Recipe, dict[str, str]]:
    """(the recipe on this, why each stage that is left out is). Raises UserError where no stage has
    anything to learn from."""
    if not given.own and not given.model:
        return recipe, {}
    stages: dict[str, StageConfig] = {}
    left_out: dict[str, str] = {}
    for name, cfg in recipe.stages.items():
        why = _nothing(cfg, given, stages, recipe.stages)
        if why:
            left_out[name] = why
        else:
            stages[name] = _on(cfg, given)
    if not any(isinstance(cfg, TrainingConfig) for cfg in stages.values()):
        raise UserError(
            f"{recipe.name} has no stage that learns from this",
            where=next(name for name in NAMED if getattr(given, name)),
            hint="give --text, --chats or --problems, whichever the recipe's stages learn from",
        )
    if given.model:
        first = next(iter(stages))
        stages[first] = _changed(stages[first], model=given.model)
    if given.own:
        recipe = replace(recipe, prompts=())  # they ask for what the built-in corpus says
        if recipe.scale is not None:
            limits = {name: one.on_own_files() for name, one in recipe.scale.stages.items()}
            recipe = replace(recipe, scale=replace(recipe.scale, stages=limits))
    way = recipe.preference
    if way and not set(WAYS[way]) <= set(stages):
        way = ""
    return replace(recipe, stages=stages, preference=way), left_out


def told(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the stages that are left out for it."""
    stages: dict[str, list[str]] = {}
    for name, why in left_out.items():
        stages.setdefault(why, []).append(name)
    return [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out: {why}"
        for why, names in stages.items()
    ]


def _nothing(
    cfg: StageConfig,
    given: Inputs,
    before: Mapping[str, StageConfig],
    stages: Mapping[str, StageConfig],
) -> str:
    """Why the stage is left out; empty where it has something to learn from."""
    if isinstance(cfg, InitConfig):
        return "the model is given" if given.model else ""
    if isinstance(cfg, PretrainConfig):
        if given.text:
            return ""
        if given.model:
            return "the model has learned from text already; --text FILE gives it more"
        return "there is no text: give --text FILE"
    if not given.own:
        return ""
    if isinstance(cfg, SFTConfig):
        return "" if given.chats else "there are no chats: give --chats FILE"
    if isinstance(cfg, GRPOConfig):
        return _no_problems(given, before)
    if isinstance(cfg, SampleConfig) or _follows_ratings(cfg, stages):
        return (
            "nobody has rated answers to prompts of yours: the simulated rater knows the built-in "
            "ones alone; ondevice sample, rate and dpo go on from here"
        )
    return ""


def _no_problems(given: Inputs, before: Mapping[str, StageConfig]) -> str:
    if not given.problems:
        return "there are no problems: give --problems FILE"
    answers = given.model or any(isinstance(cfg, SFTConfig) for cfg in before.values())
    if not answers:
        return "a model answers only after it has learned from chats: give --chats FILE"
    return ""


def _follows_ratings(cfg: StageConfig, stages: Mapping[str, StageConfig]) -> bool:
    """Whether the stage needs what a rater of the recipe says."""
    rated = any(isinstance(one, RaterConfig) for one in stages.values())
    return rated and isinstance(cfg, TrainingConfig | RaterConfig)


def _on(cfg: StageConfig, given: Inputs) -> StageConfig:
    """The stage's settings on a person's own data, and for a model that is not a small new one:
    what the recipe says for its own corpus and model is left to the rules."""
    changes: dict[str, Any] = {}
    if given.own:
        changes |= _on_own_data(cfg, given)
    if given.model and isinstance(cfg, TrainingConfig):
        changes |= {
            "learning_rate": AUTO,
            "muon_learning_rate": AUTO,
            "optimizer": "adamw",
            "beta2": type(cfg).beta2,
        }
        if given.facts is None:
            template = None
        else:
            template = given.facts.model.tokenizer.chat_template
        if isinstance(cfg, SFTConfig) and given.facts is not None and template is None:
            changes["chat_template"] = "chatml"
    return _changed(cfg, **changes)


def _on_own_data(cfg: StageConfig, given: Inputs) -> dict[str, Any]:
    if isinstance(cfg, InitConfig):
        named = [path for path in (given.text, given.chats) if path]
        return {"data": ",".join(named or [given.problems])}
    if isinstance(cfg, PretrainConfig):
        return {"data": given.text, "validation": "", "sequence_length": AUTO}
    if isinstance(cfg, SFTConfig):
        changes: dict[str, Any] = {
            "data": given.chats,
            "validation": "",
            "sequence_length": AUTO,
            "batch_size": AUTO,
            "replay": given.text,
        }
        if not given.text:
            changes["replay_share"] = SFTConfig.replay_share
        return changes
    beside: dict[str, Any] = {}
    if isinstance(cfg, ChatsBesideConfig) and not given.chats:
        beside = {"sft_coef": 0.0, "sft_data": "", "sft_batch": ChatsBesideConfig.sft_batch}
    if isinstance(cfg, GRPOConfig):
        return {**beside, "data": given.problems, "validation": "", "max_new_tokens": _THOUGHT}
    return beside


def _changed(cfg: StageConfig, **changes: Any) -> StageConfig:
    known: dict[str, Any] = {name: value for name, value in changes.items() if hasattr(cfg, name)}
    return replace(cfg, **known)
