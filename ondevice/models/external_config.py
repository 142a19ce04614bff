"""What is read of the `config.json` of an architecture that is not ours: the rest is the library's,
and kept whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ondevice.common.errors import UserError
from ondevice.models.base_config import CommonConfig
from ondevice.seam.external_library import Library

_CONTEXT = 2048  # where the config names none, as those of recurrent models


@dataclass(frozen=True, kw_only=True)
class LibraryConfig(CommonConfig):
    """`lib` is there once the folder is loaded (`models/external_library.py`)."""

    tie_word_embeddings: bool = False
    lib: Library | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> LibraryConfig:
        """Raises UserError for a model that does not write text from text alone."""
        kind = raw["model_type"]
        named = [str(name) for name in raw.get("architectures") or ()]
        if (
            named
            and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
            or raw.get("is_encoder_decoder")
        ):
            raise UserError(
                f"{named[0] if named else kind} is not known here",
                where="architectures",
                hint="of other architectures, those that write text alone (…ForCausalLM)",
            )
        if not isinstance(raw.get("vocab_size"), int) or raw["vocab_size"] < 4:
            raise UserError(
                f"{raw.get('vocab_size')!r} is not a size of a {kind} model's vocabulary",
                where="vocab_size",
                hint="is it a model of text alone?",
            )
        for (
            name,
            value,
        ) in raw.items():  # transformers would fetch a kernel of that name, and run it
            if name.endswith("_implementation") and "/" in str(value):
                raise UserError(
                    f"names code of the Hub, {value}, which is not run",
                    where=name,
                    hint="take it out",
                )
        eos = raw.get("eos_token_id")
        context = raw.get("max_position_embeddings")
        return cls(
            model_type=kind,
            vocab_size=raw["vocab_size"],
            tie_word_embeddings=bool(
                raw.get("tie_word_embeddings", raw.get("tie_embedding", False))
            ),
            max_position_embeddings=context
            if isinstance(context, int) and context > 0
            else _CONTEXT,
            bos_token_id=raw.get("bos_token_id"),
            pad_token_id=raw.get("pad_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
            raw=raw,
        )

    def to_json(self, dtype: str | None = None) -> dict[str, Any]:
        """The config as it was, with the tokenizer's own tokens and the weights' type."""
        eos = self.eos_token_id
        tokens = {
            "bos_token_id": self.bos_token_id,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        }
        kept = {name: value for name, value in self.raw.items() if name != "torch_dtype"}
        return {**kept, **tokens, "dtype": dtype or self.dtype}
