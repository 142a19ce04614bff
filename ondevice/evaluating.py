"""What `eval` measures: the built-in held-out sets; of own rows text, chats, problems with known answers, and
pairs of which one was preferred."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ondevice import judging
from ondevice.backend import Array, Backend, Params, load_backend
from ondevice.config.corpus import CorpusConfig
from ondevice.config.stages import PretrainConfig, SFTConfig
from ondevice.config.use import BY_ITSELF, EvalConfig
from ondevice.data.chat import encode_chats
from ondevice.data.formats import BadRow
from ondevice.data.sources import RowSource, tokenize_corpus
from ondevice.data.token_pairs import TokenPair, to_tokens
from ondevice.data.tokenizer import Tokenizer
from ondevice.decoding import Sampling, generator_of
from ondevice.errors import UserError
from ondevice.exam import ROWS, Exam, builtin_exam, masked_accuracy, measure, text_figures
from ondevice.labelling import classified
from ondevice.losses import causal_lm_loss
from ondevice.models.folder import Model, labels, load_model, load_writer, writer
from ondevice.models.network import fills, objective
from ondevice.rating_stats import wilson
from ondevice.rewards.answers import final_answer
from ondevice.rewards.rewards import Rewards
from ondevice.rewards.tasks import Problem, problems
from ondevice.rollout import Scorer
from ondevice.runfolder import StageFolder, holds_model
from ondevice.stages.asked import need_template
from ondevice.stages.pairs import read_pairs
from ondevice.stages.pretrain import most_of, source_of
from ondevice.stages.reward import quality
from ondevice.stages.sft import rows_of
from ondevice.stages.wanted import corpus_of, plain_chats, plain_texts
from ondevice.talk import chat_ids, find_classifier, find_model, find_reward_model

Messages = list[dict[str, Any]]
ANY = ("hash", "boxed", "tag", "last_number")
"""Forms that `any` tries, one after the other."""


def evaluate(cfg: EvalConfig) -> dict[str, Any]:
    """What `cfg.tasks` name: `problems` (`solved`), `preference` (`preferred`), `win` (`judging.duel`), `classes`
    (`labelling.classified`; a classifier's without being named); else, on a person's data, `on_own_data`, and on the
    built-in held-out sets {"bits_per_byte", "exact_match", "by_kind", "reasoning"}, or {"masked_accuracy"} of a model
    that fills masks. Raises UserError for data or tasks that do not fit."""
    cfg.check()
    alone = cfg.tasks[0] if cfg.tasks and cfg.tasks[0] in BY_ITSELF else ""
    if not cfg.tasks and holds_model(folder := find_model(cfg.model)) and labels(folder) > 1:
        alone = "classes"
    if alone:
        backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
        find = {"preference": find_reward_model, "classes": find_classifier}.get(alone, find_model)
        task = {"problems": solved, "preference": preferred, "win": judging.duel, "classes": classified}[alone]
        return task(cfg, load_model(find(cfg.model), backend), backend)
    corpus = corpus_of(cfg.data, CorpusConfig())
    if corpus is None:
        return on_own_data(cfg)
    wanted, limit = cfg.tasks or ("text", "instructions", "reasoning"), cfg.limit or None
    exam = builtin_exam(corpus)
    exam = replace(exam, documents=exam.documents[:limit] if "text" in wanted else [],
                   questions=exam.questions[:limit] if "instructions" in wanted else [],
                   problems=exam.problems[:limit] if "reasoning" in wanted else [])
    model, backend = _opened(cfg)
    with tempfile.TemporaryDirectory() as cache:
        return measure(model, backend, exam, Path(cache)).mapping()


def on_own_data(cfg: EvalConfig) -> dict[str, Any]:
    """On text: {"bits_per_byte", "perplexity" (of a token), "sequence_length"}, read in rows as long as those of the
    model's training where its run folder tells; {"masked_accuracy"} of a model that fills masks, {"loss", "accuracy",
    "tokens"} of what an encoder-decoder writes into a text with holes. On chats, where the model has a chat template:
    {"loss", "tokens", "chats", "cut"} of the assistant's tokens."""
    if set(cfg.tasks) - {"text"}:
        raise UserError("needs questions with known answers", where="tasks",
                        hint="--data builtin has them; --tasks problems takes your own")
    limit = cfg.limit or None
    chats = plain_chats(cfg.data)
    documents = [] if chats else plain_texts(cfg.data)[:limit]
    model, backend = _opened(cfg)
    if chats and model.tokenizer.chat_template is not None:
        return chat_loss(model, backend, chats[:limit])
    return _own_text(model, backend, documents or plain_texts(cfg.data)[:limit])


def _opened(cfg: EvalConfig) -> tuple[Model, Backend]:
    """A model that writes or fills masks. Raises UserError for any other."""
    folder = find_model(cfg.model)
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    model = load_model(folder, backend)
    return model if fills(model.cfg) else writer(model), backend


def chat_loss(model: Model, backend: Backend, chats: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Nats a token of what the assistant says, stop tokens included, and how many tokens that is; longer chats are cut
    where the context ends."""
    rows = list(encode_chats(chats, model.tokenizer))
    longest = max(len(row.ids) for row in rows)
    source = rows_of(SFTConfig(sequence_length=min(longest, model.cfg.max_position_embeddings), batch_size=ROWS,
                               packing=False), model)(rows)
    found = _figures(model, backend, source)
    return {"loss": found["loss"], "tokens": found["tokens"], "chats": source.examples, "cut": source.truncated}


def _figures(model: Model, backend: Backend, source: RowSource) -> dict[str, Any]:
    """{"loss" (nats a target), "accuracy" (share of targets that are the likeliest), "tokens" (targets)}."""
    loss = partial(causal_lm_loss, model=model.network, accuracy=True)

    def metrics(params: Params, batch: dict[str, Array]) -> list[Array]:
        found = loss(backend.ops, params, batch)[1]
        return [*found["loss"], found["accuracy"][0]]
    run = backend.evaluate(metrics)
    sums = np.sum([[float(backend.numpy(x)) for x in run(model.params, b)] for b in source.eval_batches(None)], 0)
    return {"loss": sums[0] / max(sums[1], 1.0), "accuracy": sums[2] / max(sums[1], 1.0), "tokens": int(sums[1])}


def _own_text(model: Model, backend: Backend, documents: list[str]) -> dict[str, Any]:
    """A row longer than those of the training would ask for what was never learned, a shorter one hides text that the
    model could have used."""
    record = StageFolder(model.folder.resolve().parent).done_record() or {}
    length = record.get("fingerprint", {}).get("sequence_length") or Exam.sequence_length
    exam, width = Exam(documents, [], lambda *_: False, length), min(length, model.cfg.max_position_embeddings)
    with tempfile.TemporaryDirectory() as cache:
        if fills(model.cfg):
            return {"masked_accuracy": masked_accuracy(model, backend, exam, Path(cache)), "sequence_length": width}
        if model.network.start is not None:  # it gives no probability to a text as such
            fit = most_of(model, length)
            tokens = tokenize_corpus(documents, model.tokenizer, Path(cache))
            source = source_of(PretrainConfig(sequence_length=fit, batch_size=ROWS), model)(tokens)
            return {**_figures(model, backend, source), "objective": objective(model.cfg), "sequence_length": fit}
        bits, perplexity = text_figures(model, backend, exam, Path(cache))
    return {"bits_per_byte": bits, "perplexity": perplexity, "sequence_length": width}


def solved(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """{"accuracy", "interval" (Wilson's 95 %), "problems", "answered" (share with an answer in the asked form),
    "truncated" (share that did not end)} of greedy answers, and with `cfg.tries` {"pass_at", "tries"}: problems that at
    least one of so many answers at temperature 1 solves, and "pass@1", "pass@2", "pass@4" … of fewer.

    The first `cfg.shots` problems are shown with their answers before each of the others, and not asked. Raises
    UserError for data without problems, for a model without a chat template, and where a prompt leaves no room.
    """
    writer(model)
    need_template(model)
    found = problems(cfg.data, "all", 0, cfg.seed, CorpusConfig())
    shown, asked = found[:cfg.shots], found[cfg.shots:][:cfg.limit or None]
    if not asked:
        raise UserError(f"{len(found)} problems are all shown as examples", where="shots", hint="give fewer")
    prompts = [chat_ids(_conversation(cfg.system, shown, problem), model) for problem in asked]
    form = "whole" if cfg.answer == "any" else cfg.answer
    with Rewards(("correct", "format"), form=form) as rewards:
        rewards.check(_columns(asked))

        def judged(temperature: float, samples: int) -> tuple[Any, Any, Any]:
            """(right, in the asked form, cut at the limit): (problems, samples) bools each."""
            generator = generator_of(model, backend, Sampling(cfg.max_new_tokens, temperature, seed=cfg.seed))
            drawn = generator.run(model.params, prompts, stage="eval", samples=samples)
            rows = [problem for problem in asked for _ in range(samples)]
            texts = [model.tokenizer.decode(c.ids) for c in drawn]
            if cfg.answer == "any":
                texts = [any_answer(text) or "" for text in texts]
            scores = rewards.score([p.prompt for p in rows], texts, _columns(rows))
            cut = np.array([not c.stopped for c in drawn])
            right, formed = (scores.by_name[name].reshape(len(asked), samples) >= 1 for name in ("correct", "format"))
            return right, formed, cut.reshape(len(asked), samples)

        right, formed, cut = judged(0.0, 1)
        share = wilson(int(right.sum()), len(asked))
        out = {"accuracy": share.share, "interval": [share.low, share.high], "problems": len(asked),
               "answered": float(formed.mean()), "truncated": float(cut.mean())}
        if cfg.tries:
            counts = [int(n) for n in judged(1.0, cfg.tries)[0].sum(1)]
            out |= {"pass_at": sum(n > 0 for n in counts) / len(counts), "tries": cfg.tries}
            out |= {f"pass@{k}": sum(pass_at(k, cfg.tries, n) for n in counts) / len(counts)
                    for k in (2 ** n for n in range(cfg.tries.bit_length())) if k <= cfg.tries}
    return out


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that one of k answers is right where `right` of `samples` were, without bias (Chen 2021)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def any_answer(text: str) -> str | None:
    """The final answer in the first of the forms `ANY` that finds one."""
    return next((found for form in ANY if (found := final_answer(text, form)) is not None), None)


def _token_pairs(data: str, tokenizer: Tokenizer) -> list[TokenPair]:
    try:
        return [to_tokens(row, tokenizer) for row in read_pairs(data)]
    except BadRow as error:
        raise UserError(str(error), where=data) from error


def preferred(cfg: EvalConfig, model: Model, backend: Backend) -> dict[str, Any]:
    """How often a model prefers the chosen response of a pair: {"accuracy", "interval", "pairs", …}. A reward model by
    its score (with margin and calibration error); a model that writes by the log-probability of the whole response and
    ("accuracy_per_token") by its mean over tokens, with `cfg.reference` both less the reference's (DPO's implicit
    reward). Raises UserError for data without pairs, and for a reference that does not fit."""
    need_template(model)
    made = _token_pairs(cfg.data, model.tokenizer)
    room = model.cfg.max_position_embeddings
    fit = [pair for pair in made if pair.places(model.network.start) <= room][:cfg.limit or None]
    if not fit:
        raise UserError(f"none of {len(made)} pairs can be used", where=cfg.data,
                        hint=f"rows of prompt, chosen and rejected, within {model.cfg.max_position_embeddings} tokens")
    left_out = {"too_long": len(made) - len(fit)} if not cfg.limit and len(fit) < len(made) else {}
    scorer = Scorer(model, backend, batch_size=16)
    if model.cfg.num_labels == 1:
        if cfg.reference:
            raise UserError("a reward model needs none", where="reference", hint="leave it out")
        found = quality(model.params, fit, scorer)
        return {**{name: found[name] for name in ("accuracy", "interval", "pairs", "margin", "calibration_error")},
                **left_out}
    writer(model)
    rows = [side for pair in fit for side in (pair.chosen, pair.rejected)]
    logps = scorer.logprobs(model.params, rows)
    if cfg.reference:
        start = load_writer(find_model(cfg.reference), backend)
        if start.tokenizer.sha256() != model.tokenizer.sha256():
            raise UserError("has another tokenizer than the model", where=cfg.reference, hint="name its start")
        theirs = Scorer(start, backend, batch_size=16).logprobs(start.params, rows)
        logps = [one - other for one, other in zip(logps, theirs, strict=True)]
    sums, means = (np.array([how(part) for part in logps]) for how in (np.sum, np.mean))
    right = int((sums[0::2] > sums[1::2]).sum())
    share = wilson(right, len(fit))
    return {"accuracy": share.share, "interval": [share.low, share.high], "pairs": len(fit),
            "accuracy_per_token": float((means[0::2] > means[1::2]).mean()), **left_out}


def _conversation(system: str, shown: Sequence[Problem], asked: Problem) -> Messages:
    """Examples as turns that were answered before, then the question. A row's `solution` shows how, if it has one."""
    messages: Messages = [{"role": "system", "content": system}] if system else []
    for problem in shown:
        messages += [{"role": "user", "content": problem.prompt},
                     {"role": "assistant", "content": str(problem.columns.get("solution") or problem.answer)}]
    return [*messages, {"role": "user", "content": asked.prompt}]


def _columns(rows: Sequence[Problem]) -> dict[str, list[Any]]:
    """As rewards take them, None where a problem has none of that name."""
    names = dict.fromkeys(name for problem in rows for name in problem.columns)
    return {"answer": [problem.answer for problem in rows], "kind": [problem.kind for problem in rows],
            **{name: [problem.columns.get(name) for problem in rows] for name in names}}
