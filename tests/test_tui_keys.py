"""One key, one deed: on every screen, every card, and in the plain terminal."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from textual.binding import Binding
from textual.dom import DOMNode

import ondevice_tui.screens
import ondevice_tui.widgets

# key(s): the one deed, and the actions that are this deed. A key that is not here may have one
# action only, whatever the screen. A card's own key closes it again: `close` and `dismiss(None)` are
# no other deed (see `_deed`), nor is a key that only says where its deed has gone.
ONE_DEED: dict[str, tuple[str, set[str]]] = {
    "escape": (
        "leaves what is in front: a card, a form, a search, then the screen",
        {"dismiss(False)", "app.go('road')", "none", "back", "clear"},
    ),
    "q": ("leaves what is in front: a card, else the app", {"leave", "dismiss(False)"}),
    "ctrl+q": ("leaves the app, also where letters are typed", {"leave", "app.leave"}),
    "enter": (
        "does what is sensible with what is at hand",
        {"dismiss(True)", "dismiss(False)", "fold", "enter", "full", "start"},
    ),
    "space": (
        "where there is text, a page; where there are rows to choose among, a tick: as in every "
        "pager and every list",
        {"page(1)", "scroll(10)", "tick", "fold"},
    ),
    "pagedown": ("a page down", {"page(1)", "scroll(10)", "scroll(1)"}),
    "pageup": ("a page up", {"page(-1)", "scroll(-10)", "scroll(-1)"}),
    "home": ("to the beginning", {"page(-1000)"}),
    "end": ("to the end", {"page(1000)", "read_all"}),
    "down": ("down", {"scroll(1)", "scroll(2)", "step(1)", "go(1)"}),
    "up": ("up", {"scroll(-1)", "scroll(-2)", "step(-1)", "go(-1)"}),
    "j": ("down", {"scroll(1)", "scroll(2)", "move(1)", "go(1)"}),
    "k": ("up", {"scroll(-1)", "scroll(-2)", "move(-1)", "go(-1)"}),
    "J": ("one box down", {"scroll_one(1)", "scroll_table(1)", "scroll(2)"}),
    "K": ("one box up", {"scroll_one(-1)", "scroll_table(-1)", "scroll(-2)"}),
    "left": (
        "the one on the left, or before: an arrow points",
        {"pick(0)", "dismiss('1')", "prompt(-1)", "turn(-1)", "give('drop')"},
    ),
    "right": (
        "the one on the right, or after",
        {"pick(1)", "dismiss('2')", "prompt(1)", "turn(1)", "give('keep')"},
    ),
    "left_square_bracket": ("the one before", {"prompt(-1)", "group(-1)", "sample(-1)"}),
    "right_square_bracket": ("the next one", {"prompt(1)", "group(1)", "sample(1)"}),
    "left_curly_bracket": ("the one before, of what [ ] goes through", {"step(-1)", "prompt(-1)"}),
    "right_curly_bracket": ("the next one, of what [ ] goes through", {"step(1)", "prompt(1)"}),
    "tab": (
        "the next of what lies side by side: list, box, field, filter, table, curve",
        {
            "app.focus_next",
            "lists",
            "table",
            "what",
            "turn_on",
            "turn(1)",
            "choice",
            "curve",
            "metric(1)",
        },
    ),
    "shift+tab": ("the one before", {"lists", "turn(-1)", "metric(-1)"}),
    "plus": ("more", {"every(1)", "zoom(1)"}),
    "equals_sign": ("+ without shift", {"every(1)", "zoom(1)"}),
    "minus": ("less", {"every(-1)", "zoom(-1)"}),
    "slash": ("only some: a search", {"search", "wanted"}),
    "d": ("what differs", {"diff", "compare", "ask('differences')"}),
    "g": ("go: starts what is at hand", {"start", "send", "turn"}),
    "ctrl+g": ("go, where letters are typed", {"go", "take"}),
    "ctrl+e": ("the settings", {"settings", "unfold"}),
    "ctrl+s": ("saves what is shown into the run", {"save", "write"}),
    "ctrl+t": ("chooses the model", {"model", "model(0)"}),
    "f2": (
        "changes a text: a name, a message, the guidelines",
        {"ask('rename')", "edit", "name", "dismiss(True)"},
    ),
    "N": ("a note", {"note", "ask('note')"}),
    "O": ("another order", {"sort", "sort(1)"}),
    "F": ("filters: only some states or groups", {"state", "filter(1)"}),
    "o": ("overlay", {"overlay", "ask('overlay')"}),
    "s": ("skips it: it comes again at the end", {"skip", "later"}),
    "u": ("takes back", {"undo", "untrash", "none"}),
    "t": ("a tie", {"outcome('tie')", "dismiss('tie')"}),
    "x": ("all are bad", {"outcome('all_bad')", "dismiss('bad')"}),
    "y": ("the y axis; in a question, which says so, yes", {"scale", "dismiss(True)"}),
    "n": ("a new run; in a question, which says so, no", {"new", "dismiss(False)"}),
    # where answers are rated they stand under numbers, one key a vote; elsewhere the screens do
    "1": (
        "the first: screen, answer, reason, score",
        {"go('road')", "none", "pick(0)", "dismiss('1')", "switch(0)", "score(1)"},
    ),
    "2": (
        "the second",
        {"go('train')", "watch", "pick(1)", "dismiss('2')", "switch(1)", "score(2)"},
    ),
    "3": ("the third", {"go('reason')", "open('reason')", "pick(2)", "switch(2)", "score(3)"}),
    "4": ("the fourth", {"go('rate')", "open('rate')", "pick(3)", "switch(3)", "score(4)"}),
    "5": (
        "the fifth",
        {"go('ladder')", "open('ladder')", "elsewhere('ladder')", "switch(4)", "score(5)"},
    ),
    "6": ("the sixth", {"go('chat')", "chat", "elsewhere('chat')", "switch(5)"}),
    "7": ("the seventh", {"go('push')", "open('push')", "elsewhere('push')", "switch(6)"}),
}
CLOSES = {"close", "dismiss(None)", "dismiss(False)"}
SAYS = ("letter", "app.tell_moved(")  # they do nothing but say something


def _bound() -> Iterator[tuple[str, str, type]]:
    """(key, action, where) of every binding of the app."""
    modules = ["ondevice_tui.app"]
    for package in (ondevice_tui.screens, ondevice_tui.widgets):
        modules += [m.name for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    found: dict[type, None] = {}
    for name in modules:
        for each in vars(importlib.import_module(name)).values():
            ours = isinstance(each, type) and each.__module__.startswith("ondevice_tui")
            if ours and issubclass(each, DOMNode) and "BINDINGS" in vars(each):
                found[each] = None
    for where in found:
        bindings: list[Any] = where.BINDINGS
        for binding in bindings:
            made = binding if isinstance(binding, Binding) else Binding(*binding)
            for key in made.key.split(","):
                yield key.strip(), made.action, where


def _deeds(bound: list[tuple[str, str, type]]) -> dict[str, dict[str, set[str]]]:
    """key → action → the classes that have it, without those that only say something or close what
    is in front."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for key, action, where in bound:
        if action.startswith(SAYS) or (action in CLOSES and key not in ("1", "2")):
            continue
        found[key][action].add(where.__name__)
    return found


def test_a_key_has_one_deed_on_every_screen() -> None:
    deeds = _deeds(list(_bound()))
    assert len(deeds) > 80  # they are all found
    wrong = []
    for key, actions in sorted(deeds.items()):
        allowed = ONE_DEED[key][1] if key in ONE_DEED else {sorted(actions)[0]}
        for action in sorted(set(actions) - allowed):
            wrong.append(f"{key}: {action} of {', '.join(actions[action])}; others: {allowed}")
    assert not wrong, "\n".join(wrong)


def test_no_key_is_excused_for_nothing() -> None:
    bound = list(_bound())
    there = {(key, action) for key, action, _ in bound}
    stale = [
        (key, action)
        for key, (_, actions) in ONE_DEED.items()
        for action in sorted(actions)
        if (key, action) not in there
    ]
    assert not stale


def test_a_second_deed_is_found() -> None:
    """The walk itself: a key with two deeds does not pass."""

    class One(DOMNode):
        BINDINGS = [Binding("w", "side")]

    class Two(DOMNode):
        BINDINGS = [Binding("w", "write")]

    deeds = _deeds([("w", "side", One), ("w", "write", Two), ("w", "close", Two)])
    assert deeds["w"] == {"side": {"One"}, "write": {"Two"}}
