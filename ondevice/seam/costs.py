"""What an array library takes beside what follows from a model's shapes: constants that each backend
has measured and says in its `costs.py`, which imports no array library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """`activations`, `activations_cpu`: bytes that the backward pass keeps for a token, on a GPU and on
    a CPU, as a multiple of those that go into and come out of the blocks' matrices, attention's scores
    of a few hundred tokens among them. `process`: bytes of a process with the library loaded, before
    it reads a model. `begun`: bytes that the first step takes beside all that is counted here (code,
    threads, buffers, what is read of the data).

    For each token and block the backward pass keeps `kept` times the bytes that go into and come out
    of the block's matrices (an encoder's, whose GELU is the exact one, `exact` times as much beside),
    and `scores` times those of one float for every head and every token that is attended to (0: they
    are computed again); `biased` times where a learned bias is added to the scores, `shared` times
    where rows without padding share their prompts. A chunk of logits takes `logits` times its bytes.
    Beside what all blocks keep stands what the backward pass of one computes with: `passing` times
    the bytes of its matrices. Where blocks are recomputed, those of `again` of them are there at once.
    `gradients_beside`: whether the gradients take room of their own while the backward pass frees what
    was kept for it.
    `heap`: whether what training took stays with the process in pieces.
    Updating takes `update` bytes a trained parameter beside weights, gradients and moments; writing a
    checkpoint takes `saving` times the bytes of what is written at once.

    `grows`: the part of a cache of keys and values that stands beside the larger one that it is
    copied to, as rows are written.

    `low`: what an adapter's own products move, as a part of what goes into and comes out of the
    matrices that it stands beside.

    `shards`: whether each of several processes can keep the optimizer's state of some tensors alone.
    """

    activations: float
    activations_cpu: float
    process: int
    begun: int
    kept: float
    exact: float
    scores: float
    biased: float
    shared: float
    logits: float
    passing: float
    again: float
    gradients_beside: bool
    heap: bool
    update: float
    saving: float
    grows: float
    low: float
    shards: bool

    def activation_factor(self, device: str) -> float:
        """`activations` of this device."""
        return self.activations_cpu if device == "cpu" else self.activations
