"""Stage 3, first step: several different responses to each prompt, into ratings.db.

A response follows from the weights, the seed and the prompt's number alone. Pairs are queued some
prompts at a time, each time all or nothing: a resumed stage goes on after the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ondevice.common.clock import ticks
from ondevice.common.errors import Interrupted, UserError
from ondevice.config.preference import SampleConfig
from ondevice.data.chat_encoding import with_template_kwargs
from ondevice.datasets.prompts import Prompt, prompts
from ondevice.datasets.spec import DataSpec
from ondevice.models.load import load_generative
from ondevice.models.model import Model
from ondevice.preferences.database import Ratings
from ondevice.preferences.distinct import TRIES, DistinctResponses
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.votes import Response
from ondevice.rl.micro_batches import decode_batch
from ondevice.rl.rollout import Sampled, Sampler, count_tokens
from ondevice.runs.context import Context, StageResult
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.training.rows_at_once import ROLLOUT, RowsAtOnce

TOGETHER = 64  # prompts between two commits


def run(cfg: SampleConfig, ctx: Context) -> StageResult:
    models = _models(cfg, ctx.backend)
    samplers = [_sampler(model, cfg, ctx.backend) for model in models]
    all_prompts = prompts(DataSpec.of(cfg), "all", models[0], cfg.max_new_tokens, ctx.data)
    all_prompts = all_prompts[: cfg.prompts or None]
    ctx.tell_foreseen()
    rows = _rows_at_once(cfg, ctx, models[0], all_prompts)
    with _queue(cfg, ctx, models) as queue, ctx.progress(len(all_prompts), queue.first) as bar:
        # prompts are always drawn with the same others: rounding may follow from a batch's
        # shape
        for start in range(queue.first // TOGETHER * TOGETHER, len(all_prompts), TOGETHER):
            began = ticks()
            group = all_prompts[start : start + TOGETHER]

            def draw(group: Sequence[Prompt] = group, start: int = start) -> list[list[Sampled]]:
                return _draw(group, start, models, samplers, cfg, ctx)

            drawn = rows.attempt(start, ROLLOUT, draw)
            queue.add(group, start, drawn)
            tokens = sum(map(count_tokens, drawn))
            done = min(start + TOGETHER, len(all_prompts))
            rate = tokens / max(ticks() - began, 1e-9)
            ctx.events.emit(
                "step",
                done,
                queued=queue.queued,
                alike=done - queue.queued,
                tokens_per_second=rate,
            )
            bar.update(done, {"queued": queue.queued, "tokens_per_second": rate})
            if ctx.wishes()[0] and done < len(all_prompts):
                raise Interrupted(f"stopped after {done} prompts, saved")
    alike = len(all_prompts) - queue.queued
    line = f"{queue.queued:,} prompts with {cfg.responses} different responses each"
    if alike:
        line += f"; {alike:,} whose answers were all the same are left out"
    ctx.tell(line)
    if not queue.queued:
        raise UserError("always gives the same answer", where=cfg.model, hint="raise --temperature")
    return StageResult(None, {"queued": queue.queued, "alike": alike})


def _models(cfg: SampleConfig, backend: Backend) -> list[Model]:
    """The model and, where one is named, the other one that it is compared with. Raises UserError
    where their tokenizers differ.
    """
    models = [load_generative(cfg.model, backend)]
    if cfg.other:
        models.append(load_generative(cfg.other, backend))
    models = [_with_template_settings(model, cfg) for model in models]
    if len({model.tokenizer.sha256() for model in models}) > 1:
        raise UserError(
            "has another tokenizer than the model",
            where=cfg.other,
            hint="compare models of one family",
        )
    return models


def _with_template_settings(model: Model, cfg: SampleConfig) -> Model:
    return replace(model, tokenizer=with_template_kwargs(model.tokenizer, cfg.chat_template_kwargs))


def _rows_at_once(
    cfg: SampleConfig, ctx: Context, model: Model, all_prompts: Sequence[Prompt]
) -> RowsAtOnce:
    """What is written at once: as the settings say, or as suits the machine."""
    rows = RowsAtOnce(ctx, cfg, model)
    rows.load({}, read(ctx.folder.events) if ctx.start.resume else ())
    longest = max((len(prompt.ids) for prompt in all_prompts), default=0)
    decode_batch(ctx, model, longest + cfg.max_new_tokens)
    return rows


def _sampler(model: Model, cfg: SampleConfig, backend: Backend) -> Sampler:
    return Sampler(
        model,
        backend,
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
    )


def _draw(
    group: Sequence[Prompt],
    start: int,
    models: Sequence[Model],
    samplers: Sequence[Sampler],
    cfg: SampleConfig,
    ctx: Context,
) -> list[list[Sampled]]:
    """Each model's completions of the prompts from number `start` on."""
    each = per_prompt(cfg)
    ids = [prompt.ids for prompt in group]
    drawn = []
    for n, (sampler, model) in enumerate(zip(samplers, models, strict=True)):
        sampler.batch_size = ctx.device_batch.decode_batch or sampler.batch_size
        drawn.append(sampler.draw(model.params, ids, each, stage=f"sample {n}", first=start * each))
    return drawn


@contextmanager
def _queue(cfg: SampleConfig, ctx: Context, models: Sequence[Model]) -> Iterator[_PairQueue]:
    """Where pairs are queued: by the first process alone, where there are several."""
    if not ctx.group.leader:
        yield _NoQueue(ctx.group.tell())
        return
    with Ratings.open(cfg.ratings or ctx.folder.path.parent / FILE, create=True) as ratings:
        queue = _PairQueue(cfg, ctx, models, ratings)
        ctx.group.tell(queue.first)
        yield queue


class _PairQueue:
    """The stage's prompts in the ratings: `queued` of them, also by earlier processes; the next one
    to queue has the number `first`.
    """

    def __init__(
        self, cfg: SampleConfig, ctx: Context, models: Sequence[Model], ratings: Ratings
    ) -> None:
        self.cfg = cfg
        self.ratings = ratings
        self.names = [source_name(Path(model.folder)) for model in models]
        model_hash = ctx.start.fingerprint.get("model", "")[:6]
        self.batch = f"{'-'.join(self.names)}-{model_hash}-{cfg.seed}"
        before = {item.meta.get("number") for item in ratings.items(self.batch)}
        self.queued = len(before)
        self.first = max((n for n in before if isinstance(n, int)), default=-1) + 1

    def add(self, group: Sequence[Prompt], start: int, drawn: Sequence[Sequence[Sampled]]) -> None:
        """Queues those of the prompts from number `start` on that have enough different responses
        and are not queued yet: all of them or, where the process is killed, none.
        """
        with self.ratings.transaction():
            for n, prompt in enumerate(group):
                number = start + n
                chosen = distinct(drawn, self.names, n, self.cfg)
                if number < self.first or not chosen.complete:
                    continue
                self.ratings.add(
                    self.batch,
                    prompt.messages,
                    chosen.responses,
                    meta=about(prompt, number),
                    seed=self.cfg.seed,
                )
                self.queued += 1


class _NoQueue(_PairQueue):
    """That of a process which only writes responses."""

    def __init__(self, first: int) -> None:
        self.queued, self.first = 1, first

    def add(self, group: Sequence[Prompt], start: int, drawn: Sequence[Sequence[Sampled]]) -> None:
        """The first process does it."""


def per_prompt(cfg: SampleConfig) -> int:
    """Completions that each model draws of a prompt."""
    if cfg.other:
        return TRIES
    return cfg.responses * TRIES - 2


def distinct(
    drawn: Sequence[Sequence[Sampled]], names: Sequence[str], n: int, cfg: SampleConfig
) -> DistinctResponses:
    """Prompt n's responses: the first ones drawn, one of each model where there are two."""
    each = per_prompt(cfg)
    chosen = DistinctResponses(cfg.responses)
    for completions, name in zip(drawn, names, strict=True):
        for one in completions[n * each : (n + 1) * each]:
            meta = {"tokens": len(one.ids), "stopped": one.stopped, "temperature": cfg.temperature}
            taken = chosen.take(Response(one.text, name, meta))
            if taken and (cfg.other or chosen.complete):
                break
    return chosen


def about(prompt: Prompt, number: int) -> dict[str, object]:
    """What is kept of a prompt beside its text: whatever the data knows of it."""
    known: dict[str, object] = {"number": number}
    for name, value in prompt.known.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, str | int | float | bool) for one in values):
            known[name] = value
    return known


def source_name(folder: Path) -> str:
    """runs/tiny/sft/model is called tiny-sft; any other folder by its own name."""
    folder = folder.resolve()
    if folder.name == "model" and (folder.parent / "lock").exists():
        return f"{folder.parent.parent.name}-{folder.parent.name}"
    return folder.name
