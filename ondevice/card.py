"""The model card: what a folder is and how it came to be, from what happened and nothing else.

`model_card` is what a stage writes beside its model. `run_card` is what travels to the Hub: the same with everything
that the run folder knows by then, metadata that the Hub reads, and curves.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondevice.config.load import to_mapping
from ondevice.config.stages import StageConfig
from ondevice.context import Made
from ondevice.curves import curves, picture
from ondevice.figures import sections
from ondevice.history import (
    Past,
    data_names,
    history,
    hub_datasets,
    made_with,
    notes,
    parameters,
    raters,
    short_name,
    start_of,
)
from ondevice.inert import inert
from ondevice.models.network import fills
from ondevice.models.snapshot import is_name
from ondevice.progress import duration, size
from ondevice.report import cell, markdown
from ondevice.runfolder import RunFolder

WHAT: Mapping[str, str] = {
    "init": "random weights", "pretrain": "learning from plain text", "sft": "instruction tuning on chats",
    "sample": "responses to be rated", "rate": "rating",
    "classify": "a classifier: it tells texts apart, and writes none",
    "reward": "a reward model: it scores a whole conversation, and writes no text",
    "dpo": "preference tuning on pairs, without a reward model", "ppo": "preference tuning by a reward model (PPO)",
    "grpo": "reasoning, from verifiable rewards (GRPO)"}
_LEFT_OUT = {"out", "resume", "backend", "device", "dtype", "model", "reward_model", "keep", "save_every",
             "sample_every", "push_every", "push_to", "ratings"}
_NAMES = {"data", "validation", "replay", "sft_data", "tokenizer", "reward_file"}  # their folders are nobody's business
_METRICS = (("bits_per_byte", "bits_per_byte", "Bits per byte on held-out text"),
            ("exact_match", "exact_match", "Exact match on held-out instructions"))
_COUNTED = {"tokens": "tokens", "chats": "chats", "pairs": "pairs", "problems": "problems", "prompts": "prompts",
            "votes": "votes", "replayed": "chats of plain text"}


@dataclass(frozen=True)
class Card:
    """A card's text, and the pictures that it shows: path → SVG."""

    text: str
    pictures: Mapping[str, str] = field(default_factory=dict)


def model_card(stage: str, cfg: StageConfig, made: Made, run: str) -> str:
    """Markdown with the metadata that the Hub reads; settings as they were, who rated where somebody did."""
    judges = made.model is not None and made.model.cfg.num_labels
    filling = made.model is not None and fills(made.model.cfg)
    task = "text-classification" if judges else "fill-mask" if filling else "text-generation"
    low = made.model.adapter if made.model is not None else None
    head = metadata(library_name="peft" if low else "transformers", pipeline_tag=task,
                    base_model=_on_hub(low.base) if low else "", tags=["ondevice"])
    lines = [head, f"# {cell(run)}: {cell(stage)}", "", f"Made by ondevice: {WHAT.get(stage, stage)}.", ""]
    if low:
        lines += [f"An adapter (LoRA, in PEFT's format) beside {cell(_base_name(low.base))}, which it needs.", ""]
    if start := getattr(cfg, "model", ""):
        path = Path(start)
        lines += [f"Start: {cell(path.parent.name if path.name == 'model' else path.name)}", ""]
    lines += [f"* {cell(note)}" for note in made.notes] + ([""] if made.notes else [])
    return "\n".join([*lines, *_settings(to_mapping(cfg))]) + "\n"


def folder_card(folder: Path, repo: str, *, license: str = "") -> Card:
    """Of a model of which no run is known: its own card where it has one, else what its config says."""
    own = folder / "README.md"
    if own.is_file():
        return Card(own.read_text(encoding="utf-8", errors="replace"))
    config = _config(folder)
    head = metadata(**_kind(config), license=license, tags=["ondevice"])
    text = [head, f"# {cell(_title(repo, folder.name))}", "", "Pushed by ondevice; how it was trained is not known."]
    return Card("\n".join([*text, "", *_use(folder, config, repo, "Hello")]) + "\n")


def run_card(run: RunFolder, stage: str, repo: str, *, under: str = "", license: str = "",
             folders: Sequence[str] = (), model: Path | None = None, step: int | None = None) -> Card:
    """The card of a stage's model. `under`: the folder of the repository that it stands in; `folders`: the stages that
    stand in folders of their own beside it; `model` and `step`: a checkpoint's, where it is not the stage's result,
    whose figures are then not told."""
    pasts = history(run, stage)
    if step is not None:
        pasts[-1] = replace(pasts[-1], record={}, step=step)
    folder = model or run.stage(stage).model
    config = _config(folder)
    prompt = next((str(a["prompt"]) for p in reversed(pasts) for a in p.record.get("answers") or ()
                   if _plain(str(a["prompt"]))), "Hello")
    pictures = {} if under else _pictures(pasts)
    told = f"{under}/" if under else ""
    parts = [
        _head(pasts, config, repo, license, run.path.name),
        f"# {cell(_title(repo, run.path.name))}{f' ({cell(stage)})' if under else ''}\n", _about(pasts, config, folder),
        *_use(folder, config, repo, prompt, under), *_walk(folders, repo), *_stages(pasts), *_figures(pasts),
        *_curves(pictures), *_ratings(pasts), *_cost(pasts), *_limits(pasts, config), *_all_settings(pasts)]
    return Card("\n".join(parts) + "\n", {f"{told}{path}": text for path, text in pictures.items()})


def metadata(**values: Any) -> str:
    """The block that the Hub reads; what is empty is left out."""
    import yaml

    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n"


def _head(pasts: Sequence[Past], config: Mapping[str, Any], repo: str, license: str, run: str) -> str:
    kind, base = _kind(config), pasts[0].record.get("base") or {}
    return metadata(**{**kind, "base_model": kind["base_model"] or base.get("repo")}, license=license,
                    datasets=hub_datasets(list(pasts)),
                    tags=["ondevice", *(past.name for past in pasts)],
                    **{"model-index": _index(pasts[-1], _title(repo, run))})


def _index(past: Past, name: str) -> list[dict[str, Any]]:
    """The held-out figures as the Hub lists results."""
    marks, found = past.marks, []
    for key, kind, told in _METRICS:
        if isinstance(marks.get(key), int | float):
            found.append({"type": kind, "value": marks[key], "name": told})
    if "accuracy" in marks and "interval" in marks:
        found.append({"type": "accuracy", "value": marks["accuracy"], "name": "Held-out pairs ranked rightly"})
    if reasoning := marks.get("reasoning"):
        found.append({"type": "accuracy", "value": reasoning["accuracy"], "name": "Held-out problems solved greedily"})
        found.append({"type": "pass_at_k", "value": reasoning["pass_at"], "name": f"pass@{reasoning['passes']}"})
    if not found:
        return []
    judges = "interval" in marks
    whose = " and ".join(dict.fromkeys(name for name, _ in data_names(past))) or "built-in corpus"
    data = {"name": f"{whose}, held out", "type": "ondevice-held-out"}
    task = {"type": "text-classification" if judges else "text-generation"}
    return [{"name": name, "results": [{"task": task, "dataset": data, "metrics": found}]}]


def _about(pasts: Sequence[Past], config: Mapping[str, Any], folder: Path) -> str:
    past = pasts[-1]
    way = " → ".join(p.name for p in pasts)
    base = _base(config)
    what = f"A {config.get('model_type', 'a')} model of {parameters(folder):,} parameters" if not base else (
        f"An adapter (LoRA, in PEFT's format) of {parameters(folder):,} parameters beside {_base_name(base)}, which it "
        "needs")
    half = "" if past.record else f" This is a checkpoint of a stage that has not ended: step {past.step:,}."
    return (f"{cell(what)}, trained with ondevice. It began from {cell(start_of(pasts[0]))}; its stages: "
            f"{cell(way)}. The last one, {cell(past.name)}: {WHAT.get(past.name, 'a stage')}.{half}\n")


def _use(folder: Path, config: Mapping[str, Any], repo: str, prompt: str, under: str = "") -> list[str]:
    """How to use it in transformers, mlx-lm and ondevice. A test runs these."""
    sub = f', subfolder="{under}"' if under else ""
    chats = _chats(folder)
    said = json.dumps(prompt)
    turns = f'[{{"role": "user", "content": {said}}}]'
    task = _task(config)
    if _base(config):  # mlx-lm's are of another format
        return _use_adapter(folder, repo, prompt, under, task) if "peft_type" in config else []
    if task == "fill-mask":
        return ["## Use\n", _code("python", [
            "from transformers import pipeline", "", f'fill = pipeline("fill-mask", "{repo}"{sub})',
            'print(fill(f"The {fill.tokenizer.mask_token} is here.")[0]["sequence"])'])]
    if task == "text-classification":
        return ["## Use\n", _code("python", [
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer", "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{sub})',
            f'model = AutoModelForSequenceClassification.from_pretrained("{repo}"{sub})',
            f'chat = [*{turns}, {{"role": "assistant", "content": "Yes."}}]',
            'ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)',
            "print(model(**ids).logits[0, 0].item())"])]
    ask = (f"tokenizer.apply_chat_template({turns}, add_generation_prompt=True,\n"
           '                                    return_tensors="pt", return_dict=True)' if chats else
           f'tokenizer({said}, return_tensors="pt")')
    both = task == "text2text-generation"  # an encoder-decoder's output is the answer alone
    auto, begins = ("AutoModelForSeq2SeqLM", "") if both else ("AutoModelForCausalLM", ', ids["input_ids"].shape[1]:')
    parts = ["## Use\n", "With transformers:\n", _code("python", [
        f"from transformers import {auto}, AutoTokenizer", "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{sub})',
        f'model = {auto}.from_pretrained("{repo}"{sub})', f"ids = {ask}",
        "out = model.generate(**ids, max_new_tokens=64)",
        f'print(tokenizer.decode(out[0{begins}], skip_special_tokens=True))'])]
    if not under and not both:  # mlx-lm opens a repository's top alone, and decoders
        prepared = f"tokenizer.apply_chat_template({turns}, add_generation_prompt=True)" if chats else said
        parts += ["With mlx-lm:\n", _code("python", [
            "from mlx_lm import generate, load", "", f'model, tokenizer = load("{repo}")', f"prompt = {prepared}",
            "print(generate(model, tokenizer, prompt=prompt, max_tokens=64))"])]
    return [*parts, *_use_here(folder, repo, prompt, under)]


def _use_adapter(folder: Path, repo: str, prompt: str, under: str, task: str) -> list[str]:
    """How to use an adapter: PEFT finds its base by the name in adapter_config.json."""
    auto = {"text-classification": "AutoPeftModelForSequenceClassification",
            "text2text-generation": "AutoPeftModelForSeq2SeqLM"}.get(task, "AutoPeftModelForCausalLM")
    sub = f', subfolder="{under}"' if under else ""
    more = ", num_labels=1" if task == "text-classification" else ""
    parts = ["## Use\n", "With transformers and PEFT:\n", _code("python", [
        f"from peft import {auto}", "from transformers import AutoTokenizer", "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{sub})',
        f'model = {auto}.from_pretrained("{repo}"{sub}{more})'])]
    return parts if task == "text-classification" else [*parts, *_use_here(folder, repo, prompt, under)]


def _use_here(folder: Path, repo: str, prompt: str, under: str) -> list[str]:
    name = repo.rpartition("/")[2]
    return ["With ondevice:\n", _code("sh", [
        f"ondevice pull {repo} --out {name}",
        f"ondevice generate {name}{'/' + under if under else ''} {shlex.quote(prompt)} "
        f"--max-new-tokens 64{' --chat' if _chats(folder) else ''}"])]


def _chats(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or "chat_template" in _json(folder / "tokenizer_config.json")


def _walk(folders: Sequence[str], repo: str) -> list[str]:
    if not folders:
        return []
    names = ", ".join(f"`{name}`" for name in folders)
    return ["## Every stage\n", f"Each stage's model is in a folder of its name: {names}; "
            f'`from_pretrained("{repo}", subfolder="{folders[0]}")` opens one.\n']


def _stages(pasts: Sequence[Past]) -> list[str]:
    table = [["stage", "what", "began from", "data (hash)", "amount", "steps", "tokens trained", "time"]]
    for past in pasts:
        data = ", ".join(f"{name} ({mark})" if mark else name for name, mark in data_names(past))
        amount = ", ".join(f"{past.data[key]:,} {word}" for key, word in _COUNTED.items()
                           if isinstance(past.data.get(key), int))
        steps = past.outcome.get("steps") if past.record else past.step
        tokens = past.outcome.get("tokens")
        seconds = past.record.get("seconds")
        began = start_of(past) if "model" in past.config else ""
        table.append([past.name, WHAT.get(past.name, ""), began, data, amount,
                      f"{steps:,}" if steps else "", f"{tokens:,}" if tokens else "",
                      duration(seconds) if seconds is not None else ""])
    return ["## How it was made\n", *markdown(table), "", *_licences(pasts)]


def _licences(pasts: Sequence[Past]) -> list[str]:
    names = {name for past in pasts for name, _ in data_names(past)}
    told = []
    if "built-in corpus" in names:
        told.append("The built-in corpus is generated by ondevice (Apache-2.0): small invented worlds, sums and chats.")
    if names - {"built-in corpus", "the run's ratings"}:
        told.append("Licences of the other data are not recorded.")
    return [" ".join(told) + "\n"] if told else []


def _figures(pasts: Sequence[Past]) -> list[str]:
    """The ladder and what belongs to it, up to this stage."""
    done = [(past.name, {**past.record, "notes": notes(past)}) for past in pasts if past.record]
    if not done:
        return []
    lines = ["## Held-out results\n"]
    for number, section in enumerate(sections(done)):
        lines += [f"### {cell(section.title)}\n"] if number and section.title else []
        lines += [*markdown(section.table), ""] if section.table else []
        lines += [*(f"- {cell(note)}" for note in section.notes), ""] if section.notes else []
    return lines


def _pictures(pasts: Iterable[Past]) -> dict[str, str]:
    """Path → SVG of every curve; a name has no sign that a path or Markdown reads otherwise."""
    found = {}
    for past in pasts:
        for curve in curves(past.folder.events):
            plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in f"{past.name}-{curve.title}".lower())
            found[f"curves/{plain}.svg"] = picture(curve, past.name)
    return found


def _curves(pictures: Mapping[str, str]) -> list[str]:
    shown = [f"![{path.removeprefix('curves/').removesuffix('.svg').replace('-', ' ')}]({path})" for path in pictures]
    return ["## Curves\n", *shown, ""] if shown else []


def _ratings(pasts: Sequence[Past]) -> list[str]:
    lines = []
    for past in pasts:
        found = raters(past)
        if found is not None:
            pairs, people, programs = found
            by = [f"{people} {'person' if people == 1 else 'people'}"] if people else []
            by += [f"{programs} simulated rater{'s' * (programs > 1)} (a rule, not a person)"] if programs else []
            lines.append(f"- {cell(past.name)} learned from {pairs:,} pairs, rated by {' and '.join(by)}.")
    return ["## Ratings\n", *lines, ""] if lines else []


def _cost(pasts: Sequence[Past]) -> list[str]:
    seconds = sum(past.record.get("seconds") or 0 for past in pasts)
    cpu = sum(past.record.get("cpu_seconds") or 0 for past in pasts)
    tokens = sum(past.outcome.get("tokens") or 0 for past in pasts)
    peak = max((past.record.get("peak_bytes") or 0 for past in pasts), default=0)
    made = dict.fromkeys(made_with(past) for past in pasts if past.versions)
    return ["## What it took\n", f"- time: {duration(seconds)} ({cpu:,.0f} CPU seconds)",
            f"- tokens trained on: {tokens:,}", f"- memory at most: {size(peak)}",
            *(f"- on: {cell(one)}" for one in made), ""]


def _limits(pasts: Sequence[Past], config: Mapping[str, Any]) -> list[str]:
    told = [*([] if _base(config) else [
                f"Its context holds {config.get('max_position_embeddings', 0):,} tokens, its vocabulary "
                f"{config.get('vocab_size', 0):,}."]),
            "What it writes was checked by the measurements above and by nothing else: neither for truth nor for harm."]
    names = [name for past in pasts for name, _ in data_names(past)]
    if names and set(names) <= {"built-in corpus", "the run's ratings"} and start_of(pasts[0]) == "random weights":
        told.append("It has read the built-in corpus alone: an invented world and its sums. Of the real one it knows "
                    "nothing.")
    if any((found := raters(past)) is not None and found[2] for past in pasts):
        told.append("Its simulated ratings say what a rule prefers, and nothing of what people do.")
    return ["## Limits\n", *(f"- {line}" for line in told), ""]


def _all_settings(pasts: Sequence[Past]) -> list[str]:
    lines = ["## Settings\n"]
    for past in pasts:
        lines += [f"<details><summary>{past.name}</summary>\n", *_settings(past.config), "\n</details>\n"]
    return lines


def _settings(config: Mapping[str, Any]) -> list[str]:
    table = [["setting", "value"]]
    for name, value in config.items():
        if name in _NAMES and isinstance(value, str) and not value.startswith(("builtin", "hub:")):
            value = Path(value).name
        if name not in _LEFT_OUT and value not in ("", None, [], ()):
            table.append([name, str(value)])
    return markdown(table)


def _code(kind: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{kind}", *lines, "```", ""])


def _plain(text: str) -> bool:
    """Whether it can stand in a line of code on a page."""
    return 0 < len(text) <= 200 and text == inert(text, newlines=False) and not set(text) & set("`<>\\\n")


def _title(repo: str, otherwise: str) -> str:
    return repo.rpartition("/")[2] or otherwise


_TASKS = {"SequenceClassification": "text-classification", "MaskedLM": "fill-mask",
          "ConditionalGeneration": "text2text-generation"}
"""Part of an architecture's name → what the Hub calls its task."""
_ADAPTERS = {"SEQ_CLS": "text-classification", "SEQ_2_SEQ_LM": "text2text-generation"}
"""The same of what PEFT calls an adapter's task."""


def _config(folder: Path) -> dict[str, Any]:
    """A model's config, or an adapter's."""
    return _json(folder / "config.json") or _json(folder / "adapter_config.json")


def _kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that say what a folder is."""
    base = _base(config)
    return {"library_name": "peft" if base else "transformers", "pipeline_tag": _task(config),
            "base_model": _on_hub(base)}


def _base(config: Mapping[str, Any]) -> str:
    """The base that an adapter's config names; nothing for a model's."""
    whole = not config or "model_type" in config
    return "" if whole else str(config.get("base_model_name_or_path") or "a base that is not named")


def base_may_be_told(folder: Path) -> bool:
    """Whether what an adapter's folder names as its base, if anything, is a name of the Hub."""
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    return not base or bool(_on_hub(str(base)))


def _on_hub(base: str) -> str:
    """A base's name where it is one of the Hub; its folder is nobody's business."""
    return base if is_name(base) else ""


def _base_name(base: str) -> str:
    return _on_hub(base) or short_name(base)


def _task(config: Mapping[str, Any]) -> str:
    if config.get("task_type") in _ADAPTERS:
        return _ADAPTERS[config["task_type"]]
    names = [str(name) for name in config.get("architectures") or ()]
    return next((task for part, task in _TASKS.items() if any(part in name for name in names)), "text-generation")


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
