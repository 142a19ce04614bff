"""Draw a finished run as the README shows it: its loss curves and its ladder, as an SVG of a terminal.

    python scripts/picture.py runs/minute docs/minute.svg
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ondevice.events import read
from ondevice.report import ladder
from ondevice.runfolder import RunFolder, StageFolder

WIDTH = 96
BARS = "▁▂▃▄▅▆▇█"


def curve(stage: StageFolder) -> str:
    """The training loss of a stage as one line of blocks, each the mean over its share of the steps."""
    losses = [event["loss"] for event in read(stage.events) if event["event"] == "step" and event["loss"] is not None]
    columns = min(WIDTH - 32, len(losses))
    means = [sum(part) / len(part) for part in (
        losses[i * len(losses) // columns:(i + 1) * len(losses) // columns] for i in range(columns))]
    low, high = min(means), max(means)
    drawn = "".join(BARS[round((m - low) / max(high - low, 1e-9) * (len(BARS) - 1))] for m in means)
    return f"{stage.name:<9}loss {losses[0]:.2f} {drawn} {losses[-1]:.2f}"


def main(run: str, target: str) -> None:
    folder = RunFolder(run)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ ondevice run {folder.path.name}\n", style="bold"))
    for stage in folder.stages():
        if any(event["event"] == "step" for event in read(stage.events)):
            console.print(Text(curve(stage), style="cyan"))
    console.print()
    for line in ladder(folder).splitlines():
        style = "bold" if line.startswith((">", "stage ", "kind ")) else ""
        console.print(Text(line, style=style, overflow="ellipsis", no_wrap=True))
    # Pages that show pictures fetch nothing for them: the reader's own monospaced font has to do.
    drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", console.export_svg(title="ondevice"))
    Path(target).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/picture.py RUN_FOLDER TARGET.svg")
    main(sys.argv[1], str(Path(sys.argv[2])))
