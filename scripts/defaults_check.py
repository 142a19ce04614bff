"""What a stage's defaults do to a real model: `ondevice STAGE MODEL DATA` and nothing more, on a limit of
8 GB, with plain text and the stage's own task before and after.

    python scripts/defaults_check.py MODEL --data FOLDER           all stages; an hour of two cores
    python scripts/defaults_check.py MODEL --data FOLDER --stages dpo reward --again
    python scripts/defaults_check.py --document                    what is measured already

FOLDER holds chats.jsonl, pairs.jsonl and text.txt; the questions of grpo are made here. What is measured is kept in
docs/results/defaults.json; docs/results/defaults.md is written from it, with what a person has noted
there of a stage ("notes"). A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ondevice as od
from ondevice.common.progress import size
from ondevice.evaluation.held_out import EvalSuite

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MEMORY = "8GB"
ROWS = {"sft": 150, "dpo": 160, "reward": 160, "grpo": 128}
"""Of the data that a stage learns from: some minutes of one core each."""
DATA = {"sft": "chats", "dpo": "pairs", "reward": "pairs", "grpo": "numbers"}
PAIR_CHARACTERS = 400  # of a pair at most: short ones, of which more are read in the time
TRIES = 4
MOST_NUMBER = 20
SHOWN = (
    "sequence_length",
    "batch_size",
    "prompts",
    "steps",
    "learning_rate",
    "warmup_steps",
    "answer",
)
TITLES = {
    "bits_per_byte": "bits per byte of held-out text",
    "loss": "loss of held-out chats, nats per token",
    "accuracy": "held-out pairs whose chosen response is preferred",
    "implicit": "held-out pairs whose chosen response gained more (DPO's own reward)",
    "solved": "held-out questions answered rightly, greedily",
    "pass@1": f"held-out questions answered rightly, mean of {TRIES} tries at temperature 1",
}


def main() -> None:
    options = _options()
    file = options.results / "defaults.json"
    known: dict[str, Any] = {"stages": {}}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
    if not options.document:
        write_material(options)
        for stage in options.stages:
            if stage in known["stages"] and not options.again:
                continue
            known["stages"][stage] = measured(stage, options)
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page = document(known["stages"], known.get("notes", {}))
    (options.results / "defaults.md").write_text(page, encoding="utf-8")
    print(options.results / "defaults.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="", help="folder of a model that chats")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--stages", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--rows", type=int, default=0, help="to learn from; 0: what is usual here")
    parser.add_argument("--held", type=int, default=64, help="rows held out of each task")
    parser.add_argument("--text", type=int, default=12_000, help="characters of held-out text")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.model and not options.document:
        parser.error("name a model")
    return options


# ---- data -----------------------------------------------------------------------------------------


def write_material(options: argparse.Namespace) -> None:
    """NAME.jsonl to learn from and NAME-held.jsonl, which no stage reads."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    made: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "chats": lambda: _lines(options.data / "chats.jsonl"),
        "pairs": lambda: [row for row in _lines(options.data / "pairs.jsonl") if _is_short(row)],
        "numbers": _numbers,
    }
    for name in {DATA[stage] for stage in options.stages}:
        rows = made[name]()
        random.Random(0).shuffle(rows)
        most = max(options.rows or ROWS[stage] for stage in options.stages if DATA[stage] == name)
        if len(rows) < options.held + most:
            sys.exit(f"{name}: {len(rows)} rows, of which {options.held} + {most} are needed")
        _write(work / f"{name}-held.jsonl", rows[: options.held])
        for stage in options.stages:
            if DATA[stage] == name:
                count = options.rows or ROWS[stage]
                _write(work / f"{stage}.jsonl", rows[options.held : options.held + count])
    text = (options.data / "text.txt").read_text(encoding="utf-8")
    (work / "text-held.txt").write_text(text[-options.text :], encoding="utf-8")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _is_short(pair: Mapping[str, Any]) -> bool:
    texts = [pair[name] for name in ("prompt", "chosen", "rejected")]
    return all(isinstance(text, str) for text in texts) and sum(map(len, texts)) <= PAIR_CHARACTERS


def _numbers() -> list[dict[str, Any]]:
    """The larger of two numbers, each pair once: a small model is right in some of its answers."""
    rows = []
    order = random.Random(1)
    for a in range(1, MOST_NUMBER + 1):
        for b in range(1, a):
            one, other = order.sample((a, b), 2)
            question = f"Which number is larger, {one} or {other}? The larger number is"
            rows.append({"question": question, "answer": str(a)})
    return rows


# ---- measuring ------------------------------------------------------------------------------------


def measured(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """A stage by its defaults: what it chose, what it took, and what was reached before and after."""
    work: Path = options.work
    run = work / f"run-{stage}"
    words = [stage, options.model, str(work / f"{stage}.jsonl"), "--memory", MEMORY]
    words += ["--out", str(run)]
    if (run / stage).is_dir():
        words.append("--resume")
    peak = _run(words)
    done = json.loads((run / stage / "done.json").read_text(encoding="utf-8"))
    chosen = json.loads((run / stage / "settings.json").read_text(encoding="utf-8"))["settings"]
    begun = (run / stage / "events.jsonl").read_text(encoding="utf-8").splitlines()[0]
    form = chosen.get("answer", "")
    before = reached(stage, Path(options.model), options, None, form)
    made = _apart(run / stage / "model", work / f"after-{stage}")
    after = reached(stage, made, options, before, form)
    return {
        "model": Path(options.model).name,
        "rows": len(_lines(work / f"{stage}.jsonl")),
        "held": options.held,
        "settings": {name: chosen[name] for name in SHOWN if name in chosen},
        "peak": peak,
        "planned": (json.loads(begun).get("plan") or {}).get("memory"),
        "cpu": done["cpu_seconds"],
        "before": before,
        "after": after,
    }


def _run(words: list[str]) -> int:
    """Runs a command; the most bytes that it held."""
    process = subprocess.Popen([sys.executable, "-m", "ondevice", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"ondevice {' '.join(words)} failed")
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss << 10


def _apart(model: Path, place: Path) -> Path:
    """The model outside its run: text is then read in rows as long as those of the model before."""
    if place.is_dir():
        shutil.rmtree(place)
    shutil.copytree(model, place, copy_function=os.link)
    return place


def reached(
    stage: str,
    model: Path,
    options: argparse.Namespace,
    before: Mapping[str, Any] | None,
    form: str,
) -> dict[str, float]:
    """Figures of `TITLES`; `before`: None for the model that the stage begins from; `form`: of the
    answers that the stage rewards."""
    work: Path = options.work
    held = str(work / f"{DATA[stage]}-held.jsonl")
    if stage == "reward":
        if before is None:
            return {"accuracy": 0.5}  # its head is made by the stage: it knows nothing yet
        return _preferred(model, held, "")
    text = od.evaluate(model=str(model), data=str(work / "text-held.txt"))
    found: dict[str, float] = {"bits_per_byte": text["bits_per_byte"]}
    if stage == "sft":
        found["loss"] = od.evaluate(model=str(model), data=held)["loss"]
    elif stage == "dpo":
        found |= _preferred(model, held, "")
        if before is not None:
            found["implicit"] = _preferred(model, held, options.model)["accuracy"]
    else:
        figures = od.evaluate(
            model=str(model),
            data=held,
            tasks=("problems",),
            answer=form,
            tries=TRIES,
            max_new_tokens=64,
        )
        found |= {"solved": figures["accuracy"], "pass@1": figures["pass@1"]}
    return found


def _preferred(model: Path, held: str, reference: str) -> dict[str, float]:
    figures = od.evaluate(model=str(model), data=held, tasks=("preference",), reference=reference)
    return {"accuracy": figures["accuracy"]}


# ---- the document ---------------------------------------------------------------------------------


def document(stages: Mapping[str, Mapping[str, Any]], notes: Mapping[str, list[str]]) -> str:
    """What was measured as a page; `notes`: lines that a person has written of a stage."""
    lines = [
        "# The defaults on a real model",
        "",
        "Written by `scripts/defaults_check.py`; do not edit. A stage with nothing but MODEL and DATA and "
        f"a limit of {MEMORY}, on one core of a CPU that other programs shared, in float32. Bits per "
        f"byte are of held-out plain text in rows of {EvalSuite.sequence_length} tokens; no stage reads "
        "what is held out. Few rows, so that it is done in minutes: a difference of a few percentage "
        "points says nothing.",
    ]
    for stage in ROWS:
        lines += ["", f"## {stage}", ""]
        lines += _section(stage, stages[stage]) if stage in stages else ["Not measured to its end."]
        if notes.get(stage):
            lines += ["", *notes[stage]]
    return "\n".join(lines) + "\n"


def _section(stage: str, row: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(_setting(*pair) for pair in row["settings"].items())
    planned = f"; {size(row['planned'])} were planned" if row["planned"] else ""
    lines = [
        f"`ondevice {stage} {row['model']} {DATA[stage]}.jsonl --memory {MEMORY}`, {row['rows']} rows: "
        f"{settings}. {row['cpu']:,.0f} CPU seconds, {size(row['peak'])} at the peak{planned}.",
        "",
        "| | before | after |",
        "| --- | --- | --- |",
    ]
    for name, value in row["after"].items():
        was = row["before"].get(name)
        cells = (_cell(name, was), _cell(name, value))
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return lines


def _setting(name: str, value: float | str) -> str:
    return f"`{name}` " + (f"`{value}`" if isinstance(value, str) else f"{value:g}")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if name in ("bits_per_byte", "loss") else f"{value:.1%}"


if __name__ == "__main__":
    main()
