"""Telling texts apart: the loss against numbers worked by hand, the stage on both backends, its
folder elsewhere, exact resumption, wrong input; and an encoder as the body of a reward model that
PPO learns from."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from gradients import on_device
from ondevice.cli import main
from ondevice.config.corpus import CorpusConfig
from ondevice.config.preference import PPOConfig
from ondevice.datasets.preference_pairs import builtin_pairs
from ondevice.datasets.text_inputs import text_ids
from ondevice.models.load import load_model
from ondevice.models.save import write
from ondevice.models.score_head import with_head
from ondevice.runs.events import read
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.losses import classification_loss
from ondevice.training.sequence_logprobs import Scorer
from test_masking import SMALL
from test_resume import curve, same, weights
from warm_processes import killed_at_first_save

LOOP: dict[str, Any] = {
    "steps": 10,
    "batch_size": 8,
    "sequence_length": 24,
    "learning_rate": 3e-3,
    "eval_every": 5,
    "save_every": 4,
    "device": "cpu",
    "micro_batch": 4,
}
FOOD, COLOURS = ["pears", "apples", "bread", "rice"], ["red", "green", "blue", "pink"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of random weights, and texts that name a food or a colour, none of them twice."""
    folder = tmp_path_factory.mktemp("classes")
    rows = [
        {"text": f"{who} and {other} like {word} here.", "label": name}
        for name, words in (("food", FOOD), ("colour", COLOURS))
        for word in words
        for who, other in itertools.permutations(("Anna", "Ben", "Cleo", "Dan", "Eve"), 2)
    ]
    random.Random(0).shuffle(rows)
    for file, part in (("rows", rows[:120]), ("held", rows[120:])):
        (folder / f"{file}.jsonl").write_text("\n".join(map(json.dumps, part)))
    for family in ("bert", "modernbert"):
        od.init(
            str(folder / "rows.jsonl"), out=folder / family, family=family, backend="torch", **SMALL
        )
    return folder


def fields(files: Path, family: str, out: Path, backend: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(files / family / "init" / "model"),
        "data": str(files / "rows.jsonl"),
        "out": str(out),
        "backend": backend,
        **LOOP,
        **changes,
    }


class Fixed:
    """A network whose scores are its batch's."""

    score = "head"

    def hidden(self, ops: Any, params: Any, batch: Any, **how: Any) -> Any:
        return batch["scores"]


def test_the_loss_by_hand(backend: Backend) -> None:
    """Two texts and a padded row: −log softmax of the right class, divided by what the source says."""
    batch = {
        "scores": np.array([[0, 0, 0], [math.log(3), 0, 0], [9, 9, 9]], np.float32),
        "read": np.zeros(3, np.int32),
        "targets": np.array([1, 0, 2], np.int32),
        "weights": np.array([1, 1, 0], np.float32),
        "denominator": np.float32(4),
    }
    params = {"head.weight": backend.array(np.eye(3, dtype=np.float32))}
    loss, metrics = classification_loss(
        backend.ops, params, on_device(backend, batch), model=Fixed()
    )  # type: ignore[arg-type]
    assert float(backend.numpy(loss)) == pytest.approx(
        (math.log(3) + math.log(5 / 3)) / 4, rel=1e-5
    )
    assert [float(backend.numpy(x)) for x in metrics["accuracy"]] == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_it_learns_and_its_folder_says_the_same_elsewhere(
    files: Path, tmp_path: Path, backend_name: str, family: str
) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    made = od.classify(**fields(files, family, tmp_path, backend_name, steps=120))
    done = json.loads((tmp_path / "classify" / "done.json").read_text())["marks"]["classes"]
    assert done["accuracy"] > 0.9 > done["most_frequent"] and done["names"] == ["colour", "food"]
    classifier = transformers.pipeline("text-classification", str(made), device="cpu")
    assert classifier("Anna and Ben like pears here.")[0]["label"] == "food"
    backend = load_backend(backend_name, device="cpu", dtype="float32")
    model = load_model(made, backend)
    assert model.cfg.label_names == ("colour", "food")
    ids = text_ids(["Anna and Ben like blue here."], model.tokenizer, "first")[0]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(made).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(made)(
        "Anna and Ben like blue here.", return_tensors="pt"
    )
    assert encoded["input_ids"][0].tolist() == ids.tolist()
    with torch.no_grad():
        want = theirs(**encoded).logits.numpy()
    batch = {
        "ids": ids[None],
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "segments": np.ones((1, len(ids)), np.int32),
    }
    net = model.network
    hidden = net.hidden(
        backend.ops,
        model.params,
        on_device(backend, batch),
        at=backend.array(np.zeros(1, np.int32)),
    )
    got = backend.numpy(backend.ops.linear(model.params, net.score, hidden))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_both_backends_walk_the_same_curve_and_a_decoder_can_be_the_body(
    files: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    od.init(str(files / "rows.jsonl"), out=tmp_path / "llama", backend="torch", **SMALL)
    for body in (files / "modernbert" / "init" / "model", tmp_path / "llama" / "init" / "model"):
        for name in ("torch", "mlx"):
            od.classify(
                **{
                    **fields(files, "bert", tmp_path / body.parts[-3] / name, name),
                    "model": str(body),
                }
            )
        one, other = (
            np.array(curve(tmp_path / body.parts[-3] / name, "classify"))
            for name in ("torch", "mlx")
        )
        np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.slow
def test_going_on_after_a_kill_gives_the_uninterrupted_run(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    od.classify(**fields(files, "bert", tmp_path / "whole", backend_name))
    killed_at_first_save("classify", fields(files, "bert", tmp_path / "broken", backend_name))
    od.classify(**fields(files, "bert", tmp_path / "broken", backend_name), resume=True)
    assert curve(tmp_path / "broken", "classify") == curve(tmp_path / "whole", "classify")
    assert len(curve(tmp_path / "whole", "classify")) == LOOP["steps"]
    assert same(weights(tmp_path / "broken", "classify"), weights(tmp_path / "whole", "classify"))
    assert any(
        e["event"] == "resume" for e in read(tmp_path / "broken" / "classify" / "events.jsonl")
    )


@pytest.mark.slow
def test_a_classifier_is_asked_and_measured(
    files: Path, tmp_path: Path, backend_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its probabilities are transformers'; what it is right in is what its stage has measured on
    the same rows.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    made = od.classify(
        **fields(
            files,
            "modernbert",
            tmp_path / "r",
            backend_name,
            steps=60,
            validation=str(files / "held.jsonl"),
        )
    )
    common: dict[str, Any] = {"backend": backend_name, "device": "cpu"}
    text = "Anna and Ben like pears here."
    found = od.label(model=tmp_path / "r", text=text, **common)
    assert found["label"] == "food" == found["classes"][0]["label"]
    model = load_model(made, load_backend("torch", device="cpu", dtype="float32"))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        made, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        ids = torch.tensor(text_ids([text], model.tokenizer, "first")[0][None]).long()
        want = torch.softmax(theirs(input_ids=ids).logits[0], -1).numpy()
    got = {one["label"]: one["probability"] for one in found["classes"]}
    np.testing.assert_allclose([got[theirs.config.id2label[n]] for n in range(2)], want, atol=1e-5)
    marks = json.loads((made.parent / "done.json").read_text())["marks"]["classes"]
    told = od.evaluate(model=made, data=files / "held.jsonl", **common)
    assert (told["accuracy"], told["texts"]) == (marks["accuracy"], 40) and told["accuracy"] > 0.9
    assert sum(right for right, _ in told["by_class"].values()) == round(told["accuracy"] * 40)
    assert (
        main(["label", str(made), text, "--top", "1", "--backend", backend_name, "--device", "cpu"])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[0] == "food"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["label", "BASE", "Anna"], "tells no classes apart"),
        (["label", "BASE", " "], "is empty"),
        (["eval", "BASE", "--tasks", "classes", "--data", "ROWS"], "tells no classes apart"),
        (["eval", "MADE", "--data", "OTHER"], "the class 'place'"),
        (["eval", "MADE", "--data", "ROWS", "--label", "kind"], "'kind' holds no class"),
    ],
)
def test_what_cannot_be_told_apart_is_said(
    argv: list[str], said: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = load_backend("torch", device="cpu", dtype="float32")
    base = files / "bert" / "init" / "model"
    (tmp_path / "made").mkdir()
    write(
        tmp_path / "made",
        backend,
        with_head(load_model(base, backend), backend, 0, 2, ("colour", "food")),
    )
    (tmp_path / "other.jsonl").write_text('{"text": "Rome", "label": "place"}')
    places = {
        "BASE": base,
        "MADE": tmp_path / "made",
        "ROWS": files / "rows.jsonl",
        "OTHER": tmp_path / "other.jsonl",
    }
    assert main([str(places.get(word, word)) for word in argv]) == 2
    assert said in capsys.readouterr().err


def test_builtin_pairs_differ_in_the_answer() -> None:
    cfg = CorpusConfig(people=6, places=4, animals=5, things=6, chat_count=300, document_bytes=2000)
    made = builtin_pairs(cfg)
    assert len(made) > 250 and made == builtin_pairs(cfg)
    assert all(pair["chosen"] != pair["rejected"] for pair in made)


# an encoder judges, a decoder learns from it


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = load_backend("torch", device="cpu", dtype="float32")
    folder = small_stages.make(tmp_path_factory.mktemp("files"), backend)
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    (folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({"text": row["prompt"]}) for row in rows * 3)
    )
    od.init(
        str(folder / "texts.jsonl"),
        out=folder / "encoder",
        family="bert",
        backend="torch",
        **{**SMALL, "max_position_embeddings": 96},
    )
    od.reward(
        model=folder / "encoder" / "init" / "model",
        data=folder / "pairs.jsonl",
        out=folder / "encoder",
        steps=4,
        batch_size=4,
        sequence_length=96,
        device="cpu",
        backend="torch",
        eval_every=0,
        save_every=0,
    )
    return folder


@pytest.mark.slow
def test_ppo_learns_from_an_encoders_scores_and_resumes_exactly(
    road: Path, tmp_path: Path, backend_name: str
) -> None:
    """Judged by the text in the encoder's own tokens; the value model begins from the policy."""
    changed = {
        "reward_model": str(road / "encoder" / "reward" / "model"),
        "sft_coef": 0.0,
        "sft_data": PPOConfig.sft_data,
        "sft_batch": PPOConfig.sft_batch,
        "steps": 4,
    }
    whole = small_stages.settings(road, "ppo", tmp_path / "whole", backend_name, **changed)
    od.ppo(**whole)
    killed_at_first_save(
        "ppo", small_stages.settings(road, "ppo", tmp_path / "broken", backend_name, **changed)
    )
    od.ppo(
        **small_stages.settings(road, "ppo", tmp_path / "broken", backend_name, **changed),
        resume=True,
    )
    assert curve(tmp_path / "broken", "ppo") == curve(tmp_path / "whole", "ppo")
    assert same(weights(tmp_path / "broken", "ppo"), weights(tmp_path / "whole", "ppo"))
    steps = [e for e in read(tmp_path / "whole" / "ppo" / "events.jsonl") if e["event"] == "step"]
    assert all(np.isfinite(e["reward"]) and e["reward_std"] > 0 for e in steps)


def test_a_score_does_not_depend_on_the_texts_beside_it(files: Path, backend: Backend) -> None:
    model = with_head(load_model(files / "modernbert" / "init" / "model", backend), backend, 0)
    texts = text_ids(
        ["Anna", "Anna and Ben like pears here.", "Ben likes red"], model.tokenizer, "first"
    )
    scorer = Scorer(model, backend, batch_size=4)
    together = scorer.scores(model.params, texts)
    alone = [float(scorer.scores(model.params, [text])[0]) for text in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}] * 9,
            [],
            "all rows are of the class",
        ),
        ([{"words": "a", "label": "x"}] * 9, [], "'text' holds no text"),
        ([{"text": "a", "label": None}] * 9, [], "'label' holds no class"),
        (
            [{"text": "a", "label": "x"}] * 20 + [{"text": "b", "label": "y"}] * 2,
            [],
            "no row to learn from",
        ),
        (
            [{"text": "a", "label": n} for n in (0, 1)] * 9,
            ["--sequence_length", "999"],
            "context holds 64",
        ),
    ],
)
def test_wrong_input_gets_one_line(
    rows: list[dict[str, Any]],
    more: list[str],
    said: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    argv = [
        "classify",
        str(files / "bert" / "init" / "model"),
        str(data),
        "--out",
        str(tmp_path / "r"),
        "--sequence_length",
        "32",
        *more,
    ]
    assert main(argv) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
