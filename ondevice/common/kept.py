"""What is made from an object once and kept: the last few, so that memory stays bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Kept:
    """Objects with what was made from them, by identity; the last `most` that were asked for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def get(self, source: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave for `source`."""
        found = self._held.get(id(source))
        if found is None:
            # the source is kept beside it, so that its id stays its own
            found = (source, make())
            self._held[id(source)] = found
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(id(source))
        return found[1]
