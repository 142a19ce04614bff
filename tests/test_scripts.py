"""Every Python script of scripts/ is run once, on its small case, in a process of its own.

A script that is not named here fails by its name. The shell scripts (setup, quickstart, test,
test-hub) install things and are left to those who call them; what scripts/setup does with extras is
in test_distribution.py.

What a peer needs may be missing: TRL 1.12 and mlx-lm-lora want other versions than ours and lie in
folders of their own (`pip install --no-deps --target DIR …`, as scripts/bench/preference.py says).
ONDEVICE_TRL112 and ONDEVICE_MLX_LM_LORA name these folders; without them their scripts are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import ondevice as od

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
TINY = ("--size", "tiny", "--steps", "4", "--repeats", "1")

# Libraries and sides of a comparison: they run where the script does that starts or imports them.
RUN_BY = {
    "bench/common.py": "bench/train.py",
    "bench/ours.py": "bench/train.py",
    "bench/peer_mlx_lm.py": "bench/train.py",
    "bench/ours_preference.py": "bench/preference.py",
    "bench/peer_trl_preference.py": "bench/preference.py",
}
RECIPE = """
corpus: {document_bytes: 20000, chat_count: 200, prompt_count: 40, problem_count: 40}
exam: {problems: 4, passes: 2, duels: 2}
prompts: ["What is 12+3?"]
stages:
  init: {vocab_size: 600, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
         num_key_value_heads: 1, max_position_embeddings: 256}
  sft: {steps: 2, batch_size: 2, sequence_length: 64, eval_every: 0, save_every: 0}
  sample: {prompts: 4, max_new_tokens: 8}
  grpo: {steps: 1, prompts: 2, group_size: 2, max_new_tokens: 8, eval_every: 0, save_every: 0}
"""


@dataclass(frozen=True)
class Place:
    """`runs/small` is a complete run, `bench` the material of the benchmarks; scripts run in
    `here`.
    """

    here: Path
    runs: Path
    bench: Path

    @property
    def run(self) -> Path:
        return self.runs / "small"

    @property
    def model(self) -> Path:
        return self.run / "sft" / "model"

    def script(self, name: str, *arguments: object, path: str = "") -> str:
        """Standard output and error of a script. What a library warns of in a process of ours is
        not asked for.
        """
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "TERM": "xterm-256color",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [path, str(SCRIPTS / "bench"), os.environ.get("PYTHONPATH", "")])
            ),
        }
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *map(str, arguments)],
            cwd=self.here,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def job(self, what: str, backend: str = "torch") -> str:
        return json.dumps(
            {"what": what, "size": "tiny", "work": str(self.bench), "backend": backend, "steps": 4}
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    for library in ("torch", "transformers", "trl", "mlx_lm", "gguf"):
        pytest.importorskip(library, reason=f"the extra dev has {library}")
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run = folder / "runs" / "small"
    od.run(
        str(folder / "recipe.yaml"),
        out=run,
        sets=[f"grpo.model={run}/sft/model"],
        backend="torch",
        device="cpu",
    )
    common = bench_common()
    common.prepare(folder / "bench", "tiny", "torch", 4)
    common.prepare_preference(folder / "bench", "tiny", "torch", 4)
    return folder / "runs", folder / "bench"


@pytest.fixture
def place(made: tuple[Path, Path], tmp_path: Path) -> Place:
    return Place(tmp_path, *made)


def bench_common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_common", SCRIPTS / "bench" / "common.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def missing(variable: str, package: str) -> str:
    """The folder that the variable names. Skips the test without it."""
    folder = os.environ.get(variable, "")
    if not folder:
        pytest.skip(f"{package} lies in no folder that {variable} names")
    return folder


# The small cases


def train(place: Place) -> None:
    told = place.script("bench/train.py", *TINY, "--only", "text", "blocks", "--backend", "mlx")
    for title in ("all weights on full rows, against mlx-lm's train", "blocks alone on full rows"):
        compared(told, title)


def preference(place: Place) -> None:
    told = place.script("bench/preference.py", *TINY, "--only", "reward", "--backend", "torch")
    compared(told, "reward model, against TRL's RewardTrainer")
    assert "left out: PPO, 4 epochs" in told and re.search(
        r"\| tiny \| reward \(torch\) \| ours \|", told
    )


def compared(told: str, title: str) -> None:
    """The row of the table is there, both sides were measured, and the first losses are the same."""
    row = next(line for line in told.splitlines() if line.startswith("| tiny | " + title))
    assert float(row.split("|")[3].split()[0]) > 0
    note = next(line for line in told.splitlines() if line.startswith("* tiny, " + title))
    found = re.search(r"largest difference (\S+)\)", note)
    assert found and float(found.group(1)) < 1e-5


def measured(told: str) -> dict[str, float]:
    line = next(line for line in told.splitlines() if line.startswith("BENCH "))
    result: dict[str, float] = json.loads(line.removeprefix("BENCH "))
    assert result["tokens"] > 0 and result["rate"] > 0 and result["peak"] > 0
    return result


def peer_transformers(place: Place) -> None:
    assert (
        measured(place.script("bench/peer_transformers.py", place.job("generate")))["tokens"]
        == 64 * 8
    )


def peer_trl(place: Place) -> None:
    measured(place.script("bench/peer_trl.py", place.job("chats")))


def peer_trl_ppo(place: Place) -> None:
    folder = missing("ONDEVICE_TRL112", "TRL 1.12.0")
    measured(place.script("bench/peer_trl_ppo.py", place.job("ppo"), path=folder))


def peer_mlx_lm_lora(place: Place) -> None:
    folder = missing("ONDEVICE_MLX_LM_LORA", "mlx-lm-lora")
    for what in ("dpo", "grpo"):
        measured(place.script("bench/peer_mlx_lm_lora.py", place.job(what, "mlx"), path=folder))


def golden_ppo(place: Place) -> None:
    # this much, with all that it imports, needs no TRL
    assert "--only" in place.script("golden/ppo.py", "--help")
    folder, out = missing("ONDEVICE_TRL112", "TRL 1.12.0"), place.here / "golden.json"
    place.script("golden/ppo.py", folder, "--only", "k1", "--out", out)
    known = json.loads((ROOT / "tests" / "golden" / "ppo_trl_1_12.json").read_text())["cases"]["k1"]
    found = json.loads(out.read_text())["cases"]["k1"]
    assert [u["loss"] for u in found["updates"]] == pytest.approx(
        [u["loss"] for u in known["updates"]], rel=1e-4
    )


def tui(place: Place) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("it reads CPU and memory of another process from Linux's /proc")
    told = json.loads(
        place.script(
            "bench/tui.py",
            "--lines",
            500,
            "--rate",
            100,
            "--seconds",
            0.5,
            "--repeats",
            1,
            "--rounds",
            1,
        )
    )
    assert told["lines"] == 500 and told["read_all_s"] < 60 and 0 < told["key_ms_median"] < 10_000


def control(place: Place) -> None:
    told = place.script("control.py", place.run, "--steps", 1)
    assert "4 held-out problems" in told and re.findall(
        r"^(start|grpo|control) +\d", told, re.M
    ) == ["start", "grpo", "control"]


def interop(place: Place) -> None:
    out = place.here / "interop.md"
    place.script("interop.py", place.model, "--out", out, "--tokens", 4)
    rows = [
        line.split(" | ")
        for line in out.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ][2:]
    for program, version, form, said in rows:
        if version == "–":
            assert said.startswith("not run")
        else:
            far = 1e-2 if form == "gguf f16" else 1e-4
            assert said.startswith("12 of 12") or float(said.split()[0]) < far, (program, form)
    assert sum(version != "–" for _, version, *_ in rows) >= 8


def picture(place: Place) -> None:
    out = place.here / "run.svg"
    place.script("picture.py", place.run, out)
    drawn = out.read_text(encoding="utf-8")
    assert drawn.startswith("<svg") and all(
        word in drawn for word in ("sft", "loss", "grpo", "reward", "init")
    )


def house(place: Place) -> None:
    drawn = place.script("house.py")
    assert "stages" in drawn.splitlines()[1] and drawn.splitlines()[-1].split()[1] == "common"


def same_results(place: Place) -> None:
    drawn = place.script("same_results.py", place.runs / "small", place.runs / "small")
    assert drawn.count("the same to the bit") == len(drawn.splitlines()) > 1


def screenshots(place: Place) -> None:
    place.script(
        "screenshots.py", place.runs, place.here / "shots", "--run", "small", "--size", "80x24"
    )
    found = {
        file.stem: file.read_text(encoding="utf-8") for file in (place.here / "shots").iterdir()
    }
    assert set(found) == {"road", "train", "reasoning", "rate", "ladder"}
    assert all(text.startswith("<svg") and "@font-face" not in text for text in found.values())


def smollm2(place: Place) -> None:
    for who in ("torch", "mlx-lm"):
        place.script("real/smollm2.py", who, place.model, "out", "--tokens", 4)
    told = place.script("real/smollm2.py", "compare", "out")
    found = re.search(r"mlx-lm and torch: logits differ by at most (\S+), answers the same", told)
    assert found and float(found.group(1)) < 1e-4


def beside_trl(place: Place) -> None:
    rows = [{"prompt": f"What is {n}+1?", "completion": f"{n + 1}."} for n in range(8)]
    (place.here / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = place.script(
        "real/beside_trl.py",
        "sft",
        place.model,
        "sums.jsonl",
        "out",
        "--steps",
        3,
        "--rows",
        1,
        "--held",
        4,
    )
    found = re.search(r"largest difference of the loss of a step: (\S+),", told)
    assert found and float(found.group(1)) < 1e-4 and "| peak memory, MB |" in told


def unseen_sums(place: Place) -> None:
    told = place.script("real/unseen_sums.py", "gym:chain_sum", place.run, 3, "--seed", 7)
    assert len([json.loads(line)["answer"] for line in told.splitlines()]) == 3


SMALL: dict[str, Callable[[Place], None]] = {
    "bench/train.py": train,
    "bench/preference.py": preference,
    "bench/peer_transformers.py": peer_transformers,
    "bench/peer_trl.py": peer_trl,
    "bench/peer_trl_ppo.py": peer_trl_ppo,
    "bench/peer_mlx_lm_lora.py": peer_mlx_lm_lora,
    "bench/tui.py": tui,
    "control.py": control,
    "golden/ppo.py": golden_ppo,
    "house.py": house,
    "interop.py": interop,
    "picture.py": picture,
    "real/beside_trl.py": beside_trl,
    "real/smollm2.py": smollm2,
    "real/unseen_sums.py": unseen_sums,
    "same_results.py": same_results,
    "screenshots.py": screenshots,
}


@pytest.mark.parametrize(
    "name", sorted(str(file.relative_to(SCRIPTS)) for file in SCRIPTS.rglob("*.py"))
)
def test_it_runs(name: str, request: pytest.FixtureRequest) -> None:
    if name in RUN_BY:
        starter = (SCRIPTS / RUN_BY[name]).read_text(encoding="utf-8")
        assert RUN_BY[name] in SMALL and re.search(
            rf"\b{Path(name).stem.removeprefix('peer_')}\b", starter
        )
        return
    assert name in SMALL, f"scripts/{name} has no small case in {Path(__file__).name}"
    SMALL[name](request.getfixturevalue("place"))


def test_the_peak_of_memory_is_of_the_process_alone() -> None:
    """getrusage's begins at what the process held that started it: this one, with 400 MB and more."""
    held = bytearray(os.urandom(1)) * 400_000_000
    code = "from common import peak_rss; print(peak_rss())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS / "bench", capture_output=True, text=True
    )
    assert len(held) == 400_000_000 and 5 < float(said.stdout) < 200, said.stderr


def test_small_cases_are_of_scripts_that_are_there() -> None:
    assert all((SCRIPTS / name).is_file() for name in (*SMALL, *RUN_BY))


def test_all_scripts_are_type_checked() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert mypy["strict"] and "scripts" in mypy["files"] and "exclude" not in mypy
    for file in ("scripts/test", ".pre-commit-config.yaml"):  # without a path: pyproject's files
        assert re.search(r"/mypy\"? --strict$", (ROOT / file).read_text(encoding="utf-8"), re.M), (
            file
        )
