"""A tokenizer of our own, learned from text: byte-level BPE with our special tokens and our chat
template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tokenizers

from ondevice.common.errors import UserError
from ondevice.data.special_tokens import add_special
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.vocabulary import SENTINEL

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
END_OF_TURN = "<|end|>"
SENTINELS = 32  # how many of a T5's tokens stand for hidden spans
OPENING = "<|open|>"  # before an encoder's text
MASK = "<|mask|>"  # what an encoder is to guess
ROLES = ("system", "user", "assistant")
SPECIAL = (END_OF_TEXT, PADDING, END_OF_TURN, *(f"<|{role}|>" for role in ROLES))

# One special token opens a turn and one closes it. With nothing but special tokens around a content
# no merge can cross its border, so the prompt's ids are always a prefix of the chat's, and a turn
# costs a small context two tokens.
OWN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# Contractions, words with their leading space, single digits, runs of signs, white space.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LONGEST_PART = 10_000  # repetitions of a word in one text of the trainer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, fills: bool = False, sentinels: int = 0
) -> Tokenizer:
    """Byte-level BPE with single digits, our special tokens and our chat template.

    The names of the text get one token with and one without a leading space where the vocabulary
    has room: copying a name from the context is then copying one token, wherever it stands. The
    vocabulary is smaller than asked where the text has no more pairs to merge. `fills`: for an
    encoder, with a token that opens a text and one that masks; `sentinels`: for a T5, so many
    tokens that stand for hidden spans, at the top of the vocabulary, the first highest. Raises
    UserError for a vocabulary that does not hold the bytes, or without text.
    """
    special = SPECIAL
    if fills:
        special = (*SPECIAL, OPENING, MASK)
    least = 256 + len(special) + sentinels
    if vocab_size < least:
        raise UserError(
            f"{vocab_size} is too small",
            where="vocab_size",
            hint=f"the bytes and special tokens alone need {least}",
        )
    inner = _byte_level_bpe()
    balanced = _Balanced(texts)
    inner.train_from_iterator(balanced, trainer=_trainer(vocab_size - sentinels, special))
    if not balanced.characters:
        raise UserError("no text to learn a tokenizer from", where="data")
    add_special(inner, [SENTINEL.format(n) for n in reversed(range(sentinels))])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "model_max_length": 10**30,
    }
    if fills:
        config |= _as_encoder(inner)
    return Tokenizer(inner, config, OWN_TEMPLATE)


def _byte_level_bpe() -> Any:
    """BPE over bytes that has merged nothing yet."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def _trainer(vocab_size: int, special: Sequence[str]) -> Any:
    tokens = []
    for word in special:
        # the mask takes the space before it along: it stands for a word with its space
        lstrip = word == MASK
        tokens.append(tokenizers.AddedToken(word, special=True, normalized=False, lstrip=lstrip))
    return tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=tokens,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )


def _as_encoder(inner: Any) -> dict[str, Any]:
    """Makes the tokenizer put an encoder's tokens around a text; returns what its config has
    beside.
    """
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{OPENING} $A {END_OF_TEXT}",
        pair=f"{OPENING} $A {END_OF_TEXT} $B {END_OF_TEXT}",
        special_tokens=[(word, inner.token_to_id(word)) for word in (OPENING, END_OF_TEXT)],
    )
    return {
        "cls_token": OPENING,
        "sep_token": END_OF_TEXT,
        "mask_token": MASK,
        "model_input_names": ["input_ids", "attention_mask"],
    }


class _Balanced:
    """The texts, then capitalised words once more, so that each is as frequent without its leading
    space as with it.

    BPE merges what is frequent. A name is frequent after a space and rare at the start of a line or
    after a quotation mark, and would be spelt out there.
    """

    _CAPITALISED = re.compile(r" ?\b[A-Z][a-z]+")

    def __init__(self, texts: Iterable[str], most: int = 400) -> None:
        self.texts = texts
        self.most = most
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        counts: Counter[str] = Counter()
        for text in self.texts:
            self.characters += len(text)
            counts.update(self._CAPITALISED.findall(text))
            yield text
        for word in self._most_frequent(counts):
            missing = counts[" " + word] - counts[word]
            # Parts of a bounded size: a frequent word of a large corpus would make one huge string.
            if missing > 0:
                yield from _repeated(word + "\n", missing)
            else:
                yield from _repeated(" " + word, -missing)

    def _most_frequent(self, counts: Counter[str]) -> list[str]:
        """The words, without their leading space, that are there most often."""
        total: dict[str, int] = {}
        for spelling in counts:
            word = spelling.lstrip()
            total[word] = counts[word] + counts[" " + word]
        ranked = sorted(total, key=lambda word: (-total[word], word))
        return ranked[: self.most]


def _repeated(unit: str, times: int) -> Iterator[str]:
    while times > 0:
        yield unit * min(times, _LONGEST_PART)
        times -= _LONGEST_PART
