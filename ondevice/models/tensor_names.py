"""Names and shapes of the tensors that a folder of each family holds, and what is checked when one
is read.
"""

from __future__ import annotations

import re


def is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon may have it: matrices inside blocks, neither the embeddings nor the head."""
    return len(shape) == 2 and in_block(name)


def is_router(name: str) -> bool:
    """Whether the module says which experts read a token."""
    return any(part in ("gate", "router", "shared_expert_gate") for part in name.split("."))


def in_block(name: str) -> bool:
    return re.search(r"\.(layers?|block|h)\.\d+\.(?!.*relative_attention_bias)", name) is not None


def adds_to_stream(name: str) -> bool:
    """Whether it is the matrix by which a block's part adds to the stream that runs past it."""
    return in_block(name) and name.endswith(
        (
            "o_proj.weight",
            "down_proj.weight",
            "output.dense.weight",
            "Wo.weight",
            "Attention.o.weight",
            ".wo.weight",
            "out_proj.weight",
            "fc2.weight",
            ".c_proj.weight",
        )
    )


def is_between(name: str) -> bool:
    """Whether it is the matrix between an encoder's blocks and its head."""
    return name in ("head.dense.weight", "cls.predictions.transform.dense.weight")


def is_embedding(name: str) -> bool:
    return name.endswith(
        (
            "embed_tokens.weight",
            "_embeddings.weight",
            "shared.weight",
            "embed_positions.weight",
            ".wte.weight",
            ".wpe.weight",
        )
    )
