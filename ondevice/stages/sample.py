"""Stage 3, first step: several different responses to each prompt, into ratings.db.

A response follows from the weights, the seed and the prompt's number alone. Pairs are queued some
prompts at a time, each time all or nothing: a resumed stage goes on after the last ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.config.preference import SampleConfig
from ondevice.data.chat_encoding import with_template_kwargs
from ondevice.datasets.prompts import Prompt, prompts
from ondevice.datasets.spec import DataSpec
from ondevice.models.load import load_generative
from ondevice.preferences.database import Ratings
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import Response
from ondevice.rl.rollout import Sampled, Sampler
from ondevice.runs.context import Context, StageResult

TRIES = 3  # candidates for each response: what is said twice is no choice
TOGETHER = 64  # prompts between two commits


def run(cfg: SampleConfig, ctx: Context) -> StageResult:
    model = load_generative(cfg.model, ctx.backend)
    models = [model] if not cfg.other else [model, load_generative(cfg.other, ctx.backend)]
    model, *_ = models = [
        replace(m, tokenizer=with_template_kwargs(m.tokenizer, cfg.chat_template_kwargs))
        for m in models
    ]
    if len({m.tokenizer.sha256() for m in models}) > 1:
        raise UserError(
            "has another tokenizer than the model",
            where=cfg.other,
            hint="compare models of one family",
        )
    samplers = [
        Sampler(
            m,
            ctx.backend,
            temperature=cfg.temperature,
            max_new_tokens=cfg.max_new_tokens,
            seed=cfg.seed,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
            batch_size=cfg.batch_size,
        )
        for m in models
    ]
    names = [source_name(Path(m.folder)) for m in models]
    asked = prompts(DataSpec.of(cfg), "all", model, cfg.max_new_tokens, ctx)[: cfg.prompts or None]
    batch = f"{'-'.join(names)}-{ctx.fingerprint.get('model', '')[:6]}-{cfg.seed}"
    queued = 0
    with Ratings.open(cfg.ratings or ctx.folder.path.parent / FILE, create=True) as ratings:
        before = {item.meta.get("number") for item in ratings.items(batch)}
        first = max((n for n in before if isinstance(n, int)), default=-1) + 1
        with ctx.progress(len(asked), first) as bar:
            # prompts are always drawn with the same others: rounding may follow from a batch's
            # shape
            for start in range(first // TOGETHER * TOGETHER, len(asked), TOGETHER):
                group, began = asked[start : start + TOGETHER], ticks()
                drawn = [
                    s.draw(
                        m.params,
                        [a.ids for a in group],
                        per_prompt(cfg),
                        stage=f"sample {n}",
                        first=start * per_prompt(cfg),
                    )
                    for n, (s, m) in enumerate(zip(samplers, models, strict=True))
                ]
                with ratings.transaction():
                    for n, one in enumerate(group):
                        chosen = distinct(drawn, names, n, cfg)
                        if start + n >= first and len(chosen) == cfg.responses:
                            ratings.add(
                                batch,
                                one.messages,
                                chosen,
                                meta=about(one, start + n),
                                seed=cfg.seed,
                            )
                            queued += 1
                tokens = sum(len(s.ids) for some in drawn for s in some)
                done = min(start + TOGETHER, len(asked))
                alike = done - len(before) - queued
                rate = tokens / max(ticks() - began, 1e-9)
                ctx.events.emit(
                    "step", done, queued=len(before) + queued, alike=alike, tokens_per_second=rate
                )
                bar.update(done, {"queued": len(before) + queued, "tokens_per_second": rate})
                if ctx.stop.requested and done < len(asked):
                    raise Interrupted(f"stopped after {done} prompts, saved")
    alike = len(asked) - len(before) - queued
    ctx.say(
        f"{ctx.name}: {len(before) + queued:,} prompts with {cfg.responses} different responses each"
        + (f"; {alike:,} whose answers were all the same are left out" if alike else "")
    )
    if not before and not queued:
        raise UserError("always gives the same answer", where=cfg.model, hint="raise --temperature")
    return StageResult(None, {"queued": len(before) + queued, "alike": alike})


def per_prompt(cfg: SampleConfig) -> int:
    if cfg.other:
        return TRIES
    return cfg.responses * TRIES - 2


def distinct(
    drawn: Sequence[Sequence[Sampled]], names: Sequence[str], n: int, cfg: SampleConfig
) -> list[Response]:
    """Prompt n's responses, each with another text: the first ones drawn, one of each model where
    there are two.
    """
    each = per_prompt(cfg)
    chosen: dict[str, Response] = {}
    for some, name in zip(drawn, names, strict=True):
        for s in some[n * each : (n + 1) * each]:
            if s.text in chosen or not s.text.strip():
                continue
            meta = {"tokens": len(s.ids), "stopped": s.stopped, "temperature": cfg.temperature}
            chosen[s.text] = Response(s.text, name, meta)
            if cfg.other or len(chosen) == cfg.responses:
                break
    return list(chosen.values())


def about(asked: Prompt, number: int) -> dict[str, object]:
    """What is kept of a prompt beside its text: whatever the data knows of it."""
    plain = {k: v for k, v in asked.known.items() if isinstance(v, str | int | float | bool)}
    return {"number": number, **plain}


def source_name(folder: Path) -> str:
    """runs/tiny/sft/model is called tiny-sft; any other folder by its own name."""
    folder = folder.resolve()
    if folder.name == "model" and (folder.parent / "lock").exists():
        return f"{folder.parent.parent.name}-{folder.parent.name}"
    return folder.name
