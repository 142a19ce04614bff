"""The pairs that a preference stage learns from: out of a ratings.db or a person's file, kept
beside the stage.

What a stage has begun with, it goes on with: its pairs are copied to `<stage>/pairs.jsonl` at its
start, and votes that come later are for the next one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.files import digest, sha256
from ondevice.common.json_files import json_lines
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import DPOConfig, PairsConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.context import DataContext
from ondevice.data.messages import BadRow
from ondevice.data.mixture import Lazy, epoch_order, mixture, sources
from ondevice.data.preference_batches import StoredPairs, TokenPair, to_tokens
from ondevice.data.preference_formats import is_judged, to_judged, to_pair
from ondevice.data.rows import AS_IS, Reading, read
from ondevice.data.token_cache import made_once, place_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.spec import (
    LOOKED_AT,
    DataSpec,
    check_rejected,
    convert_rows,
    corpus_of,
    placed_rows,
    report_rejected,
    reuse_cached,
)
from ondevice.models.model import Model, require_chat_template
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import held_out, pairs_of
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import is_simulated

COPY = "pairs.jsonl"
BUILTIN_PAIRS = 8000  # chats of the built-in corpus that are made into pairs
_TOLD = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PairData:
    """Pairs to learn from and pairs held out, no prompt in both. `notes` say for a model's card who
    rated; `strong` pairs are of a strength above 1, `margins` come with a margin of their own. If
    `judged`, each is one completion that is good or bad, and `good` of those to learn from are
    good."""

    train: Sequence[TokenPair]
    held: Sequence[TokenPair]
    notes: list[str]
    simulated: int = 0
    strong: int = 0
    margins: int = 0
    judged: bool = False
    good: int = 0


def pairs(
    cfg: PairsConfig,
    model: Model,
    ctx: DataContext,
    longest: Callable[[NDArray[np.int64], str], int],
) -> PairData:
    """Pairs that are longer than the model's context or than `longest` says, by the lengths of those
    to learn from and what they are called, are left out. Raises UserError for missing, empty or
    unreadable data, or where no pair is left on either side.
    """
    require_chat_template(model)
    wanted = DataSpec.of(cfg, str(ctx.folder.parent / FILE))
    judged = has_labelled_completions(cfg, wanted)
    copy = made_once(
        ctx.folder / COPY, lambda part: _copied(part, wanted, cfg.held_share, ctx, judged)
    )
    try:
        place = place_of(
            ctx.cache,
            "pairs",
            model.tokenizer,
            f"{sha256(copy)} with margins and labels",
        )
        stored = StoredPairs.kept(
            reuse_cached(place, wanted, ctx),
            lambda: _tokenised(copy, model.tokenizer, ctx, cfg.bad_share),
        )
        places = stored.places(model.network.decoder_start_token_id)
        lengths = places[_epoch(stored, ~stored.held, wanted)]
        if not len(lengths):
            raise _too_few(stored, 0, int(stored.held.sum()), wanted)
        limit = min(longest(lengths, _kind_of(stored)), model.cfg.max_position_embeddings)
        fits = places <= limit
        if not fits.all():
            ctx.warn(
                f"{(~fits).sum()} of {len(stored)} {_kind_of(stored)} are longer than {limit} tokens and "
                "are left out"
            )
        return _parted(stored, fits, wanted)
    except UserError:
        copy.unlink()  # who rates more pairs, or mends these, and resumes means those too
        raise


def has_labelled_completions(cfg: PairsConfig, wanted: DataSpec) -> bool:
    """Whether KTO is to learn from single completions, each good or bad: one of the sources holds
    such rows. The pairs of others are then two of them each, as in TRL."""
    if not (isinstance(cfg, DPOConfig) and cfg.loss_type == "kto"):
        return False
    for one in wanted.alone():
        if _votes_in(one) is not None or one.data.startswith("builtin"):
            continue
        rows = replace(one, limit=LOOKED_AT).rows()
        rows.strict = False
        if any(is_judged(row) for row, _ in rows):
            return True
    return False


def _in_two(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each pair as two completions, of which one is good."""
    for row in rows:
        if "label" in row:
            yield row
            continue
        rest = dict(row)
        for name in ("chosen", "rejected", "strength", "margin"):
            rest.pop(name, None)
        yield {**rest, "completion": row["chosen"], "label": True}
        yield {**rest, "completion": row["rejected"], "label": False}


def _copied(
    part: Path, wanted: DataSpec, share: float, ctx: DataContext, judged: bool = False
) -> None:
    """Writes every pair once, with `held` and the number of its `source`."""
    left_out = Counter[str]()
    any_held = False
    last = ""
    with part.open("w", encoding="utf-8") as out:
        for row, number, learned in _each(wanted, ctx.corpus, left_out, ctx, judged):
            chat = _chat_of(row)
            is_heldout = learned == "never"
            if learned == "drawn":
                is_heldout = held_out(chat, share, 0)
            any_held = any_held or is_heldout
            last = max(last, chat)
            out.write(json.dumps({**row, "held": is_heldout, "source": number}) + "\n")
    if left_out:
        ctx.warn(f"{left_out.total():,} pairs are left out because their prompts are held out too")
    # of ten prompts a share of a tenth is often none
    if not any_held and not wanted.validation:
        _hold_out_chat(part, last)


def _hold_out_chat(part: Path, chat: str) -> None:
    """Holds the pairs of one chat out, in a copy of pairs of which none is."""
    changed = part.with_name(f"{part.name}.held")
    with changed.open("w", encoding="utf-8") as out:
        for row in json_lines(part):
            row["held"] = _chat_of(row) == chat
            out.write(json.dumps(row) + "\n")
    changed.replace(part)


def _chat_of(row: Mapping[str, Any]) -> str:
    """A hash of a prompt up to what its user says first: turns of one chat have the same."""
    turns = []
    for message in row["prompt"]:
        turns.append(message)
        if message["role"] == "user":
            break
    return digest(turns)


def _each(
    wanted: DataSpec,
    corpus: CorpusConfig,
    left_out: Counter[str],
    ctx: DataContext | None = None,
    judged: bool = False,
) -> Iterator[tuple[dict[str, Any], int, str]]:
    """(pair, number of its source, whether it is learned from: always, never, or as it is drawn).
    Pairs whose prompt another file holds out are counted in `left_out` by it."""
    alone = wanted.alone()
    apart = wanted.held()
    ones: list[tuple[DataSpec, str]] = []
    for one in alone:
        learned = "drawn"
        if wanted.validation:
            learned = "always"
        elif _votes_in(one) is None:
            named = one.named_held()
            if named is not None:
                apart.append(named)
                learned = "always"
        ones.append((one, learned))
    known: set[str] = set()
    for one in apart:
        known.update(map(sha_of, _rows(one, corpus, judged=judged)))
    for number, (one, learned) in enumerate(ones):
        for row in _rows(one, corpus, ctx, judged=judged):
            prompt = sha_of(row) if known else ""
            if prompt in known:
                left_out[prompt] += 1
            else:
                yield row, number, learned
    for one in apart:
        for row in _rows(one, corpus, ctx, judged=judged):
            yield row, 0, "never"


def _tokenised(
    copy: Path, tokenizer: Tokenizer, ctx: DataContext, bad: float
) -> Iterator[tuple[TokenPair, Mapping[str, Any]]]:
    """Pairs with their rows; those that the template refuses are set aside. Raises UserError for
    too many of them.
    """
    if not copy.stat().st_size:
        return
    rows = read(copy, reading=Reading(bad=bad))
    for row, place in ctx.progress(rows, "pairs read"):
        row.asked.update(row)  # what of a row is not used was said when the copy was made
        try:
            yield to_tokens(row, tokenizer), row
        except BadRow as error:
            rows.reject(row.get("where", place), str(error), row)
    report_rejected(rows, ctx)


def _kind_of(stored: StoredPairs) -> str:
    return "completions" if _are_judged(stored) else "pairs"


def _are_judged(stored: StoredPairs) -> bool:
    """Whether these are single completions, each good or bad: either all are, or none is."""
    return bool(len(stored)) and bool(stored.label[0])


def _parted(stored: StoredPairs, fits: NDArray[np.bool_], wanted: DataSpec) -> PairData:
    """What is learned of the pairs that fit, by the sources' weights, and what is held out. Raises
    UserError where one of the two, or a source, is left without."""
    what = _kind_of(stored)
    numbers = _by_source(stored, fits & ~stored.held, wanted)
    parts = [Lazy(stored.__getitem__, part) for part in numbers]
    train = mixture(parts, wanted.weights, wanted.seed)
    heldout = Lazy(stored.__getitem__, np.flatnonzero(fits & stored.held))
    if not train or not heldout:
        raise _too_few(stored, len(train), len(heldout), wanted)
    for source_of, part in zip(sources(wanted.data), parts, strict=True):
        if not part:
            raise UserError(
                f"no {what[:-1]} of it is left to learn from",
                where=source_of.data,
                hint="leave it out of the mixture",
            )
    learned = _epoch(stored, fits & ~stored.held, wanted)
    return PairData(
        train,
        heldout,
        [f"{len(stored):,} {what}{_rated_by(stored)}"],
        simulated=int(stored.simulated.sum()),
        strong=int((stored.strength > 1).sum()),
        margins=int((stored.margin != 0).sum()),
        judged=_are_judged(stored),
        good=int((stored.label[learned] > 0).sum()),
    )


def _by_source(
    stored: StoredPairs, which: NDArray[np.bool_], wanted: DataSpec
) -> list[NDArray[np.int64]]:
    """Of each source the numbers of those of its pairs of which `which` is true."""
    numbers = []
    for source in range(len(wanted.weights)):
        numbers.append(np.flatnonzero(which & (stored.source == source)))
    return numbers


def _epoch(stored: StoredPairs, which: NDArray[np.bool_], wanted: DataSpec) -> NDArray[np.int64]:
    """Numbers of the pairs of one epoch of those of which `which` is true."""
    numbers = _by_source(stored, which, wanted)
    order = epoch_order(list(map(len, numbers)), wanted.weights, wanted.seed)
    return np.concatenate(numbers)[order]


def _too_few(stored: StoredPairs, learned: int, heldout: int, wanted: DataSpec) -> UserError:
    what = _kind_of(stored)
    return UserError(
        f"{learned} {what} to learn from and {heldout} held out are too few",
        where=wanted.data,
        hint=f"rate or give more {what}, or give --validation FILE",
    )


def _rated_by(stored: StoredPairs) -> str:
    """Who rated the pairs, for a model's card."""
    simulated = int(stored.simulated.sum())
    if simulated:
        return f", {simulated:,} of them rated by a simulated rater: a rule, not a person"
    if stored.voted.any():
        return ", rated by people"
    return ""


def pairs_digest(cfg: PairsConfig, stage: Path, resume: bool, corpus: CorpusConfig) -> str:
    """A hash of the pairs: of those that the stage has begun with, else of the source; and of the
    sources' weights. Raises UserError as `pairs`."""
    copy = stage / COPY
    wanted = DataSpec.of(cfg, str(stage.parent / FILE))

    def values() -> Iterator[Any]:
        if resume and copy.is_file():
            try:
                yield from map(_told, json_lines(copy))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"is damaged: {error}", where=str(copy), hint="begin anew with --redo"
                ) from error
        else:
            judged = has_labelled_completions(cfg, wanted)
            for row, _, _ in _each(wanted, corpus, Counter(), judged=judged):
                yield _told(row)
        if len(wanted.weights) > 1:
            yield wanted.weights

    hasher = hashlib.sha256(b"[")
    separator = ""
    for value in values():
        hasher.update(f"{separator}{json.dumps(value, sort_keys=True, default=str)}".encode())
        separator = ", "
    hasher.update(b"]")
    return hasher.hexdigest()[:16]


def _told(row: Mapping[str, Any]) -> list[Any]:
    """What of a pair, or of a single completion, is learned, for its hash."""
    if "label" in row:
        return [row[k] for k in ("prompt", "completion", "label")]
    values = [row[k] for k in _TOLD]
    for k, usual in (("strength", 1), ("margin", 0)):
        if row.get(k, usual) != usual:
            values.append([k, row[k]])
    return values


def read_pairs(data: str, reading: Reading = AS_IS) -> Iterator[dict[str, Any]]:
    """{"prompt": messages, "chosen", "rejected", …} of every pair of a ratings.db, a file or the
    built-in corpus. Raises UserError for data that is not there or cannot be read."""
    for one in DataSpec(data, reading=reading).alone():
        # of a folder with splits what is there to test on
        yield from _rows(replace(one, split="test"), CorpusConfig(), strict=True)


def sha_of(row: Mapping[str, Any]) -> str:
    return digest(row["prompt"])


def _rows(
    wanted: DataSpec,
    corpus: CorpusConfig,
    ctx: DataContext | None = None,
    strict: bool = False,
    judged: bool = False,
) -> Iterator[dict[str, Any]]:
    """The pairs of one source, or if `judged` its single completions. With `ctx` bad rows are kept
    account of, and what votes there are is told; else, if `strict`, too many of them raise
    UserError."""

    def either(row: Any) -> dict[str, Any]:
        if is_judged(row):
            return to_judged(row)
        return to_pair(row)

    if judged:
        yield from _in_two(_read(wanted, corpus, ctx, strict, either))
    else:
        yield from _read(wanted, corpus, ctx, strict, to_pair)


def _read(
    wanted: DataSpec,
    corpus: CorpusConfig,
    ctx: DataContext | None,
    strict: bool,
    convert: Callable[[Any], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    builtin = corpus_of(wanted.data, corpus)
    votes = None
    if builtin is None:
        votes = _votes_in(wanted)
    if builtin is not None:
        yield from _spread(builtin_pairs(builtin), wanted.limit)
    elif votes is not None:
        voted, line = _voted(votes)
        if ctx is not None:
            ctx.tell(line)
        yield from islice(voted, wanted.limit or None)
    elif ctx is not None:
        for place, row in placed_rows(wanted, convert, ctx):
            simulated = any(map(is_simulated, row.get("raters", ())))
            yield {**row, "simulated": simulated, "where": place}
    else:
        rows = wanted.rows()
        rows.strict = strict
        for _, row in convert_rows(rows, convert):
            yield row
        if strict:
            check_rejected(rows)


def _spread(rows: Sequence[dict[str, Any]], limit: int) -> Iterator[dict[str, Any]]:
    """At most `limit` pairs, evenly out of all: they stand kind by kind, so that the first ones
    would be of one kind."""
    count = min(limit or len(rows), len(rows))
    for n in np.linspace(0, len(rows), count, endpoint=False).astype(int):
        yield rows[n]


def _votes_in(wanted: DataSpec) -> Path | None:
    """The ratings.db that a source is, or that its run folder holds."""
    path = Path(wanted.data)
    if path.suffix == ".db":
        return path
    if (path / FILE).is_file():
        return path / FILE
    return None


def _voted(path: Path) -> tuple[list[dict[str, Any]], str]:
    """(the pairs that a ratings.db decides, what to say of the rest)."""
    with Ratings.open(path) as ratings:
        rated = pairs_of(ratings)
        reasons = {v.item: v.reason for v in ratings.live_votes() if v.reason}
    rows = []
    for p in rated:
        row = {
            "prompt": p.prompt,
            "chosen": p.chosen,
            "rejected": p.rejected,
            "strength": p.strength,
            "raters": list(p.raters),
            "simulated": p.simulated,
            "by": reasons.get(p.item, ""),
            "item": p.item,
        }
        rows.append(row)
    line = f"{len(rows):,} pairs of {rated.votes:,} votes"
    left = [f"{count:,} {word.replace('_', ' ')}" for word, count in rated.left_out.items()]
    if left:
        line += f" (left out: {', '.join(left)})"
    return rows, line


def builtin_pairs(cfg: CorpusConfig, most: int = BUILTIN_PAIRS) -> list[dict[str, Any]]:
    """Of the built-in corpus: a request with its own reply, which is chosen, and with that of the
    next request of its kind whose answer is another."""
    chats = list(build(cfg).chats("train"))[:most]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for chat in chats:
        by_kind.setdefault(chat["kind"], []).append(chat)
    rows = []
    for kind, group in by_kind.items():
        for n, chat in enumerate(group):
            other = _with_another_answer(chat, group[n + 1 :] + group[:n])
            if other is None:
                continue
            pair = {
                "prompt": chat["messages"][:1],
                "chosen": chat["messages"][1]["content"],
                "rejected": other["messages"][1]["content"],
                "by": kind,
            }
            rows.append(pair)
    return rows


def _with_another_answer(
    chat: Mapping[str, Any], others: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    for other in others:
        if other["answer"] != chat["answer"]:
            return other
    return None
