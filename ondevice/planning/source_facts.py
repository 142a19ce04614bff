"""What is known of some sources of rows together, by a sample of each that is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ondevice.config.corpus import CorpusConfig
from ondevice.data.folders import holds_split
from ondevice.data.messages import BadRow
from ondevice.data.mixture import epoch_counts, is_by_name, ordered
from ondevice.datasets.spec import DataSpec, corpus_of
from ondevice.datasets.split import HELD_MOST, HELD_PART
from ondevice.planning.row_sample import RowSample, sample_rows

T = TypeVar("T")


@dataclass(frozen=True)
class DataFacts:
    """`rows` to learn from, `tokens` of them in all; None: not known before the stage reads them.
    `exact`: they were counted, all of them. `examples`: some of them, encoded, as many as there were
    to look at. `held`: rows held out, of running text its tokens. `unit`: what is counted.
    """

    unit: str
    rows: float | None
    tokens: float | None
    exact: bool
    examples: Sequence[Any]
    held: float = 0.0
    text_bytes: float = 0.0  # that are read and encoded before the first step
    row_seconds: float = 0.0  # of encoding a row, as those of the sample took

    def told(self) -> str:
        """ "1,200 chats", "≈ 34,000 tokens"; empty where nothing is known."""
        if self.unit == "tokens":
            count = self.tokens
        else:
            count = self.rows
        if count is None:
            return ""
        mark = "" if self.exact else "≈ "
        if round(count) == 1:
            unit = self.unit.removesuffix("s")
        else:
            unit = self.unit
        return f"{mark}{count:,.0f} {unit}"


UNKNOWN = DataFacts("rows", None, None, False, ())


@dataclass
class Encoded:
    """Of one source: encoded examples, their tokens, and how many rows stand for them."""

    examples: list[Any]
    count: float | None
    exact: bool
    characters: int
    size: float | None = None  # characters in all, of running text
    held: float | None = None  # rows held out, where the source says it
    seconds: float = 0.0  # that encoding the examples took


def converted(rows: Iterable[Any], convert: Callable[[Any], T]) -> Iterator[T]:
    """The rows that can be used, as a stage converts them."""
    for row in rows:
        try:
            yield convert(row)
        except BadRow:
            continue  # the stage names it


def encoded_rows(examples: list[Any], looked_at: int, rows: RowSample, characters: int) -> Encoded:
    """Encoded rows of a sample of `looked_at`, which may give more or fewer than one each."""
    if rows.count is None:
        return Encoded(examples, None, False, characters)
    share = len(examples) / max(looked_at, 1)
    exact = rows.exact and len(examples) == looked_at
    return Encoded(examples, rows.count * share, exact, characters)


def tokens_of(part: Encoded, length: Callable[[Any], int]) -> float | None:
    """Tokens of a source in all."""
    if not part.examples or part.count is None:
        return None
    return part.count * sum(map(length, part.examples)) / len(part.examples)


def all_examples(parts: Sequence[Encoded]) -> list[Any]:
    """Of all sources, one after the other."""
    return [example for part in parts for example in part.examples]


def encoded_sources(
    cfg: Any,
    corpus: CorpusConfig,
    own: Callable[[RowSample], Encoded],
    builtin: Callable[[CorpusConfig], Encoded],
) -> list[Encoded]:
    """Each source of a stage's data, its first `limit` rows."""
    parts = []
    wanted = DataSpec.of(cfg)
    for one in wanted.alone():
        built = corpus_of(one.data, corpus)
        if built is not None:
            part = builtin(built)
        else:
            part = own(sample_rows(one.data, one.reading))
            is_here = not is_by_name(one.data)
            named = is_here and holds_split(ordered(one.data)[1], "validation")
            if named or wanted.validation:
                part.held = 0.0
        if one.limit and part.count is not None and part.count > one.limit:
            if part.size is not None:
                part.size *= one.limit / part.count
            part.count = float(one.limit)
        parts.append(part)
    return parts


def together(
    cfg: Any, parts: Sequence[Encoded], tokens: Sequence[float | None], unit: str
) -> DataFacts:
    """An epoch of all sources, without what is held out of each."""
    counts: list[float] = []
    sums: list[float] = []
    held = 0.0
    for part, total in zip(parts, tokens, strict=True):
        if part.count is None or total is None:
            return DataFacts(unit, None, None, False, ())
        apart = part.held
        left = 1.0
        if apart is None:
            apart = part.count * HELD_PART
            if unit != "tokens":
                apart = min(apart, HELD_MOST)
            left = 1 - apart / max(part.count, 1)
        held += apart * (total / max(part.count, 1) if unit == "tokens" else 1)
        counts.append(part.count * left)
        sums.append(total * left)
    by_tokens = unit == "tokens"
    sizes = [max(1, round(size)) for size in (sums if by_tokens else counts)]
    epoch = epoch_counts(sizes, DataSpec.of(cfg).weights)
    repeated = [count / size for count, size in zip(epoch, sizes, strict=True)]
    return DataFacts(
        unit,
        float(np.dot(counts, repeated)),
        float(np.dot(sums, repeated)),
        all(part.exact for part in parts),
        (),
        held,
        float(sum(_characters(part) for part in parts)),
        sum(part.seconds for part in parts) / max(1, sum(len(part.examples) for part in parts)),
    )


def _characters(part: Encoded) -> float:
    """Of a source in all."""
    if part.size is not None:
        return part.size
    return part.characters * (part.count or 0.0) / max(len(part.examples), 1)
