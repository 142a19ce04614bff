"""The setting `chat_template_kwargs`: names and values for a chat template, as JSON. Standard
library only.

A recipe and the Python API may give it as a mapping too. It is kept as JSON, so that a run that
gave it the one way is resumed the other way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json

TAKEN = ("messages", "tools", "add_generation_prompt")
"""What a template is always given, and no setting may be."""


def parse_template_kwargs(value: str) -> dict[str, Any]:
    """Names and values; none for an empty setting. Raises UserError for what is not a JSON object,
    and for a name that is taken."""
    if not value:
        return {}
    try:
        kwargs = parse_json(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"is not JSON: {error}",
            where="chat_template_kwargs",
            hint="write '{\"enable_thinking\": false}'",
        ) from error
    if not isinstance(kwargs, dict):
        raise UserError(
            "is not a JSON object",
            where="chat_template_kwargs",
            hint="write '{\"enable_thinking\": false}'",
        )
    if taken := [name for name in TAKEN if name in kwargs]:
        raise UserError(
            f"cannot give {taken[0]}",
            where="chat_template_kwargs",
            hint="it is given to every template",
        )
    return kwargs


def kwargs_text(value: Any) -> Any:
    """JSON of a mapping, empty for an empty one; anything else as it is. Raises UserError for a
    mapping that JSON cannot write."""
    if not isinstance(value, Mapping):
        return value
    if odd := [name for name in value if not isinstance(name, str)]:
        raise UserError(
            f"{odd[0]!r} is not a name", where="chat_template_kwargs", hint="put it in quotes"
        )
    try:
        if value:
            return json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        return ""
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot be written as JSON: {error}",
            where="chat_template_kwargs",
            hint="give texts, numbers, true or false, and lists and mappings of these",
        ) from error


class WithTemplateKwargs:
    """A config that has the setting; a mapping becomes its text."""

    chat_template_kwargs: str
    reads: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"chat_template_kwargs": kwargs_text}

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_template_kwargs", kwargs_text(self.chat_template_kwargs))
