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
        return [
            *(tokenizer.prefix_ids or [tokenizer.eos_id]),
            *tokenizer.encode(prompt.removesuffix(CONTINUED)),
        ]
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
        return [
            {"prompt": p, "answer": text}
            for p, text in zip(prompts, fill_all(model, params, backend, prompts), strict=True)
        ]
    # few prompts, asked rarely: tracing a compiled step would cost more than it saves
    generator = generator_of(
        model, backend, Sampling(max_new_tokens=LONGEST, temperature=0), compile="never"
    )
    found = generator.run(params, [encode_prompt(p, model.tokenizer) for p in prompts])
    return [
        {"prompt": p, "answer": model.tokenizer.decode(c.ids)}
        for p, c in zip(prompts, found, strict=True)
    ]


def sampler(model: Model, ctx: Context) -> Callable[[int, Params], None]:
    """For the loop: answers the run's prompts and keeps them."""

    def sample(step: int, params: Params) -> None:
        ctx.keep_samples(step, answer(model, params, ctx.backend, ctx.shared.prompts))

    return sample
