"""The responses of one prompt that is to be rated: each has another text.

Some completions of a prompt are drawn for each response, since a model says the same thing twice.
"""

from __future__ import annotations

from ondevice.preferences.votes import Response

TRIES = 3  # completions drawn for each response: what is said twice is no choice


class DistinctResponses:
    """Takes up to `wanted` responses of one prompt, in slots."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._by_slot: dict[int, Response] = {}

    def take(self, response: Response, slot: int | None = None) -> bool:
        """Whether the response is taken: it says something, and no response in another slot says
        just that. `slot`: where it stands; None: after those that are there.
        """
        texts = {taken.text for taken in self._by_slot.values()}
        if response.text in texts or not response.text.strip():
            return False
        if slot is None:
            slot = len(self._by_slot)
        assert slot not in self._by_slot
        self._by_slot[slot] = response
        return True

    @property
    def complete(self) -> bool:
        """Whether there are as many as are wanted."""
        return len(self._by_slot) == self.wanted

    @property
    def responses(self) -> list[Response]:
        """What was taken, by slot."""
        return [self._by_slot[slot] for slot in sorted(self._by_slot)]
