"""What several processes have drawn, token by token, and the gradients by which they have learned,
beside what one process has: each token that differs was drawn by a uniform that lies on a boundary of
the distribution, and gradients differ by rounding. No test by itself.

Imported first by a worker of `many.py`, it records there (`MANY_RECORD`); a test records its own
process's by `recording`.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import ondevice.rl.rollout as rollout
from ondevice.common.rng import uniforms
from ondevice.inference.external_generator import generator_of
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import Completion
from ondevice.models.load import load_model
from ondevice.seam.protocols import Backend

# and of an update's largest gradient: what another order of adding up makes of the first update's,
# whose weights are the same; later ones differ by what AdamW has made of that
ROUNDING, LATER = (1e-6, 2e-6), (2e-6, 1e-3)
NEAR = 1e-5  # how near to a boundary a uniform lies that rounding may carry over it

_write = rollout.write_together


def _recorder(folder: Callable[[], Path]) -> Callable[..., list[Completion]]:
    """`write_together`, which writes down its weights and what it has drawn."""

    def write(
        generator: Generator, params: Any, prompts: Any, *, samples: int = 1, **how: Any
    ) -> list[Completion]:
        found = _write(generator, params, prompts, samples=samples, **how)
        if generator.backend.group.leader:
            target = folder()
            target.mkdir(parents=True, exist_ok=True)
            n = len(list(target.glob("*.json")))
            weights = {name: generator.backend.numpy(w) for name, w in params.items()}
            np.savez(target / f"{n:03}.npz", **weights)
            told = {
                "sampling": asdict(generator.sampling),
                "prompts": [list(map(int, prompt)) for prompt in prompts],
                "samples": samples,
                "stage": how["stage"],
                "step": how.get("step", 0),
                "first": how.get("first", 0),
                "drawn": [one.ids + ([] if one.stop is None else [one.stop]) for one in found],
            }
            (target / f"{n:03}.json").write_text(json.dumps(told))
        return found

    return write


def _keep(folder: Path, gradients: Mapping[str, Any]) -> None:
    """One update's, in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(list(folder.glob("gradient-*")))
    np.savez(folder / f"gradient-{n:03}.npz", **{k: np.asarray(g) for k, g in gradients.items()})


@contextmanager
def _gradients_kept(backend: str, folder: Callable[[], Path]) -> Iterator[None]:
    """Within, each update's gradients are written down, once they are those of all processes."""
    module = importlib.import_module(f"ondevice_{backend}.optim")
    update = module.Optimizer.update

    def kept(self: Any, *arguments: Any) -> Any:
        if backend == "mlx":
            _keep(folder(), arguments[1])
        else:
            grads = {n: p.grad for n, p in self.params.items()}
            shapes = {n: tuple(p.shape) for n, p in self.params.items()}
            _keep(folder(), {n: np.zeros(shapes[n]) if g is None else g for n, g in grads.items()})
        return update(self, *arguments)

    module.Optimizer.update = kept
    try:
        yield
    finally:
        module.Optimizer.update = update


@contextmanager
def recording(folder: Path, backend: str) -> Iterator[None]:
    """Within, what this process draws for its stages is written into a folder, and its gradients."""
    rollout.write_together = _recorder(lambda: folder)
    try:
        with _gradients_kept(backend, lambda: folder):
            yield
    finally:
        rollout.write_together = _write


def _of_job() -> Path:
    return Path(os.environ["MANY_RECORD"]) / os.environ["MANY_JOB"]


if os.environ.get("MANY_RECORD"):
    rollout.write_together = _recorder(_of_job)
    _always = _gradients_kept("mlx" if "MLX_RANK" in os.environ else "torch", _of_job)
    _always.__enter__()


def sizes(ranks: Sequence[Path]) -> list[int]:
    """How many numbers each process updates at once."""
    return [
        sum(g.size for g in dict(np.load(folder / "gradient-000.npz")).values()) for folder in ranks
    ]


def gradients_apart(one: Path, *ranks: Path, updates: int | None = None) -> dict[str, np.ndarray]:
    """How far each weight's gradients are apart in the worst of the first `updates` updates (None:
    all), as a share of that gradient: one process's, and those that several have, of which each may
    have some. None is farther apart than rounding makes it."""
    worst: dict[str, np.ndarray] = {}
    files = sorted(one.glob("gradient-*"))
    for folder in ranks:
        assert files and [f.name for f in files] == [
            f.name for f in sorted(folder.glob("gradient-*"))
        ]
    for n, file in enumerate(files[:updates]):
        ours, theirs = dict(np.load(file)), {}
        for folder in ranks:
            theirs.update(np.load(folder / file.name))
        assert ours.keys() == theirs.keys()
        largest = max(float(np.abs(g).max()) for g in ours.values())
        for name, gradient in ours.items():
            apart = np.abs(gradient - theirs[name])
            least, share = LATER if n else ROUNDING
            told = (file.name, name, float(apart.max()), largest)
            assert apart.max() <= least + share * largest, told
            of_it = apart / np.maximum(np.abs(gradient), np.finfo(np.float32).tiny)
            worst[name] = np.maximum(worst.get(name, 0.0), of_it)
    return worst


def drawn_until(one: Path, other: Path, model: Path, backend: Backend) -> int | None:
    """How many steps have drawn the same tokens before the first one that did not; None: all have.
    There each row's first other token lies on a boundary; after it the weights are others."""
    files = sorted(one.glob("*.json"))
    assert files and [f.name for f in files] == [f.name for f in sorted(other.glob("*.json"))]
    steps = 0
    for file in files:
        ours, theirs = (json.loads((folder / file.name).read_text()) for folder in (one, other))
        apart = [n for n, ids in enumerate(ours["drawn"]) if ids != theirs["drawn"][n]]
        assert {**ours, "drawn": 0} == {**theirs, "drawn": 0}
        if not apart:
            steps += bool(ours["sampling"]["temperature"])
            continue
        for row in apart:
            distance = to_boundary(ours, theirs, row, file.with_suffix(".npz"), model, backend)
            assert distance <= NEAR, (file.name, row, distance)
        return steps
    return None


def to_boundary(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    row: int,
    weights: Path,
    model: Path,
    backend: Backend,
) -> float:
    """How far from the uniform the farthest boundary lies that is between a row's first two tokens
    that differ; of greedy ones how far their probabilities are apart."""
    pair = ours["drawn"][row], theirs["drawn"][row]
    place = next(n for n, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
    low, high = sorted(ids[place] for ids in pair)
    p, uniform = distribution(ours, row, place, weights, model, backend)
    if uniform is None:
        return float(abs(p[low] - p[high]))
    return float(np.abs(np.cumsum(p)[low:high] - uniform).max())


def distribution(
    told: dict[str, Any], row: int, place: int, weights: Path, model: Path, backend: Backend
) -> tuple[np.ndarray, float | None]:
    """((V,) probabilities of a row's token, computed anew under these weights; the uniform by which it
    was drawn, None where it is the likeliest)."""
    sampling = Sampling(**told["sampling"])
    assert not sampling.top_k and sampling.top_p == 1 and sampling.repetition_penalty == 1
    generator = generator_of(load_model(model, backend), backend, sampling)
    prompt = told["prompts"][row // told["samples"]]
    params = {name: backend.array(w) for name, w in np.load(weights).items()}
    before = [*prompt, *told["drawn"][row][:place]]
    logs = generator.reader(params, before).logprobs()[0].astype(np.float64)
    if not sampling.temperature:
        return np.exp(logs), None
    p = np.exp(logs / sampling.temperature)
    limit = generator.limit(len(prompt))
    drawn = uniforms(sampling.seed, told["stage"], told["step"], told["first"] + row, limit)
    return p / p.sum(), float(drawn[place])
