"""What a stage's result follows from, and whether what already stands in its folder fits that."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from ondevice import checkpoint
from ondevice.config.corpus import CorpusConfig
from ondevice.config.load import to_mapping
from ondevice.config.preference import PairsConfig
from ondevice.config.stages import StageConfig, TrainingConfig, TuningConfig
from ondevice.context import digest, digest_path
from ondevice.errors import UserError
from ondevice.models import peft, snapshot
from ondevice.models.folder import base_folder, is_adapter_folder, weight_files
from ondevice.runfolder import StageFolder
from ondevice.stages.pairs import pairs_digest
from ondevice.stages.wanted import data_digest

_NO_MATTER = {"out", "resume", "backend", "device", "dtype", "keep", "save_every", "sample_every", "eval_batches",
              "push_every", "push_to", "ratings", "reward_timeout"}
"""Fields that do not decide what the result is: a run may go on with other ones."""
RATES = ("learning_rate", "muon_learning_rate", "clip_norm")
"""Fields that a person may change when an unfinished stage goes on: a wrong one ends in weights that are not finite."""
_BEFORE = {"limit": 0, "pair": "", "chat_template_kwargs": "", "separator": "", "columns": [],
           "bad_share": 0.01}
"""What a field was taken to be where a fingerprint has none."""
_HASH = re.compile(r"[0-9a-f]{16} [0-9a-f]{16}")
_OF_ADAPTERS = {f.name for f in fields(TuningConfig)} - {f.name for f in fields(TrainingConfig)}


def fingerprint_of(cfg: StageConfig, corpus: CorpusConfig, folder: StageFolder, resume: bool) -> dict[str, Any]:
    """Field → value, or a hash where the value is a file's contents: what the stage's result follows from."""
    out = {k: v for k, v in to_mapping(cfg).items() if k not in _NO_MATTER}
    if isinstance(cfg, TuningConfig) and cfg.adapter == "none":
        out = {k: v for k, v in out.items() if k not in _OF_ADAPTERS}
    if isinstance(cfg, PairsConfig):
        out["sources"] = [cfg.data, out.pop("validation")]  # the stage goes on with its copy, whatever they hold now
        out["data"] = pairs_digest(cfg, folder.path, resume, corpus)
    elif "data" in out:
        out["data"] = data_digest(out["data"], out.pop("validation", ""), corpus)
    for name in ("replay", "sft_data"):
        if out.get(name) and out.get("sft_coef", 1):
            out[name] = data_digest(out[name], "", corpus)
    for name in ("model", "other", "reward_model"):
        if out.get(name):
            out[name] = model_digest(Path(out[name]))
    if out.get("tokenizer"):
        out["tokenizer"] = digest_path(Path(out["tokenizer"]))
    return out


def model_digest(folder: Path) -> str:
    """A hash of weights, config and tokenizer, of an adapter and its base. Raises UserError for a folder that is no
    checkpoint."""
    folder = snapshot.resolve(folder)
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), hint="give a Hugging Face model folder")
    if is_adapter_folder(folder):
        files = [folder / name for name in (peft.CONFIG, peft.WEIGHTS, "tokenizer.json")]
        return digest([model_digest(base_folder(folder)), *(checkpoint.sha256(p) for p in files if p.is_file())])
    if not (folder / "config.json").is_file():
        raise UserError("is no checkpoint: it holds no config.json", where=str(folder),
                        hint="give a Hugging Face model folder")
    parts = [folder / "config.json", folder / "tokenizer.json", *weight_files(folder)]
    return digest([checkpoint.sha256(p) for p in parts if p.is_file()])


def complete(folder: StageFolder, fingerprint: dict[str, Any], resume: bool, anew: str) -> bool:
    """Whether the stage is done with these settings. Raises UserError naming the first field that differs."""
    done = folder.done_record()
    if done is None:
        return False
    compare(done.get("fingerprint", {}), fingerprint, folder, "is complete", anew)
    if not resume:
        raise UserError("is complete already", where=str(folder.path), hint=anew)
    return True


def changed_rates(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Those of the rates that differ between two fingerprints: what they were, and are."""
    return {name: (old[name], new[name]) for name in RATES if name in old and name in new and old[name] != new[name]}


def compare(old: dict[str, Any], new: dict[str, Any], folder: StageFolder, what: str, anew: str) -> None:
    """Raises UserError naming the first field in which two fingerprints differ."""
    plain = json.loads(json.dumps(new))
    for field in plain:
        before, now = old.get(field, _BEFORE.get(field, plain[field] if field == "sources" else None)), plain[field]
        if before != now:
            differs = (f"with other contents of {field} than now" if _HASH.fullmatch(f"{before} {now}") else
                       f"with {field} {before}, not {now}")
            raise UserError(f"{what}, {differs}", where=str(folder.path), hint=f"set it back, or {anew}")


def refuse_unfinished(folder: StageFolder, anew: str) -> None:
    """Raises UserError where an earlier process has left checkpoints."""
    if checkpoint.steps(folder.checkpoints):
        raise UserError("an unfinished run stands here", where=str(folder.path),
                        hint=f"--resume goes on with it; {anew}")
