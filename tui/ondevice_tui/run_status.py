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
from ondevice.runs.run_time import run_time_of

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
HALTED = ("stopped", "failed", "died")  # states of what was begun and is not complete
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
    if not run:
        run = {"stages": [], "recipe": []}
    states = {stage["stage"]: stage for stage in run["stages"]}
    found = []
    for name in _shown_stages(run, states, starting):
        if name in starting and states.get(name, {}).get("state") != "training":
            found.append(_starting(name))
        elif name in states:
            found.append(_begun(name, states[name]))
        else:
            found.append(_open(name, states, run))
    return found


def _shown_stages(
    run: Mapping[str, Any], states: Collection[str], starting: Collection[str]
) -> list[str]:
    """The stages that the road shows, in its order; what is not on it comes last."""
    names = []
    for name in STAGES:
        wanted = name in states or name in run["recipe"] or name in starting
        if wanted or gives(name) != "classifier":
            names.append(name)
    names += [name for name in states if name not in STAGES]
    return names


def next_row(found: Sequence[Row]) -> int:
    """The row of the next sensible action: what trains, what stopped short, else the first that can
    be begun.
    """
    for wanted in (("training", "starting"), ("failed", "died", "stopped"), ("next",)):
        for i, row in enumerate(found):
            if row.state in wanted:
                return i
    last_done = 0
    for i, row in enumerate(found):
        if row.state == "done":
            last_done = i
    return last_done


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
    enter = "watch"
    if stage["state"] in HALTED and not startable(name):
        enter = "rate"  # a person's choice: no command resumes it
    return Row(
        name,
        stage["state"],
        _share(stage),
        _told(stage),
        _seconds(stage),
        stage["last"],
        enter,
        stage["message"],
    )


def _waits(name: str, told: str, why: str, enter: str = "start") -> Row:
    """A stage that cannot be begun yet, and why."""
    return Row(name, "waits", None, told, None, None, enter, why)


def _open(name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> Row:
    """A stage that has not been begun."""
    enter = "start"
    if not startable(name):
        enter = "rate"
    unstarted = (run.get("unstarted") or {}).get(name)
    if unstarted:
        told = f"did not start: {unstarted}"
        return Row(name, "failed", None, told, None, None, enter, unstarted)
    recipe = list(run.get("recipe") or ())
    busy = _first_in(states, ("training",))
    if busy and name in recipe:
        return _waits(name, "comes by itself", "the run's recipe begins it", "")
    if busy and recipe:
        return _waits(name, "not in this run's recipe", f"{busy} trains now", enter)
    if busy:
        return _waits(name, f"waits for {busy}", f"{busy} trains now", enter)
    if enter == "rate":
        return _to_rate(name, states, run)
    return _to_start(name, states, run)


def _to_start(name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> Row:
    """A stage that a command starts, while nothing trains."""
    before = _before(name, states)
    wants = _wants(name, states, run)
    if _passed(name, states) or _passed_by_pairs(name, states, run):
        told = "left out by this run"
        if before and not wants:
            told = f"left out; can start from {before}"
        return Row(name, "skipped", None, told, None, None, "start", "")
    recipe = list(run.get("recipe") or ())
    halted = _first_in(states, HALTED)
    if halted in recipe and name in recipe:
        why = f"R on {halted} goes on with the run's recipe"
        return _waits(name, f"comes by itself once {halted} goes on", why)
    if wants:
        told, why = wants
        return _waits(name, told, why)
    if before:
        return Row(name, "next", None, f"can start from {before}", None, None, "start", "")
    if name == "init":
        told = "a tokenizer and random weights"
        return Row(name, "next", None, told, None, None, "start", "")
    if _learns_from_votes(name) and run.get("votes"):
        told = "there are votes; its form asks for the model"
        why = "ctrl+t in its form chooses the model"
        return Row(name, "next", None, told, None, None, "start", why)
    why = "needs a model: begin with init, or start it from any folder"
    return _waits(name, "needs a model", why)


def _first_in(states: Mapping[str, Mapping[str, Any]], wanted: Collection[str]) -> str:
    """The first stage of the run in one of these states; empty where there is none."""
    for name, stage in states.items():
        if stage["state"] in wanted:
            return name
    return ""


def _to_rate(name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> Row:
    """The row of a person's choice. It can be made as soon as there are pairs, whatever else the
    run has.
    """
    if not run.get("ratings"):
        told = "needs answers to choose among: sample writes some"
        return _waits(name, told, "no pairs yet: m there samples some", "rate")
    state = "waits"
    told = "its ratings hold no pair yet"
    votes = run.get("votes") or 0
    pending = run.get("pending") or 0
    trouble = run.get("ratings_trouble")
    if trouble:
        told = f"its ratings: {trouble}"
    elif votes and pending:
        told = f"{votes} rated by a person, {pending} wait"
    elif votes:
        told = f"{votes} rated by a person"
    elif pending:
        told = f"a person's choice among {pending} pairs"
    if pending or trouble:
        state = "next"
        if _passed(name, states):
            state = "done" if votes else "skipped"  # a later stage has learned from them
    elif votes:
        state = "done"
    return Row(name, state, None, told, None, None, "rate", "")


def _wants(
    name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> tuple[str, str] | None:
    """(what a stage wants beside a model and has not, what to do about it)."""
    rated = run.get("votes") or states.get("rate", {}).get("state") == "done"
    if _learns_from_votes(name) and not rated:
        return (
            "needs pairs: rate some answers first",
            "no votes yet: 4 rates, or name a file of pairs in its form",
        )
    if _needs_reward_model(name) and not _has_reward_model(states):
        return (
            "needs a reward model",
            "no reward model yet: start reward, or name another run's in its form",
        )
    return None


def _has_reward_model(states: Mapping[str, Mapping[str, Any]]) -> bool:
    done = [name for name, stage in states.items() if stage["state"] == "done"]
    return any(gives(name) == "reward" for name in done)


def _learns_from_votes(name: str) -> bool:
    return name in STAGES and issubclass(STAGES[name], PairsConfig)


def _needs_reward_model(name: str) -> bool:
    if name not in STAGES:
        return False
    for field in dataclasses.fields(STAGES[name]):
        if field.name == "reward_model":
            return bool(field.default == "")
    return False


def _passed_by_pairs(
    name: str, states: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]
) -> bool:
    """Whether a run has pairs, and no model that would go the road up to them: they came from a
    file, or from a model of elsewhere. What comes next is a person's choice, and what learns from
    it."""
    if not run.get("ratings") or any(gives(stage) == "policy" for stage in states):
        return False
    order = list(STAGES)
    return name in order[: order.index("rate")]


def startable(name: str) -> bool:
    """Whether a command of this name runs the stage (`ondevice rate` is for people, the stage
    `rate` is a recipe's).
    """
    from ondevice.config.verbs import VERBS

    if name not in VERBS or name not in STAGES:
        return False
    return VERBS[name].config.endswith(f":{STAGES[name].__name__}")


def _before(name: str, states: Mapping[str, Mapping[str, Any]]) -> str:
    """The last finished stage before this one on the road that left a model which writes."""
    found = ""
    for stage in STAGES:
        if stage == name:
            break
        if states.get(stage, {}).get("state") == "done" and gives(stage) == "policy":
            found = stage
    return found


def _passed(name: str, states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the run has gone by this stage: a later one has been begun, or the one in whose place
    it would stand.
    """
    if name == "dpo" and "ppo" in states:
        return True
    if name not in STAGES:
        return False
    order = list(STAGES)
    later = order[order.index(name) + 1 :]
    return not states.keys().isdisjoint(later)


def _share(stage: Mapping[str, Any]) -> float | None:
    step = stage["step"]
    total = stage["steps"]
    if isinstance(step, int) and isinstance(total, int) and total > 0:
        return step / total
    return None


def _seconds(stage: Mapping[str, Any]) -> float | None:
    """Of work: what passed between a stop and its resume is not counted."""
    if stage["state"] == "done" and isinstance(stage["seconds"], (int, float)):
        return float(stage["seconds"])
    if stage["last"] is not None:
        return stage["last"] - stage["began"] - stage["paused"]
    return None


def _told(stage: Mapping[str, Any]) -> str:
    """The headline: numbers where it has some, else what went wrong."""
    state = stage["state"]
    numbers = stage["numbers"]
    if stage.get("waiting"):
        return f"paused: {stage['waiting']}"
    if stage["message"] and (state == "failed" or (state == "stopped" and not numbers)):
        return str(stage["message"])
    if state == "died" and stage["step"] is not None:
        return f"process gone after step {stage['step']}"
    if state == "died":
        return "process gone"
    chosen = {}
    for name in ("reward", "accuracy", "heldout_loss", "loss"):
        if name in numbers:
            chosen[name.replace("heldout_loss", "held-out")] = numbers[name]
    first_two = list((chosen or _marks(stage)).items())[:2]
    return numbers_line(dict(first_two))


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
    """Time left: "9:12 left", by its plan "≈ 9:12 left"; empty where neither is known."""
    seconds, measured = seconds_left(stage)
    if seconds is None:
        return ""
    return f"{'' if measured else '≈ '}{duration(seconds)} left"


def seconds_left(stage: Mapping[str, Any]) -> tuple[float | None, bool]:
    """(seconds, whether they are measured): by the pace of work since it began, or since it went on
    last; what was a pause meanwhile does not count. Until a step is done, what its plan said."""
    step = stage["step"]
    total = stage["steps"]
    if not isinstance(step, int) or not isinstance(total, int) or step >= total:
        return None, False
    if stage["since"] is None or stage["last"] is None:
        return None, False
    began, first_step = stage["since"]
    done = step - first_step
    seconds = stage["last"] - began - (stage.get("idle") or 0.0)
    if done > 0 and seconds > 0:
        return seconds * (total - step) / done, True
    planned = stage.get("planned")
    return (planned * (total - step) / total if planned else None), False


def run_seconds_left(run: Mapping[str, Any]) -> float | None:
    """Of work, of the stage that trains and of those that its recipe has after it: their plan, as
    much longer or shorter as the work so far took than its own. Pauses count in neither, nor what a
    person takes to rate. None where a stage has no plan, or the run has a time of its own."""
    recipe = list(run.get("recipe") or ())
    planned: Mapping[str, float] = run.get("planned") or {}
    states = {stage["stage"]: stage for stage in run["stages"]}
    name = _first_in(states, ("training",))
    if name not in recipe or any(one not in planned for one in recipe):
        return None
    now = states[name]
    if run_time_of(now) is not None:
        return None
    took = foreseen = 0.0
    for one, stage in states.items():
        if stage["state"] == "done":
            share = 1.0
        else:
            share = _share(stage)
        worked = _seconds(stage)
        if one in planned and share and worked is not None and worked > 0:
            took += worked
            foreseen += planned[one] * share
    if took > 0 and foreseen > 0:
        pace = took / foreseen
    else:
        pace = 1.0
    left_now, measured = seconds_left(now)
    if left_now is None or not measured:
        left_now = pace * planned[name] * (1 - (_share(now) or 0.0))
    after = recipe[recipe.index(name) + 1 :]
    return left_now + pace * sum(planned[one] for one in after)


def place_in_recipe(run: Mapping[str, Any] | None) -> str:
    """Where a run that trains is in its recipe: "step 2 of 8, ≈ 6:10 left of the run"; else empty."""
    if not run:
        return ""
    recipe = list(run.get("recipe") or ())
    for stage in run["stages"]:
        if stage["state"] == "training" and stage["stage"] in recipe:
            place = f"step {recipe.index(stage['stage']) + 1} of {len(recipe)}"
            return ", ".join(filter(None, [place, run_left(run)]))
    return ""


def run_left(run: Mapping[str, Any]) -> str:
    """ "≈ 6:10 left of the run"; empty where that is not known."""
    seconds = run_seconds_left(run)
    return "" if seconds is None else f"≈ {duration(seconds)} left of the run"


def time_used(stage: Mapping[str, Any]) -> str:
    """Of a stage that trains in a run with a time: "stage 3 of 7, 4:10 of 10:00"; else empty."""
    time = run_time_of(stage)
    if time is None or stage["state"] != "training":
        return ""
    return time.words(max(_seconds(stage) or 0.0, 0.0))


def ago(t: float | None) -> str:
    """How long ago, in two or three words."""
    if t is None:
        return ""
    seconds = max(clock() - t, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"
