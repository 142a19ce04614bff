"""Stage 1: next-token prediction over packed text."""

from __future__ import annotations

from functools import partial

from ondevice.config.stages import PretrainConfig
from ondevice.context import Context
from ondevice.data.sources import TextSource
from ondevice.errors import UserError
from ondevice.loop import fit
from ondevice.losses import causal_lm_loss
from ondevice.models.folder import Model, load_model
from ondevice.stages import material
from ondevice.stages.answers import sampler
from ondevice.stages.summary import bytes_per_token


def run(cfg: PretrainConfig, ctx: Context) -> Model:
    model = load_model(cfg.model, ctx.backend)
    if cfg.sequence_length > model.cfg.max_position_embeddings:
        raise UserError(f"the model's context holds {model.cfg.max_position_embeddings} tokens",
                        where="sequence_length", hint="give as many or fewer")
    train, held = material.token_streams(cfg.data, cfg.validation, model.tokenizer, ctx)
    rows = partial(TextSource, sequence_length=cfg.sequence_length, batch_size=cfg.batch_size, seed=cfg.seed,
                   isolate_documents=cfg.isolate_documents, eos=model.tokenizer.eos_id)
    measured = rows(held)
    size = bytes_per_token(measured.eval_batches(cfg.eval_batches), model.tokenizer)
    ctx.events.emit("data", tokens=len(train), held_tokens=len(held), held_bytes_per_token=size)
    ctx.say(f"{ctx.name}: {len(train):,} tokens to learn from, {len(held):,} held out")
    loss = partial(causal_lm_loss, model=model.decoder, checkpoint=cfg.checkpointing)
    params = fit(model, loss, rows(train, accumulate=cfg.accumulate), measured, ctx, cfg, sample=sampler(model, ctx))
    return model.with_params(params)
