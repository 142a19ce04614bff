"""Every operation of the seam gives the same on each backend as in numpy, float32 and on the CPU.

An operation of `Ops` that has no case here fails `test_every_operation_has_a_case`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from conftest import BACKENDS
from device import backend_of
from ondevice.models.windowed import windowed_attention
from ondevice.seam.ops import Ops
from ondevice.seam.protocols import Backend

RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 5, 8)).astype(np.float32)
Y = RNG.standard_normal((3, 5, 8)).astype(np.float32)
W = RNG.standard_normal((6, 8)).astype(np.float32)
TABLE = RNG.standard_normal((11, 8)).astype(np.float32)
GAIN = RNG.standard_normal(8).astype(np.float32)
BIAS = RNG.standard_normal(6).astype(np.float32)
IDS = np.array([[0, 10, 3], [7, 7, 1]], np.int32)
ODD = np.array([[1.0, np.inf], [np.nan, -np.inf]], np.float32)
# 11 rows in two tables of 8 places, the last row standing in for nothing, and where each stands
ROW_TABLES = (
    np.array([3, 0, 7, 10, 1, 9, 10, 10], np.int32),
    np.array([2, 4, 10, 5, 6, 8, 10, 10], np.int32),
    np.array([1, 4, 8, 0, 9, 11, 12, 2, 13, 5, 3], np.int32),
)
ANGLES = RNG.standard_normal((1, 1, 5, 4)).astype(np.float32)

Case = tuple[Callable[..., Any], tuple[np.ndarray, ...], Callable[..., Any]]


def _lse(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return (np.log(np.exp(x - top).sum(-1, keepdims=True)) + top)[..., 0]


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    turned = (x[..., :4] + 1j * x[..., 4:]) * (cos + 1j * sin)
    return np.concatenate([turned.real, turned.imag], -1)


def _written(cache: np.ndarray, new: np.ndarray, at: np.ndarray) -> np.ndarray:
    out = cache.copy()
    for row, start in enumerate(at):
        out[row, :, start : start + new.shape[2]] = new[row]
    return out


def _scores(p: dict[str, Any], x: Any, shift: Any) -> tuple[Any, ...]:
    z = x @ p["w"].swapaxes(0, 1)
    return (z * z).reshape(-1, 6)[:, 0] + shift, z[:, 1]


# name → (what is called, with ops first; the arrays; the same in numpy). Several cases of one
# operation: name:which
CASES: dict[str, Case] = {
    "weight": (lambda o, w: o.weight({"a": w}, "a"), (W,), lambda w: w),
    "linear": (lambda o, x, w: o.linear({"a.weight": w}, "a", x), (X, W), lambda x, w: x @ w.T),
    "linear:bias": (
        lambda o, x, w, b: o.linear({"a.weight": w, "a.bias": b}, "a", x),
        (X, W, BIAS),
        lambda x, w, b: x @ w.T + b,
    ),
    "embed": (lambda o, t, i: o.embed({"a.weight": t}, "a", i), (TABLE, IDS), lambda t, i: t[i]),
    "rms_norm": (
        lambda o, x, g: o.rms_norm({"a.weight": g}, "a", x, 1e-5),
        (X, GAIN),
        lambda x, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * g,
    ),
    "layer_norm": (
        lambda o, x, g: o.layer_norm({"a.weight": g}, "a", x, 1e-5),
        (X, GAIN),
        lambda x, g: _standard(x) * g,
    ),
    "layer_norm:bias": (
        lambda o, x, g, b: o.layer_norm({"a.weight": g, "a.bias": b}, "a", x, 1e-5),
        (X, GAIN, GAIN[::-1].copy()),
        lambda x, g, b: _standard(x) * g + b,
    ),
    "rope": (
        lambda o, x, c, s: o.rope(x, c, s),
        (X[:, None], np.cos(ANGLES), np.sin(ANGLES)),
        _rope,
    ),
    "cache_write": (
        lambda o, c, n, at: o.cache_write(c, n, at),
        (
            np.zeros((3, 2, 9, 4), np.float32),
            RNG.standard_normal((3, 2, 2, 4)).astype(np.float32),
            np.array([0, 7, 3], np.int32),
        ),
        _written,
    ),
    "silu": (lambda o, x: o.silu(x), (X,), lambda x: x / (1 + np.exp(-x))),
    "gated": (
        lambda o, x, y: o.gated(o.silu, x, y),
        (X, X[::-1].copy()),
        lambda x, y: x / (1 + np.exp(-x)) * y,
    ),
    "add_product": (
        lambda o, y, x, w: o.add_product(y, x, w),
        (X[..., :6], Y, W),
        lambda y, x, w: y + x @ w.T,
    ),
    "to_rows": (
        lambda o, x, a, b, s: o.concat(o.to_rows(x, [a, b], s), 0),
        (TABLE, *ROW_TABLES),
        lambda x, a, b, s: x[np.concatenate([a, b])],
    ),
    "from_rows": (
        lambda o, x, y, a, b, s: o.from_rows([x, y], [a, b], s),
        (TABLE[:8], TABLE[3:], *ROW_TABLES),
        lambda x, y, a, b, s: np.concatenate([x, y])[s],
    ),
    "product": (lambda o, x, w: o.product(x, w), (TABLE, W), lambda x, w: x @ w.T),
    "gelu": (
        lambda o, x: o.gelu(x),
        (X,),
        lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
    ),
    "gelu:approximate": (
        lambda o, x: o.gelu(x, approximate=True),
        (X,),
        lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    ),
    "softmax": (lambda o, x: o.softmax(x, -1), (50 * X,), lambda x: np.exp(x - _lse(x)[..., None])),
    "logsumexp": (lambda o, x: o.logsumexp(x, -1), (50 * X,), _lse),
    "log_likelihood": (
        lambda o, x, t: o.log_likelihood(x, t),
        (9 * TABLE, np.arange(11, dtype=np.int32) % 8),
        lambda x, t: x[np.arange(11), t] - _lse(x),
    ),
    "exp": (lambda o, x: o.exp(x), (X,), np.exp),
    "log": (lambda o, x: o.log(x * x + 1.0), (X,), lambda x: np.log(x * x + 1.0)),
    "tanh": (lambda o, x: o.tanh(x), (X,), np.tanh),
    "sqrt": (lambda o, x: o.sqrt(x), (np.abs(X),), np.sqrt),
    "sum": (lambda o, x: o.sum(x), (X,), lambda x: x.sum()),
    "sum:axis": (lambda o, x: o.sum(x, 1), (X,), lambda x: x.sum(1)),
    "sum:keepdims": (lambda o, x: o.sum(x, -1, True), (X,), lambda x: x.sum(-1, keepdims=True)),
    "max": (lambda o, x: o.max(x, 1), (X,), lambda x: x.max(1)),
    "max:keepdims": (lambda o, x: o.max(x, -1, True), (X,), lambda x: x.max(-1, keepdims=True)),
    "argmax": (lambda o, x: o.argmax(x, -1), (X,), lambda x: x.argmax(-1)),
    "argmax:ties": (
        lambda o, x: o.argmax(x, -1),
        (np.ones((2, 4), np.float32),),
        lambda x: x.argmax(-1),
    ),
    "cumsum": (lambda o, x: o.cumsum(x, -1), (X,), lambda x: x.cumsum(-1)),
    "largest": (
        lambda o, x: o.sort(o.largest(x, 3), -1),
        (X,),
        lambda x: np.sort(x, -1)[..., -3:],
    ),
    "sort": (lambda o, x: o.sort(x, -1), (X,), lambda x: np.sort(x, -1)),
    "maximum": (lambda o, x, y: o.maximum(x, y), (X, Y), np.maximum),
    "maximum:number": (lambda o, x: o.maximum(x, 0.25), (X,), lambda x: np.maximum(x, 0.25)),
    "minimum": (lambda o, x, y: o.minimum(x, y), (X, Y), np.minimum),
    "minimum:number": (lambda o, x: o.minimum(x, 2), (IDS,), lambda x: np.minimum(x, 2)),
    "where": (lambda o, x, y: o.where(x < y, x, y), (X, Y), np.minimum),
    "where:numbers": (lambda o, x: o.where(x < 0, 0.0, x), (X,), lambda x: np.maximum(x, 0)),
    "take": (lambda o, t, i: o.take(t, i), (TABLE, IDS), lambda t, i: t[i]),
    "take:flat": (
        lambda o, t, i: o.take(t, i),
        (GAIN, np.array([7, 0], np.int32)),
        lambda t, i: t[i],
    ),
    "concat": (lambda o, x, y: o.concat([x, y], 1), (X, Y), lambda x, y: np.concatenate([x, y], 1)),
    "stack": (lambda o, x, y: o.stack([x, y]), (X, Y), lambda x, y: np.stack([x, y])),
    "zeros": (lambda o: o.zeros((2, 3), "int32"), (), lambda: np.zeros((2, 3), np.int32)),
    "cast": (lambda o, x: o.cast(x, "int32"), (3 * X,), lambda x: x.astype(np.int32)),
    "cast:float": (lambda o, x: o.cast(x, "float32"), (IDS,), lambda x: x.astype(np.float32)),
    "constant": (lambda o: o.constant(TABLE), (), lambda: TABLE),
    "put": (
        lambda o, t, i, x: o.put(t, i, x),
        (TABLE.copy(), np.array([7, 0], np.int32), TABLE[2:4].copy()),
        lambda t, i, x: np.concatenate([x[1:], t[1:7], x[:1], t[8:]]),
    ),
    "stop_gradient": (lambda o, x: o.stop_gradient(x), (X,), lambda x: x),
    "checkpoint": (
        lambda o, x, y: o.checkpoint(lambda p, b: p["x"] * b)({"x": x}, y),
        (X, Y),
        lambda x, y: x * y,
    ),
    "in_chunks": (
        lambda o, x, w, s: o.in_chunks(_scores, 4)({"w": w}, x, s)[0],
        (TABLE, W, np.arange(11)),
        lambda x, w, s: (x @ w.T)[:, 0] ** 2 + s,
    ),
    "attention": (
        lambda o, q, k, v: o.attention(q, k, v, scale=0.5),
        tuple(RNG.standard_normal((2, 2, 5, 4)).astype(np.float32) for _ in range(3)),
        lambda q, k, v: attention(q, k, v),
    ),
}


def operations() -> set[str]:
    return {n for n, value in vars(Ops).items() if callable(value) and not n.startswith("_")}


def test_every_operation_has_a_case() -> None:
    assert operations() == {name.partition(":")[0] for name in CASES}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_the_operations_of_the_protocol_and_no_more(name: str) -> None:
    ops = backend_of(name).ops
    assert {n for n in dir(ops) if callable(getattr(ops, n)) and not n.startswith("_")} - {
        "compute"
    } == operations()


@pytest.mark.parametrize("case", CASES)
def test_operation_is_numpys(backend: Backend, case: str) -> None:
    call, arrays, reference = CASES[case]
    got = backend.numpy(call(backend.ops, *(backend.array(a) for a in arrays)))
    want = np.asarray(reference(*arrays))
    assert got.shape == want.shape
    assert got.dtype.kind.replace("u", "i") == want.dtype.kind  # MLX counts places without a sign
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_softmax_of_huge_logits_is_finite(backend: Backend) -> None:
    x = backend.array(np.array([[1e30, 0.0, -1e30]], np.float32))
    np.testing.assert_array_equal(backend.numpy(backend.ops.softmax(x, -1)), [[1.0, 0.0, 0.0]])
    assert np.isfinite(backend.numpy(backend.ops.logsumexp(x, -1))).all()


# attention, against a loop over queries


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float = 0.5,
    causal: bool = True,
    window: int = 0,
    segments: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """One query at a time; what it may see is said in words, not as a mask."""
    b, h, t_q, _ = q.shape
    out = np.zeros((b, h, t_q, v.shape[-1]), np.float64)
    for row in range(b):
        held = int(lengths[row]) if lengths is not None else k.shape[2]
        for i in range(t_q):
            at = i + held - t_q
            seen = [
                j
                for j in range(held if not causal else max(at, 0) + 1)
                if not window or abs(j - at) < window
            ]
            if segments is not None:
                seen = [j for j in seen if segments[row, j] == segments[row, at]]
            for head in range(h):
                other = head * k.shape[1] // h
                z = k[row, other, seen].astype(np.float64) @ q[row, head, i] * scale
                p = np.exp(z - z.max())
                out[row, head, i] = p / p.sum() @ v[row, other, seen]
    return out


SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 3, 3, 3, 3], [0] * 9], np.int32)
ATTENTION: dict[str, dict[str, Any]] = {
    "causal": {},
    "whole": {"causal": False},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "window wider than the text": {"window": 50},
    "window both ways": {"window": 3, "causal": False},
    "segments": {"segments": SEGMENTS},
    "segments both ways": {"segments": SEGMENTS, "causal": False},
    "segments and window": {"segments": SEGMENTS, "window": 2},
    "bottom right": {"t_q": 4},
    "bottom right, window": {"t_q": 4, "window": 3},
    "one query": {"t_q": 1},
    "lengths": {"t_q": 1, "lengths": np.array([9, 1, 5], np.int32)},
    "lengths, two queries": {"t_q": 2, "lengths": np.array([9, 2, 5], np.int32)},
    "lengths and window": {"t_q": 1, "window": 3, "lengths": np.array([9, 1, 5], np.int32)},
    "lengths both ways": {"t_q": 1, "causal": False, "lengths": np.array([9, 1, 5], np.int32)},
}


@pytest.mark.parametrize(
    "heads", [(4, 4), (4, 2), (4, 1)], ids=["heads", "grouped", "one key head"]
)
@pytest.mark.parametrize("which", ATTENTION)
def test_attention(backend: Backend, which: str, heads: tuple[int, int]) -> None:
    asked = dict(ATTENTION[which])
    rng = np.random.default_rng(5)
    q = rng.standard_normal((3, heads[0], asked.pop("t_q", 9), 8)).astype(np.float32)
    k, v = (rng.standard_normal((3, heads[1], 9, 8)).astype(np.float32) for _ in range(2))
    arrays = {n: backend.array(a) if isinstance(a, np.ndarray) else a for n, a in asked.items()}
    got = backend.ops.attention(*(backend.array(a) for a in (q, k, v)), scale=0.3, **arrays)
    np.testing.assert_allclose(
        backend.numpy(got), attention(q, k, v, scale=0.3, **asked), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("places", [3, 6, 7, 9, 12, 13])
def test_attention_within_a_window_by_blocks(backend: Backend, places: int) -> None:
    """Texts shorter than three blocks, of whole blocks, and with a rest of one place; their
    gradients too."""
    rng = np.random.default_rng(8)
    shapes = {"q": 4, "k": 2, "v": 2}
    arrays = {
        n: rng.standard_normal((2, h, places, 8)).astype(np.float32) for n, h in shapes.items()
    }
    ops = backend.ops

    def value(how: Any) -> Any:
        return lambda p: ops.sum(ops.tanh(how(p["q"], p["k"], p["v"], scale=0.3, window=3)))

    blocks: Any = partial(windowed_attention, ops)

    placed = {n: backend.array(x) for n, x in arrays.items()}
    got = windowed_attention(ops, placed["q"], placed["k"], placed["v"], scale=0.3, window=3)
    want = attention(arrays["q"], arrays["k"], arrays["v"], scale=0.3, window=3)
    np.testing.assert_allclose(backend.numpy(got), want, rtol=1e-5, atol=1e-5)
    slopes = gradient(backend, value(ops.attention), arrays)
    found = gradient(backend, value(blocks), arrays)
    for name, slope in slopes.items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("places", "again"), [(129, False), (192, True), (530, False)])
def test_mlx_computes_causal_attention_by_blocks_on_a_cpu(
    places: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks and a rest of one, as the operation of MLX has it; gradients too, of scores that
    are kept or computed again."""
    mx = pytest.importorskip("mlx.core")
    from ondevice_mlx import attention

    causal_by_blocks = attention.causal_by_blocks
    monkeypatch.setattr(attention, "KEPT_SCORES", 0 if again else 2**62)
    rng = np.random.default_rng(8)
    shapes = {"q": 4, "k": 2, "v": 2}
    arrays = [mx.array(rng.standard_normal((2, h, places, 8))) for h in shapes.values()]
    arrays = [x.astype(mx.float32) for x in arrays]

    def whole(q: Any, k: Any, v: Any, scale: float) -> Any:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")

    found = []
    for how in (whole, causal_by_blocks):

        def value(q: Any, k: Any, v: Any, how: Any = how) -> Any:
            return mx.sum(mx.tanh(how(q, k, v, 0.3)))

        found.append([np.array(x) for x in mx.grad(value, argnums=(0, 1, 2))(*arrays)])
        found[-1].append(np.array(how(*arrays, 0.3)))
    for want, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gradients_of_rows_from_tables_are_those_of_looking_them_up(backend: Backend) -> None:
    """There and back, with a figure at every row that is something."""
    first, second, slots = (backend.array(x) for x in ROW_TABLES)
    ops = backend.ops
    figures = np.append(RNG.standard_normal((10, 1)), [[0.0]], 0).astype(np.float32)
    weights = backend.array(figures)

    def value(looked_up: bool) -> Any:
        def loss(p: dict[str, Any]) -> Any:
            if looked_up:
                rows = [ops.take(p["x"], first), ops.take(p["x"], second)]
            else:
                rows = ops.to_rows(p["x"], [first, second], slots)
            rows = [ops.tanh(rows[0]), rows[1] * 2]
            if looked_up:
                back = ops.take(ops.concat(rows, 0), slots)
            else:
                back = ops.from_rows(rows, [first, second], slots)
            return ops.sum(ops.tanh(back) * weights)

        return loss

    want = gradient(backend, value(True), {"x": TABLE})["x"]
    got = gradient(backend, value(False), {"x": TABLE})["x"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_attention_of_padding_alone_has_finite_gradients(backend: Backend) -> None:
    rng = np.random.default_rng(6)
    q, k, v = (rng.standard_normal((3, 2, 9, 4)).astype(np.float32) for _ in range(3))
    segments = backend.array(np.zeros((3, 9), np.int32))
    grads = gradient(
        backend,
        lambda p: backend.ops.sum(
            backend.ops.attention(p["q"], p["k"], p["v"], scale=1.0, segments=segments)
        ),
        {"q": q, "k": k, "v": v},
    )
    assert all(np.isfinite(g).all() for g in grads.values())


def test_a_row_that_holds_nothing_sees_something_finite(backend: Backend) -> None:
    q, k, v = (backend.array(np.ones((2, 1, n, 4), np.float32)) for n in (1, 6, 6))
    lengths = backend.array(np.array([0, 3], np.int32))
    for causal in (True, False):
        out = backend.ops.attention(q, k, v, scale=1.0, causal=causal, lengths=lengths)
        np.testing.assert_allclose(backend.numpy(out), 1.0, rtol=1e-6)


# gradients of what concerns autograd


def gradient(
    backend: Backend, fn: Callable[[dict[str, Any]], Any], params: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The gradient of a scalar by name, each backend in its own style."""
    if backend.name == "torch":
        leaves = {n: backend.array(p).requires_grad_() for n, p in params.items()}  # type: ignore[attr-defined]
        fn(leaves).backward()
        return {
            n: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
            for n, p in leaves.items()
        }
    import mlx.core as mx

    grads = mx.grad(fn)({n: backend.array(p) for n, p in params.items()})
    return {n: np.array(g) for n, g in grads.items()}


def test_stop_gradient_stops_it(backend: Backend) -> None:
    got = gradient(
        backend, lambda p: backend.ops.sum(p["x"] * backend.ops.stop_gradient(p["x"])), {"x": X}
    )
    np.testing.assert_allclose(got["x"], X)


def test_checkpoint_gives_every_argument_its_gradient(backend: Backend) -> None:
    ops = backend.ops

    def body(params: dict[str, Any], x: Any) -> Any:
        return ops.silu(ops.linear(params, "a", x))

    def loss(p: dict[str, Any], wrap: Callable[[Any], Any]) -> Any:
        return ops.sum(wrap(body)({"a.weight": p["w"]}, p["x"]) * 2)

    plain, again = (
        gradient(backend, lambda p, w=w: loss(p, w), {"x": X, "w": W})
        for w in (lambda f: f, ops.checkpoint)
    )
    for name in plain:
        assert np.abs(again[name]).max() > 0
        np.testing.assert_allclose(again[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 11, 50])
def test_in_chunks_is_the_whole_with_its_gradients(backend: Backend, rows: int, keep: bool) -> None:
    ops, shift = backend.ops, backend.array(np.arange(11, dtype=np.int32))

    def loss(p: dict[str, Any], wrap: Callable[[Any], Any]) -> Any:
        a, b = wrap(_scores)({"w": p["w"]}, p["x"], shift)
        return ops.sum(a * b * shift)

    plain, chunked = (
        gradient(backend, lambda p, w=w: loss(p, w), {"x": TABLE, "w": W})
        for w in (lambda f: f, lambda f: ops.in_chunks(f, rows, keep=keep))
    )
    for name in plain:
        np.testing.assert_allclose(chunked[name], plain[name], rtol=1e-5, atol=1e-4)


def test_embedding_rows_asked_twice_add_their_gradients(backend: Backend) -> None:
    ids = backend.array(IDS)
    for call in (
        lambda p: backend.ops.embed({"a.weight": p["t"]}, "a", ids),
        lambda p: backend.ops.take(p["t"], ids),
    ):
        got = gradient(backend, lambda p, call=call: backend.ops.sum(call(p)), {"t": TABLE})
        np.testing.assert_array_equal(got["t"][:, 0], np.bincount(IDS.ravel(), minlength=11))


def test_log_probabilities_in_chunks_are_the_whole_ones(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, entropy, temperature and gradients of the seam between model and loss; entropy, which
    is only told, has no gradient."""
    from ondevice.seam.head import Head
    from ondevice.training import logprobs

    rng = np.random.default_rng(8)
    x = 0.5 * rng.standard_normal((150, 8)).astype(np.float32)
    targets = rng.integers(0, 11, 150).astype(np.int32)
    z = (x @ TABLE.T) / 0.7
    logp = z - _lse(z)[:, None]
    grads = []
    for elements in (1, 2**21):  # 64 rows at a time, all at once
        monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)

        def call(p: dict[str, Any]) -> tuple[Any, Any]:
            return logprobs.token_logprobs(
                backend.ops,
                {"w.weight": p["w"]},
                Head("w.weight"),
                p["x"],
                backend.array(targets),
                temperature=0.7,
                entropy=True,
            )

        got, entropy = call({"w": backend.array(TABLE), "x": backend.array(x)})
        np.testing.assert_allclose(
            backend.numpy(got), logp[np.arange(150), targets], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            backend.numpy(entropy), -(np.exp(logp) * logp).sum(-1), rtol=1e-4, atol=1e-5
        )
        grads.append(
            gradient(
                backend,
                lambda p, call=call: backend.ops.sum(call(p)[0]) + backend.ops.sum(call(p)[1]),
                {"w": TABLE, "x": x},
            )
        )
    off = (np.eye(11)[targets] - np.exp(logp)) / 0.7
    for got in grads:
        np.testing.assert_allclose(got["w"], off.T @ x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got["x"], off @ TABLE, rtol=1e-4, atol=1e-4)
