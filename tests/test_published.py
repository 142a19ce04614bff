"""Folders as transformers and the Hub have them, not as we write them: no names of special tokens,
no chat template, a body without a head, settings for generation. They are read, tuned and asked as
their families are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers.processors import TemplateProcessing

import models
import ondevice as od
from data_samples import TEXTS, small_tokenizer
from gradients import on_device
from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference import infill
from ondevice.inference.beam_search import Search, beam_search
from ondevice.inference.generator import Generator
from ondevice.inference.infill import parts_around
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model, tokenizer_of
from ondevice.models.registry import load_config
from ondevice.models.save import write_model
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from test_seq2seq import published

CPU: dict[str, Any] = {"device": "cpu"}
STEPS: dict[str, Any] = {"steps": 2, "eval_every": 0, "learning_rate": 1e-3, **CPU}
LOOP: dict[str, Any] = {**STEPS, "batch_size": 4}


def bert(folder: Path, kind: str = "BertForMaskedLM") -> Path:
    """As google-bert's: word pieces, and a tokenizer_config.json that names no token."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece(prefix="##")
    inner.train_from_iterator(
        TEXTS,
        tokenizers.trainers.WordPieceTrainer(
            vocab_size=200,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            show_progress=False,
        ),
    )
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=inner.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512}'
    )
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    pairs = [
        {
            "prompt": f"Where does {who} live?",
            "completion": f"In {place}.",
            "chosen": f"In {place}.",
            "rejected": "No.",
            "answer": place,
            "text": f"{who} lives in {place}.",
            "label": place,
        }
        for who in ("Anna", "Ben", "Carla")
        for place in ("Rome", "Oslo", "Paris", "Bonn")
    ]
    for name, keys in {
        "sft": ("prompt", "completion"),
        "pairs": ("prompt", "chosen", "rejected"),
        "labels": ("text", "label"),
        "asked": ("prompt", "answer"),
    }.items():
        (folder / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({k: row[k] for k in keys}) for row in pairs)
        )
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    return folder


def test_names_that_a_folder_leaves_out_are_its_familys(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(bert(tmp_path / "bert"))
    assert [tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id] == [2, 3, 4, 0]
    for family, named in (
        ("t5", {"eos_token", "pad_token", "unk_token"}),
        ("bart", {"cls_token", "mask_token"}),
    ):
        published(family, tmp_path / family)
        file = tmp_path / family / "tokenizer_config.json"
        whole = Tokenizer.load(tmp_path / family)
        file.write_text('{"model_max_length": 1024}')
        bare = Tokenizer.load(tmp_path / family)
        assert {
            name: word for name, word in bare.named.items() if name in whole.named
        } == whole.named
        assert named <= set(bare.named) and (bare.eos_id, bare.mask_id) == (
            whole.eos_id,
            whole.mask_id,
        )


@pytest.mark.slow
def test_a_body_alone_learns_to_judge_and_to_tell_apart(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    """Its tensors are those that it has beside a head; an answer stands behind its prompt with
    separators.
    """
    body = bert(tmp_path / "body", "BertModel")
    common = {"model": body, "backend": backend_name, **LOOP}
    made = od.classify(
        data=files / "labels.jsonl", out=tmp_path / "r", sequence_length=24, **common
    )
    backend = load_backend(backend_name, device="cpu", dtype="float32")
    before, after = load_file(body / "model.safetensors"), load_model(made, backend).params
    name = "encoder.layer.0.attention.self.query.weight"
    assert np.abs(backend.numpy(after[f"bert.{name}"]) - before[name]).max() < 0.01
    judge = od.reward(data=files / "pairs.jsonl", out=tmp_path / "r", sequence_length=48, **common)
    tokenizer = tokenizer_of(judge, load_config(judge))
    shown = od.show_data(str(files / "pairs.jsonl"), str(judge), examples=1)["examples"][0][
        "chosen"
    ]
    assert [text.strip() for text, _ in shown] == [
        "[CLS] where does anna live? [SEP]",
        "in rome. [SEP]",
    ]
    assert tokenizer.named["cls_token"] == "[CLS]"
    with pytest.raises(UserError, match="cls.predictions.*BertModel"):
        od.fill(model=body, text="a [MASK]", backend=backend_name, **CPU)


def test_a_bart_model_without_a_head_writes_as_transformers_has_it(
    tmp_path: Path, backend_name: str
) -> None:
    """Its output bias is 0, and its names have no prefix."""
    published("bart", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    plain = {name: x for name, x in load_file(file).items() if name != "final_logits_bias"}
    save_file(
        {
            **plain,
            "final_logits_bias": np.zeros((1, len(plain["model.shared.weight"])), np.float32),
        },
        file,
    )
    asked: dict[str, Any] = {
        "model": tmp_path / "m",
        "prompt": "Anna lives",
        "temperature": 0.0,
        "max_new_tokens": 9,
        "backend": backend_name,
        **CPU,
    }
    want = od.generate(**asked)
    save_file({name.removeprefix("model."): x for name, x in plain.items()}, file)
    assert od.generate(**asked) == want


def test_the_first_t5s_spare_tensor_is_passed_over(tmp_path: Path, backend: Backend) -> None:
    published("t5", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    spare = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file({**load_file(file), spare: np.zeros((32, 4), np.float32)}, file)
    assert spare not in load_model(tmp_path / "m", backend).params


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_pairs_of_any_length_fit_either_side(
    family: str, files: Path, tmp_path: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompt and answer are read apart: each may be as long as the context. What the folder asks of
    a search stays.
    """
    published(family, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["n_positions" if family == "t5" else "max_position_embeddings"] = 64
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    asks = tmp_path / "m" / "generation_config.json"
    asks.write_text(
        json.dumps(
            {**json.loads(asks.read_text()), "no_repeat_ngram_size": 3, "length_penalty": 2.0}
        )
    )
    common = {"backend": backend_name, **LOOP}
    made = od.sft(
        model=tmp_path / "m",
        data=files / "sft.jsonl",
        out=tmp_path / "r",
        sequence_length=40,
        **common,
    )
    kept = json.loads((made / "generation_config.json").read_text())
    assert (kept["no_repeat_ngram_size"], kept["length_penalty"]) == (3, 2.0)
    tokenizer = tokenizer_of(made, load_config(made))
    long = "12"
    while len(tokenizer.encode_source(f"{long} 3")) < 60:
        long += " 3"
    rows = [
        {"prompt": f"{n} {long}", "chosen": f"{n} {long}", "rejected": "12", "answer": str(n)}
        for n in range(1, 13)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = od.dpo(
        model=made, data=tmp_path / "long.jsonl", out=tmp_path / "r", sequence_length=64, **common
    )
    events = (done.parent / "events.jsonl").read_text()
    assert '"pairs": 11' in events and "left out" not in events
    od.grpo(
        model=made,
        data=tmp_path / "long.jsonl",
        out=tmp_path / "r",
        prompts=2,
        group_size=2,
        max_new_tokens=40,
        backend=backend_name,
        **STEPS,
    )
    whole = tokenizer.decode(tokenizer.encode_source(long)[:60])
    assert (
        len(od.generate(model=made, prompt=whole, max_new_tokens=3, backend=backend_name, **CPU))
        == 1
    )
    assert not capsys.readouterr().err.count("is cut")
    assert (
        len(od.generate(model=made, prompt=long * 2, max_new_tokens=3, backend=backend_name, **CPU))
        == 1
    )
    assert "is cut at the end: the model reads 64" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_own_text_and_chats_are_measured(
    family: str, files: Path, tmp_path: Path, backend_name: str
) -> None:
    published(family, tmp_path / "m")
    common = {"model": tmp_path / "m", "backend": backend_name, **CPU}
    text, chats = (od.evaluate(data=files / name, **common) for name in ("text.txt", "sft.jsonl"))
    assert text["objective"] == {"t5": "spans", "bart": "infilling"}[family]
    assert 1 < text["loss"] < 300 and 0 <= text["accuracy"] < 1 and text["tokens"] > 50
    assert 1 < chats["loss"] < 300 and chats["chats"] == 12 and not chats["cut"]


def test_an_encoder_reads_chats_as_text(files: Path, tmp_path: Path, backend_name: str) -> None:
    """It answers none, whatever template its folder has."""
    found = od.evaluate(
        model=bert(tmp_path / "m"), data=files / "sft.jsonl", backend=backend_name, **CPU
    )
    assert (
        set(found) == {"masked_accuracy", "sequence_length"} and 0 <= found["masked_accuracy"] <= 1
    )


def test_what_a_search_leaves_out_and_cannot_keep_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published("t5", tmp_path / "m")
    asks, asked = (
        tmp_path / "m" / "generation_config.json",
        {
            "model": tmp_path / "m",
            "prompt": "x",
            "beams": 2,
            "max_new_tokens": 3,
            "backend": "torch",
            **CPU,
        },
    )
    asks.write_text('{"min_new_tokens": 2, "suppress_tokens": null}')
    od.generate(**asked)
    assert "min_new_tokens: a search here does without" in capsys.readouterr().err
    for said, name in (
        ({"forced_bos_token_id": 10**6}, "forced_bos_token_id"),
        ({"min_length": "x"}, "min_length"),
    ):
        asks.write_text(json.dumps(said))
        with pytest.raises(UserError, match=name):
            od.generate(**asked)
    with pytest.raises(UserError, match="search with beams"):
        od.generate(**{**asked, "beams": 1, "length_penalty": 2.0})


@pytest.mark.slow
def test_an_adapters_search_follows_its_base(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published("t5", tmp_path / "m")
    made = od.sft(
        model=tmp_path / "m",
        data=files / "sft.jsonl",
        out=tmp_path / "r",
        sequence_length=40,
        backend="torch",
        adapter="lora",
        **LOOP,
    )
    (tmp_path / "m" / "generation_config.json").write_text('{"min_new_tokens": 2}')
    capsys.readouterr()
    od.generate(model=made, prompt="x", beams=2, max_new_tokens=3, backend="torch", **CPU)
    assert "min_new_tokens" in capsys.readouterr().err


def test_a_longer_text_wins_where_length_is_paid(tmp_path: Path, backend: Backend) -> None:
    published("bart", tmp_path / "m")
    model = load_model(tmp_path / "m", backend)
    generator = Generator(model, backend, Sampling(max_new_tokens=12, temperature=0))
    short, long = (
        np.mean(
            [
                len(
                    beam_search(
                        generator, model.params, [0, n, 2], 4, Search(length_penalty=power)
                    )[0].completion.ids
                )
                for n in range(200, 230)
            ]
        )
        for power in (-2.0, 3.0)
    )
    assert short < long


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_gaps_are_filled_as_transformers_would(
    family: str, tmp_path: Path, backend_name: str
) -> None:
    """The likeliest way of all is its search's; a candidate's share is that of the ways that have
    it.
    """
    torch = pytest.importorskip("torch")
    tokenizer, theirs = published(family, tmp_path / "m")
    given, first, room = {
        "t5": ("Anna lives in<extra_id_0>. Ben:<extra_id_1> = 46.", len(tokenizer) - 1, 24),
        "bart": ("Anna lives in<mask>. Ben:<mask> = 46.", 0, None),
    }[family]
    ids = torch.tensor([tokenizer(given).input_ids])
    with torch.no_grad():
        want = theirs.generate(
            ids,
            max_new_tokens=room or 24 + ids.shape[1],
            num_beams=8,
            do_sample=False,
            early_stopping="never",
            length_penalty=0.0,
            forced_bos_token_id=first,
        )[0]
    found = od.fill(
        model=tmp_path / "m",
        text="Anna lives in [MASK]. Ben: [MASK] = 46.",
        top=3,
        backend=backend_name,
        **CPU,
    )
    if family == "bart":  # random weights write what they like
        assert found == {
            "text": tokenizer.decode(want, skip_special_tokens=True),
            "masks": [[], []],
        }
        return
    words = tokenizer.decode(want).replace("<pad>", "").replace("</s>", "")
    one, other = re.fullmatch(
        r"<extra_id_0>(.*?)(?:<extra_id_1>(.*?))?(?:<extra_id_\d+>.*)?", words.strip()
    ).groups("")
    parts = re.fullmatch(r"Anna lives in(.*)\.? ?\. Ben:(.*)= 46\.", found["text"])
    assert parts and [part.strip() for part in parts.groups()] == [one.strip(), other.strip()]
    assert found["masks"][0][0]["token"].strip() == one.strip()
    for candidates in found["masks"]:
        shares = [candidate["probability"] for candidate in candidates]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6


def test_what_stands_in_a_gap() -> None:
    """Of a text that was written anew: between what was there; behind sentinels, in whatever order
    they came.
    """
    tokenizer = train_tokenizer(TEXTS, 420, sentinels=8)
    written = tokenizer.encode("Anna lives in Oslo now. Ben: 46.")
    found = infill._by_text(
        written, parts_around("Anna lives in [MASK]. Ben: [MASK].", tokenizer), tokenizer
    )
    assert found is not None and found == ((" Oslo now", " 46"), "Anna lives in Oslo now. Ben: 46.")
    assert infill._by_text(written, ["Carla", "."], tokenizer) is None
    first, second, third = (int(i) for i in tokenizer.sentinels[:3])
    between = [tokenizer.encode(part) for part in ("Anna lives in", ". Ben:", ".")]
    ids = [
        second,
        *tokenizer.encode(" 46"),
        first,
        *tokenizer.encode(" Oslo"),
        third,
        *tokenizer.encode(" more"),
    ]
    marks = [first, second]
    assert infill._by_spans(ids, between, marks, tokenizer) == (
        (" Oslo", " 46"),
        "Anna lives in Oslo. Ben: 46.",
    )
    assert infill._by_spans([first], between, marks, tokenizer).text == "Anna lives in. Ben:."


def test_a_modernbert_without_a_local_layer_is_read_again(tmp_path: Path, backend: Backend) -> None:
    for changes in ({"windows": (0, 0)}, {"windows": (0, 1)}):
        cfg = models.encoder_config(
            "modernbert", vocab_size=small_tokenizer().vocab_size, **changes
        )
        folder = tmp_path / str(changes["windows"][1])
        folder.mkdir()
        write_model(
            folder, backend, cfg, on_device(backend, models.weights(cfg)), small_tokenizer()
        )
        assert load_config(folder).windows == changes["windows"]
