"""The foot of a screen by itself: what it shows when its keys change, and what the mouse does."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.pilot import Pilot
from textual.screen import Screen

from ondevice_tui.widgets.key_footer import Keys
from tests.tui_runs import until


class Plain(Screen[None]):
    """A screen on which nothing can have the focus, as on Train and Rate."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "one", "first", tooltip="The first deed"),
        Binding("b", "two", "second"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.can = {"one": True, "two": True}
        self.done: list[str] = []

    def compose(self) -> ComposeResult:
        yield Keys()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.can.get(action, True)

    def action_one(self) -> None:
        self.done.append("one")

    def action_two(self) -> None:
        self.done.append("two")


class OnePage(App[None]):
    unfocused = False

    def get_default_screen(self) -> Screen[None]:
        return Plain()

    def on_mount(self) -> None:
        self.app_focus = not self.unfocused


def names(foot: Keys) -> list[str]:
    return [key.description for row in foot.rows for key in row]


def play(script: Any, *, unfocused: bool = False) -> None:
    async def all_of_it() -> None:
        app = OnePage()
        app.unfocused = unfocused
        async with app.run_test(size=(40, 24)) as pilot:
            screen = app.screen
            assert isinstance(screen, Plain)
            foot = screen.query_one(Keys)
            await until(pilot, lambda: foot.rows, "the foot")
            await script(pilot, screen, foot)

    asyncio.run(all_of_it())


def test_the_foot_shows_what_changed_while_another_window_had_the_focus() -> None:
    async def script(pilot: Pilot[Any], screen: Plain, foot: Keys) -> None:
        assert names(foot) == ["first", "second", "palette"], "also where it began unfocused"
        pilot.app.app_focus = False
        await pilot.pause()
        screen.can["one"] = False
        screen.refresh_bindings()
        await pilot.pause()
        pilot.app.app_focus = True
        await until(pilot, lambda: names(foot) == ["second", "palette"], "the keys of now")

    play(script, unfocused=True)


def test_only_the_first_button_presses_a_key_and_the_mouse_lights_the_one_beneath_it() -> None:
    async def script(pilot: Pilot[Any], screen: Plain, foot: Keys) -> None:
        await pilot.click(Keys, offset=(1, 0), button=3)
        await pilot.click(Keys, offset=(1, 0), button=2)
        await pilot.click(Keys, offset=(9, 0))
        await until(pilot, lambda: screen.done, "a click")
        assert screen.done == ["two"]
        await pilot.hover(Keys, offset=(1, 0))
        assert foot.tooltip is not None
        screen.can["one"] = False
        screen.refresh_bindings()
        await until(pilot, lambda: names(foot) == ["second", "palette"], "the keys of now")
        assert foot.tooltip is None, "of a key that is not there"

    play(script)
