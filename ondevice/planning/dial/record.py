"""`dial.json` in a run folder: the time that a run was given, what of it is used, and what has been
decided for each stage. A resume takes up what stands there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.common.json_files import load_json
from ondevice.config.load import from_mapping, to_mapping
from ondevice.config.scaling import ScaleConfig

FILE = "dial.json"
FORMAT = 1


@dataclass
class DialRecord:
    """`seconds` that were asked for, `used` by the stages in `ended`. `decided`: stage → settings
    that it begins with; `left_out`: stage → why; `factors`: what stages took, as a part of what was
    planned; `plans`: what was planned and when, for the report. `answer`: tokens of an answer on
    average; `given`: the files and the model that a person has named."""

    recipe: str
    seconds: float
    scale: ScaleConfig
    given: dict[str, str] = field(default_factory=dict)
    used: float = 0.0
    ended: list[str] = field(default_factory=list)
    decided: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    probe: dict[str, float] = field(default_factory=dict)
    answer: float = 0.0
    plans: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Whole or not there. Raises UserError on a full disk."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = {**asdict(self), "scale": to_mapping(self.scale), "format": FORMAT}
        write_file(folder / FILE, json.dumps(plain, indent=1) + "\n")

    def note(self, after: str, stages: Mapping[str, tuple[int, float]]) -> None:
        """Keeps a plan: stage → (steps, seconds) of those that were to come after `after`."""
        self.plans.append(
            {
                "after": after,
                "used": round(self.used, 1),
                "stages": {name: [n, round(s, 1)] for name, (n, s) in stages.items()},
            }
        )


def load(folder: Path) -> DialRecord | None:
    """The record of a run; None where it was given no time. Raises UserError for a file that is no
    such record."""
    file = folder / FILE
    try:
        raw = load_json(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    try:
        return _parsed(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _damaged(file: Path, why: str) -> UserError:
    return UserError(
        f"cannot be read ({why})",
        where=str(file),
        hint="take it away: the stages then run as recipe.yaml says, without a time",
    )


def _parsed(raw: Any) -> DialRecord:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError("not of this version")
    scale = from_mapping(ScaleConfig, raw["scale"], FILE)
    given = {str(name): str(path) for name, path in raw["given"].items()}
    found = DialRecord(str(raw["recipe"]), _number(raw["seconds"]), scale, given)
    found.used = _number(raw["used"])
    found.ended = [str(name) for name in raw["ended"]]
    found.decided = {
        str(name): {str(key): _setting(value) for key, value in changes.items()}
        for name, changes in raw["decided"].items()
    }
    found.left_out = {str(name): str(why) for name, why in raw["left_out"].items()}
    found.factors = {str(name): _number(value) for name, value in raw["factors"].items()}
    found.probe = {str(name): _number(value) for name, value in raw["probe"].items()}
    found.answer = _number(raw["answer"])
    found.plans = [dict(plan) for plan in raw["plans"]]
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{value!r} is no number of these")
    return float(value)


def _setting(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is no setting")
    return value
