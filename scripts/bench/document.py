"""docs/results/speed.md, drawn from the figures in speed.json beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import ROWS

Figures = dict[str, Any]
UNMEASURED = "not yet measured on a quiet machine"

HEAD = """# Speed and memory beside other trainers

Written by `scripts/bench/all`, which runs us and a peer in turn, each time in fresh processes, on the
same weights, data, type and threads. Do not edit: `speed.json` beside this file has the figures, and
a run replaces those of the rows that it was asked for.

```sh
scripts/bench/all                        # everything whose peer is installed
scripts/bench/all pretrain chat          # some rows
scripts/bench/all counts                 # what does not depend on the device
scripts/bench/all --small --repeats 1    # does all of it run? the figures say nothing
scripts/bench/all --device gpu           # on CUDA or Metal
scripts/bench/all --busy                 # others use this machine: memory and counts alone
```

A ratio is the median of its pairs, in brackets the least and the largest. Above 1 in the columns of
speed we are faster, below 1 in those of memory smaller. Tokens are targets that are really trained,
or tokens written. The utilisation is 6 FLOPs per parameter and trained token (2 per decoded one)
over what a large matrix product of the same type reaches on the same threads; a rollout's step, which
decodes, scores and learns, has none. Only the small model of 5.4 million parameters and SmolLM2-135M
(or random weights of its shape) are used; the text is of an invented language. Which rows are not
what we wanted, with a profile and a bound for each: [bench.md](bench.md).
"""

Table = list[list[str]]


def read(document: Path) -> Figures:
    """The figures beside the document; none where there are none yet."""
    file = document.with_suffix(".json")
    if not file.exists():
        return {"rows": {}}
    found: Figures = json.loads(file.read_text(encoding="utf-8"))
    return found


def write(document: Path, figures: Figures) -> None:
    """The document, and its figures beside it."""
    figures_file = document.with_suffix(".json")
    figures_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    document.write_text(text(figures), encoding="utf-8")


def text(figures: Figures) -> str:
    rows = figures["rows"]
    parts = [HEAD, *comparison(rows), *agreement(rows), *without_figures(rows)]
    for name, section in (
        ("loading", loading),
        ("decoding", decoding),
        ("training", training),
        ("traces", traces),
        ("slopes", slopes),
    ):
        if name in figures:
            parts += section(figures[name]["figures"], figures[name]["machine"])
    return "\n".join(parts)


def comparison(rows: dict[str, Figures]) -> list[str]:
    parts = []
    for machine in dict.fromkeys(row["machine"] for row in rows.values()):
        table = [
            [
                "what",
                "beside",
                "tokens per second",
                "per CPU-second",
                "utilisation",
                "peak of the process, MB",
                "of the array library, MB",
            ]
        ]
        for row in rows.values():
            if row["machine"] == machine:
                table.append(_row(row))
        parts += ["\n## Us and a peer\n", f"{machine}\n", markdown(table)]
    return parts


def _row(row: Figures) -> list[str]:
    ours, theirs = row["ours"], row["theirs"]
    if not row["quiet"]:
        speed = [UNMEASURED, "", ""]
    elif theirs:
        speed = [ratio(ours, theirs, key) for key in ("rate", "cpu_rate")]
        speed.append(sides(ours, theirs, "mfu", 2))
    else:
        speed = [f"{_median(ours, 'rate'):.0f}", f"{_median(ours, 'cpu_rate'):.0f}", ""]
    memory = []
    for key in ("peak", "device_peak"):
        spread = f"{ratio(ours, theirs, key)}: " if theirs and key in ours[0] else ""
        memory.append(spread + sides(ours, theirs, key, 0) if key in ours[0] else "")
    title = f"{row['title']} ({row['backend']})"
    return [title, row["peer"] or "us alone", *speed, *memory]


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], key: str) -> str:
    if key not in ours[0] or key not in theirs[0]:
        return ""
    each = [a[key] / b[key] for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"


def sides(ours: Sequence[Figures], theirs: Sequence[Figures], key: str, digits: int) -> str:
    found = []
    for side in (ours, theirs):
        if side and key in side[0]:
            found.append(f"{_median(side, key):,.{digits}f}")
    return " : ".join(found)


def _median(results: Sequence[Figures], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


def agreement(rows: dict[str, Figures]) -> list[str]:
    notes = []
    for row in rows.values():
        if row["agreement"]:
            notes.append(f"* {row['title']} ({row['backend']}): {row['agreement']}.")
    if not notes:
        return []
    return ["\n## Do both sides compute the same?\n", *notes]


def without_figures(rows: dict[str, Figures]) -> list[str]:
    """The rows of which nothing is known yet."""
    left = [f"* {row.key}" for row in ROWS if row.key not in rows]
    return [f"\n## {UNMEASURED.capitalize()}\n", *left] if left else []


def loading(found: Sequence[Figures], machine: str) -> list[str]:
    table = [["backend", "type", "side", "kept, times the file", "at most, times the file"]]
    for one in found:
        names = [one["backend"], one["dtype"], one["side"]]
        table.append([*names, f"{one['kept']:.2f}", f"{one['peak']:.2f}"])
    about = (
        f"The process that has loaded the model and written a token, above one with next to no model"
        f"; the file of weights has {found[0]['file']:.0f} MB.\n"
    )
    return ["\n## Loading a model for use\n", f"{machine}\n", about, markdown(table)]


def decoding(found: Sequence[Figures], machine: str) -> list[str]:
    names = ("nodes", "casts", "kernels", "reads")
    table = [["backend", "type", "side", *names]]
    for one in found:
        cells = []
        for name in names:
            per_layer, outside = one[name]
            told = f"{outside:g}" if name == "reads" else f"{per_layer:.0f} + {outside:.0f}"
            cells.append(told)
        table.append([one["backend"], one["dtype"], one["side"], *cells])
    about = (
        "Of one row, greedy, as chat writes it: per layer + outside of the layers. Nodes: operations "
        "as they are written. Kernels: those that compute or copy, on MLX after its compiler. Casts: "
        "changes of type among the nodes. Reads: how often the host takes a number. On MLX each of its "
        "fast operations is the one kernel that a GPU has for it; on torch they are counted as its "
        "dispatcher sees them.\n"
    )
    return ["\n## What a decoded token costs\n", f"{machine}\n", about, markdown(table)]


def training(found: Sequence[Figures], machine: str) -> list[str]:
    names = ("nodes", "casts", "kernels")
    table = [["backend", "type", "side", *names]]
    for one in found:
        cells = ["{:.1f} + {:.1f}".format(*one[name]) for name in names]
        table.append([one["backend"], one["dtype"], one["side"], *cells])
    about = (
        "Losses and gradients of a step with LoRA on a base of 4 bits, per layer + outside of the "
        "layers, counted as those of decoding; a fast operation's gradients are one kernel.\n"
    )
    return [
        "\n## What a step with LoRA on a 4-bit base costs\n",
        f"{machine}\n",
        about,
        markdown(table),
    ]


def traces(found: Sequence[Figures], machine: str) -> list[str]:
    table = [["backend", "stage", "traces", "of these", "graph breaks", "functions given up"]]
    for one in found:
        parts = [f"{kind} {count}" for kind, count in sorted(one.get("of", {}).items())]
        cells = [str(one.get(name, "")) for name in ("traces", "breaks", "given_up")]
        table.append([one["backend"], one["stage"], cells[0], ", ".join(parts), *cells[1:]])
    about = (
        "Twelve steps of each stage on a model of a few thousand weights, everything compiled that is "
        "compiled on a GPU. A function that torch has traced too often runs eagerly from then on.\n"
    )
    return ["\n## Traces of a compiler\n", f"{machine}\n", about, markdown(table)]


def slopes(found: Sequence[Figures], machine: str) -> list[str]:
    table = [["backend", "memory of", "bytes per parameter", "bytes per token", "peaks, MB"]]
    for one in found:
        sizes = ", ".join(f"{n / 1e6:.0f} M" for n in one["parameters"])
        peaks = ", ".join(f"{peak:,.0f}" for peak in one["peaks"])
        cells = [f"{one['per_parameter']:.1f}", f"{one['per_token']:,.0f}", f"{sizes}: {peaks}"]
        table.append([one["backend"], one["of"], *cells])
    tokens = ", ".join(f"{n:,}" for n in found[0]["tokens"])
    about = (
        "AdamW on all weights, float32, blocks of SmolLM2's shape; least squares over the sizes at "
        f"{found[0]['tokens'][0]} tokens per step, and over {tokens} tokens at the smallest size.\n"
    )
    return ["\n## How the peak of an update grows\n", f"{machine}\n", about, markdown(table)]


def markdown(table: Table) -> str:
    head, *rows = table
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)
