"""What a model's folder says of generation: generation_config.json, of an adapter its own and its base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ondevice.models.load import GENERATION, generation_of, whole_folder


def settings_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the file that says it, what it says): an adapter's own file goes before its base's; old folders say it in
    config.json. Raises UserError for a file that cannot be read, and where an adapter's base is not to be had."""
    base = whole_folder(folder)
    own = folder != base and (folder / GENERATION).is_file()
    return (folder if own else base) / GENERATION, generation_of(folder)
