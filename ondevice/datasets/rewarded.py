"""Whether a prompt asks what rewards judge already: chats and pairs of such questions are not for a
place beside these.

A chat shows one way to answer, a pair prefers the tone of one answer to another, and rewards are
there to find a better way: beside them the two would pull against each other on the very same
questions. Two prompts ask the same where they differ in nothing but their numbers ("Quick: 3+4",
"Quick: 49+38").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ondevice.data.chat_encoding import ChatRow
from ondevice.data.completion_batches import Row
from ondevice.data.tokenizer import Tokenizer

LOOKED_AT = 2000
"""Problems whose wording is known; further ones of a large file are like some of these, or not."""
_NUMBER = re.compile(r"\d[\d.,]*")


class Rewarded:
    """The wordings of problems. `prompts`: their ids, as the model's template writes them."""

    def __init__(self, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
        self._prompts = prompts
        self._tokenizer = tokenizer

    @cached_property
    def _known(self) -> set[str]:
        # read where chats or pairs are there to be compared, and not before
        count = len(self._prompts)
        some = np.linspace(0, count, min(LOOKED_AT, count), endpoint=False)
        return {self._wording(self._prompts[int(n)]) for n in some}

    def _wording(self, ids: Iterable[int]) -> str:
        return _NUMBER.sub("0", self._tokenizer.decode(map(int, ids)))

    def asks(self, prompt: Iterable[int]) -> bool:
        """Whether these ids are a prompt of such a wording."""
        return self._wording(prompt) in self._known

    def chats(self, rows: Iterable[ChatRow]) -> NDArray[np.bool_]:
        """(N,) whether a chat begins so: with what stands before its first answer."""
        asks = []
        for ids, mask in rows:
            first_answer = int(mask.argmax())
            asks.append(self.asks(ids[:first_answer]))
        return np.array(asks, np.bool_)

    def rows(self, rows: Iterable[Row]) -> NDArray[np.bool_]:
        """(N,) whether a completion answers such a prompt."""
        return np.array([self.asks(row.prompt) for row in rows], np.bool_)
