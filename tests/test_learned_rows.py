"""What is learned of rows that people have: calls, thoughts, weights and flags of turns, and names
for the template.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.config.evaluation import EvalConfig
from ondevice.config.finetuning import SFTConfig
from ondevice.config.load import dump_yaml, from_mapping, parse_yaml, to_mapping
from ondevice.config.preference import GRPOConfig, SampleConfig
from ondevice.config.recipe import load_recipe
from ondevice.config.use import ChatConfig, GenerateConfig
from ondevice.data.chat_encoding import (
    add_template,
    encode_chat,
    prompt_ids,
    with_template_kwargs,
)
from ondevice.data.formats import to_chat, to_prompt, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.data.row_keys import Record
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.preview import show
from ondevice.seam.protocols import Backend
from test_learned_ranges import call, chat_of, learned, load, of_template, said, user

CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WITH_CALL = (
    said("Hello, how can I help?"),
    user("Cold in Oslo?"),
    said("Let me look.", tool_calls=[call()]),
    {"role": "tool", "content": "2"},
    said("Yes."),
)


def test_a_call_and_its_stop_token_are_learned_where_the_assistant_speaks_first() -> None:
    tokenizer = load("qwen2_5")
    assert learned(encode_chat(chat_of(*WITH_CALL), tokenizer), tokenizer) == [
        f"Hello, how can I help?<|im_end|>Let me look.\n{CALL_TEXT}<|im_end|>Yes.<|im_end|>"
    ]
    tokenizer = load("qwen3")
    assert learned(encode_chat(chat_of(*WITH_CALL), tokenizer), tokenizer) == [
        "Hello, how can I help?<|im_end|>",  # the template thinks only after a question
        f"<think>\n\n</think>\n\nLet me look.\n{CALL_TEXT}<|im_end|>",
        "<think>\n\n</think>\n\nYes.<|im_end|>",
    ]


@pytest.mark.parametrize(
    "arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'], ids=["object", "JSON"]
)
@pytest.mark.parametrize(
    "name", ["deepseek_r1_distill", "deepseek_r1_distill_training", "qwen2_5", "qwen3", "llama3_1"]
)
def test_a_call_without_content_is_learned(name: str, arguments: Any) -> None:
    """DeepSeek's writes a call only where the content is null, and wants its arguments as JSON;
    others as an object.
    """
    tokenizer = load(name)
    chat = chat_of(
        user("Cold in Oslo?"),
        said(None, tool_calls=[call(arguments=arguments)]),
        {"role": "tool", "content": "2"},
        said("Yes."),
    )
    text = "".join(learned(encode_chat(chat, tokenizer), tokenizer))
    assert (
        text.count("get_weather") == 1
        and text.count('{"city": "Oslo"}') == 1
        and "None" not in text
    )


def test_a_null_is_not_learned_as_a_word() -> None:
    tokenizer = load("glm4moe")
    [text] = learned(
        encode_chat(chat_of(user("a"), said(None, tool_calls=[call()])), tokenizer), tokenizer
    )
    assert "get_weather" in text and "None" not in text


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize(
    "name, text",
    [
        ("qwen3", "<think>\nOslo in winter.\n</think>\n\nYes.<|im_end|>"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>Oslo in winter.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
            "<|return|>",
        ),
    ],
)
def test_a_thought_is_learned_by_each_of_its_names(name: str, text: str, key: str) -> None:
    tokenizer = load(name)
    chat = chat_of(user("Is it cold?"), said("Yes.", **{key: "Oslo in winter."}))
    assert learned(encode_chat(chat, tokenizer), tokenizer) == [text]


def test_an_answer_that_begins_with_its_thought_is_learned_whole() -> None:
    answer = "<think>\nOne more than two.\n</think>\n\nIt is 3."
    tokenizer = load("deepseek_r1_distill")
    chat = chat_of(user("1 and 2?"), said(answer), user("And 4?"), said(answer))
    assert (
        learned(encode_chat(chat, tokenizer), tokenizer) == [f"{answer}<｜end▁of▁sentence｜>"] * 2
    )
    rows = encode_chat(chat, tokenizer)
    asked = prompt_ids(chat[:3], tokenizer)  # which opens the thought itself
    assert rows[1].ids[: len(asked)].tolist() == asked


@pytest.mark.parametrize(
    "name, message, what",
    [
        ("llama3_1", said("Let me look.", tool_calls=[call()]), "its content"),
        ("llama3", said("Yes.", thinking="Oslo in winter."), "its thought"),
        ("gptoss", said(None, tool_calls=[call(), call("other")]), "its call 2"),
        ("lfm2", said("", tool_calls=[call()]), "its call 1"),
    ],
)
def test_a_row_of_which_something_would_be_learned_nowhere_is_refused_by_name(
    name: str, message: dict[str, Any], what: str
) -> None:
    with pytest.raises(BadRow, match=f"message 2: {what} leaves no trace"):
        encode_chat(chat_of(user("Cold?"), message), load(name))


def test_a_message_or_tools_that_the_template_drops_refuse_the_row() -> None:
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(BadRow, match=r"message 2 \(system\) leaves no trace"):
        encode_chat(chat_of(user("Cold?"), system, said("Yes.")), load("gptoss"))
    chatml = add_template(small_tokenizer(), "chatml")
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    with pytest.raises(BadRow, match="tools leave no trace"):
        encode_chat(chat_of(user("Cold?"), said("Yes."), tools=tools), chatml)
    asked, _ = to_prompt({"prompt": [user("Cold?")], "tools": tools})
    with pytest.raises(BadRow, match="tools leave no trace"):
        prompt_ids(asked, chatml)


@pytest.mark.parametrize("name", ["own", "qwen2_5", "qwen3", "qwen3_training"])
def test_a_turn_of_weight_zero_is_read_and_not_learned(name: str) -> None:
    tokenizer = small_tokenizer() if name == "own" else load(name)
    chat = chat_of(
        user("Two and two?"), said("Five.", weight=0), user("Sure?"), said("No, four.", weight=1)
    )
    rows = encode_chat(chat, tokenizer)
    assert "Five." in tokenizer.decode(rows[-1].ids)
    [text] = learned(rows, tokenizer)
    assert "Five" not in text and "No, four." in text
    [row] = encode_chat(chat_of(user("Two?"), said("Five.", weight=0)), tokenizer)
    assert not row.mask.any()
    with pytest.raises(BadRow, match="message 2 has the weight 0.5"):
        encode_chat(chat_of(user("Two?"), said("Five.", weight=0.5)), tokenizer)


FLAGS = {
    "train": (False, True),
    "training": (False, True),
    "trainable": (0, 1),
    "train_on_turn": (False, True),
    "loss": (False, True),
    "masked": (True, False),
    "mask": (1, 0),
    "weight": (0, 1),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_turn_that_says_in_another_programs_words_that_it_is_not_learned_is_not(
    flag: str,
) -> None:
    no, yes = FLAGS[flag]
    row = Record.of(
        {
            "conversations": [
                {"from": "human", "value": "Two and two?", flag: no},
                {"from": "gpt", "value": "Five.", flag: no},
                user("Sure?"),
                {"from": "gpt", "value": "No, four.", flag: yes},
                user("And one?"),
                said("Five."),
            ]
        }
    )
    rows = encode_chat(to_chat(row)["messages"], small_tokenizer())
    [text] = learned(rows, small_tokenizer())
    assert "No, four." in text and text.count("Five.") == 1 and not list(row.unused())
    with pytest.raises(
        BadRow, match="message 2 is not to be learned, and of plain text every token is"
    ):
        to_text({"messages": [user("Two?"), said("Five.", **{flag: no})]})
    pair = {"prompt": "Two?", "chosen": [said("Two.")], "rejected": [said("Five.", **{flag: no})]}
    with pytest.raises(BadRow, match="all of a response is learned"):
        to_pair(pair)
    with pytest.raises(BadRow, match="all of a response is learned"):
        to_judged({"prompt": "Two?", "completion": pair["rejected"], "label": True})
    assert (
        to_prompt({"messages": [user("Two?"), said("Two.", **{flag: no}), user("Sure?")]})[0][1][
            "weight"
        ]
        == 0
    )


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([user("a"), said("b", train=False, weight=1)], "train and weight contradict each other"),
        ([user("a"), said("b", train=True, masked=True)], "train and masked contradict each other"),
        ([user("a"), said("b", train=True, weight=0.5)], "has the weight 0.5"),
        (
            [
                user("a"),
                said("b", train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}]),
            ],
            "message 2 has train_detail: a part of a message cannot be learned",
        ),
        ([user("a"), said("b", train="no")], "messages.train is there"),
        ([user("a"), said("b", masked="yes")], "messages.masked is there"),
        (
            [{**user("a"), "train": True}, said("b")],
            r"message 1, of the user, is to be learned \(train\)",
        ),
    ],
)
def test_what_cannot_be_learned_as_it_says_refuses_the_row(
    messages: list[dict[str, Any]], why: str
) -> None:
    with pytest.raises(BadRow, match=why):
        to_chat({"messages": messages})


def test_a_loss_that_was_measured_is_no_flag() -> None:
    row = Record.of({"messages": [user("a"), said("b", loss=0.31, train_detail=[])]})
    assert "weight" not in to_chat(row)["messages"][1] and list(row.unused()) == ["messages.loss"]


def test_data_show_marks_nothing_of_a_turn_that_is_not_to_be_learned(
    tmp_path: Path, backend: Backend
) -> None:
    folder = small_stages.write(tmp_path / "model", backend, small_stages.config())
    row = {
        "messages": [
            {**user("Cold?"), "train": False},
            said("Yes.", train=False),
            user("Sure?"),
            said("No.", train=True),
        ]
    }
    (tmp_path / "chats.jsonl").write_text(json.dumps(row) + "\n")
    shown = show(DataConfig(action="show", data=str(tmp_path / "chats.jsonl"), model=str(folder)))
    marked = "".join(text for text, is_learned in shown["examples"][0]["tokens"] if is_learned)
    assert "No." in marked and "Yes." not in marked and not shown["unused"] and shown["used"] == 1


def test_a_rows_names_for_its_template_reach_it() -> None:
    tokenizer = load("qwen3")
    chat = chat_of(user("Is it cold?"), chat_template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(prompt_ids(chat, tokenizer)).endswith("<think>\n\n</think>\n\n")
    asked, known = to_prompt(
        {"prompt": "Cold?", "chat_template_kwargs": '{"enable_thinking": false}'}
    )
    assert known == {} and tokenizer.decode(prompt_ids(asked, tokenizer)).endswith(
        "<think>\n\n</think>\n\n"
    )
    with pytest.raises(BadRow, match="cannot give messages"):
        chat_of(user("a"), chat_template_kwargs={"messages": []})
    with pytest.raises(BadRow, match="not an object"):
        chat_of(user("a"), chat_template_kwargs=[1])


def test_what_a_row_tells_a_template_that_does_not_read_it_makes_the_row_bad() -> None:
    for value in ("Speak like a pirate.", True, 1, ["a"]):
        row = chat_of(
            user("a"), said("b"), chat_template_kwargs={"enable_thinking": False, "custom": value}
        )
        with pytest.raises(
            BadRow,
            match="chat_template_kwargs gives 'custom', which the chat template does not read",
        ):
            encode_chat(row, load("qwen3"))
        with pytest.raises(BadRow, match="gives 'custom'"):
            prompt_ids(row[:1], load("qwen3"))
    for nothing in ("", False, [], {}):  # as data sets fill the names of other models' templates
        row = chat_of(user("a"), said("b"), chat_template_kwargs={"custom": nothing})
        assert encode_chat(row, load("qwen3"))[0].mask.any()


def test_a_setting_tells_every_template_and_a_row_wins() -> None:
    tokenizer = with_template_kwargs(load("qwen3"), '{"enable_thinking": false}')
    closed = "<think>\n\n</think>\n\n"
    assert tokenizer.decode(prompt_ids([user("Cold?")], tokenizer)).endswith(closed)
    row = chat_of(user("Cold?"), chat_template_kwargs={"enable_thinking": True})
    assert not tokenizer.decode(prompt_ids(row, tokenizer)).endswith(closed)
    assert with_template_kwargs(tokenizer, "") is tokenizer
    with pytest.raises(UserError, match="does not read 'think'") as error:
        with_template_kwargs(load("qwen3"), '{"think": 1}')
    assert "enable_thinking" in str(error.value.hint)
    with pytest.raises(UserError, match="does not read"):
        with_template_kwargs(
            Tokenizer(small_tokenizer().inner, small_tokenizer().config), '{"think": 1}'
        )


@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig, SampleConfig, ChatConfig, EvalConfig])
def test_the_setting_is_checked_before_anything_is_read(config: Any) -> None:
    given = {"model": "m", **({"data": "d"} if config is not ChatConfig else {})}
    config(**given, chat_template_kwargs='{"enable_thinking": false}').check()
    for value, why in (
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"tools": []}', "cannot give tools"),
    ):
        with pytest.raises(UserError, match=why):
            config(**given, chat_template_kwargs=value).check()


@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig, SampleConfig, ChatConfig, EvalConfig])
def test_the_setting_may_be_a_mapping(config: Any) -> None:
    given: dict[str, Any] = {"model": "m", **({"data": "d"} if config is not ChatConfig else {})}
    as_text = config(**given, chat_template_kwargs='{"enable_thinking": false}')
    as_mapping = {**given, "chat_template_kwargs": {"enable_thinking": False}}
    assert config(**as_mapping) == from_mapping(config, as_mapping) == as_text and hash(
        config(**as_mapping)
    )
    assert from_mapping(config, to_mapping(as_text)) == as_text
    assert from_mapping(config, {**given, "chat_template_kwargs": {}}).chat_template_kwargs == ""
    for value, why in (
        ({1: "a"}, "1 is not a name"),
        ({"a": float("nan")}, "cannot be written as JSON"),
        ({"a": {1, 2}}, "cannot be written as JSON"),
        ({"tools": []}, "cannot give tools"),
        (["a"], "expected text"),
    ):
        with pytest.raises(UserError, match=why) as error:
            from_mapping(config, {**given, "chat_template_kwargs": value}, "tiny.yaml: here")
        assert error.value.where == "tiny.yaml: here.chat_template_kwargs"


def test_a_recipe_may_give_the_setting_as_keys_and_values(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stages:\n  sft:\n    model: m\n    data: d\n    chat_template_kwargs:\n"
        "      enable_thinking: false\n      level: [1, high]\n"
    )
    want = '{"enable_thinking": false, "level": [1, "high"]}'
    found = load_recipe(str(recipe))
    assert found.stages["sft"].chat_template_kwargs == want  # type: ignore[attr-defined]
    assert (
        parse_yaml(dump_yaml(found.mapping()), "")["stages"]["sft"]["chat_template_kwargs"] == want
    )
    for change in ('={"enable_thinking": true}', ".enable_thinking=true"):
        change = f"sft.chat_template_kwargs{change}"
        kwargs = load_recipe(str(recipe), [change]).stages["sft"].chat_template_kwargs  # type: ignore[attr-defined]
        assert json.loads(kwargs)["enable_thinking"] is True


def test_a_setting_without_effect_is_refused() -> None:
    kwargs = '{"enable_thinking": false}'
    with pytest.raises(UserError, match="no chat template"):
        GenerateConfig(model="m", prompt="a", chat_template_kwargs=kwargs).check()
    with pytest.raises(UserError, match="chatml reads no further names"):
        SFTConfig(model="m", data="d", chat_template="chatml", chat_template_kwargs=kwargs).check()
    with pytest.raises(UserError, match="without a chat template"):
        EvalConfig(model="m", tasks=("text",), chat_template_kwargs=kwargs).check()


@pytest.mark.parametrize("name", ["reasoning", "tool_calls"])
def test_what_a_text_or_a_pair_cannot_say_is_refused(name: str) -> None:
    answer = said("Yes.", **{name: "Oslo in winter." if name == "reasoning" else [call()]})
    with pytest.raises(BadRow, match=f"has {name}, which plain text cannot say"):
        to_text({"messages": [user("Cold?"), answer]})
    with pytest.raises(BadRow, match=f"has {name}, which a response cannot say"):
        to_pair({"prompt": "Cold?", "chosen": [answer], "rejected": [said("No.")]})


def test_a_key_of_a_message_that_a_template_reads_reaches_it() -> None:
    tokenizer = of_template(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.mood }}: {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    text = tokenizer.decode(
        encode_chat(chat_of({**user("a"), "mood": "calm"}, said("b")), tokenizer)[0].ids
    )
    assert "calm: a" in text
    assert (
        to_chat({"messages": [{**user("a"), "at": date(2026, 1, 2)}]})["messages"][0]["at"]
        == "2026-01-02"
    )


def test_weight_zero_and_all_tokens_learned_contradict_each_other(
    tmp_path: Path, backend: Backend
) -> None:
    import ondevice as od

    folder = small_stages.write(tmp_path / "model", backend, small_stages.config())
    row = json.dumps({"messages": [user("a"), said("b", weight=0), user("c"), said("d")]})
    (tmp_path / "chats.jsonl").write_text("\n".join([row] * 20))
    settings: dict[str, Any] = {
        "steps": 1,
        "batch_size": 1,
        "sequence_length": 24,
        "backend": backend.name,
        "device": "cpu",
    }
    with pytest.raises(UserError, match="a turn is not to be learned"):
        od.sft(folder, tmp_path / "chats.jsonl", out=tmp_path / "all", loss_on="all", **settings)
    od.sft(folder, tmp_path / "chats.jsonl", out=tmp_path / "run", **settings)


def test_a_call_is_learned_whole_where_the_template_lets_no_chat_end_after_it() -> None:
    """Qwen3.5's and later ones want a user's message in every chat that they render."""
    tokenizer = load("qwen3_6")
    chat = chat_of(
        said(None, tool_calls=[call("find", {})]),
        {"role": "tool", "content": "2"},
        user("c"),
        said("d"),
    )
    # The prompt for the last answer has opened a thought.
    assert "".join(learned(encode_chat(chat, tokenizer), tokenizer)) == (
        "<tool_call>\n<function=find>\n</function>\n</tool_call><|im_end|>\n</think>\n\nd<|im_end|>"
    )


@pytest.mark.parametrize("name", ["nemotron_3_nano", "qwen3", "deepseek_r1_distill"])
def test_a_thought_inside_a_content_is_learned_in_every_turn(name: str) -> None:
    """Also where the prompt opens the thought, and where the user has said the same."""
    tokenizer = load(name)
    answer = "<think>\nt\n</think>\n\nq"
    chat = chat_of(user(answer), said(answer), user("b"), said("c"))
    text = "".join("".join(learned(encode_chat(chat, tokenizer), tokenizer)).split())
    assert text.count("<think>t</think>q") == 1


def test_two_tokens_that_end_a_turn_are_learned() -> None:
    tokenizer = load("cohere2")
    tokenizer = Tokenizer(
        tokenizer.inner,
        {**tokenizer.config, "eos_token": "<|END_OF_TURN_TOKEN|>"},
        tokenizer.chat_template,
    )
    [text] = learned(encode_chat(chat_of(user("a"), said("b")), tokenizer), tokenizer)
    assert text.endswith("b<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")


def test_a_call_of_a_prompts_history_is_written_or_the_prompt_is_refused() -> None:
    history = chat_of(
        user("Cold?"), said(None, tool_calls=[call()]), {"role": "tool", "content": "2"}
    )
    for name in ("qwen2_5", "deepseek_r1_distill"):
        tokenizer = load(name)
        assert "get_weather" in tokenizer.decode(prompt_ids(history, tokenizer))
    with pytest.raises(BadRow, match="message 2: its call 1 leaves no trace"):
        prompt_ids(history, load("lfm2"))
