"""Using what was trained: the documented examples as they are written, and every command at its
pipe. (Hostile text: test_hostile_models.)
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.sanitize import sanitize
from ondevice.config.command_line import make_config, take_apart
from ondevice.config.recipe import recipe_names
from ondevice.config.runs import RunsConfig
from ondevice.config.verbs import ACTIONS, VERBS
from ondevice.data.tokenizer import Tokenizer
from shell import command, strict_json, typed_in

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = textwrap.dedent(
    "\n".join(re.findall(r"^(?: {4}.*)?$", (od.__doc__ or "").split("\n\n", 1)[1], re.M))
).strip()
STEPS = 2
LENGTH = 1024  # that running text is read in where nobody says it


# ---- the documented examples ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """(folder, names, printed) of the Python example, which was run there as it is written but for
    the steps.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text("Once upon a time Anna lived in Rome. " * 300)
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{n}+1?"},
                {"role": "assistant", "content": f"It is {n + 1}."},
            ]
        }
        for n in range(40)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    names: dict[str, Any] = {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        short = EXAMPLE.replace("epochs=4", f"steps={STEPS}")
        short = short.replace('"chats.jsonl",', f'"chats.jsonl", steps={STEPS},')
        exec(short, names)
    return folder, names, printed.getvalue()


@pytest.mark.slow
def test_the_example_of_the_api_runs_as_it_is_written(
    trained: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names, printed = trained
    assert (names["base"], names["model"]) == (
        Path("runs/mine/pretrain/model"),
        Path("runs/mine/sft/model"),
    )
    assert EXAMPLE.count("epochs=4") == EXAMPLE.count('"chats.jsonl",') == 1
    monkeypatch.chdir(folder)
    said = od.generate(model=names["model"], prompt="Once upon a time", max_new_tokens=40)
    assert printed == said[0] + "\n" and len(said[0]) > 20


def test_the_readme_shows_the_same_example() -> None:
    assert re.findall(r"```python\n(.*?)\n```", README, re.DOTALL) == [EXAMPLE]


TEXTS = [
    README,
    *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))),
]
QUOTED = [quoted for text in TEXTS for quoted in re.findall(r"`(ondevice [a-z][^`\n]*)`", text)]


def documented_commands() -> list[str]:
    """Every command line of this program that the README and the documents show; a verb that stands
    alone in a sentence is a name and no command."""
    blocks = [block for text in TEXTS for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    found = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found += [quoted for quoted in QUOTED if len(quoted.split()) > 2]
    return list(dict.fromkeys(line for line in found if line.startswith("ondevice ")))


def test_a_verb_that_is_named_is_there() -> None:
    named = {quoted.split()[1] for quoted in QUOTED}
    assert named <= VERBS.keys() and "export" in named


@pytest.mark.parametrize("line", documented_commands())
def test_a_documented_command_is_accepted(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = shlex.split(line, comments=True)[1:]
    verb, given = ACTIONS.get(tuple(words[:2])) or VERBS[words[0]], []

    def stand_in(*arguments: Any, **keywords: Any) -> Any:
        given.append((*arguments, *keywords.values()))
        nothing: dict[str, Any] = {
            "doctor": {},
            "chat": None,
            "evaluate": {},
            "generate": [],
            "rate": None,
            "manage_ratings": {},
        }
        return nothing.get(verb.function, tmp_path)

    monkeypatch.chdir(tmp_path)
    if not verb.function:  # `runs` looks at folders that are not here
        assert make_config(verb, RunsConfig, take_apart(verb, RunsConfig, words[1:]))
        return
    monkeypatch.setattr(od, verb.function, stand_in)
    monkeypatch.setattr(cli, "_continued", lambda *_: {})  # there is no stage to go on from
    monkeypatch.setattr("ondevice.datasets.preview.render", lambda *_: "")
    if verb.render:
        monkeypatch.setattr(verb.render.replace(":", "."), str)
    assert cli.main(words) == 0
    if "--help" in words:
        return
    assert len(given) == 1
    for word in words[1:2]:  # what stands first without a flag is the model, the data or the recipe
        named = word in str(given) or word.startswith("--")
        assert named or "--continue" in words or verb.name == "plan"
        assert verb.name != "run" or word in recipe_names() or word.endswith(".yaml")


def test_the_documents_show_most_commands() -> None:
    shown = {line.split()[1] for line in documented_commands()}
    assert (
        len(documented_commands()) >= 9
        and {"run", "init", "pretrain", "sft", "chat", "generate", "doctor"} <= shown
    )


# ---- the commands, from a shell -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_generate_from_a_shell(
    trained: tuple[Path, dict[str, Any], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = trained[0]
    monkeypatch.chdir(folder)
    want = od.generate(
        model="runs/mine", prompt="Once upon", max_new_tokens=20, samples=2, top_k=50, seed=3
    )
    assert len(set(want)) == 2
    options = ["--max-new-tokens", "20", "--samples", "2", "--top-k", "50", "--seed", "3"]
    line = ["generate", "runs/mine", *options]
    assert typed_in(folder, capfd, *line, "Once upon") == (
        0,
        sanitize("\n\n".join(want)) + "\n",
        "",
    )
    done = command(*line, "--json", cwd=folder, typed="Once upon")
    assert (done.returncode, strict_json(done.stdout), done.stderr) == (
        0,
        {"completions": want},
        "",
    )


@pytest.mark.slow
def test_eval_from_a_shell(
    trained: tuple[Path, dict[str, Any], str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = trained[0]
    done = command("eval", "runs/mine/pretrain", "book.txt", "--json", cwd=folder)
    found = strict_json(done.stdout)
    assert (done.returncode, done.stderr, found["sequence_length"]) == (0, "", LENGTH)
    assert 0.1 < found["bits_per_byte"] < 10
    assert typed_in(folder, capfd, "eval", "runs/mine/pretrain", "book.txt") == (
        0,
        f"bits_per_byte: {found['bits_per_byte']:.4g}\nperplexity: {found['perplexity']:.4g}\n"
        f"sequence_length: {LENGTH}\n",
        "",
    )
    said = {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello to you."},
        ]
    }
    (folder / "said.jsonl").write_text(f"{json.dumps(said)}\n" * 2)
    code, out, _ = typed_in(folder, capfd, "eval", "runs/mine/pretrain", "said.jsonl", "--json")
    found = strict_json(out)
    tokenizer = Tokenizer.load(folder / "runs" / "mine" / "pretrain" / "model")
    answered = len(tokenizer.encode("Hello to you.")) + 1  # and the stop token
    assert (code, found["chats"], found["cut"], found["tokens"]) == (0, 2, 0, 2 * answered)
    assert 1 < found["loss"] < 20


@pytest.mark.slow
def test_doctor_from_a_shell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = command("doctor", "--json", cwd=tmp_path)
    found = strict_json(done.stdout)
    assert (done.returncode, done.stderr, found["disk"]["folder"]) == (0, "", str(tmp_path))
    code, out, err = typed_in(tmp_path, capfd, "doctor")
    assert (code, err) == (0, "")
    assert f"auto        {found['auto']['backend']}: " in out and "{" not in out


@pytest.mark.slow
def test_runs_from_a_shell(trained: tuple[Path, dict[str, Any], str]) -> None:
    folder = trained[0]
    done = command("runs", "--json", cwd=folder)
    (run,) = strict_json(done.stdout)
    assert (done.returncode, done.stderr, run["path"]) == (0, "", "runs/mine")
    assert [(s["stage"], s["state"], s["step"]) for s in run["stages"]] == [
        ("init", "done", 0),
        ("pretrain", "done", STEPS),
        ("sft", "done", STEPS),
    ]
    done = command("runs", cwd=folder)
    lines = [line.split()[:4] for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr, lines[0]) == (0, "", ["runs/mine", *lines[0][1:]])
    assert lines[0][2] in ("kB", "MB")  # the space that it takes
    assert lines[2:] == [
        ["pretrain", "done", "step", f"{STEPS}/{STEPS}"],
        ["sft", "done", "step", f"{STEPS}/{STEPS}"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_pieces_are_the_answers_that_are_not_streamed(
    trained: tuple[Path, dict[str, Any], str], backend_name: str, temperature: float
) -> None:
    settings: dict[str, Any] = {
        "model": trained[0] / "runs" / "mine",
        "prompt": "Anna lived",
        "samples": 3 if temperature else 1,
        "temperature": temperature,
        "max_new_tokens": 24,
        "backend": backend_name,
    }
    pieces: list[str] = []
    whole = od.generate(**settings)
    assert od.generate(**settings, write=pieces.append) == whole
    assert "".join(pieces) == "\n\n".join(whole) and len(pieces) > 10
    assert len(set(whole)) == settings["samples"]
