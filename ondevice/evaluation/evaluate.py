"""What `eval` measures: the built-in held-out sets; of own rows text, chats, problems with known
answers, and pairs of which one was preferred."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.launcher import quiet
from ondevice.config.corpus import CorpusConfig
from ondevice.config.effects import refuse_idle
from ondevice.config.evaluation import BY_ITSELF, TOGETHER, EvalConfig
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import to_mapping
from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import tokenize_corpus
from ondevice.data.chat_encoding import encode_chats
from ondevice.data.rows import LIMIT, Reading
from ondevice.datasets.objectives import most_of, rows_of, source_of
from ondevice.datasets.spec import corpus_of, data_digest, plain_chats, plain_texts
from ondevice.evaluation import preference, problems
from ondevice.evaluation.held_out import (
    ROWS,
    EvalSuite,
    builtin_exam,
    masked_accuracy,
    measure,
    target_figures,
    text_figures,
)
from ondevice.inference import label
from ondevice.inference.chat import with_kwargs
from ondevice.models.digest import model_digest
from ondevice.models.load import labels, load_for_use
from ondevice.models.model import Model, require_generative
from ondevice.models.network import is_masked_lm, objective
from ondevice.runs.folder import StageFolder, holds_model
from ondevice.runs.resolve import find_classifier, find_model, find_reward_model
from ondevice.seam.differences import refuse_differences, versions
from ondevice.seam.protocols import Backend
from ondevice.seam.select import joined, load_backend


def evaluate(cfg: EvalConfig) -> dict[str, Any]:
    """What the model is worth by `cfg.tasks` (`measured`). Started by torchrun or mlx.launch, each
    process measures some of it, and all return the same. Raises UserError for data or tasks that do
    not fit, and where processes differ."""
    cfg.check()
    with joined(cfg.backend, cfg.device) as group:
        if not group.several:
            return measured(cfg)
        with nullcontext() if group.leader else quiet():
            refuse_differences(group, {"versions": versions(), "command": to_mapping(cfg)})
            refuse_differences(group, {"contents": _contents(cfg)})
            return measured(cfg)


def _contents(cfg: EvalConfig) -> dict[str, str]:
    """Hashes of what is read. Raises UserError for what is not there."""
    named = {"other": cfg.against, "reference": cfg.reference}
    found = {name: model_digest(find_model(path)) for name, path in named.items() if path}
    found["model"] = model_digest(_folder(cfg, _by_itself(cfg)))
    if cfg.judge:
        found["judge"] = model_digest(find_reward_model(cfg.judge))
    return {**found, "data": data_digest(cfg.data, "", CorpusConfig())}


def measured(cfg: EvalConfig) -> dict[str, Any]:
    """What `cfg.tasks` name: `problems` (`solving.solved`), `preference` (`judging.preferred`),
    `win` (`judging.duel`), `classes` (`labelling.classified`; a classifier's without being named);
    else, on a person's data, `on_own_data`, and on the built-in held-out sets {"bits_per_byte",
    "exact_match", "by_kind", "reasoning"}, or {"masked_accuracy"} of a model that fills masks.
    Raises UserError for data or tasks that do not fit."""
    alone = _by_itself(cfg)
    tasks: Any = cfg.tasks or ((alone,) if alone else TOGETHER)
    refuse_idle(replace(cfg, tasks=tasks))  # now that they are known
    if alone:
        backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
        task = {
            "problems": problems.solve_rate,
            "preference": preference.preference_accuracy,
            "win": preference.win_rate,
            "classes": label.classified,
        }[alone]
        return task(cfg, _told(load_for_use(_folder(cfg, alone), backend), cfg), backend)
    corpus = corpus_of(cfg.data, CorpusConfig())
    if corpus is None:
        return on_own_data(cfg)
    wanted, limit = cfg.tasks or ("text", "instructions", "reasoning"), cfg.limit or None
    exam = builtin_exam(corpus)
    exam = replace(
        exam,
        documents=exam.documents[:limit] if "text" in wanted else [],
        questions=exam.questions[:limit] if "instructions" in wanted else [],
        problems=exam.problems[:limit] if "reasoning" in wanted else [],
    )
    model, backend = _opened(cfg)
    with tempfile.TemporaryDirectory() as cache:
        return measure(model, backend, exam, Path(cache)).mapping()


def _by_itself(cfg: EvalConfig) -> str:
    """The task that is measured by itself, where it is one."""
    if cfg.tasks and cfg.tasks[0] in BY_ITSELF:
        return cfg.tasks[0]
    if not cfg.tasks and holds_model(folder := find_model(cfg.model)) and labels(folder) > 1:
        return "classes"
    return ""


def _folder(cfg: EvalConfig, alone: str) -> Path:
    """The folder of the measured model. Raises UserError where there is none of its kind."""
    find = {"preference": find_reward_model, "classes": find_classifier}.get(alone, find_model)
    return find(cfg.model)


def on_own_data(cfg: EvalConfig) -> dict[str, Any]:
    """On text: {"bits_per_byte", "perplexity" (of a token), "sequence_length"}, read in rows as
    long as those of the model's training where its run folder tells; {"masked_accuracy"} of a model
    that fills masks, {"loss", "accuracy", "tokens"} of what an encoder-decoder writes into a text
    with holes. On chats, where the model writes and has a chat template: {"loss", "tokens",
    "chats", "cut"} of the assistant's tokens; else they are read as text."""
    if set(cfg.tasks) - {"text"}:
        raise UserError(
            "needs questions with known answers",
            where="tasks",
            hint="--data builtin has them; --tasks problems takes your own",
        )
    limit, reading = cfg.limit or None, Reading.of(cfg)
    chats = plain_chats(cfg.data, reading)
    if chats:
        documents = []
    else:
        documents = plain_texts(cfg.data, "test", reading)[:limit]
    model, backend = _opened(cfg)
    if chats and not is_masked_lm(model.cfg) and model.tokenizer.chat_template is not None:
        return chat_loss(model, backend, chats[:limit], cfg.bad_share)
    refuse_idle(replace(cfg, tasks=("text",)))
    return _own_text(model, backend, documents or plain_texts(cfg.data, "test", reading)[:limit])


def _opened(cfg: EvalConfig) -> tuple[Model, Backend]:
    """A model that writes or fills masks. Raises UserError for any other."""
    folder = find_model(cfg.model)
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    model = _told(load_for_use(folder, backend), cfg)
    if is_masked_lm(model.cfg):
        refuse_idle(replace(cfg, tasks=("text",)))  # nothing else of it is measured
    return model if is_masked_lm(model.cfg) else require_generative(model), backend


def _told(model: Model, cfg: EvalConfig) -> Model:
    return with_kwargs(model, cfg.chat_template_kwargs)


def chat_loss(
    model: Model,
    backend: Backend,
    chats: Sequence[Sequence[dict[str, Any]]],
    most_bad: float = LIMIT,
) -> dict[str, Any]:
    """Nats a token of what the assistant says, stop tokens included, and how many tokens that is;
    longer chats are cut where the context ends. Raises UserError where the template refuses too
    many of them."""
    bad: list[tuple[int, str]] = []
    rows = list(
        encode_chats(chats, model.tokenizer, reject=lambda number, why: bad.append((number, why)))
    )
    if len(bad) > most_bad * len(chats):
        raise UserError(
            f"{bad[0][1]}; {len(bad)} of {len(chats)} chats are bad",
            where=f"chat {bad[0][0] + 1}",
            hint="mend them or take them out",
        )
    longest = max(len(row.ids) for row in rows)
    source = rows_of(
        SFTConfig(
            sequence_length=min(longest, model.cfg.max_position_embeddings),
            batch_size=ROWS,
            packing=False,
        ),
        model,
    )(rows)
    figures = target_figures(model, backend, source)
    return {
        "loss": figures["loss"],
        "tokens": figures["tokens"],
        "chats": source.examples,
        "cut": source.truncated,
    }


def _own_text(model: Model, backend: Backend, documents: list[str]) -> dict[str, Any]:
    """A row longer than those of the training would ask for what was never learned, a shorter one
    hides text that the model could have used."""
    record = StageFolder(model.folder.resolve().parent).done_record() or {}
    length = record.get("fingerprint", {}).get("sequence_length") or EvalSuite.sequence_length
    exam, width = (
        EvalSuite(documents, [], lambda *_: False, length),
        min(length, model.cfg.max_position_embeddings),
    )
    with tempfile.TemporaryDirectory() as cache:
        if is_masked_lm(model.cfg):
            return {
                "masked_accuracy": masked_accuracy(model, backend, exam, Path(cache)),
                "sequence_length": width,
            }
        if (
            model.network.decoder_start_token_id is not None
        ):  # it gives no probability to a text as such
            fit = most_of(model, length)
            tokens = tokenize_corpus(documents, model.tokenizer, Path(cache))
            source = source_of(PretrainConfig(sequence_length=fit, batch_size=ROWS), model)(tokens)
            return {
                **target_figures(model, backend, source),
                "objective": objective(model.cfg),
                "sequence_length": fit,
            }
        bits, perplexity = text_figures(model, backend, exam, Path(cache))
    return {"bits_per_byte": bits, "perplexity": perplexity, "sequence_length": width}
