"""Which tokens of a folder's tokenizer are special: those that a file names or gives the ids of, and
those that transformers' class for the family has where no file names any.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
"""The names that tokenizer_config.json has for special tokens."""
_MOST_IDS = 1 << 32  # what the library takes as an id
_LISTED = ("additional_special_tokens", "extra_special_tokens")

# What published folders leave to transformers' class of a tokenizer, by config.json's model_type.
_PIECES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_USUAL: dict[Any, dict[str, str]] = {
    "bert": {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    },
    "t5": _PIECES,
    "mt5": _PIECES,
    "bart": {
        **_PIECES,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
}


def content_of(value: Any) -> str | None:
    """A named token is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if isinstance(value, str):
        return value
    return None


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name → content of the special tokens that tokenizer_config.json names."""
    found: dict[str, str] = {}
    for name in NAMED:
        word = content_of(config.get(name))
        if word is not None:
            found[name] = word
    return found


def unnamed_tokens(
    inner: Any, config: Mapping[str, Any], model_configs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Name → content of the special tokens that the vocabulary has and tokenizer_config.json does
    not name. `model_configs` are generation_config.json and config.json."""
    usual = _USUAL.get(model_configs[1].get("model_type"), {})
    if not usual:
        usual = _named_by_ids(inner, config, model_configs)
    found: dict[str, str] = {}
    for name, word in usual.items():
        if config.get(name) is None and inner.token_to_id(word) is not None:
            found[name] = word
    return found


def _named_by_ids(
    inner: Any, config: Mapping[str, Any], model_configs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The names of special tokens where a folder has their ids alone, as GPT-2's: all where the
    tokenizer's own files name none, else the end of text."""
    if any(named_tokens(config).values()):
        wanted: tuple[str, ...] = ("eos_token",)
    else:
        wanted = ("eos_token", "bos_token", "pad_token")
    found: dict[str, str] = {}
    for name in wanted:
        if name in config:
            continue
        first = _first_id(model_configs, f"{name}_id")
        word = None
        if isinstance(first, int) and 0 <= first < _MOST_IDS:
            word = inner.id_to_token(first)
        if word is not None:
            found[name] = word
    return found


def _first_id(model_configs: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The first id that the files give under `key`, alone or as a list; None where there is none."""
    for config in model_configs:
        value = config.get(key)
        if value is None or value == []:
            continue
        if isinstance(value, list):
            return value[0]
        return value
    return None


def stop_ids_of(inner: Any, model_configs: Iterable[Mapping[str, Any]]) -> list[int]:
    """The ids that end a text according to the files, those that the tokenizer has, each once.
    Raises UserError for what is not an id: the model would not stop where it should.
    """
    listed: list[int] = []
    for config in model_configs:
        ids = config.get("eos_token_id")
        if ids is None:
            continue
        for i in ids if isinstance(ids, list) else [ids]:
            if not isinstance(i, int) or isinstance(i, bool):
                raise UserError(
                    f"has {i!r:.40}, which is not the id of a token",
                    where="eos_token_id of the model's config.json or generation_config.json",
                    hint="is the download whole?",
                )
            listed.append(i)
    possible = [i for i in dict.fromkeys(listed) if 0 <= i < _MOST_IDS]
    return [i for i in possible if inner.id_to_token(i) is not None]


def need_tokens(
    inner: Any, config: Mapping[str, Any], templates: Collection[str], where: str
) -> None:
    """Raises UserError where the end of text, or a special token that a chat template writes, has a
    name and no id: its letters would be learned in its place."""
    names = dict.fromkeys(_listed(config, where), "")
    for name, word in named_tokens(config).items():
        if word:
            names[word] = name
    known = inner.get_vocab(with_added_tokens=True)
    for word, name in names.items():
        if word in known:
            continue
        if name == "eos_token" or _is_written(word, name, templates):
            raise UserError(
                f"the special token {word!r} is named and has no id",
                where=where,
                hint="add it to tokenizer.json with transformers and give the model a row for it, or take "
                "the name out of tokenizer_config.json",
            )


def _listed(config: Mapping[str, Any], where: str) -> Iterator[str]:
    """The further special tokens that the config lists. Raises UserError for what is not a list."""
    for key in _LISTED:
        some = config.get(key) or ()
        if isinstance(some, dict):
            some = some.values()
        elif not isinstance(some, (list, tuple)):
            raise UserError(f"{some!r:.60} is not a list of tokens", where=f"{where}: {key}")
        for one in some:
            word = content_of(one)
            if word:
                yield word


def _is_written(word: str, name: str, templates: Collection[str]) -> bool:
    """Whether a chat template writes the token, by its content or by its name."""
    for text in templates:
        if word in text:
            return True
        if name and name in text:
            return True
    return False


def added_word(inner: Any, i: int) -> str | None:
    """The content of an added token; None where the id is not one."""
    token = inner.get_added_tokens_decoder().get(i)
    if token is None:
        return None
    return str(token.content)


def flagged(inner: Any, words: Collection[str | None]) -> Any:
    """The tokenizer with these words as special tokens at the ids that they have: what a folder
    names, stops at or puts around a message is special whatever its flag says, as in transformers,
    and no text becomes one."""
    added = {token.content: token for token in inner.get_added_tokens_decoder().values()}
    plain: list[str] = []
    for word in dict.fromkeys(words):
        if word is None:
            continue
        if word in added:
            changes = not added[word].special
        else:
            changes = inner.token_to_id(word) is not None
        if changes:
            plain.append(word)
    if not plain:
        return inner
    config = parse_json(inner.to_str())
    for token in config["added_tokens"]:
        token["special"] = token["special"] or token["content"] in plain
    made = tokenizers.Tokenizer.from_str(json.dumps(config, ensure_ascii=False))
    add_special(made, [word for word in plain if word not in added])
    return made


def add_special(inner: Any, words: Iterable[str]) -> None:
    """Adds special tokens, each spelt as it is."""
    tokens = [tokenizers.AddedToken(word, special=True, normalized=False) for word in words]
    inner.add_special_tokens(tokens)


def without_special_pieces(raw: str) -> str:
    """A Unigram's file in which a special token that is one of its pieces, and so found in a text
    that spells it, has a name that no text has."""
    config = parse_json(raw)
    special = {token["content"] for token in config["added_tokens"] if token["special"]}
    hidden: set[str] = set()
    pieces: list[tuple[str, float]] = []
    for word, score in config["model"]["vocab"]:
        if word in special:
            hidden.add(word)
            pieces.append((f"\ufdd3 {word}", score))
        else:
            pieces.append((word, score))
    config["model"]["vocab"] = pieces
    config["added_tokens"] = [t for t in config["added_tokens"] if t["content"] not in hidden]
    return json.dumps(config, ensure_ascii=False)
