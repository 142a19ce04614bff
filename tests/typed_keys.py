"""A keyboard for `ondevice rate` whose keys were typed beforehand."""

from __future__ import annotations

from collections.abc import Iterable


class Typed:
    """In place of `terminal_keys.Keys`: each of `typed` is a key, or where a line is asked for a line;
    then the input ends. `interactive`: as on a terminal."""

    def __init__(self, typed: Iterable[str], *, interactive: bool = True) -> None:
        self.interactive, self._typed = interactive, list(typed)

    def key(self) -> str | None:
        return self._typed.pop(0) if self._typed else None

    def line(self) -> str | None:
        return self.key()

    def forget(self) -> None:
        pass
