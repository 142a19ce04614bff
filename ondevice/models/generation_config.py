"""What a model's folder says of generation: generation_config.json, of an adapter its own and its
base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ondevice.common.json_files import read_json
from ondevice.models.model_folder import whole_folder

GENERATION = "generation_config.json"

# Folders from before generation_config.json say it in config.json, among all else. These are
# transformers' names.
_NAMES = (
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)


_IDS = "a token, which is read with the model"
_DRAWING = "how is drawn; the commands' own settings are held against it, or take it"
_BEAMS = "of a search with beams alone, which reads it"
_LENGTH = "how long an answer may be is a setting of its own here"
_OUTPUT = "what transformers returns beside the texts, or how many of them"
_SPEED = "how the same texts are written sooner, or in less memory"
_NUMBERS = "leaves the order of the tokens as it is"
_ABOUT = "says where the file is from"
HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
        ),
        _IDS,
    ),
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"), _DRAWING),
    **dict.fromkeys(
        ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"), _BEAMS
    ),
    **dict.fromkeys(("max_length", "max_new_tokens", "max_time"), _LENGTH),
    **dict.fromkeys(
        (
            "num_return_sequences",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
            "return_legacy_cache",
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        (
            "use_cache",
            "cache_implementation",
            "cache_config",
            "max_cache_len",
            "low_memory",
            "prefill_chunk_size",
            "compile_config",
            "disable_compile",
            "continuous_batching_config",
            "is_assistant",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "assistant_lookbehind",
            "target_lookbehind",
            "prompt_lookup_num_tokens",
            "max_matching_ngram_size",
            "speculation_type",
            "use_mtp",
        ),
        _SPEED,
    ),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values"), _NUMBERS),
    **dict.fromkeys(("transformers_version",), _ABOUT),
}
"""Settings that change no text here, or that are read, each with its reason. One that stands
neither here nor in what a way of writing leaves out is not known, and told of."""


def left_out(
    said: Mapping[str, Any], without: Mapping[str, Any], read: Mapping[str, Any] | None = None
) -> list[str]:
    """Names that a file asks for and that a way of writing does without: `without` has names with
    what says nothing, `read` those that this way honours. A name that nobody knows is among them.
    """
    found = [name for name, usual in without.items() if said.get(name) not in (None, usual)]
    known = {*without, *HARMLESS, *(read or ())}
    return found + [
        name
        for name, value in said.items()
        if name not in known and not name.startswith("_") and value not in (None, False, [], {})
    ]


def generation_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json, or where there is none what config.json says of the same. Raises
    UserError for a file that holds no JSON object."""
    file = folder / GENERATION
    if file.is_file():
        return read_json(file)
    said = read_json(folder / "config.json")
    return {name: said[name] for name in _NAMES if said.get(name) is not None}


def generation_of(folder: Path) -> dict[str, Any]:
    """What generation_config.json of a model's folder says, of an adapter's its base's under its
    own. Raises UserError for a file that cannot be read, and where an adapter's base is not to be
    had."""
    base = whole_folder(folder)
    return {
        **generation_settings(base),
        **({} if folder == base else read_json(folder / GENERATION)),
    }


def settings_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the file that says it, what it says): an adapter's own file goes before its base's; old
    folders say it in config.json. Raises UserError for a file that cannot be read, and where an
    adapter's base is not to be had."""
    base = whole_folder(folder)
    own = folder != base and (folder / GENERATION).is_file()
    return (folder if own else base) / GENERATION, generation_of(folder)
