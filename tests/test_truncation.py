"""Texts that are too long: cut as transformers cuts them, with what opens and closes them, wherever
they are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.data.chat_encoding import ChatRow, encode_chat, prompt_ids
from ondevice.data.completion_batches import CompletionSource, answers_of, counted_answers
from ondevice.data.token_cache import ChatRows
from ondevice.data.truncation import truncated
from ondevice.datasets.preview import render, show
from ondevice.models.load import tokenizer_of
from ondevice.models.registry import load_config
from test_seq2seq import bart_tokenizer, published, t5_tokenizer

LONG = (
    "Anna lives in Rome. Where does Ben live? He likes pears, red and green, and Anna likes bread."
)


@pytest.fixture(
    params=[("t5", "right"), ("t5", "left"), ("bart", "right"), ("bart", "left")], ids="-".join
)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """(ours, transformers') of a folder that names a side, or leaves it to transformers."""
    transformers = pytest.importorskip("transformers")
    family, side = request.param
    inner, named = t5_tokenizer() if family == "t5" else bart_tokenizer()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(tmp_path)
    if side == "left":
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "truncation_side": "left"}))
    ours = tokenizer_of(tmp_path, models.seq2seq_config(family, vocab_size=1000))
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("most", [2, 3, 7, 16, 500])
def test_a_text_is_cut_as_transformers_cuts_it(pair: tuple[Any, Any], most: int) -> None:
    ours, theirs = pair
    want = theirs(LONG, truncation=True, max_length=most).input_ids
    assert truncated(ours.encode_source(LONG), most, ours).tolist() == want
    assert len(want) <= most and want[-1] == ours.eos_id


def test_a_sources_prompt_keeps_what_opens_and_closes_it(pair: tuple[Any, Any]) -> None:
    """What a batch holds, not only what a function says."""
    ours, theirs = pair
    chat = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Oslo"}]
    source = CompletionSource(
        answers_of(ChatRows.of(encode_chat(chat, ours))),
        start=0,
        tokenizer=ours,
        sequence_length=12,
        batch_size=1,
    )
    (batch,) = source.batch(0)
    assert (
        batch["source_ids"][0, : int(batch["source_lengths"][0])].tolist()
        == theirs(LONG, truncation=True, max_length=12).input_ids
    )
    assert (source.truncated, source.cut_prompts) == (1, 1)


def test_only_special_tokens_fit() -> None:
    class Named:
        is_special = np.array([True, True, False])
        config: dict[str, Any] = {}

    assert truncated([0, 2, 2, 1], 2, Named()).tolist() == [0, 1]  # type: ignore[arg-type]
    assert truncated([0, 2, 2, 1], 1, Named()).tolist() == [1]  # type: ignore[arg-type]
    Named.config = {"truncation_side": "middle"}
    with pytest.raises(UserError, match="'middle' is not a side"):
        truncated([0, 2, 2, 1], 3, Named())  # type: ignore[arg-type]


def test_the_side_of_tokenizer_json_counts_where_the_config_is_silent(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    inner, named = bart_tokenizer()
    inner.enable_truncation(9, direction="left")
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(
        json.dumps(
            {k: v for k, v in json.loads(file.read_text()).items() if k != "truncation_side"}
        )
    )
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    ours = tokenizer_of(tmp_path, models.seq2seq_config("bart", vocab_size=1000))
    want = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        LONG, truncation=True, max_length=9
    ).input_ids
    assert truncated(ours.encode_source(LONG), 9, ours).tolist() == want
    ours.save(tmp_path / "saved")
    again = tokenizer_of(tmp_path / "saved", models.seq2seq_config("bart", vocab_size=1000))
    assert truncated(again.encode_source(LONG), 9, again).tolist() == want


def test_an_answer_with_nothing_before_it_is_counted() -> None:
    rows = [
        ChatRow(np.arange(4, dtype=np.int32), np.array([True, True, False, True])),
        ChatRow(np.arange(3, dtype=np.int32), np.zeros(3, np.bool_)),
    ]
    answers, skipped = counted_answers(ChatRows.of(rows))
    assert (len(answers), skipped) == (1, 2)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_data_show_counts_what_the_stage_learns(family: str, tmp_path: Path) -> None:
    published(family, tmp_path / "m")
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "\n".join(json.dumps({"prompt": LONG, "completion": f"In Oslo {n}."}) for n in range(30))
    )
    found = show(
        DataConfig(action="show", data=str(data), model=str(tmp_path / "m"), sequence_length=16)
    )
    assert (found["used"], found["cut"], found["skipped"]) == (30, 30, {})
    assert "cut at 16 tokens at the end" in render(found)
    ours = tokenizer_of(tmp_path / "m", load_config(tmp_path / "m"))
    (read, _), (written, learned) = found["examples"][0]["tokens"]
    source = truncated(prompt_ids([{"role": "user", "content": LONG}], ours), 16, ours)
    assert read == ours.decode(source, skip_special=False) and read.endswith("</s>")
    assert learned and " Oslo " in written and written.endswith("</s>")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_prompt_longer_than_the_context_is_cut_and_said(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    tokenizer, theirs = published(family, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    context = 64
    if family == "t5":  # BART's is so wide already
        file.write_text(json.dumps({**json.loads(file.read_text()), "n_positions": context}))
    text = LONG * 8
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=context).input_ids])
        want = tokenizer.decode(
            theirs.generate(ids, max_new_tokens=8, do_sample=False)[0], skip_special_tokens=True
        )
    for how in ({}, {"chat": True}, {"beams": 1}):
        got = od.generate(
            model=tmp_path / "m",
            prompt=text,
            max_new_tokens=8,
            temperature=0.0,
            backend="torch",
            device="cpu",
            **how,
        )
        assert got == [want]
        told = capsys.readouterr().err
        assert "is cut at the end: the model reads 64" in told
        assert "context is full" not in told  # the answer has a context of its own
