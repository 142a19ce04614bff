"""Tokens on the disk: made once and whole, and the batches are those of rows in memory, byte for
byte.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common import progress
from ondevice.common.errors import UserError
from ondevice.common.progress import Progress, with_progress
from ondevice.data import preference_batches, template_budget
from ondevice.data.batches import ChatSource
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import StoredPairs, TokenPair
from ondevice.data.token_cache import ChatRows, JsonLines, made_once
from ondevice.datasets import prompts, text_and_chats
from ondevice.rl import problem_prompts
from ondevice.seam.select import load_backend
from ondevice.stages import runner
from test_data_sources import chat_rows, same
from test_resume import same as same_weights
from test_resume import weights
from warm_processes import killed_at_first_save


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_batches_are_those_of_rows_in_memory(tmp_path: Path, packing: bool, loss_on: Any) -> None:
    rows = chat_rows(120)
    flat = ChatRows.stored(tmp_path / "chats", lambda: iter(rows))
    made = [
        ChatSource(
            given,
            sequence_length=24,
            batch_size=8,
            seed=3,
            packing=packing,
            loss_on=loss_on,
        )
        for given in (rows[10:90], flat[10:90], ChatRows.of(rows)[10:90])
    ]
    assert (
        len({(one.examples, one.truncated, one.skipped) for one in made}) == 1 and made[0].truncated
    )
    for step in range(20):
        assert all(same(one.batch(step, 4), made[0].batch(step, 4)) for one in made)
    assert all(same(list(one.eval_batches(3)), list(made[0].eval_batches(3))) for one in made)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = chat_rows(30)
    flat = ChatRows.stored(tmp_path / "chats", lambda: rows)
    assert len(flat) == 30 and flat.tokens == sum(len(row.ids) for row in rows)
    assert (
        len(flat[25:99]) == 5
        and not len(flat[40:])
        and flat[20:25].tokens == sum(len(r.ids) for r in rows[20:25])
    )
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
    assert list(with_progress(range(100), "read")) == list(range(100)) and not out.getvalue()
    for item in with_progress(range(100), "read"):
        now[0] += 0.1
        assert item < 100
    assert out.getvalue().splitlines()[-1].startswith("read 100")


@pytest.mark.slow
def test_a_resumed_stage_reads_its_chats_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    (files / "text.txt").write_text("Anna lives in Rome. Ben lives in Oslo.\n\n" * 40)
    fields: dict[str, Any] = {
        **small_stages.LOOP,
        "model": str(files / "policy"),
        "data": str(files / "chats.jsonl"),
        "replay": str(files / "text.txt"),
        "replay_share": 0.2,
        "sequence_length": 48,
        "batch_size": 2,
        "steps": 6,
        "backend": "torch",
    }
    od.sft(**fields, out=str(tmp_path / "whole"))
    killed_at_first_save("sft", {**fields, "out": str(tmp_path / "broken")})
    data = tmp_path / "broken" / "sft" / "data"
    assert sorted(path.name.partition("-")[0] for path in data.glob("[!.]*")) == ["chats", "tokens"]
    monkeypatch.setattr(text_and_chats, "encode_chats", None)  # whoever reads the file again fails
    od.sft(**fields, out=str(tmp_path / "broken"), resume=True)
    assert same_weights(weights(tmp_path / "broken", "sft"), weights(tmp_path / "whole", "sft"))


def test_json_lines_are_parsed_when_they_are_asked_for(tmp_path: Path) -> None:
    rows = [{"n": n, "text": "é\n" * n} for n in range(4)]
    lines = JsonLines.stored(tmp_path / "rows", lambda: rows, lambda row: (row["n"] // 2, row["n"]))
    assert (
        list(lines) == rows
        and lines[-1] == rows[3]
        and list(lines[1:3]) == rows[1:3]
        and len(lines) == 4
    )
    assert lines.keys.tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]]
    assert list(JsonLines.stored(tmp_path / "rows", lambda: 1 / 0, lambda _: (0, 0))) == rows  # type: ignore[arg-type, return-value]
    assert not len(JsonLines.stored(tmp_path / "none", lambda: [], lambda _: (0, 0)))


def test_pairs_come_back_from_the_disk(tmp_path: Path) -> None:
    pairs = [
        TokenPair(Row([1, n], [3] * n), Row([1, n], [4, 5]), 1.0 + n / 2, "tone" * (n % 2))
        for n in range(1, 5)
    ]
    rows = [
        {"held": n == 2, "source": n // 2, "raters": ["me"] * n, "simulated": n == 3}
        for n in range(4)
    ]
    found = StoredPairs.kept(tmp_path / "pairs", lambda: zip(pairs, rows, strict=True))
    for made, pair in zip(found, pairs, strict=True):
        assert (made.strength, made.by, made.length) == (pair.strength, pair.by, pair.length)
        for one, other in ((made.chosen, pair.chosen), (made.rejected, pair.rejected)):
            assert (list(one.prompt), list(one.completion)) == (other.prompt, other.completion)
    assert found.held.tolist() == [False, False, True, False] and found.source.tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert found.voted.tolist() == [False, True, True, True] and found.simulated.tolist() == [
        False
    ] * 3 + [True]
    assert found.places(None).tolist() == [pair.length for pair in pairs]
    assert found.places(3).tolist() == [pair.places(3) for pair in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo", "grpo"])
def test_a_resumed_stage_reads_its_pairs_and_prompts_from_the_disk(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    fields = {**small_stages.settings(files, stage, tmp_path / "whole", "torch"), "steps": 4}
    getattr(od, stage)(**fields)
    killed_at_first_save(stage, {**fields, "out": str(tmp_path / "broken")})
    monkeypatch.setattr(runner, "_plan", lambda *_: None)  # it looks at a sample, each time
    for module, name in ((preference_batches, "encode_chat"), (prompts, "prompt_ids")):
        monkeypatch.setattr(module, name, None)  # whoever makes ids anew fails
    getattr(od, stage)(**{**fields, "out": str(tmp_path / "broken")}, resume=True)
    assert same_weights(weights(tmp_path / "broken", stage), weights(tmp_path / "whole", stage))


@pytest.mark.slow
def test_a_line_beyond_what_a_template_may_write_is_a_row_that_is_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_budget, "LARGEST", 1_000_000)
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    lines = (files / "pairs.jsonl").read_text().splitlines()
    long = json.dumps({**json.loads(lines[0]), "chosen": "word " * 210_000})
    (files / "pairs.jsonl").write_text("\n".join([long, *lines]))
    od.dpo(**{**small_stages.settings(files, "dpo", tmp_path, "torch"), "steps": 2})
    assert "1 of 31 pairs are longer than" in capsys.readouterr().err


@pytest.mark.slow
def test_pairs_that_the_template_refuses_are_set_aside(tmp_path: Path) -> None:
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    template = json.loads((files / "policy" / "tokenizer_config.json").read_text())
    template["chat_template"] = (
        "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('not this') }}"
        "{% endif %}{% endfor %}" + template["chat_template"]
    )
    (files / "policy" / "tokenizer_config.json").write_text(json.dumps(template))
    rows = [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()]
    many = [{**row, "prompt": f"{row['prompt']} {n}"} for n in range(4) for row in rows]
    (files / "pairs.jsonl").write_text(
        "\n".join(map(json.dumps, [*many, {**rows[0], "chosen": "no"}]))
    )
    fields = {**small_stages.settings(files, "dpo", tmp_path, "torch"), "steps": 2}
    od.dpo(**fields)
    [bad] = [
        json.loads(line) for line in (tmp_path / "dpo" / "rejected.jsonl").read_text().splitlines()
    ]
    assert bad["where"].endswith("pairs.jsonl:121") and "not this" in bad["reason"]
    (files / "pairs.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows, {**rows[0], "chosen": "no"}]))
    )
    with pytest.raises(UserError, match=r"pairs\.jsonl:31: .*not this.*1 of 31 rows are bad"):
        od.dpo(**{**fields, "out": str(tmp_path / "second")})
    (files / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))  # mended, and gone on with
    od.dpo(**{**fields, "out": str(tmp_path / "second")}, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, key", [("sft", "messages"), ("grpo", "prompt"), ("dpo", "chosen"), ("pretrain", "text")]
)
def test_what_one_run_has_read_another_beside_it_does_not_read_again(
    stage: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_stages.make(
        tmp_path / "files", load_backend("torch", device="cpu", dtype="float32")
    )
    name = {"sft": "chats", "grpo": "prompts", "dpo": "pairs", "pretrain": "text"}[stage]
    rows = (
        [{"text": f"Anna lives in Rome {n}."} for n in range(150)]
        if stage == "pretrain"
        else [
            {**row, "n": n, **({"prompt": f"{row['prompt']} {n}"} if "prompt" in row else {})}
            for n in range(5)
            for row in map(json.loads, (files / f"{name}.jsonl").read_text().splitlines())
        ]
    )
    data = files / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], key: None}])))
    fields: dict[str, Any] = {
        **small_stages.LOOP,
        "model": str(files / "policy"),
        "data": str(data),
        "batch_size": 2,
        "sequence_length": 48,
        "backend": "torch",
        "steps": 2,
    }
    if stage in small_stages.STAGES:
        fields = {**small_stages.settings(files, stage, tmp_path, "torch"), "steps": 2}
    runs = tmp_path / "runs"
    made = getattr(od, stage)(**{**fields, "out": str(runs / "one")})
    monkeypatch.setattr(runner, "_plan", lambda *_: None)  # it looks at a sample, each time
    for module, function in (
        (preference_batches, "encode_chat"),
        (prompts, "prompt_ids"),
        (problem_prompts, "prompt_ids"),
        (text_and_chats, "encode_chats"),
        (text_and_chats, "_texts"),
    ):
        monkeypatch.setattr(module, function, None)  # whoever reads anew fails
    (tmp_path / "runs" / "closed").write_text("no run")
    again = getattr(od, stage)(**{**fields, "out": str(runs / "two")})
    getattr(od, stage)(**{**fields, "out": str(runs / "seeded"), "seed": 3})
    assert (
        same_weights(weights(runs / "one", stage), weights(runs / "two", stage)) and made != again
    )
    [bad] = [
        json.loads(line)
        for line in (runs / "two" / stage / "rejected.jsonl").read_text().splitlines()
    ]
    assert bad["where"] == f"{data}:151"
    for gone in ("one", "seeded"):
        shutil.rmtree(runs / gone)
    (runs / "two" / stage / "done.json").unlink()
    getattr(od, stage)(**{**fields, "out": str(runs / "two")}, resume=True)
    data.write_text("\n".join(map(json.dumps, rows[:-1])))
    with pytest.raises(TypeError):
        getattr(od, stage)(**{**fields, "out": str(runs / "three")})
