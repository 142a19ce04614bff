"""A small tokenizer of each kind that published folders bring, without a chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_samples import TEXTS, small_tokenizer
from ondevice.data.tokenizer import Tokenizer

# Letters and digits alone and in the middle of words too, so that no kind is without a token for
# one.
ALPHABET = [f"{a} x{a} " for a in "abcdefghijklmnopqrstuvwxyz0123456789"]
SPOKEN = [f'w{n}x fun{n}x tool{n}x <|{n}|> {{"a": ["w{n}x", true]}}\n' for n in range(200)]
WORDS = [*TEXTS, *TEXTS, *ALPHABET, *SPOKEN]
PIECES = ["<unk>", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _bpe(*special: str) -> tuple[Any, Any]:
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    return inner, trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *BYTES], show_progress=False
    )


def _trained(inner: Any, trainer: Any, **config: Any) -> Tokenizer:
    inner.train_from_iterator(WORDS, trainer=trainer)
    return Tokenizer(_plain_bytes(inner), {"tokenizer_class": "PreTrainedTokenizerFast", **config})


def _plain_bytes(inner: Any) -> Any:
    """Tokens of single bytes are pieces of the vocabulary, not special tokens that a text might
    spell.
    """
    raw = json.loads(inner.to_str())
    raw["added_tokens"] = [
        token for token in raw["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


def _sentencepiece(**config: str) -> dict[str, str]:
    return {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        **config,
    }


def llama2() -> Tokenizer:
    """BPE with single bytes; a normalizer writes ▁ for spaces and before each text."""
    inner, trainer = _bpe(*PIECES)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Without a pre-tokenizer a line would be learned as one piece.
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made = _trained(inner, trainer, **_sentencepiece())
    made.inner.pre_tokenizer = None
    return Tokenizer(made.inner, made.config)


def mistral() -> Tokenizer:
    """BPE with single bytes; a pre-tokenizer writes ▁ before the first word alone."""
    inner, trainer = _bpe(*PIECES)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made = _trained(inner, trainer, **_sentencepiece())
    made.inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return Tokenizer(made.inner, made.config)


def gemma() -> Tokenizer:
    """BPE with single bytes; spaces become ▁, and nothing is put before a text."""
    inner, trainer = _bpe("<pad>", "<eos>", "<bos>", "<unk>")
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _trained(
        inner, trainer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def unigram() -> Tokenizer:
    """T5's: Unigram, ▁ before every word, look-alikes folded, several spaces taken for one."""
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    return _trained(inner, trainer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def wordpiece() -> Tokenizer:
    """BERT's: lower case, accents stripped, words apart from signs."""
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=list(words), show_progress=False
    )
    named = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), words, strict=True)
    )
    return _trained(inner, trainer, **named)


def byte_level_with_space() -> Tokenizer:
    """RoBERTa's way with `add_prefix_space`: a space before the first word of each text."""
    made = small_tokenizer()
    inner = tokenizers.Tokenizer.from_str(made.inner.to_str())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return Tokenizer(inner, made.config)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": small_tokenizer,
    "byte-level with a space": byte_level_with_space,
    "llama2": llama2,
    "mistral": mistral,
    "gemma": gemma,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


@lru_cache(maxsize=len(KINDS))
def of_kind(kind: str) -> Tokenizer:
    """The tokenizer of a kind; treat it as read-only."""
    return KINDS[kind]()
