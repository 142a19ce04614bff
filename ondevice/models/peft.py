"""An adapter as a folder in PEFT's format: adapter_config.json, adapter_model.safetensors, and the
tokenizer.

One adapter a folder, over whole or quantised base weights that it names. What an adapter was
trained on top of is in it (`lora.stacked`): the folder of the last stage alone, with the base, is
the model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.common.numbers import is_number
from ondevice.models.adapter_fields import check_fields
from ondevice.models.config_fields import Fields, unread
from ondevice.models.lora import Pair, scale_of
from ondevice.models.state_dict import is_transposed, transposed
from ondevice.models.tensor_files import read_tensors
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
JUDGES, WRITES, ANSWERS = "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"
_PREFIX = "base_model.model."
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "megatron_config": (None,),
    "use_qalora": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
"""Fields of adapter_config.json with the only values that we can honour. Other ways to begin
(PiSSA, OLoRA, LoftQ) change the base."""
_TRAINING = "how it was trained, and where: its tensors say by their names what it adapts"
_HARMLESS: Mapping[str, str] = dict.fromkeys(
    (
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "qalora_group_size",
        "runtime_config",
        "ephemeral_gpu_offload",
        "task_type",
        "base_model_name_or_path",
        "peft_type",
        "lora_ga_config",
        "corda_config",
    ),
    _TRAINING,
)

_READ = (
    "lora_alpha",
    "alpha_pattern",
    "use_rslora",
    "modules_to_save",
    "ensure_weight_tying",
    "r",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "revision",
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as its folder has it. `whole`: tensors of modules that it has copies of
    (`modules_to_save`); `base`: tensors that it puts into the base itself."""

    pairs: Mapping[str, Pair]
    whole: Params
    config: Mapping[str, Any]
    base: Params = field(default_factory=dict)


def base_of(folder: Path) -> tuple[str, str | None]:
    """The base that an adapter names: a folder, or a name of the Hub and its revision, where it
    says one. Raises UserError."""
    config = _read_config(folder)
    base = config.get("base_model_name_or_path")
    revision = config.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(
            "names no base model", where=str(folder / CONFIG), hint="set base_model_name_or_path"
        )
    # a folder's own place comes first, so that a base beside it is found wherever the two are moved
    # to
    beside = folder / base
    if not Path(base).is_absolute() and beside.is_dir():
        return str(beside), None
    if isinstance(revision, str) and revision:
        return base, revision
    return base, None


def is_score_adapter(folder: Path) -> bool:
    """Whether the adapter makes a model that scores."""
    return bool(_read_config(folder).get("task_type") == JUDGES)


def read(folder: Path, backend: Backend) -> AdapterFiles:
    """Raises UserError for an adapter of another kind than LoRA, or one that we cannot honour."""
    config = _read_config(folder)
    file = _weights_of(folder)
    halves, copies = _halves_and_copies(file, backend)
    pairs: dict[str, Pair] = {}
    for module, parts in halves.items():
        pairs[module] = _pair(module, parts, config, file, backend)
    if not pairs and not copies:
        raise UserError("holds no tensor", where=str(file), hint="is the download whole?")
    saved = _saved_modules(config)
    whole: Params = {}
    base: Params = {}
    for name, tensor in copies.items():
        module = name.rpartition(".")[0]
        # as PEFT matches them, by the end of a module's name
        if any(module.endswith(end) for end in saved):
            whole[name] = tensor
        else:
            base[_under(name)] = tensor
    return AdapterFiles(pairs, transposed(whole), config, transposed(base))


def _weights_of(folder: Path) -> Path:
    """The file of the adapter's tensors. Raises UserError where it is missing."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        if pickled:
            hint = "pickled weights are not read: convert them to safetensors"
        else:
            hint = "is the download whole?"
        raise UserError(f"{WEIGHTS} is missing", where=str(folder), hint=hint)
    return file


def _halves_and_copies(file: Path, backend: Backend) -> tuple[dict[str, Params], Params]:
    """(module → its lora_A and lora_B, the other tensors by their names in the base). Raises
    UserError for a tensor of another kind."""
    halves: dict[str, Params] = {}
    copies: Params = {}
    for key, value in read_tensors(file, backend).items():
        name = key.removeprefix(_PREFIX)
        module, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_B"):
            halves.setdefault(module, {})[part] = value
        elif ".lora_" in name or name == key:
            raise UserError(
                f"holds {key}, which is not known here",
                where=str(file),
                hint="merge it with PEFT first",
            )
        else:
            copies[name.replace(".modules_to_save.", ".")] = value
    return halves, copies


def _pair(
    module: str, parts: Params, config: Mapping[str, Any], file: Path, backend: Backend
) -> Pair:
    """The adapter of a module. Raises UserError where its halves do not fit together, or do not
    belong to the config."""
    if len(parts) != 2:
        raise UserError(
            f"{module} has one half of an adapter", where=str(file), hint="is the download whole?"
        )
    a = backend.numpy(parts["lora_A"])
    b = backend.numpy(parts["lora_B"])
    rank = int(a.shape[0])
    if b.shape[-1] != rank:
        raise UserError(
            f"{module}: shapes {a.shape} and {b.shape} do not fit together", where=str(file)
        )
    said = _rank(config, module)
    if said not in (None, rank):
        raise UserError(
            f"{module} is of rank {rank}, {CONFIG} says {said}",
            where=str(file),
            hint="the two files do not belong together",
        )
    if _meant(config, module) is False:
        raise UserError(
            f"holds an adapter of {module}, which {CONFIG} leaves out",
            where=str(file),
            hint="the two files do not belong together",
        )
    return Pair(a, b, _scale(config, module, rank))


def _saved_modules(config: Mapping[str, Any]) -> list[str]:
    """The modules that the adapter has copies of, as the config names them."""
    return [str(module) for module in config.get("modules_to_save") or ()]


def need_all(
    found: AdapterFiles, modules: Iterable[str], tensors: Iterable[str], where: str
) -> None:
    """Raises UserError where the adapter says that it changes one of the base's `modules`, or has a
    copy of one of its `tensors`, and holds none."""
    saved = _saved_modules(found.config)
    for module in modules:
        apart = any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in saved)
        if _meant(found.config, module) and not apart and module not in found.pairs:
            raise UserError(
                f"lacks the adapter of {module}, which {CONFIG} names",
                where=where,
                hint="is the download whole?",
            )
    for tensor in tensors:
        module = tensor.rpartition(".")[0]
        if _ends(module, saved) and tensor not in found.whole:
            raise UserError(
                f"lacks {tensor}, which {CONFIG} says was trained whole",
                where=where,
                hint="is the download whole?",
            )


def _meant(config: Mapping[str, Any], module: str) -> bool | None:
    """Whether the config says that the module is adapted, as PEFT's check_target_module_exists;
    None where it does not say which modules are."""
    out = config.get("exclude_modules")
    if out and _fits(module, out):
        return False
    targets = config.get("target_modules")
    if not targets or targets == "all-linear":
        return None
    if not _fits(module, targets):
        return False
    if isinstance(targets, str):
        return True
    layers = config.get("layers_to_transform")
    if module in targets or layers in (None, []):
        return True
    if isinstance(layers, int):
        layers = [layers]
    patterns = config.get("layers_pattern") or r"[^.]*"
    if isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        numbered = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if numbered:
            return int(numbered[1]) in layers
    return False


def _fits(module: str, names: str | Iterable[Any]) -> bool:
    """Whether names mean the module: a regular expression for all of its name, or a list of ends."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return _ends(module, names)


def _ends(module: str, names: Iterable[Any]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _under(name: str) -> str:
    """The base's own name of a tensor on which PEFT has put something; `original_module` is what
    stands under a copy.
    """
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def write(
    folder: Path,
    backend: Backend,
    pairs: Mapping[str, Pair],
    whole: Params,
    *,
    base: str,
    revision: str | None,
    task: str,
    tied: bool,
    modules: Iterable[str],
) -> None:
    """Fills an existing folder. `task` is PEFT's word for what the model does (JUDGES, WRITES,
    ANSWERS), `whole` are tensors that stand in place of the base's, `modules` the names of all
    matrices of the base, from which the short names in adapter_config.json are told apart."""
    if tied:
        whole = _with_head(whole)
    stand_in = list(dict.fromkeys(name.rpartition(".")[0] for name in whole))
    names = list(modules)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "revision": revision,
        **_ranks_and_alphas(pairs),
        "target_modules": _short(list(pairs), names),
        "modules_to_save": _short(stand_in, [*names, *stand_in]) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_dora": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "fan_in_fan_out": any(is_transposed(f"{module}.weight") for module in pairs),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors: Params = {}
    for module, pair in pairs.items():
        for part, value in (("lora_A", pair.a), ("lora_B", pair.b)):
            half = np.ascontiguousarray(value, np.float32)
            tensors[f"{_PREFIX}{module}.{part}.weight"] = backend.array(half)
    for name, tensor in transposed(whole).items():
        tensors[_PREFIX + name] = tensor
    backend.save(folder / WEIGHTS, tensors, {})


def _with_head(whole: Params) -> Params:
    """The tensors with a copy of the table of embeddings for the head: PEFT's copies of the two are
    not tied.
    """
    made = dict(whole)
    for name in whole:
        if name.endswith(("embed_tokens.weight", ".wte.weight")):
            made["lm_head.weight"] = whole[name] * 1
    return made


def _ranks_and_alphas(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """The rank and alpha that most modules have, and those of the modules that have another."""
    ranks = {module: pair.rank for module, pair in pairs.items()}
    alphas = {module: pair.scale * pair.rank for module, pair in pairs.items()}
    rank = _most_common(ranks.values())
    alpha = _most_common(alphas.values())
    return {
        "r": rank,
        "lora_alpha": _whole_number(alpha),
        "use_rslora": False,
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: _whole_number(a) for m, a in alphas.items() if a != alpha},
    }


def _most_common(values: Iterable[Any]) -> Any:
    """The most common of the values, the first of several; 1 where there is none."""
    for value, _ in Counter(values).most_common(1):
        return value
    return 1


def _short(found: list[str], modules: Iterable[str]) -> list[str]:
    """The last parts of the names where these mean the same modules, else the whole names."""
    ends = {name.rpartition(".")[2] for name in found}
    meant = {name for name in modules if name.rpartition(".")[2] in ends}
    if meant == set(found):
        return sorted(ends)
    return sorted(found)


def _rank(config: Mapping[str, Any], module: str) -> Any:
    """The rank that the config gives a module's adapter; None where it says none."""
    return _own(config, "rank_pattern", module, config.get("r"))


def _own(config: Mapping[str, Any], patterns: str, module: str, usual: Any) -> Any:
    """A module's own value. The names of `patterns` are regular expressions for the end of a
    module's name, of which the first that fits counts, as in PEFT."""
    for pattern, own in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return own
    return usual


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """By what a module's adapter is multiplied."""
    alpha = _own(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if not is_number(alpha):
        raise UserError(f"{alpha!r} is not a number", where=f"{CONFIG}: lora_alpha")
    return scale_of(float(alpha), rank, bool(config.get("use_rslora")))


def _whole_number(x: float) -> float | int:
    if x == int(x):
        return int(x)
    return x


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = load_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=str(file), hint="is the download whole?"
        ) from error
    if not isinstance(config, dict):
        raise UserError("holds no JSON object", where=str(file))
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"is an adapter of kind {config.get('peft_type')!r}",
            where=str(file),
            hint="known: LORA",
        )
    check_fields(config, str(file))
    fields = Fields(config)
    for name, known in _ONLY.items():
        if fields.get(name) not in known:
            raise UserError(
                f"{config[name]!r} is not known here",
                where=f"{file}: {name}",
                hint="merge it with PEFT first",
            )
    for name in unread(fields, {*_HARMLESS, *_READ}):
        if config[name] not in (False, [], {}):
            raise UserError(
                f"{config[name]!r} is said of a field that is not known here",
                where=f"{file}: {name}",
                hint="merge it with PEFT first",
            )
    return config
