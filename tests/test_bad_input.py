"""What a person gets wrong is answered with one line on stderr (what, where, what to do) and exit
code 2.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import models
from data_samples import small_tokenizer
from ondevice import cli
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.save import write_model
from ondevice.seam.select import load_backend

CONTEXT = 32
CHAT = (
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
)


def write_folder(folder: Path, tokenizer: Tokenizer, **changes: Any) -> None:
    """A model of random weights."""
    fields = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": CONTEXT, **changes}
    cfg, backend = models.config("llama", **fields), load_backend("torch", "cpu", "float32")
    folder.mkdir()
    write_model(
        folder,
        backend,
        cfg,
        {name: backend.array(w) for name, w in models.weights(cfg).items()},
        tokenizer,
    )


def write_broken(folder: Path, good: Path) -> None:
    """Copies of the model in `good`, each with one thing that is wrong."""

    def changed(**fields: Any) -> Callable[[Path], object]:
        return lambda at: at.write_text(json.dumps({**json.loads(at.read_text()), **fields}))

    def cut(at: Path) -> None:
        at.write_bytes(at.read_bytes()[:-100])

    damages: dict[str, tuple[str, Callable[[Path], object]]] = {
        "bare": ("config.json", Path.unlink),
        "torn": ("model.safetensors", cut),
        "zeros": ("model.safetensors", lambda at: at.write_bytes(bytes(64))),
        "pickled": ("model.safetensors", lambda at: at.rename(at.with_name("pytorch_model.bin"))),
        "index": ("model.safetensors.index.json", lambda at: at.write_text("[]")),
        "list": ("config.json", lambda at: at.write_text("[]")),
        "utf16": ("config.json", lambda at: at.write_bytes(b"\xff\xfe{")),
        "alien": ("config.json", changed(model_type="alien")),
        "odd": ("config.json", changed(model_type=["llama"])),
        "heads": ("config.json", changed(num_attention_heads=0)),
        "worded": ("config.json", changed(max_position_embeddings="many")),
        "epsilon": ("config.json", changed(rms_norm_eps="small")),
        "wordless": ("tokenizer.json", lambda at: at.write_text("{}")),
        "refusing": (
            "tokenizer_config.json",
            changed(chat_template="{{ raise_exception('never') }}"),
        ),
    }
    for name, (file, damage) in damages.items():
        shutil.copytree(good, folder / name)
        damage(folder / name / file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are wrong, beside a good model `m` and good data."""
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "m", small_tokenizer())
    write_folder(folder / "small", small_tokenizer(), vocab_size=100)
    write_broken(folder, folder / "m")
    files: dict[str, str | bytes] = {
        "book.txt": "Anna lives in Rome. " * 100,
        "chats.jsonl": CHAT * 4,
        "empty.txt": "",
        "blank.jsonl": " \n\n\t\n",
        "blank.csv": "prompt,completion\n\n",
        "binary.txt": bytes(range(256)),
        "semicolons.csv": "prompt;completion\na;b\nc;d\n",
        "prompts.jsonl": '{"prompt": "hi"}\n' * 3,
        "asked.jsonl": "".join(
            f'{{"messages": [{{"role": "user", "content": "hi {n}"}}]}}\n' for n in range(20)
        ),
        "said.jsonl": '{"messages": "hi"}\n' * 3,
        "bot.jsonl": CHAT.replace("assistant", "bot") * 3,
        "bad.jsonl": CHAT * 2 + '{"messages": [\n' + CHAT,
        "torn.jsonl": CHAT + CHAT[:20],
        "model.bin": b"\0",
        "typo.yaml": "stages:\n  sft: {model: m, data: chats.jsonl, stepz: 3}\n",
        "kind.yaml": "stages:\n  sft: {model: m, steps: many}\n",
        "stage.yaml": "stages:\n  stf: {}\n",
        "listed.yaml": "stages:\n  - sft: {model: m, data: chats.jsonl}\n",
        "open.yaml": "stages: {\n",
        "headless.yaml": "stages:\n  sft: {data: chats.jsonl}\n",
        "bytes.yaml": b"\xff\0",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nothing").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").touch()
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


class Case(NamedTuple):
    """What was typed after `ondevice`, and parts of the answer: where, what, what to do."""

    typed: str
    where: str
    what: str
    hint: str


SFT = "--out o --steps 1 --sequence-length 16"
CASES = {
    "recipe": Case(
        "run tinny", "'tinny'", "unknown recipe", "did you mean 'tiny'? Or give a .yaml file"
    ),
    "recipe file": Case("run no.yaml", "no.yaml", "no such file", "give the path"),
    "flag": Case(
        "pretrain m book.txt --step 3",
        "pretrain",
        "unknown flag '--step'",
        "did you mean '--steps'?",
    ),
    "flag of another": Case("eval m --zzz 2", "eval", "unknown flag '--zzz'", "--help"),
    "set": Case(
        "sft m chats.jsonl --set learning_rat=1",
        "",
        "unknown key 'learning_rat'",
        "'learning_rate'?",
    ),
    "set of a stage": Case(
        "run tiny --set sft.stepz=1", "stages.sft", "unknown key 'stepz'", "did you mean 'steps'?"
    ),
    "set at the top": Case(
        "run tiny --set sed=1", "tiny.yaml", "unknown key 'sed'", "did you mean 'seed'?"
    ),
    "set without value": Case(
        "run tiny --set sft.steps", "--set", "'sft.steps' is not KEY=VALUE", "for example"
    ),
    "yaml key": Case(
        "run typo.yaml", "typo.yaml: stages.sft", "unknown key 'stepz'", "did you mean 'steps'?"
    ),
    "yaml stage": Case(
        "run stage.yaml", "stage.yaml: stages", "unknown stage 'stf'", "did you mean 'sft'?"
    ),
    "yaml list": Case("run listed.yaml", "listed.yaml: stages", "is a list", "sft: {steps: 500}"),
    "yaml type": Case(
        "run kind.yaml", "kind.yaml: stages.sft.steps", "'many'", "expected auto or a whole number"
    ),
    "yaml form": Case("run open.yaml", "open.yaml:2", "not valid YAML", "expected"),
    "yaml bytes": Case("run bytes.yaml", "bytes.yaml", "is not", "UTF-8 text"),
    "yaml model": Case(
        "run headless.yaml",
        "headless.yaml: stages.sft.model",
        "no model was named",
        "the stage init",
    ),
    "redo": Case(
        "run tiny --out o --redo stf", "redo", "has no stage 'stf'", "did you mean 'sft'?"
    ),
    "no file": Case(
        f"sft m gone.jsonl {SFT}", "gone.jsonl", "no such file", "give a path, or builtin"
    ),
    "no file to measure": Case("eval m gone.txt", "gone.txt", "no such file", "hub:"),
    "no file for init": Case("init gone.txt --out o", "gone.txt", "no such file", "give a path"),
    "no tokenizer": Case(
        "init --tokenizer gone --out o", "gone", "no tokenizer.json", "Hugging Face"
    ),
    "empty": Case(f"pretrain m empty.txt {SFT}", "empty.txt", "empty", "documents are"),
    "empty for init": Case("init empty.txt --out o", "empty.txt", "empty", "documents are"),
    "blank rows": Case(f"sft m blank.jsonl {SFT}", "blank.jsonl", "no rows in it", "give data"),
    "blank table": Case(f"sft m blank.csv {SFT}", "blank.csv", "no rows in it", "give data"),
    "blank to measure": Case("eval m blank.jsonl", "blank.jsonl", "no rows in it", "give data"),
    "empty folder": Case(
        f"pretrain m nothing {SFT}", "nothing", "no data in this folder", "known: .csv"
    ),
    "pictures": Case(
        f"pretrain m pictures {SFT}", "pictures", "no data in this folder", "known: .csv"
    ),
    "no data": Case(f"sft m model.bin {SFT}", "model.bin", "cannot read .bin", "known: .csv"),
    "binary": Case(f"pretrain m binary.txt {SFT}", "binary.txt", "NUL bytes", "documents are"),
    "bad row": Case(f"sft m bad.jsonl {SFT}", "bad.jsonl:3", "not JSON", "mend"),
    "torn row": Case(f"sft m torn.jsonl {SFT}", "torn.jsonl:2", "cut off?", "mend"),
    "text for chats": Case(f"sft m book.txt {SFT}", "book.txt", "a text and no chat", "mend"),
    "semicolons": Case(
        f"sft m semicolons.csv {SFT}",
        "semicolons.csv:1",
        "one column, 'prompt;completion'",
        "commas",
    ),
    "prompts for chats": Case(
        f"sft m prompts.jsonl {SFT}", "prompts.jsonl:1", "a prompt alone is for sample", "data show"
    ),
    "a text for messages": Case(
        f"sft m said.jsonl {SFT}", "said.jsonl:1", "messages is not a list", "data show"
    ),
    "role": Case(f"sft m bot.jsonl {SFT}", "bot.jsonl:1", "('bot'): a role is system", "data show"),
    "chats for problems": Case(
        "grpo m chats.jsonl --out o", "chats.jsonl:1", "answer (it has messages)", "data show"
    ),
    "no answers": Case(
        f"sft m asked.jsonl {SFT}",
        "data",
        "no chat has a token to learn",
        "none has a message of the assistant's",
    ),
    "no folder": Case(
        "generate gone hi", "gone", "no such folder", "give a Hugging Face model folder"
    ),
    "no folder to train": Case(
        f"sft gone chats.jsonl {SFT}", "gone", "no such folder", "give a Hugging Face"
    ),
    "a file for a model": Case(
        "generate book.txt hi", "book.txt", "is a file, no folder", "give a Hugging Face"
    ),
    "no checkpoint": Case(
        "generate nothing hi", "nothing", "is not a checkpoint", "give a Hugging Face model folder"
    ),
    "no config": Case(
        "generate bare hi", "bare", "holds no config.json", "give a Hugging Face model folder"
    ),
    "no config to train": Case(
        f"sft bare chats.jsonl {SFT}", "bare", "holds no config.json", "give a Hugging Face"
    ),
    "torn weights": Case(
        "generate torn hi", "torn/model.safetensors", "cannot be read", "is the download whole?"
    ),
    "torn to train": Case(
        f"sft torn chats.jsonl {SFT}", "torn/model.safetensors", "cannot be read", "download whole?"
    ),
    "zeros": Case(
        "generate zeros hi", "zeros/model.safetensors", "cannot be read", "is the download whole?"
    ),
    "pickled": Case(
        "generate pickled hi",
        "pickled",
        "model.safetensors is missing",
        "convert them to safetensors",
    ),
    "index": Case(
        "generate index hi",
        "index/model.safetensors.index.json",
        "no index",
        "is the download whole?",
    ),
    "config list": Case(
        "generate list hi", "list/config.json", "holds no JSON object", "give a Hugging Face"
    ),
    "config bytes": Case(
        "generate utf16 hi", "utf16/config.json", "is not JSON", "is the download whole?"
    ),
    "architecture": Case(
        "generate alien hi", "alien/config.json: model_type", "architecture 'alien'", "is not run"
    ),
    "odd architecture": Case(
        "generate odd hi", "odd/config.json: model_type", "architecture ['llama']", "known:"
    ),
    "no heads": Case(
        "generate heads hi",
        "heads/config.json: num_attention_heads",
        "0 is",
        "not a whole number above 0",
    ),
    "worded context": Case(
        "generate worded hi", "max_position_embeddings", "'many'", "not a whole number"
    ),
    "worded epsilon": Case(
        "generate epsilon hi", "epsilon/config.json: rms_norm_eps", "'small'", "is not a number"
    ),
    "no words": Case(
        "generate wordless hi",
        "wordless/tokenizer.json",
        "cannot be read",
        "is the download whole?",
    ),
    "big tokenizer": Case(
        "generate small hi", "small", "tokens, the model 100", "they do not belong together"
    ),
    "big to train": Case(
        f"sft small chats.jsonl {SFT}", "small", "tokens, the model 100", "do not belong together"
    ),
    "template": Case(
        "generate refusing hi --chat", "refusing", "the chat template refuses this chat: never", ""
    ),
    "long prompt": Case(
        "generate m " + "x" * 999, "prompt", f"the model's context holds {CONTEXT}", "shorten it"
    ),
    "long message": Case(
        "generate m --chat " + "x" * 999, "prompt", f"context holds {CONTEXT}", "shorten it"
    ),
    "bytes in prompt": Case("generate m a\udcffb", "prompt", "is not UTF-8 text", "convert it"),
    "empty prompt": Case("generate m --prompt=\u2003", "prompt", "is empty", "write something"),
    "long rows": Case(
        "sft m chats.jsonl --out o --sequence-length 256",
        "sequence_length",
        f"holds {CONTEXT}",
        "or fewer",
    ),
    "long name": Case("generate " + "x" * 999 + " hi", "x" * 999, "file name too long", ""),
    "long name of data": Case("sft m " + "x" * 999, "x" * 999, "file name too long", ""),
    "no run": Case(
        "runs report mine --folder nothing", "mine", "no such run", "nothing has no runs"
    ),
    "a file in the way": Case(
        "sft m chats.jsonl --out book.txt", "book.txt", "is a file", "give another --out"
    ),
    "a file on the way": Case(
        "sft m chats.jsonl --out book.txt/o", "book.txt/o", "a file is in the way", "--out"
    ),
}
SHELL = ("recipe", "torn weights", "bad row")


def agrees(case: Case, code: int, out: str, err: str) -> None:
    """Asserts that this is the answer that `case` wants."""
    assert (code, out) == (2, ""), err
    assert re.fullmatch(r"ondevice: [^\n]+\n", err), err
    for part in (case.where, case.what, case.hint):
        assert part in err, err


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_where_and_what_to_do(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    code = cli.main(case.typed.split(" "))
    agrees(case, code, *capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELL)
def test_the_same_from_a_shell(name: str) -> None:
    case = CASES[name]
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", *case.typed.split(" ")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    agrees(case, done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_prompt_from_a_pipe_that_is_no_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", "generate", "m"],
        input=b"caf\xe9",
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    agrees(
        Case("", "prompt", "is not UTF-8 text", "convert it"),
        done.returncode,
        done.stdout.decode(),
        done.stderr.decode(),
    )


def test_nothing_is_left_by_what_was_refused_at_the_door(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mistyped name costs no run folder, so that the next attempt finds nothing in its way."""
    for name in (
        "recipe",
        "set of a stage",
        "yaml model",
        "no file",
        "no folder to train",
        "no config to train",
    ):
        assert cli.main([*CASES[name].typed.replace("--out o", "").split(), "--out", "left"]) == 2
        assert not (place / "left").exists(), name
    assert capfd.readouterr().err.count("\n") == 6


HOLDER = """
import sys
from pathlib import Path
from ondevice.runs.folder import StageFolder
with StageFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(place: Path) -> Iterator[int]:
    """The id of a process that holds the stage busy/sft."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place / "busy" / "sft")],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process.pid
    process.communicate("", timeout=120)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_stage_in_which_another_process_trains(
    held: int, more: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    line = "sft m chats.jsonl --out busy --steps 1 --sequence-length 16"
    case = Case(
        line,
        "busy/sft",
        f"process {held} trains here",
        "wait for it, stop it, or give another --out",
    )
    code = cli.main([*line.split(), *more])
    agrees(case, code, *capfd.readouterr())


@pytest.fixture
def closed(place: Path) -> Iterator[Path]:
    """A folder that may not be written to, with a file that may not be read."""
    folder = place / "closed"
    folder.mkdir()
    (folder / "book.txt").write_text("text")
    (folder / "book.txt").chmod(0)
    folder.chmod(0o555)
    root = os.access(folder, os.W_OK)
    if not root:
        yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)
    if root:
        pytest.skip("root may write and read everywhere")


@pytest.mark.parametrize(
    ("typed", "where"),
    [
        ("sft m chats.jsonl --out closed", "closed/sft"),
        ("sft m chats.jsonl --out closed/new", "closed/new"),
        ("run minute --out closed", "closed/"),
        ("pretrain m closed/book.txt", "closed/book.txt"),
        ("pretrain m closed", "closed/book.txt"),
        ("eval m closed/book.txt", "closed/book.txt"),
    ],
)
def test_what_may_not_be_written_or_read(
    closed: Path, typed: str, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(typed.split())
    out, err = capfd.readouterr()
    agrees(Case(typed, where, "permission denied", ""), code, out, err.lower())


@pytest.mark.parametrize("named", [(), ("runs/a",)])
def test_a_full_disk_is_one_line(
    named: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the system says which file it was: a write has no name."""

    def full(argv: list[str]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", *named)

    monkeypatch.setattr(cli, "_command", full)
    assert cli.main(("runs",)) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "the disk is full" in said
        and "make room" in said
        and "".join(named) in said
    )
