"""The stages of a run as lines: each with its state, its main numbers and its time; what Enter does
with one; the first prompt as its stages answered it.
"""

from __future__ import annotations

from typing import Any

from textual.content import Content

from ondevice.common.progress import duration
from ondevice.runs.folder import RunFolder
from ondevice_tui import run_status
from ondevice_tui.run_status import HALTED, MARKS, STYLES, Row
from ondevice_tui.widgets.safe import cell, content, line


def first_answers(run: RunFolder) -> list[Content]:
    """The first prompt that a run's finished stages were asked, with the answer of each."""
    rows: list[Content] = []
    for stage in run.stages():
        answers = (stage.done_record() or {}).get("answers")
        if not isinstance(answers, list) or not answers:
            continue
        first = answers[0]
        if not isinstance(first, dict) or not first:
            continue
        if not rows:
            rows = [line("> ", (str(first.get("prompt", "")), "bold")), content("")]
        rows += [
            content(stage.name, "bold $primary"),
            content(str(first.get("answer", "")).strip(), limit=1200),
            content(""),
        ]
    return rows


def enter_parts(row: Row) -> list[str | tuple[str, str]]:
    """What Enter does with this stage, and what else is worth doing."""
    why = f"   {row.why}" if row.why else ""
    if row.state == "training":
        return [("watch ", "bold"), row.stage, "   X stops it (saved)"]
    if row.enter == "rate":
        return [("rate ", "bold"), "answers two by two", (why, "$muted")]
    if row.state == "failed" and row.enter == "start":
        return [("start ", "bold"), row.stage, " once more   L log", (f" {row.told}", "$muted")]
    if row.state in HALTED:
        if row.why:
            why = f" {row.why.splitlines()[0]}"
        return [("look at ", "bold"), row.stage, "   R resumes it   L log", (why, "$muted")]
    if row.enter == "watch":
        return [("look at ", "bold"), row.stage]
    if row.enter == "start":
        return [("start ", "bold"), row.stage, (why, "$muted")]
    return [(row.why, "$muted")]


def stage_line(row: Row, state: dict[str, Any] | None, width: int) -> Content:
    """`init  ✓ done  loss 2.3 …  1:12  2h ago`, in `width` cells."""
    word = row.state
    style = STYLES[row.state]
    if state and state.get("waiting"):
        word, style = "paused", STYLES["stopped"]
    elif row.state == "training" and row.share is None:
        word = "running"
    elif row.state == "training":
        word = f"{row.share:.0%}"
    elif row.state == "next":
        word = "ready"
    head = line(
        (cell(row.stage, 10), "bold"),
        " ",
        (f"{MARKS[row.state]} ", f"bold {style}"),
        (cell(word, 8), style),
        " ",
    )
    end = []
    if row.state == "training" and state:
        end.append(run_status.left(state))
    elif row.seconds is not None:
        end.append(duration(row.seconds))
    if width >= 70 and row.last is not None and row.state != "training":
        end.append(f"{run_status.ago(row.last):>8}")
    tail = ""
    if end:
        tail = " " + "  ".join(filter(None, end))
    room = width - head.cell_length - len(tail)
    style = "" if state else "$muted"
    return line(head, (cell(row.told, max(room, 0)), style), (tail, "$muted"))
