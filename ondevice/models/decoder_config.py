"""What a decoder's `config.json` says, in Hugging Face's field names; both ways of writing rope are
read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ondevice.common.errors import UserError
from ondevice.models.base_config import CommonConfig
from ondevice.models.config_fields import Fields, refuse_unread
from ondevice.models.rope_scaling import by_type, read_rope

T = TypeVar("T")

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_LAYERS = {"full_attention", "sliding_attention"}
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh")
_GPT2 = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
_WRITES = ("ForCausalLM", "LMHeadModel")
_JUDGES = "ForSequenceClassification"
_CANNOT: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "scale_attn_weights": (None, True),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (None, False),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
}
"""Fields with the only values that we can honour."""
_AS_IT_IS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
    "bos_token_id",
    "pad_token_id",
    "hidden_act",
)
"""Fields that are taken as config.json has them; left out, the dataclass has their default."""
_WRITTEN_APART = {
    "raw",
    "windows",
    "thetas",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
    "dtype",
    "num_labels",
    "label_names",
    "query_pre_attn_scalar",
}
"""Fields of the dataclass that config.json has in another form, or not for every family."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(CommonConfig):
    """Llama, Mistral, Qwen2 and Qwen3 differ in three switches: q/k/v biases, norms of q and k, a
    window. SmolLM3 has layers without positions; Gemma 3 more norms, and two bases of rotation;
    GPT-2 a forward of its own."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()  # a window per layer, 0 the whole context; empty: 0 everywhere
    thetas: tuple[float, ...] = ()  # a base per layer, 0 no positions; empty: rope_theta everywhere
    query_pre_attn_scalar: float = 0.0  # whose root divides the scores; 0: head_dim
    initializer_range: float = 0.02

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def output_bias(self) -> bool:
        return self.attention_bias and self.model_type != "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type in ("qwen3", "gemma3_text")

    @property
    def sandwich(self) -> bool:
        """Norms behind attention and feed-forward part too, before they are added."""
        return self.model_type == "gemma3_text"

    @property
    def norm_shift(self) -> float:
        """What is added to a norm's weight: Gemma's are kept around 0."""
        if self.model_type == "gemma3_text":
            return 1.0
        return 0.0

    @property
    def attention_scale(self) -> float:
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    def theta(self, layer: int) -> float:
        if self.thetas:
            return self.thetas[layer]
        return self.rope_theta

    def window(self, layer: int) -> int:
        if self.windows:
            return self.windows[layer]
        return 0

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> DecoderConfig:
        """Raises UserError for a field that is missing, of the wrong type, or that we cannot
        honour.
        """
        kind = raw["model_type"]
        given = dict(raw)
        fields = Fields(raw)
        raw = _defaults(kind, fields)
        _check(raw)
        heads = raw["num_attention_heads"]
        layers = raw["num_hidden_layers"]
        context = raw.get("max_position_embeddings") or 2048
        head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
        theta = 10000.0
        scaling = None
        if kind != "gpt2":
            theta, scaling = read_rope(raw, context, head_dim)
        windows = _windows(raw, kind, layers)
        found = cls(
            model_type=kind,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            rope_theta=theta,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rope_scaling=scaling,
            windows=windows,
            thetas=_thetas(raw, kind, layers, theta, windows),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=context,
            eos_token_id=_hashable(raw.get("eos_token_id")),
            num_labels=num_labels(raw),
            label_names=label_names(raw),
            dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
            raw=given,
            **_as_it_is(raw, kind),
        )
        refuse_unread(fields)
        return found

    def to_json(self, dtype: str | None = None) -> dict[str, Any]:
        """As transformers 5, transformers 4 and mlx-lm read it: rope is written both ways (mlx-lm's
        Llama reads the old one only and silently takes 10,000 without it)."""
        out = {name: v for name, v in self.raw.items() if not name.startswith("quantization")}
        for f in fields(self):
            if f.name not in _WRITTEN_APART:
                out[f.name] = getattr(self, f.name)
        if isinstance(self.eos_token_id, tuple):
            out["eos_token_id"] = list(self.eos_token_id)
        out |= self._biases()
        out |= self._window_fields()
        scaling = self.rope_scaling
        out["rope_scaling"] = scaling
        out["rope_parameters"] = {
            "rope_type": "default",
            **(scaling or {}),
            "rope_theta": self.rope_theta,
        }
        if self.model_type == "smollm3":
            out["no_rope_layers"] = [int(self.theta(i) != 0) for i in range(self.num_hidden_layers)]
        elif self.model_type == "gemma3_text":
            out |= self._gemma(out)
        elif self.model_type == "gpt2":
            out = _as_gpt2(out)
        architecture = FAMILIES[self.model_type]
        if self.num_labels:
            architecture = _judge(architecture)
            out |= label_table(self.num_labels, self.label_names)
        out["architectures"] = [architecture]
        out.pop("torch_dtype", None)
        out["dtype"] = dtype or self.dtype
        return out

    def _biases(self) -> dict[str, bool]:
        if self.model_type in ("llama", "smollm3"):
            return {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias}
        if self.model_type in ("qwen3", "gemma3_text"):
            return {"attention_bias": self.attention_bias}
        return {}

    def _window_fields(self) -> dict[str, Any]:
        if self.model_type == "mistral":
            # written even where there is none: left out, it would mean transformers' default
            return {"sliding_window": max(self.windows, default=0) or None}
        if not self.windows:
            return {}
        kinds: list[str] = []
        for window in self.windows:
            if window:
                kinds.append("sliding_attention")
            else:
                kinds.append("full_attention")
        return {
            "use_sliding_window": True,
            "sliding_window": max(self.windows),
            "layer_types": kinds,
        }

    def _gemma(self, out: dict[str, Any]) -> dict[str, Any]:
        """What Gemma 3 has beside: a base of its own where attention has a window. mlx-lm asks for
        a pattern: every n-th layer sees the whole context."""
        local = self.rope_theta
        for theta in self.thetas:
            if theta != self.rope_theta:
                local = theta
                break
        # the first layer that sees the whole context says how often one does
        pattern = self.num_hidden_layers + 1
        for layer in range(self.num_hidden_layers):
            if not self.window(layer):
                pattern = layer + 1
                break
        turn = {"rope_type": "default", "rope_theta": local}
        return {
            "hidden_activation": out.pop("hidden_act"),
            "query_pre_attn_scalar": self.query_pre_attn_scalar or self.head_dim,
            "sliding_window": max(self.windows, default=0) or None,
            "rope_local_base_freq": local,
            "sliding_window_pattern": pattern,
            "rope_parameters": {
                "full_attention": out["rope_parameters"],
                "sliding_attention": turn,
            },
        }


def _judge(architecture: str) -> str:
    """The name of what scores in place of what writes."""
    for ending in _WRITES:
        architecture = architecture.removesuffix(ending)
    if architecture == "Gemma3":
        architecture = "Gemma3Text"
    return architecture + _JUDGES


def _check(raw: Fields) -> None:
    """Raises UserError for a field that is missing, of the wrong type, or that we cannot honour."""
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ):
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            raise UserError(f"{raw.get(name)!r} is not a whole number above 0", where=name)
    for name in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
        if not isinstance(raw.get(name), int | None):
            raise UserError(f"{raw[name]!r} is not a whole number", where=name)
    for name in ("rms_norm_eps", "initializer_range", "rope_theta"):
        if not isinstance(raw.get(name), int | float | None):
            raise UserError(f"{raw[name]!r} is not a number", where=name)
    if raw.get("hidden_act", "silu") not in ACTIVATIONS:
        raise UserError(
            f"unknown activation {raw['hidden_act']!r}",
            where="hidden_act",
            hint=f"known: {', '.join(ACTIVATIONS)}",
        )
    for name, known in _CANNOT.items():
        if raw.get(name) not in known:
            raise UserError(f"{raw[name]!r} is not known here", where=name)


def _as_it_is(raw: Fields, kind: str) -> dict[str, Any]:
    names: tuple[str, ...] = _AS_IT_IS
    if kind.startswith("gemma"):
        names = (*names, "query_pre_attn_scalar")
    return {name: raw[name] for name in names if raw.get(name) is not None}


def _hashable(ids: Any) -> Any:
    """One id, or several as a tuple."""
    if isinstance(ids, list):
        return tuple(ids)
    return ids


def _defaults(kind: str, raw: Fields) -> Fields:
    """`raw` under the names that the other families have, with what a family means where it says
    nothing.
    """
    if kind == "gpt2":
        named = raw.renamed(_GPT2)
        width = named.get("hidden_size")
        inner = named.get("intermediate_size") or None
        if inner is None and isinstance(width, int):
            inner = 4 * width
        return named.with_defaults(
            {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
            intermediate_size=inner,
        )
    if kind == "gemma3_text":
        known = {
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 4096,
        }
        return raw.with_defaults(
            known, hidden_act=raw.get("hidden_activation") or "gelu_pytorch_tanh"
        )
    if kind == "smollm3":
        return raw.with_defaults(
            {"tie_word_embeddings": True, "rope_theta": 2e6, "num_key_value_heads": 4}
        )
    return raw


def _as_gpt2(out: dict[str, Any]) -> dict[str, Any]:
    """The config in GPT-2's own names, without what it does not have."""
    for name in (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "num_key_value_heads",
        "head_dim",
    ):
        out.pop(name, None)
    for own, name in _GPT2.items():
        out[own] = out.pop(name)
    # mlx-lm's GPT-2 asks for the context under this name too
    return {**out, "n_ctx": out["n_positions"]}


def _thetas(
    raw: dict[str, Any], kind: str, layers: int, theta: float, windows: tuple[int, ...]
) -> tuple[float, ...]:
    """A base per layer: SmolLM3's layers without positions have 0, Gemma's layers with a window one
    of their own.
    """
    if kind == "gemma3_text" and windows:
        new = raw.get("rope_parameters") or {}
        local = None
        if by_type(new):
            local = (new.get("sliding_attention") or {}).get("rope_theta")
        if not any(windows):  # a base for layers with a window has no effect, and is not asked for
            return (theta,) * len(windows)
        return _by_layer(windows, float(local or raw["rope_local_base_freq"]), theta)
    if kind != "smollm3":
        return ()
    turned = raw.get("no_rope_layers")
    if turned is None:
        every = raw.get("no_rope_layer_interval") or 4
        turned = [(i + 1) % every for i in range(layers)]
    if not isinstance(turned, list) or len(turned) < layers:
        raise UserError(
            f"{turned!r} does not say it of each of {layers} layers", where="no_rope_layers"
        )
    return _by_layer(turned[:layers], theta, 0.0)


def _by_layer(chosen: Iterable[Any], value: T, other: T) -> tuple[T, ...]:
    """`value` for each layer that is chosen, `other` for the rest."""
    found: list[T] = []
    for one in chosen:
        if one:
            found.append(value)
        else:
            found.append(other)
    return tuple(found)


def num_labels(raw: dict[str, Any]) -> int:
    """How many scores the head gives, 0 where it gives none; transformers writes `id2label` unless
    there are two, and then nothing."""
    if not any(str(name).endswith(_JUDGES) for name in raw.get("architectures") or ()):
        return 0
    labels = raw.get("id2label")
    found = raw.get("num_labels")
    if not found and isinstance(labels, dict):
        found = len(labels)
    elif not found:
        found = 2
    if not isinstance(found, int) or found < 1:
        raise UserError(f"{found!r} is not a whole number above 0", where="num_labels")
    return found


def label_names(raw: dict[str, Any]) -> tuple[str, ...]:
    """What the scores are called; empty where they have numbers only."""
    labels = raw.get("id2label")
    if not num_labels(raw) or not isinstance(labels, dict):
        return ()
    usual = _numbered(num_labels(raw))
    names: list[str] = []
    for i, other in enumerate(usual):
        names.append(str(labels.get(str(i), labels.get(i, other))))
    if tuple(names) == usual:
        return ()
    return tuple(names)


def label_table(count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The names of the scores as config.json has them."""
    names = names or _numbered(count)
    return {
        "num_labels": count,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": None,
    }  # what a base was made for may be another


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _windows(raw: dict[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """A window per layer. Qwen's count only where `use_sliding_window` says so, and then from
    `max_window_layers` on.
    """
    usual = 0
    if kind == "mistral":
        usual = 4096
    window = raw.get("sliding_window", usual) or 0
    types = raw.get("layer_types")
    if types and (not isinstance(types, list) or len(types) != layers or set(types) - _LAYERS):
        raise UserError(
            f"{types!r} does not name one of {', '.join(sorted(_LAYERS))} for each of {layers} layers",
            where="layer_types",
        )
    if not window or kind in ("llama", "gpt2"):
        return ()
    if kind in ("qwen2", "qwen3", "smollm3") and not raw.get("use_sliding_window"):
        return ()
    if kind == "gemma3_text" and not types:
        every = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
        return _by_layer([(i + 1) % every for i in range(layers)], window, 0)
    if kind == "smollm3" and not types:
        return _by_layer(_thetas(raw, kind, layers, 1.0, ()), 0, window)
    if types:
        return _by_layer([one == "sliding_attention" for one in types], window, 0)
    first = 0
    if kind.startswith("qwen"):
        first = raw.get("max_window_layers", 28)
    return _by_layer([i >= first for i in range(layers)], window, 0)
