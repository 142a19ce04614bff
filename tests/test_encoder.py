"""BERT and ModernBERT: both backends, and transformers, give the same logits, losses and gradients;
folders go both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_compiler
import models
from data_samples import small_tokenizer
from gradients import assert_close, by_name, loss_of, on_device
from ondevice.common.errors import UserError
from ondevice.models.encoder import Encoder
from ondevice.models.encoder_config import EncoderConfig
from ondevice.models.load import load_model
from ondevice.models.registry import load_config, parse_config
from ondevice.models.save import write_model
from ondevice.models.score_head import class_scores
from ondevice.seam.protocols import Backend

Weights = dict[str, np.ndarray]
# Copies of what is tied, and a bias that transformers makes and does not use where BERT's head is
# not tied.
UNUSED = {"cls.predictions.bias", "cls.predictions.decoder.weight", "decoder.weight"}


def oracle(cfg: EncoderConfig, weights: Weights) -> Any:
    """transformers' model of our config with our weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    auto = (
        transformers.AutoModelForSequenceClassification
        if cfg.num_labels
        else transformers.AutoModelForMaskedLM
    )
    made = auto.from_config(
        transformers.AutoConfig.for_model(**cfg.to_json()), attn_implementation="eager"
    ).eval()
    given = {n: torch.tensor(w) for n, w in weights.items()}
    if "cls.predictions.bias" in weights:  # it has two names there
        given["cls.predictions.decoder.bias"] = given["cls.predictions.bias"]
    missing, unexpected = made.load_state_dict(given, strict=False)
    assert not unexpected and set(missing) <= UNUSED
    made.tie_weights()
    return made


def alone(batch: Weights) -> tuple[Weights, np.ndarray]:
    """The first example of each row by itself, and which places these are."""
    first = batch["segments"] == 1
    width = int(first.sum(1).max())
    kept = np.isin(batch["index"], np.flatnonzero(first))
    rows, columns = np.divmod(batch["index"][kept], first.shape[1])
    own = {
        "ids": batch["ids"][:, :width],
        "positions": batch["positions"][:, :width],
        "segments": batch["segments"][:, :width],
        "index": (rows * width + columns).astype(np.int32),
        "targets": batch["targets"][kept],
        "weights": batch["weights"][kept],
        "denominator": np.float32(kept.sum()),
    }
    return own, kept


@pytest.mark.slow
@pytest.mark.parametrize("family", models.ENCODERS)
def test_loss_and_gradients_are_transformers(family: str, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    cfg = models.encoder_config(family)
    weights = models.weights(cfg)
    batch, _ = alone(models.masked_batch(cfg, tokens=50))
    reference = oracle(cfg, weights)
    labels = np.full(batch["ids"].size, -100)
    labels[batch["index"]] = batch["targets"]
    want = reference(
        input_ids=torch.tensor(batch["ids"]).long(),
        labels=torch.tensor(labels.reshape(batch["ids"].shape)),
    )
    want.loss.backward()
    theirs = {n: p.grad.numpy() for n, p in reference.named_parameters() if p.grad is not None}
    if "cls.predictions.bias" in weights:
        theirs.setdefault(
            "cls.predictions.bias", theirs.pop("cls.predictions.decoder.bias", np.zeros(0))
        )
    for checkpoint in (False, True):
        loss, grads = by_name(backend, loss_of(cfg, backend, checkpoint=checkpoint), weights, batch)
        assert loss == pytest.approx(want.loss.item(), rel=1e-5)
        assert grads.keys() == theirs.keys()
        assert_close(grads, theirs)
    arrays = on_device(backend, {k: batch[k] for k in ("ids", "positions", "segments")})
    params = on_device(backend, weights)
    net = Encoder(cfg)
    logits = backend.numpy(
        net.head.logits(backend.ops, params, net.hidden(backend.ops, params, arrays))
    )
    want_logits = want.logits.detach().numpy()
    assert np.abs(logits - want_logits).max() <= 1e-5 * np.abs(want_logits).max()


@pytest.mark.parametrize("family", models.ENCODERS)
def test_packed_examples_are_the_examples_apart(family: str, backend: Backend) -> None:
    """What stands beside an example in its row does not reach it; neither does padding."""
    cfg = models.encoder_config(family)
    params = on_device(backend, models.weights(cfg))
    batch = models.masked_batch(cfg)
    own, kept = alone(batch)
    net = Encoder(cfg)
    packed, apart = (
        backend.numpy(
            net.hidden(backend.ops, params, on_device(backend, b), at=backend.array(b["index"]))
        )
        for b in (batch, own)
    )
    np.testing.assert_allclose(packed[kept], apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", models.ENCODERS)
def test_both_backends_and_checkpointing_give_the_same_gradients(family: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    from ondevice.seam.select import load_backend

    cfg = models.encoder_config(family)
    weights, batch = models.weights(cfg), models.masked_batch(cfg)
    torch, mlx = (load_backend(name, device="cpu", dtype="float32") for name in ("torch", "mlx"))
    loss, grads = by_name(torch, loss_of(cfg, torch), weights, batch)
    for backend, checkpoint, compiled in (
        (torch, True, False),
        (mlx, False, False),
        (mlx, True, mlx_compiler.compiles()),
    ):
        loss_fn = loss_of(cfg, backend, checkpoint=checkpoint)
        other, theirs = by_name(backend, loss_fn, weights, batch, compiled=compiled)
        assert other == pytest.approx(loss, rel=1e-5)
        assert_close(theirs, grads)
    # the second kind of sentence is not asked for in this batch
    assert all(np.abs(g).max() > 0 for n, g in grads.items() if "token_type" not in n)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert-biases"])
def test_classes_are_transformers(family: str, backend: Backend) -> None:
    """Logits and gradients of a classifier on padded texts."""
    torch = pytest.importorskip("torch")
    cfg = models.encoder_config(family, num_labels=3, label_names=("a", "b", "c"))
    weights = models.weights(cfg)
    rng = np.random.default_rng(0)
    from ondevice.data.completion_batches import text_batch

    texts = [rng.integers(3, 97, n).astype(np.int32) for n in (17, 5, 9)]
    batch = text_batch(texts, 3, "first")
    batch["targets"] = np.array([2, 0, 1], np.int32)
    reference = oracle(cfg, weights)
    want = reference(
        input_ids=torch.tensor(batch["ids"]).long(),
        attention_mask=torch.tensor(batch["segments"]).long(),
        labels=torch.tensor(batch["targets"]).long(),
    )
    want.loss.backward()
    net = Encoder(cfg)

    def loss(p: Any, b: Any) -> Any:
        z = class_scores(backend.ops, p, net, net.hidden(backend.ops, p, b, at=b["read"]))
        return -backend.ops.sum(backend.ops.log_likelihood(z, b["targets"])) / 3

    got, grads = by_name(backend, loss, weights, batch)
    assert got == pytest.approx(want.loss.item(), rel=1e-5)
    assert_close(grads, {n: p.grad.numpy() for n, p in reference.named_parameters()})


@pytest.mark.slow
@pytest.mark.parametrize("labels", [0, 3], ids=["fills", "judges"])
@pytest.mark.parametrize("family", models.ENCODERS)
def test_folders_go_both_ways(family: str, labels: int, tmp_path: Path) -> None:
    """Ours → transformers → ours: the same tensors, the same config."""
    transformers = pytest.importorskip("transformers")
    from ondevice.seam.select import load_backend

    backend = load_backend("torch", device="cpu", dtype="float32")
    tokenizer = small_tokenizer()
    cfg = models.encoder_config(family, vocab_size=tokenizer.vocab_size, num_labels=labels)
    weights = models.weights(cfg)
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", backend, cfg, on_device(backend, weights), tokenizer)
    auto = (
        transformers.AutoModelForSequenceClassification
        if labels
        else transformers.AutoModelForMaskedLM
    )
    made, told = auto.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert (
        set(told["missing_keys"]) <= UNUSED
        and not told["unexpected_keys"]
        and not told["mismatched_keys"]
    )
    made.save_pretrained(tmp_path / "b")
    tokenizer.save(tmp_path / "b")
    back = load_model(tmp_path / "b", backend)
    assert {n: backend.numpy(p).tolist() for n, p in back.params.items()} == {
        n: w.tolist() for n, w in weights.items()
    }
    kept = load_config(tmp_path / "a")
    assert replace(back.cfg, dtype=kept.dtype) == kept
    assert replace(kept, bos_token_id=None, eos_token_id=None, pad_token_id=0) == replace(
        cfg, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model_type": "roberta"}, "architectures"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"is_decoder": True}, "is_decoder"),
        (
            {
                "model_type": "modernbert",
                "architectures": ["ModernBertForSequenceClassification"],
                "classifier_pooling": "mean",
            },
            "classifier_pooling",
        ),
        ({"model_type": "modernbert", "layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_we_cannot_honour_is_named(change: dict[str, Any], where: str) -> None:
    raw = {**models.encoder_config("bert").to_json(), **change}
    with pytest.raises(UserError) as error:
        parse_config(json.loads(json.dumps(raw)))
    assert error.value.where == where


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["foo", "full_attention"]},
        {"global_attn_every_n_layers": 0},
        {"local_attention": "a"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"global_rope_theta": "z"},
        {"norm_eps": "x"},
    ],
)
def test_a_modernbert_that_none_can_be(changes: dict[str, Any]) -> None:
    raw = {
        "model_type": "modernbert",
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    parse_config(raw)
    with pytest.raises(UserError, match=next(iter(changes))):
        parse_config({**raw, **changes})
