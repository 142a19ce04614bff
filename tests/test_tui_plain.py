"""A terminal without UTF-8."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from ondevice_tui.plain_terminal import suit


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_what_a_terminal_cannot_draw_is_drawn_in_ascii_as_wide(encoding: str) -> None:
    drawn = "╭─ reward ✓ ─╮ │⠉⣀⣿⠀│ ▸ 3 × 2 · … 運行 ü e\u0301"
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding=encoding)
    suit(terminal)
    terminal.write(drawn)
    terminal.flush()
    text = raw.getvalue().decode(encoding)
    assert cell_len(text) == cell_len(drawn)
    expected = {
        "ascii": "+- reward v -+ |'.: | > 3 x 2 . . ???? ? e",
        "iso-8859-1": "+- reward v -+ |'.: | > 3 × 2 · . ???? ü e",
        "utf-8": drawn,
    }
    assert text == expected[encoding]
