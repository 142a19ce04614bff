"""Text with holes: span corruption and text infilling follow the papers' laws, lose no token, are
keyed by epoch and row; the stages of an encoder-decoder run on both backends, resume exactly, and
say what is wrong in one line."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
import ondevice as od
import small_stages
from data_samples import TEXTS, small_tokenizer
from ondevice.cli import main
from ondevice.common.errors import UserError
from ondevice.common.rng import generator
from ondevice.data.batches import tokenize_corpus
from ondevice.data.chat_encoding import ChatRow
from ondevice.data.completion_batches import answers_of
from ondevice.data.span_corruption import (
    CorruptedSource,
    infill,
    shuffle_sentences,
    span_corruption,
    span_lengths,
    spans,
    split_at_spans,
    text_infilling,
)
from ondevice.data.token_cache import ChatRows
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.runs.events import read
from ondevice.seam.select import load_backend
from test_masking import CRITICAL, chi_square
from test_preference_resume import told
from test_resume import curve, same, weights
from test_seq2seq import written
from warm_processes import killed_at_first_save

EOS, MASK = 0, 3
SENTINELS = np.arange(99, 67, -1, dtype=np.int32)


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return train_tokenizer(TEXTS, 420, sentinels=32)


@given(
    length=st.integers(2, 200),
    share=st.floats(0.02, 0.6),
    mean=st.floats(1, 6),
    seed=st.integers(0, 9),
)
def test_source_and_target_hold_every_token_once(
    length: int, share: float, mean: float, seed: int
) -> None:
    """What a sentinel hides stands behind it in the target; put back, the text is whole."""
    ids = np.arange(1000, 1000 + length, dtype=np.int32)
    hidden = spans(length, share, mean, generator(seed, "spans"))
    assert hidden.sum() == min(max(round(length * share), 1), length - 1) and not hidden[0]
    many = np.arange(999, 899, -1, dtype=np.int32)
    source, target = split_at_spans(ids, hidden, many, EOS)
    assert source[-1] == target[-1] == EOS
    told: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token < 1000:
            told[token] = []
        else:
            told[next(reversed(told))].append(token)
    assert list(told) == many[: len(told)].tolist() and all(told.values())
    whole = [token for i in source[:-1].tolist() for token in (told[i] if i < 1000 else [i])]
    assert whole == ids.tolist()


def test_spans_follow_the_papers_law() -> None:
    """15 % of 200 tokens in 10 spans of 3 on average; every way of cutting 30 tokens into 10 parts
    alike: the first part has length n with probability C(29 − n, 8) / C(29, 9)."""
    from math import comb

    first = Counter()
    for row in range(3000):
        hidden = spans(200, 0.15, 3.0, generator(0, "law", row))
        begins = np.flatnonzero(hidden & ~np.append(False, hidden[:-1]))
        assert hidden.sum() == 30 and len(begins) == 10
        end = begins[0] + int(np.argmin(np.append(hidden[begins[0] :], False)))
        first[min(end - begins[0], 4)] += 1
    shares = np.array([comb(29 - n, 8) for n in (1, 2, 3)], float) / comb(29, 9)
    counts = np.array([first[n] for n in (1, 2, 3, 4)], float)
    assert chi_square(counts, np.append(shares, 1 - shares.sum())) < CRITICAL[3]


@pytest.mark.slow
def test_spans_are_as_long_as_in_the_reference() -> None:
    """How often each place of a text is hidden: alike in ours and in an independent reading of the
    paper's recipe (borders between tokens, shuffled), as a 2 × 4 table of quarters."""
    rng = np.random.default_rng(0)

    def reference() -> np.ndarray:
        def parts(total: int, count: int) -> list[int]:
            marks = [1] * (count - 1) + [0] * (total - count)
            rng.shuffle(marks)
            sizes, size = [], 1
            for mark in marks:
                if mark:
                    sizes.append(size)
                    size = 0
                size += 1
            return [*sizes, size]

        out: list[int] = []
        for shown, hid in zip(parts(85, 5), parts(15, 5), strict=True):
            out += [0] * shown + [1] * hid
        return np.array(out)

    ours = (
        np.sum([spans(100, 0.15, 3.0, generator(1, "q", n)) for n in range(1500)], 0)
        .reshape(4, 25)
        .sum(1)
    )
    theirs = np.sum([reference() for _ in range(1500)], 0).reshape(4, 25).sum(1)
    together = (ours + theirs) / (ours + theirs).sum()
    # places of a span go together
    assert chi_square(ours, together) + chi_square(theirs, together) < 3 * CRITICAL[3]


def test_lengths_of_spans_are_poissons() -> None:
    """Spans of nothing are among them; 0 … 7 and more than 7, at 1 %."""
    lengths = span_lengths(60_000, 3.0, generator(2, "lengths"))
    assert lengths.sum() == 60_000
    pmf = np.array([math.exp(-3) * 3**n / math.factorial(n) for n in range(8)])
    counts = np.bincount(np.minimum(lengths[:-1], 8), minlength=9)
    assert chi_square(counts, np.append(pmf, 1 - pmf.sum())) < 20.09  # 8 degrees of freedom


@pytest.mark.parametrize("length", [5, 40, 512])
@pytest.mark.parametrize("share, mean", [(0.3, 3.0), (0.15, 1.0), (0.5, 3.0), (0.9, 3.0)])
def test_infilling_hides_its_share_behind_masks_and_keeps_the_order(
    length: int, share: float, mean: float
) -> None:
    ids, masks, spans_found = np.arange(10, 10 + length, dtype=np.int32), 0, 0
    for row in range(60):
        seen = infill(ids, share, mean, MASK, generator(0, "infill", row))
        left = seen[seen != MASK]
        assert (np.diff(left) > 0).all() and length - len(left) == round(length * share)
        assert not ((seen[1:] == MASK) & (seen[:-1] == MASK)).any(), "spans do not touch"
        masks += int((seen == MASK).sum())
        spans_found += int((np.diff(np.concatenate([[9], left, [10 + length]])) > 1).sum())
    if (length, share, mean) == (512, 0.3, 3.0):
        assert abs((masks - spans_found) / masks - math.exp(-3)) < 0.012  # masks of nothing


@pytest.mark.slow
def test_every_place_for_a_span_is_as_likely() -> None:
    """One of five tokens, and where spans of one are in two of six places that do not touch: ten
    ways.
    """
    ids = np.arange(10, 15, dtype=np.int32)
    found = Counter()
    for row in range(3000):
        seen = infill(ids, 0.2, 3.0, MASK, generator(1, "place", row))
        if (seen == MASK).sum() == 1:
            found[int(np.flatnonzero(seen == MASK)[0])] += 1
    assert (
        sorted(found) == list(range(5))
        and chi_square(np.array([*found.values()]), np.ones(5)) < 13.28
    )
    pairs = Counter(
        tuple(np.flatnonzero(seen == MASK).tolist())
        for seen in (
            infill(np.arange(10, 16, dtype=np.int32), 1 / 3, 0.3, MASK, generator(2, "places", row))
            for row in range(9000)
        )
        if len(seen) == 6 and (seen == MASK).sum() == 2
    )
    assert len(pairs) == 10 and chi_square(np.array([*pairs.values()]), np.ones(10)) < 21.67


def test_sentences_change_places_within_their_document() -> None:
    ids = np.array([1, 2, 9, 3, 9, 4, 5], np.int32)
    orders = {
        tuple(shuffle_sentences(ids, ids == 9, EOS, generator(0, "s", n)).tolist())
        for n in range(60)
    }
    assert len(orders) == 6 and all(sorted(order) == sorted(ids.tolist()) for order in orders)
    assert (9, 1, 2) not in {order[:3] for order in orders}
    two = np.concatenate([ids, [EOS], ids + 20, [EOS, EOS]]).astype(np.int32)
    for n in range(20):
        made = shuffle_sentences(two, two % 20 == 9, EOS, generator(0, "s", n))
        assert np.flatnonzero(made == EOS).tolist() == [7, 15, 16]
        assert sorted(made[:7]) == sorted(ids.tolist()) and sorted(made[8:15]) == sorted(
            (ids + 20).tolist()
        )


def test_infilled_text_stands_between_what_opens_and_closes_one() -> None:
    bart = train_tokenizer(TEXTS, 420, fills=True)
    ids = np.array(bart.encode(TEXTS[0])[:40], np.int32)
    source, target = text_infilling(bart, 0.3, 3.0)(ids, generator(0, "corrupt"))
    assert target.tolist() == [bart.cls_id, *ids.tolist(), bart.eos_id]
    assert (source[0], source[-1]) == (bart.cls_id, bart.eos_id)
    assert (
        bart.encode_source("Anna")[0] == bart.cls_id
        and bart.encode_source("Anna")[-1] == bart.eos_id
    )


def test_a_batch_follows_from_its_step_and_each_epoch_hides_others(
    t5: Tokenizer, tmp_path: Path
) -> None:
    stream = np.asarray(tokenize_corpus(TEXTS, t5, tmp_path))
    bart = train_tokenizer(TEXTS, 420, fills=True)
    for tokens, corrupt in (
        (stream, span_corruption(t5, 0.15, 3.0)),
        (np.asarray(tokenize_corpus(TEXTS, bart, tmp_path)), text_infilling(bart, 0.3, 3.0)),
    ):
        one, other = (
            CorruptedSource(
                tokens,
                corrupt=corrupt,
                start=1,
                sequence_length=40,
                batch_size=6,
                longest=99,
            )
            for _ in range(2)
        )
        other.batch(0)
        for a, b in zip(one.batch(3, 3), other.batch(3, 3), strict=True):
            assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        first, later = (one._collate([(epoch, 0)], 1) for epoch in (0, 1))
        assert not np.array_equal(first["source_ids"], later["source_ids"])
        assert sum(len(list(s.eval_batches(None, 3))) for s in (one,)) == -(-one.rows // 3)


def test_more_spans_than_sentinels_and_missing_tokens_are_named() -> None:
    with pytest.raises(UserError, match="more than the tokenizer's 2 sentinels"):
        split_at_spans(
            np.arange(50, dtype=np.int32),
            spans(50, 0.4, 1.0, generator(0, "x")),
            SENTINELS[:2],
            EOS,
        )
    with pytest.raises(UserError, match="no sentinels"):
        span_corruption(train_tokenizer(TEXTS, 420), 0.15, 3.0)
    with pytest.raises(UserError, match="no mask token"):
        text_infilling(train_tokenizer(TEXTS, 420), 0.3, 3.0)


def test_every_answer_is_a_row_with_what_stands_before_it() -> None:
    ids = np.arange(9, dtype=np.int32)
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0], bool)
    made = answers_of(ChatRows.of([ChatRow(ids[:3] + 20, mask[:3]), ChatRow(ids, mask)]))
    assert [(list(r.prompt), list(r.completion)) for r in made] == [
        ([20, 21], [22]),
        ([0, 1], [2, 3]),
        ([0, 1, 2, 3, 4, 5, 6], [7]),
    ]
    assert not len(answers_of(ChatRows.of([])))


# the road

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 340,
    "max_position_embeddings": 96,
    "device": "cpu",
}
LOOP: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "micro_batch": 2,
    "sequence_length": 48,
    "learning_rate": 3e-3,
    "eval_every": 4,
    "eval_batches": 2,
    "save_every": 3,
    "device": "cpu",
}
TIED = {"t5": False, "bart": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 2))
    for family, tied in TIED.items():
        od.init(
            str(folder / "text.txt"),
            out=folder / family,
            family=family,
            backend="torch",
            tie_word_embeddings=tied,
            **SMALL,
        )
    return folder


def settings(files: Path, stage: str, family: str, out: Path, backend: str) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "pretrain": {"data": files / "text.txt", **LOOP},
        "sft": {"data": files / "chats.jsonl", **LOOP},
        "dpo": {"data": files / "pairs.jsonl", **LOOP, "sequence_length": 96},
        "grpo": {
            **small_stages.LOOP,
            **small_stages.STAGES["grpo"],
            "data": files / "prompts.jsonl",
        },
    }
    fields = {
        "model": files / family / "init" / "model",
        "out": out,
        "backend": backend,
        **own[stage],
    }
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in fields.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "grpo"])
def test_a_killed_stage_goes_on_as_if_it_had_not_been(
    files: Path, tmp_path: Path, backend_name: str, stage: str, family: str
) -> None:
    made = getattr(od, stage)(**settings(files, stage, family, tmp_path / "whole", backend_name))
    broken = settings(files, stage, family, tmp_path / "broken", backend_name)
    killed_at_first_save(stage, broken)
    getattr(od, stage)(**broken, resume=True)
    assert curve(tmp_path / "broken", stage) == curve(tmp_path / "whole", stage)
    assert same(weights(tmp_path / "broken", stage), weights(tmp_path / "whole", stage))
    if stage == "sft":
        transformers = pytest.importorskip("transformers")
        transformers.AutoModelForSeq2SeqLM.from_pretrained(made)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "grpo"])
def test_learned_positions_reach_as_far_as_the_context_and_padding_beyond(
    files: Path, tmp_path: Path, stage: str, backend_name: str
) -> None:
    """A context of 60 is padded to 64; what the model writes whole has its beginning and end as
    well.
    """
    small = {**SMALL, "max_position_embeddings": 60}
    model = od.init(
        str(files / "text.txt"),
        out=tmp_path,
        family="bart",
        backend=backend_name,
        tie_word_embeddings=True,
        **small,
    )
    longest = 58 if stage == "pretrain" else 60
    fields = {
        **settings(files, stage, "bart", tmp_path, backend_name),
        "model": str(model),
        "steps": 2,
    }
    if "sequence_length" in fields:
        fields["sequence_length"] = longest + 1
        with (
            suppress(UserError)
            if stage == "dpo"
            else pytest.raises(UserError, match=f"{longest} or fewer|as many")
        ):
            getattr(od, stage)(**fields)
        fields |= {"sequence_length": longest, "out": str(tmp_path / "fits")}
    if stage == "pretrain":
        # marks of spans of nothing make a source longer than its text
        fields |= {"mean_span": 1.0, "mask_share": 0.5}
    getattr(od, stage)(**fields)
    events = read(Path(fields["out"]) / stage / "events.jsonl")
    assert all(np.isfinite(e["loss"]) for e in events if e["event"] == "step")


@pytest.mark.slow
@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo", "grpo"])
def test_both_backends_walk_the_same_curve(
    files: Path, tmp_path: Path, stage: str, family: str
) -> None:
    """GRPO's rollouts too, word by word. Its reward is another number for nearly every text: where
    a group has no spread, AdamW makes whole steps of the rounding that is left."""
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    fields = {}
    if stage == "grpo":
        (tmp_path / "reward.py").write_text(
            "def reward(prompts, completions, **_):\n    return [sum(map(ord, c)) % 97 / 97 for c in completions]\n"
        )
        cfg = models.seq2seq_config(family, vocab_size=small_tokenizer().vocab_size)
        start = written(
            cfg, load_backend("torch", device="cpu", dtype="float32"), tmp_path / "m"
        ).folder
        fields = {"model": str(start), "reward_file": str(tmp_path / "reward.py")}
    for name in ("torch", "mlx"):
        getattr(od, stage)(**{**settings(files, stage, family, tmp_path / name, name), **fields})
    one, other = (np.array(curve(tmp_path / name, stage)) for name in ("torch", "mlx"))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    if stage == "grpo":
        drawn = [
            [
                [c["text"] for c in group["completions"]]
                for step in told(tmp_path / name, stage)
                for group in step["groups"]
            ]
            for name in ("torch", "mlx")
        ]
        assert drawn[0] == drawn[1] and np.abs(one[:, 1:]).min() > 1e-3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["reward", "T5", "PAIRS", "--out", "OUT", "--sequence_length", "96"], "no head of scores"),
        (
            ["classify", "T5", "TEXT", "--out", "OUT", "--sequence_length", "4096"],
            "no head of scores",
        ),
        (["classify", "BART", "CHATS", "--out", "OUT"], "no head of scores"),
        (
            ["sft", "T5", "CHATS", "--out", "OUT", "--loss_on", "all", "--sequence_length", "48"],
            "loss_on",
        ),
        (
            ["sft", "T5", "CHATS", "--out", "OUT", "--loss_on", "all", "--sequence_length", "4096"],
            "loss_on",
        ),
        (
            [
                "pretrain",
                "T5",
                "TEXT",
                "--out",
                "OUT",
                "--objective",
                "masked",
                "--sequence_length",
                "4096",
            ],
            "objective",
        ),
        (
            [
                "pretrain",
                "T5",
                "TEXT",
                "--out",
                "OUT",
                "--objective",
                "masked",
                "--sequence_length",
                "48",
            ],
            "objective",
        ),
        (
            [
                "pretrain",
                "T5",
                "TEXT",
                "--out",
                "OUT",
                "--mask_share",
                "0.45",
                "--mean_span",
                "1",
                "--sequence_length",
                "96",
            ],
            "sentinels",
        ),
        (
            [
                "pretrain",
                "BART",
                "TEXT",
                "--out",
                "OUT",
                "--sequence_length",
                "48",
                "--whole_words",
            ],
            "whole_words",
        ),
        (
            [
                "pretrain",
                "POLICY",
                "TEXT",
                "--out",
                "OUT",
                "--sequence_length",
                "48",
                "--mask_share",
                "0.2",
            ],
            "mask_share",
        ),
        (
            [
                "pretrain",
                "POLICY",
                "TEXT",
                "--out",
                "OUT",
                "--sequence_length",
                "48",
                "--mean_span",
                "2",
            ],
            "mean_span",
        ),
        (
            ["init", "TEXT", "--out", "OUT", "--family", "t5", "--sliding_window", "4"],
            "sliding_window",
        ),
        (["generate", "T5", "Anna", "--beams", "2", "--samples", "3"], "samples"),
        (["generate", "T5", "Anna", "--beams", "2", "--temperature", "0.3"], "temperature"),
        (["ppo", "T5", "JUDGE", "--data", "PROMPTS", "--out", "OUT"], "no head of scores"),
    ],
)
def test_wrong_input_gets_one_line(
    argv: list[str], said: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "T5": files / "t5" / "init" / "model",
        "TEXT": files / "text.txt",
        "OUT": tmp_path / "r",
        "PAIRS": files / "pairs.jsonl",
        "CHATS": files / "chats.jsonl",
        "POLICY": files / "policy",
        "BART": files / "bart" / "init" / "model",
        "JUDGE": files / "judge",
        "PROMPTS": files / "prompts.jsonl",
    }
    assert main([str(places.get(word, word)) for word in argv]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in told and told.startswith("ondevice: ")


@pytest.mark.slow
def test_the_command_searches_with_beams(
    files: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = files / "bart" / "init" / "model"
    for beams in ("1", "3"):
        assert (
            main(
                [
                    "generate",
                    str(model),
                    "Anna lives",
                    "--beams",
                    beams,
                    "--samples",
                    beams,
                    "--temperature",
                    "0",
                    "--max_new_tokens",
                    "5",
                    "--json",
                    "--backend",
                    backend_name,
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        assert len(json.loads(capsys.readouterr().out)["completions"]) == int(beams)
