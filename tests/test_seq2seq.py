"""T5 and BART: both backends, and transformers, give the same logits, losses and gradients, and
write the same texts, greedily and with beams; folders go both ways; decoding with caches is the
forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

import mlx_compiler
import models
import ondevice as od
from data_samples import TEXTS, small_tokenizer
from gradients import assert_close, by_name, loss_of, on_device
from ondevice.common.errors import UserError
from ondevice.data.chat_encoding import encode_chat, prompt_ids
from ondevice.data.completion_batches import Row, answers_of, completion_batch
from ondevice.data.packing import set_denominator
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference.beam_search import beam_search
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model, tokenizer_of
from ondevice.models.model import Model
from ondevice.models.registry import load_config, parse_config
from ondevice.models.save import write_model
from ondevice.models.seq2seq import Seq2Seq, distance_buckets
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

Weights = dict[str, np.ndarray]


def batch(cfg: Seq2SeqConfig, seed: int = 1) -> Weights:
    """Sources and texts of different lengths, padded."""
    rng = np.random.default_rng(seed)
    rows = [
        Row(*(rng.integers(3, cfg.vocab_size, n).astype(np.int32) for n in sizes))
        for sizes in ((23, 9), (7, 14), (40, 3))
    ]
    made = completion_batch(rows, 4, start=cfg.decoder_start_token_id)
    del made["member"]
    return set_denominator([made])[0]


def oracle(cfg: Seq2SeqConfig, weights: Weights, folder: Path) -> Any:
    """transformers' model, from a folder of ours: whatever a config says, it ties T5's head unless
    a file holds it.
    """
    transformers = pytest.importorskip("transformers")
    torch = load_backend("torch", device="cpu", dtype="float32")
    folder.mkdir(exist_ok=True)
    tokenizer = small_tokenizer()
    write_model(folder, torch, cfg, on_device(torch, weights), tokenizer)
    made, told = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["unexpected_keys"] and not told["mismatched_keys"] and not told["missing_keys"]
    return made.eval()


def config(family: str, **changes: Any) -> Seq2SeqConfig:
    return models.seq2seq_config(family, vocab_size=small_tokenizer().vocab_size, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("family", models.SEQ2SEQ)
def test_loss_and_gradients_are_transformers(family: str, backend: Backend, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cfg = config(family)
    weights, made = models.weights(cfg), batch(cfg)
    reference = oracle(cfg, weights, tmp_path / "m")
    labels = np.full(made["ids"].size, -100)
    real = made["weights"] > 0
    labels[made["index"][real]] = made["targets"][real]
    seen = np.arange(made["source_ids"].shape[1]) < made["source_lengths"][:, None]
    want = reference(
        input_ids=torch.tensor(made["source_ids"]).long(),
        attention_mask=torch.tensor(seen).long(),
        decoder_input_ids=torch.tensor(made["ids"]).long(),
        labels=torch.tensor(labels.reshape(made["ids"].shape)),
    )
    want.loss.backward()
    theirs = {n: p.grad.numpy() for n, p in reference.named_parameters()}
    for checkpoint in (False, True):
        loss, grads = by_name(backend, loss_of(cfg, backend, checkpoint=checkpoint), weights, made)
        assert loss == pytest.approx(want.loss.item(), rel=1e-5)
        # transformers does not train it
        assert grads.keys() - theirs.keys() <= {"final_logits_bias"}
        assert_close(grads, theirs)
    params, net = on_device(backend, weights), Seq2Seq(cfg)
    hidden = net.hidden(
        backend.ops, params, on_device(backend, {k: v for k, v in made.items() if "index" not in k})
    )
    got, logits = (
        backend.numpy(net.head.logits(backend.ops, params, hidden)),
        want.logits.detach().numpy(),
    )
    assert np.abs(got[:3] - logits[:3]).max() <= 1e-5 * np.abs(logits[:3]).max()


@pytest.mark.parametrize("family", models.SEQ2SEQ)
def test_both_backends_and_checkpointing_give_the_same_gradients(family: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    cfg = config(family)
    weights, made = models.weights(cfg), batch(cfg)
    torch, mlx = (load_backend(name, device="cpu", dtype="float32") for name in ("torch", "mlx"))
    loss, grads = by_name(torch, loss_of(cfg, torch), weights, made)
    assert all(np.abs(g).max() > 0 for g in grads.values())
    for backend, checkpoint, compiled in (
        (torch, True, False),
        (mlx, False, False),
        (mlx, True, mlx_compiler.compiles()),
    ):
        made_loss = loss_of(cfg, backend, checkpoint=checkpoint)
        other, theirs = by_name(backend, made_loss, weights, made, compiled=compiled)
        assert other == pytest.approx(loss, rel=1e-5)
        assert_close(theirs, grads)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20)])
def test_distances_have_the_buckets_of_transformers(both: bool, buckets: int, longest: int) -> None:
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    away = torch.arange(-300, 301)
    want = modeling.T5Attention._relative_position_bucket(away, both, buckets, longest).tolist()
    assert distance_buckets(300, both, buckets, longest).tolist() == want


@pytest.mark.slow
@pytest.mark.parametrize("family", models.SEQ2SEQ)
def test_folders_go_both_ways(family: str, tmp_path: Path) -> None:
    """Ours → transformers → ours: the same tensors, the same config."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    cfg = config(family)
    weights = models.weights(cfg)
    oracle(cfg, weights, tmp_path / "a").save_pretrained(tmp_path / "b")
    small_tokenizer().save(tmp_path / "b")
    back = load_model(tmp_path / "b", backend)
    assert {n: backend.numpy(p).tolist() for n, p in back.params.items()} == {
        n: w.tolist() for n, w in weights.items()
    }
    assert load_config(tmp_path / "a").tie_word_embeddings == cfg.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ({"num_heads": 0}, "num_heads"),
        ({"d_kv": None}, "d_kv"),
    ],
)
def test_what_we_cannot_honour_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(json.loads(json.dumps({**models.seq2seq_config("t5").to_json(), **change})))
    assert error.value.where == where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"decoder_ffn_dim": 7}, "decoder_ffn_dim"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_embedding": True}, "scale_embedding"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "encoder_attention_heads"),
    ],
)
def test_what_we_cannot_honour_of_bart_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config({**models.seq2seq_config("bart").to_json(), **change})
    assert error.value.where == where


# writing


def written(cfg: Seq2SeqConfig, backend: Backend, folder: Path) -> Model:
    """A model under which a text stops now and then, in `folder` for transformers too."""
    weights = models.weights(cfg, seed=3)
    head = Seq2Seq(cfg).head.name
    for stop in small_tokenizer().stop_ids:
        # the others' tied heads would stop at once
        weights[head][stop] *= 4 if cfg.model_type == "t5" else 1
    folder.mkdir()
    params = on_device(backend, weights)
    write_model(folder, backend, cfg, params, small_tokenizer())
    return Model(cfg, params, small_tokenizer(), folder)


def prompts(cfg: Seq2SeqConfig, count: int = 6) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(8, cfg.vocab_size, n).tolist() for n in rng.integers(2, 30, count)]


@pytest.mark.parametrize("family", models.SEQ2SEQ)
def test_decoding_with_caches_is_the_forward_pass(
    family: str, backend: Backend, tmp_path: Path
) -> None:
    """Greedy texts of a batch: at every place the likeliest token under the whole forward pass."""
    cfg = config(family)
    model = written(cfg, backend, tmp_path / "m")
    asked = prompts(cfg)
    found = Generator(model, backend, Sampling(max_new_tokens=20, temperature=0)).run(
        model.params, asked
    )
    net, ops = model.network, backend.ops
    for prompt, done in zip(asked, found, strict=True):
        ids = [*done.ids, *([] if done.stop is None else [done.stop])]
        made = completion_batch([Row(prompt, ids)], 1, start=cfg.decoder_start_token_id)
        hidden = net.hidden(
            ops, model.params, on_device(backend, made), at=backend.array(made["index"])
        )
        best = backend.numpy(net.head.logits(ops, model.params, hidden)).argmax(-1)
        assert best[: len(ids)].tolist() == ids
    assert any(len(done.ids) > 5 for done in found) and (
        cfg.model_type != "t5" or any(done.stopped for done in found)
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", models.SEQ2SEQ)
def test_transformers_writes_the_same_texts(family: str, backend: Backend, tmp_path: Path) -> None:
    """Greedily, and by beam search with 4 beams: token by token."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    cfg = config(family)
    model = written(cfg, backend, tmp_path / "m")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").eval()
    generator = Generator(model, backend, Sampling(max_new_tokens=16, temperature=0))
    for prompt in prompts(cfg, 8):
        for beams in (1, 4):
            with torch.no_grad():
                # transformers makes its cache for as many layers as the encoder has
                want = theirs.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=16,
                    num_beams=beams,
                    do_sample=False,
                    use_cache=cfg.num_hidden_layers == cfg.num_decoder_layers,
                    eos_token_id=list(small_tokenizer().stop_ids),
                    pad_token_id=1,
                )[0].tolist()[1:]
            done = (
                generator.run(model.params, [prompt])[0]
                if beams == 1
                else beam_search(generator, model.params, prompt, beams)[0].completion
            )
            got = [*done.ids, *([] if done.stop is None else [done.stop])]
            assert got == want[: len(got)] and set(want[len(got) :]) <= {1}


# published folders


def t5_tokenizer() -> tuple[Any, dict[str, str]]:
    """As T5's: pieces of a Unigram, sentinels, the token that ends a text behind it."""
    # their trainer finds others each time
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"\u2581{word}", -6.0) for word in words),
        ("\u2581", -4.0),
        *((letter, -5.0) for letter in letters),
    ]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer, inner.decoder = (
        tokenizers.pre_tokenizers.Metaspace(),
        tokenizers.decoders.Metaspace(),
    )
    inner.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(20))])
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return inner, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def bart_tokenizer() -> tuple[Any, dict[str, str]]:
    """As BART's: pairs of bytes, a token before and one behind a text."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    inner.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(special.values()),
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    inner.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    return inner, {**special, "bos_token": "<s>", "sep_token": "</s>"}


def published(family: str, folder: Path) -> Any:
    """A folder that transformers has written: (tokenizer, model), both as transformers reads them
    again.
    """
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    inner, named = t5_tokenizer() if family == "t5" else bart_tokenizer()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    torch.manual_seed(0)
    if family == "t5":
        made = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(fast),
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
                initializer_factor=2.0,
            )
        )
    else:
        sides = {
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
        }
        made = transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=len(fast),
                d_model=32,
                max_position_embeddings=64,
                decoder_start_token_id=2,
                init_std=0.3,
                forced_eos_token_id=None,
                **sides,
            )
        )
    with torch.no_grad():  # so that a text ends now and then
        if family == "t5":
            made.shared.weight[1] *= 4.0
        else:
            made.final_logits_bias[0, 2] = 7.0
    fast.save_pretrained(folder)
    made.save_pretrained(folder)
    return (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(),
    )


# what published folders ask of a search, bart-base's and bart-large-cnn's among them
SEARCHES: list[dict[str, Any]] = [
    {},
    {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
    },
    {
        "forced_bos_token_id": 0,
        "min_length": 6,
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 2,
        "early_stopping": True,
    },
    {"early_stopping": "never", "length_penalty": 0.5},
    {"length_penalty": -1.0, "min_length": 3},
    {"no_repeat_ngram_size": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_text_to_text_is_transformers(family: str, backend_name: str, tmp_path: Path) -> None:
    """From a folder as they are published, without a chat template: greedily, and by beams however
    the folder asks.
    """
    torch = pytest.importorskip("torch")
    tokenizer, theirs = published(family, tmp_path / "m")
    common: dict[str, Any] = {
        "model": tmp_path / "m",
        "max_new_tokens": 12,
        "backend": backend_name,
        "device": "cpu",
    }
    file = tmp_path / "m" / "generation_config.json"
    plain = json.loads(file.read_text())
    ended = 0
    for asked in SEARCHES:
        file.write_text(json.dumps({**plain, **asked}))
        for text in ("Anna lives in Rome.", "Where does Ben live?  He", "pears 12+34, naïve"):
            given = torch.tensor([tokenizer(text).input_ids])
            for beams in (1, 4) if not asked else (4,):
                with torch.no_grad():
                    want = theirs.generate(
                        given, max_new_tokens=12, num_beams=beams, do_sample=False, **asked
                    )[0]
                got = od.generate(prompt=text, beams=beams, temperature=0.0, **common)
                assert got == [tokenizer.decode(want, skip_special_tokens=True)]
                assert (
                    od.generate(prompt=text, beams=beams, temperature=0.0, chat=True, **common)
                    == got
                )
                ended += len(want) < 13
    assert ended > 3


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_prompt_and_a_completion_are_read_as_they_are(family: str, tmp_path: Path) -> None:
    """The ids of both are those that transformers trains on; what opens and closes a text is no
    part of a content.
    """
    transformers = pytest.importorskip("transformers")
    inner, named = t5_tokenizer() if family == "t5" else bart_tokenizer()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = tokenizer_of(tmp_path, models.seq2seq_config(family, vocab_size=1000))
    for prompt, completion in (
        ("Where does Ben live?", "In Oslo."),
        (" two  spaces ", "\n12"),
        ("x", ""),
    ):
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        (row,) = answers_of(ChatRows.of(encode_chat(chat, tokenizer)))
        assert list(row.prompt) == theirs(prompt).input_ids == prompt_ids(chat[:1], tokenizer)
        assert list(row.completion) == theirs(text_target=completion).input_ids
        assert tokenizer.encode_source(prompt) == list(row.prompt)
    closing = tokenizer.eos_id
    turns = ("user", "a</s>b"), ("assistant", "c"), ("user", "d"), ("assistant", "e")
    chat = [{"role": role, "content": content} for role, content in turns]
    first, second = answers_of(ChatRows.of(encode_chat(chat, tokenizer)))
    assert [
        list(part).count(closing) for part in (first.prompt, first.completion, second.prompt)
    ] == [1, 1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_beam_search_of_a_decoder_is_transformers(
    family: str, backend: Backend, tmp_path: Path
) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    cfg = models.config(family, vocab_size=small_tokenizer().vocab_size)
    params = on_device(backend, models.weights(cfg, seed=3))
    (tmp_path / "m").mkdir()
    write_model(tmp_path / "m", backend, cfg, params, small_tokenizer())
    model = load_model(tmp_path / "m", backend)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    generator = Generator(model, backend, Sampling(max_new_tokens=12, temperature=0))
    for prompt in [[9, 30, 77], [100, 8, 55, 200, 31, 12]]:
        with torch.no_grad():
            want = theirs.generate(
                torch.tensor([prompt]),
                max_new_tokens=12,
                num_beams=4,
                do_sample=False,
                pad_token_id=1,
            )[0].tolist()[len(prompt) :]
        done = beam_search(generator, model.params, prompt, 4)[0].completion
        got = [*done.ids, *([] if done.stop is None else [done.stop])]
        assert got == want[: len(got)] and set(want[len(got) :]) <= {1}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"relative_attention_num_buckets": "x"}, "relative_attention_num_buckets"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance"),
        ({"num_decoder_layers": "a"}, "num_decoder_layers"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon"),
    ],
)
def test_a_t5_that_none_can_be(changes: dict[str, Any], match: str) -> None:
    raw = {
        "model_type": "t5",
        "vocab_size": 100,
        "d_model": 8,
        "d_ff": 16,
        "d_kv": 4,
        "num_layers": 1,
        "num_heads": 2,
    }
    assert parse_config(raw).relative_attention_num_buckets == 32
    with pytest.raises(UserError, match=match):
        parse_config({**raw, **changes})


def test_an_mt5_that_says_nothing_is_gated() -> None:
    raw = {
        "model_type": "mt5",
        "vocab_size": 100,
        "d_model": 8,
        "d_ff": 16,
        "d_kv": 4,
        "num_layers": 1,
        "num_heads": 2,
    }
    assert parse_config(raw).gated and not parse_config({**raw, "feed_forward_proj": "relu"}).gated


def test_a_source_has_the_tokens_that_its_tokenizer_puts_around_a_text() -> None:
    tokenizer = train_tokenizer(TEXTS, 420)
    bare, eos = tokenizer.encode("Anna lives"), tokenizer.eos_id
    assert tokenizer.encode_source("Anna lives") == [*bare, eos]
    tokenizer.inner.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", eos)]
    )
    again = Tokenizer(tokenizer.inner, tokenizer.config, None, ())
    assert again.encode_source("Anna lives") == [eos, *bare, eos]
