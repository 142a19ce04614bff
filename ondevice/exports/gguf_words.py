"""A byte-level BPE tokenizer as GGUF has it, under the name by which llama.cpp knows how to split a
text into words.

GGUF has no rules, only a name for them (`tokenizer.ggml.pre`). The name is found by trying: the
tokenizer under each of llama.cpp's rules encodes texts on which they differ, and that name is taken
whose ids are the tokenizer's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
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

    described = parse_json(tokenizer.inner.to_str())
    model = described["model"]
    if model.get("type") != "BPE" or not tokenizer.is_byte_level or _prefixed(described):
        raise UserError(
            "its tokenizer is not a byte-level BPE, the one kind that is written as GGUF here",
            where=where,
            hint="llama.cpp's own convert_hf_to_gguf.py knows more",
        )
    pre, differs = _rule(described)
    added = tokenizer.inner.get_added_tokens_decoder()
    names = {i: word for word, i in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    tokens = []
    kinds = []
    for i in range(vocab_size):
        tokens.append(names.get(i, f"[PAD{i}]"))
        if i not in names:
            kind = TokenType.UNUSED
        elif i not in added:
            kind = TokenType.NORMAL
        elif added[i].special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.USER_DEFINED
        kinds.append(int(kind))
    ids = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        ids["bos"] = tokenizer.bos_id
    end = turn_end(tokenizer)
    if end is not None and end != tokenizer.eos_id:
        ids["eot"] = end
    first = tokenizer.inner.encode("a", add_special_tokens=True).ids[:1]
    opens = first == [tokenizer.bos_id]
    return Words(pre, tokens, kinds, _merges(model["merges"]), ids, opens, differs)


def _merges(listed: Sequence[str | Sequence[str]]) -> list[str]:
    """Pairs of pieces with a space between them; newer tokenizers list them as pairs."""
    merges = []
    for merge in listed:
        if not isinstance(merge, str):
            merge = " ".join(merge)
        merges.append(merge)
    return merges


def template_of(tokenizer: Tokenizer) -> str | None:
    """The chat template without the tags that mark what the assistant says: they write nothing, and
    other programs' engines need not know them."""
    if tokenizer.chat_template is None:
        return None
    return _GENERATION.sub(_without_mark, tokenizer.chat_template)


def _without_mark(tag: re.Match[str]) -> str:
    """A tag that has no effect in place of one that marks."""
    start, is_end, end = tag.groups()
    if is_end:
        return f"{start}endif{end}"
    return f"{start}if true{end}"


def _rule(described: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(name, probes whose ids differ under it): the name with the fewest."""
    own = _probe_ids(tokenizers.Tokenizer.from_str(json.dumps(described)))
    differs_by_rule: dict[str, tuple[str, ...]] = {}
    for name, (expressions, whole) in _RULES.items():
        ids = _probe_ids(_under_rule(described, expressions, whole))
        differs_by_rule[name] = tuple(text for text in _PROBES if ids[text] != own[text])
    name, differs = min(differs_by_rule.items(), key=lambda rule: len(rule[1]))
    if len(differs) > _MOST:
        raise UserError(
            "llama.cpp knows no rule that splits text as its tokenizer does",
            where="tokenizer.json",
            hint=f"nearest: {name}, which differs in {len(differs)} of {len(_PROBES)} texts",
        )
    return name, differs


def _probe_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, list[int]]:
    return {text: tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES}


def _under_rule(
    described: dict[str, Any], expressions: Sequence[str], whole: bool
) -> tokenizers.Tokenizer:
    """The tokenizer as llama.cpp has it under one of its rules."""
    model = {**described["model"], "ignore_merges": whole}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**described, "model": model}))
    steps: list[Any] = []
    for expression in expressions:
        regex = tokenizers.Regex(expression)
        steps.append(tokenizers.pre_tokenizers.Split(regex, behavior="isolated"))
    steps.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    return tokenizer


def _prefixed(described: dict[str, Any]) -> bool:
    """Whether a space is put before every text."""
    return '"add_prefix_space": true' in json.dumps(described.get("pre_tokenizer"))
