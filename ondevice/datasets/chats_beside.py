"""Chats that a stage learns from beside its own loss, so that earlier skills stay.

They are those of the stage sft that the model is from, found by what each stage began with; a model
from elsewhere has none. The built-in chats are the skills of models that were tuned on them, and
take from any other what it can do: they are never put beside one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.config.beside import ChatsBesideConfig
from ondevice.config.corpus import CorpusConfig
from ondevice.config.earlier import upgraded
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import from_mapping, read_yaml
from ondevice.data.packing import Batch
from ondevice.datasets import text_and_chats
from ondevice.datasets.objectives import rows_of
from ondevice.datasets.rewarded import Rewarded
from ondevice.datasets.spec import DataSpec, builtin_in, data_digest
from ondevice.models.model import Model
from ondevice.runs.context import Context
from ondevice.runs.events import first_event
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.runs.order import start_in_run
from ondevice.training.losses_beside import CHATS
from ondevice.training.step_source import Batches, BatchSource

WIDTH = 128
"""Tokens of a row of chats that a person names; those of a stage sft have its own."""


def stages_before(model: str) -> Iterator[StageFolder]:
    """The stages that a model came through, the last one first, as far as their folders are there:
    each began with the model of the next. None for a model that no stage here has made."""
    seen = set()
    path = Path(os.path.expanduser(model))
    while (stage := _stage_of(path)) is not None and stage.path not in seen:
        seen.add(stage.path)
        yield stage
        config = _config(stage)
        name = start_in_run(stage.path, config)
        if name:
            path = stage.path.parent / name / "model"
        else:
            path = Path(os.path.expanduser(str(config.get("model") or "")))


def _stage_of(model: Path) -> StageFolder | None:
    """The stage whose result, or a checkpoint of which, this folder is."""
    for folder in (model.parent, model.parent.parent.parent):
        if model.name == "model" and (folder / "events.jsonl").is_file():
            return StageFolder(folder)
    return None


def _config(stage: StageFolder) -> Mapping[str, Any]:
    config = first_event(stage.events).get("config")
    return config if isinstance(config, Mapping) else {}


def stage_settings(stage: StageFolder) -> dict[str, Any]:
    """What a stage began with, with what rules have decided since."""
    return {**_config(stage), **stage.settings_record().get("settings", {})}


def sft_settings(stage: StageFolder) -> tuple[SFTConfig, CorpusConfig]:
    """The settings of a stage sft, and what `builtin` means in them."""
    settings = upgraded("sft", stage_settings(stage))
    return from_mapping(SFTConfig, settings, str(stage.path)), _corpus_of(stage.path.parent)


def sft_before(model: str) -> StageFolder | None:
    """The stage sft that a model came through; None where there is none."""
    return next((stage for stage in stages_before(model) if stage.name == "sft"), None)


@dataclass(frozen=True)
class ChatsWanted:
    """Which chats a stage learns from beside its loss. `sft`: the settings by which they are read,
    `corpus` what `builtin` means in them; `why_not` says why there are none, empty where there
    are."""

    sft: SFTConfig
    corpus: CorpusConfig
    why_not: str = ""

    def digest(self) -> str:
        """Names what is read: part of a stage's fingerprint. Raises UserError for a file that is
        not there."""
        return data_digest(self.sft.data, "", self.corpus)


def chats_wanted(cfg: ChatsBesideConfig, corpus: CorpusConfig) -> ChatsWanted:
    """What the settings ask for. `corpus` is what `builtin` means in them."""
    before = sft_before(str(getattr(cfg, "model", "")))
    learned = None
    if before is not None:
        learned, own = sft_settings(before)
    named = cfg.sft_data
    if not named and learned is not None:
        return ChatsWanted(learned, own)
    chats = SFTConfig(data=named, sequence_length=WIDTH)
    if not named:
        return ChatsWanted(chats, corpus, "the model is from no stage sft here")
    if builtin_in(named, corpus) is not None:
        known = learned is not None and builtin_in(learned.data, own) is not None
        if not known:
            return ChatsWanted(
                chats, corpus, "the built-in ones are not what the model was tuned on"
            )
    return ChatsWanted(chats, corpus)


def _corpus_of(run: Path) -> CorpusConfig:
    """What `builtin` means in a run."""
    recipe = RunFolder(run).recipe
    if not recipe.is_file():
        return CorpusConfig()
    return from_mapping(CorpusConfig, read_yaml(recipe).get("corpus") or {}, str(recipe))


class ChatsBeside:
    """Rows of chats beside each update: a function of (seed, number of the update). Those that ask
    what is `rewarded` are left out."""

    def __init__(
        self,
        cfg: ChatsBesideConfig,
        model: Model,
        ctx: Context,
        rewarded: Rewarded | None = None,
    ) -> None:
        self.coef = 0.0
        self.rows = cfg.sft_batch
        self._source: Any = None
        if not cfg.sft_coef:
            return
        wanted = chats_wanted(cfg, ctx.data.corpus)
        if wanted.why_not:
            ctx.warn(f"no chats are learned beside ({wanted.why_not}): sft_coef has no effect")
            return
        self._source = _source(wanted, cfg, model, ctx, rewarded)
        if self._source is not None:
            self.coef = cfg.sft_coef
        else:
            self.coef = 0.0

    def add(self, batches: Batches, number: int) -> None:
        """Puts the chats of the update of this number beside its micro-batches, some beside each;
        beside those that are more than there are chats, some that count nothing."""
        if self._source is None or not batches:
            return
        chats = self._source.batch(number, -(-self.rows // len(batches)))
        nothing = {**chats[0], "weights": np.zeros_like(chats[0]["weights"])}
        chats += [nothing] * (len(batches) - len(chats))
        put_beside(batches, chats, CHATS)

    def around(self, source: BatchSource) -> BatchSource:
        """A source of which each step's batches have chats beside them."""
        if self._source is None:
            return source
        return _WithChats(source, self)


class _WithChats:
    def __init__(self, source: BatchSource, chats: ChatsBeside) -> None:
        self.source = source
        self.chats = chats
        self.batch_size = source.batch_size

    def batch(self, step: int, micro_batch: int | None = None) -> Batches:
        batches = self.source.batch(step, micro_batch)
        self.chats.add(batches, step)
        return batches


def put_beside(batches: list[Batch], others: list[Batch], prefix: str) -> None:
    """Each of the others into the batch at its place, under names that begin with `prefix`."""
    for batch, beside in zip(batches, others, strict=True):
        for name, values in beside.items():
            batch[f"{prefix}{name}"] = values


def _source(
    wanted: ChatsWanted,
    cfg: ChatsBesideConfig,
    model: Model,
    ctx: Context,
    rewarded: Rewarded | None,
) -> Any:
    """The source of the rows; None where all ask what is rewarded. Raises UserError for data as
    `chats` does."""
    given = wanted.sft
    data = replace(ctx.data, corpus=wanted.corpus)
    spec = replace(DataSpec.of(given), seed=cfg.seed)
    found = text_and_chats.chats(spec, model.tokenizer, data, whole=given.loss_on == "all")
    if isinstance(given.sequence_length, int):
        width = given.sequence_length
    else:
        width = WIDTH
    settings = replace(
        given,
        sequence_length=min(width, model.cfg.max_position_embeddings),
        batch_size=cfg.sft_batch,
        seed=cfg.seed,
    )
    rows = found.train
    said = ""
    if rewarded is not None:
        kept = ~rewarded.chats(ctx.data.progress(rows, "chats compared"))
        if not kept.any():
            ctx.warn(
                f"no chats are learned beside (all of {given.data} ask what the rewards judge): "
                "sft_coef has no effect"
            )
            return None
        said = f"; {len(rows) - int(kept.sum()):,} ask what the rewards judge and are left out"
        rows = rows.only(kept)
    source = rows_of(settings, model)(rows)
    if source.truncated or source.skipped:
        ctx.warn(
            f"chats beside: {source.truncated:,} cut at {settings.sequence_length} tokens, "
            f"{source.skipped:,} left out because nothing of the answer remained"
        )
    ctx.tell(f"{source.examples:,} chats are learned beside, of {given.data}{said}")
    return source
