"""Pictures of the terminal UI for the documents, from real runs.

    python scripts/screenshots.py RUNS TARGET_FOLDER [--run NAME] [--size 120x36]

RUNS is a folder of runs; each picture is `TARGET_FOLDER/<screen>.svg`. Screens for which the run
has nothing (no pairs to rate, no scales, no rewards) are left out, and that is said. Look at them before you
show them to anybody.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot

from ondevice.preferences.sqlite_store import FILE
from ondevice_tui.app import OndeviceApp
from ondevice_tui.widgets.key_footer import Keys

# each picture: the screen, and the keys that are pressed on it
SCREENS: dict[str, tuple[str, tuple[str, ...]]] = {
    "road": ("road", ()),
    "train": ("train", ()),
    "reasoning": ("reason", ()),
    "spread": ("reason", ("percent_sign", "percent_sign")),  # after the time of a step's parts
    "rate": ("rate", ()),
    "scores": ("rate", ("asterisk", "4", "2")),  # left by esc: nothing is stored
    "ladder": ("ladder", ()),
}
WAIT_S = 1.5  # for a screen to have read its files


async def take(runs: Path, target: Path, name: str, size: tuple[int, int]) -> None:
    app = OndeviceApp(runs)
    async with app.run_test(size=size) as pilot:
        while app.runs is None or app.machine.startswith("looking"):
            await pilot.pause(0.1)
        if name:
            app.choose(runs / name)
        target.mkdir(parents=True, exist_ok=True)
        for picture, (mode, keys) in SCREENS.items():
            await shoot(app, pilot, mode, keys, target / f"{picture}.svg")


async def shoot(
    app: OndeviceApp, pilot: Pilot[str], mode: str, keys: Sequence[str], file: Path
) -> None:
    """One screen after these keys, unless the run has nothing for it."""
    state = app.run_state or {"stages": []}
    stages = [stage["stage"] for stage in state["stages"]]
    empty = {
        "rate": app.chosen is None or not (app.chosen / FILE).is_file(),
        "reason": not {"grpo", "ppo"} & set(stages),
    }
    if empty.get(mode):
        print(f"{file.name}: left out, this run has nothing for it")
        return
    if mode == "train":
        app.stage = next((name for name in ("sft", "pretrain") if name in stages), "")
    app.action_go(mode)
    await pilot.pause(WAIT_S)
    while not app.screen.query_one(Keys).rows:  # the footer fills itself later than the rest
        await pilot.pause(0.2)
    await pilot.pause(0.2)
    page = app.screen
    await pilot.press(*keys)
    await pilot.pause(WAIT_S if keys else 0)
    if "scores" in file.name and app.screen is page:
        print(
            f"{file.name}: left out, this run's ratings have no scales (ratings project --rubric)"
        )
        return
    # Pages that show pictures fetch nothing for them: the reader's own monospaced font has to do.
    file.write_text(
        re.sub(r"@font-face\s*\{[^}]*\}", "", app.export_screenshot(title="ondevice")),
        encoding="utf-8",
    )
    print(file)
    if app.screen is not page:  # a card
        await pilot.press("escape")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--run", default="", help="the run to show; the newest where none is named")
    parser.add_argument("--size", default="120x36")
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    asyncio.run(take(options.runs, options.target, options.run, (columns, rows)))


if __name__ == "__main__":
    main()
