"""Draw a finished run as the README shows it: its curves, its ladder and some answers, as an SVG of
a terminal.

    python scripts/picture.py runs/minute docs/minute.svg
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ondevice.reports.report import ladder
from ondevice.runs.events import read
from ondevice.runs.folder import RunFolder, StageFolder

WIDTH = 100
PROMPTS = 4  # so many of the fixed prompts with their answers; the report has all
BARS = "▁▂▃▄▅▆▇█"


def curve(stage: StageFolder) -> str:
    """The training loss of a stage, or its reward, as one line of blocks, each the mean over its
    share of the steps; empty for a stage that has neither."""
    steps = [event for event in read(stage.events) if event["event"] == "step"]
    figure = next(
        (name for name in ("reward", "loss") if steps and steps[0].get(name) is not None), ""
    )
    values = [event[figure] for event in steps if event.get(figure) is not None] if figure else []
    if not values:
        return ""
    columns = min(WIDTH - 34, len(values))
    means = [
        sum(part) / len(part)
        for part in (
            values[i * len(values) // columns : (i + 1) * len(values) // columns]
            for i in range(columns)
        )
    ]
    low, high = min(means), max(means)
    drawn = "".join(BARS[round((m - low) / max(high - low, 1e-9) * (len(BARS) - 1))] for m in means)
    return f"{stage.name:<9}{figure:<7}{means[0]:.2f} {drawn} {means[-1]:.2f}"


def main(run: str, target: str) -> None:
    folder = RunFolder(run)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ ondevice run {folder.path.name}\n", style="bold"))
    for stage in folder.stages():
        if line := curve(stage):
            console.print(Text(line, style="cyan"))
    console.print()
    parts = ladder(folder).split("\n\n")
    for part in [parts[0], *[part for part in parts if part.startswith(">")][:PROMPTS]]:
        for line in part.splitlines():
            style = "bold" if line.startswith((">", "stage ")) else ""
            console.print(Text(line, style=style, overflow="ellipsis", no_wrap=True))
        console.print()
    # Pages that show pictures fetch nothing for them: the reader's own monospaced font has to do.
    drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", console.export_svg(title="ondevice"))
    Path(target).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/picture.py RUN_FOLDER TARGET.svg")
    main(sys.argv[1], str(Path(sys.argv[2])))
