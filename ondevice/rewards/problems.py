"""Problems for the reasoning stage: a prompt, its right answer, and whatever columns a reward may
want.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.rng import permutation
from ondevice.config.corpus import CorpusConfig
from ondevice.data.builtin.corpus import build
from ondevice.data.builtin.splits import Split
from ondevice.data.formats import it_has, to_prompt
from ondevice.data.messages import BadRow, number_as_text
from ondevice.data.row_keys import HARMLESS, Record
from ondevice.data.rows import AS_IS, Reading, Rows, read
from ondevice.datasets.spec import corpus_of
from ondevice.datasets.split import last_together, prompt_keys
from ondevice.rewards.answers import find_answer
from ondevice.rewards.gym import column, entries
from ondevice.rewards.scorer import STAGE_GIVES
from ondevice.rewards.unit_tests import of_row

GYM_COUNT = 1000
"""Problems of a gym's task where no count is given: it has no end."""
RESERVED = STAGE_GIVES | {"apart", "gym"}
"""What a column may not be called: rewards get these from the stage."""


@dataclass(frozen=True)
class Problem:
    """`columns` go to the rewards beside `answer` and `kind`. `answer` is empty where a gym's task
    states none, and where no reward needs one. `prompt` is what the user says last; `messages` the
    chat, where it is more than that."""

    prompt: str
    answer: str
    kind: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()

    @property
    def chat(self) -> list[dict[str, Any]]:
        """What is asked, as messages."""
        if not self.messages:
            return [{"role": "user", "content": self.prompt}]
        return [dict(message) for message in self.messages]


def problems(
    spec: str,
    split: Split | Literal["all"],
    count: int,
    seed: int,
    corpus: CorpusConfig,
    *,
    settle: Callable[[Rows], None] = Rows.check,
    uses: Collection[str] | None = None,
    reading: Reading = AS_IS,
    answered: bool = True,
    tested: bool = False,
) -> list[Problem]:
    """At most `count` problems (0: all; of a gym's task 1,000) of a split of

    * `builtin` (made by `corpus`) or `builtin:RECIPE`: sums;
    * `gym:NAME` or `gym:NAME?key=value&…`: a task of reasoning-gym;
    * a file, a folder or `hub:…` of rows {"prompt" or "question", "answer", …}: what is not there twice; the last tenth
      is `validation` and `heldout` both, `all` is all of it, or what a folder with splits holds to test on. `settle`
      gets the rows, with the bad ones set aside; of their columns `uses` are read (None: all). `answered` and `tested`
      are as `file_problems` has them.

    No question is in train and in another split. Raises UserError for what is not there, is empty
    or cannot be read.
    """
    made = corpus_of(spec, corpus)
    if made is not None:
        found = _builtin(made, split)
    elif spec.startswith("gym:"):
        found = _gym(spec.removeprefix("gym:"), split, count or GYM_COUNT, seed)
    else:
        named = "test" if split == "all" else "train"
        read_rows = file_problems(
            spec,
            settle,
            uses=uses,
            answered=answered,
            split=named,
            reading=reading,
            tested=tested,
        )
        rows = list(read_rows)
        all_of_it = _part(rows, split, spec)
        found = [all_of_it[n] for n in some_of(len(all_of_it), count, seed)]
    if not found:
        raise UserError("no problems in it", where=spec)
    if count:
        return found[:count]
    return found


def _builtin(corpus: CorpusConfig, split: Split | Literal["all"]) -> list[Problem]:
    sums = build(corpus)
    found = []
    for part in _splits(split):
        for row in sums.problems(part):
            found.append(Problem(row["prompt"], row["answer"], row["kind"]))
    return found


def _gym(task: str, split: Split | Literal["all"], count: int, seed: int) -> list[Problem]:
    kind = task.partition("?")[0]
    found = []
    for part in _splits(split):
        for entry in entries(task, part, count, seed):
            # A task with many right answers (graph_color, rubiks_cube) states none; its scorer
            # knows them.
            answer = ""
            if entry["answer"] is not None:
                answer = str(entry["answer"])
            found.append(Problem(entry["question"], answer, kind, {"gym": column(task, entry)}))
    return found


def _splits(split: Split | Literal["all"]) -> tuple[Split, ...]:
    if split == "all":
        return ("train", "validation", "heldout")
    return (split,)


def some_of(size: int, count: int, seed: int) -> NDArray[np.int64]:
    """Numbers of at most `count` (0: all) of `size` problems, drawn by the seed, in their order."""
    if 0 < count < size:
        return np.sort(permutation(seed, "problems", 0, size)[:count])
    return np.arange(size)


def file_problems(
    spec: str,
    settle: Callable[[Rows], None],
    limit: int = 0,
    uses: Collection[str] | None = None,
    answered: bool = True,
    split: str = "train",
    reading: Reading = AS_IS,
    template: str = "",
    tested: bool = False,
) -> Iterator[Problem]:
    """The problems of a file, a folder or `hub:…`, one at a time. What is there twice, with the
    same question, answer and columns, is asked once and counted; a question that stands there with
    several answers is told of.

    `uses`: the columns that somebody reads (None: all of them); `answered`: a row without an answer
    is bad; `split`: of a folder that has splits; `template`: what reads the messages; `tested`: a
    row whose unit tests cannot be judged, or with neither tests nor an answer, is bad. Raises
    UserError as `problems` does.
    """
    rows = read(spec, limit=limit, split=split, reading=reading)
    rows.template = template
    kind = Path(spec).stem
    seen: set[bytes] = set()
    right: dict[bytes, tuple[bytes, str]] = {}
    repeated, disputed = 0, dict[bytes, str]()
    for row, where in rows:
        try:
            problem = to_problem(row, kind, uses, answered)
            if tested and of_row(problem.columns, problem.prompt) is None and not problem.answer:
                raise BadRow("it has no unit tests" + it_has(row))
        except BadRow as error:
            rows.reject(where, str(error), row)
            continue
        question, answer, whole = _keys(problem)
        first_answer, first_place = right.setdefault(question, (answer, where))
        if answer != first_answer:
            disputed.setdefault(question, f"{first_place} and {where}")
        if whole in seen:
            repeated += 1
            continue
        seen.add(whole)
        yield problem
    if repeated:
        rows.notes.append(f"{repeated:,} rows repeat a problem, which is asked once")
    if disputed:
        rows.notes.append(
            f"questions with several answers: {len(disputed):,} (first: {next(iter(disputed.values()))})"
        )
    settle(rows)


def _keys(problem: Problem) -> tuple[bytes, bytes, bytes]:
    """What is the same where the question is, where the answer is, and where all of it is."""
    columns = {name: value for name, value in problem.columns.items() if name not in HARMLESS}
    whole = _key(problem.chat, problem.answer, columns)
    columns.pop("solution", None)
    return _key(problem.chat, columns), _key(problem.answer), whole


def _key(*parts: Any) -> bytes:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _part(found: list[Problem], split: Split | Literal["all"], spec: str) -> list[Problem]:
    if split == "all":
        return found
    keys = np.array([prompt_keys(problem.chat)[0] for problem in found], np.uint64)
    last, _ = last_together(keys, spec, "problem")
    train, held_out = [], []
    for problem, is_last in zip(found, last, strict=True):
        if is_last:
            held_out.append(problem)
        else:
            train.append(problem)
    if split != "train":
        return held_out
    known = {_key(problem.chat) for problem in held_out}
    return [problem for problem in train if _key(problem.chat) not in known]


def to_problem(
    row: Mapping[str, Any], kind: str, uses: Collection[str] | None = None, answered: bool = True
) -> Problem:
    """The problem of a row {"prompt" or "question", "answer"}, a text or messages; other columns
    are kept, of which `uses` says who is read (None: all). Raises BadRow; also for no answer where
    it is to be `answered`.

    An answer that ends in `#### 42`, as GSM8K's do, is 42; the whole of it becomes the column
    `solution`.
    """
    row = Record.of(row)
    question = next((name for name in ("prompt", "question", "query") if name in row), None)
    if question is None or (answered and "answer" not in row):
        needs = "a problem needs prompt (or question)"
        if answered:
            needs += " and answer"
        raise BadRow(needs + it_has(row))
    if clash := sorted(RESERVED & set(row)):
        raise BadRow(f"a column may not be called {clash[0]}")
    if not isinstance(row[question], list):
        _text(row[question], question)
    messages, _ = to_prompt(row)
    answer = ""
    if "answer" in row:
        answer = _text(row["answer"], "answer")
    own = (question, "answer", "kind")
    columns = {name: value for name, value in dict.items(row) if name not in own}
    if uses is None:
        uses = columns
    for name in uses:
        row.get(name)  # which counts it as read
    if marked := find_answer(answer, "hash"):
        columns.setdefault("solution", answer)
        answer = marked.text
    named = row.get("kind")
    if isinstance(named, str) and named:
        kind = named
    text = str(messages[-1]["content"])
    if messages == [{"role": "user", "content": text}]:
        return Problem(text, answer, kind, columns)
    return Problem(text, answer, kind, columns, messages)


def _text(value: Any, name: str) -> str:
    value = number_as_text(value)
    if not isinstance(value, str):
        if value is None:
            raise BadRow(f"{name} is missing")
        raise BadRow(f"{name} is not a text but {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow(f"{name} holds a lone surrogate")
    return value
