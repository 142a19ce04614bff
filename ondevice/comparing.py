"""The same prompts answered by two models, side by side."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ondevice.config.use import CompareConfig
from ondevice.data.formats import BadRow, to_prompt
from ondevice.data.readers import read
from ondevice.decoding import Generator
from ondevice.errors import UserError
from ondevice.inert import inert
from ondevice.stages.asked import need_template
from ondevice.talk import chat_ids, find_model, open_model, sampling

Messages = list[dict[str, Any]]
NARROW = 80  # columns under which two answers do not stand beside each other


def compare(cfg: CompareConfig) -> dict[str, Any]:
    """{"models": [A, B], "answers": [{"prompt", "first", "second"}, …], "same": prompts answered alike}.

    One model is in memory at a time. What models write is untrusted: make it inert before showing it. Raises UserError
    for a file without prompts, for a model without a chat template, and for a prompt that a context does not hold.
    """
    cfg.check()
    asked = _prompts(cfg)
    folders = [str(find_model(path)) for path in (cfg.model, cfg.other)]
    first, second = (_answers(folder, asked, cfg) for folder in folders)
    answers = [{"prompt": str(messages[-1]["content"]), "first": one, "second": other}
               for messages, one, other in zip(asked, first, second, strict=True)]
    return {"models": folders, "answers": answers, "same": sum(row["first"] == row["second"] for row in answers)}


def render(found: Mapping[str, Any], width: int = 0) -> str:
    """Two columns, or one answer under the other where the terminal is narrow; all of it inert."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size((100, 24)).columns
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    names = [f"{letter}: {inert(path, newlines=False)}" for letter, path in zip("AB", found["models"], strict=True)]
    for row in found["answers"]:
        console.print(Text("> " + inert(row["prompt"])))
        said = [Text(inert(row[side]).strip() or "(nothing)") for side in ("first", "second")]
        if width < NARROW:
            for letter, text in zip("AB", said, strict=True):
                console.print(Padding(Text(f"{letter}: ").append(text), (0, 0, 0, 2)))
        else:
            table = Table.grid(padding=(0, 2, 0, 2), expand=True)
            for _ in names:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*(Text(f"{letter}: ").append(text) for letter, text in zip("AB", said, strict=True)))
            console.print(table)
        console.print()
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, *names, f"{found['same']} of {len(found['answers'])} answers are the same"])


def _prompts(cfg: CompareConfig) -> list[Messages]:
    """Conversations that end with the user; a plain text is one prompt."""
    rows, found = read(cfg.prompts), []
    for row, where in rows:
        try:
            found.append(to_prompt({"prompt": row["text"]} if set(row) == {"text"} else row)[0])
        except BadRow as error:
            rows.reject(where, str(error), row)
    rows.check()
    if not found:
        raise UserError("holds no prompts", where=cfg.prompts, hint="give rows of prompt, question or messages")
    return found[:cfg.limit] if cfg.limit else found


def _answers(folder: str, asked: Sequence[Messages], cfg: CompareConfig) -> list[str]:
    """One model's answers; it is forgotten afterwards."""
    model, backend = open_model(replace(cfg, model=folder))
    need_template(model)
    generator = Generator(model, backend, sampling(cfg))
    drawn = generator.run(model.params, [chat_ids(messages, model) for messages in asked])
    return [model.tokenizer.decode(completion.ids) for completion in drawn]
