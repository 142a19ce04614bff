"""The settings of whole runs: training all stages of a recipe, and what is in a folder of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import one_of, only, refuse_idle
from ondevice.config.sizes import parse_memory
from ondevice.config.times import LEAST_S, parse_time


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All stages of a recipe, one after the other, and the ladder that compares them."""

    recipe: str = "minute"
    """A recipe that comes with the program (minute, tiny, laptop; stories and smol, which read the
    Hub) or a YAML file."""
    time: str = ""
    """Time in which all of it is done, such as 10m, 2h or 1h30m: the recipe's model, steps and data
    are chosen for it, and divided anew after each stage. For recipes that say how they scale, such
    as laptop."""
    text: str = ""
    """Text to pre-train on: a file or a folder. With files of your own the built-in corpus is not
    used, and a stage for which there is nothing is left out. For recipes that scale."""
    chats: str = ""
    """Chats for instruction tuning: a file or a folder. For recipes that scale."""
    problems: str = ""
    """Problems with answers for reasoning: a file or a folder. For recipes that scale."""
    model: str = ""
    """Begin with this model instead of random weights: a folder, a run, or a name on the Hub. For
    recipes that scale."""
    arch: Literal["decoder", "encoder", "seq2seq"] = "decoder"
    """Architecture that walks the road: decoder (it goes on with a text), encoder (it understands
    one) or seq2seq (it reads one and writes another)."""
    out: str = ""
    """Run folder. Empty: runs/<recipe>-<date and time>."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; master weights stay float32. auto: bfloat16 on a GPU, float32 on a CPU."""
    seed: int | None = None
    """Decides initial weights, the order of the data and every draw. Unset: the recipe's."""
    resume: bool = False
    """Go on with the run in --out: complete stages are kept, the unfinished one goes on from its
    newest checkpoint.
    """
    redo: tuple[str, ...] = ()
    """Stages to run again although they are complete."""
    preference: Literal["", "ppo", "dpo"] = ""
    """The way through preference fine-tuning: a reward model and ppo, or dpo instead of both.
    Unset: the recipe's.
    """
    memory: str = ""
    """Memory that a stage may take at most, such as 8GB. Empty: what this machine has left now,
    less a margin for other programs."""
    anyway: bool = False
    """Start although the plan says that memory or disk do not suffice."""
    keep_awake: bool = True
    """Keep the machine from falling asleep while its stages work (caffeinate on macOS, systemd-inhibit on
    Linux)."""
    track: Literal["", "none", "tensorboard", "trackio", "wandb"] = ""
    """Write the figures of all stages with another program's writer too, as training goes on. On this
    machine alone: wandb is offline unless WANDB_MODE says otherwise. Unset: the recipe's."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        parse_memory(self.memory)
        seconds = parse_time(self.time)
        if seconds is not None and seconds < LEAST_S:
            raise UserError(
                f"{self.time} is too short for any road", where="time", hint="give 1m or more"
            )
        if self.seed is not None and self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        if (self.resume or self.redo) and not self.out:
            raise UserError(
                "needs the run folder",
                where="resume" if self.resume else "redo",
                hint="give --out FOLDER",
            )


_OF_ONE = (
    "report",
    "resume",
    "rm",
    "restore",
    "note",
    "tag",
    "untag",
    "rename",
    "diff",
    "export",
)
"""Actions that are about a run."""
_WORDS = ("rm", "note", "tag", "untag", "rename", "diff")
"""Actions that take further words."""


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The runs in a folder: what they have done, their reports, going on with one, taking one
    away."""

    action: Literal[
        "list",
        "report",
        "resume",
        "rm",
        "restore",
        "empty-trash",
        "note",
        "tag",
        "untag",
        "rename",
        "diff",
        "export",
    ] = "list"
    """list: every run with its stages and the space that it takes; report: print a run's ladder;
    resume: go on with a run; rm: move runs to a trash folder beside them; restore: bring one back
    from there; empty-trash: delete what lies there; note: write a note on a run, or print it; tag
    and untag: add tags to a run, or take them away; rename: give a run another name; diff: the
    settings in which runs differ; export: write what a run's stages have emitted as a table."""
    run: str = only(
        "",
        one_of("action", *_OF_ONE),
        "it is about all runs",
        "leave it out, or give report, resume, rm or another action before it",
    )
    """Name or path of the run (every action but list and empty-trash)."""
    also: tuple[str, ...] = only(
        (), one_of("action", *_WORDS), "it is about one run", "give them to rm, diff or tag"
    )
    """Further runs (rm, diff), tags (tag, untag), the new name (rename), the note's words (note)."""
    folder: str = "runs"
    """Where the runs are."""
    search: str = only("", one_of("action", "list"), "only a list is searched")
    """Runs that are listed: words that all have to stand in the name, the note or a tag;
    state:done, tag:good, stage:grpo, exact>0.5; a - before a word means that it must not hold."""
    state: Literal["", "training", "done", "stopped", "failed", "died", "open", "unreadable"] = (
        only("", one_of("action", "list"), "only a list has states")
    )
    """Only runs in this state are listed: as their newest stage is; open: nothing is begun."""
    sort: Literal[
        "",
        "name",
        "age",
        "size",
        "state",
        "time",
        "step",
        "exact",
        "held-out",
        "reward",
        "accuracy",
        "bits",
        "loss",
    ] = only("", one_of("action", "list"), "only a list is sorted")
    """Order of the list: the best figure first, the newest, the largest. Empty: the oldest first.
    A run without that figure comes last."""
    reverse: bool = only(False, lambda cfg: cfg.sort, "nothing is sorted", "give --sort too")
    """The other way round."""
    table: bool = only(False, one_of("action", "list"), "only a list can be a table")
    """One line for each run, with its figures; so is a list that is sorted or searched."""
    anyway: bool = only(
        False, one_of("action", "rm"), "nothing is taken away that another run needs"
    )
    """Move a run away although another run needs it (rm)."""
    yes: bool = only(False, one_of("action", "empty-trash"), "nothing is asked", "leave it out")
    """Do not ask before deleting (empty-trash)."""
    clear: bool = only(False, one_of("action", "note"), "only a note is cleared")
    """Take the note away (note)."""
    everything: bool = only(False, one_of("action", "diff"), "only diff compares settings")
    """Also the settings in which the runs do not differ (diff)."""
    to: Literal["csv", "parquet"] = only("csv", one_of("action", "export"), "nothing is exported")
    """Kind of table (export)."""
    out: str = only("", one_of("action", "export"), "nothing is written")
    """File that is written (export). Empty: the run's name, in this folder."""

    def check(self) -> None:
        """Raises UserError where the run is missing, or named without need."""
        refuse_idle(self)
        if self.action in _OF_ONE and not self.run:
            raise UserError(
                "no run was named", where="run", hint=f"ondevice runs {self.action} RUN"
            )
        wanted = {"tag": "TAG", "untag": "TAG", "rename": "NEW", "diff": "OTHER"}.get(self.action)
        if wanted and not self.also:
            raise UserError(
                "one more word is needed",
                where=self.action,
                hint=f"ondevice runs {self.action} RUN {wanted}",
            )
        if self.action == "rename" and len(self.also) > 1:
            raise UserError(
                f"{len(self.also)} names were given", where="rename", hint="a name is one word"
            )
        if self.clear and self.also:
            raise UserError("would be cleared", where="note", hint="give the note or --clear")
