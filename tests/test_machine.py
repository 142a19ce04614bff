"""`doctor`: what this machine can do, said without secrets and without failing on a broken
installation.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from conftest import BACKENDS
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.seam import doctor as doctor_module
from ondevice.seam.doctor import doctor, render


def test_the_report_is_json_and_knows_this_machine() -> None:
    report = json.loads(json.dumps(doctor()))
    assert {name for name, found in report["backends"].items() if found["usable"]} == set(BACKENDS)
    assert report["auto"]["backend"] in BACKENDS
    assert report["python"] == platform.python_version()
    assert report["cores"] >= 1
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert report["disk"]["free"] > 0
    text = render(report)
    for name in BACKENDS:
        assert f"{name}" in text and report["backends"][name]["version"] in text
    assert report["auto"]["why"] in text


def test_a_token_is_present_or_not_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_module, "available", dict)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    assert doctor()["hf_token"] is False
    (tmp_path / "token").write_text("hf_secretsecret")
    assert doctor()["hf_token"] is True
    (tmp_path / "token").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    report = doctor()
    assert report["hf_token"] is True
    assert "secret" not in json.dumps(report) + render(report)


def test_a_broken_backend_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcuda.so: cannot open\nand more")

    monkeypatch.setattr(doctor_module, "available", lambda: {"torch": "2.9", "mlx": None})
    monkeypatch.setattr(doctor_module, "load_backend", broken)
    report = doctor()
    assert report["backends"]["torch"]["error"] == "ImportError: libcuda.so: cannot open"
    text = render(report)
    assert "installed but cannot be used: ImportError: libcuda.so: cannot open" in text
    assert f"not installed ({install_hint('mlx')})" in text


def test_no_backend_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise UserError("torch is not installed", hint=install_hint("torch"))

    monkeypatch.setattr(doctor_module, "available", lambda: {"torch": None, "mlx": None})
    monkeypatch.setattr(doctor_module, "choose", none)
    assert f"nothing: torch is not installed ({install_hint('torch')})" in render(doctor())
