"""The settings of looking at data before a model learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.common.errors import UserError
from ondevice.config.effects import one_of, only, refuse_idle
from ondevice.config.rows import RowsConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs

_LABELLED = (
    one_of("form", "auto", "label"),
    "it names a column of rows of the form label",
    "give --form label, or leave it out",
)
_THROUGH_TEMPLATE = (
    one_of("form", "auto", "chat", "preference", "judged", "prompt"),
    "text and label are read without a chat template",
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig, WithTemplateKwargs):
    """Data as a model will see it: examples with what is learned of them marked, and counts."""

    action: Literal["show"]
    """show: a few examples, and how many rows can be used."""
    data: str
    """A file, a folder (of documents too), or hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]."""
    model: str = ""
    """The model that is to learn from it: its tokenizer and chat template decide what it sees. Empty,
    of documents: what is read of them, and what is left out."""
    validation: str = ""
    """What a stage is to measure on: rows that are in it are counted apart, as no stage learns from
    them. Empty: none are."""
    form: Literal["auto", "text", "label", "chat", "preference", "judged", "prompt"] = "auto"
    """What the rows are to be: text (pretrain), label (classify), chat (sft), preference (reward,
    dpo), judged (dpo with loss_type kto) or prompt (grpo, ppo). auto: what the first row of a known
    form is; for an encoder or a classifier text with a label is label."""
    text: str = only("text", *_LABELLED)
    """Column of the text (label)."""
    pair: str = only("", *_LABELLED)
    """Column of a second text that is read beside the first (label). Empty: none."""
    label: str = only("label", *_LABELLED)
    """Column of the class (label)."""
    examples: int = 3
    """Examples that are shown."""
    limit: int = 10_000
    """Rows that are counted at most; 0: all."""
    sequence_length: int = only(0, lambda cfg: cfg.form != "prompt", "prompts are not cut")
    """Tokens of a row, beyond which it is cut; 0: what the stage has by default."""
    chat_template: str = only("", *_THROUGH_TEMPLATE)
    """Name of a template for a model that has none: chatml, plain or bare."""
    separator: str = only(
        "",
        one_of("form", "auto", "text"),
        "it ends documents of text",
        "leave it out, or give --form text",
    )
    """Text that ends a document, such as '<|endoftext|>': it becomes the end token, and is not
    learned as text.
    """
    chat_template_kwargs: str = only("", *_THROUGH_TEMPLATE)
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'. A
    row's own column of this name wins."""
    color: Literal["auto", "always", "never"] = "auto"
    """Mark what is learned by colour. auto: on a terminal, unless NO_COLOR is set. Without colours:
    by brackets.
    """

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.data:
            raise UserError(
                "no data was named", where="data", hint="ondevice data show FILE --model MODEL"
            )
        parse_template_kwargs(self.chat_template_kwargs)
        self.check_rows()
        for name in ("examples", "limit", "sequence_length"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint="give 0 or more"
                )
        refuse_idle(self)
