"""What a person chose in the app and wants again next time: who rates, the theme, how answers are
drawn and laid out.

A small JSON file in the person's own settings (`XDG_CONFIG_HOME`). Nothing in it is needed: one
that is missing, damaged or cannot be written costs only what it would have remembered, and that is
told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import load_json


def settings_file() -> Path:
    """Where the app remembers."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.path.expanduser(config)) / "ondevice" / "app.json"


class Remembered:
    """The file's values. `trouble`: why it could not be read, empty where it could or where there
    is none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or settings_file()
        self._values, self.trouble = _read(self.file)

    def get(self, name: str, fits: Callable[[Any], bool]) -> Any:
        """What was remembered, where it is something that fits; else None."""
        value = self._values.get(name)
        if value is not None and fits(value):
            return value
        return None

    def look_again(self) -> None:
        """Takes what other windows and commands have remembered meanwhile."""
        values, self.trouble = _read(self.file)
        self._values.update(values)

    def keep(self, name: str, value: Any) -> str:
        """Remembers a value. Returns why it could not, empty where it is on disk. What another
        window has remembered meanwhile stays; a damaged file is set aside."""
        if self._values.get(name) == value:
            return ""
        self._values[name] = value
        values, damaged = _read(self.file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if damaged and self.file.is_file():
                os.replace(self.file, self.file.with_name(f"{self.file.name}.damaged"))
            write_file(self.file, json.dumps({**values, name: value}, indent=1) + "\n")
        except OSError as error:
            return f"{self.file} cannot be written: {error.strerror}"
        except UserError as problem:
            return str(problem)
        return ""


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """(values, why there are none)."""
    try:
        if file.is_file():
            values = load_json(file)
        else:
            values = {}
    except OSError as error:
        return {}, f"{file} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return {}, f"{file} is damaged and is not used"
    if isinstance(values, dict):
        return (values, "")
    return ({}, f"{file} is damaged and is not used")
