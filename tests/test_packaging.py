"""The wheel and the sdist hold what they should and work where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel built from the sdist's files alone."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the wheel; what it depends on is lent by
    this one.

    The loan is a .pth file: a path added by one is not searched for further .pth files, so that
    this environment's editable install of the checkout is not lent with the rest.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)})
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(own, "lent.pth").write_text("\n".join(sorted(lent)), encoding="utf-8")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--force-reinstall",
            str(built["wheel"]),
        ],
        check=True,
        capture_output=True,
    )
    return python


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """Runs outside the checkout, with nothing of this process's paths."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, cwd=cwd, env=env
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_holds_the_four_packages_and_nothing_else(built: dict[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "ondevice",
        "ondevice_torch",
        "ondevice_mlx",
        "ondevice_tui",
    }
    assert {"ondevice/recipes/minute.yaml", "ondevice/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    checkout = {
        str(file.relative_to(above))
        for above, package in (
            (ROOT, "ondevice"),
            (ROOT / "backends", "ondevice_torch"),
            (ROOT / "backends", "ondevice_mlx"),
            (ROOT / "tui", "ondevice_tui"),
        )
        for file in (above / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "ondevice_tui/app.tcss" in checkout and checkout <= set(names)


def test_the_wheel_has_our_name_and_its_command(built: dict[str, Path]) -> None:
    assert built["wheel"].name.startswith("ondevice_trainer-") and built["sdist"].name.startswith(
        "ondevice_trainer-"
    )
    with zipfile.ZipFile(built["wheel"]) as archive:
        texts = {
            name.rsplit("/", 1)[-1]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "\nName: ondevice-trainer\n" in texts["METADATA"]
    assert "\nProvides-Extra: rewards\n" in texts["METADATA"]
    assert "ondevice = ondevice.cli:command" in texts["entry_points.txt"]


def test_the_sdist_can_be_tested(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "scripts/test",
        "tests/conftest.py",
    } <= names
    assert not any(name.startswith((".venv", "runs/", "dist/")) for name in names)


def test_the_command_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    text = run(installed.parent / "ondevice", "--help", cwd=tmp_path)
    assert "pretrain" in text
    where = run(installed, "-c", "import ondevice; print(ondevice.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent.parent)


def test_the_version_and_hints_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert run(installed.parent / "ondevice", "--version", cwd=tmp_path) == f"ondevice {version}\n"
    code = """
from ondevice.common import distribution
with_pip = distribution.install_hint("rewards")
distribution._has_pip = lambda: False
print(with_pip, distribution.install_hint("rewards"), sep="\\n")
"""
    packages = "math-verify reasoning-gym jsonschema"
    assert run(installed, "-c", code, cwd=tmp_path).splitlines() == [  # pip is lent with the rest
        f"{installed} -m pip install {packages}",
        f"uv pip install --python {installed} {packages}",
    ]


def test_the_app_opens_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = """
import asyncio
from ondevice_tui.app import OndeviceApp

async def opened():
    app = OndeviceApp("runs", look_at_machine=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        print(type(app.screen).__name__, app.stylesheet.has_source(app.css_path[0].as_posix()) if app.css_path else "")

asyncio.run(opened())
"""
    assert run(installed, "-c", code, cwd=tmp_path).split() == ["RoadScreen", "True"]


def test_the_recipes_are_there(installed: Path, tmp_path: Path) -> None:
    code = """
from importlib.resources import files
from ondevice.config.recipe import load_recipe
names = sorted(f.name.removesuffix(".yaml") for f in files("ondevice").joinpath("recipes").iterdir()
               if f.name.endswith(".yaml"))
for name in names: load_recipe(name)
print(*names)
"""
    assert {"minute", "tiny"} <= set(run(installed, "-c", code, cwd=tmp_path).split())


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_the_backends_load_from_the_wheel(installed: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    code = f"from ondevice.seam.select import load_backend; print(load_backend({name!r}).name)"
    assert run(installed, "-c", code, cwd=tmp_path).strip() == name
