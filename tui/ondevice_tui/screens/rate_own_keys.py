"""Keys of a person's own on the rating screen: they do what its keys do, and stand in its foot."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.binding import Binding

from ondevice.preferences.own_keys import (
    DEEDS,
    NAME,
    keys_text,
    parse_keys,
    remembered_keys,
)
from ondevice_tui.screens.rate_keys import KEYS, PAIRS
from ondevice_tui.screens.rate_project import FieldCard
from ondevice_tui.screens.rate_sharing import SharingPage
from ondevice_tui.widgets.safe import SafeInput, SafeText

BY_DEED = {each.id: each for each in KEYS if isinstance(each, Binding) and each.id}


class OwnKeysPage(SharingPage):
    """A rating screen whose deeds may have further keys (`own_keys`: by deed)."""

    def __init__(self) -> None:
        super().__init__()
        self.own_keys: dict[str, str] = {}
        self._keys_trouble = ""

    def entered(self) -> None:
        """What another window or `ondevice rate` has changed meanwhile holds from now on."""
        self.ui.remembered.look_again()
        own, trouble = remembered_keys(self.ui.remembered)
        if trouble and trouble != self._keys_trouble:
            self.ui.say(trouble, bad=True)
        self._keys_trouble = trouble
        self._use(own)
        super().entered()

    def own_action(self, character: str) -> str:
        for deed, key in self.own_keys.items():
            if key == character:
                return BY_DEED[deed].action
        return ""

    def _use(self, own: dict[str, str]) -> None:
        if own != self.own_keys:
            self.own_keys = own
            self.ui.key_shown = shown_keys(own)
            self.answers.own_keys = own
            self.answers.rank(self.answers.ranking)  # its titles say them
            self.refresh_bindings()

    def action_own_keys(self) -> None:
        def take(own: dict[str, str] | None) -> None:
            if own is not None:
                self.ui.keep(NAME, own)
                self._use(own)
                self._show_told(f"your keys: {keys_text(own) or 'none'}")

        self.app.push_screen(OwnKeys(self.own_keys), take)


class OwnKeys(FieldCard):
    """Comes back with {deed: key}; None where it was left."""

    TITLE_, HELP = "keys of your own", "Enter keeps   esc leaves"

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = own

    def fields(self) -> ComposeResult:
        yield from self.row(
            NAME,
            SafeInput(keys_text(self._own), compact=True),
            "Like left=a, right=l. They do the same in `ondevice rate`; the others go on working.",
        )
        yield SafeText(
            "   ".join(f"{name} {_visible(deed.key)}" for name, deed in DEEDS.items()), "$muted"
        )

    def taken(self) -> dict[str, str]:
        return parse_keys(self.text(NAME))


def shown_keys(own: Mapping[str, str]) -> dict[str, str]:
    """What the foot shows for each deed that has a key of its own, or stands there for one that has:
    `a l`, `a →`."""
    found = {}
    for deed, binding in BY_DEED.items():
        both = [deed, PAIRS[deed]] if deed in PAIRS else [deed]
        if not any(each in own for each in both):
            continue
        usual = (binding.key_display or "").split()
        if len(usual) != len(both):
            usual = [DEEDS[each].key for each in both]
        found[deed] = " ".join(own.get(each, key) for each, key in zip(both, usual, strict=True))
    return found


def _visible(key: str) -> str:
    return "space" if key == " " else key
