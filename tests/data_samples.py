"""A small tokenizer and small chats for the tests of ondevice.data."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest

from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer

TEXTS = [
    "Anna lives in Rome. Anna likes red apples, and Ben likes green pears.\nBen: 12 + 34 = 46.\n",
    "The list is: Anna, Ben, Carla. Again: Anna, Ben, Carla.\n\nWhere does Carla live? Carla lives in Oslo.\n",
    'She said "Anna is here" and "Ben is not". Don\'t they\'ll we\'ve? Größe, naïve, 東京, 🙂 are words too.\n',
] * 6

CHATS = [
    [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is 4."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where does Anna live?"},
        {"role": "assistant", "content": "In Rome."},
        {"role": "user", "content": "And Ben?"},
        {"role": "assistant", "content": "\nI don't know; 東京 🙂?\n"},
    ],
    [
        {"role": "user", "content": "  spaces around  "},
        {"role": "assistant", "content": "  and here "},
        {"role": "user", "content": "\n"},
        {"role": "assistant", "content": ""},
    ],
]


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """Our own tokenizer with our own template; treat it as read-only."""
    return train_tokenizer(TEXTS, 420)


def transformers_tokenizer(tokenizer: Tokenizer, folder: Path) -> object:
    """The same tokenizer, loaded by transformers from what we save."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def real_data(name: str) -> Path:
    """A file of real data; skips where ONDEVICE_DATA names no folder that has it."""
    folder = os.environ.get("ONDEVICE_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"set ONDEVICE_DATA to a folder that holds {name}")
    return Path(folder) / name
