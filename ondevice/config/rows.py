"""What everything has that reads a person's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO
from ondevice.config.effects import only


def _reads_rows(cfg: Any) -> bool:
    """Whether any of its sources are a person's rows: not the built-in corpus, a gym, or a run's
    ratings.
    """
    named = (
        getattr(cfg, name, "") for name in ("data", "validation", "replay", "sft_data", "prompts")
    )
    sources = (
        part.partition(":")[0]
        for data in named
        if isinstance(data, str) and data != AUTO  # prompts of a rollout are a number
        for part in data.split(",")
    )
    return any(
        source and source not in ("builtin", "gym") and not source.endswith(".db")
        for source in sources
    )


_ROWS = (_reads_rows, "it is about a person's rows, and none are read")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What everything has that reads a person's rows."""

    columns: tuple[str, ...] = only((), *_ROWS)
    """What columns of your data are called otherwise: prompt=question,completion=reply."""
    bad_share: float = only(0.01, *_ROWS)
    """Part of the rows that may be unreadable: these are left out and counted; more of them are an
    error.
    """

    def check_rows(self) -> None:
        """Raises UserError naming the field that is out of range."""
        if not 0 <= self.bad_share < 1:
            raise UserError(
                f"{self.bad_share:g} is out of range",
                where="bad_share",
                hint="give 0 to 1, less than 1",
            )
        for column in self.columns:
            name, equals, there = column.partition("=")
            if not (name and equals and there):
                raise UserError(
                    f"{column!r} does not say what is what", where="columns", hint="prompt=question"
                )
        names = [column.partition("=")[0] for column in self.columns]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{twice[0]!r} is there twice", where="columns", hint="name each once")
