"""Keys that had another deed in earlier versions."""

from __future__ import annotations

from textual.binding import Binding


def moved(**keys: str) -> list[Binding]:
    """Keys of earlier versions, each with the one that does its deed now: they say so, and do
    nothing else."""
    return [
        Binding(old, f"app.tell_moved({old!r}, {new!r})", show=False) for old, new in keys.items()
    ]
