"""The seam between model and loss: log-probabilities of targets, never a (B, T, V) array.

N positions that are targets, which the model has gathered (`Decoder.hidden`'s `at`); D hidden, V
vocabulary. The head is applied in chunks that the backward pass computes again, so that memory
grows with N·D, not with N·V.

Why: with a vocabulary of 150,000 the logits of 4,096 tokens are 2.4 GB in float32, and their
gradient as much again: more than the rest of a small model's step. Liger and Cut Cross-Entropy do
this in kernels of their own for CUDA; chunks of plain operations run on both backends and cost one
further matrix product. Prompts cost nothing here: only targets are gathered.
"""

from __future__ import annotations

from ondevice.seam.head import Head
from ondevice.seam.ops import Array, Ops, Params

# Logits of one chunk, 64 MB of them: so many that a compiler, which sees every chunk, sees few of
# them, and that the head's weight is read few times; so few that they are small beside a model's
# activations.
CHUNK_ELEMENTS = 2**24
# Up to so many logits in all are kept for the backward pass where that is the quicker way.
KEEP_ELEMENTS = 2**24


def token_logprobs(
    ops: Ops,
    params: Params,
    head: Head,
    x: Array,
    targets: Array,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Array, Array | None]:
    """log p(target) and, on request, the entropy of each distribution (told, not learned from: it
    has no gradient), both (N,) float32.

    `x` (N, D) the states that predict `targets` (N,), token ids.
    """
    n, v = x.shape[0], params[head.name].shape[0]
    rows = max(64, CHUNK_ELEMENTS // v)
    weight = head.params(params)

    def chunk(weight: Params, x: Array, targets: Array) -> tuple[Array, ...]:
        z = head.logits(ops, weight, x)
        if temperature != 1.0:
            z = z / temperature
        logp = ops.log_likelihood(z, targets, spent=not entropy)
        if not entropy:
            return (logp,)
        z = ops.stop_gradient(z)
        norm = ops.logsumexp(z, -1)
        return logp, norm - ops.sum(ops.exp(z - norm.reshape(-1, 1)) * z, -1)

    out = (chunk if n <= rows else ops.in_chunks(chunk, rows, keep=n * v <= KEEP_ELEMENTS))(
        weight, x, targets
    )
    return out[0], out[1] if entropy else None


def is_top1(ops: Ops, params: Params, head: Head, x: Array, targets: Array) -> Array:
    """(N,) float32, 1 where the target is the likeliest token. No gradient flows through it."""

    def chunk(weight: Params, x: Array, targets: Array) -> tuple[Array, ...]:
        off = ops.argmax(head.logits(ops, weight, x), -1) - targets
        return (ops.cast(off * off < 1, "float32"),)

    rows = max(64, CHUNK_ELEMENTS // params[head.name].shape[0])
    weight = head.params(params)
    return (chunk if x.shape[0] <= rows else ops.in_chunks(chunk, rows))(weight, x, targets)[0]
