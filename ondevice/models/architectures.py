"""The architectures, and which of them a folder's `config.json` means. `network.py` says what all of them can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ondevice.errors import UserError
from ondevice.models.config import FAMILIES as DECODERS
from ondevice.models.config import DecoderConfig
from ondevice.models.encoder_config import ENCODERS, EncoderConfig
from ondevice.models.seq2seq_config import SEQ2SEQ, Seq2SeqConfig

ModelConfig = DecoderConfig | EncoderConfig | Seq2SeqConfig
_CONFIGS: dict[str, type[DecoderConfig] | type[EncoderConfig] | type[Seq2SeqConfig]] = {
    **dict.fromkeys(DECODERS, DecoderConfig), **dict.fromkeys(ENCODERS, EncoderConfig),
    **dict.fromkeys(SEQ2SEQ, Seq2SeqConfig)}


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """Raises UserError for an unknown family, or a field that we cannot honour."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _CONFIGS:
        raise UserError(f"unknown architecture {kind!r}", where="model_type", hint=f"known: {', '.join(_CONFIGS)}")
    if raw.get("quantization") or raw.get("quantization_config"):
        raise UserError("quantised weights cannot be trained here", where="quantization_config",
                        hint="take the folder with whole weights")
    return _CONFIGS[kind].parse(raw)


def load_config(folder: Path) -> ModelConfig:
    """Raises UserError where the folder holds no config, an unknown family, or a field that we cannot honour."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError("is no checkpoint: it holds no config.json", where=str(folder),
                        hint="give a Hugging Face model folder")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not JSON: {error}", where=str(file), hint="is the download whole?") from error
    if not isinstance(raw, dict):
        raise UserError("holds no JSON object", where=str(file), hint="give a Hugging Face model folder")
    try:
        return parse_config(raw)
    except UserError as error:
        raise UserError(error.message, where=f"{file}: {error.where}" if error.where else str(file),
                        hint=error.hint) from error
