"""Which characters of what a chat template writes are the assistant's.

A turn's range is where the template's text differs from that of the same chat with this message
changed: contents, thoughts and calls are replaced by a mark, one after another, and each change
must show inside the range and nowhere before it. The range begins where the prompt for the turn
ends, so that what the model itself writes before its answer (an empty thought, the name of a
channel) is learned with it, and goes on to the stop token. A template's own `{% generation %}`
ranges are kept to the letter, and tested in the same way.

A chat is one row where each of its beginnings is also the beginning of the whole; else each turn is
a row of its own, with the chat cut after it (Qwen3 and gpt-oss write earlier turns without their
thoughts). A chat of which something that it says would be learned nowhere is refused: nothing that
a message says is dropped in silence.

Why not prefixes: rendering the chat up to each turn and taking the difference, as many trainers do,
is wrong for every template that writes a turn otherwise once another follows. Why not
`{% generation %}` alone, as in TRL: hardly any published template has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from ondevice.data.chat_context import check_context
from ondevice.data.chat_template import (
    MARK,
    Message,
    Rendered,
    Span,
    content_of,
    forms,
    rendered,
    spans_of,
    takes_parts,
    tried,
    with_content,
)
from ondevice.data.message_changes import changes, no_trace, replaced, thoughts_in, wholly_changed
from ondevice.data.messages import TOOLS, BadRow
from ondevice.data.tokenizer import Tokenizer

T = TypeVar("T")
_SPACE = re.compile(r"\s+")


def render_chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Rendered]:
    """Rows of one chat, with the assistant's ranges. Raises BadRow for a chat that the template
    refuses, or of which it does not show or not write something; UserError without a template."""
    weights = [_weight(message, number) for number, message in enumerate(messages)]
    return _first_form(messages, tokenizer, lambda chat: _rows(chat, weights, tokenizer))


def checked_context(
    messages: Sequence[Message], tokenizer: Tokenizer, *, prompt: bool = False
) -> str:
    """The text of a chat that is only read, in the first form in which the template writes all of
    it. Raises BadRow and UserError as `render_chat` does."""

    def read(chat: Sequence[Message]) -> str:
        text = spans_of(rendered(tokenizer, chat, prompt=prompt))[0]
        check_context(chat, text, tokenizer, prompt=prompt)
        return text

    return _first_form(messages, tokenizer, read)


def _first_form(
    messages: Sequence[Message], tokenizer: Tokenizer, made: Callable[[Sequence[Message]], T]
) -> T:
    """What is made of the chat in the first form of which the template writes everything."""
    errors: list[BadRow] = []
    for chat in forms(messages, tokenizer):
        try:
            return made(chat)
        except BadRow as error:
            errors.append(error)
    # What a template that takes the chat does not write says more than that another form is
    # refused.
    for refusal in errors:
        if "no trace" in str(refusal):
            raise refusal
    raise errors[0]


def _weight(message: Message, number: int) -> bool:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise BadRow(
            f"message {number + 1} has the weight {weight!r:.40}: it is 0 (read, not learned) or 1"
        )
    return weight != 0


def _rows(chat: Sequence[Message], weights: Sequence[bool], tokenizer: Tokenizer) -> list[Rendered]:
    text, spans = spans_of(rendered(tokenizer, chat))
    check_context(chat, text, tokenizer)
    turns = [n for n, message in enumerate(chat) if message.get("role") == "assistant"]
    learned = [n for n in turns if weights[n]]
    if not learned:
        return [Rendered(text, ())]
    marked = _marks(tokenizer, chat)
    if marked and len(learned) == len(turns) and _all_inside(chat, turns, text, spans):
        return [Rendered(text, spans, exact=True)]
    render_turn = _marked_turn if marked else _turn
    rows = [render_turn(chat, n, tokenizer) for n in learned]
    if all(text.startswith(row.text) for row in rows):
        return [_as_one(text, rows, exact=marked)]
    return rows


def _as_one(text: str, rows: Sequence[Rendered], *, exact: bool) -> Rendered:
    """One row of a chat of which all rows are beginnings: their ranges are those of the whole."""
    spans: list[Span] = []
    said: list[int] = []
    for row in rows:
        spans += row.spans
        said += row.said
    is_open = any(row.open for row in rows)
    return Rendered(text, tuple(spans), tuple(said), exact=exact, open=is_open)


def _marks(tokenizer: Tokenizer, chat: Sequence[Message]) -> bool:
    template = tokenizer.template_for(bool(chat and chat[0].get(TOOLS))) or ""
    return re.search(r"\{%[-+]?\s*generation\b", template) is not None


def _shared(one: str, other: str) -> int:
    """Characters of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shared_with(text: str, other: str | None) -> int:
    """The same of a text that the template may have refused to write: then 0."""
    if other is None:
        return 0
    return _shared(text, other)


def _tail(one: str, other: str) -> int:
    """Characters of the common end."""
    return _shared(one[::-1], other[::-1])


def _bare(text: str) -> str:
    return _SPACE.sub("", text)


def _outside(turn: int, what: str) -> BadRow:
    return BadRow(
        f"message {turn + 1}: the chat template does not show which tokens the assistant wrote of its {what}"
        " (mark them with {% generation %}, or take the chatml template)"
    )


# ---- templates without marks ----------------------------------------------------------------------------------------


def _turn(chat: Sequence[Message], turn: int, tokenizer: Tokenizer) -> Rendered:
    """The chat cut after an assistant's turn, with the turn's range."""
    message = chat[turn]
    text = tried(tokenizer, chat[: turn + 1])
    rest: Sequence[Message] = ()
    if text is None:  # the template does not let a chat end here
        rest, text = chat[turn + 1 :], spans_of(rendered(tokenizer, chat))[0]
    prompt = tried(tokenizer, chat[:turn], prompt=True)
    content = content_of(message).strip()
    if content and not rest and prompt is not None and text.startswith(prompt):
        at = text.find(content, len(prompt))
        if at >= 0 and not (thoughts_in(message) or message.get("tool_calls")):
            start = _begin(chat, turn, text, prompt, at, tokenizer)
            return Rendered(text, ((start, len(text)),), (at + len(content),))

    def change(other: Message) -> str | None:
        return tried(tokenizer, [*chat[:turn], other, *rest])

    least = _shared_with(text, tried(tokenizer, chat[:turn]))
    whole = _with_whole_content(text, least, message, change)
    if whole is None:
        if change(with_content(message, MARK)) == text:
            raise no_trace(turn, "content")
        raise _outside(turn, "content")
    text, base = whole
    first, said = _where_said(chat, turn, text, base, change, tokenizer, prompt)
    start = _begin(chat, turn, text, prompt, first, tokenizer)
    while content and _bare(content) not in _bare(text[start:said]):
        if start <= least:
            raise _outside(turn, "content")
        start -= 1  # a thought's opening, which the prompt has written already, is the content's own where it has one
    end = len(text)
    if rest:  # what follows the turn is not its own from where the next message says something
        other = tried(tokenizer, replaced(chat, turn + 1, wholly_changed(rest[0])))
        end = max(said, _shared_with(text, other))
    return Rendered(text, ((start, end),), (said,), open=bool(rest))


def _with_whole_content(
    text: str, least: int, message: Message, change: Callable[[Message], str | None]
) -> tuple[str, Message] | None:
    """(the text, the message whose changes are compared) where a template writes a content whole
    after the place `least`, or a part of it alone: DeepSeek-R1's leaves the thought out of an
    answer that it was itself given, and then the content is put in its place. None where it writes
    something else."""
    content = content_of(message)
    if not content.strip() or _bare(content) in _bare(text[least:]):
        return text, message
    marked = with_content(message, MARK)
    other = change(marked)
    if other is None or other.count(MARK) != 1:
        return None
    head, tail = other.split(MARK)
    if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
        return None
    part = text[len(head) : len(text) - len(tail)]
    if _bare(part) in _bare(content):
        return (f"{head}{content}{tail}", marked)
    return None


def _where_said(
    chat: Sequence[Message],
    turn: int,
    text: str,
    message: Message,
    change: Callable[[Message], str | None],
    tokenizer: Tokenizer,
    prompt: str | None,
) -> tuple[int, int]:
    """(first, end) of all that the message says. `message` is `chat[turn]`, or that with a mark as
    its content where `text` has the content in the mark's place."""
    least = _shared_with(text, tried(tokenizer, chat[:turn]))
    if prompt is not None:
        least = min(least, _shared(text, prompt))
    first, end = len(text), 0
    base = text
    if message is not chat[turn]:
        base = change(message) or ""
    if base != text:  # the content stands where the mark does
        first = base.index(MARK)
        end = first + len(content_of(chat[turn]))
    moved = len(text) - len(base)
    for what, changed in changes(message):
        if what == "content" and base != text:
            continue
        other = change(changed)
        if other is None:
            raise _outside(turn, what)
        if other == base:
            raise no_trace(turn, what)
        at = _shared(base, other)
        if at < least:
            raise _outside(turn, what)
        same_end = min(_tail(base, other), len(base) - at)
        first = min(first, at)
        end = max(end, len(base) - same_end + moved)
    if not end:  # an empty turn
        other = change(wholly_changed(message))
        first = len(text)
        if other is not None:
            first = _shared(text, other)
        end = first
    return first, end


def _begin(
    chat: Sequence[Message],
    turn: int,
    text: str,
    prompt: str | None,
    first: int,
    tokenizer: Tokenizer,
) -> int:
    """Where the turn's range begins: where its prompt ends, at the latest where the turn says
    something. What opens the turn is before it, also where a prompt after a tool's answer leaves it
    out."""
    openings = _openings(tokenizer)
    whole = prompt is not None and text.startswith(prompt)
    if whole:
        before = prompt
        openings = openings[:1]
    else:
        before = tried(tokenizer, chat[:turn])
    least = _shared_with(text, before)
    for opening in openings:
        if (at := text.rfind(opening, min(least, first), first)) >= 0:
            return at + len(opening)
    if whole:
        return min(least, first)
    return first


@lru_cache(maxsize=8)
def _openings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What the template opens an assistant's turn with when it asks, and the beginnings of it, the
    longest first, that end with a special token or a line: with a history it may leave out the
    opening of a thought. Empty where it is not to be told apart."""
    asked: list[Message] = [{"role": "user", "content": "hello"}]
    if takes_parts(tokenizer):
        asked = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    text, prompt = tried(tokenizer, asked), tried(tokenizer, asked, prompt=True)
    if text is None or prompt is None or not prompt.startswith(text) or prompt == text:
        return ()
    opening = prompt[len(text) :]
    ends = {len(opening)}
    for word in (*tokenizer.special, "\n"):
        ends.update(match.end() for match in re.finditer(re.escape(word), opening))
    # What the prompt begins with as every message does says nothing of who speaks.
    usual = _shared(opening, _asked_again(tokenizer, asked, text))
    return tuple(opening[:end] for end in sorted(ends, reverse=True) if end > usual)


def _asked_again(tokenizer: Tokenizer, asked: Sequence[Message], text: str) -> str:
    """What the template writes of a second message of the user's."""
    more = tried(tokenizer, [*asked, *asked])
    if more is not None and more.startswith(text):
        return more[len(text) :]
    return ""


# ---- templates that mark the assistant's tokens ---------------------------------------------------------------------


def _all_inside(
    chat: Sequence[Message], turns: Sequence[int], text: str, spans: Sequence[Span]
) -> bool:
    """Whether each turn says nothing but its content, and all contents stand inside the marks, in
    order.
    """
    inside, place = "".join(_texts(text, spans)), 0
    for turn in turns:
        if thoughts_in(chat[turn]) or chat[turn].get("tool_calls"):
            return False
        content = content_of(chat[turn]).strip()
        place = inside.find(content, place) + len(content)
        if place < len(content):
            return False
    return True


def _texts(text: str, spans: Sequence[Span]) -> list[str]:
    """What stands in each of the ranges."""
    return [text[start:end] for start, end in spans]


def _marked_turn(chat: Sequence[Message], turn: int, tokenizer: Tokenizer) -> Rendered:
    """The chat cut after an assistant's turn, with the marked ranges of the turn."""
    message = chat[turn]
    rest: Sequence[Message] = ()

    def change(other: Message) -> tuple[str, tuple[Span, ...]] | None:
        try:
            return spans_of(rendered(tokenizer, [*chat[:turn], other, *rest]))
        except BadRow:
            return None

    written = change(message)
    if written is None:  # the template does not let a chat end here
        rest = chat[turn + 1 :]
        written = spans_of(rendered(tokenizer, chat))
    text, spans = written
    own = _own_spans(text, spans, change(wholly_changed(message)))
    inside, outside = _apart(text, spans)
    for what, changed in changes(message):
        other = change(changed)
        if other is None:
            raise _outside(turn, what)
        if other[0] == text:
            raise no_trace(turn, what)
        other_inside, other_outside = _apart(*other)
        if other_outside != outside or other_inside == inside:
            raise _outside(turn, what)
    said = "".join(_texts(text, own))
    if _bare(content_of(message)) not in _bare(said):
        return _put_in(chat, turn, change)
    return Rendered(text, own, exact=True)


def _own_spans(
    text: str, spans: Sequence[Span], other: tuple[str, tuple[Span, ...]] | None
) -> tuple[Span, ...]:
    """The ranges from the first to the last one whose text changes with the turn."""
    if other is None:
        return tuple(spans[-1:])
    ours, theirs = _texts(text, spans), _texts(*other)
    most, same, after = min(len(ours), len(theirs)), 0, 0
    while same < most and ours[same] == theirs[same]:
        same += 1
    while after < most - same and ours[-1 - after] == theirs[-1 - after]:
        after += 1
    return tuple(spans[same : len(spans) - after])


def _apart(text: str, spans: Sequence[Span]) -> tuple[str, str]:
    """(what stands inside the ranges, what stands outside)."""
    gaps: list[Span] = []
    place = 0
    for start, end in spans:
        gaps.append((place, start))
        place = end
    gaps.append((place, len(text)))
    return MARK.join(_texts(text, spans)), MARK.join(_texts(text, gaps))


def _put_in(
    chat: Sequence[Message],
    turn: int,
    change: Callable[[Message], tuple[str, tuple[Span, ...]] | None],
) -> Rendered:
    """The turn with its content in place of the part that the template writes of it."""
    message, content = chat[turn], content_of(chat[turn])

    def text_of(changed: Message) -> str | None:
        written = change(changed)
        if written is None:
            return None
        return written[0]

    text, other = text_of(message), change(with_content(message, MARK))
    whole = None
    if text is not None:
        whole = _with_whole_content(text, len(text), message, text_of)
    if whole is None or other is None or MARK not in other[0]:
        raise _outside(turn, "content")
    at, longer = other[0].index(MARK), len(content) - len(MARK)

    def moved(place: int) -> int:
        if place > at:
            return place + longer
        return place

    own = _own_spans(*other, change(with_content(message, MARK * 2)))
    spans = tuple((moved(start), moved(end)) for start, end in own)
    return Rendered(whole[0], spans, exact=True)
