"""What calls a person back to the terminal: a stage that has ended, or one whose training is sick.

A bell and OSC 9 (a notification of the desktop, in terminals that know it; others pass it over).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ondevice.common.sanitize import sanitize

LONGEST = 200  # characters of a notification
ENDS = {"done": "is done", "failed": "has failed", "died": "has died"}


@dataclass(frozen=True)
class Alert:
    """`sick`: said while the stage goes on."""

    text: str
    sick: bool = False


class Alerts:
    """What is new since the last look at the runs. What stood there at the first look at a stage is
    nothing new, and what makes a stage sick at each of its steps is said once, until it begins again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[str, Any]] = {}
        self._told: dict[tuple[str, str], set[str]] = {}  # of stages that train

    def look(self, runs: Iterable[Mapping[str, Any]]) -> list[Alert]:
        found = []
        seen = {}
        for run in runs:
            for stage in run["stages"]:
                key = (str(run["path"]), str(stage["stage"]))
                sick = stage.get("sick") or {}
                now = (str(stage["state"]), (sick.get("t"), sick.get("message")))
                before = self._seen.get(key)
                seen[key] = now
                if before is not None:
                    news = _news(f"{run['run']}: {stage['stage']}", before, now, stage)
                    found += self._untold(key, now[0], news)
        self._seen = seen
        self._told = {key: told for key, told in self._told.items() if key in seen}
        return found

    def _untold(self, key: tuple[str, str], state: str, news: list[Alert]) -> list[Alert]:
        if state != "training":
            self._told.pop(key, None)
            return news
        told = self._told.setdefault(key, set())
        fresh = [alert for alert in news if alert.text not in told]
        told.update(alert.text for alert in fresh)
        return fresh


def _news(
    what: str, before: tuple[str, Any], now: tuple[str, Any], stage: Mapping[str, Any]
) -> list[Alert]:
    if now[1] != before[1]:
        fresh = now[1][1]
    else:
        fresh = None
    if now[0] == "training":
        if fresh:
            return [Alert(f"{what} is not well: {fresh}", sick=True)]
        return []
    if before[0] != "training" or now[0] not in ENDS:
        return []
    why = fresh
    if now[0] == "failed":  # which says what ended it
        why = stage.get("message") or fresh
    return [Alert(f"{what} {ENDS[now[0]]}{f': {why}' if why else ''}")]


def sequence(alerts: Iterable[Alert]) -> str:
    """What is written to the terminal: OSC 9 for each, and one bell. Nothing of a text is a control
    character."""
    written = ""
    for alert in alerts:
        text = sanitize(f"ondevice: {alert.text}", newlines=False, limit=LONGEST)
        written += f"\x1b]9;{text}\x07"
    return f"{written}\x07" if written else ""


def is_terminal() -> bool:
    """Whether what is written reaches a person's terminal, and no pipe or file."""
    return sys.__stderr__ is not None and sys.__stderr__.isatty()
