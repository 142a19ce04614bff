"""Adapters: what they compute, PEFT's folders both ways, merging, one on top of another, stages
that train them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import small_stages
from gradients import by_name, on_device
from ondevice.common.errors import UserError
from ondevice.exports.modelfile import modelfile
from ondevice.models import peft
from ondevice.models.convert import merge
from ondevice.models.decoder import decoder_of
from ondevice.models.generation_config import generation_of
from ondevice.models.load import load_model
from ondevice.models.lora import (
    INHERITED,
    TRAINED,
    Pair,
    adapted_modules,
    init_lora,
    lora_tensors,
    matching_modules,
    pairs,
)
from ondevice.models.model import Adapter, Model
from ondevice.models.save import write
from ondevice.models.shapes import matrices
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import causal_lm_loss

Weights = dict[str, np.ndarray]
RANK, SCALE = 3, 1.5


def drawn(cfg: Any, names: Any, adapter: str = TRAINED, seed: int = 3) -> dict[str, Pair]:
    """An adapter of each of `names` in which both halves are something."""
    rng, known = np.random.default_rng(seed), matrices(cfg)
    return {
        name: Pair(
            *(
                rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
                for shape in ((RANK, known[name][1]), (known[name][0], RANK))
            ),
            SCALE,
        )
        for name in names
    }


def beside(found: dict[str, Pair], adapter: str = TRAINED) -> Weights:
    return {
        f"{name}.{part}.{adapter}": np.asarray(x, np.float32)
        for name, pair in found.items()
        for part, x in (("lora_A", pair.a), ("lora_B", pair.b), ("lora_scale", pair.scale))
    }


def with_adapters(family: str) -> tuple[Any, Weights, Weights]:
    """(config, weights, two adapters on top of each other of every matrix that a state goes
    through).
    """
    cfg = models.config(family)
    names = matrices(cfg)
    return (
        cfg,
        models.weights(cfg),
        {
            **beside(drawn(cfg, names, seed=3), INHERITED),
            **beside(drawn(cfg, names, seed=4), TRAINED),
        },
    )


# what an adapter computes


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
def test_an_adapter_is_what_is_added_to_the_weights(family: str, backend: Backend) -> None:
    """Loss and gradients: those of A and B follow from the weight's own, W + s·B·A."""
    cfg, weights, low = with_adapters(family)
    batch = models.batch(cfg)
    loss = partial(causal_lm_loss, model=decoder_of(cfg))
    whole = dict(weights)
    for name in matrices(cfg):
        for adapter in (INHERITED, TRAINED):
            a, b = (low[f"{name}.lora_{half}.{adapter}"] for half in "AB")
            whole[f"{name}.weight"] = whole[f"{name}.weight"] + np.float32(SCALE) * (b @ a)
    want, dense = by_name(backend, lambda p, b: loss(backend.ops, p, b)[0], whole, batch)
    for checkpointed in (False, True):
        got, grads = by_name(
            backend,
            lambda p, b, c=checkpointed: loss(backend.ops, p, b, checkpoint=c)[0],
            {**weights, **low},
            batch,
        )
        assert got == pytest.approx(want, abs=2e-5)
        for name in matrices(cfg):
            a, b = (low[f"{name}.lora_{half}.{TRAINED}"] for half in "AB")
            g = dense[f"{name}.weight"]
            for half, expected in (("A", SCALE * (b.T @ g)), ("B", SCALE * (g @ a.T))):
                found = grads[f"{name}.lora_{half}.{TRAINED}"]
                assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max(), (name, half)


def test_both_backends_compute_the_same() -> None:
    cfg, weights, low = with_adapters("qwen3")
    batch = models.batch(cfg, segments=True)
    found = []
    for name in ("torch", "mlx"):
        backend = load_backend(name, device="cpu", dtype="float32")
        loss = partial(causal_lm_loss, model=decoder_of(cfg))
        found.append(
            by_name(
                backend,
                lambda p, b, x=backend, f=loss: f(x.ops, p, b)[0],
                {**weights, **low},
                batch,
            )
        )
    (one, grads), (other, theirs) = found
    assert one == pytest.approx(other, abs=1e-6)
    for name in low:
        assert np.abs(grads[name] - theirs[name]).max() <= 1e-4 * np.abs(grads[name]).max(), name


def test_a_new_adapter_adds_nothing_and_is_one_on_both_backends(backend: Backend) -> None:
    cfg = models.config("llama")
    low = init_lora(dict(matrices(cfg)), 4, 2.0, 0, "sft lora", backend)
    weights = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    batch = on_device(backend, models.batch(cfg))
    run = backend.inference_fn(
        lambda p, b: causal_lm_loss(backend.ops, p, b, model=decoder_of(cfg))[0]
    )
    assert float(run(weights, batch)) == float(run({**weights, **low}, batch))
    a = backend.numpy(low[f"model.layers.0.mlp.up_proj.lora_A.{TRAINED}"])
    assert a.std() == pytest.approx((3 * cfg.hidden_size) ** -0.5, rel=0.2)
    other = init_lora(
        dict(matrices(cfg)), 4, 2.0, 0, "sft lora", load_backend("torch", device="cpu")
    )
    assert np.array_equal(
        a,
        load_backend("torch", device="cpu").numpy(
            other[f"model.layers.0.mlp.up_proj.lora_A.{TRAINED}"]
        ),
    )


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (("q_proj",), 2),
        (("self_attn.q_proj", "lm_head"), 3),
        (("model.layers.1.*",), 7),
        (("*.mlp.[gu]*_proj",), 4),
        (("proj",), 0),
        (("layers.0",), 0),
    ],
)
def test_patterns(patterns: tuple[str, ...], count: int) -> None:
    assert len(matching_modules(matrices(models.config("llama")), patterns)) == count


# folders


def model_with(
    backend: Backend, folder: Path, family: str = "llama", names: Any = None, **changes: Any
) -> Model:
    """A folder with a base, and the model that it is with an adapter beside it."""
    cfg = (
        replace(small_stages.config(), **changes)
        if family == "llama"
        else models.config(
            family,
            vocab_size=small_stages.small_tokenizer().vocab_size,
            max_position_embeddings=small_stages.CONTEXT,
        )
    )
    small_stages.write(folder, backend, cfg)
    base = load_model(folder, backend)
    found = drawn(cfg, names or [n for n in matrices(cfg) if n != "lm_head"])
    low: dict[str, Any] = {}
    for name, pair in found.items():
        low |= lora_tensors(name, pair, TRAINED, backend)
    trained = frozenset(n for n in low if "scale" not in n)
    return replace(
        base, params={**base.params, **low}, adapter=Adapter(str(folder), trained=trained)
    )


def logits(model: Model, backend: Backend, ids: np.ndarray) -> np.ndarray:
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    head = model.network.head
    hidden = model.network.hidden(
        backend.ops,
        model.params,
        {"ids": backend.array(ids), "positions": backend.array(positions)},
    )
    return np.array(backend.numpy(head.logits(backend.ops, head.params(model.params), hidden)))


IDS = np.random.default_rng(0).integers(3, 90, (2, 24)).astype(np.int32)


def written(model: Model, backend: Backend, folder: Path) -> Path:
    folder.mkdir()
    write(folder, backend, model)
    return folder


def test_a_folder_read_again_is_the_same_model(backend: Backend, tmp_path: Path) -> None:
    """Beside its base to the bit, and merged into it."""
    model = model_with(backend, tmp_path / "base")
    folder = written(model, backend, tmp_path / "adapter")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again = load_model(folder, backend, merge=False)
    assert np.array_equal(logits(again, backend, IDS), logits(model, backend, IDS))
    assert set(adapted_modules(again.params, INHERITED)) == set(
        adapted_modules(model.params, TRAINED)
    )
    whole = load_model(folder, backend)
    assert whole.adapter is None and not adapted_modules(whole.params)
    np.testing.assert_allclose(
        logits(whole, backend, IDS), logits(model, backend, IDS), rtol=1e-4, atol=1e-4
    )


SAID = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True, "repetition_penalty": 1.1}


def test_stops_and_settings_go_with_an_adapter(tmp_path: Path) -> None:
    """The base's several stops and its settings of generation: beside it, merged, exported; the
    folder says to PEFT and transformers where a turn ends."""
    from ondevice.config.hub import ExportConfig
    from ondevice.exports.export import export

    backend = load_backend("torch", device="cpu")
    model = model_with(backend, tmp_path / "base")
    listed = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    stop = model.tokenizer.encode("pears")[0]
    (tmp_path / "base" / "generation_config.json").write_text(
        json.dumps({**listed, "eos_token_id": [model.tokenizer.eos_id, stop], **SAID})
    )
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**config, "eos_token_id": model.tokenizer.eos_id})
    )
    base = load_model(tmp_path / "base", backend)
    end = base.tokenizer.inner.token_to_id("<|end|>")
    wanted = {base.tokenizer.eos_id, stop, end}
    assert set(base.tokenizer.stop_ids) == wanted and base.tokenizer.eos_id != end
    model = replace(model, tokenizer=base.tokenizer, generation=base.generation)
    folder = written(model, backend, tmp_path / "adapter")
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    again = load_model(folder, backend, merge=False)
    assert (
        again.tokenizer.sha256() == base.tokenizer.sha256()
        and set(again.tokenizer.stop_ids) == wanted
    )
    second = written(again, backend, tmp_path / "second")  # a stage later
    plain = tmp_path / "plain"  # PEFT's own folders hold no generation_config.json
    shutil.copytree(folder, plain)
    (plain / "generation_config.json").unlink()
    assert set(load_model(plain, backend).tokenizer.stop_ids) == wanted
    export(ExportConfig(model=str(folder), to="hf", out=str(tmp_path / "hf"), backend="torch"))
    for made in (
        folder,
        second,
        merge(folder, tmp_path / "merged", backend=backend),
        tmp_path / "hf",
    ):
        said = json.loads((made / "generation_config.json").read_text())
        assert set(said["eos_token_id"]) == wanted and {name: said[name] for name in SAID} == SAID
        assert set(load_model(made, backend).tokenizer.stop_ids) == wanted
    text = modelfile("m.gguf", again.tokenizer, 60, False, generation_of(folder))[0].splitlines()
    assert {f'PARAMETER stop "{base.tokenizer.inner.id_to_token(i)}"' for i in wanted} <= set(text)
    assert {
        "PARAMETER temperature 0.6",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER repeat_last_n -1",
    } <= set(text)


@pytest.mark.slow
def test_peft_with_transformers_stops_where_a_turn_ends(tmp_path: Path) -> None:
    """By the tokenizer's end of text, which is what is passed on there."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    backend = load_backend("torch", device="cpu")
    model = model_with(backend, tmp_path / "base")
    head = model.params["lm_head.weight"] * 0
    end = model.tokenizer.inner.token_to_id("<|end|>")
    head[end] = 1.0  # whatever is asked, this is the likeliest or the least likely
    assert model.adapter is not None
    model = replace(
        model,
        params={**model.params, "lm_head.weight": head},
        adapter=replace(model.adapter, whole=frozenset({"lm_head.weight"})),
    )
    folder = written(model, backend, tmp_path / "adapter")
    loaded = theirs.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == end
    assert end in transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    asked = (torch.tensor([[i]]) for i in range(5, 90))
    ids = next(one for one in asked if int(loaded(one).logits[0, -1].argmax()) == end)
    out = loaded.generate(
        ids, max_new_tokens=9, do_sample=False, eos_token_id=tokenizer.eos_token_id
    )
    assert out[0].tolist() == [int(ids[0, 0]), end]


def test_two_adapters_are_saved_as_the_one_that_adds_what_both_add(
    backend: Backend, tmp_path: Path
) -> None:
    """Also where they are of different matrices, ranks and scales."""
    model = model_with(backend, tmp_path / "base")
    low = dict(model.params)
    rng = np.random.default_rng(8)
    for name in ("model.layers.0.self_attn.q_proj", "lm_head"):
        rows, columns = matrices(model.cfg)[name]
        pair = Pair(
            rng.standard_normal((2, columns)).astype(np.float32) * np.float32(0.2),
            rng.standard_normal((rows, 2)).astype(np.float32) * np.float32(0.2),
            4.0,
        )
        low |= lora_tensors(name, pair, INHERITED, backend)
    model = model.with_params(low)
    folder = written(model, backend, tmp_path / "adapter")
    again = load_model(folder, backend, merge=False)
    np.testing.assert_allclose(
        logits(again, backend, IDS), logits(model, backend, IDS), rtol=1e-4, atol=1e-4
    )
    found = dict(pairs(again.params, backend, INHERITED))
    assert found["model.layers.0.self_attn.q_proj"].rank == RANK + 2 and found["lm_head"].rank == 2
    own = dict(pairs(model.params, backend, TRAINED))
    for (
        name,
        pair,
    ) in (
        own.items()
    ):  # what is trained here comes back to the bit: a resume reads it from such a folder
        assert np.array_equal(found[name].a[-RANK:], pair.a) and np.array_equal(
            found[name].b[:, -RANK:], pair.b
        )


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    backend = load_backend("torch", device="cpu")
    folder = written(model_with(backend, tmp_path / "base"), backend, tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="base model .*base is not here"):
        load_model(folder, backend)
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "../moved"}))
    assert load_model(folder, backend).cfg.hidden_size == 32
    (folder / peft.CONFIG).write_text(
        json.dumps({**config, "base_model_name_or_path": "nobody/knows-this-model"})
    )
    with pytest.raises(UserError, match="nobody/knows-this-model is not here.*HF_HUB_OFFLINE"):
        load_model(folder, backend)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alpha_pattern": {"(q|k_proj": 2}}, "(q|k_proj"),
        ({"monteclora_config": {"samples": 2}}, "monteclora_config"),
        ({"some_new_scale": 2.0}, "some_new_scale"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"r": 64}, f"is of rank {RANK}, adapter_config.json says 64"),
        ({"rank_pattern": {"q_proj": 1}}, "adapter_config.json says 1"),
        ({"target_modules": ["q_proj"]}, "which adapter_config.json leaves out"),
        ({"exclude_modules": ["q_proj"]}, "which adapter_config.json leaves out"),
        ({"layers_to_transform": [0]}, "which adapter_config.json leaves out"),
        (
            {"modules_to_save": ["lm_head"]},
            "lacks lm_head.weight, which adapter_config.json says was trained whole",
        ),
    ],
)
def test_adapters_of_other_kinds_are_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    backend = load_backend("torch", device="cpu")
    folder = written(model_with(backend, tmp_path / "base"), backend, tmp_path / "adapter")
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError) as caught:
        load_model(folder, backend)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": [f"model.layers.{n}.mlp.up_proj" for n in (0, 2)]},
        {"target_modules": r".*layers\.[01]\..*_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["h", "blocks"],
        },
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["mlp.up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
    ],
)
def test_which_modules_a_config_means_is_what_peft_says(config: dict[str, Any]) -> None:
    theirs = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    names = matrices(models.config("llama"))
    said = theirs.LoraConfig(**config)
    right = {name for name in names if check_target_module_exists(said, name)}
    assert {name for name in names if peft._meant(config, name)} == right
    assert peft._meant({"target_modules": "all-linear"}, "lm_head") is None


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    backend = load_backend("torch", device="cpu")
    model = model_with(backend, tmp_path / "base")
    folder = written(model, backend, tmp_path / "adapter")
    tensors = backend.load(folder / peft.WEIGHTS)
    first = next(iter(tensors))
    for name, broken in {
        "one half": {n: t for n, t in tensors.items() if n != first},
        "not known here": {
            **tensors,
            "base_model.model.model.embed_tokens.lora_embedding_A": tensors[first] * 1,
        },
        "holds no tensor": {},
        "lacks the adapter of": {n: t for n, t in tensors.items() if "q_proj" not in n},
        "which the base": {**tensors, first: tensors[first][:, :-1]},
    }.items():
        backend.save(folder / peft.WEIGHTS, broken, {})
        with pytest.raises(UserError, match=name):
            load_model(folder, backend)
    (folder / peft.WEIGHTS).write_bytes(b"not a file")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(folder, backend)
    (folder / peft.WEIGHTS).unlink()
    with pytest.raises(UserError, match="is missing"):
        load_model(folder, backend)


# PEFT


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_peft_reads_our_folders(family: str, backend: Backend, tmp_path: Path) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = model_with(backend, tmp_path / "base", family)
    if family == "llama":  # a matrix that is trained whole, and ranks that differ
        low = lora_tensors(
            "model.layers.0.mlp.up_proj",
            drawn(model.cfg, ["model.layers.0.mlp.up_proj"], seed=9)["model.layers.0.mlp.up_proj"],
            INHERITED,
            backend,
        )
        head = {"lm_head.weight": model.params["lm_head.weight"] * 0.5}
        assert model.adapter is not None
        model = replace(
            model,
            params={**model.params, **low, **head},
            adapter=replace(model.adapter, whole=frozenset(head)),
        )
    folder = written(model, backend, tmp_path / "adapter")
    loaded = theirs.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        want = loaded(input_ids=torch.tensor(IDS).long()).logits.numpy()
    np.testing.assert_allclose(
        logits(load_model(folder, backend, merge=False), backend, IDS), want, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_peft_reads_tied_embeddings_that_were_trained(backend: Backend, tmp_path: Path) -> None:
    """They are the head too, there as here."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = model_with(backend, tmp_path / "base", "llama-gqa-tied")
    whole = {"model.embed_tokens.weight": model.params["model.embed_tokens.weight"] * 1.5}
    assert model.adapter is not None
    model = replace(
        model,
        params={**model.params, **whole},
        adapter=replace(model.adapter, whole=frozenset(whole)),
    )
    folder = written(model, backend, tmp_path / "adapter")
    loaded = theirs.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        want = loaded(input_ids=torch.tensor(IDS).long()).logits.numpy()
    for merge_ in (False, True):
        got = logits(load_model(folder, backend, merge=merge_), backend, IDS)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 12},
        {
            "target_modules": "all-linear",
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
        },
        {
            "target_modules": ["gate_proj"],
            "modules_to_save": ["lm_head"],
            "init_lora_weights": "gaussian",
        },
    ],
    ids=["two", "all, rslora, patterns", "head"],
)
def test_we_read_pefts_folders(options: dict[str, Any], backend: Backend, tmp_path: Path) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    small_stages.write(tmp_path / "base", backend, small_stages.config())
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    made = theirs.get_peft_model(base, theirs.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.copy_(torch.randn_like(p) * 0.2)
    made.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        want = made(input_ids=torch.tensor(IDS).long()).logits.numpy()
    for whole in (False, True):
        got = logits(load_model(tmp_path / "adapter", backend, merge=whole), backend, IDS)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


HEADS: dict[str, dict[str, Any]] = {
    "table": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "lora": {"target_modules": ["q_proj", "lm_head"]},
    "table, lora": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "table, kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"[qk]_proj": 3},
        # in the order that a file has them in: of two that fit the first counts
        "alpha_pattern": {r"(q|k|v)_proj": 3, r"layers\.0\.(self_attn|mlp)\.(q|up)_proj": 24},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["auto", True], ids=["", "with embeddings"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("which", HEADS)
def test_embeddings_and_heads_of_pefts_folders(
    which: str, tied: bool, saved: Any, backend: Backend, tmp_path: Path
) -> None:
    """PEFT's logits: beside the base, merged, and of the folder that we write of it."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    small_stages.write(tmp_path / "base", backend, small_stages.config(tie_word_embeddings=tied))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    options = {
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj"],
        "r": 4,
        "lora_alpha": 6,
        **HEADS[which],
    }
    made = theirs.get_peft_model(base, theirs.LoraConfig(**options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved)
    with torch.no_grad():
        want = made(input_ids=torch.tensor(IDS).long()).logits.numpy()
    beside = load_model(tmp_path / "adapter", backend, merge=False)
    again = written(beside, backend, tmp_path / "again")
    for model in (
        beside,
        load_model(tmp_path / "adapter", backend),
        load_model(again, backend, merge=False),
    ):
        np.testing.assert_allclose(logits(model, backend, IDS), want, rtol=1e-4, atol=1e-4)
    read = theirs.AutoPeftModelForCausalLM.from_pretrained(again).eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            read(input_ids=torch.tensor(IDS).long()).logits.numpy(), want, rtol=1e-4, atol=1e-4
        )
