"""`limit: auto` of pretrain: no more documents are read than the steps learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.load import from_mapping
from ondevice.config.stages import PretrainConfig
from ondevice.data import batches
from ondevice.data.context import DataContext
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_and_chats import token_streams

NUMBERS = {"steps": 5, "batch_size": 4, "sequence_length": 16}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"text": f"Document {n} tells of pears and apples in Rome."} for n in range(500)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "t.jsonl"


@pytest.mark.parametrize("held", [False, True])
def test_reading_ends_where_the_steps_have_enough(
    file: Path, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_CALL", 100)  # characters that are encoded at once
    told: list[str] = []
    ctx = DataContext(tmp_path / "stage", tell=told.append)
    cfg = PretrainConfig(
        data=str(file), validation=str(file) if held else "", limit="auto", **NUMBERS
    )  # type: ignore[arg-type]
    other = tmp_path / "v.jsonl"
    other.write_text('{"text": "Another document."}\n' * 40)
    spec = DataSpec(cfg.data, str(other) if held else "")
    train, apart = token_streams(spec, small_tokenizer(), ctx, "", cfg.most_tokens)
    assert cfg.most_tokens == 321 <= len(train) < 400
    whole, _ = token_streams(spec, small_tokenizer(), ctx)
    assert len(whole) > 10 * len(train)
    if held:
        assert len(apart) >= 40 * 2  # what is measured on is read to its end
    assert (whole[: len(train)] == train).all()
    [line] = [line for line in told if "as many as the steps need" in line]
    assert line.split()[1:4] == ["documents", "of", str(file)]


def test_auto_needs_numbers_and_all_is_the_default() -> None:
    assert PretrainConfig().limit == 0 and PretrainConfig(**NUMBERS).most_tokens == 0
    for name in NUMBERS:
        settings = {key: value for key, value in NUMBERS.items() if key != name}
        with pytest.raises(UserError, match=f"auto follows from {name}"):
            from_mapping(PretrainConfig, {"limit": "auto", **settings})
