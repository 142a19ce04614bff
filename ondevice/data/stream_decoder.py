"""Text of token ids that come one at a time."""

from __future__ import annotations

import codecs
from typing import Any, Protocol

from ondevice.data.byte_level import SINGLE_BYTE, spelt


class HasVocabulary(Protocol):
    """What decoding needs of a tokenizer. `special`: its special tokens by content;
    `is_byte_level`: whether every token is spelt in the characters that stand for bytes."""

    inner: Any

    @property
    def special(self) -> dict[str, Any]: ...

    @property
    def is_byte_level(self) -> bool: ...

    def check_id(self, i: int) -> None: ...


class StreamDecoder:
    """Text of ids that come one at a time; a character whose bytes are not all there yet is held
    back.

    The pieces from `push` and `flush`, joined, are what `Tokenizer.decode` makes of all the ids.
    (Where single bytes are tokens beside words, as in SentencePiece's vocabularies, a broken run of
    them may get fewer marks.)
    """

    def __init__(self, tokenizer: HasVocabulary) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # the id before, without which a decoder takes a word for the text's first
        self._last: list[int] = []
        self._shown = ""  # what that id alone decodes to

    def push(self, token: int) -> str:
        """What `token` adds to the text; empty while a character is incomplete."""
        tokenizer = self._tokenizer
        token = int(token)
        tokenizer.check_id(token)
        word = tokenizer.inner.id_to_token(token)
        if word is None or word in tokenizer.special:
            return ""
        if tokenizer.is_byte_level:
            return self._bytes.decode(spelt(word))
        if SINGLE_BYTE.fullmatch(word):
            new = self._bytes.decode(bytes([int(word[3:5], 16)]))
        else:
            text = tokenizer.inner.decode([*self._last, token], skip_special_tokens=True)
            new = self.flush() + text[len(self._shown) :]
        self._last = [token]
        self._shown = tokenizer.inner.decode(self._last, skip_special_tokens=True)
        return new

    def flush(self) -> str:
        """What was held back, at the end of a text."""
        left = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return left
