"""Using what was trained: the documented examples as they are written, every command at its pipe,
hostile text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.command_line import make_config, take_apart
from ondevice.config.recipe import recipe_names
from ondevice.config.runs import RunsConfig
from ondevice.config.use import ChatConfig
from ondevice.config.verbs import ACTIONS, VERBS
from ondevice.data.tokenizer import Tokenizer
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.inference import beam_search, chat
from ondevice.inference.beam_search import Search
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.generation_config import HARMLESS, left_out
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.models.shapes import shapes
from ondevice.seam.select import load_backend

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = textwrap.dedent(
    "\n".join(re.findall(r"^(?: {4}.*)?$", (od.__doc__ or "").split("\n\n", 1)[1], re.M))
).strip()
STEPS = 2
LENGTH = 1024  # that running text is read in where nobody says it


def command(*arguments: str, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ondevice", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


def typed_in(folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command of this process comes to in `folder`: its exit code, stdout and stderr."""
    capfd.readouterr()
    with contextlib.chdir(folder):
        code = cli.main(arguments)
    return (code, *capfd.readouterr())


def strict_json(text: str) -> Any:
    """The value of `text`, which has nothing in it that JSON does not know."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


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


# ---- hostile text ---------------------------------------------------------------------------------------------------

# A terminal's sequence, a C1 control, an override of the direction, a mark that shows nothing,
# Markdown. No byte twice: the model that says it knows the last byte alone.
HOSTILE = "\x1b[2J\r\0\x07\u202e\x9b\ufeff`|<b>"
BAD_NAME = "x\x1b[31m\u202e"


def parrot(folder: Path) -> Path:
    """A model that answers whatever it is asked, or continues a text that ends in `o`, with HOSTILE
    and then stops.
    """
    tokenizer = train_tokenizer(["no pair of letters"], 262)
    said = tokenizer.encode(HOSTILE)
    assert len(set(said)) == len(said) == len(HOSTILE.encode())
    ids = [*said, tokenizer.inner.token_to_id("<|end|>")]
    after = dict(zip(ids, ids[1:], strict=False))
    after |= {
        tokenizer.inner.token_to_id("<|assistant|>"): ids[0],
        tokenizer.encode("o")[0]: ids[0],
    }
    return chain(folder, tokenizer, after)


def chain(folder: Path, tokenizer: Tokenizer, after: dict[int, int]) -> Path:
    """A model that writes `after[id]` after each id: the blocks add nothing, the embedding is the
    identity.
    """
    size = tokenizer.vocab_size + tokenizer.vocab_size % 2
    cfg = DecoderConfig.parse(
        {
            "model_type": "llama",
            "vocab_size": size,
            "hidden_size": size,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 128,
        }
    )
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes(cfg).items()}
    weights |= {name: w + 1 for name, w in weights.items() if name.endswith("norm.weight")}
    weights["model.embed_tokens.weight"] = np.eye(size, dtype=np.float32)
    for token, following in after.items():
        weights["lm_head.weight"][following, token] = 1
    backend = load_backend("torch", "cpu", "float32")
    folder.mkdir()
    write_model(
        folder, backend, cfg, {name: backend.array(w) for name, w in weights.items()}, tokenizer
    )
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    parrot(folder / "parrot")
    return folder


@pytest.fixture
def typed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(place)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return (code, *capfd.readouterr())

    return run


Typed = Callable[..., tuple[int, str, str]]
LIKELIEST = ("--temperature", "0")


def harmless(text: str) -> bool:
    return sanitize(text, limit=None) == text


@pytest.mark.parametrize("arguments", [("hello",), ("Hi!", "--chat")])
def test_what_a_model_writes_is_made_visible_before_it_is_shown(
    typed: Typed, arguments: tuple[str, ...]
) -> None:
    assert not harmless(HOSTILE)
    code, out, err = typed("generate", "parrot", *arguments, *LIKELIEST)
    assert (code, out, err) == (0, sanitize(HOSTILE) + "\n", "")
    assert out == "␛[2J␍␀␇\\u202e\\u009b\\ufeff`|<b>\n"
    code, out, err = typed("generate", "parrot", *arguments, *LIKELIEST, "--json")
    assert code == 0 and out.isascii() and harmless(out)
    assert strict_json(out) == {"completions": [HOSTILE]}


@pytest.mark.slow
def test_a_conversation_from_a_pipe(place: Path) -> None:
    line = ["chat", "parrot", *LIKELIEST, "--system", "Be \x1b brief."]
    done = command(*line, cwd=place, typed="Hi!\nAnd \x1b[1m you?\n")
    assert (done.returncode, done.stdout) == (0, f"{sanitize(HOSTILE)}\n" * 2)
    assert done.stderr == "An empty line or Ctrl-D ends the conversation.\n"


def test_an_empty_line_ends_a_conversation(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi!\n\nnobody hears this\n"))
    assert typed("chat", "parrot", *LIKELIEST)[:2] == (0, f"{sanitize(HOSTILE)}\n")


@pytest.mark.slow
def test_a_pipe_that_knows_no_unicode_gets_escapes(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", "generate", "parrot", "hello", *LIKELIEST],
        cwd=place,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        done.stdout.decode("ascii")
        == sanitize(HOSTILE).encode("ascii", "backslashreplace").decode() + "\n"
    )


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_that_is_too_long_does_not_end_the_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, told = Screen(), Screen()
    for name, stream in (("stdin", Screen()), ("stdout", shown), ("stderr", told)):
        monkeypatch.setattr(sys, name, stream)
    said = iter(["Hi! " * 5000, "Hi!", ""])
    chat.chat(ChatConfig(model=str(place / "parrot"), temperature=0), lambda _: next(said))
    assert shown.getvalue() == sanitize(HOSTILE) + "\n"
    assert "That is too long: " in told.getvalue() and "fewer words" in told.getvalue()


def test_nothing_is_forgotten_for_a_message_of_a_pipe_that_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["Hi!", "Hi! " * 5000])
    with pytest.raises(UserError, match="the model's context holds"):
        chat.chat(ChatConfig(model=str(place / "parrot"), temperature=0), lambda _: next(said))
    assert "forgotten" not in capsys.readouterr().err


def test_a_full_context_is_told_and_forgets_no_more_than_it_must(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is too long is as if it had not been said: what stands before it is still
    there.
    """
    shown, told = Screen(), Screen()
    for name, stream in (("stdin", Screen()), ("stdout", shown), ("stderr", told)):
        monkeypatch.setattr(sys, name, stream)
    seen: list[tuple[int, int]] = []
    fits = chat.fitting_ids

    def watched(first: Any, turns: Any, model: Any, longest: int) -> Any:
        ids, kept = fits(first, turns, model, longest)
        seen.append((len(turns), len(kept)))
        return ids, kept

    monkeypatch.setattr(chat, "fitting_ids", watched)
    said = iter(["Hi!", "Hi! " * 5000, "Hi!", "H" * 95, ""])
    chat.chat(
        ChatConfig(model=str(place / "parrot"), temperature=0, max_new_tokens=20),
        lambda _: next(said),
    )
    assert seen == [(1, 1), (3, 1), (3, 3), (5, 1)]  # the third is asked with the first before it
    err = told.getvalue()
    assert err.count("That is too long: ") == 1 and "the first 4 turns are forgotten" in err
    assert "the answer ends here" not in err
    # 128 hold a start, this, an end, the answer's opening and a few tokens
    said = iter(["H" * 118, ""])
    chat.chat(ChatConfig(model=str(place / "parrot"), temperature=0), lambda _: next(said))
    assert "The context is full: the answer ends here." in told.getvalue()


def test_a_conversation_is_kept_in_a_file_and_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept" / "chat.jsonl"
    asked: list[list[dict[str, Any]]] = []
    fits = chat.fitting_ids

    def watched(first: Any, turns: Any, model: Any, longest: int) -> Any:
        asked.append([*first, *turns])
        return fits(first, turns, model, longest)

    monkeypatch.setattr(chat, "fitting_ids", watched)

    def speak(*said: str, **more: Any) -> None:
        lines = iter([*said, ""])
        chat.chat(
            ChatConfig(
                model=str(place / "parrot"), temperature=0, max_new_tokens=3, save=str(file), **more
            ),
            lambda _: next(lines),
        )

    speak("Hi!", system="Be kind.")
    speak("And?")
    assert [turn["role"] for turn in asked[1]] == ["system", "user", "assistant", "user"]
    assert "goes on, after 2 turns" in capsys.readouterr().err
    row = json.loads(file.read_text())
    assert [turn["content"] for turn in row["messages"]][:2] == ["Be kind.", "Hi!"] and len(
        row["messages"]
    ) == 5
    assert row["model"] == str(place / "parrot") and row["sampling"]["max_new_tokens"] == 3
    with pytest.raises(UserError, match="has other instructions"):
        speak("Hi!", system="Be rude.")
    assert json.loads(file.read_text()) == row


@pytest.mark.slow
def test_a_run_shows_and_reports_nothing_raw(typed: Typed, place: Path) -> None:
    """Model text, prompts, and the names of the run, the recipe and the data, on stdout, stderr and
    in report.md.
    """
    data, out = place / f"{BAD_NAME}.jsonl", f"{BAD_NAME}|<i>"
    chat = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": HOSTILE}]
    }
    data.write_text(f"{json.dumps(chat)}\n" * 150 + "{\n")
    recipe = place / f"{BAD_NAME}.yaml"
    recipe.write_text(
        json.dumps(
            {
                "prompts": [f"say {HOSTILE}", "o…"],
                "stages": {
                    "sft": {
                        "model": "parrot",
                        "data": data.name,
                        "steps": 1,
                        "sequence_length": 64,
                        "learning_rate": 1e-9,
                    }
                },
            }
        )
    )
    code, printed, err = typed("run", recipe.name, "--out", out)
    assert code == 0, err
    assert harmless(printed) and printed.count(sanitize(HOSTILE)) == 3  # a prompt and two answers
    assert harmless(err) and sanitize(BAD_NAME) in err and "1 of 151 rows could not be used" in err
    report = (place / out / "report.md").read_text()
    assert (
        harmless(report)
        and report.startswith("# x␛\\[31m\\\\u202e\\|\\<i\\>\n")
        and report.count("␛\\[2J␍") == 3
    )
    kept = json.loads((place / out / "sft" / "done.json").read_text())
    assert kept["answers"][0]["answer"] == HOSTILE  # as it is

    code, printed, err = typed("runs", "report", out)
    assert (code, printed, err) == (0, report.rstrip("\n") + "\n", "")
    code, printed, err = typed("runs", "--folder", ".")
    name, stage = printed.splitlines()[:2]
    assert code == 0 and harmless(printed) and name.startswith(sanitize(out)) and "  sft" in stage
    code, printed, err = typed("run", recipe.name, "--out", out)
    assert code == 2 and harmless(err) and "holds a run already" in err
    code, printed, err = typed("run", recipe.name, "--out", out, "--resume")
    assert code == 0 and harmless(printed + err) and "sft: complete" in err


def test_errors_quote_files_and_words_harmlessly(typed: Typed, place: Path) -> None:
    (place / f"{BAD_NAME}.txt").write_bytes(b"\0")
    (place / BAD_NAME).mkdir()
    (place / BAD_NAME / "config.json").write_text(json.dumps({"model_type": HOSTILE}))
    for arguments in (
        ["eval", "parrot", f"{BAD_NAME}.txt"],
        ["eval", "parrot", f"{BAD_NAME}.gone"],
        ["generate", BAD_NAME, "hi"],
        [BAD_NAME],
        ["run", BAD_NAME],
        ["sft", f"--{BAD_NAME}"],
        ["run", "tiny", "--set", f"{BAD_NAME}=1"],
        ["runs", "report", BAD_NAME[:3]],
    ):
        code, out, err = typed(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert harmless(err) and re.search(r"x(␛|\\x1b)", err), err


def test_a_vocabulary_cannot_smuggle_in_a_sequence(typed: Typed, place: Path) -> None:
    """A folder from anywhere whose added token, one and whole, is a terminal's sequence."""
    tokenizer = train_tokenizer(["no pair of letters"], 262)
    tokenizer.inner.add_tokens([HOSTILE])
    tokenizer = Tokenizer(tokenizer.inner, tokenizer.config, tokenizer.chat_template)
    token = tokenizer.inner.token_to_id(HOSTILE)
    chain(
        place / "vocabulary", tokenizer, {tokenizer.encode("o")[0]: token, token: tokenizer.eos_id}
    )
    assert od.generate(model=place / "vocabulary", prompt="hello", temperature=0) == [HOSTILE]
    assert typed("generate", "vocabulary", "hello", *LIKELIEST) == (0, sanitize(HOSTILE) + "\n", "")


def test_a_traceback_quotes_harmlessly(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**keywords: Any) -> None:
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr(od, "evaluate", broken)
    code, out, err = typed("eval", "parrot")
    assert (
        (code, out) == (1, "")
        and harmless(err)
        and err.endswith(f"RuntimeError: {sanitize(HOSTILE)}\n")
    )


def test_a_model_that_went_wrong_still_gives_json(typed: Typed, place: Path) -> None:
    """A loss that is no number has no word in JSON."""
    folder = place / "wrong"
    backend = load_backend("torch", "cpu", "float32")
    model = load_model(place / "parrot", backend)
    folder.mkdir()
    broken = {**model.params, "model.norm.weight": model.params["model.norm.weight"] * float("nan")}
    write_model(folder, backend, model.cfg, broken, model.tokenizer)
    (place / "text.txt").write_text("hello " * 20)
    code, out, err = typed("eval", "wrong", "text.txt", "--json")
    assert (code, err, strict_json(out)["bits_per_byte"]) == (0, "", None)


def test_what_a_template_refuses_is_the_person_s_to_know(place: Path) -> None:
    """The Python API says it as the commands do."""
    folder = chain(
        place / "refusing",
        train_tokenizer(["no pair of letters"], 262).with_template(
            "{{ raise_exception('no system, please') }}"
        ),
        {},
    )
    with pytest.raises(UserError, match="no system, please"):
        od.generate(model=folder, prompt="hello", chat=True)


def test_each_setting_of_generation_that_transformers_knows_is_read_or_harmless_or_named() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers says what there is to ask for"
    )
    names = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert len(names) > 50
    searched = {field.name for field in dataclasses.fields(Search)}
    for without, read in (
        (chat._LEFT_OUT, ()),
        (beam_search._LEFT_OUT, {*searched, *beam_search._DRAWING}),
    ):
        for name in sorted(names | {"not_invented_yet"}):
            told = left_out({name: 7}, without, dict.fromkeys(read))
            assert told == (
                [] if name not in without and (name in HARMLESS or name in read) else [name]
            )
    assert all(HARMLESS.values()) and not {*HARMLESS} & {*chat._LEFT_OUT}
    unsaid = {
        **chat._LEFT_OUT,
        "not_invented_yet": None,
        "_from_model_config": True,
        "watermarking_config": {},
    }
    assert left_out(unsaid, chat._LEFT_OUT) == []


def test_what_generation_config_asks_for_is_kept_or_named(typed: Typed, place: Path) -> None:
    """In text that is not searched for; a setting goes before the file."""
    file = place / "parrot" / "generation_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), "repetition_penalty": 1e-9}))
        code, _, err = typed("generate", "parrot", "hello", *LIKELIEST)
        assert code == 2 and "repetition_penalty is 1e-09" in err
        file.write_text(
            json.dumps(
                {
                    **json.loads(before),
                    "repetition_penalty": 50.0,
                    "min_new_tokens": 2,
                    "do_sample": True,
                    "temperature": 0.6,
                }
            )
        )
        code, _, err = typed("generate", "parrot", "hello", "--max-new-tokens", "3", *LIKELIEST)
        assert (
            code == 0
            and "generation_config.json asks for min_new_tokens: what is drawn here does without"
            in err
        )
        assert "temperature" not in err  # greedy: nothing is drawn
        model = load_model(place / "parrot", load_backend("torch", "cpu", "float32"))
        assert chat.sampling(ChatConfig(model="-"), model).repetition_penalty == 50
        assert (
            chat.sampling(ChatConfig(model="-", repetition_penalty=1.1), model).repetition_penalty
            == 1.1
        )
        _, _, err = typed("generate", "parrot", "hello", "--max-new-tokens", "3")
        assert "asks for temperature 0.6; here the settings decide: temperature 0.8" in err
    finally:
        file.write_text(before)
