"""Questions about documents that a model writes, and its answers: rows to learn from in `sft`.

For each passage a model that is there is asked to write a question, and then to answer it with the
passage before it, as Alberti and others (2019) make questions of text; both pass `question_checks`.
What was asked of each passage is in a journal before the next ones are asked: the same command goes
on after it was stopped at any point, and the rows are made of the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ondevice.common import atomic, bounded
from ondevice.common.disk import naming
from ondevice.common.errors import UserError
from ondevice.common.file_lock import try_lock
from ondevice.common.files import digest
from ondevice.common.json_files import parse_json
from ondevice.common.progress import Progress, with_progress
from ondevice.common.sanitize import sanitize, to_stderr
from ondevice.config.asking import AskConfig
from ondevice.data.formats import to_text
from ondevice.data.mixture import ordered
from ondevice.data.passages import LEAST_WORDS, passages
from ondevice.data.rows import Reading
from ondevice.datasets.spec import check_rejected, convert_rows, open_rows
from ondevice.inference.chat import chat_ids, open_model, sampling
from ondevice.inference.external_generator import generator_of
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.question_checks import (
    Repeats,
    answer_fault,
    first_question,
    question_fault,
)
from ondevice.models.model import Model, require_chat_template

OPENERS = ("What", "Who", "Why", "How", "Where", "When", "Which")
"""Words that questions begin with, in turn: left to itself a small model asks the same again."""
WRITE = "{passage}\n\nWrite one short question that the text above answers. Use the names that stand there."
ANSWER = "{passage}\n\nAnswer in one short sentence, with the text above: {question}"
SHOWN = (
    (
        "The stone bridge over the Ull was built by Clara Voss in 1873. Until then carts had crossed on a "
        "ferry, which sank every other winter. Voss asked for no pay but a house on the northern bank.",
        "Who built the stone bridge over the Ull?",
        "Clara Voss built the stone bridge over the Ull in 1873.",
    ),
    (
        "PETER:\nWhere is the grey horse, Anna?\n\nANNA:\nI sold it to the miller, for the roof had to be "
        "mended before the rain.",
        "Why did Anna sell the grey horse?",
        "Anna sold the grey horse because the roof had to be mended before the rain.",
    ),
)
"""Passages, questions and answers that stand before what is asked: a small model does as it sees."""
FORMAT = 1
SPARE = 500  # tokens of what is said around a passage


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `number` counts through all of them, `source` is its file."""

    number: int
    text: str
    source: str


def ask(cfg: AskConfig) -> dict[str, Any]:
    """{"out", "passages", "written", "kept", "rejected": {reason: how many}, "examples"}: questions
    and answers about the passages of the documents, in `cfg.out`.

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
    answerer = generator_of(model, backend, replace(how, temperature=0.0))
    with Journal(journal_of(out), _key(cfg, how, found), cfg.again) as journal:
        asker = _Asker(cfg, model, writer, answerer, journal)
        asker.run(found)
        return {"out": str(out), "passages": len(found), **write_rows(journal, out, cfg.model)}


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


def journal_of(out: Path) -> Path:
    return out.with_suffix(".asked.jsonl")


class Passages:
    """Those of all documents that are asked about, as often as wanted, one in memory at a time.
    `digest` names their texts. Raises UserError where there are none."""

    def __init__(self, cfg: AskConfig, model: Model) -> None:
        self._cfg = cfg
        self._model = model
        self._told = False  # of what could not be read
        sums, count = hashlib.sha256(), 0
        for text, _ in with_progress(self._all(), "ask: passages found"):
            sums.update(text.encode("utf-8", "replace") + b"\0")
            count += 1
        if not count:
            raise UserError(
                f"holds no passage of {LEAST_WORDS} words", where=cfg.data, hint="give longer texts"
            )
        self.digest = sums.hexdigest()
        wanted = min(cfg.limit or count, count)
        self._chosen = {n * count // wanted for n in range(wanted)}

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Passage]:
        number = 0
        for at, (text, source) in enumerate(self._all()):
            if at in self._chosen:
                yield Passage(number, text, source)
                number += 1

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


def _key(cfg: AskConfig, how: Sampling, found: Passages) -> str:
    """Names all that what is asked follows from; how many are asked at once is none of it."""
    asked = [cfg.model, cfg.questions, cfg.max_new_tokens, cfg.limit, cfg.seed, repr(how)]
    return digest([FORMAT, *asked, found.digest])


class Journal:
    """What was asked of each passage, a line each, in a file that only grows; a context manager that
    one process at a time may hold. Raises UserError for one of other settings."""

    def __init__(self, file: Path, key: str, again: bool) -> None:
        self.file = file
        self._key = key
        self._again = again

    def __enter__(self) -> Journal:
        with naming(self.file):
            self._opened = self.file.open("ab+")
        if not try_lock(self._opened.fileno()):
            self._opened.close()
            raise UserError("is being written by another process", where=str(self.file))
        if self._again:
            self._opened.truncate(0)
        self._repair()
        first = next(self.lines(), None)
        if first is None:
            self.add({"format": FORMAT, "key": self._key})
        elif first.get("key") != self._key:
            self._opened.close()
            raise UserError(
                "was asked of other documents, another model or with other settings",
                where=str(self.file),
                hint="give another --out, or --again to begin anew",
            )
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def _repair(self) -> None:
        """Takes away a last line that was not written to its end."""
        end = self._opened.seek(0, os.SEEK_END)
        place = end
        while place > 0:
            start = max(0, place - (1 << 16))
            self._opened.seek(start)
            at = self._opened.read(place - start).rfind(b"\n")
            if at >= 0:
                self._opened.truncate(start + at + 1)
                return
            place = start
        self._opened.truncate(0)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines there are. Raises UserError for one that is none of ours."""
        with bounded.open_plain(self.file) as source:
            for number, line in enumerate(bounded.lines(source), 1):
                try:
                    found = parse_json(line or b"")
                    if not isinstance(found, dict):
                        raise ValueError("is no object")
                except ValueError as error:
                    raise UserError(
                        f"cannot be read: {error}",
                        where=f"{self.file}:{number}",
                        hint="--again begins anew",
                    ) from error
                yield found

    def asked(self) -> Iterator[dict[str, Any]]:
        """A line for each passage that was asked about."""
        return (line for line in self.lines() if "asked" in line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Brings a line to the disk."""
        with naming(self.file):
            self._opened.write(json.dumps(line).encode() + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())


class _Asker:
    """Asks about passages, some at once."""

    def __init__(
        self,
        cfg: AskConfig,
        model: Model,
        writer: Generator,
        answerer: Generator,
        journal: Journal,
    ) -> None:
        self.cfg = cfg
        self.model = model
        self.writer = writer
        self.answerer = answerer
        self.journal = journal
        self.repeats = Repeats()
        self.written = self.kept = 0

    def run(self, found: Passages) -> None:
        """Asks about those that the journal does not have, and tells how far that is."""
        done = 0
        for line in self.journal.asked():
            done += 1
            for one in line["asked"]:
                self._count(fault_of(one, line["passage"]))
                if one["question"]:
                    self.repeats.seen(one["question"], line["number"])
        together = max(1, self.cfg.batch_size // self.cfg.questions)
        with Progress("ask", len(found), done) as bar:
            waiting = islice(found, done, None)
            while part := list(islice(waiting, together)):
                for passage, asked in zip(part, self._asked(part), strict=True):
                    for one in asked:
                        self._count(one["fault"])
                    self.journal.add(
                        {
                            "number": passage.number,
                            "source": passage.source,
                            "passage": passage.text,
                            "asked": asked,
                        }
                    )
                done += len(part)
                bar.update(done, {"written": self.written, "kept": self.kept})

    def _count(self, fault: str) -> None:
        self.written += 1
        self.kept += not fault

    def _asked(self, part: Sequence[Passage]) -> list[list[dict[str, Any]]]:
        """Of each passage its questions, with what is at fault of each."""
        questions = self._questions(part)
        wanted: list[tuple[dict[str, Any], Passage]] = []
        found: list[list[dict[str, Any]]] = []
        for passage, texts in zip(part, questions, strict=True):
            rows = []
            for text in texts:
                question = first_question(text)
                fault = question_fault(question, passage.text)
                if not fault and self.repeats.seen(question, passage.number):
                    fault = "was asked before"
                row = {"question": question, "answer": "", "fault": fault}
                rows.append(row)
                if not fault:
                    wanted.append((row, passage))
            found.append(rows)
        self._answer(wanted)
        return found

    def _questions(self, part: Sequence[Passage]) -> list[list[str]]:
        prompts, openers = [], []
        for passage in part:
            asked = chat_ids(to_write(passage.text), self.model)
            for n in range(self.cfg.questions):
                opener = OPENERS[(passage.number * self.cfg.questions + n) % len(OPENERS)]
                prompts.append([*asked, *self._opened_with(opener)])
                openers.append(opener)
        first = part[0].number * self.cfg.questions
        drawn = self.writer.run(
            self.model.params, prompts, stage="ask", first=first, batch_size=self.cfg.batch_size
        )
        texts = []
        for opener, completion in zip(openers, drawn, strict=True):
            text = self.model.tokenizer.decode(completion.ids)
            texts.append(opener + text if self._prefills else text)
        each = self.cfg.questions
        return [texts[n * each : (n + 1) * each] for n in range(len(part))]

    @property
    def _prefills(self) -> bool:
        """Whether the model goes on with what it is given: an encoder-decoder reads it."""
        return self.model.network.decoder_start_token_id is None

    def _opened_with(self, opener: str) -> list[int]:
        return list(self.model.tokenizer.encode(opener)) if self._prefills else []

    def _answer(self, wanted: Sequence[tuple[dict[str, Any], Passage]]) -> None:
        """Puts answers to the questions, and what is at fault of them."""
        if not wanted:
            return
        prompts = []
        for row, passage in wanted:
            prompts.append(chat_ids(to_answer(passage.text, row["question"]), self.model))
        drawn = self.answerer.run(
            self.model.params, prompts, stage="answer", batch_size=self.cfg.batch_size
        )
        for (row, passage), completion in zip(wanted, drawn, strict=True):
            row["answer"] = self.model.tokenizer.decode(completion.ids).strip()
            row["fault"] = answer_fault(
                row["question"], row["answer"], passage.text, completion.stopped
            )


def to_write(passage: str) -> list[dict[str, Any]]:
    """What a model is asked for a question about a passage."""
    asked = [(WRITE.format(passage=text), question) for text, question, _ in SHOWN]
    return _turns(asked, WRITE.format(passage=passage))


def to_answer(passage: str, question: str) -> list[dict[str, Any]]:
    """What a model is asked for the answer."""
    asked = [
        (ANSWER.format(passage=text, question=question), answer) for text, question, answer in SHOWN
    ]
    return _turns(asked, ANSWER.format(passage=passage, question=question))


def _turns(before: Sequence[tuple[str, str]], last: str) -> list[dict[str, Any]]:
    messages = []
    for user, assistant in before:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    return [*messages, {"role": "user", "content": last}]


def fault_of(one: Mapping[str, Any], passage: str) -> str:
    """What is at fault of a question in the journal; empty where it is good. Checks that were not
    there when it was asked count too."""
    return (
        one["fault"]
        or question_fault(one["question"], passage)
        or answer_fault(one["question"], one["answer"], passage, True)
    )


def write_rows(journal: Journal, out: Path, model: str) -> dict[str, Any]:
    """Writes what the checks have kept, whole or not at all: {"written", "kept", "rejected",
    "examples"}."""
    written = kept = 0
    rejected: Counter[str] = Counter()
    examples: list[dict[str, str]] = []
    with atomic.aside(out) as new:
        with closing(new.open("w", encoding="utf-8")) as file:
            for line in journal.asked():
                for one in line["asked"]:
                    written += 1
                    fault = fault_of(one, line["passage"])
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
    for reason, count in found["rejected"].items():
        lines.append(f"  {count:,} × {sanitize(reason, newlines=False)}")
    out = sanitize(found["out"], newlines=False)
    if not found["kept"]:
        lines.append(
            f"{out} is empty: a larger model, or a lower --temperature, writes better ones"
        )
        return "\n".join(lines)
    lines.append(
        f"{out}: look through them with `ondevice data review {out}`, then sft learns them"
    )
    return "\n".join(lines)
