"""What each token of a vocabulary is: special, a word's continuation, a sentence's end, how many bytes
of text it stands for. Tables by id, made once.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.data.byte_level import byte_length, spelt

SENTINEL = "<extra_id_{}>"
"""What stands for the hidden spans of a text, in T5's spelling."""


class Vocabulary:
    """The tokens of `inner`, a `tokenizers.Tokenizer`. `vocab_size` is the largest id plus one."""

    inner: Any
    vocab_size: int

    def check_id(self, i: int) -> None:
        """Raises UserError for an id outside the vocabulary."""
        if not 0 <= i < self.vocab_size:
            raise UserError(f"token id {i} is outside the vocabulary of {self.vocab_size}")

    def token_bytes(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Number of UTF-8 bytes of text that each id stands for, same shape as `ids`; special
        tokens stand for none.
        """
        lengths: NDArray[np.int32] = self._byte_lengths[ids]
        return lengths

    @cached_property
    def special(self) -> dict[str, Any]:
        """Special tokens by content: `tokenizers.AddedToken` objects."""
        added = self.inner.get_added_tokens_decoder()
        return {token.content: token for token in added.values() if token.special}

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """Whether each id of the vocabulary is a special token, (vocab_size,)."""
        table = np.zeros(self.vocab_size, np.bool_)
        for i, token in self.inner.get_added_tokens_decoder().items():
            if token.special:
                table[i] = True
        return table

    @cached_property
    def continues(self) -> NDArray[np.bool_]:
        """Whether each id goes on with the word of the id before it, (vocab_size,): it begins with
        a letter or digit and with no space, or, in WordPiece's vocabularies, with ##."""
        table = np.zeros(self.vocab_size, np.bool_)
        pieces = parse_json(self.inner.to_str())["model"].get("type") == "WordPiece"
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            if pieces:
                table[i] = word.startswith("##")
            elif not word.startswith("\u2581"):
                first = self._bytes_of(word)[:1]
                table[i] = first.isalnum() or first >= b"\x80"
        table[self.is_special] = False
        return table

    @cached_property
    def sentinels(self) -> NDArray[np.int32]:
        """Ids of the tokens that stand for hidden spans, in order; empty where there are none."""
        found: list[int] = []
        i = self.inner.token_to_id(SENTINEL.format(0))
        while i is not None:
            found.append(i)
            i = self.inner.token_to_id(SENTINEL.format(len(found)))
        return np.array(found, np.int32)

    @cached_property
    def ends_sentence(self) -> NDArray[np.bool_]:
        """Whether each id ends a sentence, (vocab_size,): it ends with a full stop, a question
        mark, an exclamation mark or a line."""
        table = np.zeros(self.vocab_size, np.bool_)
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            table[i] = self._bytes_of(word).endswith((b".", b"?", b"!", b"\n"))
        table[self.is_special] = False
        return table

    def _bytes_of(self, word: str) -> bytes:
        """How the vocabulary spells a token, as bytes."""
        if self.is_byte_level:
            return spelt(word)
        return word.encode()

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether every token is spelt in the 256 characters that stand for bytes."""
        return '"ByteLevel"' in json.dumps(parse_json(self.inner.to_str()).get("decoder"))

    @cached_property
    def _byte_lengths(self) -> NDArray[np.int32]:
        lengths = np.zeros(self.vocab_size, np.int32)
        added = self.inner.get_added_tokens_decoder()
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            if i in added:
                lengths[i] = len(word.encode())
            else:
                lengths[i] = byte_length(word, self.is_byte_level)
        lengths[self.is_special] = 0
        return lengths
