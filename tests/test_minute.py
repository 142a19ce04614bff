"""The recipe `minute` as a newcomer runs it: the ladder climbs, all can load the folders. By day on
torch with fewer steps; whole, on both backends, at night.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import lzma
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ondevice as od
from conftest import BACKENDS
from ondevice import stages
from ondevice.cli import main
from ondevice.config.recipe import load_recipe
from ondevice.data.builtin.corpus import build
from ondevice_tui.run_reader import RunsReader

pytestmark = pytest.mark.slow
STAGES = tuple(load_recipe("minute").stages)
WRITERS = ("init", "pretrain", "sft", "ppo", "grpo")  # the stages that leave a model which writes
SHORTER = {
    "stages.pretrain": {"steps": 100, "eval_every": 50, "save_every": 50},
    "stages.sft": {"steps": 140, "eval_every": 70, "save_every": 70},
    "stages.sample": {"prompts": 80},
    "stages.reward": {"steps": 10, "eval_every": 5, "save_every": 5},
    "stages.ppo": {"steps": 2, "eval_every": 2, "save_every": 1},
    "stages.grpo": {"steps": 2, "eval_every": 2, "save_every": 1},
    "exam": {"problems": 10, "passes": 2, "duels": 10},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes that test, each of which may have a backend of its own to run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "minute"
    shared.mkdir(exist_ok=True)
    return shared


def finished(folder: Path, backend: str, *sets: str) -> tuple[Path, str]:
    """(run folder, what it printed), run once for all tests: who comes second waits for it."""
    out, printed = folder / backend, folder / f"{backend}.txt"
    with open(folder / f"{backend}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "ondevice",
                    "run",
                    "minute",
                    "--out",
                    str(out),
                    "--backend",
                    backend,
                    "--device",
                    "cpu",
                    *sets,
                ],
                capture_output=True,
                text=True,
                env={**os.environ, "COLUMNS": "120"},
            )
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    return out, printed.read_text()


def marks(run: Path) -> dict[str, Any]:
    return {stage: json.loads((run / stage / "done.json").read_text())["marks"] for stage in STAGES}


def test_the_recipe_has_every_stage_there_is() -> None:
    others = (load_recipe("minute", preference="dpo"), load_recipe("minute-encoder"))
    modules = {
        found.name
        for found in pkgutil.iter_modules(stages.__path__)
        if hasattr(importlib.import_module(f"ondevice.stages.{found.name}"), "run")
    }
    assert {*STAGES, *(name for recipe in others for name in recipe.stages)} == modules - {
        "pipeline"
    }


def shorter(folder: Path) -> tuple[Path, str]:
    """The recipe with fewer steps: (run folder, what it printed)."""
    sets = []
    for part, fields in SHORTER.items():
        for name, value in fields.items():
            sets += ["--set", f"{part}.{name}={value}"]
    (folder / "shorter").mkdir(exist_ok=True)
    return finished(folder / "shorter", "torch", *sets)


def test_a_shorter_run_climbs_is_told_and_loads_elsewhere(folder: Path) -> None:
    """Of so few steps no stage after sft climbs further; that all of them do, the night shows."""
    run, printed = shorter(folder)
    found = marks(run)
    bits = {stage: found[stage]["bits_per_byte"] for stage in WRITERS}
    match = {stage: found[stage]["exact_match"] for stage in WRITERS}
    assert max(bits["pretrain"], bits["sft"]) < bits["init"] / 2
    assert match["sft"] > 0.05 > max(match["init"], match["pretrain"])
    assert found["rate"]["simulated_votes"] == found["rate"]["votes"] > 0
    assert found["reward"]["pairs"] > 0
    assert all(0 <= found[stage]["reasoning"]["accuracy"] <= 1 for stage in WRITERS)
    check_what_is_told(run, printed)
    check_other_libraries(run / "sft" / "model", "torch")


@pytest.mark.parametrize("cases", [100, 5000])
def test_no_value_in_a_file_of_a_run_ends_a_reader_in_a_traceback(
    folder: Path, tmp_path: Path, cases: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of a run that came from elsewhere, or that a person edited: any value of any of them
    may be of another type. Whatever reads a run says so in one line, or does without it."""
    run = tmp_path / "runs" / "run"
    shutil.copytree(
        shorter(folder)[0],
        run,
        ignore=shutil.ignore_patterns("checkpoints", "data", "model", "value_model", "lock"),
    )
    files = [f for f in sorted(run.rglob("*")) if f.suffix in (".json", ".jsonl", ".yaml")]
    rng = random.Random(cases)
    for _ in range(cases):
        file = rng.choice(files)
        kept = file.read_bytes()
        what = spoil(file, rng)
        for read in (["runs"], ["runs", "--json"], ["runs", "report", str(run)]):
            more = ["--folder", str(run.parent)] if len(read) < 3 else []
            code = main([*read, *more])
            out, err = capsys.readouterr()
            assert code in (0, 2) and "Error: " not in out + err, (what, out, err)
        for seen in RunsReader(run.parent).read():
            assert "Error: " not in str(seen.get("wrong")), (what, seen)
        file.write_bytes(kept)


ODD_VALUES: tuple[Any, ...] = (
    *(None, [], {}, "", "x", "\ud800", True, 0, -1, 0.5, 2**31, 10**30, 1e308, float("nan")),
    *([[1]], {"a": {"b": 1}}, "9" * 5000),
)


def spoil(file: Path, rng: random.Random) -> str:
    """Puts another value in the place of one of the file's, or takes it away; says what it did."""
    text = file.read_text()
    rows = text.splitlines() if file.suffix == ".jsonl" else [text]
    number = rng.randrange(len(rows))
    value = yaml.safe_load(rows[number]) if file.suffix == ".yaml" else json.loads(rows[number])
    place = rng.choice(list(places(value)))
    odd = rng.choice(ODD_VALUES)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if rng.random() < 0.1:
        del inner[place[-1]]
    else:
        inner[place[-1]] = odd
    rows[number] = json.dumps(value)
    file.write_text("\n".join(rows) + "\n")
    return f"{file.parent.name}/{file.name}:{number + 1} {place} {odd!r:.40}"


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value within a value of JSON."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*place, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*place, number))


def test_the_ladder_climbs_at_every_stage(folder: Path, backend_name: str) -> None:
    found = marks(finished(folder, backend_name)[0])
    bits = {stage: found[stage]["bits_per_byte"] for stage in WRITERS}
    match = {stage: found[stage]["exact_match"] for stage in WRITERS}
    assert max(bits["pretrain"], bits["sft"]) < bits["init"] / 3
    assert max(match["init"], match["pretrain"]) < 0.05
    assert match["sft"] > 0.4
    assert found["rate"]["simulated_votes"] == found["rate"]["votes"] > 0
    assert found["reward"]["accuracy"] > 0.6
    assert won(found["ppo"]["points"], found["sft"]["points"]) > 0.5
    solved = {stage: found[stage]["reasoning"]["accuracy"] for stage in WRITERS}
    assert max(solved["init"], solved["pretrain"]) < 0.05
    assert solved["grpo"] > max(solved["sft"], solved["ppo"]) + 0.05


def won(points: list[float], others: list[float]) -> float:
    """Share of the prompts at which one stage's answer gets more points; a tie is lost."""
    return sum(a > b for a, b in zip(points, others, strict=True)) / len(points)


def test_the_model_needs_less_than_xz(folder: Path, backend_name: str) -> None:
    text = "\n".join(build(load_recipe("minute").corpus).documents("heldout")).encode()
    packed = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text)
    assert marks(finished(folder, backend_name)[0])["pretrain"]["bits_per_byte"] < packed


def test_the_end_shows_the_ladder_and_every_answer(folder: Path, backend_name: str) -> None:
    check_what_is_told(*finished(folder, backend_name))


def check_what_is_told(run: Path, printed: str) -> None:
    report = (run / "report.md").read_text()
    for prompt in load_recipe("minute").prompts:
        assert prompt in printed and prompt in report
    found = marks(run)
    for stage in WRITERS:
        share = f"{found[stage]['exact_match']:.1%}"
        assert any(line.startswith(stage) and share in line for line in printed.splitlines())
        assert any(stage in line and share in line for line in report.splitlines())


@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs both backends")
def test_both_backends_climb_the_same_ladder(folder: Path) -> None:
    one, other = (marks(finished(folder, name)[0]) for name in BACKENDS)
    for stage, off in (("init", 1e-5), ("pretrain", 0.03), ("sft", 0.15)):
        # The same weights, batches and order; rounding alone parts them, and 700 steps let it grow.
        assert one[stage]["bits_per_byte"] == pytest.approx(other[stage]["bits_per_byte"], rel=off)
    assert one["sft"]["exact_match"] == pytest.approx(other["sft"]["exact_match"], abs=0.15)


def test_other_libraries_load_the_folder_and_say_the_same(folder: Path, backend_name: str) -> None:
    said = check_other_libraries(finished(folder, backend_name)[0] / "sft" / "model", backend_name)
    assert said.startswith("27+23: ")


def check_other_libraries(model: Path, backend: str) -> str:
    """transformers and mlx-lm load it and say what we say, chat template and stop token included.
    Returns what that is.
    """
    import torch
    from mlx_lm import generate, load
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = "Take your time: what is 27+23?"
    ours = od.generate(
        model=str(model),
        prompt=prompt,
        chat=True,
        temperature=0,
        max_new_tokens=40,
        backend=backend,
    )[0]

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        out = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).generate(
            **ids, do_sample=False, max_new_tokens=40
        )
    theirs = tokenizer.decode(out[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert theirs == ours

    peer, peer_tokenizer = load(str(model))
    chat = peer_tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True
    )
    assert generate(peer, peer_tokenizer, chat, max_tokens=40) == ours
    return ours
