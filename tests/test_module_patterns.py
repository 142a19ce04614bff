"""Patterns for modules' names that an adapter brings: those that end soon, and no others."""

from __future__ import annotations

import re

import pytest

from ondevice.common.errors import UserError
from ondevice.models.module_patterns import check_pattern

NAME = "model.layers.10.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r".*\.(q|v)_proj",
        r"model\.layers\.\d+\.self_attn\.(q_proj|k_proj)",
        r"^(?:(?!vision).)*(?:q_proj|v_proj)$",
        r"(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)",
        r"[*+(]+x\)\+",
        "a?b?c?(d)?",
    ],
)
def test_what_adapters_write_is_taken(pattern: str) -> None:
    check_pattern(pattern, "here")
    re.fullmatch(pattern, NAME)


@pytest.mark.parametrize(
    "pattern",
    [
        "(([a-z._0-9]+)+)+!",
        "(a*)*b",
        "(?:x(a{2,})y){3,}",
        "((a|b*)c)+",
        ".*.*.*.*.*.*!",
        "(.*)" * 9,
        "x" * 9000,
    ],
)
def test_what_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="here: the pattern .* could take for ever"):
        check_pattern(pattern, "here")


@pytest.mark.parametrize("pattern", ["(", "a**", "[", "(?P<1>x)"])
def test_what_is_no_pattern_is_told(pattern: str) -> None:
    with pytest.raises(UserError, match="is not a regular expression"):
        check_pattern(pattern, "here")
