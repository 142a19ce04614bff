"""The encoder-only forwards (BERT, ModernBERT), written once: every token sees its whole segment.

B batch, T tokens, D hidden, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ondevice.models import rope
from ondevice.models.decoder import split_layers
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.tables import tables_of
from ondevice.seam.head import Head
from ondevice.seam.ops import Array, HostArray, Ops, Params

Angles = tuple[Array, Array]


class Encoder:
    """A forward pass; holds no weights."""

    score, pooling = "classifier", "first"
    decoder_start_token_id: int | None = None
    shares_prompts = False  # a prompt's tokens see what follows it

    def __init__(self, cfg: EncoderConfig) -> None:
        self.cfg = cfg
        if cfg.modern:
            self._blocks, self._body = "model.layers.", self._modern_block
            own, tied = (
                "decoder.weight",
                Head("model.embeddings.tok_embeddings.weight", "decoder.bias"),
            )
        else:
            self._blocks, self._body = "bert.encoder.layer.", self._bert_block
            own = "cls.predictions.decoder.weight"
            tied = Head("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
        self._bases = sorted({cfg.theta(i) for i in range(cfg.num_hidden_layers)})
        self.head = tied if cfg.tie_word_embeddings else Head(own)  # its bias stands beside it

    def tables(self, length: int) -> dict[str, HostArray]:
        """cos and sin of every base of rotation that the layers have; none where positions are
        learned."""
        out: dict[str, HostArray] = {}
        if self.cfg.modern:
            room = min(length, self.cfg.max_position_embeddings)
            for theta in self._bases:
                cos, sin = rope.plain_tables(room, self.cfg.head_dim, theta)
                out[f"{theta}.cos"] = cos
                out[f"{theta}.sin"] = sin
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
        """(B, T, D) ready for the head, or (N, D) of the flat positions `at` (N,) = b·T + t alone,
        which saves the last block most of its work. `batch`: ids, positions, segments (B, T), 0
        where a row is padded; types (B, T), BERT's sentence of each token, where they are not all
        the first."""
        x = self._embedded(ops, params, batch)
        angles = self._angles(ops, batch)
        blocks = split_layers(params, self._blocks)
        for i, block in enumerate(blocks):
            # every array to differentiate is an argument: MLX's checkpoint gives captured ones a
            # gradient of zero
            wanted = at if block is blocks[-1] else None
            body = partial(
                self._body,
                ops,
                self.cfg.window(i),
                batch["segments"],
                angles.get(self.cfg.theta(i)),
                wanted,
            )
            x = (ops.checkpoint(body) if checkpoint else body)(block, x)
        return self._finished(ops, params, x)

    def _embedded(self, ops: Ops, params: Params, batch: Mapping[str, Array]) -> Array:
        if self.cfg.modern:
            x = ops.embed(params, "model.embeddings.tok_embeddings", batch["ids"])
            return ops.layer_norm(params, "model.embeddings.norm", x, self.cfg.norm_eps)
        x = ops.embed(params, "bert.embeddings.word_embeddings", batch["ids"])
        x = x + ops.embed(params, "bert.embeddings.position_embeddings", batch["positions"])
        if "types" in batch:
            types = batch["types"]
        else:
            types = batch["ids"] * 0
        x = x + ops.embed(params, "bert.embeddings.token_type_embeddings", types)
        return ops.layer_norm(params, "bert.embeddings.LayerNorm", x, self.cfg.norm_eps)

    def _angles(self, ops: Ops, batch: Mapping[str, Array]) -> dict[float, Angles]:
        """cos and sin (B, 1, T, C / 2) of the positions, by their base; none where positions are
        learned.
        """
        if not self.cfg.modern:
            return {}
        positions = batch["positions"]
        tables = tables_of(self, ops, batch)
        out = {}
        for theta in self._bases:
            cos = ops.take(tables[f"{theta}.cos"], positions)
            sin = ops.take(tables[f"{theta}.sin"], positions)
            b, t, c = cos.shape
            out[theta] = cos.reshape(b, 1, t, c), sin.reshape(b, 1, t, c)
        return out

    def _finished(self, ops: Ops, params: Params, x: Array) -> Array:
        """What stands between the blocks and the head: of a model that fills masks, or of a judge."""
        cfg = self.cfg
        if cfg.modern:
            x = ops.layer_norm(params, "model.final_norm", x, cfg.norm_eps)
            return ops.layer_norm(
                params, "head.norm", ops.gelu(ops.linear(params, "head.dense", x)), cfg.norm_eps
            )
        if cfg.num_labels:
            return ops.tanh(ops.linear(params, "bert.pooler.dense", x))
        h = ops.gelu(ops.linear(params, "cls.predictions.transform.dense", x))
        return ops.layer_norm(params, "cls.predictions.transform.LayerNorm", h, cfg.norm_eps)

    def _attended(
        self, ops: Ops, q: Array, k: Array, v: Array, window: int, segments: Array
    ) -> Array:
        """(B, T, D) from queries, keys and values (B, H, T, C)."""
        a = ops.attention(
            q, k, v, scale=self.cfg.head_dim**-0.5, causal=False, window=window, segments=segments
        )
        b, _, t, _ = q.shape
        return a.swapaxes(1, 2).reshape(b, t, -1)

    def _bert_block(
        self,
        ops: Ops,
        window: int,
        segments: Array,
        angles: Angles | None,
        at: Array | None,
        block: Params,
        x: Array,
    ) -> Array:
        b, t, _ = x.shape
        heads = (b, t, self.cfg.num_attention_heads, self.cfg.head_dim)
        q, k, v = (
            ops.linear(block, f"attention.self.{part}", x).reshape(*heads).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        x, a = _chosen(ops, at, x, self._attended(ops, q, k, v, window, segments))
        x = ops.layer_norm(
            block,
            "attention.output.LayerNorm",
            x + ops.linear(block, "attention.output.dense", a),
            self.cfg.norm_eps,
        )
        h = ops.linear(block, "output.dense", ops.gelu(ops.linear(block, "intermediate.dense", x)))
        return ops.layer_norm(block, "output.LayerNorm", x + h, self.cfg.norm_eps)

    def _modern_block(
        self,
        ops: Ops,
        window: int,
        segments: Array,
        angles: Angles | None,
        at: Array | None,
        block: Params,
        x: Array,
    ) -> Array:
        b, t, _ = x.shape
        # the first block has no norm of its own: the embeddings come out of one
        if "attn_norm.weight" in block:
            h = ops.layer_norm(block, "attn_norm", x, self.cfg.norm_eps)
        else:
            h = x
        qkv = ops.linear(block, "attn.Wqkv", h).reshape(
            b, t, 3, self.cfg.num_attention_heads, self.cfg.head_dim
        )
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        assert angles is not None
        q, k = ops.rope(q, *angles), ops.rope(k, *angles)
        x, a = _chosen(ops, at, x, self._attended(ops, q, k, v, window, segments))
        x = x + ops.linear(block, "attn.Wo", a)
        h = ops.layer_norm(block, "mlp_norm", x, self.cfg.norm_eps)
        both = ops.linear(block, "mlp.Wi", h)
        f = self.cfg.intermediate_size
        gate = both[..., :f]
        up = both[..., f:]
        return x + ops.linear(block, "mlp.Wo", ops.gated(ops.gelu, gate, up))


def _chosen(ops: Ops, at: Array | None, x: Array, a: Array) -> tuple[Array, Array]:
    """Both as they are, or their rows (N, D) of the flat positions `at` alone."""
    if at is None:
        return x, a
    x = ops.take(x.reshape(-1, x.shape[-1]), at)
    a = ops.take(a.reshape(-1, a.shape[-1]), at)
    return x, a
