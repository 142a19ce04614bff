"""Who may import whom, and what loads when."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import source

ROOT = Path(__file__).parent.parent


@lru_cache
def loaded_by(statement: str) -> frozenset[str]:
    """The top-level modules that a fresh interpreter holds after `statement`, beyond the standard
    library.
    """
    code = f"import sys, json; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return frozenset(json.loads(result.stdout)) - set(sys.stdlib_module_names)


def test_import_contracts() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_import_ondevice_loads_no_array_library() -> None:
    assert not loaded_by("import ondevice") & {
        "numpy",
        "torch",
        "mlx",
        "transformers",
        "textual",
        "huggingface_hub",
    }


CONFIG = sorted(file.stem for file in (ROOT / "ondevice" / "config").glob("[!_]*.py"))


@pytest.mark.parametrize("name", CONFIG)
def test_config_is_standard_library_only(name: str) -> None:
    """Forms and `--help` are made from it. Reading a recipe takes yaml (and its compiled half),
    nothing else does.
    """
    allowed = {"ondevice", "yaml", "_yaml", "__main__"}
    # What an interpreter of this environment loads by itself (an editable install's finder) counts
    # for nothing.
    assert loaded_by(f"import ondevice.config.{name}") - loaded_by("pass") <= allowed


def test_inert_and_errors_stand_alone() -> None:
    """They are used where nothing else may be loaded."""
    assert loaded_by("import ondevice.common.sanitize, ondevice.common.errors") - loaded_by(
        "pass"
    ) <= {"ondevice"}


def test_no_backend_is_named_in_shared_code() -> None:
    """A decision on a backend's name is made in seam/select.py and cli.py; all other code asks the
    backend.
    """
    may = {"select.py", "cli.py", "export.py"}
    found = []
    for file in source.files("ondevice"):
        if file.name in may:
            continue
        for node in source.nodes(file):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                flat = [
                    e
                    for side in sides
                    for e in (side.elts if isinstance(side, ast.Tuple | ast.Set) else [side])
                ]
                if any(isinstance(e, ast.Constant) and e.value in ("torch", "mlx") for e in flat):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize(("own", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_torchs_threads_sleep_while_they_wait_unless_somebody_says_otherwise(
    own: str | None, found: str
) -> None:
    """Set before torch is loaded, which reads it then and never again."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = (
        "import os, sys; import ondevice_torch; assert 'torch' not in sys.modules; "
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        capture_output=True,
        text=True,
        env=env | ({"OMP_WAIT_POLICY": own} if own else {}),
        check=True,
    )
    assert done.stdout.strip() == found


def test_a_home_that_is_nobodys_is_a_path_like_any() -> None:
    """`Path.expanduser` raises RuntimeError for `~nobody/x`, which a person may have typed:
    `os.path.expanduser`.
    """
    found = [
        str(file)
        for part in ("ondevice", "tui", "backends")
        for file in (ROOT / part).rglob("*.py")
        if ".expanduser()" in file.read_text(encoding="utf-8")
    ]
    assert found == []


# Operations of the seam with one user, each with the reason why it stays.
ONE_USER = {
    "silu": "a fused kernel",
    "largest": "one call in both libraries, many times cheaper than a sort",
    "to_rows": "its gradient is looked up, where that of `take` is added, many times slower",
    "from_rows": "its gradient is looked up, where that of `take` is added, many times slower",
    "add_product": "one kernel in both libraries, where a product and a sum are two",
    "product": "its backward pass computes its input again, which no other operation can",
    "log": "nothing else is made of the other operations for it",
    "sort": "what `largest` gives of a part, of a whole distribution",
    "sqrt": "nothing else is made of the other operations for it",
}


def test_every_operation_of_the_seam_has_two_users_or_a_reason() -> None:
    """What has no user goes, and what has one is written with other operations."""
    ops = ast.parse((ROOT / "ondevice" / "seam" / "ops.py").read_text(encoding="utf-8"))
    protocol = next(
        node for node in ops.body if isinstance(node, ast.ClassDef) and node.name == "Ops"
    )
    used = dict.fromkeys(
        (node.name for node in protocol.body if isinstance(node, ast.FunctionDef)), 0
    )
    for file in source.files("ondevice"):
        for node in source.nodes(file):
            if isinstance(node, ast.Attribute) and node.attr in used:
                used[node.attr] += ast.unparse(node.value).split(".")[-1] == "ops"
    assert {name for name, times in used.items() if times < 2} == set(ONE_USER)
    assert all(used[name] == 1 for name in ONE_USER)


def test_contributing_draws_the_house_as_it_is() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "house.py"), "--check"], check=False
    )
    assert done.returncode == 0, "run scripts/house.py --write"


def test_every_package_says_what_it_holds_and_imports() -> None:
    for file in (ROOT / "ondevice").glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        assert len(text.splitlines()) >= 2 and "May import: " in text, file
