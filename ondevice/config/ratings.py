"""The settings of rating answers, and of ratings in and out of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import one_of, only, refuse_idle


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Say which of two to four answers is better, one prompt after the other. Every vote is saved
    at once.
    """

    ratings: str
    """File of ratings, or a run folder that holds a ratings.db."""
    rater: str = ""
    """Your name, so that several people can rate in one file. Empty: the login name."""
    batch: str = ""
    """Only what was queued under this name. Empty: everything."""
    repeat_share: float = 0.1
    """How often an earlier pair comes again, its sides swapped, as a share of your votes: it shows
    whether you agree with yourself. 0: never."""
    seed: int = only(
        0,
        lambda cfg: cfg.repeat_share > 0,
        "no pair comes again",
        "leave it out, or give a repeat-share",
    )
    """Decides when a pair comes again, and which."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.ratings:
            raise UserError(
                "no ratings were named", where="ratings", hint="give a ratings.db or a run folder"
            )
        if not 0 <= self.repeat_share <= 0.5:
            raise UserError(
                f"{self.repeat_share} is out of range", where="repeat_share", hint="give 0 to 0.5"
            )
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        refuse_idle(self)


def _for(*actions: str) -> tuple[Callable[[Any], bool], str]:
    return one_of("action", *actions), f"it is for {' and '.join(actions)}"


@dataclass(frozen=True, kw_only=True)
class RatingsConfig:
    """Ratings in and out of files, and what they are worth."""

    action: Literal["stats", "export", "import", "repair"]
    """stats: agreement, biases, strengths; export: votes to a file; import: pairs or votes from
    one; repair: a damaged database is made anew of what can be read."""
    ratings: str
    """File of ratings, or a run folder that holds a ratings.db. An import makes it where it is
    missing.
    """
    file: str = only("", *_for("export", "import"))
    """JSON lines to write (export; empty: stdout), or data to read (import)."""
    form: Literal["preference", "kto", "votes"] = only("preference", *_for("export"))
    """What to export. preference: prompt, chosen, rejected; kto: prompt, completion, label; votes:
    everything.
    """
    batch: str = only("", *_for("stats", "export", "import"))
    """Only what was queued under this name; for an import the name to queue under (empty: the
    file's).
    """
    raters: tuple[str, ...] = only(
        (),
        lambda cfg: cfg.action != "repair" and not (cfg.action == "import" and cfg.gold),
        "a repair keeps all raters, and gold has none",
    )
    """Count these raters only (separated by commas). For an import: who gave votes that come
    without a name.
    """
    gold: bool = only(False, *_for("import"))
    """Imported pairs whose votes all name the same answer are gold: the better answer is known.
    They come now and then among the others to measure raters, and nothing is learned from them."""
    simulated: bool = only(True, *_for("stats", "export"))
    """Count raters that are programs (their names begin with simulated:) too."""
    with_raters: bool = only(
        False,
        lambda cfg: cfg.action == "export" and cfg.form != "votes",
        "it is for exported pairs; votes name their raters anyway",
    )
    """Exported pairs say their item, raters, strength and sources too."""
    seed: int = only(0, *_for("stats", "import"))
    """Decides the sides of imported pairs, and the intervals of stats."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.ratings:
            raise UserError(
                "no ratings were named", where="ratings", hint="give a ratings.db or a run folder"
            )
        if self.action == "import" and not self.file:
            raise UserError(
                "nothing to import was named", where="file", hint="ondevice ratings import DB FILE"
            )
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        refuse_idle(self)
