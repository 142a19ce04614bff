"""The distribution's name, what hints tell people to install, and scripts/setup with extras."""

from __future__ import annotations

import html
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ondevice.common import distribution
from ondevice.common.distribution import DISTRIBUTION, EXTRAS, install_hint, own_version

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(extra: str) -> set[str]:
    """The packages of an extra of pyproject.toml on this system, without their versions."""
    found = map(Requirement, PYPROJECT["optional-dependencies"][extra])
    return {
        f"{r.name}[{','.join(sorted(r.extras))}]" if r.extras else r.name
        for r in found
        if r.marker is None or r.marker.evaluate()
    }


def test_the_name_is_ours_and_the_command_stays() -> None:
    assert PYPROJECT["name"] == DISTRIBUTION == "ondevice-trainer"
    assert PYPROJECT["scripts"] == {"ondevice": "ondevice.cli:command"}


def test_dev_refers_to_this_distribution_and_to_every_extra_that_fits_any_machine() -> None:
    own = next(
        r
        for r in map(Requirement, PYPROJECT["optional-dependencies"]["dev"])
        if r.name.startswith("ondevice")
    )
    assert own.name == DISTRIBUTION
    large = {"trackio", "wandb"}  # their tests run where somebody has them
    assert own.extras == set(PYPROJECT["optional-dependencies"]) - {"dev", "mlx-cuda", *large}


def test_the_version_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(distribution, "version", none)
    assert own_version() == "unknown"


# Hints


def test_every_extra_but_dev_has_a_hint() -> None:
    assert set(EXTRAS) == set(PYPROJECT["optional-dependencies"]) - {"dev"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no checkout runs in its own .venv, and the interpreter has pip."""
    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    monkeypatch.setattr("ondevice.common.distribution._has_pip", lambda: True)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_a_hint_names_the_packages_of_its_extra_and_no_other(extra: str, elsewhere: None) -> None:
    python, *middle = shlex.split(install_hint(extra))
    assert python == "/opt/venv/bin/python" and middle[:3] == ["-m", "pip", "install"]
    assert len(middle[3:]) == len(set(middle[3:])) and set(middle[3:]) == needed(extra)


def test_without_pip_uv_installs(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondevice.common.distribution._has_pip", lambda: False)
    assert install_hint("export") == "uv pip install --python /opt/venv/bin/python gguf"


def test_a_hint_can_be_pasted_into_a_shell(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/home/my user/it's/python")
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {install_hint('rewards')}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == [
        "/home/my user/it's/python",
        "-m",
        "pip",
        "install",
        *EXTRAS["rewards"],
    ]


def test_a_checkout_in_its_own_environment_says_setup(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    monkeypatch.chdir(ROOT)
    assert install_hint("rewards") == "scripts/setup rewards"
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_hint("rewards")) == [
        str(ROOT.resolve() / "scripts" / "setup"),
        "rewards",
    ]
    # .venv is then uv's: scripts/setup would make it anew
    monkeypatch.setattr("ondevice.common.distribution._has_pip", lambda: False)
    assert install_hint("rewards").startswith("uv pip install --python ")


def test_torch_can_compile_after_a_hint() -> None:
    """torch's compiler imports setuptools, which refuses where it was asked for pip before."""
    pytest.importorskip("setuptools")
    code = "from ondevice.common.distribution import install_hint; install_hint('rewards'); import setuptools"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# What texts tell people to install

_LEFT_OUT = {".git", ".venv", ".venv-hub", "runs", "dist", "build"}
_OURS = r"""['"]?ondevice(?:-trainer)?(?![\w./-])"""  # not a path, not ondevice.cli, not ondevice-something
ADVICE = re.compile(
    r"ondevice(?:-trainer)?\\*\[[a-z]"  # an extra of ours by name
    rf"|(?:\bpipx?3?|\buv|\btool) (?:install|add|run|inject)(?: (?!ondevice)['\"]?[\w.=/<>-]+['\"]?){{0,6}}? {_OURS}"
    rf"|\buvx (?:--?\S+ )*{_OURS}"
)


def texts() -> Iterator[tuple[str, str]]:
    for folder, inside, names in os.walk(ROOT):
        inside[:] = [
            n
            for n in inside
            if n not in _LEFT_OUT and not n.endswith("_cache") and n != "__pycache__"
        ]
        for name in names:
            file = Path(folder, name)
            if file == Path(__file__):
                continue
            try:
                yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install 'ondevice[rewards]'", True),
        ("`pip install\n'ondevice-trainer[rewards]'`", True),
        ("python -m pip install --upgrade ondevice", True),
        ("pip install ondevice-trainer.", True),
        ("uv tool install ondevice", True),
        ('pipx install "ondevice"', True),
        ("uv add ondevice-trainer", True),
        ("uvx ondevice", True),
        ("# pip install\n# ondevice", True),
        ("uv tool install . && ondevice --help", False),
        ("pipx install .", False),
        ("scripts/setup rewards, then ondevice grpo", False),
        ("pip install gguf; ondevice export", False),
        ("cd ondevice", False),
    ],
)
def test_the_rule_that_finds_advice(text: str, found: bool) -> None:
    assert bool(ADVICE.search(flat(text))) is found


def flat(text: str) -> str:
    """In one line, sentences and commands apart, without a comment's signs and the pictures'
    character references.
    """
    return re.sub(r"[\s#]+", " ", re.sub(r"[.;:)&]+(\s|$)", " | ", html.unescape(text)))


def test_no_text_tells_people_to_install_our_name_from_an_index() -> None:
    """The name `ondevice` there is somebody else's, and `ondevice-trainer` is nobody's yet."""
    seen, found = 0, []
    for name, text in texts():
        seen += 1
        if (
            name == "pyproject.toml"
        ):  # the extra dev refers to the distribution itself, which pip has before it
            text = text.replace("ondevice-trainer[mlx,", "")
        found += [f"{name}: {match.group()}" for match in ADVICE.finditer(flat(text))]
    assert seen > 300 and not found


# scripts/setup


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with scripts/setup and a .venv that has torch, whose pip only writes down what it
    was asked for.
    """
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    python = root / ".venv" / "bin" / "python"
    python.write_text(
        f"""#!/bin/sh
if [ "$2" = "import torch" ]; then exit 0; fi
if [ "$1 $2 $3" = "-m pip --version" ]; then exit 0; fi
if [ "$1 $2" = "-m pip" ]; then
    shift 2; echo "$@" >>pip.log
    if [ "$1" = install ] && [ -e broken ]; then echo "no network" >&2; exit 1; fi
    exit 0
fi
exec {shlex.quote(sys.executable)} -S "$@"
""",
        encoding="utf-8",
    )
    python.chmod(0o755)
    return root


def setup(checkout: Path, *extras: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and what pip was asked to install."""
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", "scripts/setup", *extras], cwd=checkout, capture_output=True, text=True
    )
    asked = log.read_text().splitlines() if log.exists() else []
    return (
        done.returncode,
        done.stdout + done.stderr,
        [line for line in asked if line.startswith("install")],
    )


EDITABLE = "install --quiet --editable "


@pytest.mark.slow
def test_setup_is_quick_when_nothing_changed_and_adds_extras_to_those_before(
    checkout: Path,
) -> None:
    assert setup(checkout)[2] == [EDITABLE + "."]
    assert setup(checkout) == (0, "", [])
    assert setup(checkout, "rewards")[2] == [EDITABLE + ".[rewards]"]
    assert setup(checkout) == setup(checkout, "rewards") == (0, "", [])
    assert setup(checkout, "data", "rewards")[2] == [EDITABLE + ".[data,rewards]"]
    assert setup(checkout, "dev")[2] == [EDITABLE + ".[data,dev,rewards]"]
    assert setup(checkout, "dev") == setup(checkout) == (0, "", [])


def test_setup_keeps_extras_when_pyproject_changes(checkout: Path) -> None:
    setup(checkout, "export")
    (checkout / "pyproject.toml").write_text(
        (checkout / "pyproject.toml").read_text() + "\n# more\n"
    )
    assert setup(checkout)[2] == [EDITABLE + ".[export]"]


def test_a_setup_that_failed_is_taken_up_again(checkout: Path) -> None:
    setup(checkout)
    (checkout / "broken").touch()
    code, said, _ = setup(checkout, "rewards")
    assert code == 1 and "no network" in said
    (checkout / "broken").unlink()
    assert setup(checkout)[2] == [EDITABLE + ".[rewards]"]
    assert setup(checkout) == (0, "", [])


def test_setup_takes_the_old_name_out_first(checkout: Path) -> None:
    setup(checkout)  # an installation under the old name would share the command with the new one
    log = (checkout / "pip.log").read_text().splitlines()
    assert log.index("uninstall -qq --yes ondevice") < log.index(EDITABLE + ".")


def test_setup_knows_the_extras_of_pyproject(checkout: Path) -> None:
    code, said, asked = setup(checkout, "reward")
    assert code == 2 and not asked and len(said.splitlines()) == 1
    known = said.partition("known: ")[2].strip().split(", ")
    assert known == list(PYPROJECT["optional-dependencies"])


def test_setup_says_how_it_is_used(checkout: Path) -> None:
    code, said, asked = setup(checkout, "--help")
    assert (
        code == 0
        and not asked
        and "scripts/setup rewards" in said
        and "ONDEVICE_TORCH_INDEX" in said
    )
