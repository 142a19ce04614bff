"""`ondevice --help` answers at once: it is the first thing that a person types."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

START = [
    sys.executable,
    "-c",
    "import sys; from ondevice.cli import main; sys.exit(main())",
    "--help",
]


def quiet() -> dict[str, str]:
    """This environment without what preloads libraries into every process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("LD_PRELOAD", "COVERAGE_PROCESS_START")
    }


def cpu_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(START, capture_output=True, check=True, env=quiet())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_under_0_3_seconds() -> None:
    """CPU seconds, the best of several: other work on the machine must not fail this."""
    best = min(cpu_seconds() for _ in range(5))
    assert best < 0.3, f"{best:.2f} s"


def test_help_loads_nothing_heavy() -> None:
    command = [START[0], "-X", "importtime", *START[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet())
    loaded = {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in result.stderr.splitlines()
        if "|" in line
    }
    assert "ondevice" in loaded
    assert not loaded & {
        "numpy",
        "torch",
        "mlx",
        "transformers",
        "tokenizers",
        "textual",
        "huggingface_hub",
        "tyro",
    }


def test_help_names_every_verb() -> None:
    text = subprocess.run(START, capture_output=True, text=True, check=True, env=quiet()).stdout
    for verb in ("run", "init", "pretrain", "sft", "generate", "chat", "eval", "doctor", "runs"):
        assert any(line.split()[:1] == [verb] for line in text.splitlines()), verb
