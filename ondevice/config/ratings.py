"""The settings of rating answers, and of ratings in and out of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import one_of, only, refuse_idle

_ASKED = (
    lambda cfg: not cfg.settle,
    "with --settle everything is asked that people disagree on",
)

NO_SCALES = "none"  # in place of a project's scales: it has none from now on


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
    source: str = only("", *_ASKED)
    """Only pairs with an answer of this checkpoint. Empty: of all."""
    kind: str = only("", *_ASKED)
    """Only prompts of this kind, as the built-in prompts have one. Empty: of all."""
    longest: int = only(0, *_ASKED)
    """Only pairs whose answers have at most so many characters. 0: of any length."""
    goal: int = 0
    """So many votes in this session: it is said when they are there. 0: no goal."""
    keys: str = ""
    """Keys of your own on a terminal, like left=a,right=l: remembered, for the app's Rate screen
    too. none: no own ones from now on. Empty: those that are remembered."""
    settle: bool = False
    """Only pairs on which people disagree, with what each said: your vote decides, and counts in
    place of theirs."""
    repeat_share: float = 0.1
    """How often an earlier pair comes again, its sides swapped, as a share of your votes: it shows
    whether you agree with yourself. 0: never."""
    seed: int = only(
        0,
        lambda cfg: cfg.repeat_share > 0 and not cfg.settle,
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
        for name in ("longest", "goal"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint="give 0 or more"
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

    action: Literal["stats", "export", "import", "repair", "project", "disagreements"]
    """stats: agreement, biases, strengths; export: votes to a file; import: pairs or votes from
    one; repair: a damaged database is made anew of what can be read; project: what its raters share
    (guidelines, reasons, how many rate each pair), shown or changed; disagreements: pairs of which
    people say different things."""
    ratings: str
    """File of ratings, or a run folder that holds a ratings.db. An import makes it where it is
    missing.
    """
    file: str = only("", *_for("export", "import", "project"))
    """JSON lines to write (export; empty: stdout), data to read (import), or guidelines in Markdown
    (project)."""
    form: Literal["preference", "kto", "scores", "votes"] = only("preference", *_for("export"))
    """What to export. preference: prompt, chosen, rejected; kto: prompt, completion, label; scores:
    prompt, completion, scores on the project's scales; votes: everything.
    """
    batch: str = only("", *_for("stats", "export", "import"))
    """Only what was queued under this name; for an import the name to queue under (empty: the
    file's).
    """
    raters: tuple[str, ...] = only(
        (),
        lambda cfg: cfg.action in ("stats", "export") or (cfg.action == "import" and not cfg.gold),
        "it is for stats, export and import, and gold has no raters",
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
    reasons: tuple[str, ...] = only((), *_for("project"))
    """The reasons that a vote may have (up to nine, separated by commas). Empty: as they are."""
    rubric: tuple[str, ...] = only((), *_for("project"))
    """Scales from 1 to 5 on which each answer may be scored beside the vote, as helpful,correct (up
    to six, separated by commas; none: no scales). Empty: as they are."""
    overlap: int = only(-1, *_for("project"))
    """How many people are asked each pair; 0: everybody is asked every pair; -1: as it is."""
    feedback: Literal["", "yes", "no"] = only("", *_for("project"))
    """Whether a rater is told, after a pair whose better answer is known, if they hit it. Empty: as
    it is."""
    reveal: Literal["", "yes", "no"] = only("", *_for("project"))
    """Whether a rater is told after each vote who wrote the answers. Empty: as it is."""
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
