"""The recipes that read the Hub, short, from a server on this machine that has the sets and the
model in their exact form. The real ones are read by nobody here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hub_sets
from hub_server import HubServer, environment, running
from ondevice.config.recipe import Recipe, load_recipe
from ondevice.preferences.database import Ratings

CUT = re.compile(r"\[(\d*):(\d*)\]")
FEWER = 100  # times that the recipes' cuts of splits are as long as the test's
SHORT: dict[str, list[str]] = {
    "stories": [
        "init.limit=60 init.vocab_size=400 init.hidden_size=32 init.intermediate_size=48",
        "init.num_hidden_layers=2 init.num_attention_heads=2 init.num_key_value_heads=2",
        "pretrain.steps=60 pretrain.batch_size=4 pretrain.sequence_length=32 pretrain.eval_every=0",
        "sft.steps=20 sft.batch_size=2 sft.eval_every=0",
        "sample.prompts=12 sample.max_new_tokens=200",
        "dpo.steps=2 dpo.batch_size=2",
        "grpo.steps=2 grpo.prompts=2 grpo.group_size=2 grpo.max_new_tokens=16",
    ],
    "smol": [
        "sft.steps=40 sft.batch_size=4 sft.sequence_length=128 sft.lora_rank=4 sft.eval_every=0",
        "sft.learning_rate=0.02",
        "sample.max_new_tokens=10 sample.temperature=1.5",
        "dpo.steps=2 dpo.batch_size=2 dpo.lora_rank=4",
        "grpo.steps=2 grpo.prompts=2 grpo.group_size=2 grpo.max_new_tokens=16 grpo.lora_rank=4",
    ],
}


def fewer(recipe: Recipe) -> list[str]:
    """Changes of the recipe that cut its data shorter, by the same names."""

    def cut(match: re.Match[str]) -> str:
        first, end = (int(number) // FEWER if number else None for number in match.groups())
        if end is not None:
            end = max(end, (first or 0) + 4)
        return f"[{first or ''}:{end or ''}]"

    sets = [
        "exam.duels=4",
        "exam.max_new_tokens=12",
        f"exam.data={CUT.sub(cut, recipe.exam.data)}",
    ]
    for name, cfg in recipe.stages.items():
        for field in ("data", "validation"):
            value = str(getattr(cfg, field, ""))
            if "[" in value:
                sets.append(f"{name}.{field}={CUT.sub(cut, value)}")
    return sets


def run(name: str, server: HubServer, home: Path) -> tuple[Path, str]:
    """(the run folder, what was said) of the recipe, short."""
    sets = [word for line in SHORT[name] for word in line.split()] + fewer(load_recipe(name))
    flags = [flag for word in sets for flag in ("--set", word)]
    out = home / "runs" / name
    env = {
        **environment(server, home, token=""),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "PYTHONPATH": os.getcwd(),
    }
    command = ["-m", "ondevice", "run", name, "--out", str(out), "--backend", "torch"]
    done = subprocess.run(
        [sys.executable, *command, "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return out, done.stderr


def record(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "done.json").read_text())
    return found


def check_exam(out: Path, stage: str, rewards: set[str]) -> None:
    """Held-out prompts were answered and judged after the stage, and the report says so."""
    marks = record(out / stage)["marks"]
    assert len(marks["points"]) == 4 and set(marks["rewards"]) == rewards
    assert "Rewards of the answers to held-out prompts" in (out / "report.html").read_text()


@pytest.mark.slow
def test_stories_goes_its_road_on_tinystories_form(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with running() as server:
        hub_sets.add_tinystories(server, 1300, 36)
        out, said = run("stories", server, tmp_path)
        log = "\n".join(server.log)
    assert {path.name for path in out.iterdir() if (path / "done.json").is_file()} == set(
        load_recipe("stories").stages
    )
    assert "roneneldan/TinyStories was read at commit " in said and ".txt" not in log
    with Ratings.open(out) as ratings:
        items, votes = ratings.items(), ratings.live_votes()
    assert len(items) == len(votes) == 12
    assert {"words", "begins", "ends", "word_count"} & {name for i in items for name in i.meta}
    assert all(vote.rater.startswith("simulated:words=1,") for vote in votes)
    events = (out / "grpo" / "events.jsonl").read_text().splitlines()
    figures = {name for line in events for name in json.loads(line)}
    assert {"reward/finished", "reward/repetition", "reward/word_count"} <= figures
    assert re.search(r"exam +reward -?\d\.\d{3} of answers to 4 held-out prompts \(words", said)
    check_exam(out, "sft", {"words", "begins", "ends", "finished", "word_count", "repetition"})
    assert "TinyStories" in (out / "report.html").read_text()


@pytest.mark.slow
def test_smol_goes_its_road_on_the_form_of_its_sets_and_model(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with running() as server:
        hub_sets.add_smollm2(server, tmp_path / "tokenizer")
        hub_sets.add_smoltalk(server, 80, 12)
        hub_sets.add_gsm8k(server, 40, 8)
        out, said = run("smol", server, tmp_path)
    assert {path.name for path in out.iterdir() if (path / "done.json").is_file()} == set(
        load_recipe("smol").stages
    )
    with Ratings.open(out) as ratings:
        items, votes = ratings.items(), ratings.live_votes()
    assert {item.meta.get("source") is None for item in items} == {True, False}
    check_exam(out, "grpo", {"correct", "format", "truncated"})
    assert all(vote.rater == "simulated:correct=1,truncated=0.5,repetition=1" for vote in votes)
