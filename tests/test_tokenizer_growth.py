"""Rules of a tokenizer.json that would make a text endlessly long are refused before they are used;
those of models that people have are not."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_growth import GROWTH, check_growth

BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
CHARACTERS = {
    "type": "Split",
    "pattern": {"Regex": "."},
    "behavior": "Isolated",
    "invert": False,
}
SPACES = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "always",
    "split": True,
}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
PAIR = [TEXT, {"Sequence": {"id": "B", "type_id": 0}}]


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(part: str, rules: list[Any]) -> dict[str, Any]:
    inner = {
        "normalizer": "normalizers",
        "pre_tokenizer": "pretokenizers",
        "decoder": "decoders",
        "post_processor": "processors",
    }
    return {part: {"type": "Sequence", inner[part]: rules}}


def charsmap(longest: int) -> str:
    """A SentencePiece map with an empty table whose longest replacement has so many characters."""
    return base64.b64encode(b"\0\0\0\0" + b"ab\0" + b"a" * longest + b"\0").decode()


ENDLESS = {
    "long replacements": sequence("normalizer", [replace({"String": "a"}, "a" * 30)] * 6),
    "between characters": sequence("normalizer", [replace({"Regex": "x*"}, "a")] * 12),
    "bytes of bytes": sequence("pre_tokenizer", [BYTES] * 30),
    "bytes in the normalizer": sequence("normalizer", [{"type": "ByteLevel"}] * 30),
    "a space to each character": sequence("pre_tokenizer", [CHARACTERS, SPACES] * 30),
    "a sequence in a sequence": sequence(
        "pre_tokenizer", [sequence("pre_tokenizer", [BYTES] * 6)["pre_tokenizer"]] * 6
    ),
    "a map with a long text": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(5000)}
    },
    "the text many times": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [TEXT] * 2000,
            "pair": PAIR,
            "special_tokens": {},
        }
    },
    "words of the answer": sequence("decoder", [replace({"String": "a"}, "a" * 30)] * 6),
}


@pytest.mark.parametrize("rules", ENDLESS.values(), ids=ENDLESS)
def test_rules_that_make_a_text_endlessly_long_are_refused(
    tmp_path: Path, rules: dict[str, Any]
) -> None:
    small_tokenizer().save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **rules}))
    (part,) = rules
    with pytest.raises(
        UserError, match=f"its {part} makes a text up to .* times as long"
    ) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.where == str(file)


IN_USE = {
    "ALBERT, XLNet": sequence(
        "normalizer",
        [
            replace({"String": "``"}, '"'),
            replace({"String": "''"}, '"'),
            {"type": "NFKD"},
            {"type": "StripAccents"},
            {"type": "Lowercase"},
            {"type": "Precompiled", "precompiled_charsmap": charsmap(18)},
        ],
    ),
    "Llama": {
        **sequence(
            "normalizer",
            [{"type": "Prepend", "prepend": "\u2581"}, replace({"String": " "}, "\u2581")],
        ),
        **sequence("decoder", [replace({"String": "\u2581"}, " "), {"type": "ByteFallback"}]),
    },
    "T5": sequence("pre_tokenizer", [{"type": "WhitespaceSplit"}, SPACES]),
    "DeBERTa": sequence(
        "normalizer",
        [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Precompiled", "precompiled_charsmap": charsmap(18)},
            replace({"Regex": " {2,}"}, " "),
        ],
    ),
    "Qwen": {
        "normalizer": {"type": "NFC"},
        **sequence("pre_tokenizer", [CHARACTERS, BYTES]),
        "post_processor": BYTES,
    },
    "BERT": {"normalizer": {"type": "BertNormalizer", "lowercase": True}},
}


@pytest.mark.parametrize("rules", IN_USE.values(), ids=IN_USE)
def test_rules_of_models_in_use_are_taken(tmp_path: Path, rules: dict[str, Any]) -> None:
    check_growth(rules, tmp_path / "tokenizer.json")


def test_what_is_taken_keeps_a_text_within_the_bound(tmp_path: Path) -> None:
    """Random sequences of rules: of those that are taken, none makes more of a text than it may."""
    draw = random.Random(0)
    normalizers: list[dict[str, Any]] = [
        {"type": "ByteLevel"}, {"type": "NFKD"}, {"type": "NFC"}, {"type": "Lowercase"},
        {"type": "Prepend", "prepend": "ab"}, replace({"String": "a"}, "aaaa"), replace({"String": "A"}, "b a"),
        replace({"Regex": "[a-c]"}, "abc"), replace({"Regex": "c?"}, "d"), replace({"Regex": r"\p{L}"}, "ef"),
    ]  # fmt: skip
    before: list[dict[str, Any]] = [BYTES, CHARACTERS, SPACES, {"type": "Whitespace"}]
    plain = json.loads(small_tokenizer().inner.to_str())
    text = "Anna a 🙂 \ufdfa"
    taken = 0
    for _ in range(300):
        rules = {
            **sequence("normalizer", draw.choices(normalizers, k=draw.randrange(5))),
            **sequence("pre_tokenizer", draw.choices(before, k=draw.randrange(6))),
        }
        try:
            check_growth(rules, tmp_path)
        except UserError:
            continue
        inner = tokenizers.Tokenizer.from_str(json.dumps({**plain, **rules}))
        grown = text
        try:
            if inner.normalizer is not None:
                grown = inner.normalizer.normalize_str(text)
            pieces = [(text, (0, 0))]
            if inner.pre_tokenizer is not None:
                pieces = inner.pre_tokenizer.pre_tokenize_str(text)
        except BaseException as error:  # the library's own, of a pattern that matches nothing
            assert type(error).__name__ == "PanicException", error
            continue
        taken += 1
        assert len(grown) <= GROWTH * len(text), rules
        assert sum(len(piece) for piece, _ in pieces) <= GROWTH * len(text), rules
    assert taken > 50
