"""Draws the packages of `ondevice` from their imports: each floor, what it holds, and what it
imports.

    python scripts/house.py            print the picture
    python scripts/house.py --write    put it into CONTRIBUTING.md, between its two marks
    python scripts/house.py --check    exit with 1 where CONTRIBUTING.md has another one
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ondevice"
DOCUMENT = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- scripts/house.py -->\n", "<!-- end -->\n"


def floors() -> list[str]:
    """The packages from the lowest floor up, as import-linter's contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "house")
    return [layer for layer in reversed(layers) if (PACKAGE / layer).is_dir()]


def imports_of(package: str) -> set[str]:
    """The other packages of `ondevice` that this one imports, wherever in its files."""
    found = set()
    for file in (PACKAGE / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] == "ondevice" and len(parts) > 1:
                    found.add(parts[1])
    return found - {package}


def about(package: str) -> str:
    """The first sentence of the package's docstring, up to a colon."""
    text = (
        ast.get_docstring(
            ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
        )
        or ""
    )
    return text.replace("\n", " ").partition(":")[0].partition(". ")[0].rstrip(".")


def picture() -> str:
    """A line for each package, the highest floor first; a column for each floor, ● where it is
    imported.
    """
    order = floors()
    width = max(map(len, order))
    lines = [
        f"{'':>2}  {'':<{width}}  {''.join(f'{floor:>3}' for floor in range(1, len(order) + 1))}"
    ]
    for floor, package in reversed(list(enumerate(order, 1))):
        imported = imports_of(package)
        marks = "".join("  ●" if below in imported else "  ·" for below in order[: floor - 1])
        lines.append(f"{floor:>2}  {package:<{width}}  {marks}  {about(package)}")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(argv)
    drawn = f"{BEGIN}```\n{picture()}```\n"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if given.write:
        DOCUMENT.write_text(f"{before}{drawn}{END}{after}", encoding="utf-8")
    elif given.check:
        return int(BEGIN + old != drawn)
    else:
        print(picture(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
