"""The architectures, and which of them a folder's `config.json` means. `network.py` says what all
of them can do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import load_json
from ondevice.models.decoder_config import FAMILIES as DECODERS
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.encoder_config import ENCODERS, EncoderConfig
from ondevice.models.external_config import LibraryConfig
from ondevice.models.seq2seq_config import SEQ2SEQ, Seq2SeqConfig

ModelConfig = DecoderConfig | EncoderConfig | Seq2SeqConfig | LibraryConfig
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
_MOST_LAYERS, _MOST = 10_000, 2**31 - 1
_FREE = ("model_max_length", "max_length", "max_new_tokens")
"""Fields that say "as many as there are" by a number beyond all others, and that are not read."""
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
    _check_sizes(raw)
    _check_quantisation(raw)
    if kind in _CONFIGS:
        return _CONFIGS[kind].parse(raw)
    return LibraryConfig.parse(raw)


def _check_sizes(raw: dict[str, Any]) -> None:
    """Raises UserError for a number that no model has: layers are listed before any tensor is
    looked at, and positions are counted in 32 bits."""
    for name, value in raw.items():
        most = _MOST_LAYERS if name in _LAYERS else _MOST
        if isinstance(value, int) and not -_MOST <= value <= most and name not in _FREE:
            # a number of 400 digits is no float
            said = f"{value:.3g}" if value.bit_length() < 1000 else "a number of hundreds of digits"
            raise UserError(f"{said} is more than {most:,}", where=name)


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
    if isinstance(format, dict):
        mode = format.get("mode", "affine")
    else:
        mode = format
    if (
        not isinstance(format, dict)
        or mode != "affine"
        or "bits" not in format
        or "quant_method" in format
    ):
        if isinstance(format, dict):
            kind = format.get("quant_method", mode)
        else:
            kind = format
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
        raw = load_json(file)
    except (OSError, ValueError) as error:
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
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # a list where a number belongs, within what no check names
        raise UserError(
            f"a field holds what none can hold: {type(error).__name__}: {error}",
            where=str(file),
            hint="is the download whole?",
        ) from error
