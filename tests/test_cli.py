from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ondevice
from ondevice import cli
from ondevice.common.errors import Interrupted, UserError
from ondevice.config.finetuning import SFTConfig
from ondevice.config.runs import RunConfig
from ondevice.config.use import GenerateConfig
from ondevice.config.verbs import VERBS
from ondevice.runs.events import EventWriter
from ondevice.runs.folder import RunFolder
from ondevice.runs.listing import stage_state


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], list[dict[str, Any]]]:
    """Puts a stand-in for a function of the Python API, and returns what it was called with."""

    def put(name: str, result: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def stand_in(*arguments: Any, **keywords: Any) -> Any:
            calls.append({**dict(enumerate(arguments)), **keywords})
            if isinstance(result, BaseException):
                raise result
            return result(**keywords) if callable(result) else result

        monkeypatch.setattr(ondevice, name, stand_in, raising=False)
        return calls

    return put


Api = Callable[[str, Any], list[dict[str, Any]]]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_is_a_table_of_the_verbs(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    for verb in VERBS.values():
        assert f"  {verb.name} " in done.stdout and verb.help in done.stdout


def test_top_level_help_imports_nothing_heavy() -> None:
    code = "import sys; from ondevice.cli import main; main([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & {"numpy", "tyro", "rich", "yaml", "torch", "mlx", "tokenizers", "textual"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_s_help_names_its_fields(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: ondevice {verb}")
    if example := re.search(r"change a field \((\w+)=\d+\)", out):  # of this verb
        assert f"--{example[1]}" in out
    assert bool(example) == (VERBS[verb].sets and verb != "run")
    if verb == "sft":
        assert (
            "--learning-rate {auto}|FLOAT" in out
            and "Peak rate of AdamW." in out
            and "--set KEY=VALUE" in out
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sfft"], "unknown command 'sfft' (did you mean 'sft'?)"),
        (["--hepl"], "unknown flag '--hepl'"),
        (["sft", "--stepz", "3"], "sft: unknown flag '--stepz' (did you mean '--steps'?)"),
        (["sft", "--lr", "3"], "sft: unknown flag '--lr' (did you mean '--learning-rate'?)"),
        (["sft", "-s", "3"], "sft: unknown flag '-s'"),
        (["sft", "--steps"], "--steps: needs a value"),
        (["sft", "--steps", "--seed", "1"], "--steps: needs a value"),
        (["sft", "--steps", "many"], "--steps: expected auto or a whole number, got 'many'"),
        (["sft", "--steps", "0"], "--steps: 0 is too small (give 1 or more)"),
        (["sft", "--packing=maybe"], "--packing: expected true or false, got 'maybe'"),
        (["sft", "--set", "stepz=3"], "unknown key 'stepz' (did you mean 'steps'?)"),
        (["sft", "--recipe", "no.yaml"], "no.yaml: no such file"),
        (["sft", "m", "d", "e"], "sft: 'e' is one word too many (ondevice sft MODEL [DATA])"),
        (["generate"], "generate: MODEL is missing (ondevice generate MODEL [PROMPT])"),
        (["chat", "m", "--json"], "chat: unknown flag '--json'"),
        (["runs", "lst"], "--action: 'lst' is none of its values (did you mean 'list'?"),
        (["runs", "report"], "--run: no run was named"),
        (["doctor", "x"], "doctor: 'x' is one word too many"),
    ],
)
def test_wrong_command_lines_get_one_line_and_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"ondevice: {said}") and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments", [("sfft",), ("sft", "--stepz", "3"), ("sft", "--recipe", "no.yaml")]
)
def test_the_same_from_a_shell(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_flags_words_and_sets_make_one_config(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    calls = api("sft", Path("runs/x/sft/model"))
    line = [
        "sft",
        "base",
        "--steps",
        "5",
        "chats.jsonl",
        "--learning_rate=3e-4",
        "--optimizer",
        "muon",
        "--muon-learning-rate",
        "0.1",
        "--no-packing",
        "--checkpointing",
        "true",
        "--resume",
        "--set",
        "beta1=0.5",
        "--set=loss_on=all",
    ]
    assert cli.main(line) == 0
    assert calls == [
        {
            "cfg": SFTConfig(
                model="base",
                data="chats.jsonl",
                steps=5,
                learning_rate=3e-4,
                optimizer="muon",
                muon_learning_rate=0.1,
                packing=False,
                checkpointing=True,
                resume=True,
                beta1=0.5,
                loss_on="all",
            )
        }
    ]
    assert capsys.readouterr().out == "runs/x/sft/model\n"
    assert cli.main(["sft", "--model", "base", "chats.jsonl", "--json"]) == 0
    assert calls[1]["cfg"].data == "chats.jsonl"
    assert json.loads(capsys.readouterr().out) == {"model": "runs/x/sft/model"}


def test_a_recipe_s_settings_lie_under_the_flags(api: Api) -> None:
    calls = api("sft", Path("m"))
    assert cli.main(["sft", "base", "--recipe", "tiny", "--steps", "7"]) == 0
    cfg = calls[0]["cfg"]
    assert (cfg.steps, cfg.optimizer, cfg.data) == (7, "muon", "builtin:tiny")


def test_run_passes_the_sets_on_and_prints_the_ladder(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = api("run", tmp_path)
    (tmp_path / "report.md").write_text("# the ladder\n")
    assert (
        cli.main(
            [
                "run",
                "tiny",
                "--out",
                "o",
                "--resume",
                "--redo",
                "sft,pretrain",
                "--redo",
                "init",
                "--seed",
                "3",
                "--set",
                "sft.steps=2",
            ]
        )
        == 0
    )
    cfg = RunConfig(recipe="tiny", out="o", seed=3, resume=True, redo=("sft", "pretrain", "init"))
    assert calls == [{"cfg": cfg, "sets": ("sft.steps=2",)}]
    printed = capsys.readouterr().out
    assert printed.startswith("stage ") and printed.endswith(
        f"report: {tmp_path / 'report.md'}\npage: {tmp_path / 'report.html'}\n"
    )
    assert cli.main(["run", "--json"]) == 0
    assert calls[1] == {"cfg": RunConfig(), "sets": ()}
    assert json.loads(capsys.readouterr().out) == {
        "run": str(tmp_path),
        "report": str(tmp_path / "report.md"),
        "page": None,
    }


def test_generate_streams_and_what_it_streams_is_harmless(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(cfg: GenerateConfig, write: Callable[[str], None] | None = None) -> list[str]:
        for piece in ("a", "\x1b]0;title\x07", "b"):
            if write is not None:
                write(piece)
        return ["a\x1bb"]

    api("generate", generate)
    assert cli.main(["generate", "m", "--prompt=-- hello", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "a␛]0;title␇b\n"
    assert cli.main(["generate", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"completions": ["a\x1bb"]}


def test_eval_prints_numbers(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api("evaluate", {"text": {"bits_per_byte": 1.23456}, "model": "m"})
    assert cli.main(["eval", "m", "--tasks", "text,instructions"]) == 0
    assert capsys.readouterr().out == "text.bits_per_byte: 1.235\nmodel: m\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            UserError("is no\n checkpoint \x1b[2J", where="m"),
            2,
            "ondevice: m: is no checkpoint ␛[2J\n",
        ),
        (
            Interrupted("saved at step 3; go on with --resume"),
            130,
            "ondevice: saved at step 3; go on with --resume\n",
        ),
        (KeyboardInterrupt(), 130, "ondevice: interrupted\n"),
    ],
)
def test_exit_codes(
    api: Api, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    api("sft", error)
    assert cli.main(["sft"]) == code
    assert capsys.readouterr().err == said


def test_our_own_errors_keep_their_traceback(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api("sft", RuntimeError("ours"))
    assert cli.main(["sft"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("RuntimeError: ours\n")


def make_run(folder: Path) -> None:
    run = RunFolder(folder / "r1")
    with run.stage("init").locked() as stage:
        stage.done.write_text("{}")
    with run.stage("pretrain").locked() as stage, EventWriter(stage.events) as writer:
        writer.emit("start", steps=9)
        writer.emit("step", 4, loss=2.5, lr=0.1)
        writer.emit("eval", 4, loss=3.0, bits_per_byte=1.25)
    run.recipe.write_text("name: tiny\n")


@pytest.mark.parametrize(("reason", "state"), [("stopped", "stopped"), ("UserError", "failed")])
def test_what_a_person_stopped_has_not_failed(tmp_path: Path, reason: str, state: str) -> None:
    make_run(tmp_path)
    stage = RunFolder(tmp_path / "r1").stage("pretrain")
    with EventWriter(stage.events) as writer:
        writer.emit("failed", reason=reason, message="…")
    assert stage_state(stage)["state"] == state


def test_runs_lists_reports_and_resumes(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["runs", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    make_run(tmp_path)
    (tmp_path / "not-a-run").mkdir()
    assert cli.main(["runs", "--folder", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    path, figure, unit = lines[0]
    assert path == str(tmp_path / "r1") and float(figure) > 0 and unit == "kB"
    pretrain = [
        "pretrain",
        "died",
        "step",
        "4/9",
        "loss",
        "2.500",
        "bpb",
        "1.250",
        "heldout",
        "loss",
        "3.000",
    ]
    assert sorted(lines[1:]) == [["init", "done"], pretrain]
    with RunFolder(tmp_path / "r1").stage("pretrain").locked():
        assert cli.main(["runs", "--folder", str(tmp_path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["state"] for stage in listed["stages"]} == {
        "init": "done",
        "pretrain": "training",
    }
    assert cli.main(["runs", "report", "r2", "--folder", str(tmp_path)]) == 2
    assert "did you mean 'r1'?" in capsys.readouterr().err
    assert cli.main(["runs", "report", "r1", "--folder", str(tmp_path)]) == 2
    assert "has no report yet" in capsys.readouterr().err
    (tmp_path / "r1" / "init" / "done.json").write_text('{"marks": {"bits_per_byte": 4.5}}')
    assert cli.main(["runs", "report", "r1", "--folder", str(tmp_path)]) == 0
    # stage by stage, or not at its end yet
    assert re.search(r"^init +4\.500 ", capsys.readouterr().out, re.M)
    (tmp_path / "r1" / "report.md").write_text("# ladder\n")
    assert cli.main(["runs", "report", str(tmp_path / "r1")]) == 0
    assert capsys.readouterr().out == "# ladder\n"
    calls = api("run", tmp_path / "r1")
    assert cli.main(["runs", "resume", "r1", "--folder", str(tmp_path)]) == 0
    assert calls == [
        {0: str(tmp_path / "r1" / "recipe.yaml"), "out": str(tmp_path / "r1"), "resume": True}
    ]


def test_a_reader_that_leaves_is_no_crash(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "recipe.yaml").touch()
    line = f"{sys.executable} -m ondevice runs --folder {tmp_path} | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_a_traceback_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """The same code and the same last line; the words after `--` are nobody's flags."""
    assert cli.main(("sft", "nowhere", "nothing.jsonl")) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert cli.main(("sft", "nowhere", "nothing.jsonl", "--traceback")) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)") and said.endswith(line)
    assert cli.main(("sft", "nowhere", "--", "--traceback")) == 2
    assert "Traceback" not in capsys.readouterr().err
