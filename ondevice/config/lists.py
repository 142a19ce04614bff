"""Lists as one text, as flags and forms have them: with commas, or as JSON where a part has a comma
in it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json

HINT = 'write it as ["one", "two"]'


def json_list(text: str, where: str = "") -> list[Any] | None:
    """The parts of a JSON list; None for a text that is not one, though it may begin with a bracket.
    Raises UserError, with `where`, for what begins as a list of texts and is not JSON."""
    plain = text.strip()
    if not plain.startswith("["):
        return None
    try:
        value = parse_json(plain)
    except ValueError as error:
        if plain[1:].lstrip().startswith('"'):
            raise UserError(f"is not a JSON list: {error}", where=where, hint=HINT) from None
        return None
    if not isinstance(value, list):
        return None
    return value


def parts_of(text: str) -> list[Any]:
    """The parts of a list: those between commas, without the empty ones, or those of a JSON list as
    they are. Raises UserError as `json_list`."""
    found = json_list(text)
    if found is not None:
        return found
    return [part.strip() for part in text.split(",") if part.strip()]


def list_text(parts: Sequence[Any], between: str = ",") -> str:
    """A list as the text that `parts_of` reads back: with commas where it can be, else as JSON."""
    texts = [str(part) for part in parts]
    plain = all(text and "," not in text and text == text.strip() for text in texts)
    if plain and not "".join(texts[:1]).startswith("["):
        return between.join(texts)
    return json.dumps([*parts], ensure_ascii=False)


def prompts_of(text: str) -> tuple[str, ...]:
    """The prompts of the setting `sample_prompts`: those between |, or those of a JSON list, without the empty ones.
    A list of anything but texts is a prompt itself, unless it begins with a text. Raises UserError
    as `json_list`, and for such a list."""
    found = json_list(text, "sample_prompts")
    parts = text.split("|")
    if found and isinstance(found[0], str):
        odd = [part for part in found if not isinstance(part, str)]
        if odd:
            raise UserError(
                f"{json.dumps(odd[0])} is not a prompt",
                where="sample_prompts",
                hint="put it in quotes",
            )
        parts = found
    return tuple(part.strip() for part in parts if part.strip())


def prompts_text(value: Any) -> Any:
    """The one text of a list of prompts, empty for an empty one; anything else as it is."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        return value
    if not value:
        return ""
    return json.dumps([*value], ensure_ascii=False)
