"""Masks on the templates of models that people really have, as TRL's package ships them: the
answers and their stop tokens, what the model itself writes before an answer, and nothing else."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from data_samples import small_tokenizer, transformers_tokenizer
from ondevice.data.chat_encoding import encode_chat, prompt_ids
from ondevice.data.formats import to_chat, to_prompt
from ondevice.data.messages import BadRow
from ondevice.data.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Anna?"},
    {"role": "assistant", "content": "In Rome."},
    {"role": "user", "content": "And Ben?"},
    {"role": "assistant", "content": "In Oslo."},
]
OTHERS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|im_start|>",
    "<bos>",
    "<start_of_turn>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
# Template → (stop token, what the model writes before an answer, whether each turn needs a row of
# its own).
TEMPLATES = {
    "llama3": ("<|eot_id|>", "", False),
    "llama3_1": ("<|eot_id|>", "", False),
    "qwen2_5": ("<|im_end|>", "", False),
    "qwen3": ("<|im_end|>", "<think>\n\n</think>\n\n", True),
    "gemma3": ("<end_of_turn>", "", False),
    "phi3": ("<|end|>", "", True),
    "gptoss": ("<|return|>", "<|channel|>final<|message|>", True),
    "deepseekv3": ("<｜end▁of▁sentence｜>", "", False),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "", False),
}

# Template → what it opens the assistant's turn with when it asks, and leaves out of a history.
OPENED = {"deepseekv3": "<think>\n", "deepseek_r1_distill": "<think>\n"}


def shipped(name: str) -> str:
    spec = find_spec("trl")  # not imported: that takes seconds, and only its files are wanted
    if spec is None or spec.origin is None:
        pytest.skip("TRL ships the templates")
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(
        encoding="utf-8"
    )


def with_shipped(name: str, stop: str) -> Tokenizer:
    """The small tokenizer with a template and its special tokens."""
    made = small_tokenizer().with_template(shipped(name), [stop, *OTHERS])
    named = {**made.config, "eos_token": stop, "bos_token": "<|begin_of_text|>"}
    return Tokenizer(made.inner, named, made.chat_template)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_and_their_stop_tokens_are_learned(name: str) -> None:
    stop, before, apart = TEMPLATES[name]
    tokenizer = with_shipped(name, stop)
    rows = encode_chat(CHAT, tokenizer)
    answers = [
        f"{before}{message['content']}{stop}" for message in CHAT if message["role"] == "assistant"
    ]
    learned = [tokenizer.decode(row.ids[row.mask], skip_special=False) for row in rows]
    assert learned == (answers if apart else ["".join(answers)])
    assert tokenizer.inner.token_to_id(stop) in tokenizer.stop_ids
    text = tokenizer.decode(rows[-1].ids, skip_special=False)
    assert all(message["content"] in text for message in CHAT[-2:])
    # What the model is asked with is what it was trained after, but for a thought that some
    # templates open only then.
    asked = tokenizer.decode(prompt_ids(CHAT[:-1], tokenizer), skip_special=False)
    opened = OPENED.get(name, "")
    assert asked.endswith(opened)
    assert asked.removesuffix(opened) + answers[-1] in text


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3"])
def test_what_a_tool_says_is_passed_on_and_not_learned(name: str) -> None:
    stop, before, _ = TEMPLATES[name]
    tokenizer = with_shipped(name, stop)
    call = {"type": "function", "function": {"name": "find", "arguments": {"who": "Anna"}}}
    row = encode_chat(
        [
            {"role": "user", "content": "Where is Anna?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "find", "content": "Rome, said the tool"},
            {"role": "assistant", "content": "In Rome."},
        ],
        tokenizer,
    )[-1]
    learned = tokenizer.decode(row.ids[row.mask], skip_special=False)
    assert "Rome, said the tool" in tokenizer.decode(row.ids) and "said the tool" not in learned
    assert learned.endswith(f"In Rome.{stop}")


SEARCH = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds a person.",
        "parameters": {
            "type": "object",
            "properties": {"who": {"type": "string"}},
            "required": ["who"],
        },
    },
}


@pytest.mark.parametrize("form", [list, json.dumps], ids=["objects", "JSON"])
@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3"])
def test_a_rows_tools_reach_the_template(name: str, form: Any, tmp_path: Path) -> None:
    """The ids are transformers' with the same tools; each part of the chat is asked with them; they
    are not learned.
    """
    stop = TEMPLATES[name][0]
    tokenizer = with_shipped(name, stop)
    messages = [
        {"role": "user", "content": "Where is Anna?"},
        {"role": "assistant", "content": "In Rome."},
    ]
    chat = to_chat({"messages": messages, "tools": form([SEARCH])})["messages"]
    row = encode_chat(chat, tokenizer)[-1]
    assert "Finds a person." in tokenizer.decode(row.ids)
    assert tokenizer.decode(row.ids[row.mask], skip_special=False).endswith(f"In Rome.{stop}")
    oracle: Any = transformers_tokenizer(tokenizer, tmp_path)
    assert (
        row.ids.tolist()
        == oracle.apply_chat_template(messages, tools=[SEARCH], return_dict=True)["input_ids"]
    )
    asked, known = to_prompt({"prompt": messages[:1], "tools": form([SEARCH]), "answer": "Rome"})
    assert known == {"answer": "Rome"} and "Finds a person." in tokenizer.decode(
        prompt_ids(asked, tokenizer)
    )


@pytest.mark.parametrize("tools", ["{", "3", [1], {"name": "find"}])
def test_tools_that_are_none_are_named(tools: Any) -> None:
    with pytest.raises(BadRow, match="tools is no"):
        to_chat({"messages": [{"role": "user", "content": "a"}], "tools": tools})
