"""The settings of rating and training in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.auto import AutoFloat, auto, is_auto
from ondevice.config.drawing import check_temperature
from ondevice.config.effects import only, refuse_idle


def _rates_here(cfg: Any) -> bool:
    return not (cfg.show or cfg.headless)


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Rate answers while the model learns from what you say: after every so many votes a process in
    the background trains on all of them, and the next answers are those of what it made."""

    run: str
    """Run folder with a tuned model (a stage sft). Its ratings.db gets the pairs and the votes."""
    model: str = ""
    """Start: the model that every version is trained from. Empty: the run's stage sft."""
    every: int = 30
    """Usable votes after which a new version is trained, on all votes so far."""
    method: Literal["dpo", "ppo"] = "dpo"
    """How a version learns: dpo, from the pairs directly; ppo, by a reward model."""
    epochs: float = 5.0
    """Times that a version goes through all votes (dpo, and the reward model of ppo)."""
    learning_rate: AutoFloat = auto()
    """Peak rate of a version's training. auto: the recipe's, else what is published for the model's
    size."""
    sft_coef: float = 1.0
    """Weight of the chats of the start's own stage sft beside the votes: more keeps what nobody votes
    on, less lets the votes move further. 0: off."""
    data: str = ""
    """Prompts to answer: a file, a folder, builtin[:RECIPE], or several with their shares. Empty:
    those of the recipe's stage sample."""
    temperature: float = 1.0
    """Of the answers: higher is more varied."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    choose: Literal["taught", "random"] = "taught"
    """What is rated next. taught: mostly the pairs whose votes would teach most of what you like, and
    of various prompts. random: as drawn."""
    pool: int = only(4, lambda cfg: cfg.choose == "taught", "pairs are drawn", "leave it out")
    """Pairs that are written for each that is chosen."""
    random_share: float = only(
        0.25, lambda cfg: cfg.choose == "taught", "all pairs are drawn", "leave it out"
    )
    """Part of the pairs that is drawn all the same, so that figures of them are unbiased."""
    measure_share: float = 0.2
    """Part of the pairs in which the newest version meets the start, blind: they say how far it is
    preferred. 0: none."""
    ahead: int = 8
    """Pairs that wait for you at most: a new version's come after these."""
    simulated: bool = False
    """Learn from and count votes of programs too (raters whose names begin with simulated:)."""
    rater: str = ""
    """Your name, so that several people can rate in one file. Empty: the login name."""
    repeat_share: float = only(0.1, _rates_here, "nobody rates here", "leave it out")
    """How often an earlier pair comes again, its sides swapped, as a share of your votes: it shows
    whether you agree with yourself. 0: never."""
    headless: bool = False
    """Only write pairs and train: the votes come from the app, or from ondevice rate."""
    until: int = only(0, lambda cfg: cfg.headless, "it ends when you leave", "give --headless too")
    """Usable votes after which the loop ends, once the version that learns from them is there; 0: it
    goes on until it is stopped."""
    show: bool = False
    """Only say how the versions stand."""
    seed: int = 0
    """Decides what is asked, every draw and every training."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU, float32 on a CPU."""
    memory: str = ""
    """Memory that training may take at most, such as 8GB. Empty: what this machine has left then."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.run:
            raise UserError("no run was named", where="run", hint="ondevice rounds RUN")
        for name, low in (
            ("every", 2),
            ("max_new_tokens", 1),
            ("pool", 1),
            ("ahead", 1),
            ("until", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < low:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint=f"give {low} or more"
                )
        for name in ("epochs", "learning_rate"):
            if not is_auto(self, name) and getattr(self, name) <= 0:
                raise UserError(
                    f"{getattr(self, name):g} is too small", where=name, hint="give more than 0"
                )
        if self.sft_coef < 0:
            raise UserError(
                f"{self.sft_coef:g} is too small", where="sft_coef", hint="give 0 or more"
            )
        for name in ("random_share", "measure_share", "repeat_share"):
            high = 0.5 if name != "random_share" else 1.0
            if not 0 <= getattr(self, name) <= high:
                raise UserError(
                    f"{getattr(self, name):g} is out of range",
                    where=name,
                    hint=f"give 0 to {high:g}",
                )
        check_temperature(self.temperature, greedy=False)
        refuse_idle(self)
