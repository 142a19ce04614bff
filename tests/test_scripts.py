"""Every Python script of scripts/ is run once, on its small case, in a process of its own.

A script that is not named here fails by its name. The shell scripts (setup, quickstart, test,
test-hub) install things and are left to those who call them; what scripts/setup does with extras is
in test_distribution.py.

What a peer needs may be missing: TRL 1.12 and mlx-lm-lora want other versions than ours and lie in
folders of their own (`pip install --no-deps --target DIR …`, as `scripts/bench/all --help` says).
ONDEVICE_TRL112 and ONDEVICE_MLX_LM_LORA name these folders; without them their scripts are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.cli import main
from ondevice.common import user_cache
from ondevice.planning import calibration
from ondevice.planning.calibration import Calibration, Rates, Speeds

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
# Libraries and sides of a comparison: they run where the script does that starts or imports them.
RUN_BY = {
    "bench/count_decoding.py": "bench/counts.py",
    "bench/count_mlx.py": "bench/count_decoding.py",
    "bench/count_torch.py": "bench/count_decoding.py",
    "bench/count_traces.py": "bench/counts.py",
    "bench/count_training.py": "bench/counts.py",
    "bench/counts.py": "bench/bench.py",
    "bench/decoding.py": "bench/ours_decode.py",
    "bench/document.py": "bench/bench.py",
    "bench/job.py": "bench/measure.py",
    "bench/material.py": "bench/measure.py",
    "bench/material_preference.py": "bench/measure.py",
    "bench/matmul.py": "bench/measure.py",
    "bench/measure.py": "bench/bench.py",
    "bench/memory.py": "bench/bench.py",
    "bench/meter.py": "bench/processes.py",
    "bench/ours.py": "bench/ours_train.py",
    "bench/ours_decode.py": "bench/rows.py",
    "bench/ours_stage.py": "bench/rows.py",
    "bench/ours_train.py": "bench/rows.py",
    "bench/peer_mlx_lm.py": "bench/rows.py",
    "bench/peer_plain.py": "bench/rows.py",
    "bench/peer_transformers.py": "bench/rows.py",
    "bench/peer_trl.py": "bench/rows.py",
    "bench/peer_trl_preference.py": "bench/rows.py",
    "bench/processes.py": "bench/bench.py",
    "bench/rows.py": "bench/bench.py",
    "bench/update_memory.py": "bench/memory.py",
    "plan_cases.py": "plan_accuracy.py",
    "plan_measure.py": "plan_accuracy.py",
    "rounds_choice.py": "rounds.py",
    "rounds_document.py": "rounds.py",
    "rounds_replay.py": "rounds.py",
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

TIMED = """
corpus: {document_bytes: 30000, chat_count: 200, prompt_count: 40, problem_count: 40}
exam: {questions: 4, problems: 4, passes: 2, duels: 2}
scale:
  time: 60s
  model: fitted
  stages: {pretrain: {share: 1, most: 4}, sft: {share: 1, most: 4}}
stages:
  init: {}
  pretrain: {steps: 4, batch_size: 4, sequence_length: 32, eval_every: 0, save_every: 0}
  sft: {steps: 4, batch_size: 2, sequence_length: 64, eval_every: 0, save_every: 0}
"""

# What has a test file of its own.
ELSEWHERE = {"gpu_check.py": "test_gpu_check.py"}


@dataclass(frozen=True)
class Place:
    """`runs/small` is a complete run; scripts run in `here`."""

    here: Path
    runs: Path

    @property
    def run(self) -> Path:
        return self.runs / "small"

    @property
    def model(self) -> Path:
        return self.run / "sft" / "model"

    def script(self, name: str, *arguments: object) -> str:
        """Standard output and error of a script. What a library warns of in a process of ours is
        not asked for.
        """
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "TERM": "xterm-256color",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(SCRIPTS / "bench"), os.environ.get("PYTHONPATH", "")])
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    return folder / "runs"


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, made)


def missing(variable: str, package: str) -> str:
    """The folder that the variable names. Skips the test without it."""
    folder = os.environ.get(variable, "")
    if not folder:
        pytest.skip(f"{package} lies in no folder that {variable} names")
    return folder


# The small cases


def bench(place: Place) -> None:
    shown = subprocess.run([SCRIPTS / "bench" / "all", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "counts" in shown.stdout, shown.stderr
    rows = ("pretrain:eager", "pretrain:blocks", "sft:one", "reward", "chat", "lora", "qlora")
    told, document, figures = compared(place, *rows, "ppo", "load", "counts")
    assert "left out: PPO, 4 epochs (torch), beside TRL 1.12; pip install" in told
    for title in ("pre-training, eager", "blocks alone", "chats, one per row", "reward model"):
        same_losses(document, title)
    for row in figures["rows"].values():
        for side in (*row["ours"], *row["theirs"]):
            assert side["rate"] > 0 and side["cpu_rate"] > 0 and side["peak"] > 0
    assert {one["side"] for one in figures["loading"]["figures"]} == {
        "ours",
        "transformers",
        "mlx-lm",
    }
    for one in figures["decoding"]["figures"]:
        per_layer, outside = one["kernels"]
        assert per_layer > 9 and outside > 0 and one["reads"][1] >= 1
    for one in figures["training"]["figures"]:
        assert one["kernels"][0] > 9 and one["nodes"][0] >= one["kernels"][0]
    assert all(one["traces"] > 0 for one in figures["traces"]["figures"])
    assert all(one["per_parameter"] > 0 for one in figures["slopes"]["figures"])
    # where others use the machine no speed is told, and what was measured before stays
    _, document, busy = compared(place, "pretrain:eager", "--busy")
    assert list(busy["rows"]) == list(figures["rows"])
    [line] = [line for line in document.splitlines() if line.startswith("| pre-training, eager")]
    assert "not yet measured on a quiet machine" in line


def compared(place: Place, *rows: str) -> tuple[str, str, dict[str, Any]]:
    """What the small benchmark prints, its document, and its figures."""
    out = place.here / "speed.md"
    told = place.script(
        "bench/bench.py", *rows, "--small", "--repeats", 1, "--device", "cpu", "--out", out
    )
    figures: dict[str, Any] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return told, out.read_text(encoding="utf-8"), figures


def same_losses(document: str, title: str) -> None:
    note = next(line for line in document.splitlines() if line.startswith(f"* {title}"))
    furthest = re.search(r"largest difference (\S+)\)", note)
    assert furthest and float(furthest.group(1)) < 1e-5, note


def peer_trl_ppo(place: Place) -> None:
    folder = missing("ONDEVICE_TRL112", "TRL 1.12.0")
    _, document, _ = compared(place, "ppo", "--trl112", folder)
    assert "| PPO, 4 epochs (torch) | TRL 1.12 |" in document


def peer_mlx_lm_lora(place: Place) -> None:
    folder = missing("ONDEVICE_MLX_LM_LORA", "mlx-lm-lora")
    rows = ("dpo:beside it)", "grpo:with a reference")
    _, document, _ = compared(place, *rows, "--backend", "mlx", "--mlx-lm-lora", folder)
    assert document.count("| mlx-lm-lora |") == 3


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


def many_runs(place: Place) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("it reads CPU of another process from Linux's /proc")
    words = ("--runs", 5, "--seconds", 0.5, "--settle", 0.5, "--training", 1)
    told = json.loads(place.script("bench/many_runs.py", *words))
    assert told["runs"] == 5 and told["cpu_share"] >= 0


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
    packages = [line.split()[1] for line in drawn.splitlines()[1:]]
    assert packages[-1] == "common" and packages.index("stages") < packages.index("training")


def fuzz(place: Place) -> None:
    told = place.script("fuzz.py", "--cases", 30, "YAML", "index of weights")
    assert re.match(r"YAML: 30 cases, \d+ refused, 0 faults", told)
    assert "index of weights: 30 cases" in told


def simulated_rounds(place: Place) -> None:
    """One person, one seed: a version is trained, measured, and written down; votes are replayed."""
    recipe, human = place.here / "rounds.yaml", place.here / "votes.jsonl"
    recipe.write_text(RECIPE.replace("  sft:", "  pretrain: {steps: 1, batch_size: 2}\n  sft:"))
    rows = []
    for n in range(400):
        two = {"a": "yes" * (1 + n % 3), "b": "no" * (1 + n % 4), "votes": ["a", "a", "b"]}
        rows.append(json.dumps({"prompt": f"What is {n}?", **two}) + "\n")
    human.write_text("".join(rows))
    results = place.here / "rounds"
    results.mkdir()
    place.script(
        *("rounds.py", "--recipe", recipe, "--seeds", 0, "--people", "short", "--choose", "random"),
        *("--every", 4, "--votes", 20, "--judged", 4, "--backend", "torch", "--results", results),
        *("--human", human, "--choice", 1, "--choice-prompts", 60),
    )
    (run,) = json.loads((results / "rounds.json").read_text())["runs"]
    assert run["person"] == "short" and run["points"][0]["learned"] >= 4
    told = (results / "rounds.md").read_text()
    assert "likes short answers | drawn | 0 |" in told and "replayed" in told
    assert "<polyline" in (results / "rounds.svg").read_text()
    assert "## What the choice itself is worth" in told


def kept_skills(place: Place) -> None:
    results = place.here / "kept"
    results.mkdir()
    place.script(
        *("kept_skills.py", place.run, "--questions", 3, "--backend", "torch"),
        *("--results", results),
    )
    told = (results / "kept.md").read_text()
    assert "| grpo | reasoning | 3 |" in told and "| grpo | " in told.split("wins over")[1]


def same_results(place: Place) -> None:
    drawn = place.script("same_results.py", place.runs / "small", place.runs / "small")
    assert drawn.count("the same to the bit") == len(drawn.splitlines()) > 1


def screenshots(place: Place) -> None:
    assert main(["ratings", "project", str(place.run), "--rubric", "helpful"]) == 0
    place.script(
        "screenshots.py", place.runs, place.here / "shots", "--run", "small", "--size", "80x24"
    )
    found = {
        file.stem: file.read_text(encoding="utf-8") for file in (place.here / "shots").iterdir()
    }
    assert set(found) == {"road", "train", "reasoning", "spread", "rate", "scores", "ladder"}
    assert "helpful" in found["scores"] and "length" in found["spread"]
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


def plan_accuracy(place: Place) -> None:
    words = ["--sizes", "tiny", "--backends", "torch", "--repeats", 1, "--steps", 3]
    for name in ("lora", "sample"):
        told = place.script(
            "plan_accuracy.py", *words, "--only", name, "--work", "work", "--results", place.here
        )
    assert str(place.here / "plan.md") in told
    measured = json.loads((place.here / "plan.json").read_text(encoding="utf-8"))["cases"]
    assert [row["name"] for row in measured] == ["lora", "sample"]
    for row in measured:
        assert row["grown"] > 1e6 and row["cpu"] > 0 and row["planned_grown"] > 1e6
        assert row["planned_cpu"] > 0
    document = (place.here / "plan.md").read_text(encoding="utf-8")
    assert "**Held out** (2 cases)" in document and "| tiny sample |" in document


def soak(place: Place) -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("faults are loaded before libc: needs Linux and a C compiler")
    told = place.script(
        *("soak.py", "--minutes", 3, "--every", 4, "--stages", "pretrain"),
        *("--work", place.here / "soak"),
    )
    assert "the same as without any fault" in told
    assert len(re.findall(r"met [1-9]\d* of", told)) == 7


def dial(place: Place) -> None:
    recipe = place.here / "small.yaml"
    recipe.write_text(TIMED, encoding="utf-8")
    (place.here / "text.txt").write_text("The cat sat on the mat. " * 400, encoding="utf-8")
    words = ["--recipe", recipe, "--results", place.here, "--backend", "torch", "--device", "cpu"]
    own: list[object] = ["--text", place.here / "text.txt"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(user_cache.FOLDER, str(place.here / "cache"))  # as if it had been measured
        rates = Rates(1.2, 1e-10, 1e-4)
        speeds = Speeds(((64.0, 1e10), (512.0, 4e10)), 5e9, 1e6, rates, rates, rates)
        for backend, device in (("torch", "cpu"), ("auto", "auto"), ("torch", "auto")):
            key = calibration.key_of(backend, device, "auto")
            calibration.save(Calibration(key, "cpu", "float32", 16 << 30, 1 << 28, speeds))
        place.script("dial.py", *words, "--times", "60s", "--name", "own", *own)
    told = place.script("dial.py", "--document", "--results", place.here)
    assert str(place.here / "dial.md") in told
    rows = json.loads((place.here / "dial.json").read_text(encoding="utf-8"))["runs"]
    assert [row["data"] for row in rows] == ["own"]
    assert all(0 < row["used"] < 120 and row["bits_per_byte"] > 0 for row in rows)
    document = (place.here / "dial.md").read_text(encoding="utf-8")
    assert "![own: what each time reaches](dial-own.svg)" in document
    drawn = ElementTree.fromstring((place.here / "dial-own.svg").read_text(encoding="utf-8"))
    shown = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "bits per byte, held out, after pretrain" in shown
    assert f"{rows[0]['bits_per_byte']:.3f}" in shown  # the value itself stands at its point


def defaults_check(place: Place) -> None:
    data = place.here / "data"
    data.mkdir()
    texts = ["red apples", "2 + 3 is 5", "old stones stay", "a cat sat", "the sea is wide"]
    both = [(a, b) for a in texts for b in texts if a != b]
    for name, rows in (
        ("chats", [{"prompt": a, "completion": b} for a, b in both]),
        ("pairs", [{"prompt": a, "chosen": b, "rejected": a} for a, b in both]),
    ):
        told = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{name}.jsonl").write_text(told, encoding="utf-8")
    (data / "text.txt").write_text("Red apples grow slowly. " * 40, encoding="utf-8")
    words = ["--data", "data", "--work", "work", "--results", place.here, "--rows", 12, "--held", 2]
    told = place.script("defaults_check.py", place.model, *words)
    assert str(place.here / "defaults.md") in told
    found = json.loads((place.here / "defaults.json").read_text(encoding="utf-8"))["stages"]
    assert list(found) == ["sft", "dpo", "reward", "grpo"]
    for stage, row in found.items():
        assert row["peak"] > 50e6 and row["planned"] > 10e6 and row["rows"] == 12
        assert row["settings"]["steps"] >= 1 and row["after"].keys() >= row["before"].keys()
        kind = {"sft": "chats", "grpo": "numbers"}.get(stage, "pairs")
        held = (place.here / "work" / f"{kind}-held.jsonl").read_text(encoding="utf-8").splitlines()
        learned = (place.here / "work" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        assert held and not set(held) & set(learned), "what is held out is not learned from"
    page = (place.here / "defaults.md").read_text(encoding="utf-8")
    assert "bits per byte of held-out text" in page and "Not measured" not in page
    noted = {"stages": {"sft": found["sft"]}, "notes": {"grpo": ["Stopped after a step."]}}
    (place.here / "defaults.json").write_text(json.dumps(noted), encoding="utf-8")
    place.script("defaults_check.py", "--document", "--results", place.here)
    page = (place.here / "defaults.md").read_text(encoding="utf-8")
    assert page.endswith("## grpo\n\nNot measured to its end.\n\nStopped after a step.\n")


def mixed_documents(place: Place) -> None:
    text = place.here / "long.txt"
    text.write_text("\n\n".join(f"Paragraph {n} says {n * n}." for n in range(60)))
    told = place.script(
        "mixed_documents.py",
        text,
        place.here / "mixed",
        "--documents",
        20,
        "--held",
        place.here / "held",
    )
    assert "documents in" in told and len(list((place.here / "held").iterdir())) == 1
    assert {file.suffix for file in (place.here / "mixed").iterdir()} >= {".pdf", ".docx", ".epub"}


SMALL: dict[str, Callable[[Place], None]] = {
    "bench/bench.py": bench,
    "bench/peer_trl_ppo.py": peer_trl_ppo,
    "bench/peer_mlx_lm_lora.py": peer_mlx_lm_lora,
    "bench/many_runs.py": many_runs,
    "bench/tui.py": tui,
    "control.py": control,
    "defaults_check.py": defaults_check,
    "dial.py": dial,
    "fuzz.py": fuzz,
    "golden/ppo.py": golden_ppo,
    "house.py": house,
    "interop.py": interop,
    "mixed_documents.py": mixed_documents,
    "picture.py": picture,
    "plan_accuracy.py": plan_accuracy,
    "real/beside_trl.py": beside_trl,
    "real/smollm2.py": smollm2,
    "real/unseen_sums.py": unseen_sums,
    "rounds.py": simulated_rounds,
    "kept_skills.py": kept_skills,
    "same_results.py": same_results,
    "screenshots.py": screenshots,
    "soak.py": soak,
}


@pytest.mark.parametrize(
    "name", sorted(str(file.relative_to(SCRIPTS)) for file in SCRIPTS.rglob("*.py"))
)
def test_it_runs(name: str, request: pytest.FixtureRequest) -> None:
    if name in RUN_BY:
        starter = RUN_BY[name]
        assert re.search(rf"\b{Path(name).stem}\b", (SCRIPTS / starter).read_text("utf-8"))
        while starter in RUN_BY:
            starter = RUN_BY[starter]
        assert starter in SMALL
        return
    if name in ELSEWHERE:
        test = (Path(__file__).parent / ELSEWHERE[name]).read_text(encoding="utf-8")
        assert Path(name).stem in test
        return
    assert name in SMALL, f"scripts/{name} has no small case in {Path(__file__).name}"
    SMALL[name](request.getfixturevalue("place"))


def test_the_benchmark_measures_one_row_on_both_sides(place: Place) -> None:
    _, document, figures = compared(place, "pretrain:eager")
    same_losses(document, "pre-training, eager")
    for side in ("ours", "theirs"):
        assert all(one["rate"] > 0 for row in figures["rows"].values() for one in row[side])


def test_the_peak_of_memory_is_of_the_process_alone() -> None:
    """getrusage's begins at what the process held that started it: this one, with 400 MB and more."""
    held = bytearray(os.urandom(1)) * 400_000_000
    code = "from meter import peak_rss; print(peak_rss())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS / "bench", capture_output=True, text=True
    )
    assert len(held) == 400_000_000 and 5 < float(said.stdout) < 200, said.stderr


def test_small_cases_are_of_scripts_that_are_there() -> None:
    assert all((SCRIPTS / name).is_file() for name in (*SMALL, *RUN_BY, *ELSEWHERE))


def test_all_scripts_are_type_checked() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert mypy["strict"] and "scripts" in mypy["files"] and "exclude" not in mypy
    for file in ("scripts/test", ".pre-commit-config.yaml"):  # without a path: pyproject's files
        assert re.search(r"/mypy\"? --strict$", (ROOT / file).read_text(encoding="utf-8"), re.M), (
            file
        )
