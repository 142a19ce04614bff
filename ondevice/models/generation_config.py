"""What a model's folder says of generation: generation_config.json, of an adapter its own and its base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ondevice.common.json_files import read_json
from ondevice.models.model_folder import whole_folder

GENERATION = "generation_config.json"

# Folders from before generation_config.json say it in config.json, among all else. These are transformers' names.
_NAMES = (
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens")


def generation_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json, or where there is none what config.json says of the same. Raises UserError for a file
    that holds no JSON object."""
    file = folder / GENERATION
    if file.is_file():
        return read_json(file)
    said = read_json(folder / "config.json")
    return {name: said[name] for name in _NAMES if said.get(name) is not None}


def generation_of(folder: Path) -> dict[str, Any]:
    """What generation_config.json of a model's folder says, of an adapter's its base's under its own. Raises UserError
    for a file that cannot be read, and where an adapter's base is not to be had."""
    base = whole_folder(folder)
    return {**generation_settings(base), **({} if folder == base else read_json(folder / GENERATION))}


def settings_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the file that says it, what it says): an adapter's own file goes before its base's; old folders say it in
    config.json. Raises UserError for a file that cannot be read, and where an adapter's base is not to be had."""
    base = whole_folder(folder)
    own = folder != base and (folder / GENERATION).is_file()
    return (folder if own else base) / GENERATION, generation_of(folder)
