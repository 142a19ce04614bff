"""Texts that spell a special token: read as text, counted, shown apart from the token, and ended
there if asked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.data.plain_text import Part
from ondevice.data.special_token_text import Spelt, separated, shown
from ondevice.datasets.preview import render, show
from ondevice.seam.protocols import Backend

STORIES = "Anna lives in Rome.\n<|endoftext|>\nBen lives in Oslo.\n<|endoftext|>\n"


def test_what_only_spells_a_token_is_shown_with_a_sign() -> None:
    tokenizer = small_tokenizer()
    ids = [*tokenizer.encode("a<|endoftext|>b"), tokenizer.eos_id]
    assert shown(np.array(ids, np.int32), tokenizer) == "a\\<|endoftext|>b<|endoftext|>"
    assert shown(np.array(ids[-1:], np.int32), tokenizer) == "<|endoftext|>"


def test_rows_are_counted_once_for_each_token_that_they_spell() -> None:
    spelt = Spelt(small_tokenizer())
    for row in (
        "<|end|> <|end|>",
        [{"role": "user", "content": "<|end|>"}],
        ("<|user|>", "x"),
        "none",
    ):
        spelt.look(row)
    assert spelt.told() == [
        "2 rows spell <|end|>, a special token's name, which is read as text",
        "1 row spells <|user|>, a special token's name, which is read as text",
    ]
    assert "--separator '<|end|>' ends a document there" in spelt.told(separator=True)[0]


def test_a_separator_ends_documents() -> None:
    assert list(separated([STORIES], "<|endoftext|>")) == [
        "Anna lives in Rome.",
        "Ben lives in Oslo.",
    ]
    assert list(separated(["a\n", "b"], "<|endoftext|>")) == ["a\n", "b"]
    assert list(separated([STORIES], "")) == [STORIES]
    parts = list(separated([Part.of("a<|x|>\nb", True), Part.of("c<|x|>", False)], "<|x|>"))
    assert parts == ["a", "b", "c"] and [getattr(part, "more", False) for part in parts] == [
        False,
        True,
        False,
    ]


def test_data_show_tells_and_shows_what_a_stage_reads(tmp_path: Path, backend: Backend) -> None:
    folder = str(small_stages.write(tmp_path / "model", backend, small_stages.config()))
    (tmp_path / "stories.txt").write_text(STORIES)
    said = show(DataConfig(action="show", data=str(tmp_path / "stories.txt"), model=folder))
    text = render(said, color="never")
    assert (
        "1 row spells <|endoftext|>" in text
        and "--separator" in text
        and "Rome.\n\\<|endoftext|>" in text
    )
    ended = show(
        DataConfig(
            action="show",
            data=str(tmp_path / "stories.txt"),
            model=folder,
            separator="<|endoftext|>",
        )
    )
    assert ended["used"] == 2 and not ended["spelt"]
    assert [piece for piece, _ in ended["examples"][0]["tokens"]] == [
        "Anna lives in Rome.<|endoftext|>"
    ]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|end|>"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}))
    text = render(
        show(DataConfig(action="show", data=str(tmp_path / "chats.jsonl"), model=folder)),
        color="never",
    )
    assert (
        "1 row spells <|end|>" in text and "b\\<|end|><|end|>" in text and "--separator" not in text
    )
    with pytest.raises(UserError, match="read as chat"):
        show(
            DataConfig(
                action="show", data=str(tmp_path / "chats.jsonl"), model=folder, separator="x"
            )
        )


def test_pretraining_ends_documents_there_or_says_that_it_does_not(
    tmp_path: Path, backend: Backend
) -> None:
    import ondevice as od
    from ondevice.runs.events import read as events

    folder = small_stages.write(tmp_path / "model", backend, small_stages.config())
    (tmp_path / "stories.txt").write_text(STORIES * 40)
    for separator in ("", "<|endoftext|>"):
        out = tmp_path / f"run{len(separator)}"
        od.pretrain(
            folder,
            tmp_path / "stories.txt",
            out=out,
            steps=1,
            batch_size=1,
            sequence_length=16,
            separator=separator,
            backend=backend.name,
            device="cpu",
        )
        told = [
            e["message"]
            for e in events(out / "pretrain" / "events.jsonl")
            if e["event"] == "warning"
        ]
        assert any("spells <|endoftext|>" in message for message in told) is (not separator)
        [kept] = (out / "pretrain" / "data").glob("tokens-*")
        ends = int((np.fromfile(kept, np.uint16) == small_tokenizer().eos_id).sum())
        assert ends == (80 if separator else 1)


def test_a_separator_without_effect_is_named(tmp_path: Path, backend: Backend) -> None:
    import ondevice as od
    from ondevice.config.stages import PretrainConfig
    from ondevice.runs.events import read as events

    with pytest.raises(UserError, match="separator: the built-in corpus has none"):
        PretrainConfig(model="m", data="builtin", separator="x").check()
    folder = small_stages.write(tmp_path / "model", backend, small_stages.config())
    (tmp_path / "a.txt").write_text("Anna lives in Rome. " * 40)
    od.pretrain(
        folder,
        tmp_path / "a.txt",
        out=tmp_path / "r",
        steps=1,
        batch_size=1,
        sequence_length=16,
        separator="###",
        backend=backend.name,
        device="cpu",
    )
    told = [
        e["message"]
        for e in events(tmp_path / "r" / "pretrain" / "events.jsonl")
        if e["event"] == "warning"
    ]
    assert any("holds the separator '###'" in message for message in told)
