"""Several processes on two machines: two network namespaces with a wire between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import many
import ondevice as od
from ondevice.runs import events
from test_many import files_of, jobs_of, losses

NAMESPACES = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="root on Linux can make network namespaces",
)
HOSTS = ["10.77.0.1", "10.77.0.2"]

RECIPE = """
describe: two stages
prompts: ["Who is it?"]
corpus: {people: 6, document_bytes: 20000, chat_count: 600, prompt_count: 100, problem_count: 40}
exam: {problems: 2, passes: 1, duels: 2, questions: 2}
stages:
  init: {vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1,
         num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 256}
  pretrain: {steps: 20, batch_size: 4, sequence_length: 32, learning_rate: 1.0e-3, eval_every: 0,
             save_every: 10, schedule: constant}
  sft: {steps: 4, batch_size: 4, sequence_length: 200, learning_rate: 1.0e-3, eval_every: 0,
        save_every: 0}
"""


@contextmanager
def two_nodes() -> Iterator[list[str]]:
    """Two network namespaces with a wire between them, as two machines have; their names."""
    names = [f"many-{os.getpid()}-{n}" for n in range(2)]
    made = []
    try:
        for n, name in enumerate(names):
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
            if n:
                _ip(
                    "link",
                    "add",
                    "wire",
                    "netns",
                    names[0],
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "wire",
                    "netns",
                    name,
                )
        for n, name in enumerate(names):
            _ip("-n", name, "address", "add", f"10.77.0.{n + 1}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
        yield names
    finally:
        for name in made:
            _ip("netns", "del", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    return done.stdout


def sent_by(node: str) -> int:
    """Bytes that a node has put on its wire."""
    return int(_ip("netns", "exec", node, "cat", "/sys/class/net/wire/statistics/tx_bytes"))


@pytest.mark.slow
@NAMESPACES
def test_two_nodes_without_a_common_disk(tmp_path: Path, backend_name: str) -> None:
    """Each has its own folder, in which the recipe lies; the first one's run is a whole one."""
    own = {}
    for rank in range(2):
        (tmp_path / f"node-{rank}").mkdir()
        (tmp_path / f"node-{rank}" / "two.yaml").write_text(RECIPE)
        own[rank] = {"MANY_FOLDER": str(tmp_path / f"node-{rank}"), "GLOO_SOCKET_IFNAME": "wire"}
    job = {"recipe": "two.yaml", "out": "run", "backend": backend_name, "device": "cpu"}
    with two_nodes() as nodes:
        started = many.launch(
            backend_name,
            2,
            [("run", job)],
            tmp_path / "launch",
            own=own,
            hosts=HOSTS,
            within=[["ip", "netns", "exec", node] for node in nodes],
        )
        wire = [sent_by(node) for node in nodes]
    run = tmp_path / "node-0/run"
    assert "ladder" in (run / "report.md").read_text().lower() or (run / "sft/done.json").is_file()
    there = [str(p.relative_to(tmp_path)) for p in (tmp_path / "node-1").rglob("*") if p.is_file()]
    # what the stages have made for the next ones, and nothing else of the run
    assert all(p.startswith(("node-1/two.yaml", "node-1/run/")) for p in there)
    sent = {Path(p).parts[2] for p in there if "/run/" in p}
    assert sent <= {"init", "pretrain", "recipe.yaml", "ratings.db"} and "pretrain" in sent
    assert not any("checkpoints" in p or "/data/" in p for p in there)
    # the gradients, and the weights at each stage's start; models are larger than that by little
    told = [one for s in ("pretrain", "sft") for one in events.read(run / s / "events.jsonl")]
    gradients = sum(one["sent_bytes"] for one in told if one["event"] == "step")
    assert gradients < wire[1] < 2 * gradients + 1_000_000
    # torch itself says that such a machine has no name
    assert not [x for x in started.shown(1).splitlines() if not x.startswith("[W")]


@pytest.mark.slow
@NAMESPACES
def test_a_machine_that_goes_silent_ends_the_others(tmp_path: Path, backend_name: str) -> None:
    """A wire that is cut closes no connection."""
    files = files_of(tmp_path, backend_name)
    _, fields = jobs_of(files, backend_name)["sft"]
    fields = {**fields, "out": str(tmp_path / "run"), "save_every": 2, "eval_every": 0}
    with two_nodes() as nodes:
        started = many.Launch(
            backend_name,
            2,
            [("sft", {**fields, "steps": 100000})],
            tmp_path / "launch",
            own={
                rank: {"MANY_FIRST": "many_silent", "GLOO_SOCKET_IFNAME": "wire"}
                for rank in range(2)
            },
            hosts=HOSTS,
            within=[["ip", "netns", "exec", node] for node in nodes],
        )
        checkpoints = tmp_path / "run/sft/checkpoints"
        started.when(lambda: bool(list(checkpoints.glob("step-*"))))
        _ip("-n", nodes[1], "link", "set", "wire", "down")
        outcome = started.wait()
    for rank in range(2):
        assert [one["kind"] for one in outcome[rank]] == ["PeerLost"], started.shown(rank)
        assert "--resume" in outcome[rank][0]["error"]
    steps = max(int(p.name[5:]) for p in checkpoints.glob("step-*"))
    od.sft(**{**fields, "steps": steps + 1, "resume": True})
    assert len(losses(tmp_path / "run", "sft")) == steps + 1
