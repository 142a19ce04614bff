"""What rows say of their classes: numbers, names that a data set declares, no class at all; and
what becomes of a head that tells the same classes apart, or others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from hub_sets import read_in_this_process
from ondevice.cli import main
from ondevice.common.errors import UserError
from ondevice.config.data import DataConfig
from ondevice.data.class_labels import (
    ClassName,
    in_order,
    is_integer,
    missing_numbers,
    same_classes,
)
from ondevice.data.context import DataContext
from ondevice.data.formats import to_label
from ondevice.data.rows import read
from ondevice.datasets.preview import show
from ondevice.datasets.spec import DataSpec
from ondevice.datasets.text_and_chats import labelled_texts
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.models.save import write
from ondevice.models.score_head import with_head
from ondevice.runs.events import read as events
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from test_classify import files  # noqa: F401  the module's fixture

MOODS = ("sad", "glad", "calm")
LOOP: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "sequence_length": 24,
    "eval_every": 0,
    "save_every": 0,
    "device": "cpu",
    "backend": "torch",
}


def named(*numbers: int, names: tuple[str, ...] = MOODS) -> list[ClassName]:
    return [ClassName.of(number, names) for number in numbers]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([str(n) for n in (11, 2, 0, 10, 1)], ("0", "1", "2", "10", "11")),
        (["5", "-3", "0"], ("-3", "0", "5")),
        (["10.0", "2.5", "1.0"], ("1.0", "2.5", "10.0")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["01", "1", "2"], ("01", "1", "2")),
        (["nan", "10", "9"], ("10", "9", "nan")),
        (named(2, 0), MOODS),
        ([*named(1), "bored"], (*MOODS, "bored")),
        ([*named(1), "sad"], MOODS),
    ],
)
def test_classes_stand_in_the_order_of_their_numbers(
    labels: list[str], order: tuple[str, ...]
) -> None:
    assert in_order(labels) == order == in_order(reversed(labels))


def test_names_and_numbers_do_not_mix() -> None:
    with pytest.raises(
        UserError,
        match="one source has the class '1', another one names its classes: sad, glad, calm",
    ):
        in_order([*named(0), "1"])
    assert (
        missing_numbers(("0", "1", "4")) == [2, 3]
        and not missing_numbers(("0", "1"))
        and not missing_numbers(MOODS)
    )
    assert is_integer("-12") and not is_integer("012") and not is_integer(ClassName.of(0, ("7",)))


@pytest.mark.parametrize(
    ("known", "labels", "found"),
    [
        (("sad", "glad"), ["glad"], {"glad": "glad"}),
        (("SAD", "Glad"), ["glad", "sad"], {"glad": "Glad", "sad": "SAD"}),
        (("SAD", "Glad"), ["0", "1"], {"0": "SAD", "1": "Glad"}),
        (("0", "1", "2"), named(2, 0), {"calm": "2", "sad": "0"}),
        (("LABEL_0", "LABEL_1", "LABEL_2"), named(1), {"glad": "LABEL_1"}),
        (("1", "2", "3"), ["3"], {"3": "3"}),  # stars: by name, not by number
        (
            ("calm", "sad", "glad"),
            named(0, 1),
            {"sad": "sad", "glad": "glad"},
        ),  # whatever the order of the data
        (("x", "y", "z"), named(0), None),  # other names: their numbers mean nothing
        (("0", "1"), named(0), None),  # three classes are not two
        (("sad", "glad"), ["2"], None),
        (("sad", "glad"), ["happy"], None),
    ],
)
def test_classes_of_a_model_are_found_by_name_or_number(
    known: tuple[str, ...], labels: list[str], found: dict[str, str] | None
) -> None:
    assert same_classes(known, labels) == found


def parquet(folder: Path, labels: list[int | None], texts: list[str] | None = None) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(MOODS))}
    )
    texts = texts or [f"Anna likes {n}" for n in range(len(labels))]
    file = folder / "rows.parquet"
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(file)
    return file


def test_a_parquet_files_names_are_read_and_minus_one_is_none(tmp_path: Path) -> None:
    rows = [row for row, _ in read(parquet(tmp_path, [2, -1, 0]))]
    assert [row["label"] for row in rows] == ["calm", -1, "sad"]
    assert [row["label"].number for row in rows if row["label"] != -1] == [2, 0]
    assert isinstance(to_label(rows[0], "text", "label").label, ClassName)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {b"huggingface": b"no JSON"},
        {b"huggingface": b'{"info": []}'},
        {b"huggingface": b'{"info": {"features": ["label"]}}'},
    ],
)
def test_parquet_of_other_programs_keeps_its_numbers(
    metadata: dict[bytes, bytes], tmp_path: Path
) -> None:
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["a"], "label": [1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [row for row, _ in read(tmp_path / "rows.parquet")] == [{"text": "a", "label": 1}]


def test_a_set_of_the_hub_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(MOODS))}
    )
    made = datasets.IterableDataset.from_generator(
        lambda: iter([{"text": "a", "label": 1}, {"text": "b", "label": -1}]), features=features
    )
    builder = SimpleNamespace(hash="", as_streaming_dataset=lambda split: made)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: builder)
    read_in_this_process(monkeypatch)
    assert [row["label"] for row, _ in read("hub:me/moods")] == ["glad", -1]


def classify(
    files: Path, data: Path, out: Path, **changes: Any
) -> tuple[Path, list[dict[str, Any]]]:
    made = od.classify(
        **{
            "model": str(files / "bert" / "init" / "model"),
            "data": str(data),
            "out": str(out),
            **LOOP,
            **changes,
        }
    )
    return made, list(events(out / "classify" / "events.jsonl"))


def told(found: list[dict[str, Any]], kind: str = "warning") -> str:
    return "\n".join(str(event.get("message", event)) for event in found if event["event"] == kind)


def jsonl(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def test_twelve_numbers_are_twelve_scores_in_their_order(files: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Anna likes {n}", "label": n % 12} for n in range(240)]
    made, _ = classify(files, jsonl(tmp_path, rows), tmp_path / "r")
    table = json.loads((made / "config.json").read_text())["id2label"]
    assert table == {str(n): str(n) for n in range(12)}


def test_minus_one_is_set_aside_and_counted(files: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Anna likes {n}", "label": (-1, 0, 1)[n % 3]} for n in range(60)]
    data = jsonl(tmp_path, rows)
    made, found = classify(files, data, tmp_path / "r")
    assert load_model(made, load_backend("torch", "cpu")).cfg.label_names == ("0", "1")
    assert "20 of 60 rows" in told(found) and "the class -1" in told(found)
    shown = show(DataConfig(action="show", data=str(data), model=str(made), form="label"))
    assert (
        shown["used"] == 40
        and not shown["refused"]
        and next(iter(shown["skipped"].values()))["count"] == 20
    )
    judged = od.evaluate(model=made, data=data, backend="torch", device="cpu")
    assert (judged["texts"], judged["unlabelled"]) == (40, 20)
    nobody = jsonl(tmp_path, [{"text": "Anna", "label": -1}] * 9, "none.jsonl")
    for ask in (
        lambda: classify(files, nobody, tmp_path / "n"),
        lambda: od.evaluate(model=made, data=nobody),
    ):
        with pytest.raises(UserError, match="no row has a class: all say -1"):
            ask()


def test_declared_names_stand_in_their_order_whatever_is_there(files: Path, tmp_path: Path) -> None:
    labels = [(2, 0, -1)[n % 3] for n in range(60)]
    made, found = classify(files, parquet(tmp_path, labels), tmp_path / "r")
    assert json.loads((made / "config.json").read_text())["label2id"] == {
        "sad": 0,
        "glad": 1,
        "calm": 2,
    }
    assert "20 of 60 rows" in told(found)


def test_a_stage_keeps_the_commit_that_it_has_read(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.IterableDataset.from_generator(
        lambda: iter([{"text": f"Anna likes {n}", "label": n % 2} for n in range(40)])
    )
    read_in_this_process(monkeypatch)
    for commit in ("ab" * 20, "cd" * 20):
        out = tmp_path / commit[:2]
        builder = SimpleNamespace(hash=commit, as_streaming_dataset=lambda split: made)
        monkeypatch.setattr(
            datasets, "load_dataset_builder", lambda *a, builder=builder, **k: builder
        )
        od.classify(
            model=str(files / "bert" / "init" / "model"),
            data="hub:me/moods@main",
            out=str(out),
            **LOOP,
        )
        # read without a stage, into a folder that is not there yet
        look = DataContext(tmp_path / "look" / commit[:2])
        found = labelled_texts(DataSpec("hub:me/moods@main"), "text", "label", look)
        assert len(found.train) == 36
        for folder in (out / "classify", look.folder):
            kept = folder / "commits.json"
            assert json.loads(kept.read_text()) == {"hub:me/moods@main": commit}


@pytest.fixture(scope="module")
def backend() -> Backend:
    return load_backend("torch", "cpu", "float32")


def classifier(
    files: Path,
    folder: Path,
    backend: Backend,
    names: tuple[str, ...],
    **raw: Any,
) -> Model:
    """A folder with a head of random weights."""
    body = load_model(files / "bert" / "init" / "model", backend)
    made = with_head(body, backend, 3, len(names) or 3, names)
    folder.mkdir()
    write(
        folder,
        backend,
        replace(
            made,
            params={
                name: backend.array(backend.numpy(p) * 3) if name == "classifier.weight" else p
                for name, p in made.params.items()
            },
        ),
    )
    if raw:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **raw}))
    return load_model(folder, backend)


def test_a_head_of_the_same_classes_goes_on(files: Path, tmp_path: Path, backend: Backend) -> None:
    before = classifier(files, tmp_path / "m", backend, ("glad", "sad", "calm"))
    rows = [{"text": f"Anna likes {n}", "label": MOODS[n % 3]} for n in range(60)]
    made, found = classify(
        files, jsonl(tmp_path, rows), tmp_path / "r", model=str(tmp_path / "m"), learning_rate=1e-9
    )
    after = load_model(made, backend)
    assert after.cfg.label_names == ("glad", "sad", "calm") and "new head" not in told(found)
    np.testing.assert_allclose(
        backend.numpy(after.params["classifier.weight"]),
        backend.numpy(before.params["classifier.weight"]),
        atol=1e-6,
    )
    # what a text is called is still what its rows call it: the targets follow the head's order
    judged = od.evaluate(model=made, data=tmp_path / "rows.jsonl", backend="torch", device="cpu")
    assert sorted(judged["by_class"]) == sorted(MOODS)


def test_numbers_of_a_head_get_the_names_of_the_data(
    files: Path, tmp_path: Path, backend: Backend
) -> None:
    classifier(files, tmp_path / "m", backend, ())
    made, found = classify(
        files,
        parquet(tmp_path, [n % 3 for n in range(60)]),
        tmp_path / "r",
        model=str(tmp_path / "m"),
    )
    assert load_model(made, backend).cfg.label_names == MOODS and "new head" not in told(found)


@pytest.mark.parametrize(
    ("names", "raw", "why"),
    [
        (("red", "green", "blue"), {}, "it tells red, green, blue apart, the data calm, glad, sad"),
        (("glad", "sad"), {}, "it tells glad, sad apart"),
        (
            MOODS,
            {"problem_type": "multi_label_classification"},
            "it gives one text several classes",
        ),
        (("one",), {}, "it is a reward model"),
    ],
)
def test_a_new_head_is_said(
    files: Path,
    tmp_path: Path,
    backend: Backend,
    names: tuple[str, ...],
    raw: dict[str, Any],
    why: str,
) -> None:
    classifier(files, tmp_path / "m", backend, names, **raw)
    rows = [{"text": f"Anna likes {n}", "label": MOODS[n % 3]} for n in range(60)]
    made, found = classify(files, jsonl(tmp_path, rows), tmp_path / "r", model=str(tmp_path / "m"))
    assert "a new head takes the place" in told(found) and why in told(found)
    config = json.loads((made / "config.json").read_text())
    assert config["problem_type"] is None and sorted(config["label2id"]) == sorted(MOODS)


def test_several_classes_of_one_text_are_transformers(
    files: Path,
    tmp_path: Path,
    backend: Backend,
    capsys: pytest.CaptureFixture[str],
) -> None:
    transformers = pytest.importorskip("transformers")
    classifier(files, tmp_path / "m", backend, MOODS, problem_type="multi_label_classification")
    pipeline = transformers.pipeline(
        "text-classification", str(tmp_path / "m"), top_k=None, device="cpu"
    )
    want = {one["label"]: one["score"] for one in pipeline(["Anna likes pears"])[0]}
    got = od.label(model=tmp_path / "m", text="Anna likes pears", backend="torch", device="cpu")
    assert {one["label"]: one["probability"] for one in got["classes"]} == pytest.approx(
        want, abs=1e-5
    )
    assert abs(sum(want.values()) - 1) > 0.05  # no softmax
    rows = jsonl(tmp_path, [{"text": "Anna", "label": "sad"}])
    assert main(["eval", str(tmp_path / "m"), "--data", str(rows)]) == 2
    assert "gives a text several classes" in capsys.readouterr().err


def test_a_regression_is_no_classifier(files: Path, tmp_path: Path, backend: Backend) -> None:
    classifier(files, tmp_path / "m", backend, MOODS, problem_type="regression")
    with pytest.raises(UserError, match="gives numbers, not classes"):
        od.label(model=tmp_path / "m", text="Anna", backend="torch", device="cpu")


def test_a_published_classifier_is_measured_on_its_own_data(
    files: Path,
    tmp_path: Path,
    backend: Backend,
) -> None:
    """Its folder has capitals, or no names at all, where the set has names; a file has numbers."""
    rows = parquet(tmp_path, [n % 3 for n in range(30)])
    numbers = jsonl(tmp_path, [{"text": f"Anna likes {n}", "label": n % 3} for n in range(30)])
    common: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    for folder, names in (("named", tuple(name.upper() for name in MOODS)), ("bare", ())):
        classifier(files, tmp_path / folder, backend, names)
        one, other = (
            od.evaluate(model=tmp_path / folder, data=data, **common) for data in (rows, numbers)
        )
        assert (one["accuracy"], one["by_class"]) == (other["accuracy"], other["by_class"])
        assert one["read_as"] == dict(zip(MOODS, names or ("0", "1", "2"), strict=True))


def test_a_column_that_is_missing_is_said_with_those_that_are_there(tmp_path: Path) -> None:
    for columns, said in (
        ({"sentence": "a", "label": 1}, "'text' holds no text: the columns are sentence, label"),
        ({"text": "a", "mood": 1}, "'label' holds no class: the columns are text, mood"),
        ({"text": "", "label": 1}, "'text' holds no text$"),
    ):
        with pytest.raises(Exception, match=said):
            to_label(columns, "text", "label")


def test_a_reward_models_head_goes_on_and_a_classifiers_does_not(
    tmp_path: Path, backend: Backend
) -> None:
    data = small_stages.make(tmp_path, backend)
    how: dict[str, Any] = {
        "data": data / "pairs.jsonl",
        "steps": 1,
        "batch_size": 2,
        "device": "cpu",
        "backend": "torch",
        "eval_every": 0,
        "save_every": 0,
        "learning_rate": 1e-9,
    }
    first = od.reward(model=data / "policy", out=tmp_path / "a", **how)
    again = od.reward(model=first, out=tmp_path / "b", **how, seed=5)
    one, other = (
        backend.numpy(load_model(folder, backend).params["score.weight"])
        for folder in (first, again)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    (tmp_path / "c").mkdir()
    write(
        tmp_path / "c",
        backend,
        with_head(load_model(data / "policy", backend), backend, 0, 3, MOODS),
    )
    od.reward(model=tmp_path / "c", out=tmp_path / "d", **how)
    assert "a new head takes the place" in told(
        list(events(tmp_path / "d" / "reward" / "events.jsonl"))
    )


def test_a_run_folder_without_a_model_that_writes_gives_its_newest(
    files: Path,
    tmp_path: Path,
    backend: Backend,
) -> None:
    stage = tmp_path / "r" / "classify"
    stage.mkdir(parents=True)
    (stage / "done.json").write_text("{}")
    classifier(files, stage / "model", backend, MOODS)
    assert find_model(str(tmp_path / "r")) == stage / "model"
    data = jsonl(tmp_path, [{"text": f"Anna likes {n}", "label": MOODS[n % 3]} for n in range(6)])
    assert od.evaluate(model=tmp_path / "r", data=data, backend="torch", device="cpu")["texts"] == 6
    with pytest.raises(UserError, match="a classifier: it writes no text"):
        od.generate(model=tmp_path / "r", prompt="Anna", backend="torch", device="cpu")
