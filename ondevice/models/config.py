"""What a decoder's `config.json` says, in Hugging Face's field names; both ways of writing rope are read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ondevice.errors import UserError

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}
_WRITES, _JUDGES = "ForCausalLM", "ForSequenceClassification"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Llama, Mistral, Qwen2 and Qwen3 differ in three switches: q/k/v biases, norms of q and k, a window."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()  # a window a layer, 0 the whole context; empty: 0 everywhere
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    num_labels: int = 0  # 0: a language model; else a head of so many scores in place of the one that writes
    label_names: tuple[str, ...] = ()
    dtype: str = "float32"
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def output_bias(self) -> bool:
        return self.attention_bias and self.model_type != "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> DecoderConfig:
        """Raises UserError for an unknown family, or a field that we cannot honour."""
        kind = raw.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UserError(f"unknown architecture {kind!r}", where="model_type", hint=f"known: {', '.join(FAMILIES)}")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if not isinstance(raw.get(name), int) or raw[name] < 1:
                raise UserError(f"{raw.get(name)!r} is no whole number above 0", where=name)
        for name in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
            if not isinstance(raw.get(name), int | None):
                raise UserError(f"{raw[name]!r} is no whole number", where=name)
        for name in ("rms_norm_eps", "initializer_range", "rope_theta"):
            if not isinstance(raw.get(name), int | float | None):
                raise UserError(f"{raw[name]!r} is no number", where=name)
        if raw.get("hidden_act", "silu") != "silu":
            raise UserError(f"unknown activation {raw['hidden_act']!r}", where="hidden_act", hint="known: silu")
        heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
        rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
        theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
        scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
        eos = raw.get("eos_token_id")
        return cls(
            model_type=kind, num_attention_heads=heads, num_hidden_layers=layers, rope_theta=float(theta),
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope_scaling=rope if scaled else None, windows=_windows(raw, kind, layers),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=raw.get("max_position_embeddings") or 2048,
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            num_labels=num_labels(raw), label_names=label_names(raw),
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32", raw=raw,
            **{n: raw[n] for n in ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "attention_bias",
                                   "mlp_bias", "initializer_range", "bos_token_id", "pad_token_id")
               if raw.get(n) is not None})

    def to_json(self, dtype: str | None = None) -> dict[str, Any]:
        """As transformers 5, transformers 4 and mlx-lm read it: rope is written both ways (mlx-lm's Llama reads the
        old one only and silently takes 10,000 without it)."""
        out = dict(self.raw)
        for f in fields(self):
            if f.name not in ("raw", "windows", "rope_scaling", "attention_bias", "mlp_bias", "dtype",
                              "num_labels", "label_names"):
                out[f.name] = getattr(self, f.name)
        if self.model_type == "llama":
            out |= {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias}
        elif self.model_type == "qwen3":
            out["attention_bias"] = self.attention_bias
        if self.model_type == "mistral":
            # written even where there is none: left out, it would mean transformers' default
            out["sliding_window"] = max(self.windows, default=0) or None
        elif self.windows:
            out |= {"use_sliding_window": True, "sliding_window": max(self.windows),
                    "layer_types": ["sliding_attention" if w else "full_attention" for w in self.windows]}
        if isinstance(self.eos_token_id, tuple):
            out["eos_token_id"] = list(self.eos_token_id)
        scaling = self.rope_scaling
        out["rope_scaling"] = scaling
        out["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": self.rope_theta}
        architecture = FAMILIES[self.model_type]
        if self.num_labels:
            architecture = architecture.removesuffix(_WRITES) + _JUDGES
            out |= label_table(self.num_labels, self.label_names)
        out |= {"architectures": [architecture], "hidden_act": "silu"}
        out.pop("torch_dtype", None)
        out["dtype"] = dtype or self.dtype
        return out


def num_labels(raw: dict[str, Any]) -> int:
    """How many scores the head gives, 0 where it gives none; transformers writes `id2label` unless there are two, and
    then nothing."""
    if not any(str(name).endswith(_JUDGES) for name in raw.get("architectures") or ()):
        return 0
    labels = raw.get("id2label")
    found = raw.get("num_labels") or (len(labels) if isinstance(labels, dict) else 2)
    if not isinstance(found, int) or found < 1:
        raise UserError(f"{found!r} is no whole number above 0", where="num_labels")
    return found


def label_names(raw: dict[str, Any]) -> tuple[str, ...]:
    """What the scores are called; empty where they have numbers only."""
    labels = raw.get("id2label")
    if not num_labels(raw) or not isinstance(labels, dict):
        return ()
    names = tuple(str(labels.get(str(i), labels.get(i, f"LABEL_{i}"))) for i in range(num_labels(raw)))
    return () if names == _numbered(len(names)) else names


def label_table(count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The names of the scores as config.json has them."""
    names = names or _numbered(count)
    return {"num_labels": count, "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)}}


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _windows(raw: dict[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """A window a layer. Qwen's count only where `use_sliding_window` says so, and then from `max_window_layers` on."""
    window = raw.get("sliding_window", 4096 if kind == "mistral" else 0) or 0
    if not window or kind == "llama" or (kind.startswith("qwen") and not raw.get("use_sliding_window")):
        return ()
    types = raw.get("layer_types")
    if types:
        return tuple(window if t == "sliding_attention" else 0 for t in types)
    first = raw.get("max_window_layers", 28) if kind.startswith("qwen") else 0
    return tuple(window if i >= first else 0 for i in range(layers))
