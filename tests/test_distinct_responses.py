"""Responses of one prompt that are to be rated: what is said twice is no choice."""

from __future__ import annotations

from ondevice.preferences.distinct import DistinctResponses
from ondevice.preferences.votes import Response


def test_a_text_is_taken_once_and_a_blank_one_never() -> None:
    chosen = DistinctResponses(2)
    texts = ["", " \n", "yes", "yes", "yes "]
    assert [chosen.take(Response(text)) for text in texts] == [False, False, True, False, True]
    assert chosen.complete
    assert [response.text for response in chosen.responses] == ["yes", "yes "]


def test_responses_stand_by_slot_however_they_came() -> None:
    chosen = DistinctResponses(3)
    assert chosen.take(Response("c", "second"), 2)
    assert chosen.take(Response("a", "first"), 0)
    assert not chosen.take(Response("c", "first"), 1)
    assert not chosen.complete
    assert chosen.take(Response("b", "first"), 1)
    assert chosen.complete
    assert [response.text for response in chosen.responses] == ["a", "b", "c"]
