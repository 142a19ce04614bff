"""The fixed prompts and what a model answers. A prompt that ends in … is continued as plain text;
any other is asked as a user's message where the tokenizer has a chat template. Where a model fills
masks, [MASK] is what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.tokenizer import Tokenizer
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


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    if prompt.endswith(CONTINUED):
        opening = tokenizer.prefix_ids or [tokenizer.eos_id]
        return [*opening, *tokenizer.encode(prompt.removesuffix(CONTINUED))]
    if tokenizer.chat_template is None:
        return tokenizer.encode_document(prompt)
    return prompt_ids([{"role": "user", "content": prompt}], tokenizer)


def answer(
    model: Model, params: Params, backend: Backend, prompts: Sequence[str]
) -> list[dict[str, str]]:
    """Greedy answers, [{"prompt", "answer"}]; raw model text: make it inert before showing it."""
    if not prompts:
        return []
    if is_masked_lm(model.cfg):
        return _answered(prompts, fill_all(model, params, backend, prompts))
    # few prompts, asked rarely: tracing a compiled step would cost more than it saves
    generator = generator_of(
        model, backend, Sampling(max_new_tokens=LONGEST, temperature=0), compile="never"
    )
    encoded = [encode_prompt(prompt, model.tokenizer) for prompt in prompts]
    completions = generator.run(params, encoded)
    texts = [model.tokenizer.decode(completion.ids) for completion in completions]
    return _answered(prompts, texts)


def _answered(prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        rows.append({"prompt": prompt, "answer": text})
    return rows


def sampler(model: Model, ctx: Context) -> Callable[[int, Params], None]:
    """For the loop: answers the run's prompts and keeps them."""

    def sample(step: int, params: Params) -> None:
        ctx.keep_samples(step, answer(model, params, ctx.backend, ctx.shared.prompts))

    return sample
