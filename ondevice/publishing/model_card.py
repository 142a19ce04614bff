"""The model card: what a folder is and how it came to be, from what happened and nothing else.

`model_card` is what a stage writes beside its model. `run_card` is what travels to the Hub: the
same with everything that the run folder knows by then, metadata that the Hub reads, and curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.config.load import to_mapping
from ondevice.config.stages import StageConfig
from ondevice.models.model import Model
from ondevice.publishing import card_sections
from ondevice.publishing.history import (
    StageRecord,
    base_of,
    data_names,
    history,
    hub_datasets,
    lineage,
)
from ondevice.publishing.public_names import (
    CORPUS,
    own_name,
    short_name,
    without_home,
    without_places,
)
from ondevice.publishing.usage import Place, Subject, use
from ondevice.reports.report import cell
from ondevice.runs.context import StageResult
from ondevice.runs.folder import RunFolder

_METRICS = (
    ("bits_per_byte", "bits_per_byte", "Bits per byte on held-out text"),
    ("exact_match", "exact_match", "Exact match on held-out instructions"),
)


@dataclass(frozen=True)
class Card:
    """A card's text, and the pictures that it shows: path → SVG."""

    text: str
    pictures: Mapping[str, str] = field(default_factory=dict)


def model_card(
    stage: str, cfg: StageConfig, made: StageResult, run: str, part: str = "model"
) -> str:
    """Markdown with the metadata that the Hub reads; settings as they were, who rated where
    somebody did. `part` is the folder of the stage that the model stands in."""
    subject = _subject(made.model)
    beside = ""
    if part != "model":
        beside = f", {part.replace('_', ' ')}"
    lines = [
        metadata(**subject.metadata(), tags=["ondevice"]),
        f"# {cell(own_name(run))}: {cell(stage)}{beside}",
        "",
        f"Made by ondevice: {card_sections.WHAT.get(part) or card_sections.WHAT.get(stage, stage)}.",
        "",
    ]
    if subject.adapter:
        lines += [
            f"An adapter (LoRA, in PEFT's format) beside {cell(subject.base_name)}, which it needs.",
            "",
        ]
    start = getattr(cfg, "model", "")
    if start:
        lines += [f"Start: {cell(short_name(start))}", ""]
    settings = to_mapping(cfg)
    if made.notes:
        texts = [value for value in settings.values() if isinstance(value, str)]
        lines += [f"* {cell(without_places(note, texts))}" for note in made.notes]
        lines.append("")
    return "\n".join([*lines, *card_sections.settings_table(settings)]) + "\n"


def folder_card(folder: Path, repo: str, *, license: str = "") -> Card:
    """Of a model of which no run is known: its own card where it has one, else what its config
    says.
    """
    own = folder / "README.md"
    if own.is_file():
        try:
            return Card(without_home(bounded.read_text(own, errors="replace")))
        except bounded.TooLarge as error:
            raise UserError(str(error), where=str(own), hint="make it shorter") from error
    subject = Subject.of(folder)
    head = metadata(**subject.metadata(), license=license, tags=["ondevice"])
    text = [
        head,
        f"# {cell(_title(repo, own_name(folder)))}",
        "",
        "Pushed by ondevice; how it was trained is not known.",
    ]
    return Card("\n".join([*text, "", *use(subject, Place(repo), "Hello")]) + "\n")


def run_card(
    run: RunFolder,
    stage: str,
    repo: str,
    *,
    under: str = "",
    license: str = "",
    folders: Sequence[str] = (),
    model: Path | None = None,
    step: int | None = None,
) -> Card:
    """The card of a stage's model. `under`: the folder of the repository that it stands in;
    `folders`: the stages that stand in folders of their own beside it; `model` and `step`: a
    checkpoint's, where it is not the stage's result, whose figures are then not told."""
    pasts = history(run, stage)
    if step is not None:
        pasts[-1] = replace(pasts[-1], record={}, step=step)
    folder = model or run.stage(stage).model
    subject = Subject.of(folder)
    title = _title(repo, own_name(run.path))
    heading = cell(title)
    pictures: dict[str, str] = {}
    if under:
        heading += f" ({cell(stage)})"
    else:
        pictures = card_sections.curve_pictures(pasts)
    parts = [
        _head(pasts, subject, title, license),
        f"# {heading}\n",
        card_sections.about(pasts, subject, folder),
        *use(subject, Place(repo, under), card_sections.example_prompt(pasts)),
        *card_sections.stage_folders(folders, repo),
        *card_sections.how_made(pasts),
        *card_sections.held_out_results(pasts),
        *card_sections.curve_links(pictures),
        *card_sections.who_rated(pasts),
        *card_sections.cost(pasts),
        *card_sections.limits(pasts, subject),
        *card_sections.all_settings(pasts),
    ]
    return Card("\n".join(parts) + "\n", pictures)


def metadata(**values: Any) -> str:
    """The block that the Hub reads; what is empty is left out."""
    import yaml  # here: a command that writes no card does without

    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n"


def _head(pasts: Sequence[StageRecord], subject: Subject, title: str, license: str) -> str:
    values = subject.metadata()
    if not values["base_model"]:
        values["base_model"] = base_of(lineage(list(pasts))[0])
    return metadata(
        **values,
        license=license,
        datasets=hub_datasets(list(pasts)),
        tags=["ondevice", *(past.name for past in pasts)],
        **{"model-index": _index(pasts[-1], title, subject.task)},
    )


def _index(past: StageRecord, name: str, task: str) -> list[dict[str, Any]]:
    """The held-out figures as the Hub lists results."""
    metrics = _metrics(past.marks)
    if not metrics:
        return []
    whose = " and ".join(data_names(past)) or CORPUS
    data = {"name": f"{whose}, held out", "type": "ondevice-held-out"}
    results = {"task": {"type": task}, "dataset": data, "metrics": metrics}
    return [{"name": name, "results": [results]}]


def _metrics(marks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stage's held-out figures as the Hub names them."""
    found = []
    for key, kind, title in _METRICS:
        if isinstance(marks.get(key), int | float):
            found.append(_metric(kind, marks[key], title))
    if "accuracy" in marks and "interval" in marks:
        found.append(_metric("accuracy", marks["accuracy"], "Held-out pairs ranked rightly"))
    classes = marks.get("classes")
    if classes:
        found.append(_metric("accuracy", classes["accuracy"], "Held-out texts told apart"))
    reasoning = marks.get("reasoning")
    if reasoning:
        solved = reasoning["accuracy"]
        found.append(_metric("accuracy", solved, "Held-out problems solved greedily"))
        found.append(_metric("pass_at_k", reasoning["pass_at"], f"pass@{reasoning['passes']}"))
    return found


def _metric(kind: str, value: float, name: str) -> dict[str, Any]:
    return {"type": kind, "value": value, "name": name}


def _title(repo: str, otherwise: str) -> str:
    return repo.rpartition("/")[2] or otherwise


def _subject(model: Model | None) -> Subject:
    """Of what a stage has made, ahead of its folder."""
    if model is None:
        return Subject({})
    config = model.cfg.to_json("float32")
    if model.adapter is None:
        return Subject(config)
    return Subject(
        {
            "architectures": config["architectures"],
            "base_model_name_or_path": model.adapter.base,
        }
    )
