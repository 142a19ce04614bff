"""What has to be the same in all processes of a run, and the refusal of one in which it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ondevice.common.distribution import own_version
from ondevice.common.errors import UserError
from ondevice.seam.group import Group
from ondevice.seam.select import available

_READ = ("data", "model", "reward_model", "other", "reference", "judge", "exam")
"""Of contents: what is read from a path, whose hash tells nobody anything."""


def refuse_differences(group: Group, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError, in all processes, where one has other values than the first one."""
    first, *others = group.gather(own)
    for rank, other in enumerate(others, 1):
        for part, told in first.items():
            values, others_values = _flat(told), _flat(other[part])
            for name in [*values, *others_values]:
                before, now = values.get(name), others_values.get(name)
                if before == now:
                    continue
                what = f"has {name} {_short(now)}, and the first process {_short(before)}"
                if part == "contents" and name in _READ:
                    what = f"has other contents of {name} than the first process"
                raise UserError(
                    what,
                    where=group.title(rank),
                    hint="all processes need the same recipe, versions, data and models",
                )


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The values by their dotted names, so that a difference deep in a recipe has a name."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{within}{name}.")
        else:
            out[within + name] = value
    return out


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def versions() -> dict[str, Any]:
    """What has to be the same everywhere, before a backend is loaded."""
    return {"ondevice": own_version(), **available()}
