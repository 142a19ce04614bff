"""The encoder-decoder forwards (T5, BART), written once: a source is read from both sides, a text
is written to it.

B batch, S tokens of a source, T tokens of what is written, D hidden, H heads, C width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from ondevice.models.decoder import Tables, split_layers
from ondevice.models.kv_cache import Cache
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.models.shared_prompts import rows_of
from ondevice.models.tables import places, tables_of
from ondevice.seam.head import Head
from ondevice.seam.ops import Array, HostArray, Ops, Params

OFFSET = 2  # BART's table of positions begins with two rows that are none


class Seq2Seq:
    """A forward pass; holds no weights."""

    score = ""  # it has no judge's head
    pooling = "last"
    shares_prompts = True  # each source is read once

    def __init__(self, cfg: Seq2SeqConfig) -> None:
        self.cfg = cfg
        # beyond the longest distance all are in one bucket
        self._reach = cfg.relative_attention_max_distance
        # what is written follows this token, not the prompt
        self.decoder_start_token_id: int | None = cfg.decoder_start_token_id
        if cfg.relative:
            self._sides = ("encoder.block.", "decoder.block.")
            scale = 1.0
            if cfg.scale_decoder_outputs:
                scale = cfg.hidden_size**-0.5
            weight = "lm_head.weight"
            if cfg.tie_word_embeddings:
                weight = "shared.weight"
            self.head = Head(weight, scale=scale)
        else:
            self._sides = ("model.encoder.layers.", "model.decoder.layers.")
            self.head = Head("model.shared.weight", "final_logits_bias")

    def tables(self, length: int) -> dict[str, HostArray]:
        """0 … length - 1, and of T5 the bucket of each distance."""
        out: dict[str, HostArray] = {"places": places(2 * length + 1)}
        if self.cfg.relative:
            count = self.cfg.relative_attention_num_buckets
            out["encoder.buckets"] = distance_buckets(self._reach, True, count, self._reach)
            out["decoder.buckets"] = distance_buckets(self._reach, False, count, self._reach)
        return out

    def hidden(
        self,
        ops: Ops,
        params: Params,
        batch: Mapping[str, Array],
        *,
        at: Array | None = None,
        checkpoint: bool = False,
    ) -> Array:
        """(B, T, D) after the last norm, or (N, D) of the flat positions `at` (N,) = b·T + t alone.
        `batch`: source_ids (B, S), source_lengths (B,), ids (B, T) and positions (B, T) of what is
        written. Where texts share their sources, these are (R, S), (R,), and source_of (B,) says
        which of them each text has."""
        lengths = batch["source_lengths"]
        of = batch.get("source_of")
        tables = tables_of(self, ops, batch)
        source = self.encoded(ops, params, tables, batch["source_ids"], lengths, checkpoint)
        if of is not None:
            lengths = ops.take(lengths, of)
        x = self._embed(ops, params, "decoder", batch["ids"], batch["positions"])
        bias = self._bias(ops, params, tables, "decoder", x.shape[1])
        blocks = split_layers(params, self._sides[1])
        for block in blocks:
            wanted = None
            if block is blocks[-1]:
                wanted = at
            # every array to differentiate is an argument: MLX's checkpoint gives captured ones a
            # gradient of zero
            body = partial(self._decoder_block, ops, lengths, of, wanted)
            if checkpoint:
                x = ops.checkpoint(body)(block, x, source, *bias)
            else:
                x = body(block, x, source, *bias)
        return self._final_norm(ops, params, "decoder", x)

    def encoded(
        self,
        ops: Ops,
        params: Params,
        tables: Tables,
        ids: Array,
        lengths: Array,
        checkpoint: bool = False,
    ) -> Array:
        """(B, S, D) of sources that are padded at the right."""
        positions = tables["places"][: ids.shape[1]].reshape(1, -1)
        x = self._embed(ops, params, "encoder", ids, positions)
        bias = self._bias(ops, params, tables, "encoder", ids.shape[1])
        for block in split_layers(params, self._sides[0]):
            body = partial(self._encoder_block, ops, lengths)
            if checkpoint:
                x = ops.checkpoint(body)(block, x, *bias)
            else:
                x = body(block, x, *bias)
        return self._final_norm(ops, params, "encoder", x)

    # decoding

    def prompt_width(self, width: int) -> int:
        """Places of the cache that a prompt of `width` tokens takes: it is read by the other side."""
        return 1

    def prefill(
        self,
        ops: Ops,
        params: Params,
        tables: Tables,
        ids: Array,
        positions: Array,
        ends: Array,
        lengths: Array,
    ) -> tuple[Array, Cache]:
        """(B, D) of the token that opens what is written, and a cache that holds it: of each
        layer's own keys and values, and, fixed, those of the source."""
        source = self.encoded(ops, params, tables, ids, lengths)
        first = ids[:, :1] * 0
        x = self._embed(ops, params, "decoder", first + self.cfg.decoder_start_token_id, first)
        bias = self._bias(ops, params, tables, "decoder", 1)
        keys: list[Array] = []
        values: list[Array] = []
        fixed: list[Array] = []
        for block in split_layers(params, self._sides[1]):
            q, k, v = self._self_qkv(ops, block, x)
            keys.append(k)
            values.append(v)
            cross = self._cross_kv(ops, block, source)
            fixed += cross
            a = ops.attention(q, k, v, scale=self._scale, bias=_first(bias))
            x = self._written(ops, block, x, a, cross, lengths, None)
        x = self._final_norm(ops, params, "decoder", x).reshape(ids.shape[0], -1)
        return x, Cache(keys, values, lengths * 0 + 1, [*fixed, lengths])

    def decode(
        self, ops: Ops, params: Params, tables: Tables, ids: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """One token per row, ids (B, 1) → hidden (B, 1, D) and the longer cache."""
        at = ops.minimum(cache.lengths, self.cfg.max_position_embeddings - 1)
        x = self._embed(ops, params, "decoder", ids, at.reshape(-1, 1))
        bias = self._row_bias(ops, params, tables, cache.lengths, cache.keys[0].shape[2])
        keys: list[Array] = []
        values: list[Array] = []
        held = cache.lengths + 1
        end = cache.end(ops)
        for i, block in enumerate(split_layers(params, self._sides[1])):
            q, k, v = self._self_qkv(ops, block, x)
            keys.append(ops.cache_write(cache.keys[i], k, end))
            values.append(ops.cache_write(cache.values[i], v, end))
            a = ops.attention(q, keys[i], values[i], scale=self._scale, lengths=held, bias=bias)
            cross = (cache.fixed[2 * i], cache.fixed[2 * i + 1])
            x = self._written(ops, block, x, a, cross, cache.fixed[-1], None)
        return self._final_norm(ops, params, "decoder", x), Cache(keys, values, held, cache.fixed)

    # parts

    @property
    def _scale(self) -> float:
        if self.cfg.relative:
            return 1.0
        return float(self.cfg.head_dim**-0.5)

    def _embed(self, ops: Ops, params: Params, side: str, ids: Array, positions: Array) -> Array:
        if self.cfg.relative:
            return ops.embed(params, "shared", ids)
        x = ops.embed(params, "model.shared", ids)
        # padding may stand beyond the context
        at = ops.minimum(positions, self.cfg.max_position_embeddings - 1) + OFFSET
        x = x + ops.embed(params, f"model.{side}.embed_positions", at)
        return ops.layer_norm(params, f"model.{side}.layernorm_embedding", x, self.cfg.norm_eps)

    def _final_norm(self, ops: Ops, params: Params, side: str, x: Array) -> Array:
        if self.cfg.relative:
            return ops.rms_norm(params, f"{side}.final_layer_norm", x, self.cfg.norm_eps)
        return x

    def _table(self, ops: Ops, params: Params, tables: Tables, side: str, reach: int) -> Array:
        """(distances, H): what each distance key − query adds to a score, from −reach to reach."""
        away = tables["places"][: 2 * reach + 1] - reach
        known = ops.minimum(ops.maximum(away, -self._reach), self._reach) + self._reach
        buckets = ops.take(tables[f"{side}.buckets"], known)
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        return ops.embed(params, name, buckets)

    def _bias(
        self, ops: Ops, params: Params, tables: Tables, side: str, width: int
    ) -> tuple[Array, ...]:
        """(1, H, T, T), or none: every block adds that of the first."""
        if not self.cfg.relative:
            return ()
        each = tables["places"][:width]
        row = each.reshape(1, -1) - each.reshape(-1, 1) + width
        # (T, T, H)
        apart = ops.take(self._table(ops, params, tables, side, width), row)
        h = self.cfg.num_attention_heads
        by_head = apart.reshape(width * width, h).swapaxes(0, 1)
        return (by_head.reshape(1, h, width, width),)

    def _row_bias(
        self, ops: Ops, params: Params, tables: Tables, lengths: Array, room: int
    ) -> Array | None:
        """(B, H, 1, room) for a token at place `lengths` of each row."""
        if not self.cfg.relative:
            return None
        away = tables["places"][:room].reshape(1, -1) - lengths.reshape(-1, 1)
        table = self._table(ops, params, tables, "decoder", room)
        row = ops.minimum(ops.maximum(away, -room), room) + room
        found = ops.take(table, row)  # (B, room, H)
        b = lengths.shape[0]
        return found.swapaxes(1, 2).reshape(b, self.cfg.num_attention_heads, 1, room)

    def _encoder_block(
        self, ops: Ops, lengths: Array, block: Params, x: Array, *bias: Array
    ) -> Array:
        q, k, v = self._self_qkv(ops, block, x)
        a = ops.attention(
            q,
            k,
            v,
            scale=self._scale,
            causal=False,
            lengths=lengths,
            bias=_first(bias),
        )
        return self._fed(ops, block, self._added(ops, block, "self", x, _joined(a)))

    def _decoder_block(
        self,
        ops: Ops,
        lengths: Array,
        of: Array | None,
        at: Array | None,
        block: Params,
        x: Array,
        source: Array,
        *bias: Array,
    ) -> Array:
        q, k, v = self._self_qkv(ops, block, x)
        a = ops.attention(q, k, v, scale=self._scale, bias=_first(bias))
        k, v = self._cross_kv(ops, block, source)
        if of is not None:
            k = rows_of(ops, k, of)
            v = rows_of(ops, v, of)
        return self._written(ops, block, x, a, (k, v), lengths, at)

    def _written(
        self,
        ops: Ops,
        block: Params,
        x: Array,
        a: Array,
        cross: tuple[Array, Array],
        lengths: Array,
        at: Array | None,
    ) -> Array:
        """What follows a decoder's attention to itself: to the source, and the feed-forward part."""
        x = self._added(ops, block, "self", x, _joined(a))
        q = self._heads(ops, block, "cross", "q", self._before(ops, block, "cross", x))
        a = _joined(ops.attention(q, *cross, scale=self._scale, causal=False, lengths=lengths))
        if at is not None:
            x = ops.take(x.reshape(-1, x.shape[-1]), at)
            a = ops.take(a.reshape(-1, a.shape[-1]), at)
        return self._fed(ops, block, self._added(ops, block, "cross", x, a))

    def _self_qkv(self, ops: Ops, block: Params, x: Array) -> tuple[Array, Array, Array]:
        h = self._before(ops, block, "self", x)
        q = self._heads(ops, block, "self", "q", h)
        k = self._heads(ops, block, "self", "k", h)
        v = self._heads(ops, block, "self", "v", h)
        return q, k, v

    def _cross_kv(self, ops: Ops, block: Params, source: Array) -> tuple[Array, Array]:
        k = self._heads(ops, block, "cross", "k", source)
        v = self._heads(ops, block, "cross", "v", source)
        return k, v

    def _heads(self, ops: Ops, block: Params, kind: str, part: str, x: Array) -> Array:
        """(B, H, T, C) of a projection."""
        b, t, _ = x.shape
        y = ops.linear(block, self._name(kind, part), x)
        return y.reshape(b, t, self.cfg.num_attention_heads, self.cfg.head_dim).swapaxes(1, 2)

    def _name(self, kind: str, part: str) -> str:
        """The relative name of one of an attention's matrices (q, k, v, o) or of its norm."""
        if self.cfg.relative:
            if kind == "self":
                layer = "layer.0"
                module = "SelfAttention"
            else:
                layer = "layer.1"
                module = "EncDecAttention"
            if part == "norm":
                return f"{layer}.layer_norm"
            return f"{layer}.{module}.{part}"
        if kind == "self":
            module = "self_attn"
        else:
            module = "encoder_attn"
        if part == "norm":
            return f"{module}_layer_norm"
        if part == "o":
            return f"{module}.out_proj"
        return f"{module}.{part}_proj"

    def _before(self, ops: Ops, block: Params, kind: str, x: Array) -> Array:
        if self.cfg.relative:
            return ops.rms_norm(block, self._name(kind, "norm"), x, self.cfg.norm_eps)
        return x

    def _added(self, ops: Ops, block: Params, kind: str, x: Array, a: Array) -> Array:
        x = x + ops.linear(block, self._name(kind, "o"), a)
        if self.cfg.relative:
            return x
        return ops.layer_norm(block, self._name(kind, "norm"), x, self.cfg.norm_eps)

    def _fed(self, ops: Ops, block: Params, x: Array) -> Array:
        """The feed-forward part."""
        if not self.cfg.relative:
            h = ops.linear(block, "fc2", ops.gelu(ops.linear(block, "fc1", x)))
            return ops.layer_norm(block, "final_layer_norm", x + h, self.cfg.norm_eps)
        last = "layer.2" if "layer.2.layer_norm.weight" in block else "layer.1"
        h = ops.rms_norm(block, f"{last}.layer_norm", x, self.cfg.norm_eps)
        part = f"{last}.DenseReluDense."
        if self.cfg.gated:
            gate = ops.linear(block, part + "wi_0", h)
            act = partial(ops.gelu, approximate=True)
            h = ops.gated(act, gate, ops.linear(block, part + "wi_1", h))
        else:
            h = ops.maximum(ops.linear(block, part + "wi", h), 0.0)
        return x + ops.linear(block, part + "wo", h)


def _first(bias: tuple[Array, ...]) -> Array | None:
    """The bias of the scores, where there is one."""
    if bias:
        return bias[0]
    return None


def _joined(a: Array) -> Array:
    """(B, T, H·C) from (B, H, T, C)."""
    b, _, t, _ = a.shape
    return a.swapaxes(1, 2).reshape(b, t, -1)


@lru_cache(maxsize=64)
def distance_buckets(reach: int, both: bool, buckets: int, longest: int) -> NDArray[np.int32]:
    """(2·reach + 1,) the bucket of each distance key − query from −reach to reach (Raffel 2019):
    half of the buckets for small distances one by one, the others growing as a logarithm up to
    `longest`. `both`: keys after a query have buckets of their own; else they share that of
    distance 0."""
    distance = np.arange(-reach, reach + 1)
    base = np.zeros_like(distance)
    if both:
        buckets //= 2
        base = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    grown = np.log(ratio) / np.float32(math.log(longest / exact))
    far = exact + (grown * np.float32(buckets - exact)).astype(np.int64)
    found = base + np.where(distance < exact, distance, np.minimum(far, buckets - 1))
    return found.astype(np.int32)
