"""What every architecture's forward pass offers, whatever it is: the stages, losses and scorers
know no more of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ondevice.models.decoder import Decoder, decoder_of
from ondevice.models.encoder import Encoder
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.external_library import LibraryNetwork
from ondevice.models.registry import ModelConfig
from ondevice.models.seq2seq import Seq2Seq
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.seam.head import Head
from ondevice.seam.ops import Array, HostArray, Ops, Params


class Network(Protocol):
    """A forward pass; holds no weights."""

    @property
    def head(self) -> Head:
        """What turns a state into logits."""
        ...

    @property
    def score(self) -> str:
        """The layer that turns a state into a judge's scores."""
        ...

    @property
    def decoder_start_token_id(self) -> int | None:
        """The token that opens what is written, beside the prompt; None where the prompt itself
        goes on.
        """
        ...

    @property
    def pooling(self) -> str:
        """`first` or `last`: the token of a text at which a judge's scores are read."""
        ...

    @property
    def shares_prompts(self) -> bool:
        """Whether a batch may hold a prompt once for several answers (`data/shared_prompts.py`)."""
        ...

    def tables(self, length: int) -> Mapping[str, HostArray]:
        """The constant tables that the forward of texts of up to `length` places looks things up
        in: they come with the batch (`tables.with_tables`).
        """
        ...

    def hidden(
        self,
        ops: Ops,
        params: Params,
        batch: Mapping[str, Array],
        *,
        at: Array | None = None,
        checkpoint: bool = False,
    ) -> Array:
        """(N, D) states for the head at the flat positions `at` (N,); without `at` all of them, (B,
        T, D).
        """
        ...


def is_generative(cfg: ModelConfig) -> bool:
    """Whether the model writes text, and neither fills masks nor judges."""
    return not isinstance(cfg, EncoderConfig) and not cfg.num_labels


def is_masked_lm(cfg: ModelConfig) -> bool:
    """Whether the model guesses what is hidden in a text."""
    return isinstance(cfg, EncoderConfig) and not cfg.num_labels


def supports_packing(cfg: ModelConfig) -> bool:
    """Whether a row may hold several texts that do not see each other; where a library's model
    reads it, it may not.
    """
    return not isinstance(cfg, LibraryConfig)


def objective(cfg: ModelConfig) -> str:
    """By what the architecture learns from plain text."""
    if isinstance(cfg, Seq2SeqConfig):
        if cfg.relative:
            return "spans"
        return "infilling"
    if isinstance(cfg, EncoderConfig):
        return "masked"
    return "causal"


def network(cfg: ModelConfig) -> Decoder | Encoder | Seq2Seq | LibraryNetwork:
    """The forward of the config's family."""
    if isinstance(cfg, LibraryConfig):
        return LibraryNetwork(cfg)
    if isinstance(cfg, EncoderConfig):
        return Encoder(cfg)
    if isinstance(cfg, Seq2SeqConfig):
        return Seq2Seq(cfg)
    return decoder_of(cfg)
