"""Commands and deeds of the app that are killed at one file operation after another, done again, and
compared with one that was not killed. A program of its own, which has no threads when it forks:

    python killed_commands.py WORK FOLDER EVERY

prints how often it was killed. Run by test_killed.py.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from killed import files_in, in_a_child, killed_at_each
from ondevice.hub.pull import ORIGIN

DTYPE = {"gguf": "f32", "hf": "float32"}
# Columns that a clock or a name of this machine is in.
MEASURED = ("created", "at", "session", "time", "dwell_ms")


class Case(NamedTuple):
    """`prepare` fills a folder; `work` is done in a copy of it, killed, and done `again`; `result` is
    what must be the same as of one that was not killed."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    again: Callable[[Path], None]
    result: Callable[[Path], Any]


def rows_of(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, without what was measured."""
    found = {}
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for (table,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            names = [row[1] for row in opened.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(name for name in names if name not in MEASURED)
            found[table] = list(opened.execute(f"SELECT {kept} FROM {table} ORDER BY rowid"))
    return found


def quiet(work: Callable[[Path], None]) -> Callable[[Path], None]:
    def silent(place: Path) -> None:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            work(place)

    return silent


# ---- export ---------------------------------------------------------------------------------------


def a_model(folder: Path) -> None:
    import small_stages
    from ondevice.seam.select import load_backend

    small_stages.make(folder, load_backend("torch", "cpu", "float32"))


def with_torch() -> None:
    """Imported before a child is forked, for each of them."""
    for module in ("ondevice_torch.backend", "torch._dynamo", "ondevice.stages.sample"):
        importlib.import_module(module)


def export(form: str) -> Case:
    import ondevice as od

    with_torch()

    def work(place: Path) -> None:
        od.export(
            place / "policy", form, out=str(place / "out"), dtype=DTYPE[form], backend="torch"
        )

    def again(place: Path) -> None:
        if (place / "out").exists():  # it was there as a whole when the process was killed
            before = files_in(place / "out")
            shutil.rmtree(place / "out")
            work(place)
            assert before == files_in(place / "out"), "half an export stood under its name"
        else:
            work(place)

    return Case(a_model, quiet(work), quiet(again), files_in)


# ---- pull -----------------------------------------------------------------------------------------


def at(address: str) -> Any:
    """The Hub's client asks this server; its constants."""
    import huggingface_hub.constants as constants

    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = address
    constants.HUGGINGFACE_CO_URL_TEMPLATE = (
        f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    return constants


def pull(address: str) -> Case:
    import ondevice as od

    constants = at(address)

    def work(place: Path) -> None:
        constants.HF_HUB_CACHE = str(place / "cache")
        od.pull("me/m", out=place / "out", tell=lambda event: None)

    def again(place: Path) -> None:
        if (place / "out").exists():
            before = files_in(place / "out")
            shutil.rmtree(place / "out")
            work(place)
            assert before == files_in(place / "out"), "half a model stood under its name"
        else:
            work(place)

    def result(place: Path) -> Any:
        assert not list(place.glob(".tmp-*")), "what was begun is left behind"
        return files_in(place / "out")

    return Case(lambda folder: folder.mkdir(), work, again, result)


def push(address: str) -> Case:
    """Of each folder to a repository of its own, in which its content must stand by one commit."""
    from huggingface_hub import HfApi

    import ondevice as od
    from hub_models import write_model
    from ondevice.publishing.plan import PENDING

    constants = at(address)

    def to(place: Path, **how: Any) -> None:
        constants.HF_HUB_CACHE = str(place / "cache")
        od.push(place / "m", f"me/{place.name}", tell=lambda event: None, **how)

    def again(place: Path) -> None:
        to(place, resume=(place / "m" / PENDING).exists())

    def result(place: Path) -> Any:
        assert not (place / "m" / PENDING).exists()
        name = f"me/{place.name}"
        titles = [commit.title for commit in HfApi(address).list_repo_commits(name)]
        constants.HF_HUB_CACHE = str(place / "cache")
        od.pull(name, out=place / "got", tell=lambda event: None)
        found = files_in(place / "got")
        found.pop(ORIGIN)
        # the card names the repository
        found["README.md"] = found["README.md"].replace(place.name.encode(), b"m")
        return titles, found

    return Case(lambda folder: write_model(folder / "m"), to, again, result)


# ---- sample, rate, and what the app keeps -----------------------------------------------------------


def sample() -> Case:
    import ondevice as od

    with_torch()

    def work(place: Path, **more: Any) -> None:
        od.sample(
            str(place / "policy"),
            str(place / "prompts.jsonl"),
            out=str(place / "run"),
            backend="torch",
            device="cpu",
            max_new_tokens=3,
            **more,
        )

    def again(place: Path) -> None:
        work(place, resume=(place / "run" / "sample" / "events.jsonl").exists())

    def result(place: Path) -> Any:
        return rows_of(place / "run" / "ratings.db")

    return Case(a_model, quiet(work), quiet(again), result)


def rate() -> Case:
    """Ten votes, a skip, a note, and one vote taken back, as the app and the terminal store them."""
    from ondevice.preferences.database import Ratings
    from ondevice.preferences.votes import Response

    def prepare(folder: Path) -> None:
        folder.mkdir()
        with Ratings.open(folder, create=True) as ratings:
            for n in range(12):
                ratings.add("b", f"question {n}", [Response("x"), Response(f"y {n}")], seed=n)

    def work(place: Path) -> None:
        with Ratings.open(place) as ratings:
            for item in ratings.queue("ann")[:10]:
                ratings.vote(item, "ann", "s", ranking=[item % 2])
            ratings.skip(ratings.queue("ann")[0], "ann", "s")
            ratings.note(1, "ann", "s", "why")
            ratings.undo("ann", "s")

    def again(place: Path) -> None:
        """What was stored before the kill is the beginning of what was done; the rest is done."""
        votes = whole_votes(place)
        with Ratings.open(place) as ratings:
            steps = [(v.item, v.action, tuple(v.ranking or ())) for v in ratings.votes()]
        assert steps == votes[: len(steps)], "a vote is lost, or was never given"
        shutil.rmtree(place)
        prepare(place)
        work(place)

    def whole_votes(place: Path) -> list[Any]:
        known = json.loads((place.parent / "votes.json").read_text())
        return [(item, action, tuple(ranking)) for item, action, ranking in known]

    def result(place: Path) -> Any:
        with Ratings.open(place) as ratings:
            steps = [(v.item, v.action, list(v.ranking or ())) for v in ratings.votes()]
        file = place.parent / "votes.json"
        if not file.exists():
            file.write_text(json.dumps(steps))
        return steps

    return Case(prepare, work, again, result)


def kept() -> Case:
    """What the app keeps beside runs: a conversation that grows, and what it remembers."""
    from ondevice.common.remembered import Remembered
    from ondevice.inference import conversations
    from ondevice.inference.conversations import Conversation

    turns = []
    for n in range(4):
        turns += [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}]

    def work(place: Path) -> None:
        for count in (2, 4, 8):
            conversations.save(place / "chats" / "one.jsonl", Conversation(turns[:count]))
            Remembered(place / "settings.json").keep("turns", count)

    def again(place: Path) -> None:
        file, remembered = place / "chats" / "one.jsonl", Remembered(place / "settings.json")
        if file.exists():
            assert conversations.load(file).messages in (turns[:2], turns[:4], turns)
        if (place / "settings.json").exists():
            assert remembered.get("turns", lambda value: True) in (2, 4, 8)
        saved = len(conversations.load(file).messages) if file.exists() else 0
        for count in (2, 4, 8):
            if count >= saved:
                conversations.save(file, Conversation(turns[:count]))
                remembered.keep("turns", count)

    def result(place: Path) -> Any:
        rows = (place / "chats" / "one.jsonl").read_text().splitlines()
        stray = sorted(f.name for f in place.rglob("*") if ".tmp" in f.name)
        assert len(stray) <= 1, stray
        return [json.loads(row)["messages"] for row in rows], (place / "settings.json").read_text()

    return Case(lambda folder: folder.mkdir(), work, again, result)


CASES: dict[str, Callable[[], Case]] = {
    "export gguf": lambda: export("gguf"),
    "export hf": lambda: export("hf"),
    "pull": lambda: pull(os.environ["KILLED_HUB"]),
    "push": lambda: push(os.environ["KILLED_HUB"]),
    "sample": sample,
    "rate": rate,
    "kept": kept,
}


def main(name: str, folder: Path, every: int) -> int:
    case = CASES[name]()
    start = folder / "start"
    if in_a_child(lambda place: case.prepare(start), folder):
        return 1
    whole = folder / "whole"
    shutil.copytree(start, whole)
    if in_a_child(case.work, whole):
        return 1
    expected = case.result(whole)
    times = 0
    for place in killed_at_each(case.work, start, folder, every):
        if in_a_child(case.again, place):
            print(f"{name}: cannot be done again at {place}", file=sys.stderr)
            return 1
        if case.result(place) != expected:
            print(f"{name}: another result at {place}", file=sys.stderr)
            return 1
        shutil.rmtree(place)
        times += 1
    print(times)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
