"""Questions about documents that a model writes, and its answers: rows to learn from in `sft`.

Of each passage something is chosen first that can be asked for (`answer_spans`), as Alberti and others
(2019) make questions of text; a model that is there writes a question for it, which passes
`question_checks`; then, with the passage before it, it must choose that answer among all that the
passage offers. What was asked of each passage is in a journal (asking_journal.py) before the next ones
are asked: the same command goes on after it was stopped at any point, and so does one that asks for more.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common import atomic
from ondevice.common.disk import naming
from ondevice.common.errors import UserError
from ondevice.common.progress import Progress, with_progress
from ondevice.common.sanitize import sanitize, to_stderr
from ondevice.config.asking import MOST_QUESTIONS, AskConfig
from ondevice.data.completion_batches import Row
from ondevice.data.formats import to_text
from ondevice.data.mixture import ordered
from ondevice.data.passages import LEAST_WORDS, passages
from ondevice.data.rows import Reading
from ondevice.datasets.spec import check_rejected, convert_rows, open_rows
from ondevice.inference.answer_spans import Span, spans
from ondevice.inference.asking_journal import Journal, journal_of, key_of
from ondevice.inference.asking_prompts import to_answer, to_write
from ondevice.inference.chat import chat_ids, open_model, sampling
from ondevice.inference.external_generator import generator_of
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.question_checks import Repeats, first_question, question_fault, says
from ondevice.models.model import Model, require_chat_template
from ondevice.seam.protocols import Backend
from ondevice.training.sequence_logprobs import Scorer

SPARE = 500  # tokens of what is said around a passage


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `key` names its text, `source` is its file."""

    key: int
    text: str
    source: str

    @cached_property
    def spans(self) -> list[Span]:
        """What can be asked for."""
        return spans(self.text)


def ask(cfg: AskConfig) -> dict[str, Any]:
    """{"out", "passages", "gone", "written", "kept", "rejected": {reason: how many}, "examples"}:
    questions and answers about the passages of the documents, in `cfg.out`. What was asked before is
    kept, and counts: with more questions, a larger limit or more documents it goes on. `gone`: passages
    asked about before, of which the documents hold the text no more; their rows are left out.

    Raises UserError for documents or a model that cannot be read, a model that cannot follow a
    request, and a journal of other settings.
    """
    cfg.check()
    out = Path(os.path.expanduser(cfg.out))
    _refuse_place(out, cfg.data)
    model, backend = open_model(cfg)
    require_chat_template(model)
    room = model.cfg.max_position_embeddings - SPARE - 2 * cfg.max_new_tokens
    if cfg.passage_tokens > room:
        raise UserError(
            f"{cfg.passage_tokens} tokens and what is asked of them do not fit its context",
            where="passage_tokens",
            hint=f"give {max(room, 0)} or fewer",
        )
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    found = Passages(cfg, model)
    how = sampling(cfg, model, lambda text: to_stderr(f"ask: {text}"))
    writer = generator_of(model, backend, how)
    answerer = Answerer(model, backend, cfg.batch_size)
    with Journal(journal_of(out), _settings(cfg, how), cfg.again) as journal:
        asker = _Asker(cfg, model, writer, answerer, journal)
        asker.run(found)
        return {"out": str(out), **write_rows(journal, found, out, cfg.model)}


def _refuse_place(out: Path, data: str) -> None:
    """Raises UserError where what is written would take the place of somebody's file, or would be
    read as data the next time."""
    place = Path(os.path.expanduser(ordered(data)[1]))
    if out.is_dir():
        raise UserError("is a folder", where=str(out), hint="give a file, as chats.jsonl")
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise UserError(
            f"stands among the documents ({place}), which would then hold rows",
            where=str(out),
            hint="give --out another folder",
        )
    if out.exists() and not journal_of(out).exists():
        raise UserError(
            "is there already, and nothing says that `ondevice data ask` has written it",
            where=str(out),
            hint="give another --out",
        )


class Passages:
    """Those of all documents, one in memory at a time; iterating gives the ones that are asked about,
    each text once. Which these are follows from their texts: with a larger limit they are the same and
    others. Raises UserError where there are none."""

    def __init__(self, cfg: AskConfig, model: Model) -> None:
        self._cfg = cfg
        self._model = model
        self._told = False  # of what could not be read
        keys = array("Q")
        for text, _ in with_progress(self._all(), "ask: passages found"):
            keys.append(key_of(text))
        if not keys:
            raise UserError(
                f"holds no passage of {LEAST_WORDS} words", where=cfg.data, hint="give longer texts"
            )
        self._keys = np.unique(np.frombuffer(keys, np.uint64))
        self.chosen = self._keys[: cfg.limit or None]

    def __contains__(self, passage: str) -> bool:
        """Whether the documents hold a passage, asked about or not."""
        key = np.uint64(key_of(passage))
        place = int(np.searchsorted(self._keys, key))
        return place < len(self._keys) and bool(self._keys[place] == key)

    def __iter__(self) -> Iterator[Passage]:
        last = int(self.chosen[-1])
        for text, source in self._all():
            key = key_of(text)
            if key <= last:
                yield Passage(key, text, source)

    def _all(self) -> Iterator[tuple[str, str]]:
        """(text, file) of every passage."""
        rows = open_rows(self._cfg.data, reading=Reading.of(self._cfg))
        for source, parts in _documents(convert_rows(rows, to_text)):
            for text in passages(parts, self._length, self._cfg.passage_tokens):
                yield text, source
        if not self._told:
            check_rejected(rows)
        self._told = True

    def _length(self, text: str) -> int:
        return len(self._model.tokenizer.encode(text))


def _documents(rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, Iterator[str]]]:
    """(place, parts) of each document, one part in memory at a time; the parts are to be taken before
    the next document is."""
    for place, first in rows:
        yield place, _parts(first, rows)


def _parts(first: str, rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    part = first
    yield part
    while getattr(part, "more", False):
        part = next(rows)[1]
        yield part


def _settings(cfg: AskConfig, how: Sampling) -> dict[str, Any]:
    """All that must be the same where asking goes on: not how much is asked, nor of which documents."""
    return {
        "model": cfg.model,
        "passage_tokens": cfg.passage_tokens,
        **asdict(how),
    }


class Answerer:
    """Chooses the answer to a question about a passage among those that are offered: the one that is
    the likeliest, whole and ended, behind the passage and the question."""

    def __init__(self, model: Model, backend: Backend, batch_size: int) -> None:
        self._model = model
        self._scorer = Scorer(model, backend, batch_size=batch_size)

    def choose(self, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
        """The answer to each (passage, question, answers)."""
        rows, tokenizer = [], self._model.tokenizer
        end = sorted(tokenizer.stop_ids)[:1]
        for passage, question, answers in asked:
            prompt = np.array(chat_ids(to_answer(passage, question), self._model), np.int32)
            for answer in answers:
                ids = [*tokenizer.encode(answer), *end]
                rows.append(Row(prompt, np.array(ids, np.int32)))
        figures = iter(self._scorer.logprobs(self._model.params, rows))
        chosen = []
        for _, _, answers in asked:
            likely = [float(next(figures).sum()) for _ in answers]
            chosen.append(answers[int(np.argmax(likely))])
        return chosen


class _Asker:
    """Asks about passages, some at once."""

    def __init__(
        self,
        cfg: AskConfig,
        model: Model,
        writer: Generator,
        answerer: Answerer,
        journal: Journal,
    ) -> None:
        self.cfg = cfg
        self.model = model
        self.writer = writer
        self.answerer = answerer
        self.journal = journal
        self.repeats = Repeats()
        self.written = self.kept = self.enough = 0

    def run(self, found: Passages) -> None:
        """Asks what the journal does not have, and tells how far that is."""
        before = self._asked_before(found)
        together = max(1, self.cfg.batch_size // self.cfg.questions)
        with Progress("ask", len(found.chosen), 0) as bar:
            waiting = self._waiting(found, before)
            while part := list(islice(waiting, together)):
                for passage, asked in zip(part, self._asked(part, before), strict=True):
                    for one in asked:
                        self._count(one["fault"])
                    line = {"source": passage.source, "passage": passage.text, "asked": asked}
                    self.journal.add(line)
                self.enough += len(part)
                bar.update(self.enough, {"written": self.written, "kept": self.kept})
            bar.update(self.enough, {"written": self.written, "kept": self.kept})

    def _asked_before(self, found: Passages) -> dict[int, list[str]]:
        """What was asked of each passage by the journal, by its key; empty for each question that is
        not used. Raises UserError where all of it is about other documents."""
        before: dict[int, list[str]] = {}
        here = 0
        for line in self.journal.asked():
            here += line["passage"] in found
            questions = before.setdefault(key_of(line["passage"]), [])
            for one in line["asked"]:
                self._count(fault_of(one))
                good = not question_fault(one["question"], one["sentence"], one["answer"])
                if good:
                    self.repeats.seen(one["question"], questions)
                questions.append(one["question"] if good else "")
        if before and not here:
            raise UserError(
                "was asked of other documents: these hold none of its passages",
                where=str(self.journal.file),
                hint="give another --out, or --again to begin anew",
            )
        return before

    def _waiting(self, found: Passages, before: dict[int, list[str]]) -> Iterator[Passage]:
        """Passages that were not asked as often as wanted, each once; one that offers nothing to ask
        for too, so that the journal has it."""
        taken: set[int] = set()
        for passage in found:
            if passage.key in taken:
                continue
            taken.add(passage.key)
            had = before.get(passage.key)
            if had is None or len(had) < min(self.cfg.questions, len(passage.spans)):
                before.setdefault(passage.key, [])
                yield passage
            else:
                self.enough += 1

    def _count(self, fault: str) -> None:
        self.written += 1
        self.kept += not fault

    def _asked(
        self, part: Sequence[Passage], before: dict[int, list[str]]
    ) -> list[list[dict[str, Any]]]:
        """Of each passage the questions that it lacks, with their answers and what is at fault of each."""
        good: list[tuple[dict[str, Any], Passage]] = []
        found: list[list[dict[str, Any]]] = [[] for _ in part]
        for number, span, text in self._questions(part, before):
            passage = part[number]
            earlier = before[passage.key]
            question = first_question(text)
            fault = question_fault(question, span.sentence, span.answer)
            if not fault and self.repeats.seen(question, earlier):
                fault = "was asked before"
            earlier.append("" if fault else question)
            row = {
                "question": question,
                "answer": span.answer,
                "sentence": span.sentence,
                "fault": fault,
            }
            found[number].append(row)
            if not fault:
                good.append((row, passage))
        self._answer(good)
        return found

    def _questions(
        self, part: Sequence[Passage], before: dict[int, list[str]]
    ) -> list[tuple[int, Span, str]]:
        """(number of the passage, what is asked for, question) of all that are wanted, passage after
        passage."""
        prompts, rows, of = [], [], []
        for number, passage in enumerate(part):
            had = len(before[passage.key])
            for n, span in enumerate(passage.spans[had : self.cfg.questions], had):
                prompts.append(
                    [*chat_ids(to_write(span), self.model), *self._opened_with(span.opener)]
                )
                rows.append(passage.key * MOST_QUESTIONS + n)
                of.append((number, span))
        drawn = self.writer.run(
            self.model.params, prompts, stage="ask", numbers=rows, batch_size=self.cfg.batch_size
        )
        found = []
        for (number, span), completion in zip(of, drawn, strict=True):
            text = self.model.tokenizer.decode(completion.ids)
            found.append((number, span, span.opener + text if self._prefills else text))
        return found

    @property
    def _prefills(self) -> bool:
        """Whether the model goes on with what it is given: an encoder-decoder reads it."""
        return self.model.network.decoder_start_token_id is None

    def _opened_with(self, opener: str) -> list[int]:
        if self._prefills:
            return list(self.model.tokenizer.encode(opener))
        return []

    def _answer(self, good: Sequence[tuple[dict[str, Any], Passage]]) -> None:
        """Says what is at fault of questions to which the model chooses another answer."""
        asked = []
        for row, passage in good:
            asked.append((passage.text, row["question"], _offered(row, passage)))
        if asked:
            for (row, _), chosen in zip(good, self.answerer.choose(asked), strict=True):
                if chosen != row["answer"]:
                    row["fault"] = OTHER_ANSWER


OTHER_ANSWER = "has another answer when the model that wrote it is asked"


def _offered(row: Mapping[str, Any], passage: Passage) -> list[str]:
    """The answers that a passage offers, without others that the question says itself."""
    answers = [span.answer for span in passage.spans]
    return [one for one in answers if one == row["answer"] or not says(row["question"], one)]


def fault_of(one: Mapping[str, Any]) -> str:
    """What is at fault of a question in the journal; empty where it is good. Checks that were not
    there when it was asked count too."""
    found: str = one["fault"] or question_fault(one["question"], one["sentence"], one["answer"])
    return found


def write_rows(journal: Journal, found: Passages, out: Path, model: str) -> dict[str, Any]:
    """Writes what the checks have kept of passages that the documents hold, whole or not at all:
    {"passages", "gone", "written", "kept", "rejected", "examples"}."""
    there: set[int] = set()
    gone: set[int] = set()
    written = kept = 0
    rejected: Counter[str] = Counter()
    examples: list[dict[str, str]] = []
    with atomic.aside(out) as new:
        with closing(new.open("w", encoding="utf-8")) as file:
            for line in journal.asked():
                if line["passage"] not in found:
                    gone.add(key_of(line["passage"]))
                    continue
                there.add(key_of(line["passage"]))
                for one in line["asked"]:
                    written += 1
                    fault = fault_of(one)
                    if fault:
                        rejected[fault] += 1
                        continue
                    kept += 1
                    if len(examples) < 3:
                        examples.append({"question": one["question"], "answer": one["answer"]})
                    file.write(json.dumps(_row(line, one, model), ensure_ascii=False) + "\n")
        atomic.sync(new)
        os.replace(new, out)
    return {
        "passages": len(there),
        "gone": len(gone),
        "written": written,
        "kept": kept,
        "rejected": dict(rejected.most_common()),
        "examples": examples,
    }


def _row(line: Mapping[str, Any], one: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": one["question"]},
            {"role": "assistant", "content": one["answer"]},
        ],
        "source": line["source"],
        "asked_of": line["passage"],
        "model": model,
    }


def render(found: Mapping[str, Any]) -> str:
    """What `ask` gave, safe for a terminal."""
    lines = []
    for one in found["examples"]:
        lines += [f"> {sanitize(one['question'])}", sanitize(one["answer"]), ""]
    lines.append(
        f"{found['passages']:,} passages, {found['written']:,} questions written, "
        f"{found['kept']:,} kept by the checks"
    )
    if found["gone"]:
        lines.append(
            f"{found['gone']:,} more were asked before, and the documents hold them no more: left out"
        )
    for reason, count in found["rejected"].items():
        lines.append(f"  {count:,} × {sanitize(reason, newlines=False)}")
    out = sanitize(found["out"], newlines=False)
    if not found["kept"]:
        lines.append(
            f"{out} is empty: a larger model writes better ones (documents in English alone)"
        )
        return "\n".join(lines)
    lines.append(
        f"{out}: look through them with `ondevice data review {out}`, then sft learns them"
    )
    return "\n".join(lines)
