"""The fixed prompts and what a model answers. A prompt that ends in … is continued as plain text;
any other is asked as a user's message where the tokenizer has a chat template. Where a model fills
masks, [MASK] is what it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.config.lists import prompts_of
from ondevice.config.stages import TrainingConfig
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.prompts import Prompt
from ondevice.inference.external_generator import generator_of
from ondevice.inference.fill_mask import fill_all
from ondevice.inference.next_token import Sampling
from ondevice.models.model import Model
from ondevice.models.network import is_masked_lm
from ondevice.runs.context import Context
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Backend

CONTINUED = "…"
LONGEST = 48
HELD = 3  # held-out prompts that are asked where none are given
MOST = 20  # prompts of a file
SHOWN = 300  # characters of a held-out prompt that are shown
_ROLES = re.compile(r"\A\s*(?:user|human)\b:?\s*|\s*\b(?:assistant|model)\b:?\s*\Z", re.IGNORECASE)

Offered = tuple[str, Sequence[int]]
"""A held-out prompt: what is shown of it, and its ids."""


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    if prompt.endswith(CONTINUED):
        opening = tokenizer.prefix_ids or [tokenizer.eos_id]
        return [*opening, *tokenizer.encode(prompt.removesuffix(CONTINUED))]
    if tokenizer.chat_template is None:
        return tokenizer.encode_document(prompt)
    return prompt_ids([{"role": "user", "content": prompt}], tokenizer)


def given_prompts(told: str) -> tuple[str, ...]:
    """The prompts of the setting `sample_prompts`: its parts, or the lines of the file that it
    names. Raises UserError for a file that cannot be read or has none."""
    file = Path(told)
    if told and len(told) < 1000 and "\n" not in told and file.is_file():
        try:
            lines = bounded.read_text(file, 1 << 20).splitlines()
        except (OSError, ValueError) as problem:
            raise UserError(f"cannot be read: {problem}", where=f"sample_prompts: {told}") from None
        found = tuple(part.strip() for part in lines if part.strip())
    else:
        found = prompts_of(told)
    if told and not found:
        raise UserError("has no prompt", where=f"sample_prompts: {told}", hint="write one a line")
    return found[:MOST]


def held_prompts(
    rows: Iterable[Sequence[int]], tokenizer: Tokenizer, texts: Iterable[str] = ()
) -> Iterator[Offered]:
    """Held-out prompts, by their ids; shown are the `texts`, else what the ids say without the
    words for who speaks."""
    shown = iter(texts)
    for ids in rows:
        text = next(shown, None)
        if text is None:
            text = _ROLES.sub("", tokenizer.decode(list(ids)))
        yield " ".join(text.split())[-SHOWN:], list(ids)


def held_questions(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> Iterator[Offered]:
    """Held-out prompts of stages that learn from their own text."""
    rows = (prompt.ids for prompt in prompts)
    return held_prompts(rows, tokenizer, (prompt.text for prompt in prompts))


def answer(
    model: Model, params: Params, backend: Backend, prompts: Sequence[str | Offered]
) -> list[dict[str, str]]:
    """Greedy answers, [{"prompt", "answer"}]; raw model text: make it inert before showing it."""
    if not prompts:
        return []
    shown = [prompt if isinstance(prompt, str) else prompt[0] for prompt in prompts]
    if is_masked_lm(model.cfg):
        return _answered(shown, fill_all(model, params, backend, shown))
    # few prompts, asked rarely: tracing a compiled step would cost more than it saves
    generator = generator_of(
        model, backend, Sampling(max_new_tokens=LONGEST, temperature=0), compile="never"
    )
    encoded: list[Sequence[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            encoded.append(encode_prompt(prompt, model.tokenizer))
        else:
            encoded.append(prompt[1])
    completions = generator.run(params, encoded)
    texts = [model.tokenizer.decode(completion.ids) for completion in completions]
    return _answered(shown, texts)


def _answered(prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        rows.append({"prompt": prompt, "answer": text})
    return rows


def sampler(
    model: Model,
    ctx: Context,
    cfg: TrainingConfig,
    offered: Callable[[], Iterable[Offered]] = tuple,
) -> Callable[[int, Params], None]:
    """For the loop: answers the fixed prompts and keeps them: the settings', else the run's, else
    the first of those that are `offered`, which leave room for an answer. Raises UserError as
    `given_prompts`."""
    own = given_prompts(cfg.sample_prompts)
    if own:
        ctx.asked = own
    elif not ctx.shared.prompts and not is_masked_lm(model.cfg):
        most = model.cfg.max_position_embeddings - LONGEST
        fitting = (prompt for prompt in offered() if 0 < len(prompt[1]) <= most)
        ctx.asked = tuple(islice(fitting, HELD))

    def sample(step: int, params: Params) -> None:
        ctx.keep_samples(step, answer(model, params, ctx.backend, ctx.prompts))

    return sample
