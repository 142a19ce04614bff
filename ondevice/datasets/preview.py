"""Data as a model will see it: a few examples with what is learned of them marked, and what becomes
of every row.

Whoever trains on the wrong tokens finds out after hours, or never. The same code that prepares a
stage's rows makes what is shown here: templates, masks, cuts and reasons are the stage's own.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.effects import idle
from ondevice.config.preference import RewardConfig
from ondevice.config.stages import ClassifyConfig, PretrainConfig, SFTConfig
from ondevice.config.use import DataConfig
from ondevice.data.batches import fitted_length
from ondevice.data.chat_encoding import (
    ChatRow,
    add_template,
    encode_chat,
    encode_chats,
    prompt_ids,
    with_template_kwargs,
)
from ondevice.data.completion_batches import counted_answers, fitted_row
from ondevice.data.formats import Unlabelled, to_chat, to_label, to_prompt, to_text
from ondevice.data.messages import BadRow, Row
from ondevice.data.mixture import sources
from ondevice.data.preference_batches import to_tokens
from ondevice.data.preference_formats import is_judged, to_judged, to_pair
from ondevice.data.readers import Part
from ondevice.data.row_keys import Record, telling
from ondevice.data.rows import Reading, Rows, read
from ondevice.data.special_token_text import SIGN, Spelt, separated
from ondevice.data.special_token_text import shown as shown_text
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.truncation import cut_where
from ondevice.datasets.objectives import most_of, source_of
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.split import key_of
from ondevice.datasets.text_inputs import text_inputs
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.load import tokenizer_of
from ondevice.models.model import Model
from ondevice.models.model_folder import whole_folder
from ondevice.models.network import objective
from ondevice.models.registry import load_config
from ondevice.runs.resolve import find_model

LEARNED = ("\x1b[30;42m", "\x1b[0m")  # black on green, in every palette of 16 colours
BRACKETS = ("⟦", "⟧")
SHOWN_REASONS = 8
SHOWN_TEXT = 6000  # characters of one example
HELD_TOO = "held out too, so that it is not learned from"
_MEANS = {
    "text": "pretrain",
    "label": "classify",
    "chat": "sft",
    "preference": "reward and dpo",
    "judged": "dpo --loss-type kto",
    "prompt": "grpo and ppo",
}
_STAGES: dict[str, Any] = {
    "text": PretrainConfig,
    "label": ClassifyConfig,
    "chat": SFTConfig,
    "preference": RewardConfig,
    "judged": RewardConfig,
    "prompt": SFTConfig,
}  # whose usual sequence_length is taken

Pieces = list[tuple[str, bool]]


@dataclass
class Counts:
    """What became of the rows. `skipped`: reason → [how many, where the first one is]; `bad` of
    them a stage holds against the data."""

    used: int = 0
    bad: int = 0
    parts: int = 0  # of documents that go on in the next row
    cut: int = 0
    tokens: int = 0
    learned: int = 0
    skipped: dict[str, list[Any]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    spelt: Spelt | None = None
    separator: str = ""
    held: set[int] = field(default_factory=set)  # hashes of what is held out
    gathers: bool = False  # them

    def held_out(self, key: int, where: str) -> bool:
        """Whether what is called so is held out, and so not learned from; it is counted."""
        if self.gathers:
            self.held.add(key)
        elif key in self.held:
            self.skip(HELD_TOO, where, False)
        return self.gathers or key in self.held

    def skip(self, reason: str, where: str, bad: bool = True) -> None:
        self.bad += bad
        self.skipped.setdefault(reason, [0, where])[0] += 1

    def use(self, tokens: int, learned: int, cut: bool) -> None:
        self.used, self.cut = self.used + 1, self.cut + cut
        self.tokens, self.learned = self.tokens + tokens, self.learned + learned


def show(cfg: DataConfig) -> dict[str, Any]:
    """The form of the rows, counts and examples, each {"where", parts: [[text, learned], …]}: raw
    text of a file, make it inert before showing it. Raises UserError for data or a model that
    cannot be read, or where no row has a form."""
    cfg.check()
    if len(sources(cfg.data)) > 1:
        raise UserError("names several sources", where=cfg.data, hint="look at one at a time")
    rows = read(cfg.data, strict=False, reading=Reading.of(cfg))
    model = _reader(cfg)
    form = _form(rows, cfg, model) if cfg.form == "auto" else cfg.form
    if form not in ("text", "label") and model.tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template", where=cfg.model, hint="give --chat-template chatml"
        )
    if form in (
        "chat",
        "prompt",
    ):  # pairs are copied, and their hash taken, where no tokenizer is known
        rows.template = DataSpec("").for_template(model.tokenizer).template
    length = cfg.sequence_length or _STAGES[form].sequence_length
    known: Any = form
    for name, effect in idle(
        replace(cfg, form=known)
    ):  # of form auto a person learns here what it was
        raise UserError(
            f"has no effect on rows that are read as {form}: {effect.why}",
            where=name,
            hint=effect.hint,
        )
    if cfg.sequence_length and form == "text" and objective(model.cfg) == "causal":
        raise UserError(
            "has no effect on text of which a model learns every token: none of it is cut",
            where="sequence_length",
            hint="leave it out",
        )
    counts = Counts(spelt=Spelt(model.tokenizer), separator=cfg.separator)
    columns = {"text": cfg.text, "label": cfg.label, "pair": cfg.pair}
    made = partial(_labelled, columns=columns) if form == "label" else _FORMS[form]
    whole = DataSpec(cfg.data, cfg.validation, reading=Reading.of(cfg))
    for held in whole.held() or filter(None, [whole.named_held()]):
        held_rows = held.rows()
        held_rows.strict = False
        made(
            held_rows,
            model,
            length,
            0,
            Counts(separator=cfg.separator, held=counts.held, gathers=True),
        )
    made(islice(rows, cfg.limit or None), model, length, cfg.examples, counts)
    unused = rows.unused
    for bad in rows.rejected:
        counts.skip(bad.reason, bad.where)
    return {
        "data": cfg.data,
        "model": cfg.model,
        "form": form,
        "rows": rows.seen - counts.parts,
        "used": counts.used,
        "cut": counts.cut,
        "sequence_length": length if form in ("chat", "preference", "judged", "label") else 0,
        "cut_where": f" {cut_where(model.tokenizer)}"
        if form == "label" or model.network.decoder_start_token_id is not None
        else "",
        "skipped": {
            reason: {"count": count, "first": where}
            for reason, (count, where) in counts.skipped.items()
        },
        "bad_share": cfg.bad_share,
        "refused": counts.bad > cfg.bad_share * rows.seen,
        "held_out": not counts.used and HELD_TOO in counts.skipped,
        "whole": not cfg.limit or rows.seen < cfg.limit,
        "unused": {
            name: {"count": count, "first": where} for name, (count, where) in unused.items()
        },
        "notes": list(rows.notes),
        "tokens": counts.tokens,
        "learned": counts.learned,
        "examples": counts.examples,
        "spelt": counts.spelt.told(form == "text" and not cfg.separator) if counts.spelt else [],
    }


def _reader(cfg: DataConfig) -> Model:
    """The model without its weights: what it makes of a text."""
    folder = find_model(cfg.model)
    shape = load_config(whole_folder(folder))
    tokenizer = tokenizer_of(folder, shape)
    tokenizer = add_template(tokenizer, cfg.chat_template) if cfg.chat_template else tokenizer
    return Model(shape, {}, with_template_kwargs(tokenizer, cfg.chat_template_kwargs), folder)


def render(shown: dict[str, Any], color: str = "never") -> str:
    """What `show` found, safe for a terminal. `color` auto: where stdout is a terminal and NO_COLOR
    is not set.
    """
    if color == "auto":
        color = "always" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else "never"
    marks = LEARNED if color == "always" else BRACKETS
    lines: list[str] = []
    for number, example in enumerate(shown["examples"], 1):
        for part, pieces in example.items():
            if part == "where":
                continue
            name = "" if part == "tokens" else f", {part}"
            lines += [
                f"── {number}{name} ── {sanitize(example['where'], newlines=False)}",
                _marked(pieces, marks),
                "",
            ]
    return "\n".join(lines + _told(shown, marks))


def _told(shown: dict[str, Any], marks: tuple[str, str]) -> list[str]:
    rows = f"{shown['rows']:,} row{'s' * (shown['rows'] != 1)}"
    rows = rows if shown["whole"] else f"the first {rows}"
    lines = [
        f"{sanitize(shown['data'], newlines=False)}: {rows}, read as {shown['form']} (for {_MEANS[shown['form']]})"
    ]
    said = f"{shown['used']:,} used, {shown['cut']:,} cut"
    if shown["sequence_length"]:
        said += f" at {shown['sequence_length']} tokens{shown['cut_where']}"
    skipped = sum(entry["count"] for entry in shown["skipped"].values())
    lines.append(f"{said}, {skipped:,} left out")
    worst = sorted(shown["skipped"].items(), key=lambda item: -item[1]["count"])
    for reason, entry in worst[:SHOWN_REASONS]:
        first = f" (first: {sanitize(entry['first'], newlines=False)})" if entry["first"] else ""
        lines.append(f"  {entry['count']:,} × {sanitize(reason, newlines=False, limit=200)}{first}")
    if len(worst) > SHOWN_REASONS:
        lines.append(f"  and {len(worst) - SHOWN_REASONS:,} other reasons")
    if shown["refused"]:
        lines.append(
            f"a stage would refuse this data: more than {100 * shown['bad_share']:g} % of its rows are bad"
        )
    if shown["held_out"]:
        lines.append("a stage would refuse this data: all of it is held out too")
    lines += [
        f"{sanitize(line, newlines=False)}; shown with {SIGN} before it" for line in shown["spelt"]
    ]
    if told := telling(
        {name: (entry["count"], entry["first"]) for name, entry in shown["unused"].items()}
    ):
        lines.append(sanitize(told, newlines=False))
    lines += [sanitize(note, newlines=False) for note in shown["notes"]]
    share = f" ({shown['learned'] / shown['tokens']:.0%})" if shown["tokens"] else ""
    lines.append(
        f"{shown['tokens']:,} tokens, {shown['learned']:,} of them learned{share}: "
        f"{marks[0]}what is learned looks like this{marks[1]}"
    )
    return lines


def _marked(pieces: Pieces, marks: tuple[str, str]) -> str:
    out, room = [], SHOWN_TEXT
    for text, learned in pieces:
        safe = sanitize(text, limit=max(room, 40))
        room -= len(safe)
        # A colour that goes on over a line's end would fill the terminal's whole line on some of
        # them.
        out.append(
            "\n".join(f"{marks[0]}{line}{marks[1]}" for line in safe.split("\n"))
            if learned and marks is LEARNED
            else f"{marks[0]}{safe}{marks[1]}"
            if learned
            else safe
        )
        if room <= 0:
            break
    return "".join(out)


def _form(rows: Rows, cfg: DataConfig, model: Model) -> str:
    """What the first row is that has a form. Raises UserError, with the first row's reason, where
    none has.
    """
    why = ""
    for row, where in islice(rows, 1000):
        if (
            (isinstance(model.cfg, EncoderConfig) or model.cfg.num_labels > 1)
            and isinstance(row.get(cfg.text), str)
            and isinstance(row.get(cfg.label), str | int)
        ):
            return "label"
        try:
            return form_of(row)
        except BadRow as error:
            why = why or f"{where}: {error}"
    if rows.rejected:
        first = f"{rows.rejected[0].where}: {rows.rejected[0].reason}"
    else:
        first = "no row can be read"
    raise UserError(f"nothing to learn from in it; {why or first}", where=cfg.data)


def form_of(row: Row) -> str:
    """text, chat, preference, judged or prompt. Raises BadRow for a row of no known form."""
    if "chosen" in row and "rejected" in row:
        return "preference"
    if is_judged(row) and isinstance(dict.get(Record.of(row), "label"), bool):
        return "judged"
    if isinstance(row.get("text"), str):
        return "text"
    try:
        if to_chat(row)["messages"][-1]["role"] == "assistant":
            return "chat"
        return "prompt"
    except BadRow:
        to_prompt(row)
        return "prompt"


# ---- one function a form: rows → counts and examples ----------------------------------------------------------------

Records = Iterable[tuple[Record, str]]


def _texts(rows: Records, model: Model, length: int, examples: int, counts: Counts) -> None:
    tokenizer = model.tokenizer
    document, goes_on = _Document(), False
    for text, where in _documents(rows, counts):
        more = isinstance(text, Part) and text.more
        said = tokenizer.encode(text) if goes_on else tokenizer.encode_document(text)
        ids, goes_on = np.array([*said, *([] if more else [tokenizer.eos_id])], np.int32), more
        document.take(ids)
        if not counts.gathers:
            seen, learned, targets = _pretrained(ids, model, length)
            # what opens and closes a row may be written too
            document.tokens += max(len(ids), targets)
            document.learned += targets
            if len(counts.examples) + len(document.examples) < examples:
                document.examples.append(
                    {"where": where, "tokens": pieces(seen, learned, tokenizer)}
                )
        counts.parts += more
        if not more:
            _finish(document, where, counts)
            document = _Document()
    if goes_on:  # of the last document not all was read
        _finish(document, "", counts)


class _Document:
    """What is known of a document once some parts of it were read."""

    def __init__(self) -> None:
        self.tokens = self.learned = 0
        self.examples: list[dict[str, Any]] = []
        self._hash = hashlib.blake2b(digest_size=8)

    def take(self, ids: NDArray[np.int32]) -> None:
        self._hash.update(ids.tobytes())

    @property
    def key(self) -> int:
        return int.from_bytes(self._hash.digest(), "little")


def _finish(document: _Document, where: str, counts: Counts) -> None:
    if not counts.held_out(document.key, where):
        counts.use(document.tokens, document.learned, False)
        counts.examples += document.examples


def _documents(rows: Records, counts: Counts) -> Iterator[tuple[str, str]]:
    for text, where in _made(rows, to_text, counts):
        for document in separated([text], counts.separator):
            if counts.spelt is not None:
                counts.spelt.look(document)
            yield document, where


def _pretrained(
    ids: NDArray[np.int32], model: Model, length: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    """Tokens of a text as the model learns it, which of them are learned, and how many are in all:
    every token, what is hidden, or what is written after a text with holes. Of the last two the
    text's first row is shown."""
    if objective(model.cfg) == "causal" or len(ids) < 2:
        return ids, np.ones(len(ids), np.bool_), len(ids)
    source = source_of(
        PretrainConfig(sequence_length=most_of(model, length), batch_size=16), model
    )(ids)
    batches = source.eval_batches(None)
    batch = next(batches)
    real = batch["weights"] > 0
    targets = int(real.sum()) + sum(int((later["weights"] > 0).sum()) for later in batches)
    if "source_ids" in batch:
        first = real & (batch["index"] < batch["ids"].shape[1])
        read, written = (
            batch["source_ids"][0, : batch["source_lengths"][0]],
            batch["targets"][first],
        )
        return (
            np.concatenate([read, written]),
            np.arange(len(read) + len(written)) >= len(read),
            targets,
        )
    learned = np.zeros(batch["ids"].shape, np.bool_)
    learned.reshape(-1)[batch["index"][real]] = True
    kept = batch["segments"][0] > 0
    return batch["ids"][0][kept], learned[0][kept], targets


def _labelled(
    rows: Records,
    model: Model,
    length: int,
    examples: int,
    counts: Counts,
    *,
    columns: Mapping[str, str],
) -> None:
    for row, where in rows:
        try:
            labelled = to_label(row, **columns)
        except Unlabelled as error:
            row.bad = True
            counts.skip(str(error), where, False)
            continue
        except BadRow as error:
            row.bad = True
            counts.skip(str(error), where)
            continue
        if counts.held_out(key_of([labelled.text, labelled.pair]), where):
            continue
        (ids,), _, cut = text_inputs([labelled], model, length)
        counts.use(len(ids), 1, bool(cut))
        if len(counts.examples) < examples:
            shown = pieces(ids, np.zeros(len(ids), np.bool_), model.tokenizer)
            counts.examples.append(
                {"where": where, "tokens": [*shown, (f" {labelled.label}", True)]}
            )


def _chats(rows: Records, model: Model, length: int, examples: int, counts: Counts) -> None:
    tokenizer = model.tokenizer
    count = _count if model.network.decoder_start_token_id is None else _count_answers
    # One chat at a time where it is shown, a thousand at once where it is only counted.
    found = _learned_from(_made(rows, to_chat, counts), lambda chat: chat["messages"], counts)
    for chat, where in islice(found, examples):
        try:
            count(
                encode_chat(chat["messages"], tokenizer), where, tokenizer, length, examples, counts
            )
        except BadRow as error:
            counts.skip(str(error), where)
    places: list[str] = []

    def messages() -> Iterator[Any]:
        for chat, where in found:
            places.append(where)
            yield chat["messages"]

    count(
        encode_chats(messages(), tokenizer, reject=lambda n, why: counts.skip(why, places[n])),
        "",
        tokenizer,
        length,
        0,
        counts,
    )


def _count(
    made: Iterable[ChatRow],
    where: str,
    tokenizer: Tokenizer,
    length: int,
    examples: int,
    counts: Counts,
) -> None:
    for row in made:
        kept, cut = fitted_length(row.mask, length)
        if not kept:
            counts.skip(
                "nothing of an answer is within sequence_length" if cut else "no answer to learn",
                where,
                False,
            )
            continue
        counts.use(kept, int(row.mask[:kept].sum()), cut)
        if len(counts.examples) < examples:
            # all of it where nothing is cut: what follows the last target is left out of the row,
            # but is worth a look
            end = kept if cut else len(row.ids)
            counts.examples.append(
                {"where": where, "tokens": pieces(row.ids[:end], row.mask[:end], tokenizer)}
            )


def _count_answers(
    made: Iterable[ChatRow],
    where: str,
    tokenizer: Tokenizer,
    length: int,
    examples: int,
    counts: Counts,
) -> None:
    """Answers whose prompts are read beside them, by the rule of `CompletionSource`."""
    for chat in made:
        answers, skipped = counted_answers(ChatRows.of([chat]))
        for _ in range(skipped):
            counts.skip("no answer to learn, or nothing before it", where, False)
        for answer in answers:
            row = fitted_row(answer, length, tokenizer)
            counts.use(row.length, len(row.completion), row.length < answer.length)
            if len(counts.examples) < examples:
                ids = np.concatenate([row.prompt, row.completion]).astype(np.int32)
                counts.examples.append(
                    {
                        "where": where,
                        "tokens": pieces(ids, np.arange(row.length) >= len(row.prompt), tokenizer),
                    }
                )


def _pairs(
    rows: Records, model: Model, length: int, examples: int, counts: Counts, judged: bool = False
) -> None:
    tokenizer = model.tokenizer
    made_pairs = _made(rows, to_judged if judged else to_pair, counts)
    for pair, where in _learned_from(made_pairs, lambda pair: pair["prompt"], counts):
        try:
            made = to_tokens(pair, tokenizer)
        except BadRow as error:
            counts.skip(str(error), where)
            continue
        if made.places(model.network.decoder_start_token_id) > length:
            counts.skip(f"longer than {length} tokens", where, False)
            continue
        if judged:
            sides = {"good" if made.label > 0 else "bad": made.chosen}
        else:
            sides = {"chosen": made.chosen, "rejected": made.rejected}
        counts.use(
            sum(side.length for side in sides.values()),
            sum(len(s.completion) for s in sides.values()),
            False,
        )
        if len(counts.examples) < examples:
            counts.examples.append(
                {
                    "where": where,
                    **{
                        name: pieces(
                            np.array([*side.prompt, *side.completion], np.int32),
                            np.arange(side.length) >= len(side.prompt),
                            tokenizer,
                        )
                        for name, side in sides.items()
                    },
                }
            )


def _prompts(rows: Records, model: Model, length: int, examples: int, counts: Counts) -> None:
    tokenizer = model.tokenizer
    for (messages, _), where in _learned_from(
        _made(rows, to_prompt, counts), lambda prompt: prompt[0], counts
    ):
        try:
            ids = np.array(prompt_ids(messages, tokenizer), np.int32)
        except BadRow as error:
            counts.skip(str(error), where)
            continue
        counts.use(len(ids), 0, False)
        if len(counts.examples) < examples:
            counts.examples.append(
                {"where": where, "tokens": pieces(ids, np.zeros(len(ids), np.bool_), tokenizer)}
            )


_FORMS: dict[str, Callable[[Records, Model, int, int, Counts], None]] = {
    "text": _texts,
    "chat": _chats,
    "preference": _pairs,
    "judged": partial(_pairs, judged=True),
    "prompt": _prompts,
}


def _made(rows: Records, make: Callable[[Row], Any], counts: Counts) -> Iterator[tuple[Any, str]]:
    for row, where in rows:
        try:
            made = make(row)
        except BadRow as error:
            row.bad = True
            counts.skip(str(error), where)
        else:
            if counts.spelt is not None and not isinstance(
                made, str
            ):  # of a text each document is looked at
                counts.spelt.look(made)
            yield made, where


def _learned_from(
    made: Iterable[tuple[Any, str]], said: Callable[[Any], Any], counts: Counts
) -> Iterator[tuple[Any, str]]:
    """Those of which what is `said` is not held out."""
    for one, where in made:
        if not counts.held_out(key_of(said(one)), where):
            yield one, where


def pieces(ids: NDArray[np.int32], learned: NDArray[np.bool_], tokenizer: Tokenizer) -> Pieces:
    """Runs of tokens that are learned, or not, as text with the special tokens in it."""
    borders = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    return [
        (shown_text(ids[a:b], tokenizer), bool(learned[a]))
        for a, b in zip(borders, borders[1:], strict=False)
        if b > a
    ]
