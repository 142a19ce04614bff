"""What a stage trains on: micro-batches that are a pure function of (seed, step), so a resume
restores nothing.

Keys of a batch, all numpy: ids (B, T) int32; positions (B, T) int32, beginning anew in each
segment; segments (B, T) int32, 0 for padding, only where attention is kept inside examples; targets
(K,) int32; index (K,) int32, the flat place b·T+t whose hidden state predicts the target, absent
where that is every place in its order; weights (K,) float32, 0 where K was padded; denominator ()
float32, the sum of the weights over the whole step, at least 1.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import permutation
from ondevice.data import packing
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.mixture import Joined, epoch_counts
from ondevice.data.packing import Batch, Plan
from ondevice.data.plain_text import Part
from ondevice.data.token_cache import ChatRows, cached, place_of
from ondevice.data.tokenizer import Tokenizer


class RowSource:
    """Rows by number, epochs in an order of their own. A subclass says what a row holds.

    `rows`: how many there are in an epoch. `batch_size`: those that one optimizer step learns from.
    How many of them the device works on at once is given with each question, and changes no row.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, name: str) -> None:
        assert rows > 0 and batch_size > 0
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.name = name
        # Two epochs: a step may end one and begin the next.
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, name, epoch, rows))

    def batch(self, step: int, micro_batch: int | None = None) -> list[Batch]:
        """One optimizer step, in batches of `micro_batch` rows; None: in one."""
        chosen = self.rows_of_step(step)
        size = self._rows_at_once(micro_batch)
        batches = []
        for start in range(0, len(chosen), size):
            batches.append(self._collate(chosen[start : start + size], size))
        return self._set_denominators(batches)

    def rows_of_step(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, row) pairs that a step learns from."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = []
        for epoch, place in zip(places // self.rows, places % self.rows, strict=True):
            chosen.append((int(epoch), int(self._order(int(epoch))[place])))
        return chosen

    def eval_batches(
        self, limit: int | None = None, micro_batch: int | None = None
    ) -> Iterator[Batch]:
        """`limit` times `batch_size` rows at most in a fixed order, in batches of `micro_batch`
        rows; the last one is filled up with empty rows, so that all have one shape.
        """
        size = self._rows_at_once(micro_batch)
        chosen = self.eval_rows(limit)
        for start in range(0, len(chosen), size):
            group = [(0, row) for row in chosen[start : start + size]]
            yield self._set_denominators([self._collate(group, size)])[0]

    def eval_rows(self, limit: int | None = None) -> list[int]:
        """The rows that `eval_batches` has."""
        if limit is None:
            count = self.rows
        else:
            count = min(self.rows, limit * self.batch_size)
        places = np.linspace(0, self.rows, count, endpoint=False).astype(np.int64)
        rows: list[int] = self._eval_order()[places].tolist()
        return rows

    def _rows_at_once(self, micro_batch: int | None) -> int:
        if micro_batch is None:
            return self.batch_size
        return min(micro_batch, self.batch_size)

    def _eval_order(self) -> NDArray[np.int64]:
        """The rows in the order in which they are measured."""
        return np.arange(self.rows, dtype=np.int64)

    def _set_denominators(self, batches: list[Batch]) -> list[Batch]:
        """The batches, each with what the loss of the whole step is divided by."""
        return packing.set_denominator(batches)

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        """A batch of `size` rows from (epoch, row) pairs, fewer of them leaving rows empty."""
        raise NotImplementedError


class TextSource(RowSource):
    """Windows over one stream of tokens, in which documents end with `eos`.

    Row r reads tokens r·T … r·T+T-1 and predicts r·T+1 … r·T+T, so that every token but the first
    is a target once an epoch; the last row is padded. With `isolate_documents` the end token opens
    the next document's segment: it is predicted from the text that it ends, and the document after
    it is predicted from it alone.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        *,
        sequence_length: int,
        batch_size: int,
        seed: int = 0,
        isolate_documents: bool = False,
        eos: int | None = None,
    ) -> None:
        if len(tokens) < 2:
            raise UserError(
                "too little text to learn from", where="data", hint="two tokens are the least"
            )
        assert eos is not None or not isolate_documents
        self.tokens = tokens
        self.length = sequence_length
        self.isolate = isolate_documents
        self.eos = eos
        super().__init__(-(-(len(tokens) - 1) // sequence_length), batch_size, seed, "text")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        rows, width = size, self.length
        first = np.full(rows, len(self.tokens), np.int64)  # an empty row begins past the end
        first[: len(group)] = np.array([row for _, row in group], np.int64) * width
        places = first[:, None] + np.arange(width + 1)
        there = places < len(self.tokens)
        window = np.where(there, self.tokens[np.minimum(places, len(self.tokens) - 1)], 0).astype(
            np.int32
        )
        ids, weights = window[:, :-1].copy(), there[:, 1:]
        batch: Batch = {
            "ids": ids,
            "positions": np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape).copy(),
        }
        if self.isolate:
            opens = (ids == self.eos) & there[:, :-1]
            begun = np.maximum.accumulate(np.where(opens, np.arange(width), 0), axis=1)
            real = there[:, :-1]
            batch["positions"] = np.where(real, np.arange(width) - begun, 0).astype(np.int32)
            batch["segments"] = np.where(real, np.cumsum(opens, axis=1) + 1, 0).astype(np.int32)
        batch["targets"] = np.where(weights, window[:, 1:], 0).reshape(-1)
        batch["weights"] = weights.reshape(-1).astype(np.float32)
        return batch


class PackedSource(RowSource):
    """Examples of known lengths, several a row (attention is kept inside each) or, not `packed`,
    each in its own.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        width: int,
        packed: bool,
        batch_size: int,
        seed: int,
        name: str,
    ) -> None:
        self.length = width
        self.packed = packed
        self.examples = len(lengths)
        self._lengths = lengths
        if packed:
            self._plan = packing.best_fit(lengths, width)
        else:
            self._plan = packing.one_per_row(self.examples)
        self._name = f"{name} examples"
        self._plan_of = lru_cache(maxsize=2)(self._epoch_plan)
        super().__init__(self._plan.rows, batch_size, seed, f"{name} rows")

    def _epoch_plan(self, epoch: int) -> Plan:
        if not self.packed:
            return self._plan
        shuffled = permutation(self.seed, self._name, epoch, self.examples)
        return packing.reshuffle(self._plan, self._lengths, shuffled)

    def _members(self, group: list[tuple[int, int]]) -> tuple[NDArray[np.int64], ...]:
        """(example, row, column, its number in the row from 1 on) of all examples of a micro-batch."""
        members, rows, columns, numbers = [], [], [], []
        for place, (epoch, row) in enumerate(group):
            plan = self._plan_of(epoch)
            part = slice(int(plan.starts[row]), int(plan.starts[row + 1]))
            members.append(plan.order[part])
            columns.append(plan.column[part])
            rows.append(np.full(len(members[-1]), place))
            numbers.append(np.arange(1, len(members[-1]) + 1))
        return tuple(np.concatenate(found) for found in (members, rows, columns, numbers))


class ChatSource(PackedSource):
    """Chats with the loss on the assistant's tokens, or on all.

    An example of n tokens takes n-1 places: the last token is only predicted. What follows its last
    target is left out, which changes no loss. `truncated` chats were longer than a row and are cut
    at the end; `skipped` ones have no target within a row. With packing the segments keep attention
    inside each example; without it each example has a row, padded at the end, where causal
    attention cannot reach, to the bucket of the longest.
    """

    def __init__(
        self,
        rows: Iterable[ChatRow],
        *,
        sequence_length: int,
        batch_size: int,
        seed: int = 0,
        packing: bool = True,
        loss_on: Literal["assistant", "all"] = "assistant",
    ) -> None:
        self.truncated = self.skipped = 0
        flat = ChatRows.of(rows)
        # numbers of a list would take more memory than all else
        starts, sizes = (array("q"), array("q"))
        for start, end in zip(map(int, flat.starts), map(int, flat.ends), strict=True):
            if loss_on == "all":
                mask = np.ones(end - start, np.bool_)
            else:
                mask = flat.mask[start:end]
            needed, cut = fitted_length(mask, sequence_length)
            self.truncated += cut
            if not needed:
                self.skipped += 1
                continue
            starts.append(start)
            sizes.append(needed - 1)
        if not starts:
            hint = "none has a message of the assistant's that is to be learned"
            if self.truncated:
                hint = (
                    f"of {self.skipped} that were read {self.truncated} are longer than "
                    "sequence_length before an answer begins"
                )
            raise UserError("no chat has a token to learn", where="data", hint=hint)
        self._ids = flat.ids
        self._mask: NDArray[np.bool_] | None = None
        if loss_on != "all":
            self._mask = flat.mask
        self._starts = np.array(starts, np.int64)
        super().__init__(
            np.array(sizes, np.int64),
            sequence_length,
            packing,
            batch_size,
            seed,
            "chat",
        )

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        chosen, row_of, column, number = self._members(group)
        lengths = self._lengths[chosen]
        width = self.length
        if not self.packed:
            width = min(width, packing.bucket(int(lengths.max())))
        source, destination, position = packing.lay_out(
            self._starts[chosen], lengths, row_of, column, width
        )
        shape = (size, width)
        batch: Batch = {"ids": np.zeros(shape, np.int32), "positions": np.zeros(shape, np.int32)}
        batch["ids"].reshape(-1)[destination] = self._ids[source]
        batch["positions"].reshape(-1)[destination] = position
        if self.packed:
            batch["segments"] = np.zeros(shape, np.int32)
            batch["segments"].reshape(-1)[destination] = np.repeat(number, lengths)
        learned = np.ones(len(source), np.bool_)
        if self._mask is not None:
            learned = self._mask[source + 1]
        index = destination[learned]
        room = packing.eighths(len(index), size * width)
        return {**batch, **packing.pad_targets(self._ids[source[learned] + 1], index, room)}


def fitted_length(mask: NDArray[np.bool_], sequence_length: int) -> tuple[int, bool]:
    """(how many tokens of an example are kept, whether that is a cut): up to the last target within
    a row. 0: none.
    """
    learned = np.flatnonzero(mask[1:])
    cut = bool(len(learned)) and int(learned[-1]) >= sequence_length
    if cut:
        learned = np.flatnonzero(mask[1 : sequence_length + 1])
    if not len(learned):
        return 0, cut
    return int(learned[-1]) + 2, cut


def learned_lengths(chats: ChatRows, loss_on: Literal["assistant", "all"]) -> NDArray[np.int64]:
    """(N,) places of a row that each chat takes where none is cut, of those with something to
    learn.
    """
    lengths = array("q")
    for start, end in zip(map(int, chats.starts), map(int, chats.ends), strict=True):
        if loss_on == "all":
            needed = end - start
        else:
            needed, _ = fitted_length(chats.mask[start:end], end - start)
        if needed > 1:
            lengths.append(needed - 1)
    return np.array(lengths, np.int64)


def tokenize_corpus(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    key: str | None = None,
    made: Callable[[int], None] = lambda tokens: None,
) -> NDArray[Any]:
    """All texts as one stream of ids (N,), each document closed by the end token, and opened by
    what the tokenizer puts before a text: a memory map of a file in `folder`.

    The file is named by a digest of the tokenizer and of `key`, or of the texts where no key is
    given, and is reused when it exists. A `Part` that goes on in the next text gets no end token.
    `made` is told of tokens as they are written. Raises UserError where there is no text.
    """
    if key is None:
        if not isinstance(texts, Sequence):
            texts = list(texts)
        key = _digest(texts)
    dtype = token_type(tokenizer)

    def make(part: Path) -> None:
        with part.open("wb") as out:
            for ids in _streams(texts, tokenizer):
                out.write(np.asarray(ids, dtype).tobytes())
                made(len(ids))
            if not out.tell():
                raise UserError("no text in the data", where="data")

    return np.memmap(cached(tokens_at(folder, tokenizer, key), make), dtype=dtype, mode="r")


def tokens_at(folder: Path, tokenizer: Tokenizer, key: str) -> Path:
    """The file of `tokenize_corpus`."""
    return place_of(Path(folder), "tokens", tokenizer, key).with_suffix(
        f".{token_type(tokenizer).name}"
    )


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """In which type the ids of running text lie on the disk."""
    if tokenizer.vocab_size <= 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.int32)


def hold_out(
    tokens: NDArray[Any], fraction: float, eos: int, least: int = 2
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(train, validation): the last part of a stream, cut after a document where one ends near the
    place.

    Both are views. Raises UserError where the stream is too short to be cut.
    """
    place = len(tokens) - max(least, int(len(tokens) * fraction))
    if place < least:
        raise UserError(
            "too little text to hold a part of it back", where="data", hint="give validation"
        )
    place = _after_document(tokens, place, eos)
    return tokens[:place], tokens[place:]


def _after_document(tokens: Any, place: int, eos: int) -> int:
    """The last place after a document's end that is near before `place`; else that itself."""
    earliest = max(0, place - len(tokens) // 50)
    ends = np.flatnonzero(tokens[earliest:place] == eos)
    if len(ends):
        return earliest + int(ends[-1]) + 1
    return place


def mixed_stream(parts: Sequence[Any], weights: Sequence[float | None], eos: int) -> Any:
    """Several streams as one, of which nothing is copied: each as often as its weight says, the
    last time cut after a document's end where one is near. One stream is itself."""
    if len(parts) == 1:
        return parts[0]
    found: list[Any] = []
    for part, count in zip(parts, epoch_counts(list(map(len, parts)), weights), strict=True):
        whole, rest = divmod(count, len(part))
        found += [part] * whole
        if rest:
            kept = _after_document(part, rest, eos)
            if isinstance(part, Joined):
                found.append(part.beginning(kept))
            else:
                found.append(part[:kept])
    return Joined(found, parts[0].dtype)


_PIECE = 1 << 16  # characters that are encoded at once; a longer document is cut at a line's end
_CALL = 1 << 20  # characters of one call of the tokenizer: enough to keep its threads busy


def _streams(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids, some documents at a time."""
    pieces: list[str] = []
    ends: list[bool] = []
    begins: list[bool] = []
    waiting, goes_on = 0, False
    for text in texts:
        cut = _cut(text)
        within = [False] * (len(cut) - 1)
        pieces += cut
        begins += [not goes_on, *within]
        goes_on = isinstance(text, Part) and text.more
        ends += [*within, not goes_on]
        waiting += len(text)
        if waiting >= _CALL:
            yield _joined(pieces, begins, ends, tokenizer)
            pieces, begins, ends, waiting = [], [], [], 0
    if pieces:
        yield _joined(pieces, begins, ends, tokenizer)


def _joined(
    pieces: list[str], begins: list[bool], ends: list[bool], tokenizer: Tokenizer
) -> list[int]:
    joined: list[int] = []
    for ids, begin, end in zip(tokenizer.encode_batch(pieces), begins, ends, strict=True):
        if begin:
            joined += tokenizer.prefix_ids
        joined += ids
        if end:
            joined.append(tokenizer.eos_id)
    return joined


def _cut(text: str) -> list[str]:
    """Pieces of a long text, each ending with a line break before a line that begins with a letter
    or sign: no word and no run of white space is cut there, so the ids are those of the whole."""
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        while True:
            end = text.rfind("\n", start, end) + 1
            if end <= start or not text[end].isspace():
                break
            end -= 1
        if end <= start:  # no line to cut at: after a piece's length, at a space if there is one
            end = text.rfind(" ", start + 1, start + _PIECE)
            if end <= start:
                end = start + _PIECE
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        more = isinstance(text, Part) and text.more
        digest.update(f"{len(data)} {more} ".encode())
        digest.update(data)
    return digest.hexdigest()
