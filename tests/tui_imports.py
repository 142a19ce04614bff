"""Who imports what while the app runs: a finder that looks on, and may make every import slow.

As a program it opens the app on a folder of runs, goes through every screen and all that it does in
threads, and prints as JSON what a thread other than the main one has imported:

    python tests/tui_imports.py RUNS FILE [seconds that each import takes [seconds before Rate is opened]]
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# pyarrow and datasets: see ondevice_tui/imports.py
ALONE = ("pyarrow", "datasets")


class Onlooker:
    """First of `sys.meta_path`: it finds nothing, and notes each module that a thread of the app
    looks for.
    """

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.seen: list[tuple[str, str]] = []  # (module, thread)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if (
            threading.current_thread() is not threading.main_thread()
            and name.split(".")[0] not in ALONE
        ):
            self.seen.append((name, threading.current_thread().name))
        if self.slow:
            time.sleep(self.slow)  # other threads run meanwhile, as they do while a disk is read


@contextmanager
def looked_on(slow: float = 0.0) -> Iterator[Onlooker]:
    onlooker = Onlooker(slow)
    sys.meta_path.insert(0, onlooker)  # type: ignore[arg-type]
    try:
        yield onlooker
    finally:
        sys.meta_path.remove(onlooker)  # type: ignore[arg-type]


async def until_shown(pilot: Any, text: str) -> None:
    """As in `tui_runs`, which is not imported here: it imports much of what the app would."""
    for _ in range(2400):
        await pilot.pause()
        rows = [
            "".join(segment.text for segment in strip)
            for strip in pilot.app.screen._compositor.render_strips()
        ]
        if text in " ".join(" ".join(rows).split()):  # wherever its lines break
            return
        await asyncio.sleep(0.05)
    raise AssertionError("\n".join([f"never came: {text}", *rows]))


async def until_cards(app: Any, count: int) -> None:
    """Until so many cards lie on the screen."""
    for _ in range(2400):
        if len(app.screen_stack) == 1 + count:
            return
        await asyncio.sleep(0.05)
    shown = [strip.text for strip in app.screen._compositor.render_strips()]
    raise AssertionError("\n".join([f"{len(app.screen_stack) - 1} cards, not {count}", *shown]))


async def tour(runs: Path, file: str, wait: float) -> None:
    """Every screen, Rate at once, and everything that is done in threads."""
    from textual.widgets import Input

    from ondevice_tui.app import OndeviceApp

    app = OndeviceApp(runs, look_at_machine=False)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until_shown(pilot, "process gone")
        await asyncio.sleep(wait)
        await pilot.press("4")
        await until_shown(pilot, "Question")
        from ondevice_tui import worker_client

        worker_client.COMMAND = (sys.executable, str(Path(__file__).parent / "tui_worker.py"))
        await pilot.pause(0.5)
        await pilot.press("left")
        await until_shown(pilot, "this session 1")
        for key in ("d", "w"):
            await pilot.press(key)
            await pilot.pause(0.5)  # longer than a key counts as meant for the pair before
        for key in ("Y", "H", "I"):
            await pilot.press(key)
            await until_cards(app, 1)
            await pilot.press("escape")
            await until_cards(app, 0)
        await pilot.press("S")
        await until_shown(pilot, "show them")
        await pilot.press("y")
        await until_shown(pilot, "what the votes are worth")
        await pilot.press("escape")
        await pilot.press("m")
        await until_shown(pilot, "further pairs")
        app.screen.query_one("#more-file", Input).value = file
        await pilot.press("ctrl+g")
        await until_shown(pilot, "pairs came in")
        await pilot.press("m")
        await until_shown(pilot, "further pairs")
        app.screen.query_one("#more-prompts", Input).value = "builtin"
        await pilot.press("ctrl+g")
        await until_shown(pilot, "the next pairs are ready")
        for mode in app.MODES:
            app.action_go(mode)
            await pilot.pause(0.3)
        app.action_go("chat")
        await until_shown(pilot, "Enter sends")
        await pilot.press(*"hello", "enter")
        await until_shown(pilot, "tok/s")
        await pilot.pause(0.2)


def main() -> None:
    runs, file = Path(sys.argv[1]), sys.argv[2]
    slow, wait = (float(text) for text in (*sys.argv[3:], "0", "0")[:2])
    with looked_on() as onlooker:
        import ondevice_tui.app  # noqa: F401  before there is a second thread

        onlooker.slow = slow
        asyncio.run(tour(runs, file, wait))
    print(json.dumps(onlooker.seen))


if __name__ == "__main__":
    main()
