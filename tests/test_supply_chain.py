"""What CI and releases install: locked, by version and hash, and in step with pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ondevice.common import yaml_files

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted((ROOT / "scripts" / "requirements").glob("*.txt"))
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "mac": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}
PYTHONS = ("3.11", "3.12", "3.13")


def locked(file: Path) -> list[tuple[Requirement, list[str]]]:
    """Requirements of a lock, and the hashes of each one's files."""
    found: list[tuple[Requirement, list[str]]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip().removesuffix("\\").strip()
        if text.startswith("--hash="):
            found[-1][1].append(text.removeprefix("--hash="))
        elif text:
            found.append((Requirement(text), []))
    return found


def environment(platform: str, python: str, **more: str) -> dict[str, str]:
    return {
        **PLATFORMS[platform],
        "python_version": python,
        "python_full_version": f"{python}.7",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
        **more,
    }


def applies(requirement: Requirement, **where: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(where)


def needed(texts: list[str], **where: str) -> list[Requirement]:
    """Requirements that apply, with those of our own extras in their place."""
    found = []
    for requirement in map(Requirement, texts):
        if not applies(requirement, **where):
            continue
        if requirement.name == PYPROJECT["name"]:
            for extra in requirement.extras:
                found += needed(PYPROJECT["optional-dependencies"][extra], **where)
        else:
            found.append(requirement)
    return found


def test_there_are_locks() -> None:
    assert [lock.name for lock in LOCKS] == ["dev.txt", "release.txt", "runtime.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_release_has_one_version_and_hashes(lock: Path) -> None:
    """And nothing names an index: each machine has its own."""
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text and "find-links" not in text
    for requirement, hashes in locked(lock):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_locks_hold_what_pyproject_asks_for(platform: str, python: str) -> None:
    where = environment(platform, python)
    dev = [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["dev"]]
    release = (
        (ROOT / "scripts" / "requirements" / "release.in").read_text(encoding="utf-8").splitlines()
    )
    wanted = {
        "dev.txt": dev,
        "runtime.txt": PYPROJECT["dependencies"],
        "release.txt": [line for line in release if not line.startswith("#")],
    }
    for name, texts in wanted.items():
        lock = [
            one
            for one, _ in locked(ROOT / "scripts" / "requirements" / name)
            if applies(one, **where)
        ]
        versions = {canonicalize_name(one.name): str(one.specifier)[2:] for one in lock}
        for requirement in needed(texts, **where):
            if (platform, requirement.name, name) == ("linux", "torch", "dev.txt"):
                continue  # by version alone, of scripts/setup
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, (name, requirement)
            assert requirement.specifier.contains(version, prereleases=True), (name, requirement)


def test_what_the_releases_need_in_turn_is_locked_too() -> None:
    """Of what is installed here, all that `pip --no-deps` would leave out."""
    names = {
        canonicalize_name(one.name)
        for one, _ in locked(ROOT / "scripts" / "requirements" / "dev.txt")
    }
    where = environment("linux", "3.11")
    todo = needed(PYPROJECT["optional-dependencies"]["dev"] + PYPROJECT["dependencies"], **where)
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in names, requirement
        try:
            inner = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for one in map(Requirement, inner):
            asked = any(applies(one, **{**where, "extra": extra}) for extra in ("", *key[1]))
            # of torch's, what only a build with CUDA asks for is in no lock of ours
            if asked and not one.name.startswith(("nvidia-", "cuda-", "triton")):
                todo.append(one)
    assert len(seen) > 60


def test_torch_is_the_one_that_setup_pins() -> None:
    pinned = re.search("^pinned_torch=(.*)$", (ROOT / "scripts/setup").read_text(), re.MULTILINE)
    assert pinned is not None
    for name in ("dev.txt", "runtime.txt"):
        lock = {one.name: one for one, _ in locked(ROOT / "scripts" / "requirements" / name)}
        assert str(lock["torch"].specifier) == f"=={pinned[1]}"
    [torch] = [one for one in needed(PYPROJECT["optional-dependencies"]["torch"])]
    assert torch.specifier.contains(Version(pinned[1]))


def workflows() -> dict[str, Any]:
    folder = ROOT / ".github" / "workflows"
    return {file.name: yaml_files.parse(file.read_text()) for file in sorted(folder.glob("*.yml"))}


def test_workflows_install_what_is_locked() -> None:
    found = workflows()
    assert set(found) == {"nightly.yml", "release.yml", "tests.yml"}
    for name in ("nightly.yml", "tests.yml"):
        assert found[name]["env"]["ONDEVICE_LOCKED"] == "yes"
    steps = [step.get("run", "") for step in found["release.yml"]["jobs"]["build"]["steps"]]
    assert any("scripts/sbom" in step for step in steps)
    assert any("scripts/audit" in step for step in steps)
    for name, workflow in found.items():
        assert workflow["permissions"] == {"contents": "read"}, name


def audited(found: dict[str, Any] | None, tmp_path: Path) -> tuple[int, str]:
    """Exit code and words of scripts/audit where pip-audit finds this; None: it fails."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "requirements").mkdir(parents=True)
    (root / ".venv-audit" / "bin").mkdir(parents=True)
    for name in ("audit", "release-tools"):
        (root / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    (root / "scripts" / "requirements" / "release.txt").write_text("x")
    (root / ".venv-audit" / "installed").write_text("x")
    python = root / ".venv-audit" / "bin" / "python"
    answer = "echo 'no such host' >&2; exit 1"
    if found is not None:
        (root / "found.json").write_text(json.dumps(found))
        answer = 'while [ "$1" != --output ]; do shift; done; cp found.json "$2"; exit 0'
    python.write_text(
        f'#!/bin/bash\nif [ "$1" = -m ]; then {answer}; fi\nexec python3 "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/audit"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_audit_says_what_it_found_and_what_it_could_not_look_up(tmp_path: Path) -> None:
    fine = {"name": "a", "version": "1", "vulns": []}
    hole = {"id": "PYSEC-1", "fix_versions": ["2"]}
    bad = {"name": "b", "version": "1", "vulns": [hole]}
    unknown = {"name": "c", "version": "1", "skip_reason": "not found"}
    assert audited({"dependencies": [fine]}, tmp_path / "1") == (
        0,
        "1 releases audited, 0 known vulnerabilities\n",
    )
    code, said = audited({"dependencies": [fine, bad, unknown]}, tmp_path / "2")
    assert code == 1 and "b 1: PYSEC-1 (mended in 2)" in said
    assert "not audited: 1 of 3" in said
    code, said = audited({"dependencies": [unknown]}, tmp_path / "3")
    assert code == 0 and said == "not audited: 1 of 1 releases are unknown to the index\n"
    assert audited(None, tmp_path / "4") == (0, "not audited: no such host\n")
