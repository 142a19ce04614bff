"""The decoder-only forward (Llama, Mistral, Qwen2, Qwen3), written once.

B batch, T tokens, D hidden, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from ondevice.backend import Array, Ops, Params
from ondevice.models import rope
from ondevice.models.config import DecoderConfig


@dataclass(frozen=True)
class Head:
    """What turns a hidden state into logits: `name` is the weight's tensor (V, D); `bias` that of a bias (V,) which
    does not stand beside it under the same name; the state is multiplied by `scale` first."""

    name: str
    bias: str = ""
    scale: float = 1.0

    def params(self, params: Params) -> Params:
        """All that the head is made of."""
        return {n: p for n, p in params.items() if n.startswith(f"{self.module}.") or n == self.bias}

    def logits(self, ops: Ops, params: Params, x: Array) -> Array:
        """(N, V) float32 from x (N, D)."""
        z = ops.cast(ops.linear(params, self.module, x if self.scale == 1.0 else x * self.scale), "float32")
        return z + ops.cast(ops.weight(params, self.bias), "float32") if self.bias else z

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Cache:
    """Keys and values so far: two arrays (B, H_kv, room, C) a layer, and how many tokens each row holds (B,). `fixed`:
    further arrays with a row for a row that do not grow (what an encoder-decoder has read)."""

    keys: list[Array]
    values: list[Array]
    lengths: Array
    fixed: list[Array] = field(default_factory=list)


def split_layers(params: Params, prefix: str) -> list[Params]:
    """The flat dict's blocks under relative names: one compiled block then serves all of them."""
    found: dict[int, Params] = {}
    for name, value in params.items():
        if name.startswith(prefix):
            layer, _, rest = name[len(prefix):].partition(".")
            found.setdefault(int(layer), {})[rest] = value
    return [found[i] for i in range(len(found))]


class Decoder:
    """A forward pass; holds no weights."""

    score, reads = "score", "last"  # a judge's head, and the token of a text at which it is read

    start: int | None = None  # what is written goes on from the prompt

    def __init__(self, cfg: DecoderConfig) -> None:
        self.cfg = cfg
        self.head = Head("model.embed_tokens.weight" if cfg.tie_word_embeddings else "lm_head.weight")

    def hidden(self, ops: Ops, params: Params, batch: Mapping[str, Array], *, at: Array | None = None,
               checkpoint: bool = False) -> Array:
        """(B, T, D) after the last norm, or (N, D) of the flat positions `at` (N,) = b·T + t alone, which saves the
        last block most of its work. `batch`: ids (B, T), positions (B, T), segments (B, T) where attention is to stay
        inside each example."""
        cos, sin = self._rope(ops, batch["positions"])
        segments = batch.get("segments")
        x = ops.embed(params, "model.embed_tokens", batch["ids"])
        blocks = split_layers(params, "model.layers.")
        for i, block in enumerate(blocks):
            # every array to differentiate is an argument: MLX's checkpoint gives captured ones a gradient of zero
            wanted = at if block is blocks[-1] else None
            body = partial(self._block, ops, self.cfg.window(i), segments, cos, sin, wanted)
            x = (ops.checkpoint(body) if checkpoint else body)(block, x)
        return ops.rms_norm(params, "model.norm", x, self.cfg.rms_norm_eps)

    def prompt_width(self, width: int) -> int:
        """Places of the cache that a prompt of `width` tokens takes."""
        return width

    def prefill(self, ops: Ops, params: Params, ids: Array, positions: Array, at: Array,
                lengths: Array) -> tuple[Array, Cache]:
        """(B, D) of the flat positions `at` (B,), the prompts' last tokens, and a cache that holds the prompts (B, T).
        They are padded at the right: a later token never sees that, and `lengths` (B,) hide it from the tokens decoded
        after."""
        cos, sin = self._rope(ops, positions)
        x = ops.embed(params, "model.embed_tokens", ids)
        keys, values = [], []
        blocks = split_layers(params, "model.layers.")
        for i, block in enumerate(blocks):
            q, k, v = self._qkv(ops, block, x, cos, sin)
            keys.append(k)
            values.append(v)
            a = ops.attention(q, k, v, scale=self.cfg.head_dim**-0.5, window=self.cfg.window(i))
            x = self._rest(ops, block, x, a, at if block is blocks[-1] else None)
        return ops.rms_norm(params, "model.norm", x, self.cfg.rms_norm_eps), Cache(keys, values, lengths)

    def decode(self, ops: Ops, params: Params, ids: Array, cache: Cache) -> tuple[Array, Cache]:
        """One token a row, ids (B, 1) → hidden (B, 1, D) and the longer cache."""
        # rows that are done go on being decoded until the next look, past the end of the table where need be
        at = ops.minimum(cache.lengths, self.cfg.max_position_embeddings - 1)
        cos, sin = self._rope(ops, at.reshape(-1, 1))
        x = ops.embed(params, "model.embed_tokens", ids)
        keys, values = [], []
        lengths = cache.lengths + 1
        for i, block in enumerate(split_layers(params, "model.layers.")):
            q, k, v = self._qkv(ops, block, x, cos, sin)
            keys.append(ops.cache_write(cache.keys[i], k, cache.lengths))
            values.append(ops.cache_write(cache.values[i], v, cache.lengths))
            a = ops.attention(q, keys[i], values[i], scale=self.cfg.head_dim**-0.5, window=self.cfg.window(i),
                              lengths=lengths)
            x = self._rest(ops, block, x, a)
        return ops.rms_norm(params, "model.norm", x, self.cfg.rms_norm_eps), Cache(keys, values, lengths)

    def _rope(self, ops: Ops, positions: Array) -> tuple[Array, Array]:
        """cos and sin (B, 1, T, C / 2) of the positions."""
        # padding may stand beyond the context
        tables = rope.tables(self.cfg, max(self.cfg.max_position_embeddings, positions.shape[-1]))
        cos, sin = (ops.take(ops.constant(t), positions) for t in tables)
        b, t, c = cos.shape
        return cos.reshape(b, 1, t, c), sin.reshape(b, 1, t, c)

    def _block(self, ops: Ops, window: int, segments: Array | None, cos: Array, sin: Array, at: Array | None,
               block: Params, x: Array) -> Array:
        q, k, v = self._qkv(ops, block, x, cos, sin)
        a = ops.attention(q, k, v, scale=self.cfg.head_dim**-0.5, window=window, segments=segments)
        return self._rest(ops, block, x, a, at)

    def _qkv(self, ops: Ops, block: Params, x: Array, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        cfg = self.cfg
        b, t, _ = x.shape
        h = ops.rms_norm(block, "input_layernorm", x, cfg.rms_norm_eps)
        q = ops.linear(block, "self_attn.q_proj", h).reshape(b, t, cfg.num_attention_heads, cfg.head_dim)
        k = ops.linear(block, "self_attn.k_proj", h).reshape(b, t, cfg.num_key_value_heads, cfg.head_dim)
        v = ops.linear(block, "self_attn.v_proj", h).reshape(b, t, cfg.num_key_value_heads, cfg.head_dim)
        if cfg.qk_norm:
            q = ops.rms_norm(block, "self_attn.q_norm", q, cfg.rms_norm_eps)
            k = ops.rms_norm(block, "self_attn.k_norm", k, cfg.rms_norm_eps)
        q, k = ops.rope(q.swapaxes(1, 2), cos, sin), ops.rope(k.swapaxes(1, 2), cos, sin)
        return q, k, v.swapaxes(1, 2)

    def _rest(self, ops: Ops, block: Params, x: Array, a: Array, at: Array | None = None) -> Array:
        """What follows attention, position by position: of all of them (B, T, D), or of `at` alone (N, D)."""
        b, t, _ = x.shape
        a = a.swapaxes(1, 2).reshape(b, t, -1)
        if at is not None:
            x, a = (ops.take(every.reshape(b * t, -1), at) for every in (x, a))
        x = x + ops.linear(block, "self_attn.o_proj", a)
        h = ops.rms_norm(block, "post_attention_layernorm", x, self.cfg.rms_norm_eps)
        gate = ops.silu(ops.linear(block, "mlp.gate_proj", h))
        return x + ops.linear(block, "mlp.down_proj", gate * ops.linear(block, "mlp.up_proj", h))
