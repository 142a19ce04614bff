"""What a rating session samples beside it: which models answer which prompts, and the reward model
that says of which pairs it knows least.

Only what is decided is here; the processes and the turns that they take are the app's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import json_lines
from ondevice.config.corpus import CorpusConfig
from ondevice.config.recipe import gives, load_recipe
from ondevice.data.builtin.corpus import build
from ondevice.data.formats import to_prompt
from ondevice.data.messages import BadRow
from ondevice.data.rows import read
from ondevice.preferences.database import Ratings
from ondevice.runs.folder import RunFolder


@dataclass(frozen=True)
class Writer:
    """A checkpoint at a temperature. `name` is what its answers' source is called."""

    name: str
    folder: str
    temperature: float


@dataclass(frozen=True)
class Plan:
    """Where further pairs come from. `data`: a file of prompts, builtin, or empty for the prompts
    of this run's ratings."""

    writers: tuple[Writer, ...]
    responses: int = 2
    data: str = ""
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.writers and 2 <= self.responses <= 4

    @property
    def slots(self) -> list[Writer]:
        """Who writes each response: the writers in turn."""
        return [self.writers[slot % len(self.writers)] for slot in range(self.responses)]

    @property
    def folders(self) -> list[str]:
        return list(dict.fromkeys(writer.folder for writer in self.slots))

    @property
    def batch(self) -> str:
        data = "again"
        if self.data:
            data = Path(self.data).stem
        names = dict.fromkeys(writer.name for writer in self.writers)
        return f"live-{'-'.join(names)}-{data}-{self.seed}"


@dataclass(frozen=True)
class Judge:
    """A run's reward model. `learned`: the items that it has learned from; `stamp` changes when it
    is trained anew.
    """

    name: str
    folder: str
    learned: frozenset[int]
    stamp: int


def judge_of(run: RunFolder, known: Judge | None = None) -> Judge | None:
    """The newest finished reward model of a run; `known` where it is still that one."""
    for stage in reversed(run.stages()):
        if gives(stage.name) == "reward" and stage.has_model and stage.done.is_file():
            folder, stamp = str(stage.model), stage.done.stat().st_mtime_ns
            if known is not None and (known.folder, known.stamp) == (folder, stamp):
                return known
            return Judge(stage.name, folder, _learned(stage.path / "pairs.jsonl"), stamp)
    return None


def _learned(copy: Path) -> frozenset[int]:
    """The items of the pairs that a stage has copied, those that it holds out left out; nothing of
    a damaged file.
    """
    if not copy.is_file():
        return frozenset()
    try:
        items = set()
        for row in json_lines(copy):
            if "item" in row and not row.get("held"):
                items.add(row["item"])
        return frozenset(items)
    except (OSError, ValueError, TypeError):
        return frozenset()


def prompts(data: str, run: RunFolder) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """(what is asked: chats that end with the user; what there is to say of a file's rows: which
    could not be used, and what of them was not). Raises UserError where a file holds none. Takes
    its time."""
    remarks: list[str] = []
    if not data:
        with Ratings.open(run.path) as ratings:
            asked = {}
            for item in ratings.items():
                if item.kind == "normal":
                    asked[item.prompt_sha] = item.messages
        found = list(asked.values())
    elif data == "builtin" or data.startswith("builtin:"):
        recipe = data.partition(":")[2]
        if not recipe and run.recipe.is_file():
            recipe = str(run.path)
        found = _builtin(recipe)
    else:
        found, remarks = _of_file(data)
    if not found:
        raise UserError(
            "holds no prompt",
            where=data or str(run.path),
            hint="give a file of prompts, or builtin",
        )
    return found, remarks


def _builtin(recipe: str) -> list[list[dict[str, Any]]]:
    settings = CorpusConfig()
    if recipe:
        settings = load_recipe(recipe).corpus
    rows = build(settings).prompts("train")
    return [[{"role": "user", "content": row["prompt"]}] for row in rows]


def _of_file(path: str) -> tuple[list[list[dict[str, Any]]], list[str]]:
    rows = read(path)
    found = []
    for row, where in rows:
        try:
            found.append(to_prompt(row)[0])
        except BadRow as error:
            rows.reject(where, str(error), row)
    rows.check()
    return found, [f"{path}: {remark}" for remark in rows.remarks()]
