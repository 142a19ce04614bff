"""Tokens on the disk: made once and whole, and the batches are those of rows in memory, byte for byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice import progress
from ondevice.backend import load_backend
from ondevice.data.chat import ChatRow
from ondevice.data.sources import ChatSource
from ondevice.data.stored import ChatRows, made_once
from ondevice.progress import Progress, counted
from ondevice.stages import material
from test_classify import killed_at_first_save
from test_data_sources import chat_rows, same
from test_resume import same as same_weights
from test_resume import weights


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_batches_are_those_of_rows_in_memory(tmp_path: Path, packing: bool, loss_on: Any) -> None:
    rows = chat_rows(120)
    flat = ChatRows.stored(tmp_path / "chats", lambda: iter(rows))
    made = [ChatSource(given, sequence_length=24, batch_size=4, accumulate=2, seed=3, packing=packing, loss_on=loss_on)
            for given in (rows[10:90], flat[10:90], ChatRows.of(rows)[10:90])]
    assert len({(one.examples, one.truncated, one.skipped) for one in made}) == 1 and made[0].truncated
    for step in range(20):
        assert all(same(one.batch(step), made[0].batch(step)) for one in made)
    assert all(same(list(one.eval_batches(3)), list(made[0].eval_batches(3))) for one in made)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = chat_rows(30)
    flat = ChatRows.stored(tmp_path / "chats", lambda: rows)
    assert len(flat) == 30 and flat.tokens == sum(len(row.ids) for row in rows)
    assert len(flat[25:99]) == 5 and not len(flat[40:]) and flat[20:25].tokens == sum(len(r.ids) for r in rows[20:25])
    for got, row in zip((*flat, flat[-1], flat[4:9][1]), (*rows, rows[-1], rows[5]), strict=True):
        assert np.array_equal(got.ids, row.ids) and np.array_equal(got.mask, row.mask)
    with pytest.raises(IndexError):
        flat[30]
    assert isinstance(flat.ids, np.memmap) and not len(ChatRows.stored(tmp_path / "none", list))


def test_they_are_made_once_and_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[ChatRow]:
        yield from chat_rows(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ChatRows.stored(tmp_path / "chats", broken)
    assert not list(tmp_path.iterdir())
    ChatRows.stored(tmp_path / "chats", lambda: chat_rows(5))
    assert len(ChatRows.stored(tmp_path / "chats", broken)) == 5


def test_another_process_may_be_as_quick(tmp_path: Path) -> None:
    def make(part: Path) -> None:
        part.mkdir()
        (tmp_path / "chats").mkdir()
        (tmp_path / "chats" / "ids").write_text("theirs")
        (part / "ids").write_text("ours")

    assert (made_once(tmp_path / "chats", make) / "ids").read_text() == "theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["chats"]


def test_a_bar_comes_only_where_reading_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(progress, "ticks", lambda: now[0])
    monkeypatch.setattr(progress, "Progress", lambda *given: Progress(*given, stream=out))
    assert list(counted(range(100), "read")) == list(range(100)) and not out.getvalue()
    for item in counted(range(100), "read"):
        now[0] += 0.1
        assert item < 100
    assert out.getvalue().splitlines()[-1].startswith("read 100")


@pytest.mark.slow
def test_a_resumed_stage_reads_its_chats_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small_stages.make(tmp_path / "files", load_backend("torch", device="cpu", dtype="float32"))
    (files / "text.txt").write_text("Anna lives in Rome. Ben lives in Oslo.\n\n" * 40)
    fields: dict[str, Any] = {**small_stages.LOOP, "model": str(files / "policy"), "data": str(files / "chats.jsonl"),
                              "replay": str(files / "text.txt"), "replay_share": 0.2, "sequence_length": 48,
                              "batch_size": 2, "steps": 6, "backend": "torch"}
    od.sft(**fields, out=str(tmp_path / "whole"))
    killed_at_first_save("sft", {**fields, "out": str(tmp_path / "broken")})
    data = tmp_path / "broken" / "sft" / "data"
    assert sorted(path.name.partition("-")[0] for path in data.iterdir()) == ["chats", "replayed", "tokens"]
    monkeypatch.setattr(material, "encode_chats", None)  # whoever reads the file again fails
    od.sft(**fields, out=str(tmp_path / "broken"), resume=True)
    assert same_weights(weights(tmp_path / "broken", "sft"), weights(tmp_path / "whole", "sft"))
