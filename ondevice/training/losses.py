"""Losses: pure functions of (ops, params, batch). A loss is a sum divided by `batch["denominator"]`,
which the source fills for the whole step; the trainer only adds gradients.

R rows, K targets (padded; `weights` (K,) is 0 where padded), `member` (R, K) is 1 where a target is
of a row. What is meant for a whole row (a completion's log-probability) is a sum over its members,
so a row may stand anywhere.

Why a denominator from outside: a mean per micro-batch weighs a token by how many others are in its
micro-batch, so that the same batch gives another gradient when it is split (transformers had this
fault until 4.46). With one denominator for a step, `micro_batch` changes memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from ondevice.models.network import Network
from ondevice.models.score_head import class_scores
from ondevice.seam.ops import Array, Metrics, Ops, Params
from ondevice.training.logprobs import is_top1, token_logprobs

Batch = Mapping[str, Array]


def causal_lm_loss(
    ops: Ops,
    params: Params,
    batch: Batch,
    *,
    model: Network,
    accuracy: bool = False,
    checkpoint: bool = False,
) -> tuple[Array, Metrics]:
    """Mean over target tokens of -log p(target), whether the target follows what is read or is
    masked in it; for pre-training and for instruction tuning alike. `accuracy`: tell also how often
    the target is the likeliest token.

    `batch`: ids, positions (B, T), segments (B, T) or absent, targets, index, weights (N,),
    denominator (). Without index every place is a target, and N = B·T: nothing is gathered.
    """
    at = batch.get("index")
    hidden = model.hidden(ops, params, batch, at=at, checkpoint=checkpoint)
    if at is None:
        hidden = hidden.reshape(-1, hidden.shape[-1])
    logp, _ = token_logprobs(ops, params, model.head, hidden, batch["targets"])
    weights = batch["weights"]
    total = -ops.sum(logp * weights)
    count = ops.sum(weights)
    metrics = {"loss": (total, count)}
    if accuracy:
        metrics["accuracy"] = (
            ops.sum(is_top1(ops, params, model.head, hidden, batch["targets"]) * weights),
            count,
        )
    return total / batch["denominator"], metrics


def classification_loss(
    ops: Ops, params: Params, batch: Batch, *, model: Network, checkpoint: bool = False
) -> tuple[Array, Metrics]:
    """Cross-entropy of each text's class.

    `batch`: ids, positions (R, T), segments where the first token is read; read (R,) flat places of
    the tokens at which the rows are read; targets (R,) classes; weights (R,) 0 where a row is
    padding; denominator, the number of texts.
    """
    hidden = model.hidden(ops, params, batch, at=batch["read"], checkpoint=checkpoint)
    scores = class_scores(ops, params, model, hidden)
    weights, targets = batch["weights"], batch["targets"]
    total, count = -ops.sum(ops.log_likelihood(scores, targets) * weights), ops.sum(weights)
    off = ops.argmax(scores, -1) - targets
    right = ops.sum(ops.cast(off * off < 1, "float32") * weights)
    return total / batch["denominator"], {"loss": (total, count), "accuracy": (right, count)}


def row_sums(ops: Ops, batch: Batch, x: Array) -> Array:
    """(R,) sums of x (K,) over the targets of each row. No matrix product: that would be rounded to
    TF32 on a GPU.
    """
    return ops.sum(batch["member"] * (x * batch["weights"]).reshape(1, -1), 1)
