"""The batches of a stage without its run: to look at what a loss gets."""

from __future__ import annotations

import importlib
import tempfile
from functools import partial
from pathlib import Path

from ondevice.common.errors import UserError, nearest
from ondevice.config.corpus import CorpusConfig
from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.data.context import DataContext
from ondevice.data.packing import Batch
from ondevice.datasets.spec import builtin_in
from ondevice.seam.select import load_backend
from ondevice.stages.pipeline import with_models
from ondevice.stages.settled import by_rules

STAGES = ("pretrain", "sft")
"""Those whose batches follow from their data alone: each has `start_model`, `read`, `facts` and
`sources`."""


def check_stage(name: str) -> None:
    """Raises UserError for a stage whose batches are not known before it runs."""
    if name not in STAGES:
        raise UserError(
            f"{name!r} has no batches apart from its run", where="stage", hint=nearest(name, STAGES)
        )


def batches(name: str, cfg: StageConfig, number: int = 0) -> list[Batch]:
    """The batches of a step, of step 1 where `number` is 0: as many as `micro_batch` says, one where
    it is left to the machine. No run folder is made or locked. Raises UserError as the stage does.
    """
    check_stage(name)
    cfg.check()
    cfg = with_models(name, cfg)
    corpus = builtin_in(getattr(cfg, "data", ""), CorpusConfig()) or CorpusConfig()
    stage = importlib.import_module(f"ondevice.stages.{name}")
    assert isinstance(cfg, TrainingConfig)
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    model = stage.start_model(cfg, backend)
    micro_batch = getattr(cfg, "micro_batch", "auto")
    with tempfile.TemporaryDirectory() as folder:
        # as deep as a stage in a run: the folders beside a run are looked through for tokens
        place = Path(folder) / "run" / name
        place.mkdir(parents=True)
        ctx = DataContext(place, corpus)
        found = stage.read(cfg, model, ctx)
        cfg, _, _ = by_rules(cfg, model, partial(stage.facts, cfg, model, found), backend)
        source = stage.sources(cfg, model, found, ctx).train
        micro_batches: list[Batch] = source.batch(
            number, None if micro_batch == "auto" else micro_batch
        )
        return micro_batches
