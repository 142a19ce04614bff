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
        if base := hub_base(folder, config):
            key = "model" if "fine_tune_type" in config else "base_model_name_or_path"
            config = {**config, key: base[0], **({"revision": base[1]} if base[1] else {})}
        template = (folder / "chat_template.jinja").is_file() or "chat_template" in _json(
            folder / "tokenizer_config.json"
        )
        return cls(config, template)

    @property
    def task(self) -> str:
        """As the Hub calls it."""
        if self.config.get("task_type") in _ADAPTER_TASKS:
            return _ADAPTER_TASKS[self.config["task_type"]]
        names = [str(name) for name in self.config.get("architectures") or ()]
        return next(
            (task for part, task in _TASKS.items() if any(part in name for name in names)), WRITES
        )

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
        key = "model" if "fine_tune_type" in self.config else "base_model_name_or_path"
        if self.adapter:
            return str(self.config.get(key) or "")
        return ""


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
    for place in (
        folder / base,
        Path(os.path.expanduser(base)),
    ):  # a folder goes before a name, as where it is loaded
        if place.is_dir():
            found = origin(place)
            if found.get("kind") == "model":
                return (found["repo"], found["commit"])
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
        return f'"{self.repo}"' + (f', subfolder="{self.under}"' if self.under else "")


def use(subject: Subject, place: Place, prompt: str) -> list[str]:
    """Markdown: how to use it in transformers (and PEFT), mlx-lm and ondevice, where these can."""
    ways = [
        (
            "transformers and PEFT" if subject.adapter else "transformers",
            "python",
            _in_transformers(subject, place, prompt),
        ),
        ("mlx-lm", "python", _in_mlx_lm(subject, place, prompt)),
        ("ondevice", "sh", _here(subject, place, prompt)),
    ]
    parts = [
        f"With {program}:\n\n```{kind}\n{text.strip()}\n```\n"
        for program, kind, text in ways
        if text
    ]
    return ["## Use\n", *parts] if parts else []


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
    task, auto = subject.task, _CLASSES[subject.task]
    classes = task == JUDGES and len(subject.config.get("id2label") or ()) > 1
    names = sorted([auto, "AutoTokenizer"]) + ["pipeline"] * (classes or task == FILLS)
    load = (_ADAPTER if subject.adapter else _MODEL).format(
        imports=", ".join(names),
        auto=auto,
        arguments=place.arguments,
        base=subject.base,
        more=subject.base_revision + (", num_labels=1" if task == JUDGES else ""),
    )
    if subject.chats:
        asked = (
            f"tokenizer.apply_chat_template({_turns(prompt)}, add_generation_prompt=True,\n"
            '                                    return_tensors="pt", return_dict=True)'
        )
    else:
        asked = f'tokenizer({json.dumps(prompt)}, return_tensors="pt")'
    # an encoder-decoder's output is the answer alone
    answer = ', ids["input_ids"].shape[1]:' if task == WRITES else ""
    text = {FILLS: _FILL, JUDGES: _CLASSIFY if classes else _SCORE}.get(task, _WRITE)
    return text.format(
        load=load, asked=asked, answer=answer, said=json.dumps(prompt), turns=_turns(prompt)
    )


def _in_mlx_lm(subject: Subject, place: Place, prompt: str) -> str:
    """It opens decoders, at a repository's top alone, and adapters of its own kind, in a folder."""
    if (
        subject.task != WRITES
        or place.under
        or subject.opener == "peft"
        or (subject.adapter and not subject.base)
    ):
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
    if subject.task == JUDGES or (
        subject.adapter and (subject.opener != "peft" or not subject.base)
    ):
        return ""
    name = place.repo.rpartition("/")[2]
    folder = f"{name}/{place.under}" if place.under else name
    if subject.task == FILLS:
        ask = f'fill {folder} "The [MASK] is here."'
    else:
        ask = f"generate {folder} {shlex.quote(prompt)} --max-new-tokens 64{' --chat' if subject.chats else ''}"
    return f"ondevice pull {place.repo} --out {name}\nondevice {ask}"


def _turns(prompt: str) -> str:
    return f'[{{"role": "user", "content": {json.dumps(prompt)}}}]'


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if isinstance(value, dict):
        return value
    return {}
