"""A recipe: the whole road as one YAML file. Standard library only; yaml is imported where it is
read.

    describe: what it is for
    seed: 0
    corpus: {…}              the built-in corpus (CorpusConfig)
    exam: {…}                what is measured after every stage (ExamConfig)
    preference: ppo          which way through stage 3: ppo (reward and ppo) or dpo; the other's stages are left out
    prompts: […]             asked after every stage
    scale: {…}               how --time may scale it (ScaleConfig)
    stages:                  run in this order
      init: {…}              InitConfig
      pretrain: {…}          PretrainConfig

seed, backend, device and dtype at the top are every stage's, unless a stage has its own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ondevice.common.errors import UserError, nearest
from ondevice.config.corpus import CorpusConfig
from ondevice.config.earlier import upgraded
from ondevice.config.finetuning import ClassifyConfig, SFTConfig
from ondevice.config.load import apply_set, from_mapping, join, parse_yaml, read_yaml, to_mapping
from ondevice.config.preference import (
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    RaterConfig,
    RewardConfig,
    SampleConfig,
)
from ondevice.config.scaling import ScaleConfig
from ondevice.config.stages import InitConfig, PretrainConfig, StageConfig, TrainingConfig

STAGES: Mapping[str, type[StageConfig]] = {
    "init": InitConfig,
    "pretrain": PretrainConfig,
    "classify": ClassifyConfig,
    "sft": SFTConfig,
    "sample": SampleConfig,
    "rate": RaterConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
}
"""Every stage that a recipe can name, and its settings."""
WAYS: Mapping[str, tuple[str, ...]] = {"ppo": ("reward", "ppo"), "dpo": ("dpo",)}
"""The ways through preference fine-tuning, and the stages that belong to each alone."""
SHARED = ("seed", "backend", "device", "dtype")
RECORDED = ("versions", "machine")
"""Keys that a run adds to the recipe in its folder: read over, so that such a recipe runs again."""


@dataclass(frozen=True, kw_only=True)
class ExamConfig:
    """What is measured after every stage that leaves a model which writes, on sets that no stage
    trains on.
    """

    split: Literal["heldout", "validation"] = "heldout"
    """Take validation while settings are being looked for, so that the held-out sets stay unseen.
    """
    questions: int = 0
    """Held-out instructions that are asked, the first ones; 0: all."""
    problems: int = 200
    """Problems of the reasoning stage, asked greedily and at temperature 1; 0: none."""
    passes: int = 8
    """Answers to each at temperature 1: pass@k says how often one of them is right."""
    duels: int = 300
    """Prompts answered at temperature 1 and compared with the answers of the stage sft by the
    rater's rule, or by rewards; 0: none.
    """
    data: str = ""
    """Held-out prompts that are asked in place of the built-in corpus's sets, as many as duels says:
    a file, a folder, hub:… or orders:…, whose columns rewards read."""
    rewards: tuple[str, ...] = ()
    """Rewards by name that judge the answers to data."""
    answer: str = "number"
    """Where an answer stands, for the rewards correct, format and choice."""
    max_new_tokens: int = 256
    """Longest answer to data in tokens."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        for name, least in (("questions", 0), ("problems", 0), ("passes", 1), ("duels", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint=f"give {least} or more"
                )
        if bool(self.data) != bool(self.rewards):
            raise UserError(
                "prompts of one's own are judged by rewards",
                where="rewards" if self.data else "data",
                hint="give data and rewards, both of them or none",
            )
        if self.data and not (self.duels and self.max_new_tokens > 0):
            raise UserError(
                "data is asked as many prompts as duels says, each for max_new_tokens",
                where="duels",
                hint="give both, 1 or more",
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All stages' settings, resolved."""

    name: str
    describe: str = ""
    seed: int = 0
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    exam: ExamConfig = field(default_factory=ExamConfig)
    preference: str = ""
    prompts: tuple[str, ...] = ()
    scale: ScaleConfig | None = None
    stages: Mapping[str, StageConfig]

    def mapping(self) -> dict[str, Any]:
        """What `recipe.yaml` in a run folder holds; `load_recipe` reads it back to an equal recipe."""
        return {
            "name": self.name,
            "describe": self.describe,
            "seed": self.seed,
            "corpus": to_mapping(self.corpus),
            "exam": to_mapping(self.exam),
            **({"preference": self.preference} if self.preference else {}),
            "prompts": list(self.prompts),
            **({"scale": to_mapping(self.scale)} if self.scale is not None else {}),
            "stages": {name: to_mapping(cfg) for name, cfg in self.stages.items()},
        }


def load_recipe(name: str, sets: Sequence[str] = (), preference: str = "", **shared: Any) -> Recipe:
    """A recipe by its name or by the path of a YAML file, with `--set` changes applied in turn.

    A change names a key from the top (corpus.people=9, stages.sft.steps=5) or from a stage
    (sft.steps=5). `shared` (seed, backend, device, dtype, memory, anyway, keep_awake, track; None and
    "auto" are no change) goes over what the recipe says at the top and in its stages; `preference`
    over its way through stage 3. Raises UserError: unknown recipe, key or stage (naming the
    nearest), wrong types, values out of
    range.
    """
    where, mapping = _read(name)
    changes = [_from_top(assignment, mapping) for assignment in sets]
    for assignment in changes:
        apply_set(mapping, assignment)
    wanted = {key: value for key, value in shared.items() if value not in (None, "auto")}
    if preference:
        mapping["preference"] = preference
    return _resolve(mapping, where, wanted, changes)


def recipe_for(name: str, arch: str) -> str:
    """The recipe of that name for an architecture: `tiny-encoder` for `tiny`. Raises UserError
    where there is none.
    """
    if arch == "decoder":
        return name
    wanted, known = f"{name}-{arch}", recipe_names()
    if wanted not in known:
        able = [one.removesuffix(f"-{arch}") for one in known if one.endswith(f"-{arch}")]
        raise UserError(
            f"{name} has no recipe for an {arch}", where="arch", hint=f"known: {', '.join(able)}"
        )
    return wanted


def stage_defaults(stage: str, recipe: str) -> StageConfig:
    """A stage's settings as a recipe has them, for the stage's own command: `builtin` is that
    recipe's corpus.
    """
    loaded = load_recipe(recipe)
    ways = [way for way, names in WAYS.items() if stage in names and way != loaded.preference]
    if (
        stage not in loaded.stages and loaded.preference and ways
    ):  # of the way that the recipe does not take
        loaded = load_recipe(recipe, preference=ways[0])
    if stage not in loaded.stages:
        raise UserError(f"has no stage {stage!r}", where=recipe, hint=nearest(stage, loaded.stages))
    settings = to_mapping(loaded.stages[stage])
    for name in ("data", "replay", "sft_data"):
        if settings.get(name) == "builtin":
            settings[name] = f"builtin:{recipe}"
    return from_mapping(STAGES[stage], settings, recipe)


def recipe_names() -> list[str]:
    """The recipes that come with the program."""
    from importlib.resources import files  # 20 ms

    entries = files("ondevice").joinpath("recipes").iterdir()
    return sorted(
        entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")
    )


def for_decoders() -> list[str]:
    """Those of them that are not another's form for an architecture, which `arch` takes."""
    names = recipe_names()
    forms = {f"{name}-{arch}" for name in names for arch in _HAS_NOT}
    return [name for name in names if name not in forms]


def _read(name: str) -> tuple[str, dict[str, Any]]:
    """(what errors call it, the mapping, with its name in it)."""
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():  # a run folder: its recipe again
        path = path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        return str(path), {"name": path.stem, **read_yaml(path)}
    known = recipe_names()
    if name not in known:
        near = nearest(name, known)
        raise UserError(
            f"unknown recipe {name!r}",
            hint=f"{near}{' Or' if near.endswith('?') else '; or'} give a .yaml file",
        )
    return f"{name}.yaml", {"name": name, **copy.deepcopy(_of_the_program(name))}


@functools.cache
def _of_the_program(name: str) -> dict[str, Any]:
    """A recipe's file, parsed once: a form of the app looks into all of them."""
    from importlib.resources import files  # 20 ms

    text = files("ondevice").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"{name}.yaml")


def _from_top(assignment: str, mapping: Mapping[str, Any]) -> str:
    """sft.steps=5 → stages.sft.steps=5."""
    first = assignment.partition("=")[0].partition(".")[0].strip()
    stages = mapping.get("stages")
    known = isinstance(stages, Mapping) and first in stages
    # else it is told as it was typed
    return f"stages.{assignment}" if known and "=" in assignment else assignment


def _resolve(
    mapping: Mapping[str, Any], where: str, wanted: Mapping[str, Any], changes: Sequence[str]
) -> Recipe:
    known = (
        "name",
        "describe",
        "corpus",
        "exam",
        "preference",
        "prompts",
        "scale",
        "stages",
        *SHARED,
        *RECORDED,
    )
    for key in mapping:
        if key not in known:
            stages = mapping.get("stages")
            # --set stf.steps=5 meant a stage
            known += tuple(stages) if isinstance(stages, Mapping) else ()
            raise UserError(f"unknown key {key!r}", where=where, hint=nearest(str(key), known))
    common = {key: mapping[key] for key in SHARED if key in mapping}
    named: dict[str, Any] = {
        key: mapping[key]
        for key in ("name", "describe", "seed", "prompts", "preference")
        if key in mapping
    }
    head = from_mapping(
        _Head, {**named, **{key: wanted[key] for key in ("seed",) if key in wanted}}, where
    )
    corpus = from_mapping(CorpusConfig, mapping.get("corpus") or {}, join(where, "corpus"))
    exam = from_mapping(ExamConfig, mapping.get("exam") or {}, join(where, "exam"))
    stages = _one_way(
        _stages(mapping.get("stages"), join(where, "stages"), common, wanted, _touched(changes)),
        head.preference,
        where,
    )
    _for_one_architecture(stages, where)
    scale = None
    if "scale" in mapping:
        scale = from_mapping(ScaleConfig, mapping["scale"], join(where, "scale"))
        _scalable(scale, mapping["stages"], join(where, "scale.stages"))
        # without the stages of the way that is not taken
        kept = {name: one for name, one in scale.stages.items() if name in stages}
        scale = replace(scale, stages=kept)
    return Recipe(
        name=head.name,
        describe=head.describe,
        seed=head.seed,
        corpus=corpus,
        exam=exam,
        preference=head.preference,
        prompts=head.prompts,
        scale=scale,
        stages=stages,
    )


def _scalable(scale: ScaleConfig, stages: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a stage of the scale that the recipe does not have, or whose time follows
    from no number of its settings."""
    for name in scale.stages:
        if name not in stages:
            raise UserError(f"unknown stage {name!r}", where=where, hint=nearest(name, stages))
        if not issubclass(STAGES[name], TrainingConfig | SampleConfig):
            raise UserError(
                "has no number of steps",
                where=join(where, name),
                hint="leave it out: its time is taken off before the rest is shared out",
            )


def _one_way(stages: dict[str, StageConfig], way: str, where: str) -> dict[str, StageConfig]:
    """Without the stages of the way through preference fine-tuning that is not taken."""
    if not way:
        return stages
    missing = [name for name in WAYS[way] if name not in stages]
    if missing:
        raise UserError(
            f"has no stage {missing[0]!r} for the way {way!r}",
            where=join(where, "preference"),
            hint="add it to the recipe, or take the other way",
        )
    left_out = {name for other, names in WAYS.items() if other != way for name in names}
    return {name: cfg for name, cfg in stages.items() if name not in left_out}


# Architecture → (its families, the stages that it has not): what would else be found out after
# minutes of training.
_HAS_NOT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("bert", "modernbert"), ("sft", "sample", "dpo", "ppo", "grpo")),
    "seq2seq": (("t5", "bart"), ("classify", "reward", "ppo")),
}


def _for_one_architecture(stages: Mapping[str, StageConfig], where: str) -> None:
    """Raises UserError for a stage that a model of the family begun with cannot have."""
    init, sft = stages.get("init"), stages.get("sft")
    if not isinstance(init, InitConfig):
        return
    for arch, (families, missing) in _HAS_NOT.items():
        present = [name for name in missing if name in stages]
        if arch == "seq2seq" and isinstance(sft, SFTConfig) and sft.replay:
            present.append("sft.replay")
        if init.family in families and present:
            raise UserError(
                f"a {init.family} model has no {present[0]}",
                where=join(where, "stages.init.family"),
                hint=f"--arch {arch} has recipes for it",
            )


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The plain keys at the top, so that their types are checked as all others are."""

    name: str
    describe: str = ""
    seed: int = 0
    prompts: tuple[str, ...] = ()
    preference: Literal["", "ppo", "dpo"] = ""

    def check(self) -> None:
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")


def _touched(changes: Sequence[str]) -> dict[str, set[str]]:
    """Stage → fields that `--set` has changed: stages.sft.steps=5 is {"sft": {"steps"}}."""
    touched: dict[str, set[str]] = {}
    for assignment in changes:
        name, _, _ = assignment.partition("=")
        path = [key.strip().replace("-", "_") for key in name.split(".")]
        if path[0] == "stages" and len(path) > 2:
            touched.setdefault(path[1], set()).add(path[2])
    return touched


def _stages(
    raw: Any,
    where: str,
    common: Mapping[str, Any],
    wanted: Mapping[str, Any],
    touched: Mapping[str, set[str]],
) -> dict[str, StageConfig]:
    """What a recipe says for itself, and a change leaves without effect, is left out; what it says
    so without any change is refused."""
    if isinstance(raw, list):
        raise UserError(
            "is a list",
            where=where,
            hint="write each stage as a key with its settings: sft: {steps: 500}",
        )
    if not isinstance(raw, Mapping) or not raw:
        raise UserError("names no stage", where=where, hint=f"known: {', '.join(STAGES)}")
    configs = {}
    for name, settings in raw.items():
        if name not in STAGES:
            raise UserError(f"unknown stage {name!r}", where=where, hint=nearest(str(name), STAGES))
        if not isinstance(settings, Mapping | None):
            raise UserError("expected keys and values", where=join(where, name))
        settings = upgraded(name, settings or {})
        if name in touched:
            filled = set(settings) - touched[name]
        else:
            filled = set[str]()
        configs[name] = from_mapping(
            STAGES[name], {**common, **settings, **wanted}, join(where, name), filled=filled
        )
        for setting in ("out", "resume"):
            if getattr(configs[name], setting):
                raise UserError(
                    "has no effect in a recipe: it is a whole run's",
                    where=join(where, f"{name}.{setting}"),
                    hint=f"give it to the run: ondevice run RECIPE --{setting}",
                )
    return configs


def gives(name: str) -> str:
    """What a stage leaves for the next ones: policy (a model that writes), reward or ratings."""
    return str(getattr(STAGES.get(name), "gives", "policy"))
