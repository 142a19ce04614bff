"""The setting `chat_template_kwargs`: names and values for a chat template, as JSON. Standard library only."""

from __future__ import annotations

import json
from typing import Any

from ondevice.common.errors import UserError

TAKEN = ("messages", "tools", "add_generation_prompt")
"""What a template is always given, and no setting may be."""


def parse_template_kwargs(value: str) -> dict[str, Any]:
    """Names and values; none for an empty setting. Raises UserError for what is not a JSON object, and for a name that
    is taken."""
    if not value:
        return {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON: {error}", where="chat_template_kwargs",
                        hint="write '{\"enable_thinking\": false}'") from error
    if not isinstance(found, dict):
        raise UserError("is not a JSON object", where="chat_template_kwargs",
                        hint="write '{\"enable_thinking\": false}'")
    if taken := [name for name in TAKEN if name in found]:
        raise UserError(f"cannot give {taken[0]}", where="chat_template_kwargs", hint="it is given to every template")
    return found
