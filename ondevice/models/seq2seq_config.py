"""What an encoder-decoder's `config.json` says, in Hugging Face's field names: T5 (also v1.1 and
Flan-T5) and BART.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ondevice.common.errors import UserError
from ondevice.models.base_config import CommonConfig, number, whole
from ondevice.models.config_fields import Fields, refuse_unread

SEQ2SEQ = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}
# tokens of either side of a T5, whose positions are relative: what it was trained with
CONTEXT = 512
# Our name → the family's; both sides of BART have heads and feed-forward parts of their own there,
# and one size here.
_T5 = {
    "hidden_size": "d_model",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
_NAMES: dict[str, dict[str, str]] = {
    "t5": _T5,
    "mt5": _T5,
    "bart": {
        "hidden_size": "d_model",
        "intermediate_size": "encoder_ffn_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
        "num_decoder_layers": "decoder_layers",
    },
}
_ALIKE = (
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("encoder_attention_heads", "decoder_attention_heads"),
)
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new"}
# Fields with the only value that is built; old folders of BART say these of themselves.
_FIXED: dict[str, dict[str, Any]] = {
    "bart": {
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "add_bias_logits": False,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
    }
}
_BOTH = {
    "is_encoder_decoder": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
}


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(CommonConfig):
    """T5: RMS norms before each part, relative positions as a bias of the scores, no scaling of
    them, no biases. BART: norms after, learned positions, biases everywhere."""

    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_hidden_layers: int
    num_decoder_layers: int
    num_attention_heads: int
    norm_eps: float
    gated: bool = False  # T5 v1.1: GELU(x W0) · (x W1) in place of ReLU(x W)
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True  # by hidden_size^-0.5, before a tied head
    initializer_range: float = 0.02
    decoder_start_token_id: int = 0

    @property
    def relative(self) -> bool:
        return self.model_type != "bart"

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Seq2SeqConfig:
        """Raises UserError for a field that is missing, of the wrong type, or that we cannot
        honour.
        """
        kind, given = raw["model_type"], dict(raw)
        raw = Fields(raw)
        names = {"vocab_size": "vocab_size", **_NAMES[kind]}
        for name in names.values():
            if not isinstance(raw.get(name), int) or raw[name] < 1:
                raise UserError(f"{raw.get(name)!r} is not a whole number above 0", where=name)
        known = {ours: raw[theirs] for ours, theirs in names.items()}
        for (
            ours,
            value,
        ) in known.items():  # transformers takes either name: they have to say the same
            if (
                names[ours] != ours
                and (kind, ours) != ("bart", "num_hidden_layers")
                and raw.get(ours) not in (None, value)
            ):
                raise UserError(f"is {raw[ours]!r}, {names[ours]} says {value}", where=ours)
        for name, only in {**_BOTH, **_FIXED.get(kind, {})}.items():
            if raw.get(name) not in (None, only):
                raise UserError(f"cannot be {raw[name]!r} here", where=name, hint=f"known: {only}")
        if kind == "bart":
            own = _bart(raw)
        else:
            own = _t5(raw)
        eos, start = raw.get("eos_token_id"), raw.get("decoder_start_token_id")
        if start is None:
            if kind == "bart":
                start = 2
            else:
                start = raw.get("pad_token_id") or 0
        found = cls(
            model_type=kind,
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            decoder_start_token_id=start,
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
            raw=given,
            **{
                name: raw[name]
                for name in ("bos_token_id", "pad_token_id")
                if raw.get(name) is not None
            },
            **{**known, **own},
        )
        refuse_unread(raw)
        return found

    def to_json(self, dtype: str | None = None) -> dict[str, Any]:
        """As transformers reads it."""
        out = dict(self.raw)
        for ours, theirs in {"vocab_size": "vocab_size", **_NAMES[self.model_type]}.items():
            out[theirs] = getattr(self, ours)
        for name in (
            "model_type",
            "tie_word_embeddings",
            "decoder_start_token_id",
            "bos_token_id",
            "pad_token_id",
        ):
            out[name] = getattr(self, name)
        if isinstance(self.eos_token_id, tuple):
            out["eos_token_id"] = list(self.eos_token_id)
        else:
            out["eos_token_id"] = self.eos_token_id
        if self.relative:
            out |= {
                name: getattr(self, name)
                for name in (
                    "num_decoder_layers",
                    "relative_attention_num_buckets",
                    "relative_attention_max_distance",
                    "scale_decoder_outputs",
                )
            }
            out |= {
                "layer_norm_epsilon": self.norm_eps,
                "feed_forward_proj": "gated-gelu" if self.gated else "relu",
                "dropout_rate": 0.0,
                "n_positions": self.max_position_embeddings,
            }
        else:
            out |= {b: out[a] for a, b in _ALIKE}
            out |= {
                "activation_function": "gelu",
                "scale_embedding": False,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "activation_dropout": 0.0,
                "init_std": self.initializer_range,
                "forced_eos_token_id": None,
            }
        out.pop("torch_dtype", None)
        return {
            **out,
            "is_encoder_decoder": True,
            "architectures": [SEQ2SEQ[self.model_type]],
            "dtype": dtype or self.dtype,
        }


def _t5(raw: dict[str, Any]) -> dict[str, Any]:
    kind = raw["model_type"]
    # as transformers' own configs
    shape = raw.get("feed_forward_proj") or ("relu" if kind == "t5" else "gated-gelu")
    if shape not in _ACTIVATIONS:
        raise UserError(
            f"cannot be {shape!r} here", where="feed_forward_proj", hint="known: relu, gated-gelu"
        )
    for name, follows in (
        ("dense_act_fn", _ACTIVATIONS[shape]),
        ("is_gated_act", shape == "gated-gelu"),
    ):
        if raw.get(name) not in (None, follows):
            raise UserError(f"is {raw[name]!r}, feed_forward_proj says {follows!r}", where=name)
    tied = raw.get("tie_word_embeddings", True) is not False
    # half to either side, half of those exact
    buckets = whole(raw, "relative_attention_num_buckets", 32, least=4)
    return {
        "num_decoder_layers": whole(raw, "num_decoder_layers", raw["num_layers"]),
        "gated": shape == "gated-gelu",
        "norm_eps": number(raw, "layer_norm_epsilon", 1e-6),
        "max_position_embeddings": whole(raw, "n_positions", CONTEXT),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": whole(
            raw, "relative_attention_max_distance", 128, least=buckets // 2 + 1
        ),
        # left out, it means a tied head whose states are scaled: as transformers writes the first
        # T5
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": bool(raw.get("scale_decoder_outputs", tied and kind == "t5")),
    }


def _bart(raw: dict[str, Any]) -> dict[str, Any]:
    for a, b in _ALIKE:
        if raw.get(b, raw[a]) != raw[a]:
            raise UserError(f"must be {a}, {raw[a]}, here", where=b)
    if raw["d_model"] % raw["encoder_attention_heads"]:
        raise UserError("must divide d_model", where="encoder_attention_heads")
    return {
        "head_dim": raw["d_model"] // raw["encoder_attention_heads"],
        "norm_eps": 1e-5,
        "initializer_range": number(raw, "init_std", 0.02),
    }
