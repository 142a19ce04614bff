"""The settings of what moves models and ratings: push, pull and export. Standard library only.

As in `stages`: a field's name is the flag's, the string under it is its help everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import only, refuse_idle

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?:{_PART}/)?{_PART}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PLANNED = (
    "stage",
    "public",
    "with_optimizer",
    "tag",
    "all_stages",
    "dataset",
    "with_raters",
    "license",
)
"""Settings of a push that are decided when it begins: one that goes on has them already."""


def check_repo_id(repo_id: str, where: str = "repo_id") -> None:
    """Raises UserError for what the Hub takes as no name."""
    if (
        not _REPO.fullmatch(repo_id)
        or "--" in repo_id
        or ".." in repo_id
        or repo_id.endswith(".git")
    ):
        raise UserError(
            f"{repo_id!r} is not a name of a repository",
            where=where,
            hint="give NAME, or OWNER/NAME: letters, digits, - _ and .",
        )


def check_tag(tag: str) -> None:
    """Raises UserError for what git takes as no tag."""
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock")) or tag == "main":
        raise UserError(f"{tag!r} cannot be a tag", where="tag", hint="for example --tag step-1200")


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Send a model, a run or its ratings to the Hugging Face Hub: the listed files, in one commit."""

    model: str
    """Folder of a model, of a stage, or of a run (its last stage's model); with --dataset a
    ratings.db or its run.
    """
    repo_id: str = ""
    """Repository: NAME (yours) or OWNER/NAME. It is made where it is not there yet."""
    stage: str = ""
    """Stage of the run whose model is sent. Empty: the last one."""
    public: bool = False
    """Let everyone see it. Without this, the repository is private."""
    with_optimizer: bool = False
    """Send the optimizer's state too, so that training can go on from it."""
    tag: str = ""
    """Name that the commit gets, such as step-1200."""
    all_stages: bool = False
    """Send every stage's model, each in a folder of its name, and the last one's at the top too."""
    resume: bool = False
    """Go on, as it was planned, with the push that was interrupted here; what has arrived is not
    sent again.
    """
    dataset: bool = False
    """Send the ratings as a preference data set instead of a model."""
    with_raters: bool = False
    """Rows of the data set say who rated. Without this no name leaves this machine."""
    license: str = ""
    """Licence for the card's metadata, such as apache-2.0. Empty: none is stated."""
    dry_run: bool = False
    """Show what would be sent, and send nothing."""
    yes: bool = False
    """Do not ask before sending."""
    lines: bool = only(
        False,
        lambda cfg: not cfg.dry_run,
        "a dry run takes no steps",
        "leave it out; --json prints the plan",
    )
    """Tell each step as a line of JSON on stdout, for programs."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.model:
            raise UserError(
                "nothing to send was named",
                where="model",
                hint="give the folder of a model or of a run",
            )
        if self.repo_id:
            check_repo_id(self.repo_id)
        elif not self.resume:
            raise UserError(
                "no repository was named",
                where="repo_id",
                hint="ondevice push MODEL_OR_RUN REPO_ID",
            )
        if self.tag:
            check_tag(self.tag)
        for one, other in (
            ("all_stages", "stage"),
            ("dataset", "stage"),
            ("dataset", "all_stages"),
            ("dataset", "with_optimizer"),
            ("all_stages", "with_optimizer"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise UserError(
                    f"does not go with --{other.replace('_', '-')}",
                    where=one,
                    hint="give one of the two",
                )
        if self.with_raters and not self.dataset:
            raise UserError("is about ratings", where="with_raters", hint="give --dataset too")
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Get a model, an adapter or a data set from the Hugging Face Hub, verified."""

    repo_id: str
    """Repository: OWNER/NAME."""
    revision: str = ""
    """Branch, tag or commit. Empty: the newest of the main branch."""
    out: str = ""
    """Folder to make. Empty: the repository's name, here."""
    dataset: bool = False
    """It is a data set, not a model."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        check_repo_id(self.repo_id)
        if (
            self.revision.startswith("-")
            or any(sign in self.revision for sign in " \\^~:?*[")
            or ".." in self.revision
        ):
            raise UserError(f"{self.revision!r} is not a branch, tag or commit", where="revision")


_TYPES = {"hf": ("float32", "bfloat16", "float16"), "gguf": ("f16", "q8_0", "f32")}
"""What `dtype` may be for a form that has a choice."""
_PACKED = ("mlx",)  # the forms whose weights are packed into a few bits
_DEFAULT = {"hf": "bfloat16", "gguf": "f16"}
_PACKS = (
    (lambda cfg: cfg.to in _PACKED),
    "it is for weights of a few bits",
    "leave it out, or give --to mlx",
)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a model for other programs, then load what was written and compare its logits with the
    model's own.
    """

    model: str
    """Folder of a model or of an adapter, or a run folder: its last stage's model."""
    to: Literal["hf", "gguf", "mlx", "peft", "mlx-adapter"]
    """hf: whole weights in another type; gguf: for llama.cpp, Ollama and LM Studio; mlx: 4 or 8
    bits for mlx-lm and LM Studio; peft and mlx-adapter: an adapter in either library's form."""
    out: str = ""
    """Folder to make. Empty: the model's name and the form, here."""
    dtype: Literal["", "f16", "q8_0", "f32", "float32", "bfloat16", "float16"] = ""
    """gguf: f16, q8_0 (8 bits) or f32; hf: float32, bfloat16 or float16. Empty: f16, bfloat16."""
    bits: int = only(4, *_PACKS)
    """mlx: bits a weight, 4 or 8."""
    group_size: int = only(64, *_PACKS)
    """mlx: weights that share a scale, 32, 64 or 128."""
    data: str = only(
        "builtin", lambda cfg: cfg.rounds, "nothing is rounded, and so no perplexity is measured"
    )
    """Text on which perplexity is measured before and after: a file, a folder, or builtin."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """What computes the comparison. auto takes MLX on Apple Silicon, else torch."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.model:
            raise UserError("no model was named", where="model", hint="give the folder of a model")
        known = _TYPES.get(self.to, ())
        if self.dtype and self.dtype not in known:
            hint = f"known: {', '.join(known)}" if known else "leave it out"
            raise UserError(
                f"{self.dtype} does not go with --to {self.to}", where="dtype", hint=hint
            )
        for name, values in (("bits", (4, 8)), ("group_size", (32, 64, 128))):
            if getattr(self, name) not in values:
                raise UserError(
                    f"{getattr(self, name)} is none of its values",
                    where=name,
                    hint=f"known: {', '.join(map(str, values))}",
                )
        refuse_idle(self)

    @property
    def written_type(self) -> str:
        """`dtype`, or what it means where it is empty."""
        return self.dtype or (
            f"{self.bits} bits" if self.to in _PACKED else _DEFAULT.get(self.to, "")
        )

    @property
    def rounds(self) -> bool:
        """Whether what is written may differ from the model: perplexity is measured then, before
        and after.
        """
        return self.written_type not in ("", "float32", "f32")
