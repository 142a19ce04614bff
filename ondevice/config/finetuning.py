"""The settings of tuning a model that is there already: what every such stage has, `sft` and
`classify`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.auto import AutoInt, auto
from ondevice.config.effects import only
from ondevice.config.stages import TrainingConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs

_ADAPTER: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: cfg.adapter == "lora",
    "there is no adapter",
    "give --adapter lora too",
)


@dataclass(frozen=True, kw_only=True)
class TuningConfig(TrainingConfig, WithTemplateKwargs):
    """What every stage has that tunes a model which is there already: all of its weights, or an
    adapter beside them.
    """

    adapter: Literal["none", "lora"] = "none"
    """none: train all weights. lora: leave them as they are, 4- and 8-bit ones too, and train small
    matrices beside.
    """
    lora_rank: int = only(16, *_ADAPTER)
    """Rank of the matrices."""
    lora_alpha: float = only(32.0, *_ADAPTER)
    """What they add is multiplied by alpha / rank."""
    lora_rslora: bool = only(False, *_ADAPTER)
    """Multiply by alpha / sqrt(rank) instead (rsLoRA), which suits large ranks."""
    lora_targets: tuple[str, ...] = only((), *_ADAPTER)
    """Matrices that get an adapter: ends of names (q_proj,v_proj), or whole names with *
    (model.layers.2?.mlp.*). Unset: all matrices of the blocks."""
    lora_whole: tuple[str, ...] = only((), *_ADAPTER)
    """Matrices trained whole beside it, named likewise (embed_tokens,lm_head). A reward model's
    head always is.
    """
    merge: bool = only(False, *_ADAPTER)
    """Leave whole weights with the adapter in them, not the adapter's folder."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'; in
    a recipe also as keys and values. A row's own column of this name wins."""

    def check(self) -> None:
        super().check()
        self._at_least(1, "lora_rank")
        self._above(0, "lora_alpha")
        parse_template_kwargs(self.chat_template_kwargs)
        if self.adapter == "lora" and self.optimizer == "muon":
            raise UserError(
                "muon is for whole matrices of the blocks",
                where="optimizer",
                hint="adapters take adamw",
            )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuningConfig):
    """Stage 2: instruction tuning; the loss is on the assistant's tokens, the stop token included."""

    model: str = ""
    """The pre-trained folder to start from."""
    data: str = "builtin"
    """Chats: a file, a folder, builtin[:RECIPE], or several with their shares of the rows:
    a.jsonl:2,b.jsonl:1.
    """
    validation: str = ""
    """Held-out chats; empty: the last part of the data (builtin has its own)."""
    sequence_length: AutoInt = auto()
    """Tokens of a row; longer chats are cut at the end and counted. auto: what 99 % of the chats
    need, up to the model's context."""
    packing: bool = True
    """Several chats a row, attention kept inside each."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learned."""
    replay: str = ""
    """Plain text learned beside the chats, so that the model keeps what it knew: a file, a folder,
    or builtin[:RECIPE]. Empty: none."""
    replay_share: float = only(
        0.1, lambda cfg: cfg.replay, "there is no replay", "give --replay too"
    )
    """Part of the tokens that are of this text."""
    chat_template: str = ""
    """Template for a base model that has none: chatml, plain or bare.
    An encoder-decoder takes bare by itself."""

    def check(self) -> None:
        super().check()
        self._at_least(2, "sequence_length")
        self._between(0, 0.9, "replay_share")
        if self.replay and not self.replay_share:
            raise UserError(
                "has no effect: replay_share is 0",
                where="replay",
                hint="leave it out, or give a share",
            )
        if self.chat_template and self.chat_template_kwargs:
            raise UserError(
                f"the template {self.chat_template} reads no further names",
                where="chat_template_kwargs",
                hint="leave one of the two out",
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainingConfig):
    """Fine-tuning to tell texts apart: a class for each text, read off under a head of one score a
    class.
    """

    model: str = ""
    """The pre-trained folder to start from: an encoder, or a decoder."""
    data: str = "builtin"
    """Rows of text and label: a file, a folder, builtin[:RECIPE] (what kind of task a request is),
    or several with their shares of the rows: a.csv:2,b.csv:1."""
    validation: str = ""
    """Held-out rows; empty: the last part of the data (builtin has its own)."""
    text: str = "text"
    """Column of the text."""
    pair: str = ""
    """Column of a second text that is read beside the first (a question and its answer, two
    sentences). Empty: none.
    """
    label: str = "label"
    """Column of the class."""
    sequence_length: AutoInt = auto()
    """Longest text in tokens; longer ones are cut at the end and counted. auto: what 99 % of the
    texts need, up to the model's context."""

    gives = "classifier"
    without_effect = {
        "sample_every": "a classifier writes no answers",
        "sample_prompts": "a classifier writes no answers",
    }

    def check(self) -> None:
        super().check()
        self._at_least(3, "sequence_length")
