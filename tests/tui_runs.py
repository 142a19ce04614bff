"""Run folders with fixed contents for the tests of the terminal UI, and what a screen shows as
text.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from ondevice.config.recipe import load_recipe
from ondevice.runs.events import EventWriter, LineFile
from ondevice.runs.folder import RunFolder, StageFolder
from ondevice.stages.pipeline import recipe_text
from ondevice_tui.app import OndeviceApp

START = 1_700_000_000.0
WIDE = (120, 36)
# the fast tests take one size: what differs is the layout alone
SIZES = [(80, 24), pytest.param(WIDE, marks=pytest.mark.slow)]


class Clock:
    """Seconds for EventWriters: one more at each event of any stage."""

    now = START

    def __call__(self) -> float:
        Clock.now += 1
        return Clock.now


def write_stage(
    stage: StageFolder,
    steps: int = 100,
    *,
    of: int = 0,
    fields: Callable[[int], dict[str, Any]] | None = None,
    answer: str = "in a small house",
    end: str = "done",
    warning: str = "",
) -> None:
    """A stage with `steps` steps, held-out losses, a sample; `end`: done, died, or the reason of a
    failure.
    """
    stage.create()
    stage.lock.touch()
    answers = [{"prompt": "Leo lives in…", "answer": answer}, {"prompt": "2 + 2 =", "answer": "4"}]
    with EventWriter(stage.events, now=Clock()) as events:
        events.emit(
            "start",
            0,
            stage=stage.name,
            steps=of or steps,
            config={"steps": of or steps, "seed": 7},
        )
        for step in range(1, steps + 1):
            numbers = fields(step) if fields else {}
            events.emit(
                "step",
                step,
                loss=6 * math.exp(-step / 30) + 1,
                lr=1e-3,
                grad_norm=0.5,
                tokens=step * 512,
                tokens_per_second=900.0,
                seconds=0.5,
                memory_bytes=10**9,
                **numbers,
            )
            if step % 25 == 0:
                events.emit("eval", step, loss=6 * math.exp(-step / 30) + 1.1, tokens=512)
            if step % 50 == 0:
                with LineFile(stage.samples) as file:
                    offset = file.append({"step": step, "answers": answers})
                events.emit("sample", step, offset=offset)
        if warning:
            events.emit("warning", steps, message=warning)
        if end == "done":
            events.emit("done", seconds=steps * 0.5)
        elif end != "died":
            events.emit("failed", reason=end, message=f"{end}: the disk is full")
    if end == "done":
        write_done(stage, answers)


def write_done(stage: StageFolder, answers: list[dict[str, str]]) -> None:
    record = {
        "fingerprint": {},
        "answers": answers,
        "seconds": 50.0,
        "cpu_seconds": 60.0,
        "peak_bytes": 10**9,
        "marks": {
            "bits_per_byte": 1.25,
            "exact_match": 0.731,
            "by_kind": {"sum": [3, 4], "facts": [1, 2]},
        },
        "outcome": {"steps": 100, "tokens": 51200, "loss": 1.31},
    }
    stage.create()
    stage.done.write_text(json.dumps(record))
    stage.model.mkdir(exist_ok=True)
    (stage.model / "config.json").write_text("{}")


def a_run(folder: Path, name: str = "first", recipe: str = "minute") -> RunFolder:
    """init and pretrain are done, sft died after 40 of 100 steps."""
    run = RunFolder(folder / name)
    write_stage(run.stage("init"), 0, answer="xq zz")
    write_stage(run.stage("pretrain"))
    write_stage(run.stage("sft"), 40, of=100, end="died")
    if recipe:
        run.recipe.write_text(recipe_text(load_recipe(recipe)))
    return run


def app_on(folder: Path) -> OndeviceApp:
    return OndeviceApp(folder, look_at_machine=False)


def shown(app: OndeviceApp) -> str:
    """What stands on the screen, line by line."""
    return "\n".join(
        "".join(segment.text for segment in strip).rstrip()
        for strip in app.screen._compositor.render_strips()
    )


async def until(pilot: Pilot[Any], holds: Callable[[], object], what: str = "") -> None:
    """Waits until something holds; gives up after a time that no machine needs."""
    for _ in range(int(os.environ.get("UNTIL", "2400"))):
        await pilot.pause()
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never came: {what}\n{shown(pilot.app)}")  # type: ignore[arg-type]


def in_one_line(text: str) -> str:
    """With every run of spaces and ends of lines as one space: where a line breaks depends on what
    else it says."""
    return " ".join(text.split())


async def until_shown(pilot: Pilot[Any], *texts: str) -> str:
    """Waits until all these texts stand on the screen, wherever their lines break; returns all that
    stands there."""
    for text in texts:

        def stands(text: str = text) -> bool:
            screen = shown(pilot.app)  # type: ignore[arg-type]
            return text in screen or in_one_line(text) in in_one_line(screen)

        await until(pilot, stands, text)
    return shown(pilot.app)  # type: ignore[arg-type]


def completion(
    text: str, right: bool, advantage: float, *, truncated: bool = False
) -> dict[str, Any]:
    """A completion as GRPO writes it; the answer is its last word."""
    parsed = text.rsplit(" ", 1)[-1]
    return {
        "text": text,
        "tokens": len(text.split()),
        "truncated": truncated,
        "advantage": advantage,
        "rewards": {"correct": float(right), "format": 0.2},
        "reward": right + 0.2,
        "parsed": parsed,
        "span": [len(text) - len(parsed), len(text)],
    }


def group(step: int, kind: str) -> dict[str, Any]:
    """A group of four: all right, all wrong, mixed or truncated."""
    rights = {"all right": [1, 1, 1, 1], "all wrong": [0, 0, 0, 0]}.get(kind, [1, 0, 0, 1])
    made = [
        completion(
            f"{step} and {i} make {43 if right else 33}",
            bool(right),
            0.87 if right else -0.87,
            truncated=kind == "truncated" and i == 2,
        )
        for i, right in enumerate(rights)
    ]
    return {"prompt": f"What is {step}+{kind}?", "answer": "43", "completions": made}


def write_held_out(stage: StageFolder, step: int, right: bool, *, said: str = "so it is") -> None:
    """A measurement of two held-out problems after this step, as GRPO and PPO write it."""
    groups = [
        {
            "prompt": f"What is {n}+1?",
            "answer": "43",
            "completions": [completion(f"{said} {43 if right else 33}", right, 0.0)],
        }
        for n in (5, 6)
    ]
    with LineFile(stage.path / "groups.jsonl") as file:
        place = file.append({"held_out": True, "step": step, "groups": groups})
    with EventWriter(stage.events, now=Clock()) as events:
        events.emit("eval", step, accuracy=float(right), reward=right + 0.2, groups=place)


def write_grpo(stage: StageFolder, steps: int = 20) -> None:
    """A finished GRPO stage; a step has a mixed group, one all right or wrong, and one mixed or
    (every fourth) cut.
    """
    offsets = []
    with LineFile(stage.create().path / "groups.jsonl") as file:
        for step in range(1, steps + 1):
            kinds = [
                "mixed",
                "all right" if step % 2 else "all wrong",
                "truncated" if step % 4 == 0 else "mixed",
            ]
            offsets.append(
                file.append({"step": step, "groups": [group(step, kind) for kind in kinds]})
            )
    write_stage(
        stage,
        steps,
        fields=lambda step: {
            "reward": step / steps,
            "reward_std": 0.2,
            "accuracy": step / steps,
            "kl": 0.01,
            "entropy": 1.2,
            "completion_length": 40 + step,
            "clip_fraction": 0.02,
            "zero_spread": 0.66,
            "reward/correct": step / steps,
            "reward/format": 0.2,
            "groups": offsets[step - 1],
        },
    )


async def until_told(pilot: Pilot[Any], text: str) -> None:
    """Waits for a toast that says this, wherever its lines break."""
    app = pilot.app
    await until(
        pilot, lambda: any(text in in_one_line(note.message) for note in app._notifications), text
    )
