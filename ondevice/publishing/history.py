"""What happened in a run, stage by stage, read from what the stages left: their records, events and
copies of ratings.

Names of folders and people stay here: a data set is told by its own name and hash, a rater only
counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ondevice.common import bounded, yaml_files
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json, read_json
from ondevice.config.load import read_yaml
from ondevice.config.recipe import STAGES
from ondevice.data.hub_datasets import HubSpec
from ondevice.data.mixture import ordered
from ondevice.datasets.preference_pairs import COPY as PAIRS
from ondevice.datasets.spec import COMMITS
from ondevice.hub.client import cached_card
from ondevice.hub.pull import ORIGIN
from ondevice.hub.snapshot import is_name
from ondevice.models import peft
from ondevice.models.model_folder import is_adapter_folder, weight_files
from ondevice.models.tensor_files import shapes_in
from ondevice.preferences.votes import is_simulated, person_of
from ondevice.publishing.public_names import CORPUS, parts, short_name, source_name, without_places
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.order import start_in_run

RATINGS = "the run's ratings"
_NOT_COUNTS = ("t", "event", "step", "raters")
"""Keys of an event about data that are not counts of it."""


@dataclass(frozen=True)
class StageRecord:
    """One stage. `config` and `versions` are those of its last start, `data` what it counted in its
    data; `record` is its done.json, empty of a stage that has not ended."""

    folder: StageFolder
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    data: Mapping[str, Any]
    step: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def makes_policy(self) -> bool:
        """Whether its model is one of those that later stages go on with."""
        return self.name in STAGES and STAGES[self.name].gives == "policy"

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return _mapping(self.record.get("fingerprint"))

    @property
    def marks(self) -> Mapping[str, Any]:
        return _mapping(self.record.get("marks"))

    @property
    def outcome(self) -> Mapping[str, Any]:
        return _mapping(self.record.get("outcome"))


def history(run: RunFolder, stage: str) -> list[StageRecord]:
    """The stages up to this one, in the run's order; of the earlier ones those that
    have ended.
    """
    found = []
    for folder in run.stages():
        record = folder.done_record()
        if record is not None or folder.name == stage:
            found.append(_past(folder, record or {}))
        if folder.name == stage:
            break
    return found


def _past(folder: StageFolder, record: Mapping[str, Any]) -> StageRecord:
    start: Mapping[str, Any] = {}
    data: dict[str, Any] = {}
    step = 0
    for event in events.read(folder.events):
        if event.get("event") == "start":
            start = event
        elif event.get("event") == "data":
            data = {name: value for name, value in event.items() if name not in _NOT_COUNTS}
        elif event.get("event") == "step":
            given = event.get("step")
            step = given if isinstance(given, int) else step
    config = {**_mapping(start.get("config")), **folder.settings_record().get("settings", {})}
    return StageRecord(folder, record, config, _mapping(start.get("versions")), data, step)


def data_read(past: StageRecord) -> list[tuple[tuple[str, ...], str]]:
    """(names, hash or nothing) of what each setting names that the stage learned from: one source
    or a mixture of several, none by the folder that it lies in."""
    found = []
    for field, value in _learned_from(past):
        if value:
            names = tuple(dict.fromkeys(map(source_name, _sources(value))))
        else:
            names = (RATINGS,)
        found.append((names, str(past.fingerprint.get(field) or "")))
    return list(dict.fromkeys(found))


def data_names(past: StageRecord) -> list[str]:
    """Every source that the stage learned from, by its own name."""
    found: list[str] = []
    for names, _ in data_read(past):
        found += names
    return list(dict.fromkeys(found))


def commits(past: StageRecord) -> dict[str, str]:
    """Name → commit of those of the stage's sources that were read from the Hub, where it is known."""
    found = {}
    for spec, commit in read_json(past.folder.path / COMMITS).items():
        if commit:
            found[source_name(spec)] = str(commit)
    return found


def _learned_from(past: StageRecord) -> list[tuple[str, str]]:
    """(field, value) of the settings that name data; an empty value is the run's ratings."""
    found = []
    for field in ("data", "replay", "sft_data"):
        value = past.config.get(field)
        if not isinstance(value, str):
            continue
        if not value and field != "data":
            continue
        if field == "sft_data" and not past.config.get("sft_coef"):
            continue
        found.append((field, value))
    return found


def _sources(value: str) -> list[str]:
    return [source.data for source in parts(value)]


def hub_datasets(pasts: list[StageRecord]) -> list[str]:
    """The data sets that came from the Hub, by their ids."""
    repos = set()
    for past in pasts:
        for field in ("data", "replay", "sft_data", "validation"):
            value = past.config.get(field)
            if isinstance(value, str):
                repos.update(_hub_repos(value))
    return sorted(filter(is_name, repos))


def _hub_repos(value: str) -> list[str]:
    """The repositories of the sources that a setting names by `hub:`."""
    repos = []
    for source in _sources(value):
        source = ordered(source)[1]
        if source.startswith("hub:"):
            repos.append(HubSpec.parse(source).repo)
    return repos


def licences(past: StageRecord) -> dict[str, str]:
    """Name → licence of those of the stage's sources whose own card states one: the README.md
    beside a data set that lies here, or what the Hub's client has kept of one from there."""
    found: dict[str, str] = {}
    for _, value in _learned_from(past):
        for source in _sources(value):
            if not source or source_name(source) == CORPUS:
                continue
            stated = _front_matter(_card_of(source)).get("license")
            if stated:
                found[source_name(source)] = str(stated)
    return found


def _card_of(data: str) -> str:
    data = ordered(data)[1]
    if data.startswith("hub:"):
        return cached_card(HubSpec.parse(data).repo)
    path = Path(os.path.expanduser(data))
    # gone, or meant in another folder: a README.md that is found now would be another's
    if not path.exists():
        return ""
    folder = path
    if not path.is_dir():
        folder = path.parent
        if (folder.parent / ORIGIN).is_file():  # a pulled data set keeps its rows in a folder
            folder = folder.parent
    try:
        return bounded.read_text(folder / "README.md", errors="replace")
    except (OSError, bounded.TooLarge):
        return ""


def _front_matter(card: str) -> Mapping[str, Any]:
    """The metadata at a card's head; nothing where there are none."""
    head = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.DOTALL)
    try:
        if head:
            return _mapping(yaml_files.parse(head[1]))
        return {}
    except yaml_files.BadYaml:
        return {}  # somebody else's card; it states none that can be read


def start_of(past: StageRecord) -> str:
    """What the stage began from, without the folders of this machine: `run: stage`, or a model's
    name.
    """
    value = past.config.get("model")
    if not isinstance(value, str) or not value:
        return "random weights"
    base = _mapping(past.record.get("base"))
    if base.get("repo"):
        return f"{base['repo']} at {str(base.get('commit', ''))[:12]}"
    return short_name(value)


def lineage(pasts: list[StageRecord]) -> list[StageRecord]:
    """The stages whose weights the last one's are, it last: each began from the model of the one
    before it. The first may have begun from a model of another run."""
    *earlier, last = pasts
    by_name = {past.name: past for past in earlier}
    chain = [last]
    while before := by_name.pop(start_in_run(chain[0].folder.path, chain[0].config), None):
        chain.insert(0, before)
    return chain


def base_of(past: StageRecord) -> str:
    """The model of the Hub that the stage began from; empty where it began from none."""
    if past.config.get("model"):
        return str(_mapping(past.record.get("base")).get("repo") or "")
    return ""


def notes(past: StageRecord) -> list[str]:
    """What the stage noted, without the folders of this machine."""
    names = [str(past.folder.path.parent.absolute())]
    for value in past.config.values():
        if isinstance(value, str):
            names += [value, *_sources(value)]
    paths = [name for name in (ordered(one)[1] for one in names) if not name.startswith("hub:")]
    return [without_places(str(note), paths) for note in past.record.get("notes") or ()]


def made_with(past: StageRecord) -> str:
    """Libraries, device and machine of the stage's last start, and the version of ondevice where a
    recipe tells it.
    """
    words = [f"{key} {value}" for key, value in past.versions.items()]
    recipe = past.folder.path.parent / "recipe.yaml"
    if recipe.is_file():
        try:
            known = read_yaml(recipe)
        except UserError:
            known = {}  # somebody has edited it
        version = _mapping(known.get("versions")).get("ondevice")
        if version:
            words.append(f"ondevice {version}")
        system = str(_mapping(known.get("machine")).get("system", "")).partition("-")[0]
        if system:
            words.append(system)
    return ", ".join(words)


def raters(past: StageRecord) -> tuple[int, int, int] | None:
    """(pairs, people, programs) of the ratings that a stage learned from; None: it learned from
    none, or from pairs that came without a rater."""
    copy = past.folder.path / PAIRS
    if not copy.is_file():
        return None
    names: set[str] = set()
    count = 0
    with bounded.open_plain(copy) as file:
        for line in bounded.lines(file):
            try:
                row = parse_json(line or b"")
            except ValueError:
                continue  # cut off: what is whole is counted
            count += 1
            who = _mapping(row).get("raters")
            if isinstance(who, list):
                names |= {person_of(str(name)) for name in who}
    programs = sum(map(is_simulated, names))
    if names:
        return (count, len(names) - programs, programs)
    return None


def parameters(folder: Path) -> int:
    """Numbers in a folder's weights, or in an adapter's, from the files' heads: nothing is loaded."""
    if is_adapter_folder(folder):
        files = [folder / peft.WEIGHTS]
    else:
        files = weight_files(folder)
    total = 0
    for file in files:
        total += sum(map(prod, shapes_in(file).values()))
    return total


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {}
