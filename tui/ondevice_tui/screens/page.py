"""What every screen has: a line on top, a footer of keys, a way back, help out of its own bindings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from ondevice_tui.key_order import Opening
from ondevice_tui.trouble import Steady
from ondevice_tui.widgets.key_footer import Keys
from ondevice_tui.widgets.panel import Panel
from ondevice_tui.widgets.safe import SafeText, line
from ondevice_tui.widgets.safe import titled as titled

if TYPE_CHECKING:
    from ondevice_tui.app import OndeviceApp

T = TypeVar("T")

READING = "reading the runs …"


# In place of Textual's, which copies and otherwise does nothing: who wants to leave by it is told
# how.
_COPY = Binding("ctrl+c,super+c", "app.copy_or_tell", show=False)


def of_textual(binding: Binding) -> bool:
    """Whether a key is one that Textual gives to every screen, and says nothing of this one."""
    given = ("app.focus_next", "app.focus_previous", "screen.copy_text", "app.help_quit")
    return not binding.tooltip and binding.action in given


def is_ours(node: object, screen: Screen[Any]) -> bool:
    """Whether keys that are bound there are the screen's, its panel's or the app's."""
    return node in (screen, screen.app) or isinstance(node, Panel)


class Card(Steady, Opening, ModalScreen[T]):
    """A card over a screen."""

    BINDINGS: ClassVar[list[BindingType]] = [_COPY]

    @property
    def ui(self) -> OndeviceApp:
        return cast("OndeviceApp", self.app)


class Page(Steady, Opening, Screen[Any]):
    """`ABOUT` is what `?` says of it; `body` its widgets between the top line and the footer."""

    ABOUT: ClassVar[str] = ""
    # letters are typed here, so that ? and q are not keys: the palette has them
    TYPES: ClassVar[bool] = False
    SHORT_ROWS: ClassVar[int] = 1  # of the foot, in a terminal of less than 24 lines
    BINDINGS: ClassVar[list[BindingType]] = [
        _COPY,
        Binding("escape", "app.go('road')", "home", key_display="esc", tooltip="Back to the road"),
    ]

    _away = True

    @property
    def ui(self) -> OndeviceApp:
        return cast("OndeviceApp", self.app)

    def compose(self) -> ComposeResult:
        yield SafeText(id="top")
        yield from self.body()
        yield Keys()

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    def top(self, *parts: str | Content | tuple[str, str]) -> None:
        self.query_one("#top", SafeText).show(
            line((" ondevice ", "bold $primary"), " ", *parts), layout=False
        )

    def unless_reading(self, told: str) -> str:
        """What is told where the chosen run has nothing to show here; while no run was read yet,
        only that: "not read yet" is not "none"."""
        unread = self.ui.runs is None or (not self.ui.runs and self.ui.unread)
        return READING if unread else told

    def runs_changed(self) -> None:
        """The runs were read anew (every second) while this screen is open."""

    def entered(self) -> None:
        """The screen has come to the front."""

    def left(self) -> None:
        """Another screen has come to the front."""

    @property
    def composed(self) -> bool:
        """Whether all widgets are there: news may come to a screen that is just being made. Those
        inside of other widgets come after the top line, and all of them before the screen counts
        as mounted.
        """
        return self.is_mounted and bool(self.query("#top"))

    def on_screen_resume(self) -> None:
        if self._away:
            self._away = False
            if self.composed:
                self.entered()
            else:
                self.call_after_refresh(self.entered)

    def on_screen_suspend(self) -> None:
        if not isinstance(
            self.app.screen, ModalScreen
        ):  # a card over this screen leaves it where it is
            self._away = True
            self.left()
