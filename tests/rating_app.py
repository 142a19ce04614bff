"""The app as a process of its own, without a terminal, on the Rate screen of a run; told by lines
what to press.

    python rating_app.py RUNS

Reads names of keys from stdin (`left`, `u`, `f`, `s` …, `look` presses none) and answers each with
a line of JSON once the database has done what the key asked for: {"pair": the item that was shown,
"told": the line below the answers}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from ondevice_tui import app as app_module
from ondevice_tui.app import OndeviceApp
from ondevice_tui.screens.rate import RateScreen
from tui_runs import until


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


async def settled(pilot: Pilot[Any], screen: RateScreen) -> None:
    await pilot.pause()
    await until(pilot, lambda: not screen.busy)
    await pilot.pause()


async def main(runs: Path) -> None:
    RateScreen.GUARD_S = 0.0
    # ten looks at the runs, and so at the votes, in a second: an hour of use in a minute
    app_module.LOOK_S = 0.1
    app = OndeviceApp(runs, look_at_machine=False)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.runs)
        await pilot.press("4")
        await until(
            pilot, lambda: isinstance(app.screen, RateScreen) and app.screen.ratings is not None
        )
        screen = app.screen
        assert isinstance(screen, RateScreen)
        await settled(pilot, screen)
        tell(ready=True)
        while key := (await asyncio.to_thread(sys.stdin.readline)).strip():
            pair = screen.item.id if screen.item is not None else None
            if key != "look":
                await pilot.press(key)
            await settled(pilot, screen)
            tell(pair=pair, told=screen._said[0])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
