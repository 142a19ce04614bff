"""Which fields of a `config.json` were read: whatever nobody asked for is harmless by name, or
refused.

A field that a forward pass does not know could change every number (`logits_scaling`, `clip_qkv`);
passed over, it would be trained around without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ondevice.common.errors import UserError


class Fields(dict[str, Any]):
    """A config's fields, by the names that the families share. `asked` collects the names that were
    read, as the file has them; reading is `get`, `[]` and `in`. `names`: a shared name → the
    file's, where it is another."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        asked: set[str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(fields)
        if asked is None:
            self.asked: set[str] = set()
        else:
            self.asked = asked
        self._names = names or {}

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._note(str(name))
        return super().__contains__(name)

    def with_defaults(self, usual: Mapping[str, Any], **changed: Any) -> Fields:
        """The same under what a family means where the file says nothing, and with `changed` in
        place of what it says; what is read of it counts as read here."""
        return Fields({**usual, **self, **changed}, self.asked, self._names)

    def renamed(self, names: Mapping[str, str]) -> Fields:
        """The same by other names, the file's → the shared ones."""
        return Fields(
            {names.get(name, name): value for name, value in self.items()},
            self.asked,
            {shared: own for own, shared in names.items()},
        )

    def _note(self, name: str) -> None:
        self.asked |= {name, self._names.get(name, name)}


# Fields that change nothing of what is computed here, each with its reason. A name that is not here
# and that no reader asks for is refused; where only some values are harmless, the reader asks for
# it and compares.
_ABOUT = "says what the folder is, where it is from, or how some program is to load it"
_GENERATION = (
    "a setting of generation, which old folders keep here; generation_config.json has them now"
)
_OUTPUT = "what transformers' own forward returns beside the logits, or how it keeps memory low"
_DROPOUT = "dropout, which is for training alone; models are trained without it here"
_START = "how new weights are drawn; these are there"
_HEADS = "of a head for another task, which is not built here"
_DERIVED = "follows from another field, which is read"
_PATTERN = "which layers have a window, where another field says that none has"

HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "_name_or_path",
            "_model_name_or_path",
            "name_or_path",
            "architectures",
            "auto_map",
            "transformers_version",
            "model_type",
            "task_specific_params",
            "finetuning_task",
            "tokenizer_class",
            "prefix",
            "custom_pipelines",
            "transformers.js_config",
            "unsloth_fixed",
            "unsloth_version",
            "is_llama_config",
            "language",
            "license",
            "library_name",
            "_commit_hash",
            "save_step",
            "sentence_transformers",
            "n_special",
            "predict_special_tokens",
            "max_sequence_length",
            "seq_length",
            "xla_device",
            "dtype",
            "torch_dtype",
            "id2label",
            "label2id",
            "num_labels",
            "_num_labels",
            "problem_type",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "sep_token_id",
            "cls_token_id",
            "unk_token_id",
            "mask_token_id",
            "decoder_start_token_id",
            "vocab_size",
            "quantization",
            "quantization_config",
        ),
        _ABOUT,
    ),
    **dict.fromkeys(
        (
            "max_length",
            "min_length",
            "max_new_tokens",
            "min_new_tokens",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "bad_words_ids",
            "num_return_sequences",
            "output_scores",
            "return_dict_in_generate",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "force_bos_token_to_be_generated",
            "remove_invalid_values",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "cache_implementation",
            "renormalize_logits",
        ),
        _GENERATION,
    ),
    **dict.fromkeys(
        (
            "return_dict",
            "output_hidden_states",
            "output_attentions",
            "output_past",
            "output_router_logits",
            "torchscript",
            "use_bfloat16",
            "tf_legacy_loss",
            "use_cache",
            "gradient_checkpointing",
            "chunk_size_feed_forward",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_flash_attn_2_enabled",
            "deterministic_flash_attn",
            "reference_compile",
            "repad_logits_with_grad",
            "use_flash_attn",
            "use_flash_attention_2",
            "pretraining_tp",
            "reorder_and_upcast_attn",
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        (
            "attention_dropout",
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "summary_first_dropout",
            "hidden_dropout",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "classif_dropout",
            "embedding_dropout",
            "mlp_dropout",
            "dropout_rate",
            "dropout",
            "activation_dropout",
            "encoder_layerdrop",
            "decoder_layerdrop",
            "layerdrop",
        ),
        _DROPOUT,
    ),
    **dict.fromkeys(
        ("initializer_range", "initializer_factor", "initializer_cutoff_factor", "init_std"), _START
    ),
    **dict.fromkeys(
        (
            "summary_activation",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "sparse_prediction",
            "sparse_pred_ignore_index",
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
            "classifier_pooling",
            "classifier_activation",
        ),
        _HEADS,
    ),
    **dict.fromkeys(
        ("n_ctx", "num_hidden_layers", "max_position_embeddings", "no_rope_layer_interval"),
        _DERIVED,
    ),
    **dict.fromkeys(
        (
            "max_window_layers",
            "sliding_window",
            "use_sliding_window",
            "layer_types",
            "sliding_window_pattern",
            "_sliding_window_pattern",
            "rope_local_base_freq",
        ),
        _PATTERN,
    ),
}


def refuse_unread(fields: Fields, where: str = "") -> None:
    """Raises UserError for a field that nobody has asked for and that is not known to be harmless;
    one that is null says nothing."""
    for name in unread(fields, HARMLESS):
        raise UserError(
            f"{dict.__getitem__(fields, name)!r} is said of a field that is not known here, and could "
            "change what the model computes",
            where=f"{where}{name}",
            hint="take the line out if it changes no number",
        )


def unread(fields: Fields, harmless: Iterable[str] = ()) -> list[str]:
    """The fields that say something and that nobody has asked for, but those known as harmless."""
    known = set(harmless)
    return [
        name
        for name, value in fields.items()
        if value is not None and name not in fields.asked and name not in known
    ]
