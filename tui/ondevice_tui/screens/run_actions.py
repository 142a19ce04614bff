"""What the home screen does with runs: to the trash and back, a note, tags, another name, what
differs, several in one picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondevice.common.errors import UserError
from ondevice.common.progress import size
from ondevice_tui.widgets.run_list import RunList

if TYPE_CHECKING:
    from textual.screen import Screen

    from ondevice_tui.app import OndeviceApp

    _Base = Screen[Any]
else:
    _Base = object

OVERLAID = 5  # runs that one picture of curves shows


class RunActions(_Base):
    """Mixed into the home screen, whose `run_list` and `lists` it asks."""

    if TYPE_CHECKING:

        @property
        def ui(self) -> OndeviceApp: ...
        @property
        def run_list(self) -> RunList: ...
        @property
        def lists(self) -> bool: ...
        def show_lists(self, on: bool) -> None: ...
        def show_highlighted(self) -> None: ...
        def take(self, run: Path) -> None: ...

    def __init__(self) -> None:
        super().__init__()
        self._trashed: list[tuple[list[str], Path]] = []  # (names in the trash, the folder of runs)

    def do_with_run(self, what: str) -> None:
        """A key of the list of runs."""
        keys: dict[str, Callable[[], object]] = {
            "overlay": self._overlay,
            "differences": self._differences,
            "note": self._ask_note,
            "tags": self._ask_tags,
            "rename": self._ask_name,
            "leave": lambda: self.show_lists(False),
            "shown": self.show_highlighted,
        }
        keys[what]()

    def _highlighted_run(self) -> dict[str, Any] | None:
        """The run that a key of the list is about; told where there is none."""
        run = self.run_list.highlighted
        if run is None:
            self.ui.say(self.unless_reading("no run is highlighted"))
        return run

    # several runs

    def _overlay(self) -> None:
        ticked = self.ui.ticked_runs
        if not ticked:
            self.ui.say("tick the runs to lay over each other first: space")
            return
        if len(ticked) > OVERLAID:
            self.ui.say(f"the first {OVERLAID} of {len(ticked)} ticked runs are shown")
        self.take(ticked[0])
        self.ui.action_go("train")

    def _differences(self) -> None:
        run = self._highlighted_run()
        if run is None:
            return
        runs = list(self.ui.ticked_runs)
        if Path(run["path"]) not in runs and len(runs) < 2:
            runs.append(Path(run["path"]))
        if len(runs) < 2 and self.ui.chosen is not None and self.ui.chosen not in runs:
            runs.insert(0, self.ui.chosen)
        if len(runs) < 2:
            self.ui.say(
                "tick the runs to compare (space), or highlight another than the chosen one"
            )
            return
        self.run_worker(self._compare(runs[:OVERLAID]), group="differences", exclusive=True)

    async def _compare(self, runs: Sequence[Path]) -> None:
        """In a thread: events and settings are read."""
        from ondevice.runs.differences import differences
        from ondevice_tui.screens.run_cards import show_differences

        try:
            found = await asyncio.to_thread(differences, runs)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
            return
        show_differences(self.ui, runs, found)

    # what a person writes on a run

    def _ask_note(self) -> None:
        from ondevice.runs.labels import set_note
        from ondevice_tui.screens.run_cards import ask_note

        run = self._highlighted_run()
        if run is not None:
            path = Path(run["path"])
            ask_note(self.ui, run, lambda text: self._write(lambda: set_note(path, text)))

    def _ask_tags(self) -> None:
        from ondevice.runs.labels import add_tags, set_tags
        from ondevice_tui.screens.run_cards import ask_tags

        run = self._highlighted_run()
        if run is None:
            return
        ticked = self.ui.ticked_runs

        def write(text: str) -> None:
            words = text.replace(",", " ").replace("#", " ").split()
            if ticked:  # each keeps its own beside them
                self._write(lambda: [add_tags(path, words) for path in ticked])
            else:
                self._write(lambda: set_tags(Path(run["path"]), words))

        ask_tags(self.ui, run, len(ticked), write)

    def _write(self, what: Callable[[], object]) -> None:
        try:
            what()
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
        self.ui.look()

    def _ask_name(self) -> None:
        from ondevice_tui.screens.run_cards import ask_name

        run = self._highlighted_run()
        if run is not None:
            path = Path(run["path"])
            ask_name(self.ui, run, lambda name: self.run_worker(self._rename(path, name)))

    async def _rename(self, run: Path, name: str) -> None:
        """In a thread: all other runs are asked whether they train with it."""
        from ondevice.runs.rename import rename_run

        try:
            new = await asyncio.to_thread(rename_run, str(run.absolute()), name, run.parent)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
            return
        new = run.with_name(new.name)  # as the folder of runs was named
        if run in self.ui.ticked_runs:
            self.ui.ticked_runs = tuple(new if p == run else p for p in self.ui.ticked_runs)
        if run == self.ui.chosen:
            self.ui.choose(new, self.ui.stage)
        self.ui.say(f"{new.name} (what knows it as {run.name} still finds it)")
        self.ui.look()

    # the trash

    def action_trash(self) -> None:
        """The ticked runs, the one that is highlighted in the list, or the chosen one."""
        from ondevice_tui.screens.confirm import ask

        runs = [self.ui.chosen] if self.ui.chosen is not None else []
        if self.lists or self.run_list.rows.has_focus:
            runs = self.run_list.meant()
        if not runs:
            self.ui.say(self.unless_reading("there is no run to take away"))
            return
        states = [self.ui.state_of(run) or {} for run in runs]
        known = [state["bytes"] for state in states if state.get("bytes") is not None]
        taken = f" ({size(sum(known))})" if len(known) == len(runs) else ""
        names = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
        listed = "" if len(runs) == 1 else "\n" + ", ".join(run.name for run in runs)
        them = "it" if len(runs) == 1 else "them"
        ask(
            self.ui,
            "trash",
            f"Move {names} to the trash?{taken} u brings {them} back.{listed}",
            f"move {them}",
            lambda: self.run_worker(self._move_away(runs)),
        )

    async def _move_away(self, runs: Sequence[Path]) -> None:
        """In a thread: all other runs are asked whether they need them."""
        from ondevice.runs import trash

        names = [str(run) for run in runs]
        try:
            moved = await asyncio.to_thread(trash.remove_runs, names, runs[0].parent)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
            return
        self._trashed.append(([Path(one["trash"]).name for one in moved], runs[0].parent))
        told = f"{runs[0].name} is" if len(runs) == 1 else f"{len(runs)} runs are"
        them = "it" if len(runs) == 1 else "them"
        self.ui.say(f"{told} in the trash: u brings {them} back")
        self.ui.look()

    async def action_untrash(self) -> None:
        from ondevice.runs import trash

        if not self._trashed:
            self.ui.say("nothing was moved to the trash here (ondevice runs restore NAME)")
            return
        names, folder = self._trashed[-1]
        back = []
        try:
            for name in list(names):
                back.append(await asyncio.to_thread(trash.restore_run, name, folder))
                names.remove(name)
        except (OSError, UserError) as problem:
            self.ui.say(str(problem), bad=True)
        if not names:
            self._trashed.pop()
        if back:
            self.ui.choose(back[0])
            told = f"{back[0].name} is back" if len(back) == 1 else f"{len(back)} runs are back"
            self.ui.say(told)
        self.ui.look()
