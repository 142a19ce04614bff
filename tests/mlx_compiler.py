"""Whether MLX compiles: `--uncompiled`, which the fast core has, lets it compile in tests marked
`compiled` alone. No test by itself.

On Linux's CPU, MLX has a C++ compiler make each fused kernel, which takes longer than most tests.
What is not about compiling is the same without; CI runs every test compiled.
"""

from __future__ import annotations

import os
import sys

import pytest

VARIABLE = "MLX_DISABLE_COMPILE"  # MLX reads it when it is imported, in processes of tests too


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--uncompiled",
        action="store_true",
        help="MLX compiles in tests marked `compiled` alone, as in the fast core",
    )


def configure(config: pytest.Config) -> None:
    if config.getoption("--uncompiled"):
        os.environ[VARIABLE] = "1"


def set_for(item: pytest.Item) -> None:
    """Before each test."""
    if not item.config.getoption("--uncompiled"):
        return
    if item.get_closest_marker("compiled"):
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = "1"
    if "mlx.core" in sys.modules:
        mlx = sys.modules["mlx.core"]
        (mlx.enable_compile if compiles() else mlx.disable_compile)()


def compiles() -> bool:
    """In this test."""
    return VARIABLE not in os.environ
