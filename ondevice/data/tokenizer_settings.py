"""What tokenizer_config.json says of normalising a text, where tokenizer.json beside it says
something else.

transformers' classes of tokenizers build these parts anew from the config's settings, or from the
class's defaults where the config is silent; what tokenizer.json says is dropped (5.24; 4.x rewrites
the same settings). So do we, and a folder that is saved has one and the same in both files. Other
classes (PreTrainedTokenizerFast) follow tokenizer.json alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json

_LOWERCASING = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_BYTE_LEVEL = (
    "GPT2Tokenizer",
    "RobertaTokenizer",
    "BartTokenizer",
    "LongformerTokenizer",
    "LEDTokenizer",
)
_SENTENCEPIECE = ("LlamaTokenizer",)
# The class that transformers takes where no file names one, by config.json's model_type.
_BY_TYPE = {"bert": "BertTokenizer", "bart": "RobertaTokenizer", "gpt2": "GPT2Tokenizer"}
# tokenizer.json's name for a setting of tokenizer_config.json, and its default.
_BERT: dict[str, tuple[str, Any]] = {
    "lowercase": ("do_lower_case", True),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
    "strip_accents": ("strip_accents", None),
}


def with_settings(
    inner: Any, config: Mapping[str, Any], model_config: Mapping[str, Any], where: str
) -> Any:
    """The tokenizer as `config` (tokenizer_config.json) sets it; `model_config` is config.json.
    Raises UserError for a setting of the wrong kind, and for one that would need another
    tokenizer.json."""
    kind = _class_of(
        config.get("tokenizer_class") or model_config.get("tokenizer_class"),
        str(model_config.get("model_type")),
    )
    if kind in _LOWERCASING:
        return _changed(inner, "normalizer", "BertNormalizer", _bert_settings(config, where))
    if kind in _BYTE_LEVEL:
        space = _flag(config, "add_prefix_space", False, where)
        return _changed(inner, "pre_tokenizer", "ByteLevel", {"add_prefix_space": space})
    if kind in _SENTENCEPIECE:
        _need_same_prefix(inner, config, where)
    return inner


def has_types(config: Mapping[str, Any], model_type: str) -> bool:
    """Whether transformers' tokenizer says of each token of two texts which one it is of
    (`token_type_ids`).
    """
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return _class_of(config.get("tokenizer_class"), model_type) in _LOWERCASING


def _class_of(named: Any, model_type: str) -> str:
    """transformers' class for what a file names, or for the type of the model."""
    if not isinstance(named, str):
        named = _BY_TYPE.get(model_type, "")
    return str(named.removesuffix("Fast"))


def _bert_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {theirs: _flag(config, ours, usual, where) for theirs, (ours, usual) in _BERT.items()}


def _flag(config: Mapping[str, Any], name: str, usual: bool | None, where: str) -> bool | None:
    value = config.get(name, usual)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{value!r} is neither true nor false", where=f"{where}: {name}")
    if value is None:
        return usual
    return value


def _changed(inner: Any, part: str, kind: str, settings: Mapping[str, Any]) -> Any:
    """The tokenizer itself, or, where its parts of this kind say something else, one that says
    `settings`.
    """
    of_kind = [one for one in _parts(_state(getattr(inner, part))) if one.get("type") == kind]
    if all(_says(one, settings) for one in of_kind):
        return inner
    raw = parse_json(inner.to_str())
    for one in _parts(raw[part]):
        if one.get("type") == kind:
            one.update(settings)
    return tokenizers.Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))


def _says(part: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return all(part.get(name) == value for name, value in settings.items())


def _state(part: Any) -> Any:
    """What tokenizer.json says of a part, without reading the vocabulary again."""
    if part is None:
        return None
    return parse_json(part.__getstate__())


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or those that it is a sequence of."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers"):
            for one in part.get(name) or ():
                yield from _parts(one)


def _need_same_prefix(inner: Any, config: Mapping[str, Any], where: str) -> None:
    """Raises UserError where the config says of the space before a text what tokenizer.json does
    not. (transformers makes another pre-tokenizer then; a byte-level one it leaves alone.)"""
    wanted = _flag(config, "add_prefix_space", None, where)
    parts = [*_parts(_state(inner.normalizer)), *_parts(_state(inner.pre_tokenizer))]
    if wanted is None or any(part.get("type") == "ByteLevel" for part in parts):
        return
    puts_space = any(map(_puts_space, parts))
    if puts_space != wanted:
        does = "puts a space" if puts_space else "puts none"
        raise UserError(
            f"is {str(wanted).lower()}, and tokenizer.json beside it {does} before a text",
            where=f"{where}: add_prefix_space",
            hint="let transformers write the folder anew: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER)",
        )


def _puts_space(part: Mapping[str, Any]) -> bool:
    """Whether a part of a tokenizer puts a space before a text."""
    return part.get("type") == "Prepend" or part.get("prepend_scheme", "never") != "never"
