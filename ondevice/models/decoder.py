"""The decoder-only forward (Llama, Mistral, Qwen2, Qwen3, SmolLM3, Gemma 3), written once.

B batch, T tokens, D hidden, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from ondevice.models import rope
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.kv_cache import Cache
from ondevice.models.padding_free import PaddingFree, padding_free
from ondevice.models.shared_prompts import SharedPrompts, in_one_row, shared_prompts
from ondevice.models.tables import tables_of
from ondevice.models.windowed import windowed_attention
from ondevice.seam.head import Head
from ondevice.seam.ops import Array, HostArray, Ops, Params

RotaryTables = tuple[Array, Array]
"""cos and sin (B, 1, T, C / 2): how far queries and keys are turned."""
Tables = Mapping[str, Array]
"""What `Decoder.tables` gives, on the device."""


def split_layers(params: Params, prefix: str) -> list[Params]:
    """The flat dict's blocks under relative names: one compiled block then serves all of them."""
    found: dict[int, Params] = {}
    for name, value in params.items():
        if name.startswith(prefix):
            layer, _, rest = name[len(prefix) :].partition(".")
            found.setdefault(int(layer), {})[rest] = value
    return [found[i] for i in range(len(found))]


class Decoder:
    """A forward pass; holds no weights."""

    score = "score"  # a judge's head
    pooling = "last"  # the token of a text at which it is read
    decoder_start_token_id: int | None = None  # what is written goes on from the prompt
    layers = "model.layers."
    table = "model.embed_tokens"

    def __init__(self, cfg: DecoderConfig) -> None:
        self.cfg = cfg
        if cfg.tie_word_embeddings:
            self.head = Head(f"{self.table}.weight")
        else:
            self.head = Head("lm_head.weight")
        self._bases = sorted({cfg.theta(i) for i in range(cfg.num_hidden_layers)} - {0.0})

    @property
    def shares_prompts(self) -> bool:
        """Not where the rotation of a prompt follows from how long its answer is (longrope)."""
        scaling = self.cfg.rope_scaling or {}
        return scaling.get("rope_type") != "longrope"

    def tables(self, length: int) -> dict[str, HostArray]:
        """cos and sin of every base of rotation that the layers have, for texts of up to `length`
        places; `far` are those of texts beyond the original context, under longrope."""
        cfg = self.cfg
        room = min(length, cfg.max_position_embeddings)
        out: dict[str, HostArray] = {}
        if cfg.model_type == "gemma3_text":
            out["root"] = _root(cfg.hidden_size)
        for theta in self._bases:
            out[f"{theta}.cos"], out[f"{theta}.sin"] = rope.tables(cfg, room, theta)
            longer = rope.long_tables(cfg, room, theta)
            if longer is not None:
                out[f"{theta}.far.cos"], out[f"{theta}.far.sin"] = longer
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
        """(B, T, D) after the last norm, or (N, D) of the flat positions `at` (N,) = b·T + t alone,
        which saves the last block most of its work. `batch`: ids (B, T), positions (B, T), segments
        (B, T) where attention is to stay inside each example. Where answers share their prompts
        (`shared_prompts.py`), ids and positions are the answers', and all tokens are one row; so
        they are where nothing is padded (`padding_free.py`)."""
        ids = batch["ids"]
        positions = batch["positions"]
        apart: SharedPrompts | PaddingFree | None = padding_free(batch)
        shared = shared_prompts(batch)
        if shared is not None:
            apart = shared
            ids = in_one_row(ops, batch, "ids")
            positions = in_one_row(ops, batch, "positions")
        tables = tables_of(self, ops, batch)
        turns = self._turns(ops, tables, positions)
        segments = batch.get("segments")
        x = self._embed(ops, params, tables, ids, positions)
        blocks = split_layers(params, self.layers)
        for i, block in enumerate(blocks):
            wanted = None
            if block is blocks[-1]:
                wanted = at
            # every array to differentiate is an argument: MLX's checkpoint gives captured ones a
            # gradient of zero
            body = partial(self._block, ops, self.cfg.window(i), segments, apart, turns[i], wanted)
            if checkpoint:
                x = ops.checkpoint(body)(block, x)
            else:
                x = body(block, x)
        return self._final_norm(ops, params, x)

    def prompt_width(self, width: int) -> int:
        """Places of the cache that a prompt of `width` tokens takes."""
        return width

    def prefill(
        self,
        ops: Ops,
        params: Params,
        tables: Tables,
        ids: Array,
        positions: Array,
        at: Array,
        lengths: Array,
    ) -> tuple[Array, Cache]:
        """(B, D) of the flat positions `at` (B,), the prompts' last tokens, and a cache that holds
        the prompts (B, T). They are padded at the right: a later token never sees that, and
        `lengths` (B,) hide it from the tokens decoded after."""
        turns = self._turns(ops, tables, positions, lengths)
        x = self._embed(ops, params, tables, ids, positions)
        keys: list[Array] = []
        values: list[Array] = []
        blocks = split_layers(params, self.layers)
        for i, block in enumerate(blocks):
            q, k, v = self._qkv(ops, block, x, turns[i])
            keys.append(k)
            values.append(v)
            a = windowed_attention(
                ops, q, k, v, scale=self.cfg.attention_scale, window=self.cfg.window(i)
            )
            if block is blocks[-1]:
                x = self._after_attention(ops, block, x, a, at)
            else:
                x = self._after_attention(ops, block, x, a)
        return self._final_norm(ops, params, x), Cache(keys, values, lengths)

    def decode(
        self, ops: Ops, params: Params, tables: Tables, ids: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """One token per row, ids (B, 1) → hidden (B, 1, D) and the longer cache."""
        # rows that are done go on being decoded until the next look, past the end of the table
        # where need be
        at = ops.minimum(cache.lengths, self.cfg.max_position_embeddings - 1)
        at = at.reshape(-1, 1)
        turns = self._turns(ops, tables, at, cache.lengths + 1)
        x = self._embed(ops, params, tables, ids, at)
        keys: list[Array] = []
        values: list[Array] = []
        lengths = cache.lengths + 1
        end = cache.end(ops)
        for i, block in enumerate(split_layers(params, self.layers)):
            q, k, v = self._qkv(ops, block, x, turns[i])
            keys.append(ops.cache_write(cache.keys[i], k, end))
            values.append(ops.cache_write(cache.values[i], v, end))
            a = ops.attention(
                q,
                keys[i],
                values[i],
                scale=self.cfg.attention_scale,
                window=self.cfg.window(i),
                lengths=lengths,
            )
            x = self._after_attention(ops, block, x, a)
        return self._final_norm(ops, params, x), Cache(keys, values, lengths)

    def _embed(
        self, ops: Ops, params: Params, tables: Tables, ids: Array, positions: Array
    ) -> Array:
        """(B, T, D): what goes into the first block."""
        x = ops.embed(params, self.table, ids, self.cfg.hidden_size)
        if self.cfg.model_type == "gemma3_text":
            # through the door, which rounds it to the compute type, as transformers does
            x = x * ops.weight(dict(tables), "root")
        return x

    def _final_norm(self, ops: Ops, params: Params, x: Array) -> Array:
        return self._norm(ops, params, "model.norm", x)

    def _norm(self, ops: Ops, params: Params, name: str, x: Array) -> Array:
        return ops.rms_norm(params, name, x, self.cfg.rms_norm_eps, self.cfg.norm_shift)

    def _turns(
        self, ops: Ops, tables: Tables, positions: Array, lengths: Array | None = None
    ) -> list[RotaryTables | None]:
        """For each layer the cos and sin (B, 1, T, C / 2) of the positions, None where it has no
        positions. `lengths` (B,): how long each row's text is; else its last position says it."""
        made: dict[float, RotaryTables] = {}
        for theta in self._bases:
            near = tables[f"{theta}.cos"]
            # padding may stand beyond the context
            at = ops.minimum(positions, near.shape[0] - 1)
            cos = ops.take(near, at)
            sin = ops.take(tables[f"{theta}.sin"], at)
            b, t, c = cos.shape
            if f"{theta}.far.cos" in tables:
                ends = lengths
                if ends is None:
                    ends = ops.max(positions, -1) + 1
                beyond = (ends > rope.original_context(self.cfg)).reshape(-1, 1, 1)
                cos = ops.where(beyond, ops.take(tables[f"{theta}.far.cos"], at), cos)
                sin = ops.where(beyond, ops.take(tables[f"{theta}.far.sin"], at), sin)
            made[theta] = (cos.reshape(b, 1, t, c), sin.reshape(b, 1, t, c))
        return [made.get(self.cfg.theta(i)) for i in range(self.cfg.num_hidden_layers)]

    def _block(
        self,
        ops: Ops,
        window: int,
        segments: Array | None,
        apart: SharedPrompts | PaddingFree | None,
        turn: RotaryTables | None,
        at: Array | None,
        block: Params,
        x: Array,
    ) -> Array:
        q, k, v = self._qkv(ops, block, x, turn)
        scale = self.cfg.attention_scale
        if apart is not None:
            a = apart.attention(ops, q, k, v, scale=scale, window=window)
        elif segments is not None:
            a = ops.attention(q, k, v, scale=scale, window=window, segments=segments)
        else:
            a = windowed_attention(ops, q, k, v, scale=scale, window=window)
        return self._after_attention(ops, block, x, a, at)

    def _qkv(
        self, ops: Ops, block: Params, x: Array, turn: RotaryTables | None
    ) -> tuple[Array, Array, Array]:
        cfg = self.cfg
        b, t, _ = x.shape
        h = self._norm(ops, block, "input_layernorm", x)
        q = ops.linear(block, "self_attn.q_proj", h)
        k = ops.linear(block, "self_attn.k_proj", h)
        v = ops.linear(block, "self_attn.v_proj", h)
        q = q.reshape(b, t, cfg.num_attention_heads, cfg.head_dim)
        k = k.reshape(b, t, cfg.num_key_value_heads, cfg.head_dim)
        v = v.reshape(b, t, cfg.num_key_value_heads, cfg.head_dim)
        if cfg.qk_norm:
            q = self._norm(ops, block, "self_attn.q_norm", q)
            k = self._norm(ops, block, "self_attn.k_norm", k)
        q = q.swapaxes(1, 2)
        k = k.swapaxes(1, 2)
        v = v.swapaxes(1, 2)
        if turn:
            return ops.rope(q, *turn), ops.rope(k, *turn), v
        return q, k, v

    def _after_attention(
        self, ops: Ops, block: Params, x: Array, a: Array, at: Array | None = None
    ) -> Array:
        """What follows attention, position by position: of all of them (B, T, D), or of `at` alone
        (N, D).
        """
        b, t, _ = x.shape
        a = a.swapaxes(1, 2).reshape(b, t, -1)
        if at is not None:
            x = ops.take(x.reshape(b * t, -1), at)
            a = ops.take(a.reshape(b * t, -1), at)
        a = ops.linear(block, "self_attn.o_proj", a)
        if not self.cfg.sandwich:
            x = x + a
            return x + self._mlp(ops, block, self._norm(ops, block, "post_attention_layernorm", x))
        x = x + self._norm(ops, block, "post_attention_layernorm", a)
        h = self._mlp(ops, block, self._norm(ops, block, "pre_feedforward_layernorm", x))
        return x + self._norm(ops, block, "post_feedforward_layernorm", h)

    def _mlp(self, ops: Ops, block: Params, h: Array) -> Array:
        gate = ops.linear(block, "mlp.gate_proj", h)
        act = partial(activation, ops, self.cfg.hidden_act)
        return ops.linear(
            block, "mlp.down_proj", ops.gated(act, gate, ops.linear(block, "mlp.up_proj", h))
        )


class GPT2(Decoder):
    """GPT-2 (Radford 2019): learned positions, LayerNorm with bias, one matrix for queries, keys
    and values.
    """

    layers = "transformer.h."
    table = "transformer.wte"

    def tables(self, length: int) -> dict[str, HostArray]:
        return {}  # its positions are learned

    def _embed(
        self, ops: Ops, params: Params, tables: Tables, ids: Array, positions: Array
    ) -> Array:
        # padding may stand beyond the context
        at = ops.minimum(positions, self.cfg.max_position_embeddings - 1)
        width = self.cfg.hidden_size
        x = ops.embed(params, self.table, ids, width)
        return x + ops.embed(params, "transformer.wpe", at, width)

    def _final_norm(self, ops: Ops, params: Params, x: Array) -> Array:
        return self._norm(ops, params, "transformer.ln_f", x)

    def _norm(self, ops: Ops, params: Params, name: str, x: Array) -> Array:
        return ops.layer_norm(params, name, x, self.cfg.rms_norm_eps)

    def _turns(
        self, ops: Ops, tables: Tables, positions: Array, lengths: Array | None = None
    ) -> list[RotaryTables | None]:
        return [None] * self.cfg.num_hidden_layers

    def _qkv(
        self, ops: Ops, block: Params, x: Array, turn: RotaryTables | None
    ) -> tuple[Array, Array, Array]:
        b, t, d = x.shape
        every = ops.linear(block, "attn.c_attn", self._norm(ops, block, "ln_1", x))
        parts: list[Array] = []
        for start in (0, d, 2 * d):
            part = every[:, :, start : start + d]
            part = part.reshape(b, t, self.cfg.num_attention_heads, self.cfg.head_dim)
            parts.append(part.swapaxes(1, 2))
        q, k, v = parts
        return q, k, v

    def _after_attention(
        self, ops: Ops, block: Params, x: Array, a: Array, at: Array | None = None
    ) -> Array:
        b, t, _ = x.shape
        a = a.swapaxes(1, 2).reshape(b, t, -1)
        if at is not None:
            x = ops.take(x.reshape(b * t, -1), at)
            a = ops.take(a.reshape(b * t, -1), at)
        x = x + ops.linear(block, "attn.c_proj", a)
        h = ops.linear(block, "mlp.c_fc", self._norm(ops, block, "ln_2", x))
        return x + ops.linear(block, "mlp.c_proj", activation(ops, self.cfg.hidden_act, h))


def decoder_of(cfg: DecoderConfig) -> Decoder:
    """The forward of the config's family."""
    if cfg.model_type == "gpt2":
        return GPT2(cfg)
    return Decoder(cfg)


@lru_cache(maxsize=16)
def _root(width: int) -> NDArray[np.float32]:
    """By what Gemma multiplies its embeddings."""
    return np.array(width**0.5, np.float32)


def activation(ops: Ops, name: str, x: Array) -> Array:
    """By its name in config.json; `ACTIVATIONS` of `models/decoder_config.py` has the known ones."""
    if name in ("silu", "swish"):
        return ops.silu(x)
    return ops.gelu(x, name != "gelu")
