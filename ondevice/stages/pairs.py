"""The pairs that a preference stage learns from: out of a ratings.db or a person's file, kept beside the stage.

What a stage has begun with, it goes on with: its pairs are copied to `<stage>/pairs.jsonl` at its start, and votes that
come later are for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.checkpoint import write_file
from ondevice.config.corpus import CorpusConfig
from ondevice.context import Context, digest
from ondevice.data.chat import encode_chat
from ondevice.data.completions import Row
from ondevice.data.formats import BadRow, messages_of, text_of, with_tools
from ondevice.data.formats import Row as DataRow
from ondevice.data.packing import Batch
from ondevice.data.tokenizer import Tokenizer
from ondevice.errors import UserError
from ondevice.models.folder import Model
from ondevice.pairs import held_out
from ondevice.randomness import permutation
from ondevice.ratings import Ratings
from ondevice.ratings_store import FILE
from ondevice.stages import material
from ondevice.stages.asked import need_template

COPY = "pairs.jsonl"
BUILTIN_PAIRS = 8000  # chats of the built-in corpus that are made into pairs


@dataclass(frozen=True)
class TokenPair:
    """A chosen and a rejected completion of one prompt, stop tokens included. `by` names what tells them apart, where
    that is known."""

    chosen: Row
    rejected: Row
    strength: float = 1.0
    by: str = ""

    @property
    def length(self) -> int:
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class Found:
    """Pairs to learn from and pairs held out, no prompt in both. `notes` say for a model's card who rated."""

    train: list[TokenPair]
    held: list[TokenPair]
    notes: list[str]
    simulated: int = 0


def pairs(data: str, validation: str, held_share: float, longest: int, model: Model, ctx: Context) -> Found:
    """Raises UserError for missing, empty or unreadable data, or where no pair is left on either side."""
    need_template(model)
    copy = ctx.folder.path / COPY
    if not (ctx.resume and copy.is_file()):
        rows = [{**row, "held": held_out(sha_of(row), held_share, 0)} for row in _read(data, ctx)]
        if validation:
            rows = [{**row, "held": False} for row in rows] + [{**row, "held": True} for row in _read(validation, ctx)]
        elif rows and not any(row["held"] for row in rows):  # of ten prompts a share of a tenth is often none
            last = max(map(sha_of, rows))
            rows = [{**row, "held": sha_of(row) == last} for row in rows]
        write_file(copy, "".join(json.dumps(row) + "\n" for row in rows))
    rows = [json.loads(line) for line in copy.read_text(encoding="utf-8").splitlines()]
    limit = min(longest, model.cfg.max_position_embeddings)
    made = [(row["held"], to_tokens(row, model.tokenizer)) for row in rows]
    fit = [(held, pair) for held, pair in made if pair.length <= limit]
    if len(fit) < len(made):
        ctx.warn(f"{len(made) - len(fit)} of {len(made)} pairs are longer than {limit} tokens and are left out")
    train, held = [p for h, p in fit if not h], [p for h, p in fit if h]
    if not train or not held:
        copy.unlink()  # who rates more pairs and resumes means those too
        raise UserError(f"{len(train)} pairs to learn from and {len(held)} held out are too few",
                        where=data or str(copy), hint="rate more pairs, or give --validation FILE")
    voted = sum(bool(row.get("raters")) for row in rows)
    simulated = sum(bool(row.get("simulated")) for row in rows)
    notes = [f"{len(rows):,} pairs" + (f", {simulated:,} of them rated by a simulated rater: a rule, not a person"
                                       if simulated else ", rated by people" if voted else "")]
    ctx.events.emit("data", pairs=len(train), held_pairs=len(held), simulated=simulated)
    ctx.say(f"{ctx.name}: {len(train):,} pairs to learn from, {len(held):,} held out"
            + (f"; {simulated:,} were rated by a rule, not by a person" if simulated else ""))
    return Found(train, held, notes, simulated)


class PairSource:
    """Pairs in an order of their own each epoch; `make` turns some pairs into a batch of a given number of pairs."""

    def __init__(self, rows: Sequence[TokenPair], *, batch_size: int, seed: int, make: Any,
                 accumulate: int = 1) -> None:
        self.rows, self.batch_size, self.seed, self.make, self.accumulate = rows, batch_size, seed, make, accumulate

    def batch(self, step: int) -> list[Batch]:
        count = self.batch_size * self.accumulate
        places = np.arange(step * count, (step + 1) * count)
        epochs = {int(e): permutation(self.seed, "pairs", int(e), len(self.rows)) for e in places // len(self.rows)}
        chosen = [int(epochs[int(p) // len(self.rows)][int(p) % len(self.rows)]) for p in places]
        groups = [chosen[n:n + self.batch_size] for n in range(0, count, self.batch_size)]
        return self._divided([self.make(group, self.rows, self.batch_size) for group in groups])

    def eval_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """All pairs, or `limit` batches of them, in a fixed order."""
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].length)
        count = len(order) if limit is None else min(len(order), limit * self.batch_size)
        picked = [order[int(i)] for i in np.linspace(0, len(order), count, endpoint=False)]
        for start in range(0, count, self.batch_size):
            yield self._divided([self.make(picked[start:start + self.batch_size], self.rows, self.batch_size)])[0]

    def _divided(self, batches: list[Batch]) -> list[Batch]:
        """Every micro-batch of a step is divided by the pairs of all of them."""
        total = np.float32(max(1.0, sum(float(b["pairs"].sum() * b.pop("losses", 1)) for b in batches)))
        for batch in batches:
            batch["denominator"] = np.asarray(total, np.float32)
        return batches


def pairs_digest(data: str, validation: str, stage: Path, resume: bool, corpus: CorpusConfig) -> str:
    """A hash of the pairs: of those that the stage has begun with, else of the source. Raises UserError as `pairs`."""
    copy = stage / COPY
    if resume and copy.is_file():
        rows = [json.loads(line) for line in copy.read_text(encoding="utf-8").splitlines()]
        return digest([[row[k] for k in ("prompt", "chosen", "rejected")] for row in rows])
    rows = [row for source in (data or str(stage.parent / FILE), validation if validation else None) if source
            for row in _rows(source, corpus)[0]]
    return digest([[row[k] for k in ("prompt", "chosen", "rejected")] for row in rows])


def read_pairs(data: str) -> list[dict[str, Any]]:
    """{"prompt": messages, "chosen", "rejected", …} of every pair of a ratings.db, a file or the built-in corpus.
    Raises UserError for data that is not there or cannot be read."""
    return _rows(data, CorpusConfig())[0]


def sha_of(row: Mapping[str, Any]) -> str:
    return digest(row["prompt"])


def to_tokens(row: Mapping[str, Any], tokenizer: Tokenizer) -> TokenPair:
    """Both responses as the model's template writes them, each ending with its stop token."""
    made = [completion_row(row["prompt"], row[side], tokenizer) for side in ("chosen", "rejected")]
    return TokenPair(made[0], made[1], row.get("strength", 1.0), row.get("by", ""))


def completion_row(prompt: Sequence[Mapping[str, Any]], text: str, tokenizer: Tokenizer) -> Row:
    """Prompt and response as ids; the response is what the assistant wrote last. Raises UserError where the template
    refuses the chat."""
    try:
        ids, mask = encode_chat([*prompt, {"role": "assistant", "content": text}], tokenizer)[-1]
    except BadRow as error:
        raise UserError(str(error), where="data") from error
    if not mask.any():
        raise UserError("the chat template writes nothing for an empty answer, not even its end", where="data",
                        hint="leave such pairs out, or take the template chatml")
    end = int(np.flatnonzero(mask)[-1]) + 1
    start = int(np.flatnonzero(~mask[:end])[-1]) + 1
    return Row(ids[:start], ids[start:end])


def _read(data: str, ctx: Context) -> list[dict[str, Any]]:
    rows, told = _rows(data or str(ctx.folder.path.parent / FILE), ctx.corpus, ctx)
    if told:
        ctx.say(f"{ctx.name}: {told}")
    return rows


def _rows(data: str, corpus: CorpusConfig, ctx: Context | None = None) -> tuple[list[dict[str, Any]], str]:
    """({"prompt": messages, "chosen", "rejected", …} of every pair, what to say of the rest)."""
    made = material.corpus_of(data, corpus)
    if made is not None:
        return builtin_pairs(made), ""
    path = Path(data)
    if path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    if path.suffix == ".db":
        with Ratings.open(path) as ratings:
            found = ratings.pairs()
            reasons = {v.item: v.reason for v in ratings.live_votes() if v.reason}
        rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "strength": p.strength,
                 "raters": list(p.raters), "simulated": p.simulated, "by": reasons.get(p.item, ""), "item": p.item}
                for p in found]
        left = ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in found.left_out.items())
        return rows, f"{len(rows):,} pairs of {found.votes:,} votes" + (f" (left out: {left})" if left else "")
    if ctx is not None:
        return material.converted(data, to_pair, ctx), ""
    from ondevice.data.readers import read

    return [to_pair(row) for row, _ in read(data) if _is_pair(row)], ""


def builtin_pairs(cfg: CorpusConfig, most: int = BUILTIN_PAIRS) -> list[dict[str, Any]]:
    """Of the built-in corpus: a request with its own reply, which is chosen, and with that of the next request of its
    kind whose answer is another."""
    from ondevice.data.builtin import build

    chats = list(build(cfg).chats("train"))[:most]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for chat in chats:
        by_kind.setdefault(chat["kind"], []).append(chat)
    found = []
    for kind, group in by_kind.items():
        for n, chat in enumerate(group):
            other = next((o for o in group[n + 1:] + group[:n] if o["answer"] != chat["answer"]), None)
            if other is not None:
                found.append({"prompt": chat["messages"][:1], "chosen": chat["messages"][1]["content"],
                              "rejected": other["messages"][1]["content"], "by": kind})
    return found


def _is_pair(row: DataRow) -> bool:
    try:
        to_pair(row)
    except BadRow:
        return False
    return True


def to_pair(row: DataRow) -> dict[str, Any]:
    """A row of prompt, chosen and rejected, strings or messages; without a prompt the two share their beginning."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        raise BadRow("a pair has chosen and rejected")
    prompt = row.get("prompt", row.get("question"))
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise BadRow("a pair has a prompt")
    asked = messages_of(prompt, "prompt")
    said = [_response(x) for x in (chosen, rejected)]
    if said[0] == said[1]:
        raise BadRow("chosen and rejected are the same")
    return {"prompt": with_tools(asked, row), "chosen": said[0], "rejected": said[1]}


def _response(value: Any) -> str:
    """May be empty: to say nothing, and stop, is a response that people rate."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise BadRow("a response is one text, or one message")
    return text_of(value, "a response")


def by_parts(pairs: Sequence[TokenPair]) -> dict[str, list[int]]:
    """What tells pairs apart → the numbers of those pairs; empty where nothing is known."""
    out: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        if pair.by:
            out.setdefault(pair.by, []).append(i)
    return out
