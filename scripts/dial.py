"""Runs `laptop` for several times and draws what each of them has reached.

    python scripts/dial.py --times 3m 10m 40m                      the built-in corpus
    python scripts/dial.py --times 3m 10m 40m --name shakespeare \\
        --text tinyshakespeare.txt --chats codegen_instruct.jsonl    files of one's own
    python scripts/dial.py --document                              what is measured already

A run that is there already is not made again. What was reached is kept in docs/results/dial.json;
docs/results/dial.md and the pictures beside it are drawn from it. Times are on the clock: let nothing
else run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ondevice.common.physical_memory import cores
from ondevice.common.progress import duration
from ondevice.planning.dial import record
from ondevice.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BUILTIN = "builtin"
# figure of the table → what a picture calls it
FIGURES = {
    "bits_per_byte": "bits per byte, held out, after pretrain",
    "sft_loss": "held-out loss of instructions, after sft",
    "exact_match": "instructions answered rightly, after sft",
    "reasoning": "held-out problems solved, at the end",
}


SHARES = ("exact_match", "reasoning")


def main() -> None:
    options = _options()
    file = options.results / "dial.json"
    known: dict[str, Any] = {"runs": []}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
    if not options.document:
        for time in options.times:
            run = options.out / f"{options.name}-{time}"
            _run(run, time, options)
            row = {"data": options.name, "time": time, **reached(run), "machine": _machine()}
            others = [r for r in known["runs"] if (r["data"], r["time"]) != (options.name, time)]
            known["runs"] = sorted([*others, row], key=lambda r: (r["data"], r["asked"]))
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (options.results / "dial.md").write_text(document(known["runs"]), encoding="utf-8")
    for name in _names(known["runs"]):
        drawn = picture([row for row in known["runs"] if row["data"] == name], name)
        (options.results / f"dial-{name}.svg").write_text(drawn, encoding="utf-8")
    print(options.results / "dial.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", nargs="+", default=["3m", "10m", "40m"])
    parser.add_argument("--name", default=BUILTIN, help="what the data are called")
    parser.add_argument("--recipe", default="laptop")
    for given in ("text", "chats", "problems", "backend", "device", "dtype"):
        parser.add_argument(f"--{given}", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/dial"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", action="store_true", help="run nothing")
    return parser.parse_args()


def _run(run: Path, time: str, options: argparse.Namespace) -> None:
    """One run, unless it stands there complete; one that was stopped goes on."""
    words = ["run", options.recipe, "--time", time, "--out", str(run)]
    for name in ("text", "chats", "problems", "backend", "device", "dtype"):
        if getattr(options, name):
            words += [f"--{name}", getattr(options, name)]
    if (run / "recipe.yaml").is_file():
        words.append("--resume")
    if not (run / "report.md").is_file():
        subprocess.run([sys.executable, "-m", "ondevice", *words], check=True)


def reached(run: Path) -> dict[str, Any]:
    """What a run with a time has come to."""
    found = record.load(run)
    assert found is not None, f"{run} has no time"
    folder = RunFolder(run)
    done = {stage.name: stage.done_record() or {} for stage in folder.stages()}
    row: dict[str, Any] = {
        "asked": found.seconds,
        "used": round(found.used, 1),
        "cpu": round(sum(float(one.get("cpu_seconds", 0)) for one in done.values()), 1),
        "left_out": sorted(found.left_out),
        "stages": list(done),
    }
    pretrain, sft = done.get("pretrain", {}), done.get("sft", {})
    start = json.loads((run / "init" / "model" / "config.json").read_text(encoding="utf-8"))
    row["hidden"], row["layers"] = start["hidden_size"], start["num_hidden_layers"]
    row["vocabulary"] = start["vocab_size"]
    row["tokens"] = pretrain.get("outcome", {}).get("tokens")
    outcome = pretrain.get("outcome", {})
    exam = pretrain.get("marks", {}).get("bits_per_byte")
    row["bits_per_byte"] = exam if exam is not None else outcome.get("bits_per_byte")
    row["sft_loss"] = sft.get("outcome", {}).get("after", {}).get("loss")
    row["exact_match"] = sft.get("marks", {}).get("exact_match")
    for name in reversed(folder.stages()):
        reasoning = (name.done_record() or {}).get("marks", {}).get("reasoning")
        if reasoning:
            row["reasoning"] = reasoning["accuracy"]
            break
    return row


def _machine() -> dict[str, Any]:
    return {
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "first": os.getpriority(os.PRIO_PROCESS, 0) < 0,
    }


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["data"]) for row in rows))


# ---- the page -------------------------------------------------------------------------------------


def document(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# A longer time makes a better model",
        "",
        "Written by `scripts/dial.py`; do not edit. `ondevice run laptop` with a time: the time that was "
        "asked for and the one that was used, on the clock; the model that was chosen for it, the "
        "tokens of text that it read, and what it reached on data that no stage learns from. `load`: "
        "of the machine as the run ended; above its cores, other programs ran beside it, and what they "
        "took cannot be foreseen, unless the run came `first` on the cores that it had (by `nice`). "
        "`python scripts/dial.py --times 40m` adds a time.",
    ]
    for name in _names(rows):
        lines += ["", f"## {name}", "", f"![{name}: what each time reaches](dial-{name}.svg)", ""]
        lines += _table([row for row in rows if row["data"] == name])
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    heads = ["asked", "used", "off", "CPU s", "model", "vocabulary", "tokens read"]
    heads += [FIGURES[name] for name in figures] + ["left out", "cores, load"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        off = row["used"] / row["asked"] - 1
        cells = [
            row["time"],
            duration(row["used"]),
            f"{off:+.0%}",
            f"{row['cpu']:,.0f}",
            f"{row['layers']} × {row['hidden']}",
            f"{row['vocabulary']:,}",
            f"{row['tokens']:,}" if row["tokens"] else "–",
            *(_cell(name, row.get(name)) for name in figures),
            ", ".join(row["left_out"]) or "–",
            f"{row['machine']['cores']}, {row['machine']['load']}"
            + (", first" if row["machine"].get("first") else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if name in SHARES else f"{value:.3f}"


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 230, 52, 24, 40, 44
ACROSS = 2  # panels beside each other: four would be too small to read on a page
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:600}.tick{fill:#666;font-size:11px}"
    ".axis{stroke:#888}.grid{stroke:#e3e3e3}"
)


def picture(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """A panel for each figure: its value over the time that was used, in logarithms."""
    panels: list[str] = []
    for figure, title in FIGURES.items():
        points = [
            (float(row["used"]), float(row[figure])) for row in rows if row.get(figure) is not None
        ]
        if points:
            down, along = divmod(len(panels), ACROSS)
            place = f"translate({WIDTH * along} {HEIGHT * down})"
            panels.append(f'<g transform="{place}">{_panel(points, figure, title)}</g>')
    width = WIDTH * min(ACROSS, max(1, len(panels)))
    height = HEIGHT * max(1, -(-len(panels) // ACROSS))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><title>{name}: what each time reaches</title>'
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>'
        f"{''.join(panels)}</svg>\n"
    )


def _panel(points: Sequence[tuple[float, float]], figure: str, title: str) -> str:
    ticks = ticks_of([value for _, value in points], from_zero=figure in SHARES)
    low, high = ticks[0], ticks[-1]
    times = [math.log(seconds) for seconds, _ in points]
    span = max(times) - min(times) or 1.0
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    inset = 30  # that the first and the last label stand clear of the axis

    def across(seconds: float) -> float:
        part = (math.log(seconds) - min(times)) / span
        return LEFT + inset + part * (right - LEFT - 2 * inset)

    def up(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    parts = [f'<text class="title" x="{LEFT}" y="18">{title}</text>']
    for tick in ticks:
        y = up(tick)
        kind = "axis" if tick == low else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{right}"/>')
        told = f"{tick:.0%}" if figure in SHARES else f"{tick:g}"
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{told}</text>'
        )
    path = "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)
    parts.append(f'<path d="{path}" fill="none" stroke="#2563eb" stroke-width="2"/>')
    for seconds, value in points:
        x, y = across(seconds), up(value)
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#2563eb"/>',
            f'<text class="value" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">'
            f"{_cell(figure, value)}</text>",
            f'<path class="axis" d="M{x:.1f} {bottom}v4"/>',
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{duration(seconds)}</text>",
        ]
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle:g}" y="{HEIGHT - 10}" text-anchor="middle">'
        "time used, on the clock</text>"
    )
    return "".join(parts)


def ticks_of(values: Sequence[float], *, from_zero: bool) -> list[float]:
    """Three to seven round numbers that enclose the values, with room for a label above them;
    those of shares end at all."""
    if from_zero and max(values) > 0.5:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    low = 0.0 if from_zero else min(values)
    span = max(values) - low or abs(max(values)) or 1.0
    raw = 1.25 * span / 4
    ten = 10.0 ** math.floor(math.log10(raw))
    step = next(ten * part for part in (1, 2, 5, 10) if ten * part >= raw)
    first = math.floor(low / step)
    last = math.ceil((max(values) + 0.2 * span) / step)
    return [round(n * step, 10) for n in range(first, last + 1)]


if __name__ == "__main__":
    main()
