"""What stands in a run and what is sensible next: pure functions over `listing.stage_state`, for
the home screen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.common.clock import clock
from ondevice.common.progress import duration, numbers_line
from ondevice.config.preference import PairsConfig
from ondevice.config.recipe import STAGES, gives

MARKS = {
    "done": "✓",
    "training": "▶",
    "stopped": "‖",
    "failed": "✗",
    "died": "✗",
    "waits": "·",
    "skipped": "·",
    "next": "▸",
    "wrong": "✗",
    "starting": "▶",
}
STYLES = {
    "done": "$success",
    "training": "$accent",
    "stopped": "$warning",
    "failed": "$error",
    "died": "$error",
    "waits": "$muted",
    "skipped": "$muted",
    "next": "$text",
    "wrong": "$error",
    "starting": "$accent",
}
OPEN = ("next", "skipped", "waits")  # states of what has not been begun
STALE_S = 10.0  # without an event for so long, a person wants to be told


@dataclass(frozen=True)
class Row:
    """A stage of the road. `enter` is what Enter does with it: watch, start or "" (it cannot be
    begun yet).
    """

    stage: str
    state: str
    share: float | None
    told: str
    seconds: float | None
    last: float | None
    enter: str
    why: str


def rows(run: Mapping[str, Any] | None, starting: Collection[str] = ()) -> list[Row]:
    """Every stage there is, in the order of the road; what a run has beside them comes last. A
    classifier is a side road, of encoders for the most part: it is shown where a run has one or its
    recipe makes one. `starting`: stages whose process was started here and has not begun them yet.
    """
    states = {stage["stage"]: stage for stage in run["stages"]} if run else {}
    recipe = list(run["recipe"]) if run else []
    names = [
        name
        for name in STAGES
        if gives(name) != "classifier" or name in states or name in recipe or name in starting
    ]
    names += [name for name in states if name not in STAGES]
    return [
        _starting(name)
        if name in starting and states.get(name, {}).get("state") != "training"
        else _begun(name, states[name])
        if name in states
        else _open(name, states, run or {})
        for name in names
    ]


def next_row(found: Sequence[Row]) -> int:
    """The row of the next sensible action: what trains, what stopped short, else the first that can
    be begun.
    """
    for wanted in (("training", "starting"), ("failed", "died", "stopped"), ("next",)):
        for i, row in enumerate(found):
            if row.state in wanted:
                return i
    return max((i for i, row in enumerate(found) if row.state == "done"), default=0)


def _starting(name: str) -> Row:
    return Row(
        name,
        "starting",
        None,
        "its process was started and loads …",
        None,
        None,
        "",
        "it is starting",
    )


def _begun(name: str, stage: Mapping[str, Any]) -> Row:
    by_person = not startable(name) and stage["state"] in ("stopped", "failed", "died")
    return Row(
        name,
        stage["state"],
        _share(stage),
        _told(stage),
        _seconds(stage),
        stage["last"],
        "rate" if by_person else "watch",
        stage["message"],
    )


def _open(name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> Row:
    """A stage that has not been begun."""

    def row(
        state: str, told: str, why: str = "", enter: str = "start" if startable(name) else "rate"
    ) -> Row:
        return Row(name, state, None, told, None, None, enter, why)

    busy = next((stage for stage, state in states.items() if state["state"] == "training"), "")
    recipe = list(run.get("recipe") or ())
    if unstarted := (run.get("unstarted") or {}).get(name):
        return row("failed", f"did not start: {unstarted}", unstarted)
    if busy and name in recipe:
        return row("waits", "comes by itself", "the run's recipe begins it", "")
    if busy:
        return row(
            "waits",
            "not in this run's recipe" if recipe else f"waits for {busy}",
            f"{busy} trains now",
        )
    if not startable(name):
        return _to_rate(row, name, states, run)
    before, wants = _before(name, states), _wants(name, states, run)
    if _passed(name, states) or _passed_by_pairs(name, states, run):
        ready = before and not wants
        return row(
            "skipped", f"left out; can start from {before}" if ready else "left out by this run"
        )
    halted = next(
        (
            stage
            for stage, state in states.items()
            if state["state"] in ("stopped", "failed", "died")
        ),
        "",
    )
    if halted in recipe and name in recipe:
        return row(
            "waits",
            f"comes by itself once {halted} goes on",
            f"R on {halted} goes on with the run's recipe",
        )
    if wants:
        return row("waits", *wants)
    if name == "init" or before:
        return row(
            "next", f"can start from {before}" if before else "a tokenizer and random weights"
        )
    if _learns_from_votes(name) and run.get("votes"):
        return row(
            "next",
            "there are votes; its form asks for the model",
            "ctrl+t in its form chooses the model",
        )
    return row(
        "waits", "needs a model", "needs a model: begin with init, or start it from any folder"
    )


def _to_rate(
    row: Any, name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> Row:
    """The row of a person's choice. It can be made as soon as there are pairs, whatever else the
    run has.
    """
    made: Row
    votes, pending, trouble = (
        run.get("votes") or 0,
        run.get("pending") or 0,
        run.get("ratings_trouble"),
    )
    waiting = f", {pending} wait" if pending else ""
    if trouble:
        told = f"its ratings: {trouble}"
    elif votes:
        told = f"{votes} rated by a person{waiting}"
    elif pending:
        told = f"a person's choice among {pending} pairs"
    else:
        told = "a person's choice among answers"
    if not run.get("ratings"):
        made = row(
            "waits",
            "needs answers to choose among: sample writes some",
            "no pairs yet: g there samples some",
        )
    elif pending or trouble:
        made = row("skipped" if _passed(name, states) else "next", told)
    else:
        made = row("done" if votes else "waits", told if votes else "its ratings hold no pair yet")
    return made


def _wants(
    name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> tuple[str, str] | None:
    """(what a stage wants beside a model and has not, what to do about it)."""
    if (
        _learns_from_votes(name)
        and not run.get("votes")
        and states.get("rate", {}).get("state") != "done"
    ):
        return (
            "needs pairs: rate some answers first",
            "no votes yet: r rates, or name a file of pairs in its form",
        )
    judged = any(
        state["state"] == "done" and gives(stage) == "reward" for stage, state in states.items()
    )
    if _needs_reward_model(name) and not judged:
        return (
            "needs a reward model",
            "no reward model yet: start reward, or name another run's in its form",
        )
    return None


def _learns_from_votes(name: str) -> bool:
    return name in STAGES and issubclass(STAGES[name], PairsConfig)


def _needs_reward_model(name: str) -> bool:
    fields = dataclasses.fields(STAGES[name]) if name in STAGES else ()
    return any(field.name == "reward_model" and field.default == "" for field in fields)


def _passed_by_pairs(
    name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> bool:
    """Whether a run has pairs, and no model that would go the road up to them: they came from a
    file, or from a model of elsewhere. What comes next is a person's choice, and what learns from
    it."""
    order = list(STAGES)
    return (
        bool(run.get("ratings"))
        and not any(gives(stage) == "policy" for stage in states)
        and name in order[: order.index("rate")]
    )


def startable(name: str) -> bool:
    """Whether a command of this name runs the stage (`ondevice rate` is for people, the stage
    `rate` is a recipe's).
    """
    from ondevice.config.verbs import VERBS

    return (
        name in VERBS
        and name in STAGES
        and VERBS[name].config.endswith(f":{STAGES[name].__name__}")
    )


def _before(name: str, states: Mapping[str, Mapping[str, Any]]) -> str:
    """The last finished stage before this one on the road that left a model which writes."""
    order = list(STAGES)
    earlier = order[: order.index(name)] if name in order else order
    done = (
        s
        for s in reversed(earlier)
        if states.get(s, {}).get("state") == "done" and gives(s) == "policy"
    )
    return next(done, "")


def _passed(name: str, states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the run has gone by this stage: a later one has been begun, or the one in whose place
    it would stand.
    """
    order = list(STAGES)
    if name == "dpo" and "ppo" in states:
        return True
    return name in order and any(later in states for later in order[order.index(name) + 1 :])


def _share(stage: Mapping[str, Any]) -> float | None:
    step, total = stage["step"], stage["steps"]
    if isinstance(step, int) and isinstance(total, int) and total > 0:
        return step / total
    return None


def _seconds(stage: Mapping[str, Any]) -> float | None:
    """Of work: what passed between a stop and its resume is none."""
    if stage["state"] == "done" and isinstance(stage["seconds"], (int, float)):
        return float(stage["seconds"])
    if stage["last"] is not None:
        return stage["last"] - stage["began"] - stage["paused"]
    return None


def _told(stage: Mapping[str, Any]) -> str:
    """The headline: numbers where it has some, else what went wrong."""
    if stage["message"] and (
        stage["state"] == "failed" or (stage["state"] == "stopped" and not stage["numbers"])
    ):
        return str(stage["message"])
    if stage["state"] == "died":
        return "process gone" + (
            f" after step {stage['step']}" if stage["step"] is not None else ""
        )
    numbers = stage["numbers"]
    order = ("reward", "accuracy", "heldout_loss", "loss")
    chosen = {
        name.replace("heldout_loss", "held-out"): numbers[name] for name in order if name in numbers
    }
    return numbers_line(dict(list((chosen or _marks(stage)).items())[:2]))


def _marks(stage: Mapping[str, Any]) -> dict[str, float]:
    """What a stage that does not train has come to."""
    words = {
        "queued": "pairs",
        "votes": "votes",
        "bits_per_byte": "bits/byte",
        "exact_match": "exact",
    }
    marks = stage.get("marks") or {}
    return {word: marks[name] for name, word in words.items() if name in marks}


def left(stage: Mapping[str, Any]) -> str:
    """Time left by the pace since it began, or since it went on last: "9:12 left". Empty while that
    is not known.
    """
    step, total, since, last = stage["step"], stage["steps"], stage["since"], stage["last"]
    if (
        not isinstance(step, int)
        or not isinstance(total, int)
        or since is None
        or last is None
        or step >= total
    ):
        return ""
    done, seconds = step - since[1], last - since[0]
    if done > 0 and seconds > 0:
        return f"{duration(seconds * (total - step) / done)} left"
    return ""


def ago(t: float | None) -> str:
    """How long ago, in two or three words."""
    if t is None:
        return ""
    seconds = max(clock() - t, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"
