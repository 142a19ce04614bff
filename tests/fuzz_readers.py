"""Every reader of files that somebody else may have written, with samples to begin from; fuzz_cases.py
spoils them. tests/test_fuzzing.py tries each on a few cases, scripts/fuzz.py on as many as you like.
"""

from __future__ import annotations

import functools
import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

import small_stages
from data_samples import CHATS, small_tokenizer
from document_samples import document
from fuzz_cases import Reader
from ondevice.common import remembered
from ondevice.common.files import MANIFEST
from ondevice.common.json_files import load_json, parse_json, read_object
from ondevice.config.load import parse_yaml, read_yaml
from ondevice.config.ratings import RatingsConfig
from ondevice.config.recipe import load_recipe
from ondevice.data.chat_template import rendered
from ondevice.data.extraction import child
from ondevice.data.formats import to_chat, to_label, to_prompt, to_text
from ondevice.data.messages import BadRow
from ondevice.data.preference_formats import to_judged, to_pair
from ondevice.data.readers import READERS
from ondevice.data.rows import read as read_rows
from ondevice.data.tokenizer import Tokenizer
from ondevice.exports import mlx_adapter
from ondevice.hub.client import _remote_file
from ondevice.hub.pull import _refuse_code, origin
from ondevice.inference import conversations
from ondevice.inference.fixed_prompts import given_prompts
from ondevice.models import peft
from ondevice.models.generation_config import generation_settings
from ondevice.models.load import load_model
from ondevice.models.model_folder import weight_files
from ondevice.models.registry import load_config
from ondevice.models.tensor_files import read_tensors, shapes_in
from ondevice.planning import calibration
from ondevice.planning.model_facts import facts_of
from ondevice.preferences import repair
from ondevice.preferences.database import Ratings
from ondevice.preferences.import_export import import_file, manage
from ondevice.preferences.project import Project, project_of
from ondevice.preferences.review import Review
from ondevice.preferences.votes import Response
from ondevice.publishing import history
from ondevice.rating_rounds.places import RoundsFolder
from ondevice.rating_rounds.standing import standing
from ondevice.rewards import isolated
from ondevice.rewards.problems import to_problem
from ondevice.rewards.unit_tests import of_row
from ondevice.runs import checkpoint, events
from ondevice.runs.contents import planned_seconds
from ondevice.runs.dependents import needed_by
from ondevice.runs.folder import RunFolder
from ondevice.runs.labels import read_labels
from ondevice.runs.listing import list_runs
from ondevice.runs.order import recipe_stages
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice_tui.event_reader import Follower
from ondevice_tui.group_places import GroupPlaces
from ondevice_tui.problems import Problems
from ondevice_tui.rollout_groups import groups_at

_RATES = [field.name for field in fields(calibration.Rates)]
# ---------------------------------------------------------------- what the samples are of


@functools.cache
def _backend() -> Backend:
    return load_backend("torch", "cpu", "float32")


def _text(*samples: Any) -> Callable[[Path], list[bytes]]:
    """Samples that are there: texts, or values that become JSON."""
    return lambda folder: [
        (one if isinstance(one, str) else json.dumps(one)).encode() for one in samples
    ]


def _lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def _model(folder: Path) -> None:
    """A small model's folder."""
    made = folder.parent / "model"
    if not made.exists():
        small_stages.write(made, _backend(), small_stages.config())
    shutil.copytree(made, folder, dirs_exist_ok=True)


def _adapter(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names = {"a": "base_model.model.model.layers.0.self_attn.q_proj"}
    tensors = {}
    for name in names.values():
        tensors[f"{name}.lora_A.weight"] = torch.ones(2, 8)
        tensors[f"{name}.lora_B.weight"] = torch.ones(8, 2)
    save_file(tensors, folder / peft.WEIGHTS)
    (folder / peft.CONFIG).write_text(json.dumps(ADAPTER))


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base", "modules_to_save": None, "use_rslora": False, "bias": "none",
    "rank_pattern": {"q_proj": 2}, "alpha_pattern": {}, "revision": None, "fan_in_fan_out": False,
    "layers_to_transform": None,
}  # fmt: skip


def _mlx_adapter(folder: Path) -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save_file

    base = folder.parent / "base"
    small_stages.write(base, _backend(), small_stages.config())
    [outputs, inputs] = shapes_in(base / "model.safetensors")[f"{MATRIX}.weight"]
    halves = {"lora_a": np.ones((inputs, 2), "f4"), "lora_b": np.ones((2, outputs), "f4")}
    save_file(
        {f"{MATRIX}.{name}": value for name, value in halves.items()}, folder / mlx_adapter.WEIGHTS
    )
    config = {"fine_tune_type": "lora", "model": str(base), "lora_parameters": {"scale": 2.0}}
    return [json.dumps(config).encode()]


MATRIX = "model.layers.0.self_attn.q_proj"


def _of(name: str) -> Callable[[Path], list[bytes]]:
    """What the folder has under this name."""
    return lambda folder: [(folder / name).read_bytes()]


def _configs(folder: Path) -> list[bytes]:
    import models

    found: list[Any] = [json.loads((folder / "config.json").read_bytes())]
    for family in (*models.FAMILIES, *models.ENCODERS, *models.SEQ2SEQ):
        for table in (models.FAMILIES, models.ENCODERS, models.SEQ2SEQ):
            if family in table:
                found.append({**found[0], **table[family]})
    return [json.dumps(one).encode() for one in found]


CONVERSATION = _lines({"messages": CHATS[1], "stage": "sft", "system": "Be brief."})
ROWS = [
    {"messages": CHATS[0]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "", "output": "b"},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
    {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": CHATS[0][1:],
        "rejected": CHATS[0][1:],
    },
    {"question": "a", "answer": "so #### 42"},
    {"text": "plain text", "label": 3},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "5", "name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
]
EVENTS = _lines(
    {"event": "start", "t": 1.5, "stage": "grpo", "steps": 9, "backend": "torch"},
    {"event": "data", "rewards": {"correct": 1.0}, "problems": 3},
    {"event": "step", "step": 1, "loss": 2.5, "lr": 0.1, "t": 2.5, "groups": 0, "tokens": 55},
    {"event": "eval", "step": 1, "loss": 2.25, "accuracy": 0.5, "groups": 120, "samples": 3},
    {"event": "resume", "step": 1, "t": 3},
    {"event": "step", "step": 2, "loss": 2.0, "t": 4.5},
    {"event": "warning", "message": "odd"},
    {"event": "done", "t": 9, "step": 2, "loss": 2.0},
)
GROUPS = _lines(
    {
        "step": 1,
        "groups": [
            {
                "prompt": "q",
                "answer": "4",
                "completions": [
                    {
                        "text": "so 4",
                        "tokens": 3,
                        "truncated": False,
                        "rewards": {"correct": 1.0, "code": 0.5},
                        "reward": 1.0,
                        "advantage": 0.7,
                        "parsed": "4",
                        "span": [3, 4],
                        "tests": {"passed": 1, "of": 2, "why": "x"},
                    }
                ],
            }
        ],
    }
)
RECIPE = """name: small
seed: 3
backend: auto
corpus: {people: 9, documents: {stories: 7, sums: 3}}
stages:
  init: {hidden_size: 32, num_hidden_layers: 2}
  pretrain: {steps: 5, learning_rate: 1e-3, sequence_length: 64}
  sft: &sft
    steps: 3
    data: builtin
  grpo:
    <<: *sft
    rewards: [correct, format]
"""
VOTE = {"prompt": "a", "responses": ["b", "c", "d"], "votes": ["a", "tie", "bad"]}
TESTS = [
    {"tests": ["assert f(1) == 2", "assert sorted(f([1, 'a'], k=2))[0] in {3: (4,)}"]},
    {"input_output": json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [[2]]})},
    {"test": "def check(c):\n    assert c(1) == 2\n", "entry_point": "f"},
    {"public_tests": {"input": ["1"], "output": ["2"]}},
]


def _rows_of(file: Path) -> None:
    for _ in READERS[file.suffix](file):
        pass


_FORMS: tuple[Callable[[Any], Any], ...] = (
    to_text,
    to_chat,
    to_prompt,
    to_pair,
    to_judged,
    lambda row: to_label(row, "text", "label"),
    lambda row: to_problem(row, "kind"),
)


def _forms_of(file: Path) -> None:
    """Rows in every form that there is."""
    for convert in _FORMS:
        rows = read_rows(str(file))
        rows.strict = False
        for row, where in rows:
            try:
                convert(row)
            except BadRow as error:
                rows.reject(where, str(error), row)


def _packed(samples: Callable[[Path], list[bytes]]) -> Callable[[Path], list[bytes]]:
    return lambda folder: [gzip.compress(one, mtime=0) for one in samples(folder)]


def _packed_rows(file: Path) -> None:
    for _ in read_rows(str(file)):
        pass


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    found = []
    for compression in ("none", "snappy", "zstd"):
        table = pa.table({"text": ["a", "b", None] * 40, "n": list(range(120)), "l": [[1]] * 120})
        parquet.write_table(table, folder / "made", compression=compression, row_group_size=50)
        found.append((folder / "made").read_bytes())
    (folder / "made").unlink()
    return found


def _load_tokenizer(file: Path) -> None:
    tokenizer = Tokenizer.load(file.parent)
    ids = tokenizer.encode("Anna lives in Rome 🙂")
    tokenizer.decode(ids)
    if tokenizer.chat_template is not None:
        with suppress(BadRow):  # of this chat: the template says no to it
            rendered(tokenizer, CHATS[1])


def _tokenizer(folder: Path) -> None:
    made = folder.parent / "tokenizer"
    if not made.exists():
        small_tokenizer().save(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)


def _gpt2(folder: Path) -> None:
    """A tokenizer in its older form."""
    inner = json.loads(small_tokenizer().inner.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(inner["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in inner["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )


def _templates(folder: Path) -> list[bytes]:
    more = (
        "{% for m in messages %}{{ m['role'] + ': ' + m.content|trim }}"
        "{% if not loop.last %}\n{% endif %}{% endfor %}"
    )
    return [(small_tokenizer().chat_template or "").encode(), more.encode()]


def _run(folder: Path) -> None:
    stage = folder / "run" / "grpo"
    (stage / "model").mkdir(parents=True)
    (stage / "events.jsonl").write_text(EVENTS)
    (stage / "groups.jsonl").write_text(GROUPS)
    (stage / "done.json").write_text(json.dumps({"loss": 2.0, "step": 2, "seconds": 4.5}))
    (folder / "run" / "recipe.yaml").write_text(RECIPE)


def _list(file: Path) -> None:
    run = file.parent
    while run.name != "run":
        run = run.parent
    list_runs(run.parent)
    needed_by(RunFolder(run), run.parent / "other")


def _needed(file: Path) -> None:
    run = file.parent.parent.parent
    needed_by(RunFolder(run), run.parent / "other")


def _events(file: Path) -> None:
    list(events.read(file))
    list(events.read(file, tail=200))
    events.first_event(file)
    with suppress(ValueError):  # as it says
        events.read_at(file, 0)
    Follower(file).read()


def _ratings(folder: Path) -> list[bytes]:
    file = folder / "made.db"
    with Ratings.open(file, create=True) as ratings, ratings.transaction():
        for n in range(12):
            two = [Response("a" * 30, "x"), Response("b" * 30, "y")]
            item = ratings.add("one", f"Question {n}?", two, seed=0)
            ratings.vote(item, "ann", "s", ranking=[n % 2], note="n")
    data = file.read_bytes()
    for one in folder.glob("made.db*"):
        one.unlink()
    return [data]


def _votes(folder: Path) -> list[bytes]:
    """Pairs, and votes as we export them."""
    file = folder / "made.db"
    file.write_bytes(_ratings(folder)[0])
    out = folder / "made.jsonl"
    manage(RatingsConfig(action="export", ratings=str(file), file=str(out), form="votes"))
    whole = out.read_bytes()
    for one in folder.glob("made*"):
        one.unlink()
    one_vote = whole.splitlines(keepends=True)[0]
    return [one_vote, whole, _lines(VOTE).encode(), _lines(ROWS[4]).encode()]


def _repair(file: Path) -> None:
    """With fewer numbers tried where rows cannot be read: all tries go the same way, and ten thousand
    are a third of a second."""
    for one in file.parent.glob(f"{file.name}?*"):
        one.unlink()
    repair.find_damage(file)
    with patch.multiple(repair, _MISSES=30, _GAP=300):
        repair.repair_if_damaged(file)
    with Ratings.open(file) as ratings:
        for _ in ratings.items():
            pass
        for _ in ratings.votes():
            pass


def _import(file: Path) -> None:
    for one in file.parent.glob("ratings.db*"):
        one.unlink()
    import_file(
        RatingsConfig(action="import", ratings=str(file.parent / "ratings.db"), file=str(file))
    )


CALIBRATION = {
    "format": calibration.FORMAT,
    "key": {"a": "b"},
    "device": "cpu",
    "dtype": "float32",
    "device_memory": 5,
    "process": 5,
    "speeds": {
        "products": [[64, 1e9], [128, 2e9]],
        "bytes_per_second": 1e9,
        "tokenizer": 1e6,
        "learning": dict.fromkeys(_RATES, 1.0),
        "reading": dict.fromkeys(_RATES, 1.0),
        "writing": dict.fromkeys(_RATES, 1.0),
    },
}


def _calibration(file: Path) -> None:
    """What was measured of this machine: not believed, and measured anew, where it says an error."""
    with suppress(ValueError, TypeError, LookupError):
        calibration.parse(load_json(file), {"a": "b"})


def _history(file: Path) -> None:
    """What a model's card says of a run."""
    run = RunFolder(file.parent.parent)
    for past in history.history(run, "grpo"):
        history.data_read(past)
        history.commits(past)
        history.notes(past)
        history.raters(past)
        history.made_with(past)


def _hub_entry(file: Path) -> None:
    """What a Hub's tree says of a file; its errors are caught where the client is asked."""
    try:
        given = json.loads(file.read_bytes())
    except ValueError:
        return  # the client's own parser, which reads it, says so
    if not isinstance(given, dict):
        return
    lfs = given.get("lfs")
    entry = SimpleNamespace(
        path=given.get("path"),
        size=given.get("size"),
        blob_id=given.get("blob_id"),
        lfs=SimpleNamespace(sha256=lfs.get("sha256")) if isinstance(lfs, dict) else lfs,
    )
    with suppress(TypeError, ValueError, AttributeError):
        _remote_file(entry)


def _hub_folder(file: Path) -> None:
    origin(file.parent)
    _refuse_code(file.parent, file.name)


def _unit_tests(file: Path) -> None:
    for row, _ in READERS[".jsonl"](file):
        if isinstance(row, Mapping):
            try:
                tests = of_row(row, "import os")
            except BadRow:
                continue
            for test in tests.tests if tests else ():
                if hasattr(test, "under_test"):
                    test.holds(lambda name, arguments, keywords: [name, (1, "a"), {2: None}])


def _encoded(file: Path) -> None:
    """What code in the isolator answers."""
    with suppress(ValueError):
        isolated.decode(parse_json(file.read_bytes()))


def _checkpoint(file: Path) -> None:
    checkpoint.find_damage(file.parent)
    checkpoint.record_of(file.parent)


def _yaml_field(file: Path) -> None:
    parse_yaml(file.read_text(encoding="utf-8", errors="replace"), file.name)


PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c", "raters": ["ann"]}\n'
ASKED = (
    '{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."}], '
    '"asked_of": "Anna.", "source": "a.pdf"}\n'
)


def _reviewed(file: Path) -> Any:
    with Review(file.parent / "chats.jsonl") as rows:
        return rows.counts, rows.next()


def _documents_of(kind: str) -> Callable[[Path], list[bytes]]:
    return lambda _: [document(kind, "Title", ["One line.", "Another, with é."] * 9)]


def _document_of(file: Path) -> Any:
    """As its own process reads it, which gives a reason for what it cannot read; in this one."""
    pytest.importorskip("docx", reason="needs the extra documents")
    told = child.answer({"file": str(file), "kind": file.suffix, "out": str(file) + ".text"})
    assert told.get("reason") or told["characters"] > 0
    return told


def _rounds(folder: Path) -> None:
    _run(folder)
    version = folder / "run" / "rounds" / "v001"
    (version / "dpo" / "model").mkdir(parents=True)
    (version / "votes.jsonl").write_text(PAIR)
    for file in (version / "dpo" / "done.json", version / "failed.json"):
        file.write_text(json.dumps({"why": "died", "marks": {"exact": 0.5}}))
    Ratings.open(folder / "run", create=True).close()


def _standing(file: Path) -> Any:
    """As `ondevice rounds RUN --show` says it."""
    folder = RoundsFolder(next(one for one in file.parents if one.name == "run"))
    if folder.settings.is_file():
        folder.kept_settings()
    with Ratings.open(folder.run.path) as ratings:
        return standing(folder, ratings), folder.versions()[0].why_failed()


def _problems(file: Path) -> Any:
    found = Problems(file)
    while found.read_on():
        pass
    return [found.strip(one, 9) for one in found.listed("gain")]


def _places(file: Path) -> Any:
    places = GroupPlaces(2)
    for step, offset in enumerate(range(0, len(GROUPS), 40)):
        places.add(step, offset)
    return places.until(file, 2), places.after(file, 2)


def _project(file: Path) -> Any:
    text = file.read_text(encoding="utf-8", errors="replace")
    return project_of({field.name: text for field in fields(Project)})


READERS_OF: Mapping[str, Reader] = {
    "JSON": Reader("a.json", _text({"a": [1, {"b": "c"}]}, ADAPTER), read_object),
    "YAML": Reader("a.yaml", _text(RECIPE, "a: [1, {b: c}]\n'd': 2026-01-01\n"), read_yaml),
    "YAML of a form": Reader("a", _text(RECIPE, "{steps: 3}"), _yaml_field),
    "recipe": Reader("a.yaml", _text(RECIPE), lambda file: load_recipe(str(file))),
    "config.json": Reader("config.json", _configs, lambda file: load_config(file.parent), _model),
    "generation_config.json": Reader(
        "generation_config.json",
        _text({"temperature": 0.5, "top_k": 3, "eos_token_id": [1, 2], "max_new_tokens": 9}),
        lambda file: generation_settings(file.parent),
    ),
    "index of weights": Reader(
        "model.safetensors.index.json",
        _text({"metadata": {"total_size": 5}, "weight_map": {"a": "model.safetensors"}}),
        lambda file: weight_files(file.parent),
        _model,
    ),
    "safetensors": Reader("model.safetensors", _of("model.safetensors"), shapes_in, _model),
    "tensors": Reader(
        "model.safetensors",
        _of("model.safetensors"),
        lambda file: read_tensors(file, _backend()),
        _model,
        slow=True,
    ),
    "model": Reader(
        "config.json",
        _of("config.json"),
        lambda file: load_model(file.parent, _backend()),
        _model,
        slow=True,
    ),
    "adapter_config.json": Reader(
        peft.CONFIG, _of(peft.CONFIG), lambda file: peft.read(file.parent, _backend()), _adapter
    ),
    "adapter's weights": Reader(
        peft.WEIGHTS, _of(peft.WEIGHTS), lambda file: peft.read(file.parent, _backend()), _adapter
    ),
    "adapter of mlx-lm": Reader(
        mlx_adapter.CONFIG,
        _mlx_adapter,
        lambda file: mlx_adapter.read(file.parent, _backend()),
        names=False,  # or the base that it names
        slow=True,
    ),
    "tokenizer.json": Reader(
        "tokenizer.json", _of("tokenizer.json"), _load_tokenizer, _tokenizer, slow=True
    ),
    "tokenizer_config.json": Reader(
        "tokenizer_config.json",
        _of("tokenizer_config.json"),
        _load_tokenizer,
        _tokenizer,
        slow=True,
    ),
    "special_tokens_map.json": Reader(
        "special_tokens_map.json",
        _text(
            {"bos_token": "<|im_start|>", "additional_special_tokens": ["<a>", {"content": "b"}]}
        ),
        _load_tokenizer,
        _tokenizer,
        slow=True,
    ),
    "added_tokens.json": Reader(
        "added_tokens.json", _text({"<a>": 381, "<b>": 382}), _load_tokenizer, _tokenizer, slow=True
    ),
    "vocab.json": Reader("vocab.json", _of("vocab.json"), _load_tokenizer, _gpt2, slow=True),
    "merges.txt": Reader("merges.txt", _of("merges.txt"), _load_tokenizer, _gpt2, slow=True),
    "chat template": Reader(
        "chat_template.jinja", _templates, _load_tokenizer, _tokenizer, slow=True
    ),
    "rows .jsonl": Reader("a.jsonl", _text(_lines(*ROWS)), _rows_of),
    "rows .jsonl.gz": Reader("a.jsonl.gz", _packed(_text(_lines(*ROWS))), _packed_rows),
    "rows .json": Reader("a.json", _text(ROWS, {"data": ROWS}), _rows_of),
    "rows .csv": Reader("a.csv", _text('a,b\n1,"x\ny"\n2,z\n', "text,label\na,1\n"), _rows_of),
    "rows .txt": Reader("a.txt", _text("One line.\n\nAnother 🙂.\n" * 9), _rows_of),
    **{
        f"document {kind}": Reader(f"a{kind}", _documents_of(kind), _document_of, slow=True)
        for kind in (".pdf", ".docx", ".html", ".epub", ".ipynb")
    },
    "rows to review": Reader("chats.jsonl", _text(ASKED), _reviewed),
    "verdicts": Reader(
        "chats.review.jsonl",
        _text('{"row": "a", "verdict": "keep"}\n{"row": "a", "verdict": ""}\n'),
        _reviewed,
        lambda folder: (folder / "chats.jsonl").write_text(ASKED) and None,
    ),
    "rows .parquet": Reader("a.parquet", _parquet, _rows_of, slow=True),
    "forms of rows": Reader("a.jsonl", _text(_lines(*ROWS)), _forms_of),
    "unit tests": Reader("a.jsonl", _text(*(_lines(one) for one in TESTS)), _unit_tests),
    "isolated values": Reader(
        "a",
        _text([{"tuple": [1, {"set": [2]}]}, {"dict": [["a", {"float": "nan"}]]}, {"bytes": "00"}]),
        _encoded,
    ),
    "labels.json": Reader(
        "labels.json",
        _text({"note": "a note", "tags": ["good", "kept"]}),
        lambda file: read_labels(file.parent),
    ),
    "events": Reader("events.jsonl", _text(EVENTS), _events, names=False),
    "groups": Reader(
        "groups.jsonl", _text(GROUPS), lambda file: groups_at(file, 1, 0), names=False
    ),
    "problems": Reader("groups.jsonl", _text(GROUPS), _problems, names=False),
    "places of groups": Reader("groups.jsonl", _text(GROUPS), _places, names=False),
    "prompts of a stage": Reader(
        "prompts.txt", _text("One?\nTwo?\n"), lambda file: given_prompts(str(file))
    ),
    "project": Reader("a.json", _text(["wrong", "too long"], "3", "true", '"text"'), _project),
    "rounds: settings": Reader(
        "run/rounds/settings.json",
        _text({"run": "runs/a", "every": 30, "method": "dpo", "prompts": ["a"]}, {"every": 9}),
        _standing,
        _rounds,
    ),
    **{
        f"rounds: {name}": Reader(f"run/rounds/{name}", _text(*samples), _standing, _rounds, False)
        for name, samples in {
            "start.json": ({"exact": 0.5, "questions": 90, "skills": {"sum": [3, 9]}},),
            "v001/votes.jsonl": (PAIR,),
            "v001/failed.json": ({"why": "died"},),
            "v001/dpo/done.json": ({"loss": 2.0, "marks": {"exact": 0.5, "questions": 90}},),
        }.items()
    },
    "run: events": Reader("run/grpo/events.jsonl", _text(EVENTS), _list, _run, names=False),
    "run: done.json": Reader("run/grpo/done.json", _of("run/grpo/done.json"), _list, _run, False),
    "run: recipe": Reader(
        "run/recipe.yaml",
        _text(RECIPE),
        lambda file: (recipe_stages(file), _list(file)),
        _run,
        names=False,
    ),
    "run: plan": Reader(
        "plan.json",
        _text({"seconds": {"sft": 3.5, "grpo": 60}}),
        lambda file: planned_seconds(RunFolder(file.parent)),
        names=False,
    ),
    "adapter that another run needs": Reader(
        f"run/grpo/model/{peft.CONFIG}",
        _text(ADAPTER),
        _needed,
        _run,
        names=False,
    ),
    "checkpoint": Reader(
        MANIFEST,
        _text({"format": 1, "files": {"a": {"size": 3, "sha256": "0" * 64}}}),
        _checkpoint,
        names=False,
    ),
    "conversation": Reader("a.jsonl", _text(CONVERSATION), conversations.load),
    "ratings": Reader("a.jsonl", _votes, _import, slow=True),
    "ratings.db": Reader("ratings.db", _ratings, _repair, slow=True),
    "facts of a model": Reader(
        "config.json", _of("config.json"), lambda file: facts_of(file.parent), _model, slow=True
    ),
    "history of a run": Reader(
        "run/grpo/events.jsonl", _text(EVENTS), _history, _run, names=False, slow=True
    ),
    "settings of a run": Reader(
        "run/grpo/settings.json",
        _text({"settings": {"data": "a.jsonl:2,gym:x", "steps": 3}, "commits": {"a": "b"}}),
        _history,
        _run,
        names=False,
        slow=True,
    ),
    "calibration": Reader("a.json", _text(CALIBRATION), _calibration, names=False),
    "remembered": Reader(
        "a.json", _text({"theme": "dark", "size": [1, 2]}), remembered._read, names=False
    ),
    "Hub: a file": Reader(
        "entry.json",
        _text({"path": "a.json", "size": 3, "blob_id": "0" * 40, "lfs": {"sha256": "0" * 64}}),
        _hub_entry,
        names=False,
    ),
    "Hub: a folder": Reader(
        "tokenizer_config.json", _text({"auto_map": {}, "a": [1]}), _hub_folder, _tokenizer
    ),
}
