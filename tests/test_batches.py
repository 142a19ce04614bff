"""`od.batches` shows what the loss of a stage gets, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.seam.select import load_backend


class Seen(Exception):
    """The trainer was reached."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    made = tmp_path_factory.mktemp("batches")
    backend = load_backend("torch", "cpu", "float32")
    small_stages.write(made / "policy", backend, small_stages.config())
    chats, documents = [], []
    for n in range(40):
        asked = {"role": "user", "content": f"Who is {n}?"}
        answered = {"role": "assistant", "content": f"Anna {n}"}
        chats.append(json.dumps({"messages": [asked, answered]}) + "\n")
        documents.append(json.dumps({"text": f"Anna {n} likes pears. " * 4}) + "\n")
    (made / "chats.jsonl").write_text("".join(chats))
    (made / "text.jsonl").write_text("".join(documents))
    return made


@pytest.mark.parametrize(
    ("stage", "data", "more"),
    [
        ("pretrain", "text.jsonl", {}),
        ("sft", "chats.jsonl", {}),
        ("sft", "chats.jsonl", {"replay": "text.jsonl", "adapter": "lora"}),
    ],
)
def test_they_are_those_that_the_trainer_gets(
    stage: str,
    data: str,
    more: dict[str, Any],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    sources: list[Any] = []

    def stop(model: Any, loss: Any, source: Any, *others: Any, **named: Any) -> None:
        sources.append(source)
        raise Seen

    monkeypatch.setattr(f"ondevice.stages.{stage}.fit", stop)
    fields: dict[str, Any] = {
        "sequence_length": 32,
        "batch_size": 4,
        "micro_batch": 2,
        "seed": 3,
        "backend": "torch",
        "device": "cpu",
        **more,
    }
    with pytest.raises(Seen):
        getattr(od, stage)("policy", data, out=tmp_path / "run", **fields)
    before = sorted(files.rglob("*"))
    for number in (0, 3):
        shown = od.batches(stage, "policy", data, number=number, **fields)
        wanted = sources[0].batch(number, 2)
        assert len(shown) == len(wanted) == 2
        for one, other in zip(shown, wanted, strict=True):
            assert one.keys() == other.keys()
            for name, array in one.items():
                assert array.dtype == other[name].dtype
                np.testing.assert_array_equal(array, other[name])
    assert sorted(files.rglob("*")) == before


def test_what_it_cannot_show_is_refused_by_name(files: Path) -> None:
    with pytest.raises(UserError, match="'grpo' has no batches apart from its run"):
        od.batches("grpo", files / "policy", "builtin")
    with pytest.raises(UserError, match="unknown key 'stepz'"):
        od.batches("sft", files / "policy", files / "chats.jsonl", stepz=1)
    with pytest.raises(UserError, match="no model was named"):
        od.batches("sft", data=files / "chats.jsonl")
