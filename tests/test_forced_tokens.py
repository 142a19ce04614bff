"""What a folder forces to be written (BART's `<s>` and `</s>`), greedily, drawn and searched for,
as transformers has it; and that it is kept when the folder is written anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.common.json_files import read_json
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_model
from ondevice.models.save import write
from ondevice.seam.protocols import Backend
from test_seq2seq import published

TEXTS = ("Anna lives in Rome.", "Where does Ben live?  He", "pears 12+34, naïve")
LIMIT = 6


def asking(folder: Path, said: dict[str, Any], where: str) -> tuple[Any, Any]:
    """transformers' tokenizer and model of a BART whose folder says this in one of its files."""
    published("bart", folder)
    if where == "config.json":
        (folder / "generation_config.json").unlink()
    file = folder / where
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    transformers = pytest.importorskip("transformers")
    return (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(),
    )


def ids_of(done: Any) -> list[int]:
    return [*done.ids, *([] if done.stop is None else [done.stop])]


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"forced_bos_token_id": 0},
        {"forced_eos_token_id": 2},
        {"forced_bos_token_id": 0, "forced_eos_token_id": 2},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
    ],
    ids=str,
)
def test_greedy_text_is_transformers(
    said: dict[str, Any], where: str, backend: Backend, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    tokenizer, theirs = asking(tmp_path / "m", said, where)
    model = load_model(tmp_path / "m", backend)
    generator = Generator(model, backend, Sampling(LIMIT, temperature=0.0), compile="never")
    asked = [tokenizer(text).input_ids for text in TEXTS]
    for prompt, done in zip(asked, generator.run(model.params, asked), strict=True):
        with torch.no_grad():
            want = theirs.generate(torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False)[
                0
            ].tolist()[1:]
        forced = done.stop is None and said.get("forced_eos_token_id") == 2
        assert ids_of(done) + [2] * forced == want


def test_drawn_texts_begin_and_end_as_forced(backend: Backend, tmp_path: Path) -> None:
    asking(
        tmp_path / "m",
        {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
        "generation_config.json",
    )
    model = load_model(tmp_path / "m", backend)
    generator = Generator(model, backend, Sampling(LIMIT, temperature=1.5, seed=1), compile="never")
    prompt = model.tokenizer.encode_source(TEXTS[0])
    heard: dict[int, list[int]] = {}
    found = generator.run(model.params, [prompt], samples=12)
    for number in range(12):
        generator.run(
            model.params,
            [prompt],
            first=number,
            on_token=lambda _, token, number=number: heard.setdefault(number, []).append(token),
        )  # type: ignore[misc]
    assert (
        all(done.ids[:1] == [7] for done in found) and len({tuple(done.ids) for done in found}) > 6
    )
    assert all(done.ids[-1] == 9 for done in found if not done.stopped) and not all(
        done.stopped for done in found
    )
    # also where it is streamed
    assert [heard[number] for number in range(12)] == [done.ids for done in found]


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_a_folder_that_is_written_anew_keeps_them(
    where: str, backend: Backend, tmp_path: Path
) -> None:
    said = {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3}
    asking(tmp_path / "m", said, where)
    (tmp_path / "saved").mkdir()
    write(tmp_path / "saved", backend, load_model(tmp_path / "m", backend))
    assert said.items() <= read_json(tmp_path / "saved" / "generation_config.json").items()


def test_what_greedy_text_does_without_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking(tmp_path / "m", {"no_repeat_ngram_size": 3, "min_length": 4}, "generation_config.json")
    od.generate(
        model=tmp_path / "m", prompt="Anna", max_new_tokens=4, backend="torch", device="cpu"
    )
    assert (
        "asks for no_repeat_ngram_size, min_length: what is drawn here does without"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("value", [10**6, -1, "x"])
def test_a_forced_token_that_is_none_is_named(value: Any, backend: Backend, tmp_path: Path) -> None:
    asking(tmp_path / "m", {}, "generation_config.json")
    model = load_model(tmp_path / "m", backend)
    file = tmp_path / "m" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "forced_bos_token_id": value}))
    with pytest.raises(UserError, match="forced_bos_token_id is "):
        Generator(load_model(tmp_path / "m", backend), backend, Sampling())
    # a model that has no folder yet
    Generator(replace(model, folder=tmp_path / "none"), backend, Sampling())
