"""Two texts beside each other: ids, types and scores are transformers', in training, labels,
measurements and shown data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import ondevice as od
import small_stages
from gradients import on_device
from ondevice.cli import main
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.data.class_labels import LabelledText
from ondevice.data.completion_batches import text_batch
from ondevice.data.formats import to_label
from ondevice.data.messages import BadRow
from ondevice.data.tokenizer import Tokenizer
from ondevice.datasets.preview import show
from ondevice.datasets.text_inputs import lengths_within, text_inputs
from ondevice.models.load import load_model
from ondevice.models.save import write
from ondevice.models.score_head import class_scores, with_head
from ondevice.seam.protocols import Backend
from test_classify import files  # noqa: F401  the module's fixture
from test_tokenizer_settings import wordpiece

PAIRS = [
    ("zoe met owners", "cafe owners too ."),
    ("zoe", "met , met , met too"),
    ("cafe too . zoe met", "."),
]
LOOP: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "sequence_length": 24,
    "eval_every": 0,
    "save_every": 0,
    "device": "cpu",
    "backend": "torch",
}


def bert(folder: Path, **config: Any) -> tuple[Any, Any]:
    """transformers' tokenizer and classifier of a folder as BERTs are published."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder.mkdir()
    torch.manual_seed(0)
    made = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=24,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            num_labels=3,
            initializer_range=0.5,
        )
    )
    made.save_pretrained(folder)
    said = (folder / "config.json").read_text()
    wordpiece(folder)
    (folder / "config.json").write_text(said)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", **config})
    )
    return (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager"
        ).eval(),
    )


@pytest.mark.parametrize(
    "config",
    [{}, {"truncation_side": "left"}, {"model_input_names": ["input_ids", "attention_mask"]}],
    ids=str,
)
def test_ids_types_and_scores_are_transformers(
    config: dict[str, Any], backend: Backend, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    tokenizer, theirs = bert(tmp_path / "m", **config)
    model = load_model(tmp_path / "m", backend)
    rows = [LabelledText(first, "", second) for first, second in PAIRS]
    for most in (6, 7, 8, 9, 11, 30):
        found = text_inputs(rows, model, most)
        wanted = [
            tokenizer(first, second, truncation=True, max_length=most) for first, second in PAIRS
        ]
        assert [ids.tolist() for ids in found.ids] == [one.input_ids for one in wanted]
        if "model_input_names" not in config:
            assert [types.tolist() for types in found.types or ()] == [
                one.token_type_ids for one in wanted
            ]
        else:
            assert found.types is None and "token_type_ids" not in wanted[0]
        assert found.cut == sum(len(tokenizer(*pair).input_ids) > most for pair in PAIRS)
        batch = text_batch(found.ids, 4, "first", found.types)
        network, ops = model.network, backend.ops
        given = on_device(backend, batch)
        scores = backend.numpy(
            class_scores(
                ops,
                model.params,
                network,
                network.hidden(ops, model.params, given, at=given["read"]),
            )
        )
        with torch.no_grad():
            want = [
                theirs(**{name: torch.tensor([value]) for name, value in one.items()})
                .logits[0]
                .numpy()
                for one in wanted
            ]
        np.testing.assert_allclose(scores[:3], want, rtol=1e-4, atol=1e-5)


def test_types_change_the_scores(backend: Backend, tmp_path: Path) -> None:
    """That the comparison above would fail without them."""
    bert(tmp_path / "m")
    model = load_model(tmp_path / "m", backend)
    ids, types, _ = text_inputs([LabelledText(*PAIRS[0][:1], "", PAIRS[0][1])], model, 30)
    with_types, without = (
        on_device(backend, text_batch(ids, 1, "first", one)) for one in (types, None)
    )
    one, other = (
        backend.numpy(model.network.hidden(backend.ops, model.params, batch, at=batch["read"]))
        for batch in (with_types, without)
    )
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("most", range(4, 14))
@pytest.mark.parametrize(("first", "second"), [(2, 9), (9, 2), (5, 5), (6, 5), (0, 7), (8, 9)])
def test_the_longer_text_is_cut_first(first: int, second: int, most: int) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole = inner.encode(" ".join("a" * first), " ".join("a" * second))
    inner.enable_truncation(most, strategy="longest_first")
    kept = inner.encode(" ".join("a" * first), " ".join("a" * second))
    assert len(whole.ids) == first + second
    assert lengths_within(first, second, most) == (
        kept.sequence_ids.count(0),
        kept.sequence_ids.count(1),
    )


def rows(folder: Path, count: int = 60) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text(
        "\n".join(
            json.dumps(
                {
                    "question": f"Anna likes {n}",
                    "sentence": "pears" if n % 2 else "bread",
                    "entails": ("no", "yes")[n % 2],
                }
            )
            for n in range(count)
        )
    )
    return file


COLUMNS = {"text": "question", "pair": "sentence", "label": "entails"}


@pytest.mark.parametrize("body", ["bert", "modernbert", "decoder"])
def test_a_classifier_of_two_texts_learns_is_asked_and_measured(
    files: Path,
    body: str,
    tmp_path: Path,
    backend: Backend,
) -> None:
    start = (
        files / body / "init" / "model"
        if body != "decoder"
        else small_stages.make(tmp_path, backend) / "policy"
    )
    data, how = rows(tmp_path), {**LOOP, "backend": backend.name}
    made = od.classify(
        **{"model": str(start), "data": str(data), "out": str(tmp_path / "r"), **COLUMNS, **how}
    )
    common: dict[str, Any] = {"model": made, "backend": backend.name, "device": "cpu"}
    found = od.evaluate(data=data, **COLUMNS, **common)
    assert found["texts"] == 60 and set(found["by_class"]) == {"no", "yes"}
    one, other, alone = (
        od.label(text="Anna likes 3", **pair, **common)
        for pair in ({"pair": "pears"}, {"pair": "bread"}, {})
    )
    chances = [
        dict((c["label"], c["probability"]) for c in told["classes"])["yes"]
        for told in (one, other, alone)
    ]
    assert len(set(chances)) == 3
    model = load_model(made, backend)
    (ids,) = text_inputs([LabelledText("Anna likes 3", "", "pears")], model, 24).ids
    tokenizer = model.tokenizer
    first, second = tokenizer.encode("Anna likes 3"), tokenizer.encode("pears")
    assert ids.tolist() == (
        [*first, tokenizer.eos_id, *second]
        if body == "decoder"
        else [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]
    )
    shown = show(
        DataConfig(action="show", data=str(data), model=str(made), form="label", **COLUMNS)
    )
    (ids,) = text_inputs([LabelledText("Anna likes 1", "", "pears")], model, 99).ids
    assert shown["used"] == 60 and "".join(text for text, _ in shown["examples"][1]["tokens"]) == (
        tokenizer.decode(ids, skip_special=False) + " yes"
    )


@pytest.mark.parametrize("opened", [False, True])
def test_a_decoders_classes_are_transformers(
    opened: bool, backend: Backend, tmp_path: Path
) -> None:
    """As the model's card says to ask it: whatever its tokenizer puts around a text, and nothing
    else.
    """
    transformers = pytest.importorskip("transformers")
    policy = small_stages.make(tmp_path, backend) / "policy"
    made = with_head(load_model(policy, backend), backend, 3, 3, ("sad", "glad", "calm"))
    (tmp_path / "m").mkdir()
    write(tmp_path / "m", backend, made)
    if opened:
        file = tmp_path / "m" / "tokenizer.json"
        inner = tokenizers.Tokenizer.from_file(str(file))
        word = made.tokenizer.inner.id_to_token(made.tokenizer.eos_id)
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{word} $A",
            pair=f"{word} $A {word} $B",
            special_tokens=[(word, made.tokenizer.eos_id)],
        )
        inner.save(str(file))
    pipeline = transformers.pipeline(
        "text-classification", str(tmp_path / "m"), top_k=None, device="cpu"
    )
    eos = pipeline.tokenizer.eos_token
    for pair in ("", "green pears"):
        want = {
            one["label"]: one["score"] for one in pipeline([f"Anna red{eos * bool(pair)}{pair}"])[0]
        }
        got = od.label(
            model=tmp_path / "m", text="Anna red", pair=pair, backend=backend.name, device="cpu"
        )
        assert {one["label"]: one["probability"] for one in got["classes"]} == pytest.approx(
            want, abs=1e-5
        )


def test_a_pair_of_a_tokenizer_without_a_form_is_berts(tmp_path: Path, backend: Backend) -> None:
    bert(tmp_path / "m")
    model = load_model(tmp_path / "m", backend)
    raw = {**json.loads(model.tokenizer.inner.to_str()), "post_processor": None}
    inner = tokenizers.Tokenizer.from_str(json.dumps(raw))
    bare = replace(model, tokenizer=Tokenizer(inner, model.tokenizer.config))
    pairs = [LabelledText(first, "", second) for first, second in PAIRS]
    for most in (7, 30):
        one, other = text_inputs(pairs, model, most), text_inputs(pairs, bare, most)
        assert [ids.tolist() for ids in one.ids] == [ids.tolist() for ids in other.ids]
        assert [types.tolist() for types in one.types or ()] == [
            types.tolist() for types in other.types or ()
        ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            [
                "classify",
                "MODEL",
                "ROWS",
                "--text",
                "question",
                "--pair",
                "nothing",
                "--label",
                "entails",
            ],
            "'nothing' holds no text: the columns are question, sentence, entails",
        ),
        (["classify", "MODEL", "--pair", "sentence"], "the built-in corpus has no second text"),
        (
            ["eval", "MODEL", "--data", "ROWS", "--pair", "sentence", "--tasks", "text"],
            "is for a classifier's rows",
        ),
        (
            ["data", "show", "ROWS", "--model", "MODEL", "--form", "text", "--pair", "sentence"],
            "--pair: has no effect: it names a column of rows of the form label",
        ),
    ],
)
def test_a_second_text_that_is_not_there_is_said(
    argv: list[str],
    said: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(files / "bert" / "init" / "model"), "ROWS": str(rows(tmp_path))}
    more = (
        ["--out", str(tmp_path / "r"), "--sequence_length", "24"] if argv[0] == "classify" else []
    )
    assert main([*(places.get(word, word) for word in argv), *more]) == 2
    assert said in capsys.readouterr().err


def test_a_second_text_is_text() -> None:
    row = {"text": "a", "b": "c", "label": "d"}
    assert to_label(row, "text", "label", "b") == LabelledText("a", "d", "c")
    for bad in ({**row, "b": ""}, {**row, "b": 3}, {**row, "b": "\ud800"}):
        with pytest.raises(BadRow):
            to_label(bad, "text", "label", "b")


def test_fill_takes_no_second_text() -> None:
    with pytest.raises(UserError, match="pair"):
        od.fill(model="m", text="a", pair="b")
