"""tokenizer_config.json beside a tokenizer.json that says otherwise: the ids are transformers',
here and in the folder that is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from ondevice.common.errors import UserError
from ondevice.data.tokenizer import Tokenizer
from test_seq2seq import bart_tokenizer

TEXT = "Zoë met CAFÉ owners, 中文 too. zoe cafe"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(folder: Path, **normalizer: Any) -> None:
    words = [
        *SPECIAL,
        "zoe",
        "zoë",
        "Zoë",
        "Zoe",
        "met",
        "CAFÉ",
        "cafe",
        "café",
        "owners",
        ",",
        ".",
        "too",
        "中",
        "文",
        "中文",
    ]
    inner = tokenizers.Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer(**normalizer)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inner.add_special_tokens(SPECIAL)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def settle(folder: Path, config: dict[str, Any]) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def agree(ours: Tokenizer, theirs: Any, folder: Path, text: str) -> list[int]:
    want: list[int] = theirs(text, add_special_tokens=False).input_ids
    assert (
        ours.encode(text) == ours.encode(text, special=True) == ours.encode_batch([text])[0] == want
    )
    ours.save(folder / "saved")
    (folder / "saved" / "config.json").write_text((folder / "config.json").read_text())
    assert Tokenizer.load(folder / "saved").encode(text) == want
    assert (
        type(theirs).from_pretrained(folder / "saved")(text, add_special_tokens=False).input_ids
        == want
    )
    return want


@pytest.mark.parametrize(
    "kind",
    ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", None, "PreTrainedTokenizerFast"],
)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"strip_accents": False},
        {"strip_accents": True},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"strip_accents": None},
    ],
)
@pytest.mark.parametrize("normalizer", [{}, {"lowercase": False, "strip_accents": False}])
def test_berts_settings_are_those_of_the_config(
    kind: str | None, config: dict[str, Any], normalizer: dict[str, Any], tmp_path: Path
) -> None:
    wordpiece(tmp_path, **normalizer)
    ours, theirs = settle(tmp_path, {**config, **({"tokenizer_class": kind} if kind else {})})
    agree(ours, theirs, tmp_path, TEXT)


def test_the_setting_decides(tmp_path: Path) -> None:
    """That the texts above tell the settings apart."""
    wordpiece(tmp_path)
    found = set()
    for config in (
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
    ):
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", **config})
        )
        found.add(tuple(Tokenizer.load(tmp_path).encode(TEXT)))
    assert len(found) == 4


@pytest.mark.parametrize(
    "kind",
    ["BartTokenizer", "RobertaTokenizerFast", "GPT2Tokenizer", None, "PreTrainedTokenizerFast"],
)
@pytest.mark.parametrize("config", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}])
@pytest.mark.parametrize("there", [True, False])
def test_the_space_before_a_text_is_that_of_the_config(
    kind: str | None, config: dict[str, Any], there: bool, tmp_path: Path
) -> None:
    inner, named = bart_tokenizer()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=there)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    ours, theirs = settle(
        tmp_path, {**named, **config, **({"tokenizer_class": kind} if kind else {})}
    )
    agree(ours, theirs, tmp_path, "Anna lives in Rome.")


@pytest.mark.parametrize(
    ("there", "said", "fine"),
    [
        ("first", True, True),
        ("first", None, True),
        ("first", False, False),
        ("never", True, False),
        ("never", False, True),
    ],
)
def test_a_sentencepiece_that_contradicts_is_refused(
    there: str, said: bool | None, fine: bool, tmp_path: Path
) -> None:
    inner = tokenizers.Tokenizer(
        models.BPE({"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4}, [], unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=there, split=False)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "add_prefix_space": said}
        )
    )
    if fine:
        Tokenizer.load(tmp_path)
        return
    with pytest.raises(UserError, match="tokenizer.json beside it") as caught:
        Tokenizer.load(tmp_path)
    assert "add_prefix_space" in str(caught.value.where) and "save_pretrained" in str(
        caught.value.hint
    )


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("there", [(), ("bos",), ("bos", "eos")], ids=str)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
    ],
    ids=str,
)
def test_what_stands_around_a_text_is_tokenizer_jsons(
    kind: str, there: tuple[str, ...], said: dict[str, bool], tmp_path: Path
) -> None:
    """transformers 5 takes these from tokenizer.json, whatever the config says."""
    inner, _ = bart_tokenizer()
    inner.post_processor = pre = processors.ByteLevel(trim_offsets=False)
    if there:
        before, behind = ("<s> " * ("bos" in there), " </s>" * ("eos" in there))
        inner.post_processor = processors.Sequence(
            [
                pre,
                processors.TemplateProcessing(
                    single=f"{before}$A{behind}",
                    pair=f"{before}$A{behind} $B",
                    special_tokens=[("<s>", 0), ("</s>", 2)],
                ),
            ]
        )
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours, theirs = settle(
        tmp_path, {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": kind, **said}
    )
    want = theirs("Anna lives").input_ids
    assert ours.inner.encode("Anna lives", add_special_tokens=True).ids == want
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").inner.encode("Anna lives").ids == want


def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    wordpiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "yes"}))
    with pytest.raises(UserError, match="'yes' is neither true nor false"):
        Tokenizer.load(tmp_path)
