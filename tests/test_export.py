"""Models in other programs' forms: what is written is the model, to llama.cpp, transformers and
mlx-lm too.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from data_samples import CHATS, TEXTS, small_tokenizer
from llama_cpp import LlamaCpp
from ondevice.cli import main
from ondevice.common.distribution import install_hint
from ondevice.common.errors import UserError
from ondevice.data.chat_encoding import add_template, encode_chat, render
from ondevice.data.chat_template import TEMPLATES
from ondevice.data.tokenizer_training import OWN_TEMPLATE
from ondevice.exports import gguf_file
from ondevice.exports.compare import gap, logits, prompt_of
from ondevice.exports.gguf_words import _PROBES, template_of, words_of
from ondevice.exports.modelfile import ROLES, modelfile, parts_of, trims
from ondevice.models.load import load_model
from ondevice.models.lora import INHERITED, Pair, lora_tensors
from ondevice.models.model import Adapter
from ondevice.models.save import write, write_model
from ondevice.models.shapes import matrices
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer

GGUF = [
    "llama",
    "llama-gqa-tied",
    "llama3-rope",
    "llama-linear-bias",
    "mistral-window",
    "qwen2",
    "qwen3",
]
SIZE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}


def folder_of(family: str, path: Path, backend: Backend, **changes: Any) -> Path:
    """A random model of this family with our small tokenizer."""
    # Qwen2's heads are as wide together as the model in llama.cpp; the others' need not be
    cfg = models.config(
        family, vocab_size=small_tokenizer().vocab_size + 3, **{**SIZE, "head_dim": 16, **changes}
    )
    path.mkdir(parents=True)
    write_model(
        path,
        backend,
        cfg,
        {n: backend.array(w) for n, w in models.weights(cfg).items()},
        small_tokenizer(),
    )
    return path


# the tokenizer and the templates


def test_our_words_are_split_as_llama_cpp_splits_them() -> None:
    words = words_of(small_tokenizer(), small_tokenizer().vocab_size + 3, "here")
    assert (words.pre, words.differs, words.opens) == ("smollm", (), False)
    assert words.tokens[-3:] == [f"[PAD{len(words.tokens) - n}]" for n in (3, 2, 1)]
    assert [words.tokens[words.ids[name]] for name in ("eos", "eot", "pad")] == [
        "<|endoftext|>",
        "<|end|>",
        "<|pad|>",
    ]


def test_tags_of_training_leave_the_template_and_nothing_else_changes() -> None:
    for template in (OWN_TEMPLATE, *TEMPLATES.values()):
        tokenizer = small_tokenizer().with_template(template)
        bare = template_of(tokenizer)
        assert bare is not None and "generation" not in bare.replace("add_generation_prompt", "")
        for chat in CHATS:
            assert render(chat, small_tokenizer().with_template(bare)) == render(chat, tokenizer)


@pytest.mark.parametrize("name", ["own", "chatml"])
def test_the_chat_template_is_found_again_for_ollama(name: str) -> None:
    tokenizer = small_tokenizer() if name == "own" else add_template(small_tokenizer(), name)
    parts = parts_of(tokenizer)
    assert parts is not None and set(parts.around) == set(ROLES)
    for chat in CHATS:
        said = parts.lead + "".join(
            a + m["content"] + b for m in chat for a, b in [parts.around[m["role"]]]
        )
        assert said + parts.answer == render(chat, tokenizer, prompt=True)
    text, told = modelfile("x.gguf", tokenizer, 128, False)
    assert told and text.startswith("FROM ./x.gguf\nTEMPLATE ") and "PARAMETER num_ctx 128" in text
    assert 'PARAMETER stop "<|end|>"' in text or 'PARAMETER stop "<|im_end|>"' in text


LLAMA3 = (
    "{% for m in messages %}{% set content = '<|open|>' + m['role'] + '<|close|>\\n\\n' + m['content']TRIM"
    " + '<|end|>' %}"
    "{% if loop.index0 == 0 %}{% set content = '<|endoftext|>' + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|open|>assistant<|close|>\\n\\n' }}{% endif %}"
)


@pytest.mark.parametrize("trim", ["", " | trim"])
def test_a_template_that_opens_every_message_alike(trim: str) -> None:
    """Llama 3's form: what stands behind the lead belongs to each message, whichever role comes
    next.
    """
    tokenizer = small_tokenizer().with_template(LLAMA3.replace("TRIM", trim))
    parts = parts_of(tokenizer)
    assert parts is not None and parts.lead == "<|endoftext|>" and trims(tokenizer) == bool(trim)
    assert parts.around["user"] == ("<|open|>user<|close|>\n\n", "<|end|>")
    for roles in (("user", "user"), ("assistant", "user"), ("system", "user", "user", "assistant")):
        chat = [{"role": role, "content": f"Xq7{n}."} for n, role in enumerate(roles)]
        assert parts.write(roles) == render(chat, tokenizer, prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        # between two messages of one role stands something else
        "{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}+{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "{% if messages[0].role != 'system' %}<s>Be nice.</s>{% endif %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ '{{' }}{{ m.role }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}",
    ],
)
def test_a_template_that_does_more_is_left_to_ollama(template: str) -> None:
    tokenizer = small_tokenizer().with_template(template)
    assert parts_of(tokenizer) is None
    text, told = modelfile("x.gguf", tokenizer, 128, False)
    assert not told and "TEMPLATE" not in text


# GGUF


@pytest.mark.parametrize("family", GGUF)
def test_gguf_holds_the_model(family: str, tmp_path: Path) -> None:
    """At f32 what is read back is the model to the last bit but for a float32 base of rope; sizes
    from the file.
    """
    pytest.importorskip("gguf")
    backend = load_backend("torch", device="cpu", dtype="float32")
    model = load_model(folder_of(family, tmp_path / "m", backend), backend)
    words = words_of(model.tokenizer, model.cfg.vocab_size, "here")
    for dtype, most in (("f32", 1e-6), ("f16", 5e-3), ("q8_0", 5e-2)):
        gguf_file.write(tmp_path / f"{dtype}.gguf", model, backend, words, dtype, "m")
        back = gguf_file.read(tmp_path / f"{dtype}.gguf", model, backend)
        assert back.cfg.max_position_embeddings == (6 if family == "mistral-window" else 128)
        found = gap(logits(model, backend, prompt_of(back)), logits(back, backend, prompt_of(back)))
        assert found.share <= most, dtype
        assert dtype == "f32" or found.largest > 0
    if family.startswith("llama"):  # the order of rows is another there, not ours with another name
        import gguf

        tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "f32.gguf").tensors}
        own = backend.numpy(model.params["model.layers.0.self_attn.q_proj.weight"])
        assert not np.array_equal(tensors["blk.0.attn_q.weight"], own)
        assert np.array_equal(tensors["blk.0.attn_q.weight"][:2], own[[0, 8]])


@pytest.mark.slow
@pytest.mark.parametrize("family", GGUF)
def test_llama_cpp_writes_what_we_write(family: str, tmp_path: Path) -> None:
    """The same greedy tokens, log-probabilities, tokens of a text and prompts, by llama.cpp itself
    at f16.
    """
    backend = load_backend("torch", device="cpu", dtype="float32")
    # within a window there is none
    changes = {"windows": (48, 48)} if family == "mistral-window" else {}
    folder = folder_of(family, tmp_path / "m", backend, **changes)
    od.export(folder, "gguf", out=str(tmp_path / "out"), backend="torch", data=str(_text(tmp_path)))
    # ours from the file's own float16
    model = load_model(folder, backend)
    model = gguf_file.read(tmp_path / "out" / "m-F16.gguf", model, backend)
    program = LlamaCpp(tmp_path / "out" / "m-F16.gguf")
    for text in (*TEXTS[:3], *_PROBES, "<|end|> and <|user|>"):
        assert program.tokenize(text) == model.tokenizer.encode(text), text
    for chat in CHATS[:2]:
        assert program.template(chat[:-1]) == render(chat[:-1], model.tokenizer, prompt=True)
    prompts = [model.tokenizer.encode(text)[:16] for text in TEXTS[:3]]
    for prompt in prompts:
        theirs, told = program.greedy(prompt, 24)
        seen = logits(model, backend, [*prompt, *theirs])[len(prompt) - 1 : -1].astype(np.float64)
        seen -= np.logaddexp.reduce(seen, axis=-1, keepdims=True)
        # the likeliest of ours too; a random model has ties, which llama.cpp's float16 sums decide
        # otherwise
        assert max(z.max() - z[i] for z, i in zip(seen, theirs, strict=True)) < 5e-3
        assert np.mean(seen.argmax(-1) == theirs) > 0.9
        rest = iter(zip(seen, theirs, strict=True))
        gaps = [abs(next(z[j] for z, j in rest if j == i) - found) for i, found in told]
        assert len(gaps) > 3 and max(gaps) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-gqa-tied", "mistral-window", "qwen2", "qwen3"])
def test_transformers_reads_our_gguf(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    import torch

    backend = load_backend("torch", device="cpu", dtype="float32")
    # transformers takes a Qwen3's heads to be 128 wide, whatever the file states
    changes = {"mistral-window": {"windows": (100, 100)}, "qwen3": {"head_dim": 128}}.get(
        family, {}
    )
    folder = folder_of(family, tmp_path / "m", backend, **changes)
    od.export(folder, "gguf", out=str(tmp_path / "out"), dtype="f32", backend="torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="m-F32.gguf"
    ).eval()
    ids = torch.tensor([list(range(3, 40))])
    with torch.no_grad():
        found = theirs(ids).logits[0].numpy()
        mine = (
            transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0].numpy()
        )
    np.testing.assert_allclose(found, mine, atol=1e-4)


# other types


def test_hf_in_another_type(tmp_path: Path, backend: Backend) -> None:
    folder = folder_of("qwen3", tmp_path / "m", backend)
    (folder / "README.md").write_text("what it is\n")
    same = od.export(folder, "hf", dtype="float32", out=tmp_path / "same", backend=backend.name)
    assert same["largest_difference"] == 0 and same["same_token"] == same["places"] > 20
    half = od.export(
        folder, "hf", out=tmp_path / "half", backend=backend.name, data=str(_text(tmp_path))
    )
    assert (
        json.loads((tmp_path / "half" / "config.json").read_text())["dtype"]
        == half["dtype"]
        == "bfloat16"
    )
    assert 0 < half["largest_difference"] < 0.5 and half["perplexity_after"] == pytest.approx(
        half["perplexity_before"], rel=0.05
    )
    assert (
        half["bytes"] < same["bytes"]
        and (tmp_path / "half" / "README.md").read_text() == "what it is\n"
    )


@pytest.mark.slow
def test_trl_and_the_pipeline_take_a_reward_model_and_a_value_model(tmp_path: Path) -> None:
    """TRL's GRPO loads both by their folders, as it loads any reward model; its scores of chats are
    ours.
    """
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    import transformers

    backend = load_backend("torch", device="cpu", dtype="float32")
    files = small_stages.make(tmp_path / "files", backend)
    od.ppo(
        **small_stages.settings(files, "ppo", tmp_path / "run", "torch", steps=1, warmup_steps=0)
    )
    value = tmp_path / "run" / "ppo" / "value_model"
    assert "pipeline_tag: text-classification" in (value / "README.md").read_text()
    folders = {"judge": files / "judge", "value": value}
    for name, folder in folders.items():
        od.export(folder, "hf", dtype="float32", out=tmp_path / name, backend="torch")
    chats = [
        [{"role": "user", "content": f"Anna {n}"}, {"role": "assistant", "content": "Rome " * n}]
        for n in (1, 4)
    ]
    trainer = trl.GRPOTrainer(
        str(files / "policy"),
        [str(tmp_path / name) for name in folders],
        args=trl.GRPOConfig(
            str(tmp_path / "grpo"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            num_generations=2,
            per_device_train_batch_size=2,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": chat[:1]} for chat in chats]),
    )
    theirs = trainer._calculate_rewards(
        [{}, {}], [c[:1] for c in chats], [c[1:] for c in chats], [[1], [1]]
    )
    for column, name in enumerate(folders):
        model = load_model(folders[name], backend)
        ids = [encode_chat(chat, model.tokenizer)[0].ids for chat in chats]
        want = Scorer(model, backend).scores(model.params, ids)
        np.testing.assert_allclose(theirs[:, column].numpy(), want, atol=1e-5)
        pipeline = transformers.pipeline(
            "text-classification", str(tmp_path / name), function_to_apply="none"
        )
        text = render(chats[0], model.tokenizer)
        assert pipeline(text)[0]["score"] == pytest.approx(want[0], abs=1e-5)


# MLX, and adapters


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_lm_reads_our_quantised_export(bits: int, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    backend = load_backend("torch", device="cpu", dtype="float32")
    folder = folder_of("qwen3", tmp_path / "m", backend)
    found = od.export(
        folder,
        "mlx",
        bits=bits,
        group_size=32,
        out=tmp_path / "out",
        backend="torch",
        data=str(_text(tmp_path)),
    )
    assert found["dtype"] == f"{bits} bits" and found["perplexity_after"] == pytest.approx(
        found["perplexity_before"], rel=0.5 if bits == 4 else 0.02
    )
    theirs, _ = mlx_lm.load(str(tmp_path / "out"))
    ids = list(range(3, 30))
    want = logits(load_model(tmp_path / "out", backend), backend, ids)
    np.testing.assert_allclose(np.array(theirs(mx.array([ids])))[0], want, rtol=1e-3, atol=2e-3)


@pytest.fixture
def adapter(policy: Path, tmp_path: Path) -> Path:
    """PEFT's folder of an adapter of two kinds of matrices; one of them in one block alone."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    model = load_model(policy, backend)
    rng = np.random.default_rng(0)
    params = dict(model.params)
    for name, rank, scale in (
        ("model.layers.0.self_attn.q_proj", 3, 2.0),
        ("model.layers.1.self_attn.q_proj", 3, 2.0),
        ("model.layers.1.mlp.down_proj", 2, 0.5),
    ):
        outputs, inputs = matrices(model.cfg)[name]
        pair = Pair(
            *(
                rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
                for shape in ((rank, inputs), (outputs, rank))
            ),
            scale,
        )
        params |= lora_tensors(name, pair, INHERITED, backend)
    (tmp_path / "lora").mkdir()
    write(tmp_path / "lora", backend, replace(model, params=params, adapter=Adapter(str(policy))))
    return tmp_path / "lora"


def test_adapters_go_both_ways(
    adapter: Path, policy: Path, tmp_path: Path, backend: Backend
) -> None:
    there = od.export(adapter, "mlx-adapter", out=tmp_path / "mlx", backend=backend.name)
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["model"] == str(policy) and config["lora_parameters"]["keys"] == [
        "mlp.down_proj",
        "self_attn.q_proj",
    ]
    back = od.export(tmp_path / "mlx", "peft", out=tmp_path / "peft", backend=backend.name)
    text = list(range(3, 30))
    plain, first, last = (
        logits(load_model(f, backend), backend, text) for f in (policy, adapter, tmp_path / "peft")
    )
    assert gap(first, last).share < 1e-5 < 1e-2 < gap(plain, last).share
    assert (
        max(there["largest_difference"], back["largest_difference"]) < 1e-3
        and "its base is" in there["notes"][0]
    )
    whole = od.export(
        tmp_path / "mlx", "hf", dtype="float32", out=tmp_path / "whole", backend=backend.name
    )
    assert "model.safetensors" in whole["files"]
    assert gap(first, logits(load_model(tmp_path / "whole", backend), backend, text)).share < 1e-5
    with pytest.raises(UserError, match="is not an adapter"):
        od.export(policy, "peft", out=tmp_path / "x", backend=backend.name)


@pytest.mark.slow
def test_mlx_lm_reads_our_adapter(adapter: Path, policy: Path, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    od.export(adapter, "mlx-adapter", out=tmp_path / "mlx", backend="torch")
    theirs, _ = mlx_lm.load(str(policy), adapter_path=str(tmp_path / "mlx"))
    backend = load_backend("torch", device="cpu", dtype="float32")
    want = logits(load_model(adapter, backend), backend, list(range(3, 30)))
    np.testing.assert_allclose(
        np.array(theirs(mx.array([list(range(3, 30))])))[0], want, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_peft_reads_what_came_from_mlx_lm(adapter: Path, policy: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    od.export(adapter, "mlx-adapter", out=tmp_path / "mlx", backend="torch")
    od.export(tmp_path / "mlx", "peft", out=tmp_path / "peft", backend="torch")
    base = transformers.AutoModelForCausalLM.from_pretrained(policy)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    backend = load_backend("torch", device="cpu", dtype="float32")
    want = logits(load_model(adapter, backend), backend, list(range(3, 30)))
    with torch.no_grad():
        found = theirs(torch.tensor([list(range(3, 30))])).logits[0].numpy()
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fine_tune_type": "dora"}, "kind 'dora'"),
        ({"model": ""}, "names no base"),
        ({"lora_parameters": 3}, "is not an adapter"),
        ({"model": "nowhere/at/all"}, "nowhere"),
    ],
)
def test_bad_adapters_of_mlx_lm(
    change: dict[str, Any], said: str, adapter: Path, tmp_path: Path
) -> None:
    od.export(adapter, "mlx-adapter", out=tmp_path / "mlx", backend="torch")
    file = tmp_path / "mlx" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=said):
        od.export(tmp_path / "mlx", "peft", out=tmp_path / "x", backend="torch")
    assert not (tmp_path / "x").exists()


def _text(folder: Path) -> Path:
    (folder / "text.txt").write_text("\n".join(TEXTS))
    return folder / "text.txt"


# what is refused


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return folder_of("llama", tmp_path / "m", load_backend("torch", device="cpu"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "onnx"], "known: gguf, hf, mlx"),
        ([], "--to is missing"),
        (["--to", "gguf", "--dtype", "bfloat16"], "known: f16, q8_0, f32"),
        (["--to", "mlx", "--bits", "3"], "known: 4, 8"),
        (["--to", "mlx", "--dtype", "f16"], "does not go with --to mlx"),
        (["--to", "hf", "--out", "{m}"], "is there already"),
        (["--to", "hf", "--out", "{m}/config.json/x"], "below a file"),
    ],
)
def test_bad_words(
    words: list[str], said: str, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(policy), *(w.replace("{m}", str(policy)) for w in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_gguf_cannot_hold(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    backend = load_backend("torch", device="cpu")
    made = small_stages.make(tmp_path / "made", backend)
    encoder = models.encoder_config("bert", vocab_size=small_tokenizer().vocab_size)
    (tmp_path / "bert").mkdir()
    write_model(
        tmp_path / "bert",
        backend,
        encoder,
        {n: backend.array(w) for n, w in models.weights(encoder).items()},
        small_tokenizer(),
    )
    out = tmp_path / "out"
    for folder, said in (
        (tmp_path / "bert", "bert is not written as GGUF"),
        (made / "judge", "is a reward model"),
    ):
        with pytest.raises(UserError, match=said):
            od.export(folder, "gguf", out=out, backend="torch")
    tokens = json.loads((policy / "tokenizer.json").read_text())
    tokens["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[a-z]"}
    (policy / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match="no rule that splits text"):
        od.export(policy, "gguf", out=out, backend="torch")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else object()
    )
    with pytest.raises(
        UserError, match=rf"gguf is not installed \({re.escape(install_hint('export'))}\)"
    ):
        od.export(policy, "gguf", out=out, backend="torch")
    assert not out.exists() and not list(tmp_path.glob(".tmp-*"))


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    backend = load_backend("torch", device="cpu")
    folder = folder_of("llama", tmp_path / "m", backend)
    model = load_model(folder, backend)
    name = "model.layers.0.mlp.up_proj.weight"
    model.params[name] = model.params[name] * 1e6
    write_model(folder, backend, model.cfg, model.params, model.tokenizer)
    with pytest.raises(UserError, match="float16 cannot"):
        od.export(folder, "gguf", out=tmp_path / "out", backend="torch")
    with pytest.raises(UserError, match="nothing was kept"):
        od.export(folder, "hf", dtype="float16", out=tmp_path / "out", backend="torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_is_misread_is_not_exported(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export agrees with our own reading of the folder: that one is compared with transformers'."""
    pytest.importorskip("transformers")
    from ondevice.config.hub import ExportConfig
    from ondevice.exports.export import export
    from ondevice.models.decoder import GPT2, Decoder

    backend = load_backend("torch", "cpu", "float32")
    cfg = models.config(family, vocab_size=small_tokenizer().vocab_size)
    (tmp_path / "model").mkdir()
    write_model(
        tmp_path / "model",
        backend,
        cfg,
        {n: backend.array(w) for n, w in models.weights(cfg).items()},
        small_tokenizer(),
    )
    asked = ExportConfig(
        model=str(tmp_path / "model"), to="hf", out=str(tmp_path / "out"), backend="torch"
    )
    assert "as transformers does: largest difference" in export(asked)["notes"][-1]
    misread = GPT2 if family == "gpt2" else Decoder
    before = misread._norm
    monkeypatch.setattr(
        misread,
        "_norm",
        lambda self, ops, params, name, x: before(self, ops, params, name, x) * 1.05,
    )
    with pytest.raises(UserError, match="otherwise than transformers does"):
        export(
            ExportConfig(
                model=str(tmp_path / "model"), to="hf", out=str(tmp_path / "other"), backend="torch"
            )
        )
    assert not (tmp_path / "other").exists()
