"""What is measured after every stage, on sets that no stage trains on: bits per byte, and exact
match of answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.config.corpus import CorpusConfig
from ondevice.config.recipe import ExamConfig
from ondevice.data.batches import RowSource, TextSource, tokenize_corpus
from ondevice.data.builtin.corpus import build
from ondevice.data.builtin.scoring import score
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.completion_batches import context_length
from ondevice.data.masked_lm import MaskedSource
from ondevice.data.packing import Batch
from ondevice.inference.external_generator import generator_of
from ondevice.inference.next_token import Sampling
from ondevice.inference.together import write_together
from ondevice.models.model import Model
from ondevice.models.network import is_masked_lm
from ondevice.preferences.simulated_rater import SimulatedRater
from ondevice.seam.ops import Array, Params
from ondevice.seam.protocols import Backend
from ondevice.training.losses import causal_lm_loss

ROWS = 32
SPARE = 12  # tokens: a line of courtesy after an answer


@dataclass(frozen=True)
class EvalSuite:
    """Held-out documents, and questions {"messages": …, "kind", "answer"} whose answers `score`
    judges.
    """

    documents: Sequence[str]
    questions: Sequence[dict[str, Any]]
    score: Callable[[str, str, str], bool]
    sequence_length: int = 128
    problems: Sequence[dict[str, Any]] = ()  # {"prompt", "answer", "kind"}
    passes: int = 8
    duels: Sequence[dict[str, Any]] = ()  # prompts likewise
    # the rater's rule: kind, text, answer → points
    points: Callable[[str, str, str], float] | None = None


@dataclass(frozen=True)
class EvalMetrics:
    """`bits_per_byte` None: no documents; `exact_match` None: no questions or no chat template."""

    bits_per_byte: float | None
    exact_match: float | None
    by_kind: dict[str, tuple[int, int]]  # kind → (right, asked)
    reasoning: Reasoning | None = None
    # what the rater's rule gives the answer to each prompt of the duel
    points: tuple[float, ...] = ()
    # how often what is hidden is the likeliest guess; of models that fill masks
    masked_accuracy: float | None = None

    def mapping(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "bits_per_byte": self.bits_per_byte,
            "exact_match": self.exact_match,
            "by_kind": {k: list(v) for k, v in self.by_kind.items()},
        }
        if self.reasoning:
            out["reasoning"] = asdict(self.reasoning)
        if self.masked_accuracy is not None:
            out["masked_accuracy"] = self.masked_accuracy
        if self.points:
            return {**out, "points": list(self.points)}
        return out


@dataclass(frozen=True)
class Reasoning:
    """Problems solved: greedily, and by at least one of `passes` answers at temperature 1.
    `by_kind`: kind → (right, with the steps written out, asked), greedily."""

    accuracy: float
    pass_at: float
    passes: int
    asked: int
    by_kind: dict[str, tuple[int, int, int]]


def longest_answer(exam: EvalSuite, model: Model) -> int:
    """Tokens that an answer may take: as many as the longest right one and a line of courtesy. What
    goes on beyond them is no right answer any more, and models that have not learned to stop would
    all be read to the end."""
    right = [question["messages"][-1]["content"] for question in exam.questions]
    return max((len(model.tokenizer.encode(text)) for text in right), default=52) + SPARE


def measure(model: Model, backend: Backend, exam: EvalSuite, cache: Path) -> EvalMetrics:
    """`cache` is a folder for the tokenised documents."""
    if is_masked_lm(model.cfg):
        masked = masked_accuracy(model, backend, exam, cache)
        return EvalMetrics(None, None, {}, masked_accuracy=masked)
    bits = None
    # an encoder-decoder gives no probability to a text as such
    if exam.documents and model.network.decoder_start_token_id is None:
        bits = text_figures(model, backend, exam, cache)[0]
    by_kind: dict[str, tuple[int, int]] = {}
    if exam.questions and model.tokenizer.chat_template:
        by_kind = exact_match(model, backend, exam)
    solved = None
    points: tuple[float, ...] = ()
    if model.tokenizer.chat_template is not None:
        if exam.problems:
            solved = reasoning(model, backend, exam)
        if exam.duels and exam.points:
            points = win_rate(model, backend, exam)
    return EvalMetrics(bits, _share(by_kind), by_kind, solved, points)


def _share(by_kind: dict[str, tuple[int, int]]) -> float | None:
    """The share of right answers of all kinds; None where none was asked."""
    right = 0
    questions = 0
    for right_of_kind, asked_of_kind in by_kind.values():
        right += right_of_kind
        questions += asked_of_kind
    if not questions:
        return None
    return right / questions


def reasoning(model: Model, backend: Backend, exam: EvalSuite) -> Reasoning:
    """Greedy answers, and `exam.passes` at temperature 1 (pass@k, Chen 2021, with as many samples
    as tries).
    """
    longest = longest_answer(exam, model)
    greedy = answers(model, backend, exam.problems, longest, 0.0, 1)
    tries = answers(model, backend, exam.problems, longest, 1.0, exam.passes)
    counts: dict[str, tuple[int, int, int]] = {}
    right_at_once = 0
    solved = 0
    for problem, (text,), more in zip(exam.problems, greedy, tries, strict=True):
        kind = problem["kind"]
        right = int(exam.score(kind, text, problem["answer"]))
        right_at_once += right
        correct, shown, of = counts.get(kind, (0, 0, 0))
        counts[kind] = (correct + right, shown + int("so " in text), of + 1)
        solved += any(exam.score(kind, attempt, problem["answer"]) for attempt in more)
    count = len(exam.problems)
    by_kind = dict(sorted(counts.items()))
    return Reasoning(right_at_once / count, solved / count, exam.passes, count, by_kind)


def win_rate(model: Model, backend: Backend, exam: EvalSuite) -> tuple[float, ...]:
    """The rule's points for one answer at temperature 1 to each prompt: two models' points side by
    side are a duel.
    """
    assert exam.points is not None
    written = answers(model, backend, exam.duels, longest_answer(exam, model), 1.0, 1)
    points = []
    for one, (text,) in zip(exam.duels, written, strict=True):
        points.append(exam.points(one["kind"], text, one["answer"]))
    return tuple(points)


def answers(
    model: Model,
    backend: Backend,
    rows: Sequence[dict[str, Any]],
    longest: int,
    temperature: float,
    samples: int,
) -> list[list[str]]:
    """`samples` answers to each prompt; the draws depend on the prompt's place alone, not on the
    model.
    """
    prompts = []
    for one in rows:
        chat = [{"role": "user", "content": one["prompt"]}]
        prompts.append(prompt_ids(chat, model.tokenizer))
    sampling = Sampling(max_new_tokens=longest, temperature=temperature)
    generator = generator_of(model, backend, sampling)
    completions = write_together(
        generator, model.params, prompts, stage="exam", samples=samples, batch_size=ROWS * 8
    )
    texts = [model.tokenizer.decode(c.ids) for c in completions]
    starts = range(0, len(texts), samples)
    return [texts[start : start + samples] for start in starts]


def text_figures(
    model: Model, backend: Backend, exam: EvalSuite, cache: Path
) -> tuple[float, float]:
    """(bits per byte: -log2 p of every token, end tokens included, over the UTF-8 bytes of the
    text, comparable between tokenizers; perplexity of a token).

    Documents are read as one stream cut into rows of `exam.sequence_length`; a row's first token is
    seen, not judged.
    """
    tokens = tokenize_corpus(exam.documents, model.tokenizer, cache)
    width = min(exam.sequence_length, model.cfg.max_position_embeddings, len(tokens) - 1)
    source = TextSource(tokens, sequence_length=width, batch_size=ROWS, eos=model.tokenizer.eos_id)
    loss = partial(causal_lm_loss, model=model.network)

    def nats_of(params: Params, batch: dict[str, Array]) -> Array:
        return loss(backend.ops, params, batch)[1]["loss"][0]

    run = backend.inference_fn(nats_of)

    def sums(batch: Batch) -> list[float]:
        return [
            float(backend.numpy(run(model.params, model.with_tables(backend, batch)))),
            float((model.tokenizer.token_bytes(batch["targets"]) * batch["weights"]).sum()),
            float(batch["weights"].sum()),
        ]

    of_batches = backend.group.spread(source.eval_batches(None), sums)
    nats, bytes_, count = (sum(column) for column in zip(*of_batches, strict=True))
    return nats / math.log(2) / max(bytes_, 1.0), math.exp(nats / max(count, 1.0))


def masked_accuracy(model: Model, backend: Backend, exam: EvalSuite, cache: Path) -> float | None:
    """Share of hidden tokens whose true one is the likeliest guess, 15 % of the documents' tokens
    hidden as in training; None without documents. Chance is that of the most frequent token."""
    if not exam.documents:
        return None
    tokens = tokenize_corpus(exam.documents, model.tokenizer, cache)
    source = MaskedSource(
        tokens,
        tokenizer=model.tokenizer,
        batch_size=ROWS,
        sequence_length=min(exam.sequence_length, model.cfg.max_position_embeddings),
    )
    accuracy: float = target_figures(model, backend, source)["accuracy"]
    return accuracy


def target_figures(model: Model, backend: Backend, source: RowSource) -> dict[str, Any]:
    """{"loss" (nats a target), "accuracy" (share of targets that are the likeliest), "tokens"
    (targets)}.
    """
    loss = partial(causal_lm_loss, model=model.network, accuracy=True)

    def metrics(params: Params, batch: dict[str, Array]) -> list[Array]:
        sums = loss(backend.ops, params, batch)[1]
        return [*sums["loss"], sums["accuracy"][0]]

    run = backend.inference_fn(metrics)

    def numbers(batch: Batch) -> list[float]:
        figures = run(model.params, model.with_tables(backend, batch))
        return [float(backend.numpy(x)) for x in figures]

    rows = backend.group.spread(source.eval_batches(None), numbers)
    nats, tokens, right = np.sum(rows, 0).tolist()
    return {
        "loss": nats / max(tokens, 1.0),
        "accuracy": right / max(tokens, 1.0),
        "tokens": int(tokens),
    }


def exact_match(model: Model, backend: Backend, exam: EvalSuite) -> dict[str, tuple[int, int]]:
    """Kind of question → (right, asked), greedy answers to the last user message."""
    room = model.cfg.max_position_embeddings
    beside = model.network.decoder_start_token_id is not None
    prompts: dict[int, Sequence[int]] = {}
    for i, question in enumerate(exam.questions):
        prompt = prompt_ids(question["messages"][:-1], model.tokenizer)
        # where it is read beside the answer, a prompt that is too long is cut
        if beside or context_length(len(prompt), 1, None) <= room:
            prompts[i] = prompt
    sampling = Sampling(max_new_tokens=longest_answer(exam, model), temperature=0)
    generator = generator_of(model, backend, sampling)
    completions = write_together(
        generator, model.params, list(prompts.values()), batch_size=ROWS * 8
    )
    said = dict(zip(prompts, completions, strict=True))
    counts: dict[str, tuple[int, int]] = {}
    for i, question in enumerate(exam.questions):
        kind = question["kind"]
        text = ""
        if i in said:
            text = model.tokenizer.decode(said[i].ids)
        right, total = counts.get(kind, (0, 0))
        right += int(exam.score(kind, text, question["answer"]))
        counts[kind] = (right, total + 1)
    return dict(sorted(counts.items()))


def builtin_exam(
    corpus: CorpusConfig,
    sequence_length: int = 128,
    cfg: ExamConfig | None = None,
    rule: SimulatedRater | None = None,
) -> EvalSuite:
    """The held-out split of the built-in corpus (or the one that `cfg` names); duels where there is
    a rule to judge.
    """
    cfg = cfg or ExamConfig()
    built = build(corpus)
    suite = EvalSuite(
        list(built.documents(cfg.split)),
        list(built.chats(cfg.split))[: cfg.questions or None],
        score,
        sequence_length,
        problems=list(built.problems(cfg.split))[: cfg.problems],
        passes=cfg.passes,
    )
    if rule is None:
        return suite
    duels = list(built.prompts(cfg.split))[: cfg.duels]
    return replace(suite, duels=duels, points=rule.points)
