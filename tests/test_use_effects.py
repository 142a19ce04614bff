"""Settings without effect, of the commands that use, measure, rate and share: each field is read in
every case in which it is taken, or is refused by name there."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import ondevice as od
import small_stages
from hub_models import write_model, write_ratings
from hub_server import HubServer
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.config import benchmark, data, evaluation, hub, ratings, runs, use
from ondevice.config.command_line import Line
from ondevice.config.effects import effects, idle
from ondevice.config.load import from_mapping
from ondevice.inference import chat, worker
from ondevice.preferences import terminal
from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice.seam.select import load_backend

CONFIGS: dict[str, type] = {
    name: cls
    for module in (use, runs, evaluation, data, ratings, benchmark, hub)
    for name, cls in vars(module).items()
    if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
}
NEEDED: dict[str, dict[str, Any]] = {
    "CompareConfig": {"model": "m", "other": "o", "prompts": "p.jsonl"},
    "DataConfig": {"action": "show", "data": "d", "model": "m"},
    "RunsConfig": {},
    "RateConfig": {"ratings": "r"},
    "RatingsConfig": {"action": "export", "ratings": "r"},
    "PushConfig": {"model": "m", "repo_id": "a/b"},
    "ExportConfig": {"model": "m", "to": "gguf"},
}
BEAMS, PROBLEMS, WIN = {"beams": 4}, {"tasks": ["problems"]}, {"tasks": ["win"]}
GREEDY, STATS, REPAIR = {"temperature": 0.0}, {"action": "stats"}, {"action": "repair"}
PROJECT = {"action": "project"}
IMPORT, OWN = {"action": "import", "file": "f"}, {"data": "own.jsonl"}
HERE: dict[str, Any] = {}
# Field → (a value that is not its default, settings beside which it has none, settings beside which
# it has an effect).
DRAWN = {"top_k": (5, GREEDY, HERE), "top_p": (0.5, GREEDY, HERE), "seed": (3, GREEDY, HERE)}
ROWS = {"columns": (["a=b"], {}, OWN), "bad_share": (0.5, {}, OWN)}
TABLE: dict[str, dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]] = {
    "GenerateConfig": {
        **DRAWN,
        "samples": (2, GREEDY, BEAMS),
        "temperature": (0.5, BEAMS, HERE),
        "length_penalty": (1.5, HERE, BEAMS),
        "chat_template_kwargs": ('{"a": 1}', HERE, {"chat": True}),
    },
    "ChatConfig": DRAWN,
    "CompareConfig": {
        **{name: (value, HERE, {"temperature": 1.0}) for name, (value, _, _) in DRAWN.items()},
        **{name: (value, {"prompts": "builtin"}, HERE) for name, (value, _, _) in ROWS.items()},
    },
    "EvalConfig": {
        **ROWS,
        "text": ("t", PROBLEMS, HERE),
        "pair": ("t", WIN, {"tasks": ["classes"]}),
        "label": ("t", {"tasks": ["text"]}, HERE),
        "answer": ("any", HERE, PROBLEMS),
        "shots": (2, WIN, PROBLEMS),
        "tries": (2, HERE, PROBLEMS),
        "system": ("Be kind.", HERE, PROBLEMS),
        "max_new_tokens": (9, {"tasks": ["preference"]}, WIN),
        "reference": ("m", WIN, {"tasks": ["preference"]}),
        "against": ("m", PROBLEMS, WIN),
        "judge": ("m", HERE, WIN),
        "seed": (3, PROBLEMS, {**PROBLEMS, "tries": 2}),
        "chat_template_kwargs": ('{"a": 1}', {"tasks": ["text"]}, PROBLEMS),
    },
    "DataConfig": {
        **{name: (value, {"data": "builtin"}, HERE) for name, (value, _, _) in ROWS.items()},
        "text": ("t", {"form": "chat"}, HERE),
        "pair": ("t", {"form": "text"}, {"form": "label"}),
        "label": ("t", {"form": "prompt"}, HERE),
        "sequence_length": (9, {"form": "prompt"}, HERE),
        "chat_template": ("chatml", {"form": "text"}, {"form": "chat"}),
        "separator": ("x", {"form": "chat"}, HERE),
        "chat_template_kwargs": ('{"a": 1}', {"form": "label"}, HERE),
    },
    "RunsConfig": {
        "run": ("r", HERE, {"action": "report"}),
        "also": (["s"], {"action": "restore", "run": "r"}, {"action": "rm", "run": "r"}),
        "anyway": (True, HERE, {"action": "rm", "run": "r"}),
        "yes": (True, HERE, {"action": "empty-trash"}),
        "search": ("s", {"action": "report", "run": "r"}, HERE),
        "state": ("done", {"action": "report", "run": "r"}, HERE),
        "sort": ("exact", {"action": "report", "run": "r"}, HERE),
        "reverse": (True, HERE, {"sort": "exact"}),
        "table": (True, {"action": "report", "run": "r"}, HERE),
        "clear": (True, HERE, {"action": "note", "run": "r"}),
        "everything": (True, HERE, {"action": "diff", "run": "r", "also": ["s"]}),
        "to": ("parquet", HERE, {"action": "export", "run": "r"}),
        "out": ("f", HERE, {"action": "export", "run": "r"}),
    },
    "RateConfig": {
        "seed": (3, {"repeat_share": 0.0}, HERE),
        "source": ("s", {"settle": True}, HERE),
        "kind": ("k", {"settle": True}, HERE),
        "longest": (3, {"settle": True}, HERE),
    },
    "RatingsConfig": {
        "file": ("f", STATS, HERE),
        "form": ("kto", STATS, HERE),
        "batch": ("b", REPAIR, STATS),
        "raters": (["ann"], {**IMPORT, "gold": True}, IMPORT),
        "gold": (True, HERE, IMPORT),
        "simulated": (False, IMPORT, STATS),
        "with_raters": (True, {"form": "votes"}, HERE),
        "reasons": (["rude"], HERE, PROJECT),
        "rubric": (["tone"], HERE, PROJECT),
        "overlap": (2, HERE, PROJECT),
        "feedback": ("yes", HERE, PROJECT),
        "reveal": ("yes", HERE, PROJECT),
        "seed": (3, HERE, STATS),
    },
    "PushConfig": {"lines": (True, {"dry_run": True}, HERE)},
    "ExportConfig": {
        "bits": (8, HERE, {"to": "mlx"}),
        "group_size": (32, {"to": "hf"}, {"to": "mlx"}),
        "data": ("x", {"to": "peft"}, HERE),
    },
}
# Bases, which no command takes as they are. The worker's requests and the app's chat take
# SamplingConfig: settings that stand there all the time, of which some wait for others.
BASES = ("UseConfig", "SamplingConfig", "TextConfig")
CASES = [
    (name, field) for name, cls in CONFIGS.items() if name not in BASES for field in effects(cls)
]


@pytest.mark.parametrize(("name", "field"), CASES, ids=["-".join(case) for case in CASES])
def test_what_has_no_effect_is_refused_by_name(name: str, field: str) -> None:
    cls, needed = CONFIGS[name], NEEDED.get(name, {"model": "m"})
    value, without, beside = TABLE[name][field]
    with pytest.raises(UserError) as refused:
        from_mapping(cls, {**needed, **without, field: value})
    assert refused.value.where == field and "has no effect" in refused.value.message
    kept = getattr(from_mapping(cls, {**needed, **beside, field: value}), field)
    assert kept == (tuple(value) if isinstance(value, list) else value)
    assert list(idle(from_mapping(cls, {**needed, **without}))) == []  # a default is nobody's wish
    assert list(idle(from_mapping(cls, {**needed, **without, field: getattr(cls, field)}))) == []


def test_a_model_asked_for_again_and_again_keeps_its_settings() -> None:
    kept = from_mapping(
        use.SamplingConfig, {"model": "m", "temperature": 0, "top_p": 0.5, "seed": 3}
    )
    assert (kept.top_p, kept.seed) == (0.5, 3)


def test_refused_from_every_door(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "m", "--tries", "4"]) == 2
    assert (
        "--tries: has no effect: it is about problems (give --tasks problems too"
        in capsys.readouterr().err
    )
    assert cli.main(["generate", "m", "Anna", "--temperature", "0", "--top-p", "0.5"]) == 2
    assert "--top-p: has no effect: nothing is drawn" in capsys.readouterr().err
    with pytest.raises(UserError, match="top_k: has no effect"):
        od.generate(model="m", prompt="Anna", temperature=0, top_k=3)
    with pytest.raises(UserError, match="gold: has no effect: it is for import"):
        od.manage_ratings(
            cfg=ratings.RatingsConfig(action="export", ratings="r", gold=True, raters=("ann",))
        )


@pytest.mark.parametrize(
    ("function", "values", "said"),
    [
        (
            od.evaluate,
            {"model": "policy", "data": "text.txt", "pair": "b"},
            "pair: has no effect: it is for a classifier",
        ),
        (
            od.evaluate,
            {"model": "policy", "data": "text.txt", "chat_template_kwargs": '{"a": 1}'},
            "chat_template_kwargs: has no effect",
        ),
        (
            od.evaluate,
            {"model": "classifier", "data": "classes.jsonl", "chat_template_kwargs": '{"a": 1}'},
            "chat_template_kwargs: has no effect",
        ),
        (
            od.evaluate,
            {"model": "encoder", "data": "chats.jsonl", "chat_template_kwargs": '{"a": 1}'},
            "chat_template_kwargs: has no effect",
        ),
        (od.export, {"model": "classifier", "to": "hf", "data": "text.txt"}, "data: has no effect"),
        (
            od.show_data,
            {"model": "policy", "data": "chats.jsonl", "separator": "x"},
            "separator: has no effect on rows that are read as chat",
        ),
        (
            od.show_data,
            {"model": "policy", "data": "asked.jsonl", "sequence_length": 9},
            "sequence_length: has no effect on rows that are read as prompt",
        ),
        (
            od.show_data,
            {"model": "policy", "data": "text.txt", "sequence_length": 9},
            "sequence_length: has no effect on text",
        ),
        (
            od.show_data,
            {"model": "policy", "data": "text.txt", "chat_template": "chatml"},
            "chat_template: has no effect on rows that are read as text",
        ),
    ],
)
def test_refused_once_the_model_or_the_rows_are_known(
    function: Callable[..., Any],
    values: dict[str, Any],
    said: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(files)
    # as if the template read each name: one that it does not read is refused before
    monkeypatch.setattr("ondevice.evaluation.evaluate.with_kwargs", lambda model, kwargs: model)
    more = {"out": str(tmp_path / "out")} if function is od.export else {}
    with pytest.raises(UserError, match=said):
        function(**values, **more, **({} if function is od.show_data else {"backend": "torch"}))


FUNCTIONS = [
    name
    for name in dir(od)
    if not name.startswith("_")
    and inspect.isfunction(getattr(od, name))
    and "cfg" in inspect.signature(getattr(od, name)).parameters
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fields_beside_a_whole_config_are_refused_by_name(name: str) -> None:
    function = getattr(od, name)
    with pytest.raises(UserError, match="zzz: has no effect: cfg says all settings"):
        function(cfg=object(), zzz=1)
    for given, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            with pytest.raises(UserError, match=f"{given}: has no effect: cfg says all settings"):
                function(cfg=object(), **{given: "another"})
    with pytest.raises(UserError, match="cfg: is a object, not a "):
        function(cfg=object())


# ---- what a command reads -------------------------------------------------------------------------------------------

CHECKS = ("effects.py", "load.py")
_CHECKING = (
    "check",
    "check_rows",
    "_between",
    "<lambda>",
    "<genexpr>",
    "holds",
    "_of_classes",
    "_draws_problems",
)


def recording(cls: type, read: set[str], **values: Any) -> Any:
    """A config that writes down which of its fields are read, but by its checks and by copies."""
    names = {f.name for f in dataclasses.fields(cls)}

    def get(self: Any, name: str) -> Any:
        if name in names:
            code = sys._getframe(1).f_code
            checking = "/ondevice/config/" in code.co_filename and (
                code.co_name in _CHECKING or code.co_filename.endswith(CHECKS)
            )
            if not checking and "dataclasses" not in code.co_filename:
                read.add(name)
        return object.__getattribute__(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": get})(
        **from_mapping(cls, values).__dict__
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = load_backend("torch", "cpu", "float32")
    made = small_stages.make(tmp_path_factory.mktemp("use"), backend)
    small_stages.write(
        made / "classifier", backend, dataclasses.replace(small_stages.config(), num_labels=2)
    )
    (made / "classes.jsonl").write_text(
        '{"text": "Anna", "label": "LABEL_0"}\n{"text": "Ben", "label": "LABEL_1"}\n'
    )
    (made / "text.txt").write_text(
        "\n\n".join(f"Anna has {n} red pears in Rome." for n in range(60))
    )
    (made / "asked.jsonl").write_text('{"prompt": "Anna"}\n')
    od.init(
        str(made / "text.txt"),
        out=made / "encoder",
        family="modernbert",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=small_stages.CONTEXT,
        backend="torch",
        device="cpu",
    )
    with Ratings.open(made / "r.db", create=True) as ratings:
        for n in range(3):
            ratings.vote(
                ratings.add("b", f"{n}?", [Response("one"), Response("two")], seed=n),
                "ann",
                "s",
                ranking=[0],
            )
        ratings.add("b", "3?", [Response("one"), Response("two")], seed=3)
    return made


def _talk(cfg: Any) -> None:
    said = iter(["Anna 12", ""])
    chat.chat(cfg, lambda _: next(said))


def _rate(cfg: Any) -> None:
    with Ratings.open(cfg.ratings) as ratings:
        keys: Any = SimpleNamespace(interactive=False)
        session = terminal.Session(ratings, keys, cfg, terminal.own_keys(cfg.keys))
        item = session._next()
        assert item is not None
        session._vote(item, "a", 1)


OTHER = {"stage": "sft"}  # refused by a check of its own
CPU: dict[str, Any] = {"backend": "torch", "device": "cpu"}
GENERATE: dict[str, Any] = {"model": "policy", "prompt": "Anna", "max_new_tokens": 4, **CPU}
EVAL: dict[str, Any] = {"model": "policy", "data": "prompts.jsonl", "limit": 4, **CPU}
SOLVE: dict[str, Any] = {**EVAL, "tasks": ["problems"], "max_new_tokens": 4, "answer": "whole"}
DATA: dict[str, Any] = {"action": "show", "model": "policy"}
READ: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("GenerateConfig", od.generate, GENERATE),
    ("GenerateConfig", od.generate, {**GENERATE, "chat": True}),
    ("GenerateConfig", od.generate, {**GENERATE, "temperature": 0}),
    ("GenerateConfig", od.generate, {**GENERATE, "beams": 2}),
    ("ChatConfig", _talk, {"model": "policy", "max_new_tokens": 4, **CPU}),
    (
        "CompareConfig",
        od.compare,
        {
            "model": "policy",
            "other": "policy",
            "prompts": "prompts.jsonl",
            "limit": 2,
            "temperature": 1,
            "max_new_tokens": 4,
            **CPU,
        },
    ),
    ("EvalConfig", od.evaluate, SOLVE),
    ("EvalConfig", od.evaluate, {**SOLVE, "tries": 2}),
    ("EvalConfig", od.evaluate, {**EVAL, "data": "pairs.jsonl", "tasks": ["preference"]}),
    (
        "EvalConfig",
        od.evaluate,
        {**EVAL, "tasks": ["win"], "against": "policy", "judge": "judge", "max_new_tokens": 4},
    ),
    ("EvalConfig", od.evaluate, {**EVAL, "data": "text.txt", "tasks": ["text"]}),
    (
        "EvalConfig",
        od.evaluate,
        {**EVAL, "model": "classifier", "data": "classes.jsonl", "tasks": ["classes"]},
    ),
    ("LabelConfig", od.label, {"model": "classifier", "text": "Anna", **CPU}),
    ("FillConfig", od.fill, {"model": "encoder", "text": "Anna [MASK]", **CPU}),
    *(
        ("DataConfig", od.show_data, {**DATA, "data": f"{name}.jsonl", "form": form})
        for name, form in (
            ("chats", "chat"),
            ("pairs", "preference"),
            ("prompts", "prompt"),
            ("classes", "label"),
        )
    ),
    ("DataConfig", od.show_data, {**DATA, "data": "text.txt", "form": "text"}),
    *(
        ("RatingsConfig", od.manage_ratings, {"ratings": "r.db", **more})
        for more in (
            STATS,
            REPAIR,
            PROJECT,
            {"action": "export"},
            {"action": "export", "form": "votes"},
        )
    ),
    *(
        (
            "RatingsConfig",
            od.manage_ratings,
            {"ratings": "new.db", "action": "import", "file": "pairs.jsonl", **more},
        )
        for more in ({"gold": True}, HERE)
    ),
    ("RateConfig", _rate, {"ratings": "r.db", "rater": "ann"}),
    ("PushConfig", od.push, {"model": "policy", "repo_id": "me/m", "dry_run": True}),
    ("PushConfig", od.push, {"model": "r.db", "repo_id": "me/m", "dry_run": True, "dataset": True}),
    (
        "ExportConfig",
        od.export,
        {
            "model": "policy",
            "to": "hf",
            "dtype": "bfloat16",
            "out": "hf",
            "data": "text.txt",
            "backend": "torch",
        },
    ),
    (
        "ExportConfig",
        od.export,
        {"model": "policy", "to": "hf", "dtype": "float32", "out": "same", "backend": "torch"},
    ),
]
# Read elsewhere than by the function of the Python API.
ELSEWHERE = {
    ("DataConfig", "action"): "there is one",
    ("DataConfig", "color"): "the command line shows by it",
    ("PushConfig", "yes"): "consent, given before a question that may not come",
}


@pytest.mark.parametrize(
    ("name", "function", "values"), READ, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(READ)]
)
def test_what_is_taken_is_read(
    name: str,
    function: Callable[..., Any],
    values: dict[str, Any],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each field is read beside the others, or refused."""
    read: set[str] = set()
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "copy"))
    if name == "PushConfig":
        monkeypatch.setattr("ondevice.publishing.push._login", dict)
    cls = CONFIGS[name]
    cfg = recording(cls, read, **values)
    function(cfg) if function in (_talk, _rate) else function(cfg=cfg)
    for field in {f.name for f in dataclasses.fields(cls)} - read:
        if (name, field) not in ELSEWHERE:
            assert field in TABLE[name] or field in OTHER, f"{field} is read by nobody"
            value = TABLE[name][field][0] if field in TABLE[name] else OTHER[field]
            with pytest.raises(UserError):
                from_mapping(cls, {**values, field: value})


@pytest.fixture(scope="module")
def ready(files: Path) -> Path:
    """A run of a recipe with one stage."""
    recipe = files / "small.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "stages": {
                    "init": {
                        "data": str(files / "text.txt"),
                        "vocab_size": 300,
                        "hidden_size": 16,
                        "intermediate_size": 16,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 1,
                        "num_key_value_heads": 1,
                    }
                }
            }
        )
    )
    return od.run(str(recipe), out=files / "runs" / "small", **CPU)


def test_a_recipe_takes_each_setting(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read: set[str] = set()
    recipe = str(ready / "recipe.yaml")
    cfg = recording(runs.RunConfig, read, recipe=recipe, out=str(ready), resume=True)
    assert od.run(cfg=cfg) == ready
    assert {f.name for f in dataclasses.fields(runs.RunConfig)} == read
    with pytest.raises(UserError, match="unknown key 'reseume'"):
        od.run(recipe, out=ready, reseume=True)
    assert od.run(ready / "recipe.yaml", out=ready, resume=True) == ready
    words = [
        "--out",
        str(ready),
        "--resume",
        "--device",
        "cpu",
        "--backend",
        "torch",
        "--dtype",
        "float32",
        "--seed",
        "0",
    ]
    assert cli.main(["run", str(ready / "recipe.yaml"), *words]) == 0
    for setting, said in (
        (["--arch", "encoder"], "has no recipe for an encoder"),
        (["--preference", "dpo"], "preference"),
        (["--redo", "sft"], "no stage 'sft'"),
    ):
        assert cli.main(["run", str(ready / "recipe.yaml"), *words, *setting]) == 2
        assert said in capsys.readouterr().err


# action → the settings that it has no use for
OF_LISTS = {"search", "state", "sort", "reverse", "table"}
OF_ONE = {"clear", "everything", "to", "out"}
RUNS: dict[str, set[str]] = {
    "list": {"run", "also", "anyway", "yes", *OF_ONE},
    "report": {"also", "anyway", "yes", *OF_LISTS, *OF_ONE},
    "resume": {"also", "anyway", "yes", *OF_LISTS, *OF_ONE},
    "rm": {"yes", *OF_LISTS, *OF_ONE},
    "restore": {"also", "anyway", "yes", *OF_LISTS, *OF_ONE},
    "empty-trash": {"run", "also", "anyway", *OF_LISTS, *OF_ONE},
    "note": {"anyway", "yes", *OF_LISTS, *OF_ONE} - {"clear"},
    "tag": {"anyway", "yes", *OF_LISTS, *OF_ONE},
    "untag": {"anyway", "yes", *OF_LISTS, *OF_ONE},
    "rename": {"anyway", "yes", *OF_LISTS, *OF_ONE},
    "diff": {"anyway", "yes", *OF_LISTS, *OF_ONE} - {"everything"},
    "export": {"also", "anyway", "yes", *OF_LISTS, *OF_ONE} - {"to", "out"},
}


@pytest.mark.parametrize("action", RUNS)
def test_runs_reads_all_that_it_takes(action: str, ready: Path) -> None:
    read: set[str] = set()
    needed: dict[str, Any] = {} if "run" in RUNS[action] else {"run": ready.name}
    if action == "empty-trash":
        needed = {"yes": True}
    if action == "restore":
        od.remove_runs(ready.name, folder=ready.parent)
    words = {"tag": "good", "untag": "good", "rename": ready.name, "diff": ready.name}
    if action in words:
        od.tag_run(ready.name, "good", folder=ready.parent)
        needed["also"] = (words[action],)
    if action == "export":
        needed["out"] = str(ready.parent / "events.csv")
    cfg = recording(runs.RunsConfig, read, action=action, folder=str(ready.parent), **needed)
    cli._runs(cfg, Line())
    if action == "rm":
        od.restore_run(ready.name, ready.parent)
    assert {f.name for f in dataclasses.fields(runs.RunsConfig)} - read == RUNS[action]


def test_a_worker_reads_all_that_it_takes(files: Path) -> None:
    read: set[str] = set()
    sink = io.BytesIO()
    request = {
        "op": "generate",
        "id": "1",
        "messages": [{"role": "user", "content": "Anna"}],
        "sampling": {"max_new_tokens": 2},
    }
    worker.serve(
        recording(use.WorkerConfig, read, model=str(files / "policy"), dtype="float32", **CPU),
        source=io.BytesIO(json.dumps(request).encode() + b"\n"),
        sink=sink,
    )
    assert b'"done"' in sink.getvalue()
    assert {f.name for f in dataclasses.fields(use.WorkerConfig)} == read


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [False, True])
def test_a_pull_reads_all_that_it_takes(dataset: bool, server: HubServer, tmp_path: Path) -> None:
    read: set[str] = set()
    od.push(
        str(write_ratings(tmp_path / "run") if dataset else write_model(tmp_path / "made")),
        "me/m",
        dataset=dataset,
        tell=lambda event: None,
    )
    cfg = recording(
        hub.PullConfig,
        read,
        repo_id="me/m",
        revision="main",
        out=str(tmp_path / "out"),
        dataset=dataset,
    )
    assert od.pull(cfg=cfg, tell=lambda event: None)["path"] == str(tmp_path / "out")
    assert {f.name for f in dataclasses.fields(hub.PullConfig)} == read


@pytest.mark.slow
def test_a_benchmark_reads_all_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ondevice.benchmark import cases
    from test_bench_command import TINY

    monkeypatch.setitem(cases.SHAPES, "10M", TINY)
    for name, value in (("LENGTH", 24), ("PROMPT", 8), ("WRITTEN", 4)):
        monkeypatch.setattr(cases, name, value)
    read: set[str] = set()
    given = {"sizes": ("10M",), "seconds": 0.1, "dtype": "float32"}
    od.bench(cfg=recording(benchmark.BenchConfig, read, **given, **CPU), tell=lambda _: None)
    assert {f.name for f in dataclasses.fields(benchmark.BenchConfig)} == read


def test_each_command_has_a_place_in_the_tables() -> None:
    """A new config enters `READ`, or stands here with the test that runs it."""
    elsewhere = {
        "RunConfig": test_a_recipe_takes_each_setting,
        "RunsConfig": test_runs_reads_all_that_it_takes,
        "WorkerConfig": test_a_worker_reads_all_that_it_takes,
        "PullConfig": test_a_pull_reads_all_that_it_takes,
        "BenchConfig": test_a_benchmark_reads_all_that_it_takes,
    }
    assert {name for name, _, _ in READ} | set(elsewhere) | set(BASES) == set(CONFIGS)
    assert set(TABLE) == {name for name, _ in CASES}
