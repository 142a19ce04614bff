"""Row forms: what each becomes, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import small_tokenizer
from ondevice.data.chat_encoding import prompt_ids
from ondevice.data.formats import to_chat, to_prompt, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_batches import to_tokens
from ondevice.data.preference_formats import to_pair

ASKED_AND_ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED_AND_ANSWERED},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
        {"prompt": "a", "completion": "b"},
        {"prompt": ASKED_AND_ANSWERED[:1], "completion": ASKED_AND_ANSWERED[1:]},
        {"prompt": "a", "answer": "b"},
        {"question": "a", "answer": "b", "id": 7},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "output": "b", "text": "left out"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {
            "conversations": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
    ],
)
def test_known_forms(row: dict[str, Any]) -> None:
    assert to_chat(row) == {"messages": ASKED_AND_ANSWERED}
    assert to_text(row) == ("left out" if "text" in row else "a\n\nb")


def test_details_of_forms() -> None:
    assert to_text({"text": "x"}) == "x"
    assert to_chat({"prompt": "2+2", "answer": 4})["messages"][1]["content"] == "4"
    assert (
        to_chat({"instruction": "a", "input": "i", "output": "b"})["messages"][0]["content"]
        == "a\n\ni"
    )
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert to_chat({"messages": [called]})["messages"] == [called]
    system = {"system": "s", "instruction": "a", "output": "b"}
    assert to_chat(system)["messages"][0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "none of the known forms"),
        ({"text": "x"}, "a text and no chat"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["x"]}, "message 1 is not an object"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "no known role"),
        ({"messages": [{"content": "x"}]}, "no known role"),
        ({"messages": "hello"}, "messages is not a list of messages"),
        ({"prompt": "a"}, "a prompt alone is for sample, ppo and grpo"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ({"prompt": "a", "completion": None}, "none of the known forms.*it has prompt"),
        ({"prompt": "a", "answer": True}, "wrong kind"),
        ({"prompt": "a", "completion": "\ud800"}, "lone surrogate"),
        ({"messages": [{"role": "user", "content": "x", "name": "\udfff"}]}, "lone surrogate"),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        to_chat(row)


def test_empty_texts_are_bad() -> None:
    for row in ({"text": ""}, {"text": None}, {"text": 5}):
        with pytest.raises(BadRow):
            to_text(row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = [
    "text",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "system",
]


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_row_becomes_a_chat_or_is_bad(row: dict[str, Any]) -> None:
    try:
        messages = to_chat(row)["messages"]
    except BadRow as error:
        assert str(error)
    else:
        assert messages and all(isinstance(m["content"], str) and m["role"] for m in messages)
    try:
        assert isinstance(to_text(row), str)
    except BadRow as error:
        assert str(error)


PAIRED = ["prompt", "question", "chosen", "rejected", "messages", "tools", "answer"]
SAID = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "name"]),
        st.one_of(JSON, st.sampled_from(["user", "assistant", "system", "tool"])),
        max_size=4,
    ),
    max_size=3,
)


ANY = st.text(st.characters(), max_size=3)  # half characters too


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "\ud800", "rejected": "b"},
        {"prompt": "\udfff", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "x\ud800"}], "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": 5, "content": "x"}], "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": [{"role": "assistant", "content": "\ud800"}], "rejected": "b"},
    ],
)
def test_half_characters_and_unknown_speakers_make_a_pair_bad(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        to_pair(row)


def test_half_characters_make_a_prompt_bad() -> None:
    for row in ({"prompt": "\ud800"}, {"question": "\ud800", "answer": "1"}):
        with pytest.raises(BadRow, match="surrogate"):
            to_prompt(row)


def test_to_say_nothing_is_a_response() -> None:
    pair = to_tokens(to_pair({"prompt": "a", "chosen": "b", "rejected": ""}), small_tokenizer())
    assert (
        len(pair.rejected.completion) == 1
        and pair.rejected.completion[0] in small_tokenizer().stop_ids
    )


@given(st.dictionaries(st.sampled_from(PAIRED), st.one_of(JSON, SAID, ANY), max_size=5))
def test_any_row_becomes_a_pair_or_a_prompt_and_ids_or_is_bad(row: dict[str, Any]) -> None:
    """Nulls and numbers for texts, lists of anything: what comes out can be written by a chat
    template.
    """
    tokenizer = small_tokenizer()
    for convert in (to_pair, to_prompt):
        try:
            made = convert(row)
            asked = made["prompt"] if isinstance(made, dict) else made[0]
            assert prompt_ids(asked, tokenizer)
            if isinstance(made, dict):
                pair = to_tokens(made, tokenizer)
                assert len(pair.chosen.completion) and len(pair.rejected.completion)
        except BadRow as error:
            assert str(error)
