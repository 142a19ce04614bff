"""The tokenizer: round trips, special tokens, streaming, what transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import TEXTS, real_data, small_tokenizer, transformers_tokenizer
from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import SPECIAL, train_tokenizer


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]
    assert tokenizer.token_bytes(np.array(ids, np.int64)).sum() == len(text.encode())


@given(
    st.lists(st.sampled_from([*SPECIAL, "<|en", "d|>", "<", "|", "x", " "]), max_size=8).map(
        "".join
    )
)
def test_text_never_becomes_a_special_token(text: str) -> None:
    tokenizer = small_tokenizer()
    assert not tokenizer.is_special[np.array(tokenizer.encode(text), np.int64)].any()
    assert not tokenizer.is_special[np.array(tokenizer.encode_batch([text])[0], np.int64)].any()
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_are_recognised_when_asked() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("<|user|>x<|end|>", special=True)
    assert ids[0] == tokenizer.inner.token_to_id("<|user|>") and ids[-1] in tokenizer.stop_ids
    assert tokenizer.stop_ids == (tokenizer.eos_id, tokenizer.inner.token_to_id("<|end|>"))
    assert tokenizer.decode(ids) == "x"
    assert tokenizer.token_bytes(np.array(ids)).tolist() == [0, 1, 0]


def test_digits_are_apart_and_names_are_one_token_wherever_they_stand() -> None:
    tokenizer = small_tokenizer()
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12+345")] == [
        "1",
        "2",
        "+",
        "3",
        "4",
        "5",
    ]
    for name in ("Anna", "Ben", "Carla"):
        assert len(tokenizer.encode(name)) == 1, name
        assert len(tokenizer.encode(" " + name)) == 1, name


def test_training_is_the_same_twice_and_needs_room_and_text() -> None:
    assert train_tokenizer(TEXTS, 420).sha256() == small_tokenizer().sha256()
    assert train_tokenizer(iter(TEXTS), 350).vocab_size == 350
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer(TEXTS, 200)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 400)


@given(st.lists(st.integers(0, 370), max_size=30))
def test_streaming_gives_the_text_whatever_the_ids(ids: list[int]) -> None:
    tokenizer = small_tokenizer()
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


def test_streaming_holds_a_character_back_until_it_is_whole() -> None:
    tokenizer = small_tokenizer()
    ids = [i for byte in "🙂".encode() for i in [tokenizer.inner.token_to_id(_letter(byte))]]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "🙂"]
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"


def _letter(byte: int) -> str:
    from ondevice.data.byte_level import BYTES

    return next(letter for letter, value in BYTES.items() if value == byte)


def test_streaming_of_a_tokenizer_with_byte_fallback_keeps_spaces() -> None:
    import tokenizers

    words = ["<unk>", "</s>", "\u2581the", "\u2581cat", "s", *(f"<0x{n:02X}>" for n in range(256))]
    vocabulary = {word: n for n, word in enumerate(words)}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
    )
    inner.add_special_tokens(["</s>"])
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = Tokenizer(inner, {"eos_token": "</s>"})
    assert not tokenizer.is_byte_level
    ids = [2, 3, 4, *(vocabulary[f"<0x{byte:02X}>"] for byte in "é🙂".encode()), 3, 1]
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids) == "the catsé🙂 cat"
    assert pieces[0] == "the" and pieces[1] == " cat"
    assert tokenizer.token_bytes(np.array(ids)).tolist() == [4, 4, 1, 1, 1, 1, 1, 1, 1, 4, 0]


def test_ids_outside_the_vocabulary_are_the_users_error() -> None:
    tokenizer = small_tokenizer()
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match="outside the vocabulary"):
            tokenizer.decode([bad])
        with pytest.raises(UserError, match="outside the vocabulary"):
            tokenizer.stream().push(bad)


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    (tmp_path / "chat_template.jinja").write_text("an older template that must not win")
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256() == tokenizer.sha256()
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_id, again.pad_id, again.bos_id) == (tokenizer.eos_id, tokenizer.pad_id, None)


def test_a_folders_template_file_and_stop_list_are_read(tmp_path: Path) -> None:
    small_tokenizer().save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'x' }}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3, 10**9]}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template == "{{ 'x' }}"
    assert tokenizer.stop_ids == (0, 3)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {
        "eos_token": {"content": "<|end|>"},
        "chat_template": [{"name": "default", "template": "d"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template == "d" and tokenizer.eos_id == tokenizer.inner.token_to_id(
        "<|end|>"
    )


@pytest.mark.parametrize(
    "file, content, match",
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer_config.json", "[", "cannot be read"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("tokenizer_config.json", "{}", "no end-of-text"),
    ],
)
def test_broken_folders_are_named(
    tmp_path: Path, file: str, content: str | None, match: str
) -> None:
    small_tokenizer().save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=match):
        Tokenizer.load(tmp_path)


@pytest.mark.slow
def test_transformers_reads_our_folder_with_the_same_ids(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    theirs = transformers_tokenizer(tokenizer, tmp_path)
    for text in [*TEXTS[:3], "  a\n\n b\t'll 007 ", "日本 🙂"]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)  # type: ignore[operator]
        assert theirs.decode(tokenizer.encode(text)) == text  # type: ignore[attr-defined]
    assert theirs.eos_token_id == tokenizer.eos_id and theirs.pad_token_id == tokenizer.pad_id  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_real_text_comes_back() -> None:
    text = real_data("tinyshakespeare.txt").read_text()
    tokenizer = train_tokenizer([text], 1024)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text) / 2.2
    assert tokenizer.token_bytes(np.array(ids)).sum() == len(text.encode())


def test_a_copy_that_ends_texts_otherwise_keeps_what_the_template_is_told() -> None:
    template = "{% for m in messages %}{{ m.content if think else '' }}{% endfor %}"
    tokenizer = Tokenizer(
        small_tokenizer().inner,
        small_tokenizer().config,
        template,
        more_templates={"tool_use": template},
        template_kwargs={"think": True},
    )
    for copy in (tokenizer.with_eos("<|end|>"), tokenizer.ending_as(small_tokenizer())):
        assert copy.more_templates == {"tool_use": template}
        assert copy.template_kwargs == {"think": True}
