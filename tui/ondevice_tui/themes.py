"""The dark and the light theme."""

from __future__ import annotations

from textual.theme import Theme

# Okabe and Ito's hues: told apart with any colour vision. No state is told by colour alone.
DARK = Theme(
    name="ondevice-dark",
    dark=True,
    primary="#56B4E9",
    secondary="#009E73",
    accent="#56B4E9",
    warning="#E69F00",
    error="#F0784A",
    success="#2FBF91",
    foreground="#D8DEE4",
    background="#0F1418",
    surface="#151B21",
    panel="#1D252D",
    variables={"muted": "#8B98A5"},
)
LIGHT = Theme(
    name="ondevice-light",
    dark=False,
    primary="#0072B2",
    secondary="#00785A",
    accent="#0072B2",
    warning="#9A6700",
    error="#B5420A",
    success="#00785A",
    foreground="#1B2127",
    background="#FAFBFC",
    surface="#F0F3F5",
    panel="#E2E7EB",
    variables={"muted": "#5B6670"},
)
