"""Nothing that a row says is passed over in silence: it is used, or told of once, or the row is
bad.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from data_samples import small_tokenizer
from ondevice.data.chat_encoding import encode_chat
from ondevice.data.formats import to_chat, to_label, to_prompt, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.data.row_keys import CONTENT, HARMLESS, Record

USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}

FORMS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "messages": (to_chat, {"messages": [USER, SAID]}),
    "conversations": (
        to_chat,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ),
    "prompt and completion": (to_chat, {"prompt": "a", "completion": "b"}),
    "question and answer": (to_chat, {"question": "a", "answer": "b"}),
    "question and response": (to_chat, {"question": "a", "response": "b"}),
    "query and response": (to_chat, {"query": "a", "response": "b"}),
    "alpaca": (to_chat, {"instruction": "a", "input": "i", "output": "b"}),
    "dolly": (to_chat, {"instruction": "a", "context": "i", "response": "b"}),
    "prompt": (to_prompt, {"prompt": "a"}),
    "prompt of messages": (to_prompt, {"prompt": [USER]}),
    "chat as a prompt": (to_prompt, {"messages": [USER, SAID]}),
    "pair": (to_pair, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    "pair of chats": (
        to_pair,
        {"chosen": [USER, SAID], "rejected": [USER, {"role": "assistant", "content": "c"}]},
    ),
}
SPOKEN = list(FORMS)


def messages_in(made: Any) -> list[dict[str, Any]]:
    if isinstance(made, tuple):
        return list(made[0])
    return list(made["messages"] if "messages" in made else made["prompt"])


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_no_form_knows_is_remembered(form: str) -> None:
    convert, row = FORMS[form]
    record = Record({**row, "nobody_knows_this": 1})
    convert(record)
    assert list(record.unused()) == ["nobody_knows_this"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_a_column_of_another_form_is_used_or_remembered_or_makes_the_row_bad(
    form: str, other: str
) -> None:
    """What is used changes what is made of the row: this finds a column that is asked for and then
    dropped.
    """
    convert, row = FORMS[form]
    for name, value in FORMS[other][1].items():
        if name in row:
            continue
        value = json.loads(
            json.dumps(value)
            .replace('"a"', '"another a"')
            .replace('"b"', '"another b"')
            .replace('"i"', '"another i"')
        )
        record = Record({**row, name: value})
        try:
            made = convert(record)
        except BadRow:
            continue
        alone = convert(row)
        seen = [part if not isinstance(part, tuple) else part[0] for part in (made, alone)]
        assert name in record.unused() or seen[0] != seen[1] or (form, name) in BY_DESIGN, (
            form,
            name,
        )


SAYINGS: tuple[Any, ...] = (
    "said",
    0,
    2,
    True,
    [["x", "y"]],
    [SYSTEM, USER, SAID],
    [TOOL],
    [CALL],
    {"a": 1},
)
"""What a column or a key of a message may hold."""


def outcome(made: Callable[[], Any]) -> str:
    """What is made, or why the row is bad."""
    try:
        return repr(made())
    except BadRow as error:
        return f"bad: {error}"


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_form_asks_of_a_row_makes_a_difference(form: str) -> None:
    """A reader that asks for a column and drops it would hide it from the account: found here
    without its name.
    """
    convert, row = FORMS[form]
    record = Record(row)
    alone = repr(convert(record))
    for name in record.asked - set(row):
        ways = {
            outcome(lambda name=name, value=value: convert({**row, name: value}))
            for value in SAYINGS
        }
        assert ways != {alone} or (form, name) in BY_DESIGN or name == "kind", (
            f"{name} is asked for and dropped"
        )


def test_whatever_is_asked_of_a_message_makes_a_difference() -> None:
    """Of what is learned and read, in each place of a chat."""
    record = Record({"messages": [SYSTEM, USER, SAID]})
    made = to_chat(record)["messages"]

    def told(chat: Any) -> list[Any]:
        return [
            (row.ids.tolist(), row.mask.tolist())
            for row in encode_chat(to_chat(chat)["messages"], small_tokenizer())
        ]

    assert len(made) == 3
    for place, message in enumerate(record["messages"]):
        for name in message.asked - {"role", "from", "content", "value"}:
            chats = [
                {
                    "messages": [
                        {**one, name: value} if n == place else one
                        for n, one in enumerate([SYSTEM, USER, SAID])
                    ]
                }
                for value in SAYINGS
            ]
            ways = {outcome(lambda chat=chat: told(chat)) for chat in chats}
            assert ways != {repr(told(record))} or (name, place) in NOT_LEARNED, (
                f"{name} is asked for and dropped"
            )


# what others than the assistant say is read, whatever its weight
NOT_LEARNED = {("weight", 0), ("weight", 1)}
BY_DESIGN = {(form, "answer") for form in FORMS}  # a prompt's answer goes to whatever judges it


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(CONTENT))
def test_what_belongs_to_the_chat_is_in_it_or_the_row_is_bad(form: str, name: str) -> None:
    convert, row = FORMS[form]
    values = {"history": [["x", "y"]], "tools": [TOOL], "functions": [TOOL["function"]]}
    record = Record({**row, name: values.get(name, "said")})
    try:
        made = messages_in(convert(record))
    except BadRow as error:
        assert name in str(error)
    else:
        assert made != messages_in(convert(row))


@pytest.mark.parametrize(
    "form", ["messages", "conversations", "prompt of messages", "pair of chats"]
)
def test_keys_of_messages_are_remembered_too(form: str) -> None:
    convert, row = FORMS[form]
    lists = {name: value for name, value in row.items() if isinstance(value, list)}
    record = Record(
        {
            **row,
            **{name: [{**turns[0], "mood": "good"}, *turns[1:]] for name, turns in lists.items()},
        }
    )
    convert(record)
    assert list(record.unused()) == [f"{name}.mood" for name in lists]


def test_keys_of_messages_that_a_template_reads_are_used() -> None:
    for template, unused in (
        ("{{ message.mood }}", []),
        ("{{ message['mood'] }}", []),
        ("", ["messages.mood"]),
        ("{{ message.moody }}", ["messages.mood"]),
    ):
        record = Record({"messages": [{**USER, "mood": "good"}, SAID]})
        record.template = template
        assert to_chat(record)["messages"][0]["mood"] == "good" and list(record.unused()) == unused
        thought = Record({"messages": [USER, {**SAID, "thought": "hm"}]})
        thought.template = template.replace("mood", "thought")
        if unused:
            with pytest.raises(BadRow, match="messages.thought is there"):
                to_chat(thought)
        else:
            assert to_chat(thought)["messages"][1]["thought"] == "hm"


def test_every_harmless_name_has_its_reason_and_says_nothing_of_a_chat() -> None:
    assert all(HARMLESS.values()) and not CONTENT & set(HARMLESS)


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize("form", SPOKEN)
def test_a_system_prompt_in_a_column_stands_first(form: str, column: str) -> None:
    convert, row = FORMS[form]
    assert messages_in(convert({**row, column: "s"})) == [SYSTEM, *messages_in(convert(row))]
    assert messages_in(convert({**row, column: ""})) == messages_in(convert({**row, column: None}))


@pytest.mark.parametrize("form", SPOKEN)
def test_a_history_stands_before_the_prompt(form: str) -> None:
    convert, row = FORMS[form]
    earlier = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    for history in ([["x", "y"]], earlier):
        found = messages_in(convert({**row, "history": history, "system": "s"}))
        assert found == [SYSTEM, *earlier, *messages_in(convert(row))]
    assert messages_in(convert({**row, "history": []})) == messages_in(convert(row))
    with pytest.raises(BadRow, match="history"):
        convert({**row, "history": "x"})


def test_two_system_prompts_are_one_or_the_row_is_bad() -> None:
    row = {"messages": [SYSTEM, USER, SAID]}
    assert to_chat({**row, "system": "s"})["messages"] == row["messages"]
    with pytest.raises(BadRow, match="another system prompt"):
        to_chat({**row, "system": "t"})
    with pytest.raises(BadRow, match="system_prompt is there"):
        to_chat({"prompt": "a", "completion": "b", "system": "s", "system_prompt": "t"})


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "a",
            "chosen": [USER, SAID],
            "rejected": [USER, {"role": "assistant", "content": "c"}],
        },
        {"chosen": [USER, SAID], "rejected": [USER, {"role": "assistant", "content": "c"}]},
        {"prompt": [USER], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "c"}]},
        {
            "chosen": [SYSTEM, USER, SAID],
            "rejected": [SYSTEM, USER, {"role": "assistant", "content": "c"}],
        },
    ],
)
def test_prompts_are_taken_apart_as_trl_does(row: dict[str, Any]) -> None:
    # Three seconds of CPU to import: only the worker that runs this test pays them.
    from trl.data_utils import maybe_extract_prompt

    right, found = maybe_extract_prompt(dict(row)), to_pair(row)
    assert found["prompt"] == right["prompt"]
    assert [{"role": "assistant", "content": found[side]} for side in ("chosen", "rejected")] == [
        *right["chosen"],
        *right["rejected"],
    ]


def test_a_prompt_beside_other_chats_makes_a_pair_bad() -> None:
    with pytest.raises(BadRow, match="not what chosen and rejected begin with"):
        to_pair(
            {
                "prompt": "z",
                "chosen": [USER, SAID],
                "rejected": [USER, {"role": "assistant", "content": "c"}],
            }
        )
    with pytest.raises(BadRow, match="has a prompt"):
        to_pair({"chosen": "The sky is blue", "rejected": "The sky is green"})


@pytest.mark.parametrize(
    "prompt", [{}, {"prompt": "\n\nHuman: x\n\nAssistant: y\n\nHuman: a\n\nAssistant:"}]
)
def test_pairs_of_human_and_assistant_are_chats(prompt: dict[str, str]) -> None:
    before = "" if prompt else "\n\nHuman: x\n\nAssistant: y\n\nHuman: a\n\nAssistant: "
    found = to_pair({**prompt, "chosen": f"{before}b", "rejected": f"{before}c"})
    assert found == {
        "prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, USER],
        "chosen": "b",
        "rejected": "c",
    }


def test_calls_in_the_forms_of_others() -> None:
    call = json.dumps(CALL["function"])
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": json.dumps([TOOL["function"]]),
    }
    older = {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": None,
                "function_call": {
                    "name": "f",
                    "arguments": json.dumps(CALL["function"]["arguments"]),
                },
            },
            {"role": "function", "content": "2"},
            SAID,
        ],
        "functions": [TOOL["function"]],
    }
    for row in (sharegpt, older):
        asked, called, told, said = to_chat(row)["messages"]
        assert asked == {**USER, "tools": [TOOL]} and (told["role"], said) == ("tool", SAID)
        assert (
            called["role"] == "assistant"
            and called["tool_calls"] == [CALL]
            and not called["content"]
        )
    for value in ("{", "5", '{"arguments": {}}', '{"name": "f", "arguments": "{"}'):
        with pytest.raises(BadRow, match="its call|arguments of its call"):
            to_chat(
                {
                    "conversations": [
                        {"from": "human", "value": "a"},
                        {"from": "function_call", "value": value},
                    ]
                }
            )


def test_a_verdict_on_one_completion_is_not_learned_as_a_chat() -> None:
    for good in (True, False):
        with pytest.raises(BadRow, match="loss-type kto"):
            to_chat({"prompt": "a", "completion": "b", "label": good})


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        ({"messages": [USER, SAID]}, "these are chats: sft"),
        ({"prompt": "a", "completion": "b"}, "these are chats: sft"),
        ({"text": "a"}, "this is a text: pretrain"),
        ({"words": "a"}, "it has words"),
    ],
)
def test_what_is_no_pair_says_what_it_is(row: dict[str, Any], taken: str) -> None:
    with pytest.raises(BadRow, match=taken):
        to_pair(row)


def test_text_of_a_chat_holds_all_of_it_or_is_bad() -> None:
    assert to_text({"messages": [USER, SAID], "system": "s"}) == "s\n\na\n\nb"
    with pytest.raises(BadRow, match="tool_calls, which plain text cannot say"):
        to_text({"messages": [USER, {**SAID, "tool_calls": [CALL]}]})


def test_labels_remember_what_else_is_there() -> None:
    record = Record({"text": "a", "label": "x", "other": 1})
    to_label(record, "text", "label")
    assert list(record.unused()) == ["other"]


ONCE_LOST: list[tuple[Callable[[Any], Any], dict[str, Any], str]] = [
    (to_pair, {"prompt": "a", "chosen": [{**SAID, "weight": 0}], "rejected": "c"}, "weight 0"),
    (to_pair, {"prompt": "a", "chosen": "b", "rejected": [{**SAID, "weight": 0.5}]}, "weight 0.5"),
    (to_judged, {"prompt": "a", "completion": [{**SAID, "weight": 0}], "label": True}, "weight 0"),
    (to_text, {"messages": [USER, {**SAID, "weight": 0}]}, "of plain text every token is"),
    (
        to_chat,
        {
            "system": "s",
            "history": [{**SYSTEM, "content": "t"}, USER, SAID],
            "prompt": "a",
            "completion": "b",
        },
        "another system prompt",
    ),
    (
        to_chat,
        {"messages": [USER, {**SAID, "tool_calls": [CALL], "function_call": CALL["function"]}]},
        "two places",
    ),
    (
        to_chat,
        {
            "conversations": [
                USER,
                {"from": "function_call", "value": "[]", "function_call": CALL["function"]},
            ]
        },
        "two places",
    ),
    (
        to_chat,
        {
            "messages": [
                {**USER, "content": [{"type": "image_url", "image_url": "x", "text": "a"}]},
                SAID,
            ]
        },
        "not text .'image_url'",
    ),
    (
        to_chat,
        {"messages": [USER, {**SAID, "content": [{"type": "thinking", "text": "hm"}]}]},
        "not text .'thinking'",
    ),
    (to_prompt, {"prompt": [USER, SAID]}, "ends with the assistant"),
    (to_prompt, {"messages": [SYSTEM, SAID]}, "nothing that a user says"),
]


@pytest.mark.parametrize(("convert", "row", "said"), ONCE_LOST)
def test_what_has_no_place_inside_a_message_makes_the_row_bad(
    convert: Callable[[Any], Any], row: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRow, match=said):
        convert(row)


def test_a_prompt_is_all_of_a_chat_but_the_answer_at_its_end() -> None:
    told, late = {"role": "tool", "content": "2"}, {"role": "system", "content": "In French."}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    for chat in ([USER, called, told], [USER, SAID, USER, late]):
        assert to_prompt({"prompt": chat})[0] == chat
        assert to_prompt({"messages": [*chat, SAID]})[0] == chat


def test_names_of_speakers_are_told_of_where_the_template_does_not_write_them() -> None:
    for template, unused in (
        ("{{ message.name }}", []),
        ("{{ message.content }}", ["messages.name"]),
    ):
        record = Record({"messages": [{**USER, "name": "Ann"}, SAID]})
        record.template = template
        to_chat(record)
        assert list(record.unused()) == unused
    parts = Record({"messages": [{**USER, "content": [{"type": "text", "text": "a"}]}, SAID]})
    assert to_chat(parts)["messages"][0] == USER and list(parts.unused()) == []


@pytest.mark.parametrize("calls", [2, True, "x", "2", {"a": 1}, ["x"], '["x"]'])
def test_calls_that_are_no_list_of_objects_make_the_row_bad(calls: Any) -> None:
    with pytest.raises(BadRow, match="tool_calls is no"):
        to_chat({"messages": [USER, {**SAID, "tool_calls": calls}]})
    assert to_chat({"messages": [USER, {**SAID, "tool_calls": json.dumps([CALL])}]}) == to_chat(
        {"messages": [USER, {**SAID, "tool_calls": [CALL]}]}
    )


@pytest.mark.parametrize(
    ("raters", "unused"), [(["ann"], []), ("ann", ["raters"]), ([1], ["raters"]), (3, ["raters"])]
)
def test_raters_that_are_no_names_are_told_of(raters: Any, unused: list[str]) -> None:
    record = Record({"prompt": "a", "chosen": "b", "rejected": "c", "raters": raters})
    assert ("raters" in to_pair(record)) == (not unused) and list(record.unused()) == unused


@pytest.mark.parametrize("value", [0, 5, 0.5])
def test_an_input_that_is_a_number_is_in_the_prompt(value: float) -> None:
    asked = to_chat({"instruction": "Even?", "input": value, "output": "b"})["messages"][0][
        "content"
    ]
    assert asked == f"Even?\n\n{value}"


@pytest.mark.parametrize(
    "message",
    [{**USER, "thinking": "hm"}, {**USER, "tool_calls": [CALL]}, {**SYSTEM, "reasoning": "hm"}],
)
def test_what_others_than_the_assistant_think_or_call_is_written_or_the_row_is_bad(
    message: dict[str, Any],
) -> None:
    [chat] = [to_chat({"messages": [message, USER, SAID]})["messages"]]
    with pytest.raises(BadRow, match="message 1: its (thought|call 1) leaves no trace"):
        encode_chat(chat, small_tokenizer())
