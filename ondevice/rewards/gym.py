"""Tasks of reasoning-gym (extra `[rewards]`): `gym:NAME` or `gym:NAME?key=value&…`, questions made
by rule, each task with a scorer of its own."""

from __future__ import annotations

import base64
import itertools
import pickle
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from ondevice.common.errors import UserError, nearest
from ondevice.common.json_files import parse_json
from ondevice.common.rng import generator
from ondevice.data.builtin.splits import Split, place

PARTS = {"train": 0.7, "validation": 0.15, "heldout": 0.15}
"""Which part of all questions each split may use; a question's text decides."""
PAGE = 1000
"""Questions that a task is asked for at once: most are made when they are looked at, but some tasks
make all first.
"""


def entries(task: str, split: Split, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` entries {"question", "answer", "metadata"} of `NAME?key=value&…`, fewer where new
    ones no longer turn up.

    Each split has a seed of its own, and a question belongs to one split only. Raises UserError for
    an unknown task or setting.
    """
    seen: set[str] = set()
    misses = 0
    for entry in _draws(task, split, seed):
        question = entry["question"]
        if question in seen or place(seed, "gym", question, PARTS) != split:
            misses += 1
            if misses > 500:
                return
            continue
        misses = 0
        seen.add(question)
        yield entry
        if len(seen) == count:
            return


def column(task: str, entry: dict[str, Any]) -> dict[str, str]:
    """What the reward `correct` needs to score this row by the task's own scorer, as JSON can carry
    it.

    The entry is pickled: half of the tasks keep tuples and other things in it that JSON would
    change.
    """
    return {"task": task, "entry": base64.b64encode(pickle.dumps(entry)).decode()}


def open_task(task: str, seed: int, size: int) -> Any:
    """reasoning-gym's data set of `NAME?key=value&…`. Raises UserError: not installed, an unknown
    name, a setting that the task does not take."""
    name, _, rest = task.partition("?")
    try:
        import reasoning_gym  # 0.9 s
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        from ondevice.common.distribution import install_hint

        raise UserError(
            "needs the library reasoning-gym", where=f"gym:{task}", hint=install_hint("rewards")
        ) from error
    known = set(DATASETS) - {"composite"}
    if name not in known:
        raise UserError(
            f"there is no task {name!r}", where=f"gym:{task}", hint=nearest(name, known)
        )
    given = parse_qsl(rest, keep_blank_values=True)
    settings = {key: _value(value) for key, value in given}
    if reserved := {"seed", "size"} & set(settings):
        raise UserError(
            f"{min(reserved)} is not given here", where=f"gym:{task}", hint="the stage decides it"
        )
    known = set(DATASETS[name][1].__dataclass_fields__) - {"seed", "size"}
    for key in settings:
        if key not in known:
            raise UserError(
                f"{name} has no setting {key!r}", where=f"gym:{task}", hint=nearest(key, known)
            )
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
    except Exception as error:  # a task tests its settings by assertions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot be made: {reason}", where=f"gym:{task}", hint="mend its settings"
        ) from error


def _draws(task: str, split: Split, seed: int) -> Iterator[dict[str, Any]]:
    """Entries without end, some of them more than once."""
    for page in itertools.count():
        numbers = generator(seed, "gym", task, split, page)
        questions = open_task(task, seed=int(numbers.integers(1 << 30)), size=PAGE)
        for number in range(PAGE):
            try:
                entry = questions[number]
            except Exception as error:  # settings valid one by one may leave nothing to ask
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"cannot make a question: {reason}",
                    where=f"gym:{task}",
                    hint="mend its settings",
                ) from error
            yield entry


def _value(text: str) -> Any:
    """A setting as JSON reads it (numbers, true, lists), else the text itself."""
    try:
        return parse_json(text)
    except ValueError:
        return text
