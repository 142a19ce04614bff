"""Whether a chat template writes all that is read: the messages that are not the assistant's, and
the tools of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ondevice.data.chat_template import MARK, Message, content_of, spelt_twice, tried, with_content
from ondevice.data.message_changes import changes, no_trace, replaced
from ondevice.data.messages import TOOLS, BadRow
from ondevice.data.tokenizer import Tokenizer


def check_context(
    chat: Sequence[Message], text: str, tokenizer: Tokenizer, *, prompt: bool = False
) -> None:
    """Raises BadRow where the template drops a message that is read, or the row's tools, spells
    JSON as a string of JSON, or null as a word."""
    if spelt_twice(chat, text):
        raise BadRow(
            "the chat template writes the arguments of a call, which are JSON, as a string of JSON"
        )
    _check_nulls(chat, text, tokenizer, prompt)
    _check_contents(chat, text, tokenizer, prompt)
    _check_other_parts(chat, text, tokenizer, prompt)
    _check_tools(chat, text, tokenizer, prompt)


def _check_nulls(chat: Sequence[Message], text: str, tokenizer: Tokenizer, prompt: bool) -> None:
    if all(message.get("content", "") is not None for message in chat):
        return
    without_nulls = [{**message, "content": message.get("content") or ""} for message in chat]
    other = tried(tokenizer, without_nulls, prompt=prompt)
    if other is not None and text.count("None") > other.count("None"):
        raise BadRow("the chat template writes a content that is null as the word None")


def _check_contents(chat: Sequence[Message], text: str, tokenizer: Tokenizer, prompt: bool) -> None:
    contents = [content_of(message).strip() for message in chat]
    marks: dict[int, str] = {}
    for n, message in enumerate(chat):
        if message.get("role") != "assistant" and contents[n]:
            marks[n] = f"{MARK}{n}{MARK}"
    if all(_is_written(contents[n], contents, text) for n in marks):
        return
    all_marked = list(chat)
    for n, mark in marks.items():
        all_marked[n] = with_content(chat[n], mark)
    marked_text = tried(tokenizer, all_marked, prompt=prompt)
    for n, mark in marks.items():
        if marked_text is not None and mark in marked_text:
            continue
        one_marked = replaced(chat, n, all_marked[n])
        if tried(tokenizer, one_marked, prompt=prompt) == text:
            raise BadRow(
                f"message {n + 1} ({chat[n].get('role')}) leaves no trace in what the chat template writes"
            )


def _is_written(content: str, contents: Sequence[str], text: str) -> bool:
    """Whether a content that is too long to stand in the text by chance stands there as often as in
    the chat.
    """
    if len(content) < 12:
        return False
    return text.count(content) >= sum(other.count(content) for other in contents)


def _check_other_parts(
    chat: Sequence[Message], text: str, tokenizer: Tokenizer, prompt: bool
) -> None:
    """Thoughts and calls; where the whole chat is read, those of the assistant's calls too."""
    for n, message in enumerate(chat):
        own = message.get("role") == "assistant"
        if own and not (prompt and message.get("tool_calls")):
            continue  # what is learned is tested where it is learned
        # a thought that was thought is left out by many; contents are tested above
        untested = "thought" if own else "content"
        for what, changed in changes(message):
            if what == untested:
                continue
            if tried(tokenizer, replaced(chat, n, changed), prompt=prompt) == text:
                raise no_trace(n, what)


def _check_tools(chat: Sequence[Message], text: str, tokenizer: Tokenizer, prompt: bool) -> None:
    if chat:
        tools = chat[0].get(TOOLS)
    else:
        tools = None
    if not tools:
        return
    first = {**chat[0], TOOLS: [_renamed(tool) for tool in tools]}
    if tried(tokenizer, [first, *chat[1:]], prompt=prompt) == text:
        raise BadRow("the row's tools leave no trace in what the chat template writes")


def _renamed(tool: Any) -> Any:
    if not isinstance(tool, Mapping):
        return tool
    inner = tool.get("function")
    if isinstance(inner, Mapping):
        return {**tool, "function": _renamed(inner)}
    return {**tool, "name": MARK}
