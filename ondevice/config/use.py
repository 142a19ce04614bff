"""The settings of using a model: continuing texts, chat, classes, hidden words, a worker. Standard
library only.

As in `stages`: a field's name is the flag's, the string under it is its help everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.drawing import check_temperature
from ondevice.config.effects import Effect, only, refuse_idle
from ondevice.config.rows import RowsConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """What every use of a model has."""

    model: str
    """Folder of a model, or a run folder: its last stage's model."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: the faster of the two, where `ondevice plan` has measured this machine;
    else bfloat16 on a GPU, float32 on a CPU."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.model:
            raise UserError("no model was named", where="model", hint="give the folder of a model")

    def _between(self, low: float, high: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"give {low} or more" if high == float("inf") else f"give {low} to {high}"
                raise UserError(f"{value} is out of range", where=name, hint=limit)


_NOTHING_DRAWN = "nothing is drawn, what is likeliest is taken"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(UseConfig, WithTemplateKwargs):
    """What every use that writes text has. A program sends these to the worker with each request:
    settings that stand, of which some wait for others (top_p for a temperature). The commands
    refuse what has no effect."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more varied."""
    top_k: int = only(0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Draw among this many likeliest tokens only; 0: among all."""
    top_p: float = only(1.0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Draw among the likeliest tokens that together have this probability."""
    repetition_penalty: float | None = None
    """More than 1 makes tokens that stand in the prompt or the answer already less likely. Empty:
    as the model's generation_config.json says, else 1, which changes nothing."""
    seed: int = only(0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Decides every draw."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'.
    Empty: what it was told in the stage that made the model; '{}': nothing. A row's own column of
    this name wins."""

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "max_new_tokens")
        self._between(0, float("inf"), "top_k", "seed")
        check_temperature(self.temperature)
        if self.repetition_penalty is not None:
            self._between(0.01, 100, "repetition_penalty")
        self._between(0, 1, "top_p")
        if self.top_p == 0:
            raise UserError(
                "nothing is left to draw from",
                where="top_p",
                hint="temperature 0 takes the likeliest",
            )
        parse_template_kwargs(self.chat_template_kwargs)

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.temperature > 0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Continue a text, or answer one message."""

    prompt: str = ""
    """Text to continue. Empty: read it from stdin."""
    samples: int = only(
        1,
        lambda cfg: cfg.draws or cfg.beams > 1,
        "without draws all answers are the same",
        "leave it out, or give a temperature above 0",
    )
    """Answers to the prompt, each with draws of its own."""
    chat: bool = False
    """Send the prompt as a user's message through the chat template."""
    beams: int = 1
    """More than 1: search for the likeliest text with so many beams, as the model's
    generation_config.json asks; the best `samples` of them are shown. Nothing is drawn then:
    temperature, top_k, top_p and seed say nothing."""
    length_penalty: float | None = only(
        None,
        lambda cfg: cfg.beams > 1,
        "it is for a search with beams",
        "give --beams 4, or leave it out",
    )
    """Of a search: more favours long texts. A finished text's log-probability is divided by its
    length to this power. Empty: as the model's generation_config.json says, else 1."""

    inherited_effects = {
        "temperature": Effect(
            lambda cfg: cfg.beams == 1 or cfg.temperature == 0,
            "a search with beams draws nothing",
            "leave it out, or leave beams out",
        ),
        "chat_template_kwargs": Effect(
            lambda cfg: cfg.chat, "a text that is continued has no chat template", "give --chat too"
        ),
    }

    @property
    def draws(self) -> bool:
        return super().draws and self.beams == 1

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "samples", "beams")
        if self.beams > 1 and self.samples > self.beams:
            raise UserError(
                f"{self.samples} are more than the beams",
                where="samples",
                hint=f"give 1 to {self.beams}",
            )
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingConfig):
    """Talk with a model; an empty line or Ctrl-D ends it."""

    system: str = ""
    """Instructions that stand before the conversation."""
    save: str = ""
    """File that keeps the conversation, as a row that sft reads. One that is there already goes on.
    """

    def check(self) -> None:
        super().check()
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class TextConfig(UseConfig):
    """What every use that reads one text has."""

    text: str = ""
    """The text. Empty: read it from stdin."""
    top: int = 5
    """Likeliest answers shown."""

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "top")


@dataclass(frozen=True, kw_only=True)
class LabelConfig(TextConfig):
    """Tell which class a text is of."""

    pair: str = ""
    """A second text that is read beside it, for a classifier of two texts. Empty: none."""
    top: int = 5
    """Likeliest classes shown."""


@dataclass(frozen=True, kw_only=True)
class FillConfig(TextConfig):
    """Guess what is hidden in a text."""

    text: str = ""
    """The text, with [MASK] where something is to be guessed. Empty: read it from stdin."""
    top: int = 5
    """Likeliest tokens (an encoder-decoder: pieces of text) shown for each."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(RowsConfig, SamplingConfig):
    """The same prompts answered by two models, side by side."""

    other: str
    """Folder of the second model, or a run folder."""
    prompts: str
    """What both are asked: a file of prompts, questions or chats."""
    limit: int = 0
    """Prompts at most; 0: all."""
    temperature: float = 0.0
    """0 always takes the likeliest token; higher is more varied."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        refuse_idle(self)
        self._between(0, float("inf"), "limit")
        for name in ("other", "prompts"):
            if not getattr(self, name):
                raise UserError(
                    "is missing", where=name, hint="ondevice compare MODEL OTHER PROMPTS"
                )


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(UseConfig):
    """A model behind JSON lines on stdin and stdout, for programs. Its answers' settings come with
    each request.
    """
