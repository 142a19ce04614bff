"""Several processes give what one gives: every stage that reads data, on both backends."""

from __future__ import annotations

import json
import socket
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import many
import many_rollouts
import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.common.launcher import launched
from ondevice.common.processes import Access, environment
from ondevice.models.load import load_model
from ondevice.preferences.database import Ratings
from ondevice.rl.rollout import Sampler
from ondevice.runs import events
from ondevice.runs.context import Context, RunSettings
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder, StopRequest
from ondevice.seam import connections
from ondevice.seam.group import ALONE, Group, at_once, deal
from ondevice.seam.protocols import OptimSettings
from ondevice.seam.select import load_backend

STEPS = 20
EVERY = ("pretrain", "sft", "lora", "classify", "reward", "dpo", "kto", "ppo", "grpo")
ROLLOUTS = ("ppo", "grpo")
UPDATES = {"ppo": 4, "grpo": 2}  # of a step; one in any other stage
NEAR = 1e-6


SOME = ("pretrain", "sft", "dpo", "grpo")


def files_of(folder: Path, backend: str) -> Path:
    """What the stages begin from."""
    loaded = load_backend(backend, "cpu", "float32")
    files = small_stages.make(folder / "files", loaded)
    rows = [{"text": f"{a} is {b}", "label": b} for a in small_stages.WORDS for b in ("red", "big")]
    (files / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return files


def jobs_of(
    files: Path, backend: str, steps: int = STEPS, shard: str = "none"
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name → (function of the Python API, its fields). `shard` is every stage's, and on torch Muon has
    the other way."""
    loop = {**small_stages.LOOP, "eval_every": 10, "save_every": 10, "steps": steps}
    loop |= {"backend": backend, "eval_batches": 2, "shard": shard}
    other = "state" if backend == "torch" and shard == "none" else "none"
    policy = {"model": str(files / "policy"), "sequence_length": 60, **loop}
    pairs = {**policy, "data": str(files / "pairs.jsonl"), "batch_size": 6}
    chats = {**policy, "data": str(files / "chats.jsonl"), "batch_size": 7}
    return {
        # an update's rows, uneven ones among them, in micro-batches of which one process has more
        "pretrain": (
            "pretrain",
            {
                **chats,
                "optimizer": "muon",
                "muon_learning_rate": 2e-3,
                "shard": other,
                "micro_batch": 2,
                "clip_norm": 0.5,
            },
        ),
        "sft": ("sft", {**chats, "micro_batch": 3}),
        "lora": ("sft", {**chats, "adapter": "lora", "lora_rank": 4, "packing": False}),
        "classify": (
            "classify",
            {
                **loop,
                "model": str(files / "policy"),
                "data": str(files / "texts.jsonl"),
                "batch_size": 5,
                "sequence_length": 16,
                "micro_batch": 1,
            },
        ),
        "reward": ("reward", {**pairs, "micro_batch": 2}),
        "dpo": ("dpo", {**pairs, "micro_batch": 2}),
        "ppo": ("ppo", {**_rollouts(files, "ppo", backend, steps), "shard": shard}),
        "grpo": ("grpo", {**_rollouts(files, "grpo", backend, steps), "shard": shard}),
        # at three times that rate rounding grows from step to step
        "kto": ("dpo", {**pairs, "micro_batch": 4, "loss_type": "kto", "learning_rate": 1e-3}),
    }


def _rollouts(files: Path, stage: str, backend: str, steps: int) -> dict[str, Any]:
    # so slowly that a policy does not run away, where the smallest difference grows
    own = {"learning_rate": 1e-4, "steps": steps, "eval_every": steps // 2}
    fields = small_stages.settings(files, stage, files, backend, **own)
    return {n: value for n, value in fields.items() if n != "out"}


def completions(run: Path, stage: str) -> list[Any]:
    """All that a stage has written and how it was judged, step after step."""
    lines = (run / stage / "groups.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def queued(run: Path) -> list[list[str]]:
    """The responses that wait to be rated, prompt by prompt."""
    with Ratings.open(run / "ratings.db") as ratings:
        return [[one.text for one in item.responses] for item in ratings.items()]


def losses(run: Path, stage: str, event: str = "step") -> list[float]:
    """The losses, or what a measurement tells in their place."""
    told = events.read(run / stage / "events.jsonl")
    names = ("loss", "score", "reward")
    return [
        float(next(one[name] for name in names if one.get(name) is not None))
        for one in told
        if one["event"] == event
    ]


def same_completions(one: list[Any], other: list[Any], steps: int) -> None:
    """The same texts in so many steps, and the same rewards."""
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        assert ours["step"] == theirs["step"]
        if ours["step"] > steps or ours.get("held_out"):
            continue
        for a, b in zip(ours["groups"], theirs["groups"], strict=True):
            texts = [[c["text"] for c in group["completions"]] for group in (a, b)]
            assert texts[0] == texts[1]
            for name in ("reward", "advantage"):
                near = [[c[name] for c in group["completions"]] for group in (a, b)]
                np.testing.assert_allclose(*near, atol=1e-3)


def same_folders(
    one: Path,
    other: Path,
    near: float,
    gradients: Mapping[str, np.ndarray] | None = None,
    moved: float = 2 * STEPS * 3e-3,
    without_effect: tuple[str, ...] = (),
) -> None:
    """The same files in two models' folders, and weights that are as near as that: but for one in a
    thousand, whose gradient is little more than rounding. AdamW divides by its size, so that it moves
    the weight by about its rate all the same, one way or the other.

    `gradients`: how far each weight's were apart, as a share of them: those of the few were so far
    apart that steps which add up to `moved` at most can tell. `without_effect`: how the names of
    tensors end whose gradient is 0 but for rounding.
    """
    names = {p.name for p in one.iterdir()}
    assert names == {p.name for p in other.iterdir()}
    assert {p.name for p in one.parent.iterdir()} == {p.name for p in other.parent.iterdir()}
    for name in names:
        if name.endswith((".json", ".jinja")):  # config, tokenizer, chat template
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for file in one.glob("*.safetensors"):
        ours, theirs = load_file(file), load_file(other / file.name)
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            apart = np.abs(tensor - theirs[name])
            few = 1.0 if name.endswith(without_effect) else 1e-3
            assert np.mean(apart > near) <= few and apart.max() < 2 * STEPS * 3e-3, name
            if gradients is not None and (apart > near).any():
                assert (gradients[name][apart > near] > near / moved).all(), name


CASES = {
    "every stage": (EVERY, 2, STEPS),
    "every stage by three": (EVERY, 3, STEPS),  # and the optimizer's state by its owner
    "some": (SOME, 2, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_as_one_does(tmp_path: Path, backend_name: str, case: str) -> None:
    names, size, rolled = CASES[case]
    if backend_name == "mlx" and size > 2:
        pytest.skip("a ring of three stands still now and then")
    files = files_of(tmp_path, backend_name)
    backend = load_backend(backend_name, "cpu", "float32")
    shard = "state" if size > 2 else "none"
    jobs = {n: job for n, job in jobs_of(files, backend_name, shard=shard).items() if n in names}
    for name in ROLLOUTS:
        if name in jobs:
            jobs[name][1].update(steps=rolled, eval_every=rolled // 2)
    chats = (files / "chats.jsonl").read_text().strip()
    (files / "some.jsonl").write_text(chats + '\n{"messages": "none"}\n')  # told of by one
    jobs["sft"][1].update(data=str(files / "some.jsonl"), bad_share=0.1)
    asked = [(fn, {**f, "out": str(tmp_path / f"many-{name}")}) for name, (fn, f) in jobs.items()]
    sampled = {"model": str(files / "policy"), "data": str(files / "prompts.jsonl")}
    sampled |= {"prompts": 9, "max_new_tokens": 8, "backend": backend_name, "device": "cpu"}
    asked.append(("sample", {**sampled, "out": str(tmp_path / "many-sample")}))
    own = {
        rank: {"MANY_FIRST": "many_rollouts", "MANY_RECORD": str(tmp_path / f"drawn-{rank}")}
        for rank in range(size)
    }
    started = many.Launch(backend_name, size, asked, tmp_path / "launch", own=own)
    for n, (function, fields) in enumerate(asked):
        out = fields["out"].replace("many-", "one-")
        with many_rollouts.recording(tmp_path / f"drawn-one/{n}", backend_name):
            getattr(od, function)(
                **{**fields, "out": out, **({"shard": "none"} if "shard" in fields else {})}
            )
    done = started.wait()

    def drawn_folders(n: int) -> list[Path]:
        return [tmp_path / f"drawn-{of}/{n}" for of in ("one", *range(size))]

    def drawn_alike(n: int) -> int | None:
        return many_rollouts.drawn_until(*drawn_folders(n)[:2], files / "policy", backend)

    assert drawn_alike(len(jobs)) is None
    assert queued(tmp_path / "many-sample") == queued(tmp_path / "one-sample"), started.shown(0)
    for n, (name, (function, fields)) in enumerate(jobs.items()):
        one, several = tmp_path / f"one-{name}", tmp_path / f"many-{name}"
        for rank in range(size):
            assert done[rank][n] == {"result": str(several / function / "model")}, started.shown(0)
        steps = rolled if name in ROLLOUTS else STEPS
        alike = steps
        if name in ROLLOUTS:
            found = drawn_alike(n)
            alike = steps if found is None else found
            assert alike >= 2
            same_completions(completions(one, function), completions(several, function), alike)
        for event in ("step", "eval"):
            ours, theirs = losses(several, function, event), losses(one, function, event)
            assert len(ours) == (2 if event == "eval" else steps)
            near = NEAR if event == "step" else 1e-5
            if event == "step" or alike == steps:
                np.testing.assert_allclose(ours[:alike], theirs[:alike], rtol=near, atol=near)
        # as long as they learn from the same texts
        updates = None if alike == steps else alike * UPDATES[name]
        apart = many_rollouts.gradients_apart(*drawn_folders(n), updates=updates)
        if alike == steps:
            folders = (of / function / "model" for of in (one, several))
            same_folders(*folders, 2e-5, apart)
        record = json.loads((several / function / "done.json").read_text())
        assert record["versions"]["processes"] == str(size)
        same_warnings(name, one / function, several / function)
        per_update = many_rollouts.sizes(drawn_folders(n)[1:])
        sent = [
            e["sent_bytes"]
            for e in events.read(several / function / "events.jsonl")
            if e["event"] == "step"
        ]
        assert sent == [UPDATES.get(name, 1) * bytes_of(per_update, fields["shard"])] * steps, name
    # of LoRA the adapter's alone
    if "lora" in jobs:
        folder = tmp_path / "many-lora/sft"
        adapter = load_file(folder / "model/adapter_model.safetensors")
        told = next(e for e in events.read(folder / "events.jsonl") if e["event"] == "step")
        numbers = sum(w.size for w in adapter.values())
        share = many_rollouts.sizes(drawn_folders(list(jobs).index("lora"))[1:])
        assert told["sent_bytes"] == 4 * numbers + (4 * share[0] if shard == "state" else 0)
    for rank in range(1, size):
        assert not started.shown(rank)


def bytes_of(numbers: Sequence[int], shard: str) -> int:
    """What the first process sends in an update, where each process updates so many numbers: every
    gradient, and the weights that it owns."""
    if shard == "state":
        return 4 * (sum(numbers) + numbers[0])
    assert len({*numbers}) == 1, "each has all gradients"
    return 4 * numbers[0]


def same_warnings(name: str, one: Path, several: Path) -> None:
    """The same ones in two stages' folders, each once."""
    told, alone = (
        [
            e["message"].replace(str(several.parent), str(one.parent))
            for e in events.read(folder / "events.jsonl")
            if e["event"] == "warning"
        ]
        for folder in (several, one)
    )
    assert not any("ondevice-process" in text for text in told), "a folder that is gone"
    # who reads anew counts the rows of which some cannot be used, too
    assert len(told) == len({*told}) == len(alone), (name, told, alone)


def test_micro_batches_are_shared_evenly() -> None:
    assert at_once(None, 16, 1) == 16 and at_once(5, 16, 1) == 5
    assert at_once(None, 16, 2) == 8  # one for each
    assert at_once(16, 16, 4) == 4
    assert at_once(3, 16, 2) == 3  # three for each
    assert at_once(8, 3, 2) == 2  # of three rows one process has two
    for rows in range(1, 40):
        for processes in range(1, 9):
            for micro_batch in (None, 1, 2, 3, 5, 8, 13):
                size = at_once(micro_batch, rows, processes)
                assert 1 <= size <= (micro_batch or rows)
                parts = -(-rows // size)
                assert parts >= min(processes, rows) or rows % size == 0 or size == 1 or parts


def test_one_process_asks_nobody() -> None:
    assert ALONE.leader and not ALONE.several
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.gather({"a": 1}) == [{"a": 1}] and ALONE.tell(3) == 3 and ALONE.least(4) == 4
    arrays: dict[str, Any] = {"w": np.ones(3, np.float32)}
    before = arrays["w"]
    ALONE.sum(arrays)
    assert arrays["w"] is before
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    ALONE.agree()
    ALONE.part(UserError("nothing"))


def test_launchers_are_known_by_their_environment() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    found = launched(torchrun)
    assert found is not None and (found.engine, found.rank) == ("torch", 1)
    assert launched({**torchrun, "WORLD_SIZE": "1"}) is None
    assert launched({"RANK": "1"}) is None
    found = launched({"MLX_RANK": "2", "MLX_HOSTFILE": "hosts.json"})
    assert found is not None and (found.launcher, found.rank) == ("mlx.launch", 2)
    assert launched({"MLX_RANK": "0"}) is None
    # what one of them starts is none of the launcher's
    passed = environment(
        Access.OWN, {**torchrun, "MLX_RANK": "0", "MLX_HOSTFILE": "h", "PATH": "p"}
    )
    assert launched(passed) is None and "MLX_RANK" not in passed and "RANK" not in passed


def test_what_works_in_one_process_is_refused_by_the_first_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor"]) == 2
    assert "works in one process" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_run_is_resumed_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that a stop names, in each of them; the first one prints."""
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/recipe.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    resumed = []

    def run(recipe: str, *, out: str, resume: bool) -> Path:
        resumed.append((recipe, resume))
        return Path(out)

    monkeypatch.setattr(od, "run", run)
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["runs", "resume", "runs/mine"]) == 0
        assert ("runs/mine" in capsys.readouterr().out) == (rank == "0")
    assert [resume for _, resume in resumed] == [True, True]
    assert cli.main(["runs"]) == 2  # looking is one process's


def test_long_ones_are_dealt_out_first() -> None:
    """Each to whom has least; each once, and in order within a process."""
    for weights in ([3, 3, 3], [9, 1, 1, 1, 1, 1, 1, 1, 1, 1], list(range(17)), [], [5]):
        for processes in (1, 2, 3, 8):
            parts = deal(weights, processes)
            assert sorted(n for part in parts for n in part) == list(range(len(weights)))
            assert all(part == sorted(part) for part in parts)
            loads = [sum(weights[n] for n in part) for part in parts]
            assert max(loads) - min(loads) <= max(weights, default=0)


def test_a_launcher_of_another_backend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun starts processes of torch"):
        od.sft(model="somewhere", backend="mlx")


def test_mlx_keeps_the_optimizers_state_whole(tmp_path: Path) -> None:
    pytest.importorskip("mlx.core")
    files = files_of(tmp_path, "mlx")
    fields = {"model": str(files / "policy"), "data": str(files / "chats.jsonl")}
    with pytest.raises(UserError, match="shard: mlx keeps"):
        od.sft(**fields, backend="mlx", device="cpu", shard="state", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class _Fake:
    """An engine of one process, beside which another one gives what a test says."""

    name, rank, size = "fake", 0, 2

    def __init__(self, others: list[np.ndarray]) -> None:
        self.others = others

    def gather(self, x: np.ndarray) -> np.ndarray:
        other = self.others.pop(0)
        padded = np.zeros_like(x)
        padded[: len(other)] = other
        return np.stack([x, padded])


@pytest.mark.slow
def test_a_token_is_drawn_between_its_boundaries(tmp_path: Path, backend_name: str) -> None:
    """What is computed anew where tokens differ is what they were drawn by, and one that was not drawn
    lies beyond a boundary."""
    backend = load_backend(backend_name, "cpu", "float32")
    model = small_stages.write(tmp_path / "policy", backend, small_stages.config())
    loaded = load_model(model, backend)
    sampler = Sampler(loaded, backend, temperature=0.9, max_new_tokens=6, seed=3)
    with many_rollouts.recording(tmp_path / "drawn", backend_name):
        sampler.draw(loaded.params, [[5, 9], [7, 8, 9]], 2, stage="grpo", step=4, first=6)
    [file] = (tmp_path / "drawn").glob("*.json")
    told = json.loads(file.read_text())
    weights = file.with_suffix(".npz")
    for row, place in ((0, 0), (1, 2), (3, 1)):
        p, uniform = many_rollouts.distribution(told, row, place, weights, model, backend)
        drawn = told["drawn"][row][place]
        edges = np.cumsum(p)
        assert uniform is not None
        assert edges[drawn - 1] - 1e-6 <= uniform <= edges[drawn] + 1e-6
        other = json.loads(file.read_text())
        other["drawn"][row][place] = drawn + 2  # with all of the next one's share between them
        apart = many_rollouts.to_boundary(told, other, row, weights, model, backend)
        assert apart >= p[drawn + 1] - 1e-6 > many_rollouts.NEAR


def test_what_is_shared_comes_back_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    assert group.spread(range(3), lambda n: n * n) == [0, 1, 4]
    group.size = 2
    monkeypatch.setattr(group, "gather", lambda own: [own, [1, 9]])
    assert group.spread(iter(range(5)), lambda n: n * n) == [0, 1, 4, 9, 16]
    monkeypatch.setattr(group, "gather", lambda own: [own, []])
    assert group.spread([3], lambda n: n) == [3]


def test_a_silent_connection_is_looked_after() -> None:
    """And nothing else is: neither a file, nor a pipe, nor what is connected within a machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listening.getsockname())
    other, _ = listening.accept()
    within = socket.socketpair()
    with listening, one, other, within[0], within[1]:
        assert not one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connections.watch()
        for end in (one, other):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            seconds = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            asked = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            assert connections.SILENT + seconds * asked < 60
        assert not within[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        one.sendall(b"as before")
        assert other.recv(99) == b"as before"


def test_what_another_process_has_warned_of_is_told_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).stage("sft").create()
    said: list[str] = []
    group = Group()
    backend: Any = SimpleNamespace(group=group)
    with EventWriter(folder.events) as writer, StopRequest() as stop:
        shared = RunSettings(stop, say=said.append)
        ctx = Context(folder, backend, writer, shared=shared)
        ctx.hear_others()
        group.hosts, group.size = ["a", "b", "c"], 3
        for rank in (1, 2):
            group.on_said(rank, "odd")
        ctx.warn("odd")  # it has come to the same
        ctx.warn("odd")  # and once more
        ctx.warn("own")
        group.on_said(1, "own")
    assert said == ["sft: process 1 of 3 (b): odd", "sft: odd", "sft: own"]


def test_processes_that_have_come_apart_are_told() -> None:
    group = Group.__new__(Group)
    group.__init__(None)  # type: ignore[misc]
    group._engine, group.size = _Fake([np.array([0, 3, 0])]), 2  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="agree, sum"):
        group.agree()


class _Counting(Group):
    """The first of two processes, beside another one that owns what this one does not."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.kinds: dict[str, Any] = {}
        self.received: list[Any] = []
        self.steps = 0

    def gather(self, value: Any) -> list[Any]:
        return [value, self.kinds]

    def send(self, arrays: Any, source: int = 0) -> None:
        [tensor] = arrays.values()
        assert not any(earlier() is not None for earlier in self.received), "one at a time"
        if source != self.rank:
            tensor.fill_(source)
            self.received.append(weakref.ref(tensor))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_a_checkpoint_is_gathered_tensor_by_tensor(tmp_path: Path, optimizer: str) -> None:
    """Of what the others own, no process has more than one tensor; the file is one process's."""
    torch = pytest.importorskip("torch")
    from ondevice_torch.optim import Optimizer
    from ondevice_torch.sharded import ShardedOptimizer

    backend: Any = load_backend("torch", "cpu", "float32")
    shapes = {f"layers.{n}.weight": (96, 96) for n in range(6)} | {"norm.weight": (96,)}
    params = {n: torch.zeros(shape) for n, shape in shapes.items()}
    muon = frozenset(n for n in shapes if optimizer == "muon" and "layers" in n)
    settings = OptimSettings(optimizer=optimizer, muon_names=muon)
    group = _Counting()
    sharded = ShardedOptimizer(params, settings, backend.ops, group)
    whole = Optimizer(params, settings, backend.ops).state()
    own = sharded.own.state()
    group.kinds = {
        n: [{"float32": "F32", "int8": "I8", "uint8": "U8"}[str(t.dtype)[6:]], list(t.shape)]
        for n, t in whole.items()
        if n not in own
    }
    assert group.kinds and own
    sharded.save(tmp_path / "optimizer.safetensors")
    assert len(group.received) == len(group.kinds)
    written = load_file(tmp_path / "optimizer.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (tuple(t.shape), t.numpy().dtype) for n, t in whole.items()
    }
    assert all((written[n] == 1).all() for n in group.kinds)
