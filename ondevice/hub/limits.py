"""How much and how long a server may send: the client itself takes a body that does not end, unpacks
what is packed to any size, and begins anew for ever where a byte comes each time.

A hook of the client's session looks at every piece of every body. It raises TooMuch for more than
the size that was stated, TooSlow for less than `FLOOR` bytes a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER = 64 << 20
"""Bytes of the answers to one question."""
FLOOR = 2_000
"""Bytes a second that a body has at least, over all the time that one question takes."""
PATIENCE_S = 60.0
"""From when on that is asked for."""


class TooMuch(Exception):
    """More bytes than were stated."""


class TooSlow(Exception):
    """Hardly any bytes come."""


class Limits:
    """Of one question, which may take several requests, in threads of the client's. `size`: bytes
    of the file that is asked for, where they are known."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.begun = time.monotonic()
        self.received = 0
        self.stated: dict[str, int] = {}  # address without its query → bytes, as a HEAD says
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            self.received += count
            taken = time.monotonic() - self.begun
            if taken > PATIENCE_S and self.received < FLOOR * taken:
                raise TooSlow(f"{self.received:,} bytes came in {taken:.0f} seconds")

    def most(self, response: Any) -> int:
        """Bytes that the body of this response may have."""
        stated = self.stated.get(_address(response.url))
        if response.status_code >= 400:
            return ANSWER
        if stated is None and "/resolve/" not in str(response.url):  # a question, or elsewhere
            return max(self.size or 0, ANSWER)
        known = [size for size in (stated, self.size) if size is not None]
        return min(known, default=ANSWER)


_now: list[Limits] = []  # the client's threads know no context of ours; the last one is meant


@contextmanager
def limited(session: Any, size: int | None = None) -> Iterator[Limits]:
    """Watches what the session receives within."""
    hooks = session.event_hooks
    if _watch not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _watch]}
    limits = Limits(size)
    _now.append(limits)
    try:
        yield limits
    finally:
        _now.remove(limits)


@contextmanager
def over_http() -> Iterator[None]:
    """Within, what is fetched comes through the client's session, where `limited` watches it, and not
    through hf_xet: that is a library of its own with connections of its own, which has no limit on
    what comes, nor on how long it is waited for. Every file on the Hub is served both ways."""
    from huggingface_hub import constants  # up to 190 ms

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _watch(response: Any) -> None:
    """The hook: called before a body is read."""
    if not _now:
        return
    limits = _now[-1]
    if response.request.method == "HEAD":
        _remember(limits, response)
        return
    raw, unpacked = response.iter_raw, response.iter_bytes

    def watched_raw(chunk_size: int | None = None) -> Iterator[bytes]:
        # as it comes: what is unpacked is handed on in large pieces only
        for piece in raw(chunk_size):
            limits.add(len(piece))
            yield piece

    def watched(chunk_size: int | None = None) -> Iterator[bytes]:
        most, received = limits.most(response), 0
        for piece in unpacked(chunk_size):
            received += len(piece)
            if received > most:
                raise TooMuch(f"sends more than the {most:,} bytes that it stated")
            yield piece

    response.iter_raw, response.iter_bytes = watched_raw, watched


def _remember(limits: Limits, response: Any) -> None:
    """What a HEAD says of a file's size, for its address and for where that leads to."""
    try:
        size = int(response.headers.get("x-linked-size") or response.headers["content-length"])
    except (KeyError, ValueError):
        return
    limits.stated[_address(response.url)] = size
    location = response.headers.get("location")
    if location and "x-linked-size" in response.headers:
        limits.stated[_address(response.url.join(location))] = size


def _address(url: Any) -> str:
    return str(url).partition("?")[0]
