"""What a model's folder says of generation: generation_config.json, of an adapter its own and its base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ondevice.data.tokenizer import read_json
from ondevice.models.folder import whole_folder

FILE = "generation_config.json"


def settings_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the file that says it, what it says): an adapter's own file goes before its base's; old folders say it in
    config.json. Raises UserError for a file that cannot be read, and where an adapter's base is not to be had."""
    base = whole_folder(folder)
    file = base / FILE
    said = read_json(file if file.is_file() else base / "config.json")
    own = {} if folder == base else read_json(folder / FILE)
    return (folder / FILE if own else file), {**said, **own}
