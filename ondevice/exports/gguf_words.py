"""A byte-level BPE tokenizer as GGUF has it, under the name by which llama.cpp knows how to split a
text into words.

GGUF has no rules, only a name for them (`tokenizer.ggml.pre`). The name is found by trying: the
tokenizer under each of llama.cpp's rules encodes texts on which they differ, and that name is taken
whose ids are the tokenizer's own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import tokenizers

from ondevice.common.errors import UserError
from ondevice.data.chat_template import turn_end
from ondevice.data.tokenizer import Tokenizer

# What llama.cpp does under each name (llama-vocab.cpp): expressions, one after the other on what
# the one before has left in one piece, and whether a word that is a token is taken whole, without
# merging.
_TAILS = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_TAILS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = _TAILS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _ANY_TAILS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RULES: dict[str, tuple[tuple[str, ...], bool]] = {
    "smollm": ((r"\p{N}", _GPT2), False),
    "gpt-2": ((_GPT2,), False),
    "qwen2": ((_LLAMA3.replace("{1,3}", ""),), False),
    "llama-bpe": ((_LLAMA3,), True),
    "dbrx": ((_LLAMA3,), False),
    "tekken": ((_CASED % ("", "", ""),), True),
    "gpt-4o": ((_CASED % (_ANY_TAILS + "?", _ANY_TAILS + "?", "{1,3}"),), False),
}
_PROBES = (
    "Hello there, how are you? I'm fine; they'll say we've won.",
    "YOU'RE HERE, it's Bob'S",
    "camelCase and iPhoneOS",
    "12 + 345 = 357, 3.14159 and 2026-11-25",
    "a1b22c333 x86_64 /usr/bin",
    "one\ntwo\n\nthree\n\n\nfour",
    "  two spaces   three\tand\t\ttabs ",
    "end of line.\n  indented\n    more",
    "what?!\nyes...\n\nno",
    "«Größe» naïve Ünïcode",
    "東京 は日本の 首都 です。",
    "🙂🙂 emoji 👩‍👩‍👧",
    'print(f"{x!r}")  # (a[0], b->c) != {}',
    "x  12\n\n34\t5",
)
"""None has a letter in parts (a base and a combining mark): llama.cpp does not normalise text."""
_MOST = 2  # probes that may differ
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class Words:
    """What stands in the file: `kinds` are GGUF's token types, `differs` the probes that llama.cpp
    splits otherwise.
    """

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    ids: dict[str, int]
    opens: bool  # a text begins with the bos token
    differs: tuple[str, ...]


def words_of(tokenizer: Tokenizer, vocab_size: int, where: str) -> Words:
    """Raises UserError for a tokenizer of another kind, or one whose rules llama.cpp does not know."""
    from gguf import TokenType  # 180 ms

    described = json.loads(tokenizer.inner.to_str())
    model = described["model"]
    if model.get("type") != "BPE" or not tokenizer.is_byte_level or _prefixed(described):
        raise UserError(
            "its tokenizer is no byte-level BPE, the one kind that is written as GGUF here",
            where=where,
            hint="llama.cpp's own convert_hf_to_gguf.py knows more",
        )
    pre, differs = _rule(described)
    added = tokenizer.inner.get_added_tokens_decoder()
    names = {i: word for word, i in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [
        TokenType.UNUSED
        if i not in names
        else TokenType.NORMAL
        if i not in added
        else TokenType.CONTROL
        if added[i].special
        else TokenType.USER_DEFINED
        for i in range(vocab_size)
    ]
    ids = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        ids["bos"] = tokenizer.bos_id
    end = turn_end(tokenizer)
    if end is not None and end != tokenizer.eos_id:
        ids["eot"] = end
    first = tokenizer.inner.encode("a", add_special_tokens=True).ids[:1]
    return Words(
        pre,
        tokens,
        [int(kind) for kind in kinds],
        [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        ids,
        first == [tokenizer.bos_id],
        differs,
    )


def template_of(tokenizer: Tokenizer) -> str | None:
    """The chat template without the tags that mark what the assistant says: they write nothing, and
    other programs' engines need not know them."""
    if tokenizer.chat_template is None:
        return None
    return _GENERATION.sub(
        lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", tokenizer.chat_template
    )


def _rule(described: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(name, probes whose ids differ under it): the name with the fewest."""
    own = tokenizers.Tokenizer.from_str(json.dumps(described))
    want = [own.encode(text, add_special_tokens=False).ids for text in _PROBES]
    found: dict[str, tuple[str, ...]] = {}
    for name, (expressions, whole) in _RULES.items():
        other = tokenizers.Tokenizer.from_str(
            json.dumps({**described, "model": {**described["model"], "ignore_merges": whole}})
        )
        other.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                *(
                    tokenizers.pre_tokenizers.Split(tokenizers.Regex(e), behavior="isolated")
                    for e in expressions
                ),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        found[name] = tuple(
            text
            for text, ids in zip(_PROBES, want, strict=True)
            if other.encode(text, add_special_tokens=False).ids != ids
        )
    name = min(found, key=lambda n: len(found[n]))
    if len(found[name]) > _MOST:
        raise UserError(
            "llama.cpp knows no rule that splits text as its tokenizer does",
            where="tokenizer.json",
            hint=f"nearest: {name}, which differs in {len(found[name])} of {len(_PROBES)} texts",
        )
    return name, found[name]


def _prefixed(described: dict[str, Any]) -> bool:
    """Whether a space is put before every text."""
    return '"add_prefix_space": true' in json.dumps(described.get("pre_tokenizer"))
