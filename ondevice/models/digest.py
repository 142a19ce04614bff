"""Whether two model folders hold the same model."""

from __future__ import annotations

from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.common.files import digest, sha256
from ondevice.hub import snapshot
from ondevice.models import peft
from ondevice.models.model_folder import base_folder, is_adapter_folder, weight_files


def model_digest(folder: Path) -> str:
    """A hash of weights, config and tokenizer, of an adapter and its base. Raises UserError for a
    folder that is no checkpoint."""
    folder = snapshot.resolve(folder)
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=str(folder), hint="give a Hugging Face model folder"
        )
    if is_adapter_folder(folder):
        files = [folder / name for name in (peft.CONFIG, peft.WEIGHTS, "tokenizer.json")]
        return digest(
            [model_digest(base_folder(folder)), *(sha256(p) for p in files if p.is_file())]
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            "is not a checkpoint: it holds no config.json",
            where=str(folder),
            hint="give a Hugging Face model folder",
        )
    parts = [folder / "config.json", folder / "tokenizer.json", *weight_files(folder)]
    return digest([sha256(p) for p in parts if p.is_file()])
