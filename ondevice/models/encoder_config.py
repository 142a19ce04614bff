"""What an encoder's `config.json` says, in Hugging Face's field names: BERT and ModernBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ondevice.common.errors import UserError
from ondevice.models.base_config import CommonConfig, number, whole
from ondevice.models.config_fields import Fields, refuse_unread
from ondevice.models.decoder_config import label_names, label_table, num_labels

ENCODERS = {"bert": "BertForMaskedLM", "modernbert": "ModernBertForMaskedLM"}
_FILLS, _JUDGES = "ForMaskedLM", "ForSequenceClassification"
_WHOLE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# What would change the numbers and is not built: a field that says so is refused, not passed over.
_FIXED: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "cross_attention_hidden_size": None,
        "pruned_heads": {},
        "tie_encoder_decoder": False,
        "embedding_size": None,
    },
    "modernbert": {
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "decoder_bias": True,
        "is_encoder_decoder": False,
        "position_embedding_type": "absolute",
        "partial_rotary_factor": 1.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(CommonConfig):
    """BERT: norms after each part, learned positions, segment embeddings. ModernBERT: norms before,
    rotary positions, layers of local attention between global ones, gated GELU."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    norm_eps: float
    type_vocab_size: int = 0
    windows: tuple[
        int, ...
    ] = ()  # a layer's reach to either side with itself, 0 the whole text; empty: 0 everywhere
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    head_bias: bool = True  # of the layer between the blocks and the head
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    eos_token_id: int | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def modern(self) -> bool:
        return self.model_type == "modernbert"

    def window(self, layer: int) -> int:
        if self.windows:
            return self.windows[layer]
        return 0

    def theta(self, layer: int) -> float:
        if self.window(layer):
            return self.local_rope_theta
        return self.global_rope_theta

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> EncoderConfig:
        """Raises UserError for a field that is missing, of the wrong type, or that we cannot
        honour.
        """
        kind, given = raw["model_type"], dict(raw)
        raw = Fields(raw)
        for name in _WHOLE:
            if not isinstance(raw.get(name), int) or raw[name] < 1:
                raise UserError(f"{raw.get(name)!r} is not a whole number above 0", where=name)
        for name, only in _FIXED[kind].items():
            if raw.get(name) not in (None, only):
                raise UserError(f"cannot be {raw[name]!r} here", where=name, hint=f"known: {only}")
        if raw["hidden_size"] % raw["num_attention_heads"]:
            raise UserError("must divide hidden_size", where="num_attention_heads")
        labels = num_labels(raw)
        if labels and raw.get("classifier_pooling", "cls") != "cls":
            raise UserError(
                f"cannot be {raw['classifier_pooling']!r} here",
                where="classifier_pooling",
                hint="a text is read at its first token: cls",
            )
        eos = raw.get("eos_token_id")
        if kind == "modernbert":
            own = _modern(raw)
        else:
            own = {
                "norm_eps": number(raw, "layer_norm_eps", 1e-12),
                "type_vocab_size": whole(raw, "type_vocab_size", 2),
            }
        found = cls(
            model_type=kind,
            eos_token_id=eos[0] if isinstance(eos, list) else eos,
            num_labels=labels,
            label_names=label_names(raw),
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
            raw=given,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
            initializer_range=number(raw, "initializer_range", 0.02),
            **{name: raw[name] for name in _WHOLE},
            **{
                name: raw[name]
                for name in ("bos_token_id", "pad_token_id")
                if raw.get(name) is not None
            },
            **own,
        )
        refuse_unread(raw)
        return found

    def to_json(self, dtype: str | None = None) -> dict[str, Any]:
        """As transformers 4 and 5 read it: ModernBERT's rope and its pattern of layers are written
        both ways.
        """
        out = dict(self.raw)
        for name in (
            "model_type",
            *_WHOLE,
            "tie_word_embeddings",
            "initializer_range",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ):
            out[name] = getattr(self, name)
        if self.modern:
            out |= {
                "cls_token_id": self.bos_token_id,
                "sep_token_id": self.eos_token_id,
                "classifier_pooling": "cls",
            }
            out |= self._modern_json()
        else:
            out |= {
                "layer_norm_eps": self.norm_eps,
                "type_vocab_size": self.type_vocab_size,
                "hidden_act": "gelu",
                # trained without dropout here; who goes on elsewhere decides anew
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        architecture = ENCODERS[self.model_type]
        if self.num_labels:
            architecture = architecture.removesuffix(_FILLS) + _JUDGES
            out |= label_table(self.num_labels, self.label_names)
        out.pop("torch_dtype", None)
        return {**out, "architectures": [architecture], "dtype": dtype or self.dtype}

    def _modern_json(self) -> dict[str, Any]:
        rope = {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in (
                ("full_attention", self.global_rope_theta),
                ("sliding_attention", self.local_rope_theta),
            )
        }
        first_global = next(
            (i for i in range(1, self.num_hidden_layers) if not self.window(i)),
            self.num_hidden_layers,
        )
        return {
            "norm_eps": self.norm_eps,
            "norm_bias": self.norm_bias,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "classifier_bias": self.head_bias,
            "hidden_activation": "gelu",
            "classifier_activation": "gelu",
            "decoder_bias": True,
            "rope_parameters": rope,
            "global_rope_theta": self.global_rope_theta,
            "local_rope_theta": self.local_rope_theta,
            "local_attention": 2 * max(max(self.windows, default=0) - 1, 0) or 1,
            "global_attn_every_n_layers": first_global,
            "layer_types": [
                "sliding_attention" if self.window(i) else "full_attention"
                for i in range(self.num_hidden_layers)
            ],
        }


_KINDS = ("full_attention", "sliding_attention")


def _modern(raw: dict[str, Any]) -> dict[str, Any]:
    layers, every = raw["num_hidden_layers"], whole(raw, "global_attn_every_n_layers", 3)
    types = raw.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    ]
    if len(types) != layers:
        raise UserError(f"names {len(types)} layers, there are {layers}", where="layer_types")
    if unknown := set(map(str, types)) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"cannot be {min(unknown)!r} here",
            where="layer_types",
            hint="known: full_attention, sliding_attention",
        )
    # either side of a token sees half of the window, the token at the border included
    reach = whole(raw, "local_attention", 128) // 2 + 1
    rope = raw.get("rope_parameters") or {}
    if not isinstance(rope, dict) or not all(
        isinstance(rope.get(kind) or {}, dict) for kind in _KINDS
    ):
        raise UserError(f"{rope!r} does not say it of each kind of layer", where="rope_parameters")
    theta = {}
    for name, kind, usual in (
        ("global_rope_theta", "full_attention", 160000.0),
        ("local_rope_theta", "sliding_attention", 10000.0),
    ):
        own = rope.get(kind) or {}
        scaled = any(one.get("rope_type", "default") != "default" for one in (own, rope))
        if scaled or raw.get("rope_scaling"):
            raise UserError("scaled rotary positions are not known here", where="rope_parameters")
        theta[name] = number(
            own, "rope_theta", number(rope, "rope_theta", number(raw, name, usual))
        )
    # published folders have it; it was never read, by ModernBERT's own code neither
    raw.get("layer_norm_eps")
    return {
        "norm_eps": number(raw, "norm_eps", 1e-5),
        "norm_bias": bool(raw.get("norm_bias", False)),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "head_bias": bool(raw.get("classifier_bias", False)),
        "windows": tuple(reach if t == "sliding_attention" else 0 for t in types),
        **theta,
    }
