"""How many times as long a text can get by a tokenizer's own rules.

A tokenizer.json names its rules in sequences, and each works on what the one before it has made. Thirty
rules that double a text fill no screen, and a billion times the memory of a word. So the factors are
multiplied before the library reads the file, and one beyond `GROWTH` is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError

GROWTH = 1000
# what a character can become by Unicode's compatibility forms: U+FDFA is the longest
_UNICODE_FORMS = 18
_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def check_growth(tokenizer: Mapping[str, Any], file: Path) -> None:
    """Raises UserError where a part of a tokenizer.json can make a text more than `GROWTH` times as
    long."""
    for part, inner in _SEQUENCES.items():
        growth = 1.0
        seen: set[Any] = set()
        for rule in _rules(tokenizer.get(part), inner):
            kind = rule.get("type")
            factor = _FACTORS.get(str(kind), _none)(rule)
            # these leave alone what they have made, unless another rule takes it apart again
            if kind in _ONCE and kind not in seen:
                factor = _ONCE[str(kind)]
            seen.add(kind)
            growth *= max(1.0, factor)
        if growth > GROWTH:
            raise UserError(
                f"its {part} makes a text up to {growth:.3g} times as long",
                where=str(file),
                hint="take another model",
            )


def _rules(part: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The rules of a part that is one, or a sequence of them in any depth, in no order."""
    waiting = [part]
    while waiting:
        rule = waiting.pop()
        if not isinstance(rule, Mapping):
            continue
        yield rule
        listed = rule.get(inner)
        if isinstance(listed, list):
            waiting += listed


def _none(rule: Mapping[str, Any]) -> float:
    return 1


def _replace(rule: Mapping[str, Any]) -> float:
    content = len(str(rule.get("content", "")))
    pattern = rule.get("pattern")
    if not isinstance(pattern, Mapping):
        return content + 1
    if "String" in pattern:
        least = len(str(pattern["String"]))
        return content / least if least else content + 1
    return content + _matches_nothing(str(pattern.get("Regex", "")))


def _matches_nothing(pattern: str) -> bool:
    """Whether a pattern may match between two characters, so that what is put there comes on top. True
    as well where Python does not know its form."""
    try:
        return any(not found.group() for found in re.finditer(pattern, "aB 1._"))
    except (re.error, OverflowError, RecursionError):
        return True


def _precompiled(rule: Mapping[str, Any]) -> float:
    """The longest text that SentencePiece's map puts for one: they follow its table, each with a zero
    at its end."""
    try:
        charsmap = base64.b64decode(str(rule.get("precompiled_charsmap") or ""))
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max((len(one.decode(errors="replace")) for one in texts.split(b"\0")), default=1)


def _template(rule: Mapping[str, Any]) -> float:
    """How often a template names its text; special tokens, which it may name too, are not asked for."""
    single = rule.get("single")
    pieces = single if isinstance(single, list) else []
    return sum(isinstance(piece, Mapping) and "Sequence" in piece for piece in pieces)


_FACTORS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "Replace": _replace,
    "Precompiled": _precompiled,
    "TemplateProcessing": _template,
    "ByteLevel": lambda rule: 2,
    "BertNormalizer": lambda rule: 3,
    "Metaspace": lambda rule: 2,
    "Prepend": lambda rule: 1 + len(str(rule.get("prepend", ""))),
    "NFKD": lambda rule: 2,
    "NFKC": lambda rule: 2,
    "NFD": lambda rule: 2,
    "NFC": lambda rule: 2,
}
_ONCE: Mapping[str, float] = {
    "Metaspace": 1,
    "Prepend": 1,
    "NFKD": _UNICODE_FORMS,
    "NFKC": _UNICODE_FORMS,
    "NFD": 1,
    "NFC": 1,
}
