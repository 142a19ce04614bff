"""Data as a model will see it: a few examples with what is learned of them marked, and what becomes
of every row.

Whoever trains on the wrong tokens finds out after hours, or never. The same code that prepares a
stage's rows makes what is shown here: templates, masks, cuts and reasons are the stage's own.
`preview_forms.py` counts the rows of each form.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.data import DataConfig
from ondevice.config.effects import idle
from ondevice.data.chat_encoding import (
    add_template,
    with_template_kwargs,
)
from ondevice.data.formats import to_chat, to_prompt
from ondevice.data.messages import BadRow, Row
from ondevice.data.mixture import sources
from ondevice.data.preference_formats import is_judged
from ondevice.data.row_keys import Record, telling
from ondevice.data.rows import Reading, Rows, read
from ondevice.data.special_token_text import SIGN, Spelt
from ondevice.data.truncation import cut_where
from ondevice.datasets import document_preview
from ondevice.datasets.preview_forms import HELD_TOO, Count, Counts, Pieces, counter_of
from ondevice.datasets.spec import DataSpec
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.load import tokenizer_of
from ondevice.models.model import Model
from ondevice.models.model_folder import whole_folder
from ondevice.models.network import objective
from ondevice.models.registry import load_config
from ondevice.runs.resolve import find_model
from ondevice.training.defaults import MOST_TEXT, row_length

LEARNED = ("\x1b[30;42m", "\x1b[0m")  # black on green, in every palette of 16 colours
BRACKETS = ("⟦", "⟧")
SHOWN_REASONS = 8
SHOWN_TEXT = 6000  # characters of one example
_MEANS = {
    "text": "pretrain",
    "label": "classify",
    "chat": "sft",
    "preference": "reward and dpo",
    "judged": "dpo --loss-type kto",
    "prompt": "grpo and ppo",
}
_CUT = ("chat", "preference", "judged", "label")  # forms of which sequence_length cuts rows


def show(cfg: DataConfig) -> dict[str, Any]:
    """The form of the rows, counts and examples, each {"where", parts: [[text, learned], …]}: raw
    text of a file, make it inert before showing it; of documents, without a model, what
    `document_preview.show` says. Raises UserError for data or a model that
    cannot be read, or where no row has a form."""
    cfg.check()
    if len(sources(cfg.data)) > 1:
        raise UserError("names several sources", where=cfg.data, hint="look at one at a time")
    if not cfg.model:
        return document_preview.show(cfg, _documents(cfg))
    rows = read(cfg.data, strict=False, reading=Reading.of(cfg))
    model = _reader(cfg)
    form: str = cfg.form
    if form == "auto":
        form = _form(rows, cfg, model)
    if form not in ("text", "label") and model.tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template", where=cfg.model, hint="give --chat-template chatml"
        )
    # pairs are copied, and their hash taken, where no tokenizer is known
    if form in ("chat", "prompt"):
        rows.template = DataSpec("").for_template(model.tokenizer).template
    _check_effects(cfg, form, model)
    columns = {"text": cfg.text, "label": cfg.label, "pair": cfg.pair}
    count = counter_of(form, columns)
    length = cfg.sequence_length or _usual_length(cfg, form, model, rows, count)
    counts = Counts(
        most_examples=cfg.examples,
        spelt=Spelt(model.tokenizer),
        separator=cfg.separator,
        held=_held_out(cfg, model, length, count),
    )
    count(islice(rows, cfg.limit or None), model, length, counts)
    unused = rows.unused
    for bad in rows.rejected:
        counts.skip(bad.reason, bad.where)
    shown = {
        "data": cfg.data,
        "model": cfg.model,
        "form": form,
        "rows": rows.seen - counts.parts,
        "used": counts.used,
        "cut": counts.cut,
        "sequence_length": length if form in _CUT else 0,
        "cut_where": _cut_where(form, model),
        "skipped": _entries(counts.skipped),
        "bad_share": cfg.bad_share,
        "refused": counts.bad > cfg.bad_share * rows.seen,
        "held_out": not counts.used and HELD_TOO in counts.skipped,
        "whole": not cfg.limit or rows.seen < cfg.limit,
        "unused": _entries(unused),
        "notes": list(rows.notes),
        "tokens": counts.tokens,
        "learned": counts.learned,
        "examples": counts.examples,
        "spelt": [],
    }
    if counts.spelt is not None:
        shown["spelt"] = counts.spelt.told(form == "text" and not cfg.separator)
    return shown


def _documents(cfg: DataConfig) -> list[Path]:
    """The documents of a folder, which are shown without a model. Raises UserError where there is none."""
    files = document_preview.files_of(cfg.data)
    if files:
        return files
    beside = document_preview.beside_rows(cfg.data)
    if beside:
        raise UserError(
            f"its rows (.jsonl, .csv, …) are read, and {beside:,} documents beside them are not",
            where=cfg.data,
            hint="put the documents into a folder of their own, or give --model to see the rows",
        )
    raise UserError(
        "no model was named", where="model", hint="give the model that is to learn from this data"
    )


def _usual_length(cfg: DataConfig, form: str, model: Model, rows: Rows, count: Count) -> int:
    """The sequence_length that a stage takes by itself for these rows."""
    context = model.cfg.max_position_embeddings
    if form not in _CUT:
        return min(context, MOST_TEXT)
    whole = Counts(held=_held_out(cfg, model, context, count))
    count(islice(rows, cfg.limit or None), model, context, whole)
    if not whole.lengths:
        return context
    return row_length(np.array(whole.lengths), context)


def _check_effects(cfg: DataConfig, form: str, model: Model) -> None:
    """Raises UserError for a setting without effect on rows of this form: where `cfg.form` is auto,
    a person learns only here what it is."""
    known: Any = form
    for name, effect in idle(replace(cfg, form=known)):
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


def _held_out(cfg: DataConfig, model: Model, length: int, count: Count) -> set[int]:
    """Hashes of what `cfg.validation`, or the folder of the data itself, holds out."""
    whole = DataSpec(cfg.data, cfg.validation, reading=Reading.of(cfg))
    apart = whole.held()
    if not apart:
        named = whole.named_held()
        if named is not None:
            apart = [named]
    gathered = Counts(separator=cfg.separator, gathers=True)
    for source in apart:
        rows = source.rows()
        rows.strict = False
        count(rows, model, length, gathered)
    return gathered.held


def _cut_where(form: str, model: Model) -> str:
    """Where a text that is too long is cut, after a space; empty where every stage cuts its end."""
    if form == "label" or model.network.decoder_start_token_id is not None:
        return f" {cut_where(model.tokenizer)}"
    return ""


def _entries(counts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: [how many, where the first one is]} with these two by name, for JSON."""
    return {name: {"count": count, "first": where} for name, (count, where) in counts.items()}


def _reader(cfg: DataConfig) -> Model:
    """The model without its weights: what it makes of a text."""
    folder = find_model(cfg.model)
    shape = load_config(whole_folder(folder))
    tokenizer = tokenizer_of(folder, shape)
    if cfg.chat_template:
        tokenizer = add_template(tokenizer, cfg.chat_template)
    return Model(shape, {}, with_template_kwargs(tokenizer, cfg.chat_template_kwargs), folder)


def _form(rows: Rows, cfg: DataConfig, model: Model) -> str:
    """What the first row is that has a form. Raises UserError, with the first row's reason, where
    none has.
    """
    classifies = isinstance(model.cfg, EncoderConfig) or model.cfg.num_labels > 1
    why = ""
    for row, where in islice(rows, 1000):
        if classifies and _has_label(row, cfg):
            return "label"
        try:
            return form_of(row)
        except BadRow as error:
            if not why:
                why = f"{where}: {error}"
    if rows.rejected:
        first = f"{rows.rejected[0].where}: {rows.rejected[0].reason}"
    else:
        first = "no row can be read"
    raise UserError(f"nothing to learn from in it; {why or first}", where=cfg.data)


def _has_label(row: Row, cfg: DataConfig) -> bool:
    return isinstance(row.get(cfg.text), str) and isinstance(row.get(cfg.label), str | int)


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


# In words


def render(shown: dict[str, Any], color: str = "never") -> str:
    """What `show` found, safe for a terminal. `color` auto: where stdout is a terminal and NO_COLOR
    is not set.
    """
    if "documents" in shown:
        return document_preview.render(shown)
    if color == "auto":
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            color = "always"
        else:
            color = "never"
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
    lines += _counted(shown)
    lines += _warned(shown)
    lines.append(_tokens(shown, marks))
    return "\n".join(lines)


def _counted(shown: dict[str, Any]) -> list[str]:
    """How many rows there are, what is used of them, and why the others are left out."""
    rows = f"{shown['rows']:,} row{'s' * (shown['rows'] != 1)}"
    if not shown["whole"]:
        rows = f"the first {rows}"
    form = shown["form"]
    lines = [
        f"{sanitize(shown['data'], newlines=False)}: {rows}, read as {form} (for {_MEANS[form]})"
    ]
    said = f"{shown['used']:,} used, {shown['cut']:,} cut"
    if shown["sequence_length"]:
        said += f" at {shown['sequence_length']} tokens{shown['cut_where']}"
    skipped = sum(entry["count"] for entry in shown["skipped"].values())
    lines.append(f"{said}, {skipped:,} left out")
    worst = sorted(shown["skipped"].items(), key=lambda item: -item[1]["count"])
    for reason, entry in worst[:SHOWN_REASONS]:
        line = f"  {entry['count']:,} × {sanitize(reason, newlines=False, limit=200)}"
        if entry["first"]:
            line += f" (first: {sanitize(entry['first'], newlines=False)})"
        lines.append(line)
    if len(worst) > SHOWN_REASONS:
        lines.append(f"  and {len(worst) - SHOWN_REASONS:,} other reasons")
    return lines


def _warned(shown: dict[str, Any]) -> list[str]:
    """What a stage would refuse or not use."""
    lines = []
    if shown["refused"]:
        share = 100 * shown["bad_share"]
        lines.append(f"a stage would refuse this data: more than {share:g} % of its rows are bad")
    if shown["held_out"]:
        lines.append("a stage would refuse this data: all of it is held out too")
    for line in shown["spelt"]:
        lines.append(f"{sanitize(line, newlines=False)}; shown with {SIGN} before it")
    unused = {}
    for name, entry in shown["unused"].items():
        unused[name] = (entry["count"], entry["first"])
    remark = telling(unused)
    if remark:
        lines.append(sanitize(remark, newlines=False))
    for note in shown["notes"]:
        lines.append(sanitize(note, newlines=False))
    return lines


def _tokens(shown: dict[str, Any], marks: tuple[str, str]) -> str:
    share = ""
    if shown["tokens"]:
        share = f" ({shown['learned'] / shown['tokens']:.0%})"
    return (
        f"{shown['tokens']:,} tokens, {shown['learned']:,} of them learned{share}: "
        f"{marks[0]}what is learned looks like this{marks[1]}"
    )


def _marked(pieces: Pieces, marks: tuple[str, str]) -> str:
    """The text of an example, what is learned of it between marks, up to SHOWN_TEXT characters."""
    out = []
    room = SHOWN_TEXT
    for text, learned in pieces:
        safe = sanitize(text, limit=max(room, 40))
        room -= len(safe)
        if not learned:
            out.append(safe)
        elif marks is LEARNED:
            # A colour that goes on over a line's end would fill the terminal's whole line on some
            # of them.
            lines = [f"{marks[0]}{line}{marks[1]}" for line in safe.split("\n")]
            out.append("\n".join(lines))
        else:
            out.append(f"{marks[0]}{safe}{marks[1]}")
        if room <= 0:
            break
    return "".join(out)
