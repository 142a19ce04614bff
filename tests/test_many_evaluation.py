"""What several processes measure together is what one measures: the same figures, the same answers."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import many
import models
import ondevice as od
import small_stages
from data_samples import TEXTS
from ondevice import cli
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend


def asked(folder: Path, backend: str) -> dict[str, dict[str, Any]]:
    """Name → the fields of `evaluate`: each of its tasks, small."""
    loaded = load_backend(backend, "cpu", "float32")
    files = small_stages.make(folder / "files", loaded)
    small_stages.write(files / "other", loaded, small_stages.config(), seed=3)
    classes = {"num_labels": 2, "label_names": ("red", "big")}
    small_stages.write(files / "classes", loaded, small_stages.config(**classes), seed=4)
    tokenizer = train_tokenizer(TEXTS, 420, fills=True)
    masked = models.encoder_config("bert", vocab_size=tokenizer.vocab_size)
    arrays = {n: loaded.array(w) for n, w in models.weights(masked, 2).items()}
    (files / "masked").mkdir()
    write_model(files / "masked", loaded, masked, arrays, tokenizer)
    texts = [
        {"text": f"{a} is {b}", "label": b} for a in small_stages.WORDS for b in ("red", "big")
    ]
    (files / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    plain = "\n".join(f'{{"text": "{" ".join(small_stages.WORDS)} {n}"}}' for n in range(200))
    (files / "plain.jsonl").write_text(plain)
    prompts = {"data": str(files / "prompts.jsonl"), "max_new_tokens": 8}
    policy = {"model": str(files / "policy"), "backend": backend, "device": "cpu"}
    against = {"against": str(files / "other"), "judge": str(files / "judge"), "limit": 11}
    pairs = {"tasks": ["preference"], "data": str(files / "pairs.jsonl")}
    return {
        "text": {**policy, "data": str(files / "plain.jsonl")},
        "chats": {**policy, "data": str(files / "chats.jsonl")},
        "problems": {**policy, **prompts, "tasks": ["problems"], "tries": 2, "answer": "any"},
        "win": {**policy, **prompts, "tasks": ["win"], **against},
        "preference": {**policy, **pairs, "reference": str(files / "other")},
        "scores": {**policy, **pairs, "model": str(files / "judge")},
        "classes": {**policy, "data": str(files / "texts.jsonl"), "model": str(files / "classes")},
        "masked": {**policy, "data": str(files / "plain.jsonl"), "model": str(files / "masked")},
        "built in": {**policy, "data": "builtin:tiny", "limit": 3},
    }


@pytest.mark.slow
def test_two_processes_measure_as_one_does(tmp_path: Path, backend_name: str) -> None:
    jobs = asked(tmp_path, backend_name)
    for rank in range(2):
        (tmp_path / f"own-{rank}").mkdir()
        (tmp_path / f"own-{rank}" / "rows.jsonl").write_text(f'{{"text": "Anna is {rank}"}}\n')
    started = many.Launch(
        backend_name,
        2,
        [("evaluate", fields) for fields in jobs.values()]
        + [("evaluate", {**jobs["text"], "data": "rows.jsonl"})],
        tmp_path / "launch",
        own={rank: {"MANY_FOLDER": str(tmp_path / f"own-{rank}")} for rank in range(2)},
    )
    one = {name: od.evaluate(**fields) for name, fields in jobs.items()}
    done = started.wait()
    for n, name in enumerate(jobs):
        for rank in range(2):
            assert "result" in done[rank][n], (name, done[rank][n], started.shown(rank))
            found = ast.literal_eval(done[rank][n]["result"])
            assert found.keys() == one[name].keys()
            for figure, value in found.items():  # texts are read beside others: another rounding
                near = isinstance(value, float)
                expected = pytest.approx(one[name][figure], rel=1e-6) if near else one[name][figure]
                assert value == expected, (name, figure)
    assert done[0][-1] == done[1][-1] and done[0][-1]["kind"] == "UserError"
    assert "process 1 of 2" in done[0][-1]["error"]
    assert "other contents of data" in done[0][-1]["error"]
    assert not started.shown(1)


def test_eval_prints_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is let through for several processes, and the first one prints."""
    monkeypatch.setattr(od, "evaluate", lambda cfg: {"accuracy": 0.5})
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert cli.main(["eval", "model", "--backend", "torch"]) == 0
    assert "0.5" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["eval", "model", "--backend", "torch"]) == 0
    assert capsys.readouterr() == ("", "")


LOOP = "batch_size: 4, learning_rate: 1.0e-4, schedule: constant, eval_every: 0, save_every: 0"
ROAD = f"""
describe: the road from random weights to reasoning
prompts: ["Who is it?"]
corpus: {{people: 6, document_bytes: 20000, chat_count: 600, prompt_count: 100, problem_count: 40}}
exam: {{problems: 3, passes: 2, duels: 3, questions: 3}}
stages:
  init: {{vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1,
         num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 256}}
  pretrain: {{steps: 4, sequence_length: 32, {LOOP}}}
  sft: {{steps: 3, sequence_length: 200, {LOOP}}}
  grpo: {{steps: 2, prompts: 3, group_size: 2, max_new_tokens: 8, learning_rate: 1.0e-4,
         schedule: constant, eval_every: 0, save_every: 0, rewards: [length, finished]}}
"""


@pytest.mark.slow
def test_a_recipes_road_and_its_exams(tmp_path: Path, backend_name: str) -> None:
    """Every stage of a recipe by two processes, which take each stage's exam together, also where one
    of them takes longer over it than torch lets processes wait for each other by itself."""
    (tmp_path / "road.yaml").write_text(ROAD)
    fields = {"recipe": str(tmp_path / "road.yaml"), "backend": backend_name, "device": "cpu"}
    own = {
        rank: {"MANY_FIRST": "many_slow", "MANY_SLOW": "first" if not rank else "others"}
        for rank in range(2)
    }
    started = many.Launch(
        backend_name,
        2,
        [("run", {**fields, "out": str(tmp_path / "two")})],
        tmp_path / "a",
        own=own,
    )
    od.run(**fields, out=str(tmp_path / "one"))
    done = started.wait()
    assert done[0] == done[1] == [{"result": str(tmp_path / "two")}], started.shown(0)
    stages = [path.parent.name for path in (tmp_path / "one").glob("*/done.json")]
    assert len(stages) == 4
    for stage in stages:
        one, two = (
            json.loads((tmp_path / n / stage / "done.json").read_text()) for n in ("one", "two")
        )
        assert two["marks"].keys() == one["marks"].keys(), stage
        if stage in ("init", "pretrain", "sft"):  # later ones learn from what these write
            ours, theirs = two["marks"], one["marks"]
            assert ours.pop("bits_per_byte") == pytest.approx(theirs.pop("bits_per_byte"), rel=1e-5)
            assert ours == theirs
    assert "## " in (tmp_path / "two" / "report.md").read_text()
