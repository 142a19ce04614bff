"""What transformers and mlx-lm compute, we compute; what either writes, the other reads."""

from __future__ import annotations

import json
import os
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from device import backend_of
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.decoder import decoder_of
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.models.state_dict import transposed
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
Weights = dict[str, np.ndarray]
TORCH = load_backend("torch", device="cpu", dtype="float32")


def drawn_config(seed: int) -> DecoderConfig:
    """A small config at random: family, heads, widths, depth, tied or not, and the family's
    switches.
    """
    rng = random.Random(seed)
    family = rng.choice(["llama", "llama", "mistral", "qwen2", "qwen3"])
    heads = rng.choice([1, 2, 4])
    raw: dict[str, Any] = {
        "model_type": family,
        "vocab_size": rng.choice([67, 128]),
        "hidden_size": heads * rng.choice([8, 16]),
        "intermediate_size": rng.choice([24, 40]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([h for h in (1, 2, 4) if heads % h == 0]),
        "max_position_embeddings": 64,
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "rope_theta": rng.choice([10000.0, 500000.0]),
        "tie_word_embeddings": rng.random() < 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "llama":
        raw |= {"attention_bias": rng.random() < 0.5, "mlp_bias": rng.random() < 0.5}
        raw["rope_scaling"] = rng.choice(
            [
                None,
                models.FAMILIES["llama3-rope"]["rope_scaling"],
                {"rope_type": "linear", "factor": 3.0},
            ]
        )
    elif family == "mistral":
        raw["sliding_window"] = rng.choice([None, 3, 7])
    elif family == "qwen2":
        raw |= {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": rng.choice([0, 1]),
        }
    else:
        raw["head_dim"] = rng.choice([8, 20])
    return DecoderConfig.parse(raw)


CONFIGS = {
    **{name: models.config(name) for name in models.FAMILIES},
    **{f"drawn {seed}": drawn_config(seed) for seed in range(16)},
}


def theirs(cfg: DecoderConfig, weights: Weights) -> Any:
    """transformers' model of our config, as it reads it, with our weights."""
    raw = {k: v for k, v in cfg.to_json().items() if v is not None or k == "sliding_window"}
    made = (
        transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**raw), attn_implementation="eager"
        )
        .float()
        .eval()
    )
    missing, unexpected = made.load_state_dict(
        {n: torch.tensor(w) for n, w in transposed(weights).items()}, strict=False
    )
    assert not unexpected and set(missing) <= (
        {"lm_head.weight"} if cfg.tie_word_embeddings else set()
    )
    return made


def ours(cfg: DecoderConfig, weights: Weights, batch: Weights) -> tuple[float, Weights]:
    leaves = {n: torch.tensor(w, requires_grad=True) for n, w in weights.items()}
    loss, _ = causal_lm_loss(
        TORCH.ops,
        leaves,
        {n: TORCH.array(np.asarray(a)) for n, a in batch.items()},
        model=decoder_of(cfg),
    )
    loss.backward()
    return loss.item(), {n: p.grad.numpy() for n, p in leaves.items()}


def assert_gradients(got: Weights, want: Any) -> None:
    assert_named_gradients(got, transposed({n: p.grad.numpy() for n, p in want.named_parameters()}))


def assert_named_gradients(got: Weights, named: Weights) -> None:
    assert got.keys() == named.keys()
    top = max(np.abs(g).max() for g in named.values())
    for name, w in named.items():
        # the gradient of a bias of keys is the dust of a sum that cancels: measured against the
        # largest one
        scale = max(np.abs(w).max(), 1e-3 * top)
        assert np.abs(got[name] - w).max() <= 1e-5 * scale, name


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_transformers(name: str) -> None:
    cfg = CONFIGS[name]
    weights = models.weights(cfg, seed=len(name))
    batch = models.batch(cfg, seed=7)
    reference = theirs(cfg, weights)
    ids = torch.tensor(batch["ids"]).long()
    want = reference(input_ids=ids, labels=ids).loss
    want.backward()
    loss, grads = ours(cfg, weights, batch)
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert_gradients(grads, reference)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_packed_examples_are_transformers_example_by_example(name: str) -> None:
    cfg = CONFIGS[name]
    weights, batch = models.weights(cfg), models.batch(cfg, segments=True)
    reference = theirs(cfg, weights)
    total = torch.zeros(())
    for row, segments in enumerate(batch["segments"]):
        for s in range(1, segments.max() + 1):
            ids = torch.tensor(batch["ids"][row, segments == s]).long()
            z = reference(input_ids=ids[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(z, ids[1:], reduction="sum")
    want = total / float(batch["denominator"])
    want.backward()
    loss, grads = ours(cfg, weights, batch)
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert_gradients(grads, reference)


# folders


@lru_cache
def tokenizer() -> Tokenizer:
    words = (
        "the",
        "cat",
        "saw",
        "a",
        "red",
        "boat",
        "near",
        "Lima",
        "and",
        "Oslo",
        "while",
        "seven",
        "old",
        "men",
        "sang",
        "12",
        "songs",
    )
    rng = random.Random(0)
    return train_tokenizer([" ".join(rng.choices(words, k=12)) + "." for _ in range(60)], 320)


def backends() -> list[Backend]:
    pytest.importorskip("mlx.core")
    return [TORCH, backend_of("mlx")]


def written(name: str, folder: Path, backend: Backend = TORCH) -> tuple[DecoderConfig, Weights]:
    cfg = models.config(name, vocab_size=tokenizer().vocab_size)
    weights = models.weights(cfg, seed=5)
    folder.mkdir()
    write_model(
        folder, backend, cfg, {n: backend.array(w) for n, w in weights.items()}, tokenizer()
    )
    return cfg, weights


PROMPTS = ["the cat saw", "seven old men sang 12 songs near Oslo and Lima. the red boat"]
TOKENS = 40


def greedy(folder: Path, backend: Backend) -> list[list[int]]:
    model = load_model(folder, backend)
    prompts = [model.tokenizer.encode(p) for p in PROMPTS]
    out = Generator(model, backend, Sampling(max_new_tokens=TOKENS, temperature=0.0)).run(
        model.params, prompts
    )
    return [c.ids for c in out]


def until_stop(ids: list[int]) -> list[int]:
    return ids[: next((i for i, t in enumerate(ids) if t in tokenizer().stop_ids), len(ids))]


@pytest.mark.parametrize("name", models.FAMILIES)
def test_transformers_reads_our_folders(name: str, tmp_path: Path) -> None:
    """And writes the same greedy text as both our backends; the tokenizer too is what we wrote."""
    for backend in backends():
        folder = tmp_path / backend.name
        written(name, folder, backend)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder)
        texts = []
        for prompt in PROMPTS:
            ids = words(prompt, return_tensors="pt").input_ids
            assert ids[0].tolist() == tokenizer().encode(prompt)
            with torch.no_grad():
                out = loaded.generate(
                    ids, do_sample=False, max_new_tokens=TOKENS, attention_mask=torch.ones_like(ids)
                )
            texts.append(until_stop(out[0, ids.shape[1] :].tolist()))
        for reader in backends():
            assert greedy(folder, reader) == texts
        assert max(len(t) for t in texts) > 5


def reach(cfg: DecoderConfig, tokens: int) -> int:
    """So many tokens, or as many as mlx-lm computes rightly: it reads a Mistral as a Llama without
    a window.
    """
    return min(cfg.windows) if cfg.model_type == "mistral" and cfg.windows else tokens


@pytest.mark.parametrize("name", models.FAMILIES)
def test_mlx_lm_reads_our_folders(name: str, tmp_path: Path) -> None:
    """The same logits over a text, and the same greedy text."""
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    cfg, weights = written(name, tmp_path / "m")
    loaded, _ = mlx_lm.load(str(tmp_path / "m"))
    backend = backends()[1]
    length = reach(cfg, 48)
    ids = models.batch(cfg, rows=2, tokens=length)["ids"]
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    params = {n: backend.array(w) for n, w in weights.items()}
    hidden = decoder_of(cfg).hidden(
        backend.ops, params, {"ids": mx.array(ids), "positions": mx.array(positions)}
    )
    mine = np.array(hidden @ params[decoder_of(cfg).head.name].T)
    np.testing.assert_allclose(mine, np.array(loaded(mx.array(ids))), rtol=1e-4, atol=1e-4)
    if cfg.model_type == "mistral":
        return
    texts = []
    for prompt in PROMPTS:
        steps = generate_step(mx.array(tokenizer().encode(prompt)), loaded, max_tokens=TOKENS)
        texts.append(until_stop([int(token) for token, _ in steps]))
    assert greedy(tmp_path / "m", TORCH) == greedy(tmp_path / "m", backend) == texts


@pytest.mark.parametrize("name", models.FAMILIES)
def test_loss_and_gradients_are_mlx_lms(name: str, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten

    cfg, weights = written(name, tmp_path / "m")
    reference, _ = mlx_lm.load(str(tmp_path / "m"))
    batch = models.batch(cfg, tokens=reach(cfg, 20), seed=7)
    ids, backend = mx.array(batch["ids"]), backends()[1]
    want, theirs = nn.value_and_grad(
        reference, lambda m: nn.losses.cross_entropy(m(ids)[:, :-1], ids[:, 1:], reduction="mean")
    )(reference)
    loss, grads = mx.value_and_grad(
        lambda p: causal_lm_loss(
            backend.ops,
            p,
            {n: backend.array(np.asarray(a)) for n, a in batch.items()},
            model=decoder_of(cfg),
        )[0]
    )({n: backend.array(w) for n, w in weights.items()})
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    prefix = "transformer." if name == "gpt2" else "model."
    named = {n.replace("model.", prefix, 1): np.array(g) for n, g in tree_flatten(theirs)}
    assert_named_gradients({n: np.array(g) for n, g in grads.items()}, named)


@pytest.mark.parametrize("name", ["llama-gqa-tied", "llama3-rope", "qwen2", "qwen3"])
def test_we_read_mlx_lms_folders(name: str, tmp_path: Path) -> None:
    """As `mlx_lm.convert` and `mlx_lm.fuse` write them: the same greedy text from both our
    backends.
    """
    pytest.importorskip("mlx_lm")
    from mlx_lm.utils import load, save

    written(name, tmp_path / "ours")
    model, words, config = load(str(tmp_path / "ours"), return_config=True)
    save(tmp_path / "theirs", tmp_path / "ours", model, words, config, donate_model=False)
    for backend in backends():
        assert greedy(tmp_path / "theirs", backend) == greedy(tmp_path / "ours", backend)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_we_read_transformers_folders(name: str, tmp_path: Path) -> None:
    """As `save_pretrained` of version 5 writes them: rope under `rope_parameters` only, tied heads
    left out.
    """
    cfg = models.config(name, vocab_size=tokenizer().vocab_size)
    reference = theirs(cfg, models.weights(cfg, seed=6))
    reference.save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in raw and ("rope_parameters" in raw or name == "gpt2")
    ids = models.batch(cfg, rows=2, tokens=30)["ids"]
    want = reference(input_ids=torch.tensor(ids).long()).logits.detach().numpy()
    for backend in backends():
        model = load_model(tmp_path, backend)
        assert (model.cfg.rope_theta, model.cfg.windows) == (cfg.rope_theta, cfg.windows)
        positions = np.tile(np.arange(30, dtype=np.int32), (2, 1))
        hidden = backend.numpy(
            model.network.hidden(
                backend.ops,
                model.params,
                {"ids": backend.array(ids), "positions": backend.array(positions)},
            )
        )
        got = hidden @ backend.numpy(model.params[model.network.head.name]).T
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_round_trip_through_transformers_is_the_same_model(name: str, tmp_path: Path) -> None:
    """Ours → theirs → ours: config and weights."""
    cfg, weights = written(name, tmp_path / "a")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(
        tmp_path / "b"
    )
    tokenizer().save(tmp_path / "b")
    one, two = (load_model(tmp_path / n, TORCH) for n in "ab")
    assert one.cfg == two.cfg
    assert list(two.params) == list(weights)
    for n, w in weights.items():
        np.testing.assert_array_equal(two.params[n].numpy(), w)  # type: ignore[attr-defined]
