"""scripts/gpu-check runs whole on the CPU, small; that a part fails is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_part_runs_and_finds_the_cpu_equal_to_itself(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    words = ["--device", "cpu", "--small", "--seconds", "10", "--out", str(out)]
    ran = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu-check"), *words],
        capture_output=True,
        text=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["backend"] == "torch"
    assert set(report["parity"]["largest_difference"]) == {
        "llama-gqa-tied float32",
        "llama-gqa-tied bfloat16",
    }
    assert report["parity"]["largest_difference"]["llama-gqa-tied float32"] == 0
    assert sorted(report["stages"]["losses"]) == ["dpo", "grpo", "ppo", "pretrain", "reward", "sft"]
    assert report["decoding"]["tokens"] == 64
    assert len(report["speed"]["sizes"]["10M"]) == 8


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_check

    monkeypatch.setattr(gpu_check, "PARTS", {"decoding": 1.0})
    words = ["gpu_check", "--device", "cpu", "--small", "--seconds", "5", "--backend", "mlx"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "one.json")])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "broken" / "numpy").mkdir(parents=True)
    (tmp_path / "broken" / "numpy" / "__init__.py").write_text("raise ImportError('no numpy')")
    assert gpu_check.main() == 1
    report = json.loads((tmp_path / "one.json").read_text())
    assert "no numpy" in report["decoding"]["error"]
