"""A model that writes hostile text, and a run and files that hold it: what a command shows of it is
harmless, in a terminal and in a pipe, and what they ask for and is not done is named.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
from ondevice import cli
from ondevice.common.errors import UserError
from ondevice.common.sanitize import sanitize
from ondevice.config.use import ChatConfig
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
from shell import command, strict_json

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
