"""What a model's folder is to other programs, and the lines that use it there: a part of every
card.

A test runs each of these snippets as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common.json_files import load_json
from ondevice.hub.pull import origin
from ondevice.hub.snapshot import is_name
from ondevice.publishing.public_names import short_name

_ADAPTER_CONFIG = "adapter_config.json"
WRITES, WRITES_ANEW = "text-generation", "text2text-generation"
JUDGES, FILLS = "text-classification", "fill-mask"
_TASKS = {"SequenceClassification": JUDGES, "MaskedLM": FILLS, "ConditionalGeneration": WRITES_ANEW}
"""Part of an architecture's name → what the Hub calls its task."""
_ADAPTER_TASKS = {"SEQ_CLS": JUDGES, "SEQ_2_SEQ_LM": WRITES_ANEW}
"""The same of what PEFT calls an adapter's task."""
_CLASSES = {
    WRITES: "AutoModelForCausalLM",
    WRITES_ANEW: "AutoModelForSeq2SeqLM",
    FILLS: "AutoModelForMaskedLM",
    JUDGES: "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class Subject:
    """A model's folder, or an adapter's, by what its config says."""

    config: Mapping[str, Any]
    chats: bool = False  # there is a chat template

    @classmethod
    def of(cls, folder: Path) -> Subject:
        config = _json(folder / "config.json") or _json(folder / _ADAPTER_CONFIG)
        if (folder / "chat_template.jinja").is_file():
            chats = True
        else:
            chats = "chat_template" in _json(folder / "tokenizer_config.json")
        return cls(with_hub_base(folder, config), chats)

    @property
    def task(self) -> str:
        """As the Hub calls it."""
        if self.config.get("task_type") in _ADAPTER_TASKS:
            return _ADAPTER_TASKS[self.config["task_type"]]
        names = [str(name) for name in self.config.get("architectures") or ()]
        for part, task in _TASKS.items():
            if any(part in name for name in names):
                return task
        return WRITES

    @property
    def adapter(self) -> bool:
        return bool(self.config) and "model_type" not in self.config

    @property
    def base(self) -> str:
        """The base that an adapter names, where it is one of the Hub: a folder is nobody's
        business.
        """
        if is_name(self._base) and not Path(self._base).is_dir():
            return self._base
        return ""

    @property
    def base_name(self) -> str:
        """What the base is called."""
        return self.base or short_name(self._base) or "a base that is not named"

    @property
    def base_revision(self) -> str:
        """An argument of `from_pretrained`: the commit of the base, where the adapter names one."""
        commit = str(self.config.get("revision") or "")
        if re.fullmatch(r"[0-9a-f]{40}", commit):
            return f', revision="{commit}"'
        return ""

    @property
    def opener(self) -> str:
        """As the Hub calls it: the one that opens the folder as it is."""
        if self.adapter:
            if "fine_tune_type" in self.config:
                return "mlx"
            return "peft"
        if "quantization" in self.config:
            return "mlx"
        return "transformers"

    def metadata(self) -> dict[str, str]:
        return {"library_name": self.opener, "pipeline_tag": self.task, "base_model": self.base}

    @property
    def _base(self) -> str:
        if self.adapter:
            return str(self.config.get(_base_key(self.config)) or "")
        return ""


def _base_key(config: Mapping[str, Any]) -> str:
    """Under what an adapter's config names its base: mlx-lm's, or PEFT's."""
    if "fine_tune_type" in config:
        return "model"
    return "base_model_name_or_path"


def with_hub_base(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """An adapter's config that names its base as the Hub does; any other config as it is."""
    base = hub_base(folder, config)
    if base is None:
        return config
    name, commit = base
    changed = {**config, _base_key(config): name}
    if commit:
        changed["revision"] = commit
    return changed


def base_may_be_told(folder: Path) -> bool:
    """Whether what an adapter's folder names as its base, if anything, is a model of the Hub."""
    config = _json(folder / _ADAPTER_CONFIG)
    return bool(hub_base(folder, config)) or not Subject(config)._base


def hub_base(folder: Path, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name, commit or nothing) on the Hub of the base that an adapter's config names: by that
    name, or as a folder that was pulled from there. None: it is none of the Hub's, or there is no
    base."""
    base = Subject(config)._base
    if not base:
        return None
    # a folder goes before a name, as where it is loaded
    for place in (folder / base, Path(os.path.expanduser(base))):
        if place.is_dir():
            pulled = origin(place)
            if pulled.get("kind") == "model":
                return (pulled["repo"], pulled["commit"])
            return None
    if is_name(base):
        return (base, "")
    return None


@dataclass(frozen=True)
class Place:
    """Where a reader gets it: a repository, and the folder in it, if it stands in one."""

    repo: str
    under: str = ""

    @property
    def arguments(self) -> str:
        """Of `from_pretrained`."""
        if self.under:
            return f'"{self.repo}", subfolder="{self.under}"'
        return f'"{self.repo}"'


def use(subject: Subject, place: Place, prompt: str) -> list[str]:
    """Markdown: how to use it in transformers (and PEFT), mlx-lm and ondevice, where these can."""
    transformers = "transformers"
    if subject.adapter:
        transformers = "transformers and PEFT"
    ways = [
        (transformers, "python", _in_transformers(subject, place, prompt)),
        ("mlx-lm", "python", _in_mlx_lm(subject, place, prompt)),
        ("ondevice", "sh", _here(subject, place, prompt)),
    ]
    parts = []
    for program, kind, text in ways:
        if text:
            parts.append(f"With {program}:\n\n```{kind}\n{text.strip()}\n```\n")
    if not parts:
        return []
    return ["## Use\n", *parts]


# Braces are filled in: `load` is what makes `tokenizer` and `model`, `asked` a chat's prompt or a
# text.
_WRITE = """
{load}
ids = {asked}
out = model.generate(**ids, max_new_tokens=64)
print(tokenizer.decode(out[0{answer}], skip_special_tokens=True))
"""
_FILL = """
{load}
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
print(fill(f"The {{tokenizer.mask_token}} is here.")[0]["sequence"])
"""
_CLASSIFY = """
{load}
tell = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(tell({said}))
"""
_SCORE = """
{load}
chat = [*{turns}, {{"role": "assistant", "content": "Yes."}}]
ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
print(model(**ids).logits[0, 0].item())
"""
_MODEL = """\
from transformers import {imports}

tokenizer = AutoTokenizer.from_pretrained({arguments})
model = {auto}.from_pretrained({arguments})"""
_ADAPTER = """\
from peft import PeftModel
from transformers import {imports}

tokenizer = AutoTokenizer.from_pretrained({arguments})
base = {auto}.from_pretrained("{base}"{more})
model = PeftModel.from_pretrained(base, {arguments})"""
_MLX_LM = """
{imports}

model, tokenizer = load({what})
prompt = {asked}
print(generate(model, tokenizer, prompt=prompt, max_tokens=64))
"""


def _in_transformers(subject: Subject, place: Place, prompt: str) -> str:
    if subject.opener not in ("transformers", "peft") or (subject.adapter and not subject.base):
        return ""
    task = subject.task
    classes = task == JUDGES and len(subject.config.get("id2label") or ()) > 1
    load = _loading(subject, place, pipeline=classes or task == FILLS)
    if subject.chats:
        asked = (
            f"tokenizer.apply_chat_template({_turns(prompt)}, add_generation_prompt=True,\n"
            '                                    return_tensors="pt", return_dict=True)'
        )
    else:
        asked = f'tokenizer({json.dumps(prompt)}, return_tensors="pt")'
    answer = ""  # an encoder-decoder's output is the answer alone
    if task == WRITES:
        answer = ', ids["input_ids"].shape[1]:'
    text = _WRITE
    if task == FILLS:
        text = _FILL
    elif classes:
        text = _CLASSIFY
    elif task == JUDGES:
        text = _SCORE
    return text.format(
        load=load, asked=asked, answer=answer, said=json.dumps(prompt), turns=_turns(prompt)
    )


def _loading(subject: Subject, place: Place, *, pipeline: bool) -> str:
    """The lines that make `tokenizer` and `model`, and import `pipeline` where it is used."""
    auto = _CLASSES[subject.task]
    names = sorted([auto, "AutoTokenizer"])
    if pipeline:
        names.append("pipeline")
    more = subject.base_revision
    if subject.task == JUDGES:
        more += ", num_labels=1"
    template = _MODEL
    if subject.adapter:
        template = _ADAPTER
    return template.format(
        imports=", ".join(names),
        auto=auto,
        arguments=place.arguments,
        base=subject.base,
        more=more,
    )


def _in_mlx_lm(subject: Subject, place: Place, prompt: str) -> str:
    """It opens decoders, at a repository's top alone, and adapters of its own kind, in a folder."""
    if subject.task != WRITES or place.under or subject.opener == "peft":
        return ""
    if subject.adapter and not subject.base:
        return ""
    imports, what = "from mlx_lm import generate, load", f'"{place.repo}"'
    if subject.adapter:
        imports = f"from huggingface_hub import snapshot_download\n{imports}"
        what = f'"{subject.base}", adapter_path=snapshot_download("{place.repo}")'
    if subject.chats:
        asked = f"tokenizer.apply_chat_template({_turns(prompt)}, add_generation_prompt=True)"
    else:
        asked = json.dumps(prompt)
    return _MLX_LM.format(imports=imports, what=what, asked=asked)


def _here(subject: Subject, place: Place, prompt: str) -> str:
    if subject.task == JUDGES:
        return ""
    if subject.adapter and (subject.opener != "peft" or not subject.base):
        return ""
    name = place.repo.rpartition("/")[2]
    folder = name
    if place.under:
        folder += f"/{place.under}"
    if subject.task == FILLS:
        ask = f'fill {folder} "The [MASK] is here."'
    else:
        ask = f"generate {folder} {shlex.quote(prompt)} --max-new-tokens 64"
        if subject.chats:
            ask += " --chat"
    return f"ondevice pull {place.repo} --out {name}\nondevice {ask}"


def _turns(prompt: str) -> str:
    return f'[{{"role": "user", "content": {json.dumps(prompt)}}}]'


def _json(file: Path) -> dict[str, Any]:
    try:
        value = load_json(file)
    except (OSError, ValueError):
        return {}
    if isinstance(value, dict):
        return value
    return {}
