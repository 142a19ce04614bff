"""The architectures, and which of them a folder's `config.json` means. `network.py` says what all
of them can do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.models.decoder_config import FAMILIES as DECODERS
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import ENCODERS, EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.seq2seq_config import SEQ2SEQ, Seq2SeqConfig

ModelConfig = DecoderConfig | EncoderConfig | Seq2SeqConfig | LibraryConfig
_CONFIGS: dict[str, type[DecoderConfig] | type[EncoderConfig] | type[Seq2SeqConfig]] = {
    **dict.fromkeys(DECODERS, DecoderConfig),
    **dict.fromkeys(ENCODERS, EncoderConfig),
    **dict.fromkeys(SEQ2SEQ, Seq2SeqConfig),
}


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """Of one of our families, or of one that the backend's library may know. Raises UserError where
    no family is named, or for a field that we cannot honour."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise UserError(
            f"unknown architecture {kind!r}",
            where="model_type",
            hint=f"known: {', '.join(_CONFIGS)}",
        )
    for name in ("architectures", "layer_types"):
        if not isinstance(raw.get(name), list | None):
            raise UserError(f"{raw[name]!r} is not a list", where=name)
    _check_quantisation(raw)
    if kind in _CONFIGS:
        return _CONFIGS[kind].parse(raw)
    return LibraryConfig.parse(raw)


def _check_quantisation(raw: dict[str, Any]) -> None:
    """Raises UserError for weights that are packed in another way than mlx-lm's affine one, known
    of decoders alone.
    """
    format = raw.get("quantization") or raw.get("quantization_config")
    if not format:
        return
    if raw["model_type"] not in DECODERS:
        raise UserError(
            f"quantised weights of a {raw['model_type']} model are not known here",
            where="quantization_config",
            hint="take the folder with whole weights",
        )
    mode = format.get("mode", "affine") if isinstance(format, dict) else format
    if (
        not isinstance(format, dict)
        or mode != "affine"
        or "bits" not in format
        or "quant_method" in format
    ):
        kind = format.get("quant_method", mode) if isinstance(format, dict) else format
        raise UserError(
            f"weights that are quantised as {kind!r} are not known here",
            where="quantization_config",
            hint="take the folder with whole weights, or one of mlx-community's with 4 or 8 bits",
        )


def load_config(folder: Path) -> ModelConfig:
    """Raises UserError where the folder holds no config, names no family, or a field that we cannot
    honour.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            "is not a checkpoint: it holds no config.json",
            where=str(folder),
            hint="give a Hugging Face model folder",
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"is not JSON: {error}", where=str(file), hint="is the download whole?"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            "holds no JSON object", where=str(file), hint="give a Hugging Face model folder"
        )
    try:
        return parse_config(raw)
    except UserError as error:
        raise UserError(
            error.message,
            where=f"{file}: {error.where}" if error.where else str(file),
            hint=error.hint,
        ) from error
