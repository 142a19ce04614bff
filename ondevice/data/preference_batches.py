"""Pairs of completions as token ids: on the disk, by number, and as batches."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.data.batches import RowSource
from ondevice.data.chat_encoding import ChatRow, encode_chat
from ondevice.data.completion_batches import Row, context_length
from ondevice.data.messages import BadRow
from ondevice.data.packing import Batch
from ondevice.data.token_cache import ChatRows, cached, mapped, mapped_rows, write_rows
from ondevice.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenPair:
    """A chosen and a rejected completion of one prompt, stop tokens included. `by` names what tells
    them apart, where that is known; `strength` is that of the votes, `margin` what the data itself
    says of how far the two lie apart.

    A single completion that is good (`label` 1) or bad (-1) stands on both sides.
    """

    chosen: Row
    rejected: Row
    strength: float = 1.0
    by: str = ""
    margin: float = 0.0
    label: int = 0

    @property
    def length(self) -> int:
        return max(self.chosen.length, self.rejected.length)

    def places(self, start: int | None) -> int:
        """Tokens of a context that the longer side takes (see `completions.places`)."""
        return max(
            int(context_length(len(side.prompt), len(side.completion), start))
            for side in (self.chosen, self.rejected)
        )


def to_tokens(row: Mapping[str, Any], tokenizer: Tokenizer) -> TokenPair:
    """Both responses as the model's template writes them, each ending with its stop token. Raises
    BadRow where the template refuses them. A row of one completion and its label is a pair of it
    with itself."""
    if "label" in row:
        one = _completion(row["prompt"], row["completion"], tokenizer)
        if row["label"]:
            label = 1
        else:
            label = -1
        return TokenPair(one, one, label=label)
    chosen = _completion(row["prompt"], row["chosen"], tokenizer)
    rejected = _completion(row["prompt"], row["rejected"], tokenizer)
    strength = row.get("strength", 1.0)
    margin = row.get("margin", 0.0)
    return TokenPair(chosen, rejected, strength, row.get("by", ""), margin)


def completion_row(prompt: Sequence[Mapping[str, Any]], text: str, tokenizer: Tokenizer) -> Row:
    """Prompt and response as ids; the response is what the assistant wrote last. Raises UserError
    where the template refuses the chat."""
    try:
        return _completion(prompt, text, tokenizer)
    except BadRow as error:
        raise UserError(str(error), where="data") from error


def _completion(prompt: Sequence[Mapping[str, Any]], text: str, tokenizer: Tokenizer) -> Row:
    ids, mask = encode_chat([*prompt, {"role": "assistant", "content": text}], tokenizer)[-1]
    if not mask.any():
        raise BadRow(
            "the chat template writes nothing for an empty answer, not even its end "
            "(leave such pairs out, or take the template chatml)"
        )
    end = int(np.flatnonzero(mask)[-1]) + 1
    start = int(np.flatnonzero(~mask[:end])[-1]) + 1
    return Row(ids[:start], ids[start:end])


class StoredPairs(Sequence[TokenPair]):
    """Pairs of which only those that are asked for are in memory.

    `held`, `voted`, `simulated` (N,) bool, `source` (N,) its number, `strength`, `margin` and
    `label` (N,).
    """

    def __init__(self, rows: ChatRows, about: NDArray[np.float64], names: Sequence[str]) -> None:
        self._rows, self._names = rows, names
        self.held, self.voted, self.simulated = (about[:, n] > 0 for n in range(3))
        self.source, self.strength, self._by = (
            about[:, 3].astype(np.int32),
            about[:, 4],
            about[:, 5].astype(np.int32),
        )
        self.margin, self.label = about[:, 6], about[:, 7].astype(np.int32)

    def places(self, start: int | None) -> NDArray[np.int64]:
        """(N,) tokens of a context that each pair takes, its longer side (see
        `completions.places`).
        """
        lengths = self._rows.ends - self._rows.starts
        written = np.zeros_like(lengths)
        if start is not None and len(lengths):
            written = np.add.reduceat(self._rows.mask, self._rows.starts, dtype=np.int64)
        found: NDArray[np.int64] = (
            context_length(lengths - written, written, start).reshape(-1, 2).max(1)
        )
        return found

    @classmethod
    def kept(
        cls, path: Path, pairs: Callable[[], Iterable[tuple[TokenPair, Mapping[str, Any]]]]
    ) -> StoredPairs:
        """Those of the folder `path`; `pairs` (each with its row) are asked for, one at a time,
        where it is not there yet."""

        def make(part: Path) -> None:
            about, names = array("d"), {"": 0}

            def sides() -> Iterator[ChatRow]:
                for pair, row in pairs():
                    about.extend(
                        (
                            row["held"],
                            bool(row.get("raters")),
                            bool(row.get("simulated")),
                            row.get("source", 0),
                            pair.strength,
                            names.setdefault(pair.by, len(names)),
                            pair.margin,
                            pair.label,
                        )
                    )
                    yield from map(_flat, (pair.chosen, pair.rejected))

            write_rows(part, sides())
            with (part / "about").open("wb") as file:
                about.tofile(file)
            (part / "names.json").write_text(json.dumps(list(names)), encoding="utf-8")

        cached(path, make)
        names = load_json(path / "names.json")
        return cls(mapped_rows(path), mapped(path / "about", np.float64).reshape(-1, 8), names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        chosen, rejected = (_parted(self._rows[2 * at + side]) for side in (0, 1))
        return TokenPair(
            chosen,
            rejected,
            float(self.strength[at]),
            self._names[int(self._by[at])],
            float(self.margin[at]),
            int(self.label[at]),
        )


def _flat(row: Row) -> ChatRow:
    ids = np.concatenate([row.prompt, row.completion]).astype(np.int32)
    return ChatRow(ids, np.arange(len(ids)) >= len(row.prompt))


def _parted(row: ChatRow) -> Row:
    start = int(np.argmax(row.mask))
    return Row(row.ids[:start], row.ids[start:])


class PairSource(RowSource):
    """Pairs as rows; `make` turns the pairs of some numbers into a batch of room for a given number
    of pairs.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        *,
        batch_size: int,
        seed: int,
        make: Any,
    ) -> None:
        self.pairs, self.make = pairs, make
        super().__init__(len(pairs), batch_size, seed, "pairs")

    def _collate(self, group: list[tuple[int, int]], size: int) -> Batch:
        batch: Batch = self.make([row for _, row in group], self.pairs, size)
        return batch

    def numbers(self, micro_batch: int) -> Iterator[list[int]]:
        """The pairs of each batch of the first epoch, by their numbers."""
        for step in range(-(-self.rows // self.batch_size)):
            rows = [row for _, row in self.rows_of_step(step)]
            for start in range(0, len(rows), micro_batch):
                yield rows[start : start + micro_batch]

    def eval_numbers(self, micro_batch: int, limit: int | None) -> Iterator[list[int]]:
        """The pairs of each of `eval_batches`."""
        rows = self.eval_rows(limit)
        for start in range(0, len(rows), micro_batch):
            yield rows[start : start + micro_batch]

    def _eval_order(self) -> NDArray[np.int64]:
        """Short pairs first: batches of like lengths have less padding."""
        return np.array(sorted(range(self.rows), key=lambda row: self.pairs[row].length), np.int64)

    def _set_denominators(self, batches: list[Batch]) -> list[Batch]:
        """Every micro-batch of a step is divided by the pairs of all of them."""
        total = max(
            1.0, sum(float(batch["pairs"].sum() * batch.pop("losses", 1)) for batch in batches)
        )
        for batch in batches:
            batch["denominator"] = np.asarray(total, np.float32)
        return batches


def by_parts(pairs: Sequence[TokenPair]) -> dict[str, list[int]]:
    """What tells pairs apart → the numbers of those pairs; empty where nothing is known."""
    out: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        if pair.by:
            out.setdefault(pair.by, []).append(i)
    return out
