"""In which order and under which heading a form has its fields: what everybody sets first, the rest
in groups."""

from __future__ import annotations

from collections.abc import Iterable

from ondevice_tui.fields import FieldSpec

BASICS = (
    "recipe",
    "time",
    "text",
    "chats",
    "problems",
    "model",
    "reward_model",
    "other",
    "data",
    "validation",
    "tokenizer",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "rater",
    "rewards",
    "prompts",
    "responses",
    "steps",
    "epochs",
    "learning_rate",
    "batch_size",
    "sequence_length",
    "max_new_tokens",
    "temperature",
    "adapter",
    "out",
)
"""Fields that a form begins with, in this order."""
FIRST = "basics"
_MEASURING = {
    "eval_every",
    "eval_batches",
    "sample_every",
    "sample_prompts",
    "save_every",
    "keep",
    "push_every",
    "push_to",
    "patience",
    "take_best",
}
_DATA = {"limit", "held_share", "separator", "text", "pair", "label", "chat_template_kwargs"}
_BY_CLASS = {
    "RowsConfig": "data",
    "TuningConfig": "adapter",
    "TrainingConfig": "optimizer",
    "StageConfig": "machine",
    "RunConfig": "machine",
}
_ORDER = ("data", "optimizer", "adapter", "measuring and saving", "machine")


def in_groups(verb: str, cls: type, specs: Iterable[FieldSpec]) -> dict[str, list[FieldSpec]]:
    """Heading → its fields: the basics, what the stage has of its own, and what it shares with
    others. Every field stands under one heading."""
    declared: dict[str, str] = {}
    for base in cls.__mro__:
        for name in vars(base).get("__annotations__", {}):
            declared.setdefault(name, base.__name__)
    found: dict[str, list[FieldSpec]] = {FIRST: [], verb: []}
    for name in _ORDER:
        found[name] = []
    for spec in specs:
        found[_group(verb, spec.name, declared.get(spec.name, ""))].append(spec)
    found[FIRST].sort(key=lambda spec: BASICS.index(spec.name))
    return {name: fields for name, fields in found.items() if fields}


def _group(verb: str, name: str, declared: str) -> str:
    if name in BASICS:
        return FIRST
    if name in _MEASURING:
        return "measuring and saving"
    if name in _DATA:
        return "data"
    return _BY_CLASS.get(declared, verb)
