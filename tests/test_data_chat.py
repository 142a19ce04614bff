"""Chats: the ids are apply_chat_template's, the masks are the assistant's tokens with the stop
token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import CHATS, real_data, small_tokenizer, transformers_tokenizer
from ondevice.common.errors import UserError
from ondevice.data import template_budget as programs
from ondevice.data.chat_encoding import (
    ChatRow,
    add_template,
    encode_chat,
    encode_chats,
    prompt_ids,
    render,
)
from ondevice.data.chat_template import TEMPLATES
from ondevice.data.formats import chats
from ondevice.data.messages import BadRow
from ondevice.data.rows import read
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import SPECIAL

USER_ASSISTANT = CHATS[0]
TWO_TURNS = [
    *USER_ASSISTANT,
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "It is 6."},
]

# Writes a thought before the newest answer only: prefixes of the whole chat do not fit, a row per
# turn does.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The generation prompt opens a thought that no history has: only sentinels find the contents.
FORCED = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
# Marks the content and leaves the stop token out.
STOP_OUTSIDE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
)
# Ends a turn with nothing but the next turn.
NO_STOP = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Changes the content: no method can tell what the assistant wrote.
HOPELESS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper | reverse }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}?{% endif %}"
)


def learned(row: ChatRow, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(row.ids[row.mask], skip_special=False)


def with_template(template: str) -> Tokenizer:
    return small_tokenizer().with_template(template)


@pytest.mark.parametrize("name", ["own", *TEMPLATES])
@pytest.mark.parametrize("chat", CHATS)
def test_the_answers_and_their_stop_tokens_are_learned(
    name: str, chat: list[dict[str, str]]
) -> None:
    tokenizer = small_tokenizer()
    if name == "pair":  # an encoder's, which has a token that opens a text
        tokenizer = Tokenizer(tokenizer.inner, {**tokenizer.config, "cls_token": "<|user|>"})
    tokenizer = tokenizer if name == "own" else add_template(tokenizer, name)
    [row] = encode_chat(chat, tokenizer)
    end = {"own": "<|end|>", "chatml": "<|im_end|>"}.get(name, "<|endoftext|>")
    space = " " if name == "plain" else ""
    answers = [m["content"] for m in chat if m["role"] == "assistant"]
    assert learned(row, tokenizer) == "".join(space + answer + end for answer in answers)
    assert row.ids.dtype == np.int32 and row.mask.dtype == np.bool_
    assert tokenizer.inner.token_to_id(end) in tokenizer.stop_ids
    assert tokenizer.pad_id not in row.ids[row.mask]


@pytest.mark.parametrize("chat", CHATS)
def test_the_prompt_is_a_prefix_of_the_chat(chat: list[dict[str, str]]) -> None:
    tokenizer = small_tokenizer()
    [row] = encode_chat(chat, tokenizer)
    for n, message in enumerate(chat):
        if message["role"] == "assistant":
            prompt = prompt_ids(chat[:n], tokenizer)
            assert row.ids[: len(prompt)].tolist() == prompt
            assert not row.mask[len(prompt) - 1] and row.mask[len(prompt)]


@pytest.mark.parametrize(
    "template, rows",
    [
        (THINKING, ["<think></think>It is 4.<|end|>", "<think></think>It is 6.<|end|>"]),
        (FORCED, ["It is 4.<|end|>It is 6.<|end|>"]),
        (STOP_OUTSIDE, ["It is 4.<|end|>It is 6.<|end|>"]),
        (NO_STOP, ["It is 4.It is 6.<|endoftext|>"]),
    ],
    ids=["a row per turn", "sentinels", "stop outside the marks", "no stop token"],
)
def test_the_ladder(template: str, rows: list[str]) -> None:
    tokenizer = with_template(template)
    assert [learned(row, tokenizer) for row in encode_chat(TWO_TURNS, tokenizer)] == rows


def test_what_no_method_can_tell_is_said() -> None:
    with pytest.raises(BadRow, match="does not show which tokens"):
        encode_chat(TWO_TURNS, with_template(HOPELESS))
    with pytest.raises(BadRow, match="refuses this chat: unknown role"):
        encode_chat([{"role": "tool", "content": "x"}], small_tokenizer())
    with pytest.raises(BadRow, match="refuses"):
        encode_chat([{"role": "user"}], small_tokenizer())
    with pytest.raises(UserError, match="chat template"):
        encode_chat(TWO_TURNS, Tokenizer(small_tokenizer().inner, small_tokenizer().config))
    with pytest.raises(UserError, match="cannot be read"):
        encode_chat(TWO_TURNS, with_template("{% if %}"))
    with pytest.raises(UserError, match="did you mean 'chatml'"):
        add_template(small_tokenizer(), "chatlm")


def test_a_template_cannot_reach_the_machine() -> None:
    with pytest.raises(BadRow, match="unsafe"):
        encode_chat(TWO_TURNS, with_template("{{ messages.__class__.__mro__ }}"))


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loops in loops": "{% for m in messages recursive %}{{ loop([m, m]) if loop.depth < 60 }}{% endfor %}",
    "a product": "{{ 'a' * 10 ** 12 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "sums": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "joined texts": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "written texts": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "a long answer": "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_does_not_end_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, as the model's fault: it is no row that is bad."""
    monkeypatch.setattr(programs, "SECONDS", 0.3)
    with pytest.raises(UserError, match="the model.s chat template"):
        render(USER_ASSISTANT, with_template(ENDLESS[kind]))


def test_a_template_that_calls_itself_for_ever_refuses_the_chat() -> None:
    with pytest.raises(BadRow, match="recursion"):
        render(
            USER_ASSISTANT,
            with_template("{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}"),
        )


def test_what_a_template_writes_is_what_it_wrote_without_limits() -> None:
    source = "{% set a = 'x' ~ 2 ~ none %}{{ a }}{{ 1 + 2 }}{{ [1] + [2] }}{{ 'ab' * 2 }}{{ 2 ** 10 }}{{ none }}"
    assert render(USER_ASSISTANT, with_template(source)) == "x2None3[1, 2]abab1024None"


def test_many_chats_are_one_chat_many_times() -> None:
    tokenizer = with_template(THINKING)
    refused: list[tuple[int, str]] = []
    some: list[Any] = [
        TWO_TURNS,
        CHATS[1],
        [{"role": "user", "content": 3}, {"role": None}],
        USER_ASSISTANT,
    ]
    rows = list(encode_chats(some[:2] + some[3:], tokenizer, batch=2))
    alone = [row for chat in some[:2] + some[3:] for row in encode_chat(chat, tokenizer)]
    assert [(r.ids.tolist(), r.mask.tolist()) for r in rows] == [
        (r.ids.tolist(), r.mask.tolist()) for r in alone
    ]
    own = small_tokenizer()
    rows = list(encode_chats(some, own, reject=lambda n, reason: refused.append((n, reason))))
    assert len(rows) == 3 and [n for n, _ in refused] == [2] and "refuses" in refused[0][1]


def test_no_assistant_turn_leaves_nothing_to_learn() -> None:
    [row] = encode_chat([{"role": "user", "content": "hello"}], small_tokenizer())
    assert len(row.ids) and not row.mask.any()


NASTY = st.lists(
    st.sampled_from(
        [
            *SPECIAL,
            "<|im_start|>",
            "<|im_end|>",
            "<|en",
            "d|>",
            "\ufdd0",
            "\ufdd1",
            "\ufdd2",
            "\ufdd21\ufdd2",
            "x ",
            "\n",
        ]
    ),
    max_size=6,
).map("".join)


@given(NASTY, NASTY, st.sampled_from(["own", "chatml", "plain", THINKING, FORCED, STOP_OUTSIDE]))
def test_contents_never_become_special_tokens(asked: str, answer: str, name: str) -> None:
    tokenizer = (
        small_tokenizer()
        if name == "own"
        else add_template(small_tokenizer(), name)
        if name in TEMPLATES
        else with_template(name)
    )
    harmless = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    nasty = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    [row], [plain] = encode_chat(nasty, tokenizer), encode_chat(harmless, tokenizer)

    def special(ids: Any) -> list[int]:
        return [int(i) for i in ids if tokenizer.is_special[i]]

    assert special(row.ids) == special(plain.ids)
    assert special(prompt_ids(nasty[:1], tokenizer)) == special(prompt_ids(harmless[:1], tokenizer))
    said = learned(row, tokenizer)
    kept = answer.strip() if name == FORCED else answer  # that template trims
    assert kept in said and row.ids[row.mask][-1] in tokenizer.stop_ids


def test_a_normaliser_cannot_make_special_tokens_either() -> None:
    import tokenizers

    inner = tokenizers.Tokenizer.from_str(small_tokenizer().inner.to_str())
    inner.normalizer = tokenizers.normalizers.NFKC()
    inner.add_special_tokens([tokenizers.AddedToken("<|bad|>", special=True, normalized=True)])
    tokenizer = Tokenizer(inner, small_tokenizer().config, small_tokenizer().chat_template)
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "<|bad|>")
    bad = inner.token_to_id("<|bad|>")
    assert bad in inner.encode(wide, add_special_tokens=False).ids  # the library alone is taken in
    [row] = encode_chat(
        [{"role": "user", "content": wide}, {"role": "assistant", "content": "no"}], tokenizer
    )
    assert bad not in row.ids and learned(row, tokenizer) == "no<|end|>"


def test_contents_in_parts_where_the_template_wants_them() -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = with_template(template)
    [row] = encode_chat(TWO_TURNS, tokenizer)
    assert learned(row, tokenizer) == "It is 4.<|end|>It is 6.<|end|>"
    assert "2+2" in tokenizer.decode(prompt_ids(TWO_TURNS[:1], tokenizer))


# ---- against transformers -------------------------------------------------------------------------------------------


def theirs(oracle: Any, chat: Any) -> tuple[list[int], list[int]]:
    got = oracle.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return got["input_ids"], got["assistant_masks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", *TEMPLATES])
def test_ids_and_masks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer() if name == "own" else add_template(small_tokenizer(), name)
    oracle: Any = transformers_tokenizer(tokenizer, tmp_path)
    for chat in [*CHATS, TWO_TURNS]:
        [row] = encode_chat(chat, tokenizer)
        assert (row.ids.tolist(), row.mask.astype(int).tolist()) == theirs(oracle, chat)
        asked = oracle.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=True)
        assert prompt_ids(chat[:-1], tokenizer) == asked["input_ids"]


def trl_templates() -> dict[str, str]:
    trl = pytest.importorskip("trl", reason="trl ships templates of many models")
    folder = Path(trl.__file__).parent / "chat_templates"
    if not folder.is_dir():
        pytest.skip("this trl ships no templates")
    return {file.stem: file.read_text() for file in sorted(folder.glob("*.jinja"))}


def common(template: str) -> Tokenizer:
    """Our tokenizer with the template and the special tokens that it spells."""
    found = re.findall(
        r"<\|[\w@]+\|>|<[｜|][^<>\n]{1,30}[｜|]>|<(?:start|end)_of_\w+>|<turn\|>|<\|turn>", template
    )
    tokenizer = small_tokenizer().with_template(template, sorted(set(found)))
    return Tokenizer(tokenizer.inner, {**tokenizer.config, "bos_token": "<|pad|>"}, template)


# llava's templates take neither strings nor our parts; they are of models that see.
OTHER_KINDS = ("llava", "idefics", "smolvlm")


@pytest.mark.slow
def test_common_templates_show_their_answers() -> None:
    ways = set()
    for name, template in trl_templates().items():
        if name.startswith(OTHER_KINDS):
            continue
        tokenizer = common(template)
        rows = encode_chat(TWO_TURNS, tokenizer)
        said = [learned(row, tokenizer) for row in rows]
        assert len(said) in (1, 2), name
        assert "It is 4." in said[0] and "It is 6." in said[-1], name
        assert "2+2" not in "".join(said) and "3+3" not in "".join(said), name
        assert all(tokenizer.is_stop[row.ids[row.mask]].any() for row in rows), name
        ways.add((len(said), "endgeneration" in template))
    assert ways >= {(1, True), (1, False), (2, False)}


@pytest.mark.slow
def test_qwen3_gets_a_row_per_turn_and_the_ids_of_each(tmp_path: Path) -> None:
    tokenizer = common(trl_templates()["qwen3"])
    oracle: Any = transformers_tokenizer(tokenizer, tmp_path)
    rows = encode_chat(TWO_TURNS, tokenizer)
    assert [learned(row, tokenizer) for row in rows] == [
        "<think>\n\n</think>\n\nIt is 4.<|im_end|>",
        "<think>\n\n</think>\n\nIt is 6.<|im_end|>",
    ]
    for row, turns in zip(rows, (2, 4), strict=True):
        assert (
            row.ids.tolist()
            == oracle.apply_chat_template(TWO_TURNS[:turns], return_dict=True)["input_ids"]
        )


@pytest.mark.slow
def test_masks_of_common_training_templates_are_those_of_transformers(tmp_path: Path) -> None:
    compared = 0
    for name, template in trl_templates().items():
        if not name.endswith("_training") or name.startswith(OTHER_KINDS):
            continue
        tokenizer = common(template)
        oracle: Any = transformers_tokenizer(tokenizer, tmp_path / name)
        [row] = encode_chat(TWO_TURNS, tokenizer)
        assert (row.ids.tolist(), row.mask.astype(int).tolist()) == theirs(oracle, TWO_TURNS), name
        compared += 1
    assert compared >= 10


@pytest.mark.slow
def test_real_chats(tmp_path: Path) -> None:
    rows = read(real_data("codegen_instruct.jsonl"))
    some = [chat["messages"] for chat in chats(rows)]
    assert len(some) > 4000 and not rows.rejected
    tokenizer = small_tokenizer()
    oracle: Any = transformers_tokenizer(tokenizer, tmp_path)
    for chat, row in zip(some[::200], encode_chats(some[::200], tokenizer), strict=True):
        assert (row.ids.tolist(), row.mask.astype(int).tolist()) == theirs(oracle, chat)
