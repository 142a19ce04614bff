"""What a classifier reads: a text, or two beside each other, as ids between the tokens that its
tokenizer puts around them, cut as transformers cuts them.

One text is as transformers' `tokenizer(text, truncation=True)`, two are as `tokenizer(first,
second, truncation=True)`: for BERT `[CLS] a [SEP] b [SEP]`, and the type of each token says which
of the two it is of. A decoder's tokenizer has no form for two and would run them together: there
the end token stands between them, as in `tokenizer(first + tokenizer.eos_token + second)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ondevice.data.class_labels import LabelledText
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_settings import has_types
from ondevice.data.truncation import truncated, truncation_side
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.model import Model

Ids = NDArray[np.int32]


class TextInputs(NamedTuple):
    """Of each row: its ids, and the type of each id where a model tells the two texts apart by that
    (else None); how many rows are cut."""

    ids: list[Ids]
    types: list[Ids] | None
    cut: int


def text_inputs(rows: Sequence[LabelledText], model: Model, most: int) -> TextInputs:
    """All rows, each of at most `most` tokens; either all of them have a second text or none has."""
    tokenizer, reads = model.tokenizer, model.network.pooling
    if not rows or rows[0].pair is None:
        whole = text_ids([row.text for row in rows], tokenizer, reads)
        return TextInputs(
            [truncated(ids, most, tokenizer) for ids in whole],
            None,
            sum(len(ids) > most for ids in whole),
        )
    firsts, seconds = (
        tokenizer.encode_texts(texts)
        for texts in ([row.text for row in rows], [str(row.pair) for row in rows])
    )
    around = _around(tokenizer, reads)
    encoded = []
    for first, second in zip(firsts, seconds, strict=True):
        encoded.append(_joined(first, second, around, tokenizer, reads, most))
    typed = (
        isinstance(model.cfg, EncoderConfig)
        and model.cfg.type_vocab_size > 1
        and has_types(tokenizer.config, model.cfg.model_type)
    )
    return TextInputs(
        [ids for ids, _, _ in encoded],
        [types for _, types, _ in encoded] if typed else None,
        sum(cut for _, _, cut in encoded),
    )


def text_ids(texts: Sequence[str], tokenizer: Tokenizer, reads: str) -> list[Ids]:
    """Texts as they are judged: between the tokens that open and close one for who reads the
    `first` token; with those that the tokenizer puts around a text by itself, if any, for who reads
    the `last`."""
    opening, closing = _around(tokenizer, reads)
    return [np.array([*opening, *ids, *closing], np.int32) for ids in tokenizer.encode_batch(texts)]


def _around(tokenizer: Tokenizer, reads: str) -> tuple[list[int], list[int]]:
    """What stands before a text and behind it."""
    if reads == "first":
        return [tokenizer.cls_id], [tokenizer.sep_id]
    bare, whole = (
        tokenizer.inner.encode("a", add_special_tokens=added).ids for added in (False, True)
    )
    start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _joined(
    first: Any,
    second: Any,
    around: tuple[list[int], list[int]],
    tokenizer: Tokenizer,
    reads: str,
    most: int,
) -> tuple[Ids, Ids, bool]:
    """(ids, types, whether something was cut) of two texts as `tokenizers.Encoding` without special
    tokens.
    """
    opening, closing = around
    between = closing if reads == "first" else [tokenizer.eos_id]
    if reads == "first":
        added = tokenizer.inner.num_special_tokens_to_add(True)
    else:
        added = 0
    room = most - (added or len(opening) + len(between) + len(closing))
    kept = lengths_within(len(first.ids), len(second.ids), max(room, 0))
    cut = kept != (len(first.ids), len(second.ids))
    if cut:
        side = truncation_side(tokenizer)
        first.truncate(kept[0], direction=side)
        second.truncate(kept[1], direction=side)
    if added:
        whole = tokenizer.inner.post_process(first, second)
        return np.array(whole.ids, np.int32), np.array(whole.type_ids, np.int32), cut
    before, behind = [*opening, *first.ids, *between], [*second.ids, *closing]
    return (
        np.array([*before, *behind], np.int32),
        np.array([0] * len(before) + [1] * len(behind), np.int32),
        cut,
    )


def lengths_within(first: int, second: int, most: int) -> tuple[int, int]:
    """How much of two texts is kept within `most` tokens: the longer one is cut first, and both to
    half of it where each is longer than that (the library tokenizers' `longest_first`)."""
    if first + second <= most:
        return first, second
    short, long = min(first, second), max(first, second)
    if short <= most:
        long = max(short, most - short)
    else:
        long = short
    if short + long > most:
        short = most // 2
        long = most - short
    if first <= second:
        return (short, long)
    return (long, short)
