"""What compilers see of a forward: whole graphs, tables as arguments, few traces."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from ondevice.models.kv_cache import Cache
from ondevice.models.network import network
from ondevice.models.registry import ModelConfig
from ondevice.models.tables import LEAST, length_of, placed, places, with_tables
from ondevice.seam.ops import Array, Metrics, Ops, Params
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.seam.select import load_backend
from ondevice.training import logprobs
from ondevice.training.losses import causal_lm_loss

EVERY_FAMILY = [*models.FAMILIES, *models.ENCODERS, *models.SEQ2SEQ]


def config_of(family: str, **changes: Any) -> ModelConfig:
    if family in models.FAMILIES:
        return models.config(family, **changes)
    if family in models.ENCODERS:
        return models.encoder_config(family, **changes)
    return models.seq2seq_config(family, **changes)


def batch_of(family: str, cfg: Any, tokens: int = 20) -> dict[str, np.ndarray]:
    """Two rows as the family reads them."""
    batch = models.batch(cfg, 2, tokens, segments=family in models.ENCODERS)
    if family in models.SEQ2SEQ:
        lengths = np.array([tokens, tokens - 4], np.int32)
        batch |= {"source_ids": batch["ids"], "source_lengths": lengths}
    return batch


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_no_table_is_made_inside_a_forward(backend: Backend, family: str) -> None:
    """The trainer's way, through every own forward and its gradient."""
    cfg = config_of(family)
    net = network(cfg)
    inside: list[bool] = []

    def no_constant(x: np.ndarray) -> Array:
        raise AssertionError(f"a table {x.shape} inside a forward")

    def loss(ops: Ops, params: Params, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        usual = ops.constant
        ops.constant = no_constant  # type: ignore[method-assign]
        try:
            found = causal_lm_loss(ops, params, batch, model=net)
        finally:
            ops.constant = usual  # type: ignore[method-assign]
        inside.append(True)
        return found

    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    trainer = backend.trainer(loss, params, {}, OptimSettings())
    out = trainer.step([with_tables(net, backend.ops, batch_of(family, cfg))], 1e-3)
    assert inside and np.isfinite(out["loss"])


@pytest.mark.parametrize("family", ["llama3-rope", "gemma3", "modernbert", "t5"])
def test_tables_of_any_length_give_the_same(backend: Backend, family: str) -> None:
    """To the bit: those for short texts are the beginning of those for long ones."""
    cfg = config_of(family)
    net = network(cfg)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    batch = {n: backend.array(x) for n, x in batch_of(family, cfg).items()}
    found = []
    for length in (LEAST, 4 * LEAST):
        tables = {f"table.{n}": backend.array(x) for n, x in net.tables(length).items()}
        found.append(backend.numpy(net.hidden(backend.ops, params, {**batch, **tables})))
    assert np.array_equal(*found)
    assert np.array_equal(found[0], backend.numpy(net.hidden(backend.ops, params, batch)))


def test_tables_are_as_long_as_the_texts_ask_for() -> None:
    assert [length_of(n) for n in (1, LEAST, LEAST + 1, 1000)] == [LEAST, LEAST, 2 * LEAST, 1024]
    net = network(models.config("llama", max_position_embeddings=131072))
    for width, rows in ((100, LEAST), (3000, 4096), (200_000, 131072)):
        assert {len(x) for x in net.tables(length_of(width)).values()} == {rows}
    assert net.tables(LEAST)["10000.0.cos"] is net.tables(LEAST)["10000.0.cos"]


def test_positions_beyond_the_width_have_tables(backend: Backend) -> None:
    """An answer may stand in its row before the place that its position counts."""
    net = network(models.config("llama", max_position_embeddings=4096))
    positions = np.arange(990, 1010, dtype=np.int32)[None]
    batch = {"ids": np.zeros((1, 20), np.int32), "positions": positions, "sft.ids": places(600)}
    placed = with_tables(net, backend.ops, batch)
    assert placed["table.10000.0.cos"].shape[0] == 1024
    assert placed["sft.table.10000.0.cos"].shape[0] == 1024


def test_a_trace_holds_no_table_of_the_whole_context() -> None:
    """Six traces of a model whose context has tables of 34 MB."""
    mx = pytest.importorskip("mlx.core")
    backend = load_backend("mlx", device="cpu", dtype="float32")
    cfg = models.config("llama", max_position_embeddings=131072, head_dim=64)
    net = network(cfg)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    trainer = backend.trainer(partial(causal_lm_loss, model=net), params, {}, OptimSettings())
    held = []
    for tokens in range(16, 16 + 7 * 8, 8):
        trainer.step([with_tables(net, backend.ops, models.batch(cfg, 2, tokens))], 1e-3)
        mx.synchronize()
        mx.clear_cache()
        held.append(mx.get_active_memory())
    assert held[-1] - held[0] < 2_000_000


FULL_GRAPHS = """
import sys
import numpy as np
import torch
from functools import partial
import models
import test_graphs as t
from ondevice.models.kv_cache import Cache
from ondevice.models.network import network
from ondevice.data.completion_batches import Row
from ondevice.data.shared_prompts import answer_batch
from ondevice.models.tables import placed, with_tables
from ondevice.seam.select import load_backend
from ondevice.training import logprobs, losses, policy_losses, preference_losses
from ondevice.training.losses_beside import with_losses_beside

torch._dynamo.config.trace_numpy = False
backend = load_backend("torch", device="cpu", dtype="float32")
ops = backend.ops

def whole(fn, *args):
    torch._dynamo.reset()
    return torch.compile(fn, backend="eager", fullgraph=True)(*args)

def put(x):
    return x if isinstance(x, torch.Tensor) else backend.array(np.asarray(x))

def params_of(cfg, grad=True):
    made = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    return {n: p.requires_grad_() for n, p in made.items()} if grad else made

def on(net, batch):
    return {n: put(x) for n, x in with_tables(net, ops, batch).items()}

def learn(name, loss, params, batch):
    whole(lambda p, b: loss(ops, p, b), params, batch)[0].backward()
    print("ok", name, flush=True)

for family in sys.argv[1:]:
    cfg = t.config_of(family)
    net = network(cfg)
    sft = partial(losses.causal_lm_loss, model=net)
    learn(f"sft {family}", sft, params_of(cfg), on(net, t.batch_of(family, cfg)))
    if family in models.ENCODERS:
        continue
    ids = put(np.array([[5, 6, 7, 8]] * 2, np.int32))
    lengths = put(np.array([4, 3], np.int32))
    positions = put(np.tile(np.arange(4, dtype=np.int32), (2, 1)))
    ends = put(np.array([3, 6], np.int32))
    params = params_of(cfg, grad=False)
    tables = placed(net, ops, 32)
    with torch.no_grad():
        reading = lambda p, tables, ids: net.prefill(ops, p, tables, ids, positions, ends, lengths)
        _, cache = whole(reading, params, tables, ids)
        room = [torch.cat([x, torch.zeros(*x.shape[:2], 28, x.shape[3])], 2) for x in cache.keys]
        more = [torch.cat([x, torch.zeros(*x.shape[:2], 28, x.shape[3])], 2) for x in cache.values]
        def step(p, tables, token, keys, values, lengths, fixed):
            x, cache = net.decode(ops, p, tables, token, Cache(keys, values, lengths, fixed))
            return x, cache.lengths
        whole(step, params, tables, ids[:, :1], room, more, cache.lengths, cache.fixed)
    print("ok decode", family, flush=True)

cfg = t.config_of("qwen3")
net = network(cfg)
batch = models.batch(cfg, 4, 12)
k = len(batch["targets"])
member = np.zeros((4, k), np.float32)
member[batch["index"] // 12, np.arange(k)] = 1
half = np.full(k, 0.5, np.float32)
batch |= {"member": member, "pairs": np.ones(2, np.float32), "ref_logps": np.zeros(4, np.float32)}
for kind in sorted({*preference_losses.PAIR_LOSSES, "kto"}):
    dpo = partial(preference_losses.preference_loss, model=net, kind=kind, beta=0.1)
    drift = {"drift": np.float32(0.1)} if kind == "kto" else {}
    learn(f"dpo {kind}", dpo, params_of(cfg), on(net, batch | drift))
rollout = batch | {
    "advantages": half, "old_logps": half, "ref_logps": half, "scale": half,
    "returns": half, "old_values": half,
}
ragged = []
for prompt in (40, 70):
    ragged += [Row([5] * prompt, [6] * answer) for answer in (20, 64, 33)]
unpadded = answer_batch(ragged, 6)
assert "slots" in unpadded and "prompt_places" in unpadded
del unpadded["member"]
score = lambda p, b: logprobs.token_logprobs(
    ops, p, net.head, net.hidden(ops, p, b, at=b["index"]), b["targets"]
)[0]
with torch.no_grad():
    whole(score, params_of(cfg, grad=False), on(net, unpadded))
print("ok unpadded", flush=True)
sft = partial(losses.causal_lm_loss, model=net)
learn("sft unpadded", sft, params_of(cfg), on(net, unpadded | {"denominator": np.float32(6)}))
grpo = partial(policy_losses.grpo_loss, model=net, clip_low=0.2, clip_high=0.2, beta=0.1)
learn("grpo", grpo, params_of(cfg), on(net, rollout))
judge = t.config_of("qwen3", num_labels=1)
read = np.arange(4, dtype=np.int32) * 12 + 11
pairs = {n: batch[n] for n in ("ids", "positions", "pairs")} | {
    "read": read, "margin": np.zeros(2, np.float32), "denominator": np.float32(2),
}
reward = partial(preference_losses.reward_loss, model=network(judge), checkpoint=True)
learn("reward", reward, params_of(judge), on(net, pairs))
both = params_of(cfg) | {f"value.{n}": p for n, p in params_of(judge).items()}
chats = {f"sft.{n}": x for n, x in models.batch(cfg, 2, 16, segments=True).items()}
ppo = with_losses_beside(
    partial(policy_losses.ppo_loss, model=net, clip=0.2, value_clip=0.2, value_coef=0.1),
    model=net, sft_coef=0.5,
)
learn("ppo", ppo, both, on(net, rollout | chats))
print("all", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("families", [("qwen3", "modernbert"), EVERY_FAMILY], ids=["two", "every"])
def test_torch_compiles_whole_graphs(families: tuple[str, ...]) -> None:
    """No break in any forward, loss or step of decoding, in a process that has run none before."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", FULL_GRAPHS, *families],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=900,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    said = done.stdout.split("\n")
    assert "all" in said
    assert "ok unpadded" in said
    assert sum(line.startswith("ok sft") for line in said) == len(families) + 1


def ragged_steps(backend: Backend, steps: int, compile: str) -> int:
    """Traces of a trainer that learns from batches of `steps` shapes."""
    cfg = models.config("qwen3")
    net = network(cfg)
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    loss = partial(causal_lm_loss, model=net)
    trainer = backend.trainer(loss, params, {}, OptimSettings(), compile=compile)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(steps):
        rows, tokens = int(rng.integers(2, 7)), int(rng.integers(10, 120))
        batch = models.batch(cfg, rows, tokens, segments=True)
        seen.add((rows, tokens, len(batch["targets"])))
        assert np.isfinite(trainer.step([with_tables(net, backend.ops, batch)], 1e-3)["loss"])
    assert len(seen) > 0.8 * steps
    return trainer.traces()


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "most"), [(2**24, 2), (97 * 256, 6)], ids=["whole", "chunks"])
def test_torch_traces_few_kinds_of_ragged_batches(
    chunk: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the first shape, once for any; and once more for each number of the head's chunks."""
    torch = pytest.importorskip("torch")
    from ondevice_torch import compiled

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "LOWER", "aot_eager")
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(logprobs, "KEEP_ELEMENTS", 0)
    backend = load_backend("torch", device="cpu", dtype="float32")
    assert 1 < ragged_steps(backend, 200, "always") <= most
    assert ragged_steps(backend, 3, "never") == 0


@pytest.mark.slow
def test_torch_says_once_that_it_has_given_up_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from ondevice_torch import compiled

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "LOWER", "eager")
    monkeypatch.setattr(compiled, "LIMIT", 2)
    # a word is a constant of its trace
    longer = compiled.Compiled(lambda x, word: x * len(word))
    with pytest.warns(UserWarning, match="compiled 2 kinds") as said:
        for word in ("a", "to", "the", "four"):
            assert torch.equal(longer(torch.ones(2), word), torch.full((2,), float(len(word))))
    assert len(said) == 1
    assert longer.traces == 2


# On Metal each is one kernel; on a CPU they are made of others, so that these stand in for them.
def _one_kernel(monkeypatch: pytest.MonkeyPatch, mx: Any) -> None:
    def norm(x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        return mx.logaddexp(x, weight)

    def attention(q: Any, k: Any, v: Any, **named: Any) -> Any:
        b, h, t, c = q.shape
        inputs = mx.depends(q, [x for x in (k, v, named["mask"]) if isinstance(x, mx.array)])
        return mx.erfinv(inputs)

    monkeypatch.setattr(mx.fast, "rms_norm", norm)
    monkeypatch.setattr(mx.fast, "layer_norm", norm)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)


VIEWS = {"Broadcast", "ExpandDims", "Squeeze", "Reshape", "Flatten", "Unflatten", "Transpose"}
VIEWS |= {"Slice", "Split", "Depends", "Arange"}


def kernels(family: str, layers: int, mx: Any) -> Counter[str]:
    """The kernels of a compiled step of decoding in bfloat16, by their names."""
    backend = load_backend("mlx", device="cpu", dtype="bfloat16")
    cfg = models.config(family, num_hidden_layers=layers, head_dim=64)
    if cfg.windows:
        cfg = replace(cfg, windows=(6,) * layers)
    net = network(cfg)
    params = {
        n: backend.array(w).astype(mx.bfloat16)  # type: ignore[attr-defined]
        for n, w in models.weights(cfg).items()
    }
    shape = (4, cfg.num_key_value_heads, 256, 64)
    keys = [mx.zeros(shape, mx.bfloat16) for _ in range(layers)]
    values = [mx.zeros(shape, mx.bfloat16) for _ in range(layers)]
    lengths = mx.array([5, 6, 7, 8], dtype=mx.int32)
    tables = placed(net, backend.ops, 256)
    token = mx.array([[1], [2], [3], [4]])
    mx.eval(params, keys, values, lengths, tables, token)

    def step(params: Any, tables: Any, token: Any, keys: Any, values: Any, lengths: Any) -> Any:
        cache = Cache(keys, values, lengths)
        x, cache = net.decode(backend.ops, params, tables, token, cache)
        return x, cache.keys, cache.values, cache.lengths

    x, keys, values, lengths = mx.compile(step)(params, tables, token, keys, values, lengths)
    text = io.StringIO()
    mx.export_to_dot(text, x, *keys, *values, lengths)
    found = Counter(re.findall(r'label ="([^"]+)", shape=rectangle', text.getvalue()))
    return Counter({name: n for name, n in found.items() if name not in VIEWS})


@pytest.mark.compiled
@pytest.mark.parametrize(("family", "most"), [("llama-gqa-tied", 18), ("mistral-window", 18)])
def test_a_layer_of_a_step_is_few_kernels(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cast of a weight, no mask of a layer's own, no position worked out for a layer alone."""
    mx = pytest.importorskip("mlx.core")
    _one_kernel(monkeypatch, mx)
    more = kernels(family, 3, mx)
    more.subtract(kernels(family, 2, mx))
    assert 10 < sum(more.values()) <= most, more
    assert not more["AsType"], more


@pytest.mark.parametrize("family", ["llama-gqa-tied", "gpt2", "gemma3"])
def test_norms_of_weights_in_the_compute_type(family: str) -> None:
    """Within bfloat16's own rounding of the float32 model."""
    mx = pytest.importorskip("mlx.core")
    cfg = models.config(family)
    net = network(cfg)
    states = []
    for dtype, cast in (("float32", None), ("bfloat16", None), ("bfloat16", mx.bfloat16)):
        backend = load_backend("mlx", device="cpu", dtype=dtype)
        params: dict[str, Any] = {n: backend.array(w) for n, w in models.weights(cfg).items()}
        if cast is not None:
            params = {n: p.astype(cast) for n, p in params.items()}
        batch = {n: backend.array(x) for n, x in models.batch(cfg).items()}
        states.append(backend.numpy(net.hidden(backend.ops, params, batch)))
    whole, masters, copies = states
    scale = np.abs(whole).max()
    assert np.abs(copies - whole).max() < 0.04 * scale
    assert np.abs(copies - masters).max() < 0.04 * scale
