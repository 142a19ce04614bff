"""Rows of a person's file as items to queue and the votes that came with them.

Pairs `{"prompt", "chosen", "rejected"}`, whose vote is then cast; and what is yet to be rated,
`{"prompt", "a", "b"}` or `{"prompt", "responses": […]}`, with `"votes": ["a", "tie", …]`, one per
rater, if there are any. Our own exported votes are read in `exported_votes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.data.formats import before, nothing_lost, to_chat
from ondevice.data.messages import BadRow, content_alone
from ondevice.data.preference_formats import to_pair
from ondevice.data.row_keys import Record
from ondevice.preferences.votes import Outcome, Response

Row = Mapping[str, Any]
_LETTERS = "abcd"
_FORMS = "prompt, chosen and rejected; prompt, a and b; prompt and responses; or exported votes"
_OUTCOMES: dict[str, Outcome] = {"tie": "tie", "bad": "all_bad", "all_bad": "all_bad"}


@dataclass(frozen=True)
class NewItem:
    """Something to queue, and the votes (outcome, slot of the best) that came with it."""

    prompt: list[dict[str, Any]]
    responses: list[Response]
    votes: Sequence[tuple[Outcome, int]] = ()
    strength: int | None = None
    raters: Sequence[str] = ()
    said: int = 0  # votes that the row names: a pair without raters names none

    @property
    def why_not_gold(self) -> str:
        """Why its votes do not say which answer is the better one; empty where they do."""
        if not self.votes:
            return "without a vote"
        if any(outcome != "ranked" for outcome, _ in self.votes):
            return "tie or all bad"
        if len(set(self.votes)) > 1:
            return "with votes that differ"
        return ""


def parse(row: Record, gold: bool = False) -> NewItem:
    """The item of a row. `gold`: a vote's strength is not kept, and may be a mean. Raises BadRow
    for a row of no known form, and for content that would be lost."""
    item = _parse(row, gold)
    nothing_lost(row)
    return item


def _parse(row: Record, gold: bool) -> NewItem:
    if "chosen" in row and "rejected" in row:
        return _pair(row, gold)
    if "completion" in row and isinstance(dict.get(row, "label"), bool):
        raise BadRow(
            "one completion that is good or bad is not a choice among several: dpo --loss-type kto learns "
            "from such a file as it is"
        )
    if "prompt" not in row:
        raise BadRow(f"none of the known forms: {_FORMS}")
    prompt = before(_prompt(row["prompt"]), row)
    if "responses" in row:
        responses = _several(row["responses"], prompt)
    elif "a" in row and "b" in row:
        responses = _two(row, prompt)
    else:
        raise BadRow(f"none of the known forms: {_FORMS}")
    said = row.get("votes", [])
    if not isinstance(said, list):
        raise BadRow("votes must be a list, one of each rater")
    votes = [_cast(vote, len(responses)) for vote in said]
    return NewItem(prompt, responses, votes, said=len(said))


def _pair(row: Record, gold: bool) -> NewItem:
    made = to_pair(row)
    row.asked.discard("margin")  # a vote has none, so that it is told of
    strength = made.get("strength", 1.0)
    if strength not in (1.0, 2.0) and not gold:
        raise BadRow(
            f"a vote's strength is 1 or 2, not {strength:g}, the mean of several (export --form votes)"
        )
    raters = made.get("raters") or []
    return NewItem(
        made["prompt"],
        [Response(made["chosen"]), Response(made["rejected"])],
        [("ranked", 0)] * max(1, len(raters)),
        strength=int(strength) if "strength" in row else None,
        raters=raters,
        said=len(raters),
    )


def _several(given: Any, prompt: Sequence[Row]) -> list[Response]:
    if not isinstance(given, list) or not 2 <= len(given) <= len(_LETTERS):
        raise BadRow("responses must be a list of two to four")
    return [_response(value, prompt, f"response {n}") for n, value in enumerate(given, 1)]


def _two(row: Record, prompt: Sequence[Row]) -> list[Response]:
    sources = _sources(row.get("models"))
    responses = []
    for name, source in zip("ab", sources, strict=True):
        responses.append(Response(_answer(row[name], prompt, name), source))
    return responses


def _cast(vote: Any, width: int) -> tuple[Outcome, int]:
    if isinstance(vote, str):
        if vote in _OUTCOMES:
            return _OUTCOMES[vote], -1
        if len(vote) == 1 and vote in _LETTERS[:width]:
            return "ranked", _LETTERS.index(vote)
    raise BadRow(f"a vote is one of {', '.join(_LETTERS[:width])}, tie or bad, not {vote!r:.40}")


def _prompt(value: Any) -> list[dict[str, Any]]:
    messages = _as_messages(value, "user")
    try:
        return list(to_chat({"messages": messages})["messages"])
    except BadRow as error:
        raise BadRow(f"prompt: {error}") from None


def _as_messages(value: Any, role: str) -> list[Any]:
    """Messages as they are; anything else as the content of one."""
    if isinstance(value, list):
        return value
    return [{"role": role, "content": value}]


def _answer(value: Any, prompt: Sequence[Row], name: str) -> str:
    """A text, or messages of which the last is the answer and the others, if any, are the prompt's."""
    messages = _as_messages(value, "assistant")
    try:
        said = to_chat({"messages": messages})["messages"]
    except BadRow as error:
        raise BadRow(f"{name}: {error}") from None
    if said[: len(prompt)] == list(prompt):
        said = said[len(prompt) :]
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise BadRow(f"{name} is not one answer to the prompt")
    return str(content_alone(said[0], name))


def _response(value: Any, prompt: Sequence[Row], name: str) -> Response:
    if not isinstance(value, Mapping):
        return Response(_answer(value, prompt, name))
    source = value.get("source", "")
    if not isinstance(source, str):
        raise BadRow(f"{name}: source must be text")
    return Response(_answer(value.get("text"), prompt, name), source)


def _sources(models: Any) -> tuple[str, str]:
    """Two names: a list, or text with one underscore between them; nameless otherwise."""
    names = models
    if isinstance(models, str):
        names = models.split("_")
    if isinstance(names, list) and len(names) == 2 and all(isinstance(name, str) for name in names):
        return names[0], names[1]
    return "", ""
