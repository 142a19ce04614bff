"""Masked language modelling: what is hidden follows the paper's distribution and transformers', is
keyed by epoch and row, and stays inside its document; the stage resumes exactly; the command fill
answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import ondevice as od
from data_samples import TEXTS
from ondevice.cli import main
from ondevice.common.errors import UserError
from ondevice.common.rng import generator
from ondevice.data.batches import tokenize_corpus
from ondevice.data.masked_lm import MaskedSource, hide, pieces
from ondevice.data.packing import Batch
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference.fill_mask import mask_ids
from ondevice.runs.events import read
from test_resume import curve, same, weights
from warm_processes import killed_at_first_save

# χ² at a significance of 1 %, by degrees of freedom
CRITICAL = {1: 6.635, 2: 9.210, 3: 11.345}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 420, fills=True)


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return np.asarray(tokenize_corpus(TEXTS, tokenizer, tmp_path_factory.mktemp("tokens")))


def source(stream: np.ndarray, tokenizer: Tokenizer, **changes: Any) -> MaskedSource:
    return MaskedSource(
        stream, tokenizer=tokenizer, **{"sequence_length": 48, "batch_size": 4, **changes}
    )


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = counts.sum() * shares / shares.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def fates(truth: np.ndarray, seen: np.ndarray, chosen: np.ndarray, mask: int) -> np.ndarray:
    """Tokens left alone, masked, replaced, and chosen but kept."""
    masked, other = chosen & (seen == mask), chosen & (seen != mask) & (seen != truth)
    return np.array([(~chosen).sum(), masked.sum(), other.sum(), (chosen & ~masked & ~other).sum()])


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_the_distribution_is_the_papers(share: float) -> None:
    """Left alone 1 − share; of the chosen ones 80 % masked, 10 % another token, 10 % kept (a
    replacement may be the token itself)."""
    truth = np.full(200_000, 77, np.int32)
    ordinary = np.arange(4, 1004)
    found = hide(
        truth,
        np.ones(len(truth), bool),
        np.arange(len(truth)),
        share,
        3,
        ordinary,
        generator(0, "test"),
    )
    counts = fates(truth, found.ids, found.chosen, 3)
    same_by_chance = 0.1 / len(ordinary)
    shares = np.array(
        [1 - share, share * 0.8, share * (0.1 - same_by_chance), share * (0.1 + same_by_chance)]
    )
    assert chi_square(counts, shares) < CRITICAL[3]
    drawn = np.bincount(found.ids[(found.ids != 77) & (found.ids != 3)] // 100, minlength=11)
    assert drawn[0] > 0 and found.ids.min() >= 3 and found.ids.max() < 1004


@pytest.mark.slow
def test_the_distribution_is_that_of_transformers_collator(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Two samples of the same law: the counts of each fate in ours and in theirs, as a 2 × 4 table."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.DataCollatorForLanguageModeling(
        transformers.AutoTokenizer.from_pretrained(tmp_path), mlm_probability=0.15
    )
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(20, tokenizer.vocab_size, (400, 200)).astype(np.int32)
    out = theirs([{"input_ids": row} for row in ids.tolist()])
    other = fates(
        ids, out["input_ids"].numpy(), out["labels"].numpy() != -100, tokenizer.mask_id or 0
    )
    flat = ids.reshape(-1)
    found = hide(
        flat,
        np.ones(flat.size, bool),
        np.arange(flat.size),
        0.15,
        tokenizer.mask_id or 0,
        np.arange(tokenizer.vocab_size),
        generator(0, "test"),
    )
    own = fates(flat, found.ids, found.chosen, tokenizer.mask_id or 0)
    together = (own + other) / (own + other).sum()
    assert chi_square(own, together) + chi_square(other, together) < CRITICAL[3]


def test_words_are_hidden_whole(stream: np.ndarray, tokenizer: Tokenizer) -> None:
    made = source(stream, tokenizer, whole_words=True, share=0.3)
    plain = source(stream, tokenizer, share=0.3)
    split = {True: 0, False: 0}
    for step in range(6):
        for whole, found in ((True, made.batch(step)[0]), (False, plain.batch(step)[0])):
            truth = restored(found)
            hidden = np.zeros(truth.size, bool)
            hidden[found["index"][found["weights"] > 0]] = True
            goes_on = tokenizer.continues[truth.reshape(-1)].reshape(truth.shape)
            goes_on[:, 0] = False
            goes_on[:, 1:] &= ~tokenizer.is_special[truth[:, :-1]]
            hidden = hidden.reshape(truth.shape)
            split[whole] += int((goes_on[:, 1:] & (hidden[:, 1:] != hidden[:, :-1])).sum())
    assert split[True] == 0 < split[False]


def restored(batch: Batch) -> np.ndarray:
    """The rows before anything was hidden."""
    ids = batch["ids"].copy().reshape(-1)
    real = batch["weights"] > 0
    ids[batch["index"][real]] = batch["targets"][real]
    return ids.reshape(batch["ids"].shape)


def test_rows_hold_every_piece_once_between_its_marks(
    stream: np.ndarray, tokenizer: Tokenizer
) -> None:
    made = source(stream, tokenizer, sequence_length=20)
    found: list[tuple[int, ...]] = []
    for batch in made.eval_batches():
        truth = restored(batch)
        for ids, segments, positions in zip(
            truth, batch["segments"], batch["positions"], strict=True
        ):
            for s in range(1, segments.max() + 1):
                at = np.flatnonzero(segments == s)
                assert ids[at[0]] == tokenizer.cls_id and ids[at[-1]] == tokenizer.sep_id
                assert positions[at].tolist() == list(range(len(at)))
                found.append(tuple(ids[at[1:-1]].tolist()))
            assert not positions[segments == 0].any()
    starts, lengths = pieces(stream, tokenizer.eos_id, 18)
    wanted = [tuple(stream[a : a + n].tolist()) for a, n in zip(starts, lengths, strict=True)]
    assert sorted(found) == sorted(wanted)
    assert sum(lengths) == (stream != tokenizer.eos_id).sum()


def test_a_batch_follows_from_its_step_and_each_epoch_hides_others(
    stream: np.ndarray, tokenizer: Tokenizer
) -> None:
    one, other = source(stream, tokenizer), source(stream, tokenizer)
    other.batch(0)
    for a, b in zip(one.batch(5, 2), other.batch(5, 2), strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        total = sum(float(x["weights"].sum()) for x in one.batch(5, 2))
        assert float(a["denominator"]) == total > 0
    row = 1
    first, again, later = (one._collate([(epoch, row)], 1) for epoch in (0, 0, 1))
    assert np.array_equal(first["ids"], again["ids"])
    assert not np.array_equal(first["index"], later["index"])
    assert not tokenizer.is_special[first["targets"][first["weights"] > 0]].any()


def test_what_has_no_mask_or_no_room_is_refused(stream: np.ndarray, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no mask token"):
        source(stream, train_tokenizer(TEXTS, 420))
    with pytest.raises(UserError, match="no room"):
        source(stream, tokenizer, sequence_length=2)


def test_a_wordpiece_vocabulary_tells_its_words(tmp_path: Path) -> None:
    """As BERT's folders have it: texts end with the separator, ## goes on with a word."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "small", "bird", "##s", "##.", "sing"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(words[:5])
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "mask", "unk")}
    Tokenizer(inner, named).save(tmp_path)
    found = Tokenizer.load(tmp_path)
    assert (found.cls_id, found.sep_id, found.eos_id, found.mask_id) == (1, 2, 2, 3)
    assert np.flatnonzero(found.continues).tolist() == [7, 8]
    assert mask_ids("small [MASK]s sing", found) == [1, 5, 3, 4, 9, 2]


# the stage and the command

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "device": "cpu",
}
LOOP: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "micro_batch": 2,
    "sequence_length": 32,
    "optimizer": "muon",
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "eval_every": 6,
    "eval_batches": 2,
    "save_every": 4,
    "device": "cpu",
    "whole_words": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 3))
    for family in ("bert", "modernbert"):
        od.init(
            str(folder / "text.txt"), out=folder / family, family=family, backend="torch", **SMALL
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_going_on_after_a_kill_gives_the_uninterrupted_run(
    base: Path, tmp_path: Path, backend_name: str, family: str
) -> None:
    fields = {
        "model": str(base / family / "init" / "model"),
        "data": str(base / "text.txt"),
        "backend": backend_name,
        **LOOP,
    }
    od.pretrain(**fields, out=str(tmp_path / "whole"))
    killed_at_first_save("pretrain", {**fields, "out": str(tmp_path / "broken")})
    od.pretrain(**fields, out=str(tmp_path / "broken"), resume=True)
    assert curve(tmp_path / "broken", "pretrain") == curve(tmp_path / "whole", "pretrain")
    assert len(curve(tmp_path / "whole", "pretrain")) == LOOP["steps"]
    assert same(weights(tmp_path / "broken", "pretrain"), weights(tmp_path / "whole", "pretrain"))
    measured = [
        e for e in read(tmp_path / "whole" / "pretrain" / "events.jsonl") if e["event"] == "eval"
    ]
    assert all(0 <= e["accuracy"] <= 1 for e in measured)


@pytest.mark.slow
def test_the_backends_walk_the_same_curve(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    for name in ("torch", "mlx"):
        start = base / "modernbert" / "init" / "model"
        od.pretrain(start, base / "text.txt", out=tmp_path / name, backend=name, **LOOP)
    one, other = (np.array(curve(tmp_path / name, "pretrain")) for name in ("torch", "mlx"))
    np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.slow
def test_transformers_guesses_the_same(
    base: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's candidates and probabilities are those of transformers' pipeline on the same
    folder.
    """
    transformers = pytest.importorskip("transformers")
    folder = base / "bert" / "init" / "model"
    assert (
        main(
            [
                "fill",
                str(folder),
                "Anna lives in [MASK].",
                "--top",
                "3",
                "--json",
                "--backend",
                backend_name,
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    ours = json.loads(capsys.readouterr().out)["masks"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pipeline = transformers.pipeline(
        "fill-mask", str(folder), tokenizer=tokenizer, device="cpu", top_k=9
    )
    theirs = [
        one
        for one in pipeline("Anna lives in <|mask|>.")
        if one["token"] > 7 and one["token"] not in tokenizer.all_special_ids
    ][:3]
    assert [one["token"] for one in ours] == [tokenizer.decode([one["token"]]) for one in theirs]
    scale = ours[0]["probability"] / theirs[0]["score"]  # special tokens have their part there
    assert scale == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fill", "MODEL", "nothing hidden"], "[MASK]"),
        (["fill", "MODEL", "[MASK] " * 80], "context holds 64"),
        (["fill", "MODEL", "a [MASK]", "--top", "0"], "--top"),
        (["generate", "MODEL", "Anna"], "fills masks: it writes no text"),
        (["sft", "MODEL", "TEXT", "--out", "OUT"], "fills masks"),
        (
            [
                "pretrain",
                "MODEL",
                "TEXT",
                "--out",
                "OUT",
                "--sequence_length",
                "32",
                "--objective",
                "causal",
            ],
            "objective",
        ),
        (["init", "TEXT", "--out", "OUT", "--family", "bert", "--head_dim", "8"], "head_dim"),
        (
            ["init", "TEXT", "--out", "OUT", "--family", "bert", "--sliding_window", "8"],
            "sliding_window",
        ),
        (
            [
                "init",
                "TEXT",
                "--out",
                "OUT",
                "--family",
                "modernbert",
                "--num_key_value_heads",
                "2",
            ],
            "num_key_value_heads",
        ),
    ],
)
def test_wrong_input_gets_one_line(
    argv: list[str], said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "MODEL": base / "bert" / "init" / "model",
        "TEXT": base / "text.txt",
        "OUT": tmp_path / "r",
    }
    assert main([str(places.get(word, word)) for word in argv]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in told and told.startswith("ondevice: ")
