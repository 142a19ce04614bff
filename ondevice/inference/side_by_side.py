"""The same prompts answered by two models, side by side."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.corpus import CorpusConfig
from ondevice.config.use import CompareConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.formats import to_prompt
from ondevice.data.rows import AS_IS, Reading
from ondevice.data.truncation import cut_where
from ondevice.datasets.spec import corpus_of, plain_rows
from ondevice.inference.chat import chat_ids, open_model, sampling
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.inference.together import write_together
from ondevice.models.model import Model, require_chat_template
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend

Messages = list[dict[str, Any]]
NARROW = 80  # columns under which two answers do not stand beside each other


def compare(cfg: CompareConfig) -> dict[str, Any]:
    """{"models": [A, B], "answers": [{"prompt", "first", "second"}, …], "same": prompts answered
    alike}.

    One model is in memory at a time. What models write is untrusted: make it inert before showing
    it. Raises UserError for a file without prompts, for a model without a chat template, and for a
    prompt that a context does not hold.
    """
    cfg.check()
    asked = conversations(cfg.prompts, cfg.limit, Reading.of(cfg))
    folders = [str(find_model(path)) for path in (cfg.model, cfg.other)]
    first = _answered(cfg, folders[0], asked)
    second = _answered(cfg, folders[1], asked)
    rows = []
    same = 0
    for messages, one, other in zip(asked, first, second, strict=True):
        rows.append({"prompt": str(messages[-1]["content"]), "first": one, "second": other})
        same += one == other
    return {"models": folders, "answers": rows, "same": same}


def _answered(cfg: CompareConfig, folder: str, asked: Sequence[Messages]) -> list[str]:
    def note(text: str) -> None:
        print(sanitize(f"compare: {folder}: {text}", newlines=False), file=sys.stderr)

    model, backend = open_model(replace(cfg, model=folder))
    return answers(model, backend, asked, sampling(cfg, model, note))


def render(found: Mapping[str, Any], width: int = 0) -> str:
    """Two columns, or one answer under the other where the terminal is narrow; all of it inert."""
    from rich.console import Console  # up to 90 ms
    from rich.padding import Padding
    from rich.table import Table  # up to 90 ms
    from rich.text import Text

    width = width or shutil.get_terminal_size((100, 24)).columns
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    for row in found["answers"]:
        console.print(Text("> " + sanitize(row["prompt"])))
        sides = []
        for letter, side in (("A", "first"), ("B", "second")):
            answer = sanitize(row[side]).strip() or "(nothing)"
            sides.append(Text(f"{letter}: ").append(Text(answer)))
        if width < NARROW:
            for text in sides:
                console.print(Padding(text, (0, 0, 0, 2)))
        else:
            table = Table.grid(padding=(0, 2, 0, 2), expand=True)
            for _ in sides:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*sides)
            console.print(table)
        console.print()
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    for letter, path in zip("AB", found["models"], strict=True):
        lines.append(f"{letter}: {sanitize(path, newlines=False)}")
    lines.append(f"{found['same']} of {len(found['answers'])} answers are the same")
    return "\n".join(lines)


def conversations(data: str, limit: int = 0, reading: Reading = AS_IS) -> list[Messages]:
    """Conversations that end with the user: of a person's rows, of which a plain text is one
    prompt, or the built-in corpus's held-out prompts. Raises UserError where there are none."""
    corpus = corpus_of(data, CorpusConfig())
    if corpus is not None:
        rows = build(corpus).prompts("heldout")
        found = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    else:
        found = plain_rows(data, _to_messages, reading=reading)
    if not found:
        raise UserError(
            "holds no prompts", where=data, hint="give rows of prompt, question or messages"
        )
    return found[: limit or None]


def _to_messages(row: Mapping[str, Any]) -> Messages:
    """What a row asks; a plain text is a prompt."""
    if set(row) == {"text"}:
        row = {"prompt": row["text"]}
    messages, _ = to_prompt(row)
    return messages


def answers(model: Model, backend: Backend, asked: Sequence[Messages], how: Sampling) -> list[str]:
    """One answer to each conversation. Raises UserError for a model without a chat template, and
    for a prompt that its context does not hold; an encoder-decoder reads a part of it, and stderr
    says so."""
    require_chat_template(model)
    prompts = [chat_ids(messages, model) for messages in asked]
    generator = generator_of(model, backend, how)
    if cut := sum(map(generator.is_cut, prompts)):
        print(
            f"{cut} of {len(prompts)} prompts are cut {cut_where(model.tokenizer)}: {model.folder} reads "
            f"{model.cfg.max_position_embeddings} tokens",
            file=sys.stderr,
        )
    drawn = write_together(generator, model.params, prompts)
    return [model.tokenizer.decode(completion.ids) for completion in drawn]
