"""The files of a model's folder: whether it is an adapter, where its base is, which files hold
weights.
"""

from __future__ import annotations

from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.common.files import there
from ondevice.common.json_files import load_json
from ondevice.hub import snapshot
from ondevice.models import peft


def is_adapter_folder(folder: Path) -> bool:
    return (folder / peft.CONFIG).is_file() and not (folder / "config.json").is_file()


def whole_folder(folder: Path) -> Path:
    """The folder itself, or of an adapter's its base."""
    if is_adapter_folder(folder):
        return base_folder(folder)
    return folder


def base_folder(folder: Path) -> Path:
    """Where the base of an adapter is. Raises UserError where it is not to be had."""
    base, revision = peft.base_of(folder)
    try:
        found = snapshot.resolve(base, revision)
    except UserError as error:
        raise UserError(
            f"its base model {base} is not here: {error.message}",
            where=str(folder),
            hint=error.hint,
        ) from error
    if not (found / "config.json").is_file():
        raise UserError(
            f"its base model {base} is not here",
            where=str(folder),
            hint=f"put it there, or name its folder in {peft.CONFIG}: base_model_name_or_path",
        )
    return found


def _need_folder(folder: Path) -> None:
    if not (there(folder) and folder.is_dir()):
        raise UserError(
            "is a file, no folder" if there(folder) else "there is no such folder",
            where=str(folder),
            hint="give a Hugging Face model folder",
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index where there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(load_json(index)["weight_map"].values()), key=str)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(
                "holds no index of weights", where=str(index), hint="is the download whole?"
            ) from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                raise UserError(f"names {name!r}, which is outside the folder", where=str(index))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (there(folder / name) and (folder / name).is_file()):
            pickled = next(folder.glob("*.bin"), None)
            if pickled:
                hint = "pickled weights are not read: convert them to safetensors"
            else:
                hint = "is the download whole?"
            raise UserError(f"{name} is missing", where=str(folder), hint=hint)
    return [folder / name for name in names]
