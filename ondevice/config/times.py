"""Lengths of time as people write them."""

from __future__ import annotations

import re

from ondevice.common.errors import UserError

_TIME = re.compile(r"(?:([0-9]{1,4})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,6})s)?")
MOST_S = 30 * 86400
LEAST_S = 60


def parse_time(text: str, where: str = "time") -> float | None:
    """Seconds that a person means by 2h, 90m, 1h30m or 45s; None for nothing. Raises UserError for
    anything else, naming the field `where`."""
    if not text:
        return None
    found = _TIME.fullmatch(text)
    if found is None or not any(found.groups()):
        raise UserError(
            f"{text!r} is not a time", where=where, hint="such as 45s, 90m, 2h or 1h30m"
        )
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise UserError(f"{text!r} is no time at all", where=where, hint="such as 10m")
    if total > MOST_S:
        raise UserError(f"{text!r} is too long", where=where, hint="give 30 days (720h) at most")
    return float(total)


def time_text(seconds: float) -> str:
    """As `parse_time` reads it, to the second: 1h30m, 10m, 45s."""
    whole = max(1, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [(hours, "h"), (minutes, "m"), (rest, "s")]
    return "".join(f"{count}{unit}" for count, unit in parts if count)
