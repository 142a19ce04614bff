"""What the rendering of one chat may take: time, and what it makes on the way.

Every operation of a template whose work grows with its operands spends what it will make, in
characters, before it makes it. What is spent is never given back, so that memory and time have one
bound, whatever is kept and however often it is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

from ondevice.common.errors import UserError

SECONDS = 5.0
LARGEST = 10_000_000
"""Characters of one text or list that a template may make, and four times what it was given; digits
that a power may have are a thousandth of it."""
IN_ALL = 5
"""So many times the largest is all that one rendering may make, and 100 times what it was given: a
text that is built up piece by piece is made anew for each piece."""
ITEM = 8
"""Characters that an item of a list counts for: the bytes of a reference."""
_LOOK = 1000  # from so many characters on the clock is looked at

_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_MANY: tuple[type[Any], ...] = (list, tuple, set, frozenset, *_VIEWS)


class Budget:
    """`spend` raises UserError for what one rendering may not make, or where its time is over."""

    __slots__ = ("given", "largest", "left", "until")

    def __init__(self, given: int) -> None:
        """given: characters of what the template is rendered with."""
        self.given = given
        self.largest = LARGEST + 4 * given
        self.left = IN_ALL * LARGEST + 100 * given
        self.until = time.monotonic() + SECONDS

    def spend(self, characters: float) -> None:
        self.left -= characters  # type: ignore[assignment]  # an estimate may be infinite
        if characters > self.largest:
            raise endless(f"makes something larger than {self.largest:,} characters")
        if self.left < 0:
            raise endless("makes too much on the way to the text of one chat")
        if characters > _LOOK:
            self.look()

    def look(self) -> None:
        """Looks at the clock."""
        if time.monotonic() > self.until:
            raise endless(f"is not done after {SECONDS:g} seconds")

    def weigh(self, value: Any) -> tuple[int, int]:
        """(characters of a value as it would be written out, depth): what stands in it twice counts
        twice. Counts no further than what may be made, and takes its own time into account."""
        total, depth, level = 0, 0, [value]
        while level:
            below: list[Any] = []
            for entry in level:
                if isinstance(entry, str):
                    total += len(entry)
                elif isinstance(entry, dict):
                    total += 2 * ITEM * len(entry)
                    below.extend(entry.keys())
                    below.extend(entry.values())
                elif isinstance(entry, _MANY):
                    total += ITEM * len(entry)
                    below.extend(entry)
                elif isinstance(entry, Namespace):
                    below.extend(entry._Namespace__attrs.values())
                    total += ITEM
                elif isinstance(entry, int):
                    total += 1 + entry.bit_length() // 3
                else:
                    total += ITEM
                if total > self.largest:
                    self.spend(total)  # raises
            level = below
            depth += 1
            if len(level) > _LOOK or not depth % 100:
                self.look()
        return total, depth

    def spend_on(self, value: Any, times: float = 1) -> None:
        """Spends a value's size, `times` over."""
        if isinstance(value, str):
            size = len(value)
        elif value is None or isinstance(value, float):
            return
        elif isinstance(value, int):
            size = 1 + value.bit_length() // 3
        else:
            size = self.weigh(value)[0]
        self.spend(size * times)


_budget: ContextVar[Budget] = ContextVar("budget")


def budget() -> Budget:
    """That of the rendering at hand. Raises LookupError outside of one: so a compiler that works
    constants out beforehand leaves alone what is charged for."""
    return _budget.get()


@contextmanager
def rendering(names: dict[str, Any]) -> Iterator[Budget]:
    """A budget for what is rendered within, with these names."""
    made = Budget(characters(names))
    token = _budget.set(made)
    try:
        yield made
    finally:
        _budget.reset(token)


def characters(value: Any) -> int:
    """Those of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(characters, value.values()))
    if isinstance(value, list):
        return sum(map(characters, value))
    return 0


def endless(what: str) -> UserError:
    return UserError(
        f"the model's chat template {what}",
        where="chat_template",
        hint="templates are programs: read it in the model's folder before you trust it",
    )
