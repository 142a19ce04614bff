"""Conversations in files: what is saved is what sft reads, and no other conversation is ever
replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ondevice.common.errors import UserError
from ondevice.data.formats import to_chat
from ondevice.data.rows import read
from ondevice.inference import conversations
from ondevice.inference.conversations import Conversation

FIRST = [
    {"role": "user", "content": "Hello \u2028 there"},
    {"role": "assistant", "content": "Hi.\n"},
]
MORE = [*FIRST, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bye."}]


def test_a_saved_conversation_is_a_row_that_sft_reads(tmp_path: Path) -> None:
    file = tmp_path / "chats" / "one.jsonl"
    conversations.save(
        file, Conversation(MORE, "runs/x/sft/model", {"temperature": 0.5}, {"thinks": False})
    )
    rows = read(str(file))
    (chat,) = [to_chat(row)["messages"] for row, _ in rows]
    assert [(m["role"], m["content"]) for m in chat] == [(m["role"], m["content"]) for m in MORE]
    assert chat[0]["chat_template_kwargs"] == {"thinks": False}
    assert rows.telling() == "", "who answered, and how, is no part of the chat"
    loaded = conversations.load(file)
    assert (loaded.messages, loaded.model) == (MORE, "runs/x/sft/model")
    assert (loaded.sampling, loaded.template_kwargs) == ({"temperature": 0.5}, {"thinks": False})


def test_it_grows_in_its_file_and_replaces_no_other(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    conversations.save(file, Conversation(FIRST))
    conversations.save(file, Conversation(MORE))
    assert conversations.load(file).messages == MORE
    for other in (FIRST, [{**FIRST[0], "content": "Other"}, *MORE[1:]]):
        with pytest.raises(UserError, match="another conversation"):
            conversations.save(file, Conversation(other))
    assert conversations.load(file).messages == MORE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a conversation"),
        ("{", "not a conversation"),
        ("[1]", "not a conversation"),
        ('{"text": "x"}', "not a conversation"),
        (
            json.dumps({"messages": FIRST}) + "\n" + json.dumps({"messages": FIRST}),
            "not a conversation",
        ),
        (json.dumps({"messages": [*FIRST, 3]}), "message 3"),
        (
            json.dumps(
                {"messages": [FIRST[0], {"role": "assistant", "content": None, "tool_calls": []}]}
            ),
            "message 2",
        ),
        (json.dumps({"messages": [*FIRST, {"role": "system", "content": "late"}]}), "message 3"),
        (json.dumps({"messages": FIRST[:1]}), "does not end with an answer"),
        (json.dumps({"messages": FIRST, "tools": [{"name": "f"}]}), "has tools"),
    ],
)
def test_what_cannot_go_on_is_refused_and_stays(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(text)
    for use in (
        lambda: conversations.load(file),
        lambda: conversations.save(file, Conversation(MORE)),
    ):
        with pytest.raises(UserError, match=says):
            use()
    assert file.read_text() == text


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        conversations.save(tmp_path / "file" / "one.jsonl", Conversation(FIRST))


def test_names_are_free_and_the_newest_stands_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    for now in (1e9, 1e9, 2e9):
        monkeypatch.setattr(conversations, "clock", lambda now=now: now)
        made.append(conversations.new_file(tmp_path, "sft"))
        conversations.save(made[-1], Conversation(FIRST))
    assert len(set(made)) == 3 and conversations.saved(tmp_path)[0] == made[2]
