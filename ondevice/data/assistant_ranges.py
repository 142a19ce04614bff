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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from ondevice.data.chat_template import (
    MARK,
    THOUGHTS,
    Message,
    Rendered,
    Span,
    content_of,
    forms,
    rendered,
    spans_of,
    spelt_twice,
    takes_parts,
    tried,
    with_content,
)
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
    raise next((error for error in errors if "no trace" in str(error)), errors[0])


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
    rows = [
        _marked_turn(chat, n, tokenizer) if marked else _turn(chat, n, tokenizer) for n in learned
    ]
    if not all(text.startswith(row.text) for row in rows):
        return rows
    # The ranges of a chat's beginnings are those of the whole.
    return [
        Rendered(
            text,
            tuple(s for row in rows for s in row.spans),
            tuple(e for row in rows for e in row.said),
            exact=marked,
            open=any(row.open for row in rows),
        )
    ]


def _marks(tokenizer: Tokenizer, chat: Sequence[Message]) -> bool:
    template = tokenizer.template_for(bool(chat and chat[0].get(TOOLS))) or ""
    return re.search(r"\{%[-+]?\s*generation\b", template) is not None


# ---- what is read ---------------------------------------------------------------------------------------------------


def check_context(
    chat: Sequence[Message], text: str, tokenizer: Tokenizer, *, prompt: bool = False
) -> None:
    """Raises BadRow where the template drops a message that is read, or the row's tools, spells
    JSON as a string of JSON, or null as a word."""
    if spelt_twice(chat, text):
        raise BadRow(
            "the chat template writes the arguments of a call, which are JSON, as a string of JSON"
        )
    if any(message.get("content", "") is None for message in chat):
        other = tried(
            tokenizer, [{**m, "content": m.get("content") or ""} for m in chat], prompt=prompt
        )
        if other is not None and text.count("None") > other.count("None"):
            raise BadRow("the chat template writes a content that is null as the word None")
    marks = {
        n: f"{MARK}{n}{MARK}"
        for n, message in enumerate(chat)
        if message.get("role") != "assistant" and content_of(message).strip()
    }
    contents = [content_of(message).strip() for message in chat]
    if all(_is_written(contents[n], contents, text) for n in marks):
        marks = {}
    if marks:
        marked = tried(
            tokenizer,
            [with_content(m, marks[n]) if n in marks else m for n, m in enumerate(chat)],
            prompt=prompt,
        )
    else:
        marked = None
    for n, mark in marks.items():
        if marked is not None and mark in marked:
            continue
        other = tried(
            tokenizer, [*chat[:n], with_content(chat[n], mark), *chat[n + 1 :]], prompt=prompt
        )
        if other == text:
            raise BadRow(
                f"message {n + 1} ({chat[n].get('role')}) leaves no trace in what the chat template writes"
            )
    for n, message in enumerate(chat):
        own = message.get("role") == "assistant"
        if own and not (prompt and message.get("tool_calls")):
            continue  # what is learned is tested where it is learned
        for what, changed in _changes(message):
            if what == ("thought" if own else "content"):
                continue  # a thought that was thought is left out by many; contents are tested above
            if tried(tokenizer, [*chat[:n], changed, *chat[n + 1 :]], prompt=prompt) == text:
                raise _missing(chat, n, what)
    if chat and (tools := chat[0].get(TOOLS)):
        other = tried(
            tokenizer,
            [{**chat[0], TOOLS: [_renamed(tool) for tool in tools]}, *chat[1:]],
            prompt=prompt,
        )
        if other == text:
            raise BadRow("the row's tools leave no trace in what the chat template writes")


def _is_written(content: str, contents: Sequence[str], text: str) -> bool:
    """Whether a content that is too long to stand in the text by chance stands there as often as in
    the chat.
    """
    return len(content) >= 12 and text.count(content) >= sum(
        other.count(content) for other in contents
    )


def _renamed(tool: Any) -> Any:
    if not isinstance(tool, Mapping):
        return tool
    inner = tool.get("function")
    if isinstance(inner, Mapping):
        return {**tool, "function": _renamed(inner)}
    return {**tool, "name": MARK}


# ---- what is said ---------------------------------------------------------------------------------------------------


def _thoughts(message: Message) -> list[str]:
    return [key for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()]


def _changes(message: Message) -> Iterator[tuple[str, Message]]:
    """(what is changed, the message with a mark in place of it) for each thing that an assistant's
    message says.
    """
    if content_of(message).strip():
        yield "content", with_content(message, MARK)
    if thoughts := _thoughts(message):
        yield "thought", {**message, **dict.fromkeys(thoughts, MARK)}
    calls = message.get("tool_calls") or []
    for n, call in enumerate(calls):
        for name in ("name", "arguments"):
            changed = _changed_call(call, name)
            if changed != call:
                yield (
                    f"call {n + 1}",
                    {**message, "tool_calls": [*calls[:n], changed, *calls[n + 1 :]]},
                )


def _changed_call(call: Any, name: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _changed_call(call["function"], name)}
    if name not in call:
        return call
    return {**call, name: MARK if name == "name" else _marked_leaves(call[name])}


def _marked_leaves(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _marked_leaves(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_marked_leaves(entry) for entry in value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return f'{{"{MARK}": "{MARK}"}}'
    return MARK


def _wholly_changed(message: Message) -> Message:
    """The message with all that it says changed, and a content where it says nothing else."""
    if content_of(message).strip() or not (message.get("tool_calls") or _thoughts(message)):
        message = with_content(message, MARK)
    if thoughts := _thoughts(message):
        message = {**message, **dict.fromkeys(thoughts, MARK)}
    calls = message.get("tool_calls")
    if calls:
        return {
            **message,
            "tool_calls": [
                _changed_call(_changed_call(call, "name"), "arguments") for call in calls
            ],
        }
    return message


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


def _tail(one: str, other: str) -> int:
    """Characters of the common end."""
    return _shared(one[::-1], other[::-1])


def _bare(text: str) -> str:
    return _SPACE.sub("", text)


def _missing(chat: Sequence[Message], turn: int, what: str) -> BadRow:
    return BadRow(
        f"message {turn + 1}: its {what} leaves no trace in what the chat template writes"
    )


def _outside(chat: Sequence[Message], turn: int, what: str) -> BadRow:
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
        if at >= 0 and not (_thoughts(message) or message.get("tool_calls")):
            return Rendered(
                text,
                ((_begin(chat, turn, text, prompt, at, tokenizer), len(text)),),
                (at + len(content),),
            )

    def change(other: Message) -> str | None:
        return tried(tokenizer, [*chat[:turn], other, *rest])

    before = tried(tokenizer, chat[:turn])
    least = 0 if before is None else _shared(text, before)
    held = _with_whole_content(text, least, message, change)
    if held is None:
        raise (
            _missing(chat, turn, "content")
            if change(with_content(message, MARK)) == text
            else _outside(chat, turn, "content")
        )
    text, base = held
    found = _where_said(chat, turn, text, base, change, tokenizer, prompt)
    start, said = _begin(chat, turn, text, prompt, found[0], tokenizer), found[1]
    while content and _bare(content) not in _bare(text[start:said]):
        if start <= least:
            raise _outside(chat, turn, "content")
        start -= 1  # a thought's opening, which the prompt has written already, is the content's own where it has one
    end = len(text)
    if rest:  # what follows the turn is not its own from where the next message says something
        other = tried(tokenizer, [*chat[: turn + 1], _wholly_changed(rest[0]), *rest[1:]])
        end = said if other is None else max(said, _shared(text, other))
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
    before = tried(tokenizer, chat[:turn])
    least = 0 if before is None else _shared(text, before)
    least = least if prompt is None else max(0, min(least, _shared(text, prompt)))
    first, end = len(text), 0
    base = text if message is chat[turn] else change(message) or ""
    if base != text:  # the content stands where the mark does
        first = base.index(MARK)
        end = first + len(content_of(chat[turn]))
    moved = len(text) - len(base)
    for what, changed in _changes(message):
        if what == "content" and base != text:
            continue
        other = change(changed)
        if other is None:
            raise _outside(chat, turn, what)
        if other == base:
            raise _missing(chat, turn, what)
        at = _shared(base, other)
        if at < least:
            raise _outside(chat, turn, what)
        first, end = (
            min(first, at),
            max(end, len(base) - min(_tail(base, other), len(base) - at) + moved),
        )
    if not end:  # an empty turn
        other = change(_wholly_changed(message))
        first = len(text) if other is None else _shared(text, other)
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
    whole = prompt is not None and text.startswith(prompt)
    before = prompt if whole else tried(tokenizer, chat[:turn])
    least = 0 if before is None else _shared(text, before)
    for opening in _openings(tokenizer)[: 1 if whole else None]:
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
    words = [word for word in [*sorted(tokenizer.special), "\n"] if word in opening]
    ends = {match.end() for word in words for match in re.finditer(re.escape(word), opening)} | {
        len(opening)
    }
    # What the prompt begins with as every message does says nothing of who speaks.
    if plain_turn := _asked_again(tokenizer, asked, text):
        usual = _shared(opening, plain_turn)
    else:
        usual = 0
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
    inside, place = "".join(text[a:b] for a, b in spans), 0
    for turn in turns:
        if _thoughts(chat[turn]) or chat[turn].get("tool_calls"):
            return False
        content = content_of(chat[turn]).strip()
        place = inside.find(content, place) + len(content)
        if place < len(content):
            return False
    return True


def _marked_turn(chat: Sequence[Message], turn: int, tokenizer: Tokenizer) -> Rendered:
    """The chat cut after an assistant's turn, with the marked ranges of the turn."""
    message = chat[turn]
    rest: Sequence[Message] = ()

    def change(other: Message) -> tuple[str, tuple[Span, ...]] | None:
        try:
            return spans_of(rendered(tokenizer, [*chat[:turn], other, *rest]))
        except BadRow:
            return None

    made = change(message)
    if made is None:  # the template does not let a chat end here
        rest = chat[turn + 1 :]
        made = spans_of(rendered(tokenizer, chat))
    own = _own_spans(*made, change(_wholly_changed(message)))
    inside, outside = _apart(*made)
    for what, changed in _changes(message):
        other = change(changed)
        if other is not None and other[0] == made[0]:
            raise _missing(chat, turn, what)
        if other is None or _apart(*other)[1] != outside or _apart(*other)[0] == inside:
            raise _outside(chat, turn, what)
    said = "".join(made[0][a:b] for a, b in own)
    if _bare(content_of(message)) not in _bare(said):
        return _put_in(chat, turn, change)
    return Rendered(made[0], own, exact=True)


def _own_spans(
    text: str, spans: Sequence[Span], other: tuple[str, tuple[Span, ...]] | None
) -> tuple[Span, ...]:
    """The ranges from the first to the last one whose text changes with the turn."""
    if other is None:
        return tuple(spans[-1:])
    ours, theirs = [text[a:b] for a, b in spans], [other[0][a:b] for a, b in other[1]]
    most, same, after = min(len(ours), len(theirs)), 0, 0
    while same < most and ours[same] == theirs[same]:
        same += 1
    while after < most - same and ours[-1 - after] == theirs[-1 - after]:
        after += 1
    return tuple(spans[same : len(spans) - after])


def _apart(text: str, spans: Sequence[Span]) -> tuple[str, str]:
    """(what stands inside the ranges, what stands outside)."""
    cuts = [0, *(place for span in spans for place in span), len(text)]
    parts = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    return MARK.join(parts[1::2]), MARK.join(parts[::2])


def _put_in(
    chat: Sequence[Message],
    turn: int,
    change: Callable[[Message], tuple[str, tuple[Span, ...]] | None],
) -> Rendered:
    """The turn with its content in place of the part that the template writes of it."""
    message, content = chat[turn], content_of(chat[turn])

    def text_of(changed: Message) -> str | None:
        made = change(changed)
        if made is None:
            return None
        return made[0]

    text, other = text_of(message), change(with_content(message, MARK))
    held = None if text is None else _with_whole_content(text, len(text), message, text_of)
    if held is None or other is None or MARK not in other[0]:
        raise _outside(chat, turn, "content")
    at, more = other[0].index(MARK), len(content) - len(MARK)
    own = _own_spans(other[0], other[1], change(with_content(message, MARK * 2)))
    spans = tuple((a + more * (a > at), b + more * (b > at)) for a, b in own)
    return Rendered(held[0], spans, exact=True)
