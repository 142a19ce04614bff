"""`ondevice worker`: requests and events, line by line, and when it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
from ondevice.common.errors import UserError
from ondevice.config.use import WorkerConfig
from ondevice.data.chat_encoding import add_template
from ondevice.data.completion_batches import prompt_and_completion
from ondevice.data.preference_batches import completion_row
from ondevice.inference.worker import serve
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.models.score_head import with_head
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights, with a chat template."""
    folder = tmp_path_factory.mktemp("worker")
    text = folder / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the log.\n" * 200)
    made = od.init(
        data=str(text),
        out=folder / "run",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        device="cpu",
    )
    backend = load_backend("auto", device="cpu")
    loaded = load_model(made, backend)
    (folder / "chat").mkdir()
    write_model(
        folder / "chat", backend, loaded.cfg, loaded.params, add_template(loaded.tokenizer, "plain")
    )
    return folder / "chat"


def answers(model: Path, *requests: Any) -> list[dict[str, Any]]:
    """What a worker in this process says to these lines."""
    lines = [request if isinstance(request, str) else json.dumps(request) for request in requests]
    sink = io.BytesIO()
    asked = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    serve(WorkerConfig(model=str(model), device="cpu"), asked, sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def ask(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "op": "generate",
        "id": name,
        "text": "The cat",
        "sampling": {"max_new_tokens": 8, "seed": 3},
        **fields,
    }


def test_it_streams_what_generate_says(model: Path) -> None:
    events = answers(
        model, ask("a"), ask("b", number=1), ask("c", number=1, sampling={"temperature": 0})
    )
    assert events[0] == {
        "event": "ready",
        "model": str(model),
        "parameters": events[0]["parameters"],
        "context": 96,
        "chat": True,
        "judges": False,
        "template_kwargs": {},
        "template_reads": [],
    }
    for name in "ab":
        done = next(e for e in events if e["event"] == "done" and e["id"] == name)
        pieces = [e["text"] for e in events if e["event"] == "token" and e["id"] == name]
        assert "".join(pieces) == done["text"] and 0 < done["tokens"] <= 8 and not done["cancelled"]
    wanted = od.generate(
        model=str(model), prompt="The cat", samples=2, max_new_tokens=8, seed=3, device="cpu"
    )
    assert [e["text"] for e in events if e["event"] == "done"][:2] == wanted


def score(name: str, *responses: Any, **fields: Any) -> dict[str, Any]:
    return {
        "op": "score",
        "id": name,
        "messages": [{"role": "user", "content": "the cat"}],
        "responses": list(responses),
        **fields,
    }


def test_a_reward_model_scores_as_it_does_in_training(model: Path, tmp_path: Path) -> None:
    backend = load_backend("auto", device="cpu")
    judge = with_head(load_model(model, backend), backend, seed=1)
    write_model(tmp_path, backend, judge.cfg, judge.params, judge.tokenizer)
    texts = ["sat on the mat", "sat on the log.", ""]
    prompt = [{"role": "user", "content": "the cat"}]
    rows = [prompt_and_completion(completion_row(prompt, text, judge.tokenizer)) for text in texts]
    wanted = Scorer(judge, backend, batch_size=3).scores(judge.params, rows)
    ready, done, *errors = answers(
        tmp_path,
        score("a", *texts),
        ask("b"),
        score("c", "x", messages=[]),
        score("d"),
        score("e", 3),
        score("f", "the cat " * 200),
    )
    assert (
        ready["judges"] and done["id"] == "a" and done["scores"] == pytest.approx(wanted, abs=1e-5)
    )
    assert len(set(done["scores"])) == 3
    for error, says in zip(
        errors,
        [
            "writes no text",
            "asks nothing",
            "a list of texts",
            "a list of texts",
            "the model's context holds 96",
        ],
        strict=True,
    ):
        assert error["event"] == "error" and says in error["message"]


def test_a_model_that_writes_gives_no_scores(model: Path) -> None:
    _, error, *rest = answers(model, score("a", "x"), ask("b"))
    assert error["event"] == "error" and "gives no scores" in error["message"]
    assert rest[-1]["event"] == "done" and rest[-1]["id"] == "b"


def test_a_conversation_that_is_too_long_forgets_its_first_turns(model: Path) -> None:
    turns = [
        {"role": role, "content": "the cat sat on the mat. " * 2}
        for role in ("user", "assistant") * 6
    ]
    messages = [
        {"role": "system", "content": "be kind"},
        *turns,
        {"role": "user", "content": "hello \ud800"},
    ]
    (_, *_, done) = answers(
        model, ask("a", text=None, messages=messages, sampling={"max_new_tokens": 90})
    )
    assert done["event"] == "done" and done["forgotten"] >= 2 and done["forgotten"] % 2 == 0
    assert done["prompt_tokens"] + 24 <= 96  # a quarter of the context is the answer's
    assert done["full"] == (not done["stopped"] and done["prompt_tokens"] + done["tokens"] == 96)
    few = ask("a", text=None, messages=messages, sampling={"max_new_tokens": 2})
    (_, *_, short) = answers(model, few)
    # or less, where less is asked for
    assert short["prompt_tokens"] >= done["prompt_tokens"] and not short["full"]


def test_the_template_is_told_what_a_request_says(model: Path, tmp_path: Path) -> None:
    backend = load_backend("auto", device="cpu")
    loaded = load_model(model, backend)
    moody = "{{ mood | default('') }}" + str(loaded.tokenizer.chat_template)
    (tmp_path / "moody").mkdir()
    write_model(
        tmp_path / "moody",
        backend,
        loaded.cfg,
        loaded.params,
        loaded.tokenizer.with_template(moody, ()),
    )
    said = {"text": None, "messages": [{"role": "user", "content": "the cat"}]}
    events = answers(
        tmp_path / "moody",
        ask("a", **said),
        ask("b", **said, sampling={"chat_template_kwargs": {"mood": "calm "}, "max_new_tokens": 8}),
    )
    plain, told = (event["prompt_tokens"] for event in events if event["event"] == "done")
    assert told == plain + len(loaded.tokenizer.encode("calm "))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ("nonsense", "unknown request"),
        ("[1]", "unknown request"),
        ({"op": "eat", "id": "x"}, "unknown request 'eat'"),
        ({"op": "generate", "id": "x"}, "asks nothing"),
        (ask("x", text=None, messages=["hi"]), "expected a role"),
        (ask("x", sampling={"temprature": 1}), "unknown key 'temprature'"),
        (ask("x", sampling={"top_p": 3}), "out of range"),
        (
            ask("x", sampling={"chat_template_kwargs": {"mood": "calm"}}),
            "a text that is continued has no chat template",
        ),
        (
            ask(
                "x",
                text=None,
                messages=[{"role": "user", "content": "a"}],
                sampling={"chat_template_kwargs": {"mood": "calm"}},
            ),
            "does not read 'mood'",
        ),
        (ask("x", sampling=[1]), "expected keys and values"),
        (ask("x", number=-1), "expected a whole number"),
        (ask("x", text=""), "empty"),
        (ask("x", text="the cat " * 500), "the model's context holds 96"),
    ],
)
def test_what_is_wrong_is_told_and_the_next_is_answered(
    model: Path, request_: Any, says: str
) -> None:
    _, error, *rest = answers(model, request_, ask("after"))
    assert error["event"] == "error" and says in error["message"]
    assert rest[-1]["event"] == "done" and rest[-1]["id"] == "after"


def test_a_cancelled_request_is_done_without_a_token(model: Path) -> None:
    """One that still waits: the reader has seen the cancel before the model takes it up."""
    events = answers(model, ask("a"), ask("b"), {"op": "cancel", "id": "b"})
    done = {e["id"]: e for e in events if e["event"] == "done"}
    assert not done["a"]["cancelled"]
    assert done["b"]["cancelled"] and done["b"]["text"] == "" and not done["b"]["stopped"]


def test_a_model_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        answers(tmp_path / "nothing")


def test_the_command_answers_a_pipe_and_keeps_stdout_clean(model: Path) -> None:
    asked = json.dumps(ask("a")) + "\n"
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", "worker", str(model), "--device", "cpu"],
        input=asked,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert kinds[0] == "ready" and kinds[-1] == "done"


def test_it_stops_in_the_middle_and_dies_with_its_parent(model: Path, tmp_path: Path) -> None:
    """A parent that asks for a very long answer, cancels it, asks again and is killed."""
    code = textwrap.dedent("""
        import json, subprocess, sys, time
        worker = subprocess.Popen([sys.executable, "-m", "ondevice", "worker", sys.argv[1], "--device", "cpu"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        def ask(**fields):
            worker.stdin.write(json.dumps(fields).encode() + b"\\n"); worker.stdin.flush()
        json.loads(worker.stdout.readline())
        ask(op="generate", id="long", text="The", sampling={"max_new_tokens": 90})
        json.loads(worker.stdout.readline())
        ask(op="cancel", id="long")
        while (event := json.loads(worker.stdout.readline()))["event"] != "done": pass
        print(json.dumps({"pid": worker.pid, **event}), flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    told = json.loads(parent.stdout.readline())
    # a fast machine is done before the cancel is heard
    assert told["cancelled"] or told["tokens"] == 90
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while _alive(told["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


POLITE = """{% for message in messages %}{{ message.role }}: {{ message.content }}{% if polite %} please{% endif %}
{% endfor %}assistant:"""


@pytest.fixture(scope="module")
def polite(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a stage whose chat template was told {"polite": true}."""
    stage = tmp_path_factory.mktemp("run") / "sft"
    backend = load_backend("auto", device="cpu")
    loaded = load_model(model, backend)
    (stage / "model").mkdir(parents=True)
    write_model(
        stage / "model", backend, loaded.cfg, loaded.params, loaded.tokenizer.with_template(POLITE)
    )
    setting = json.dumps({"polite": True})
    (stage / "events.jsonl").write_text(
        json.dumps({"t": 1.0, "event": "start", "config": {"chat_template_kwargs": setting}}) + "\n"
    )
    return stage / "model"


def test_the_chat_template_is_told_what_it_was_told_in_training(polite: Path) -> None:
    def asked(name: str, **sampling: Any) -> dict[str, Any]:
        return ask(
            name,
            text=None,
            messages=[{"role": "user", "content": "the cat"}],
            sampling={"max_new_tokens": 2, **sampling},
        )

    ready, *events = answers(
        polite,
        asked("default"),
        asked("same", chat_template_kwargs='{"polite": true}'),
        asked("none", chat_template_kwargs="{}"),
        asked("off", chat_template_kwargs='{"polite": 0}'),
        asked("unread", chat_template_kwargs='{"thinks": true}'),
    )
    assert ready["template_kwargs"] == {"polite": True} and ready["template_reads"] == ["polite"]
    read = {event["id"]: event["prompt_tokens"] for event in events if event["event"] == "done"}
    assert read["default"] == read["same"] > read["none"] == read["off"]
    (error,) = [event for event in events if event["event"] == "error"]
    assert (
        error["id"] == "unread"
        and error["where"] == "chat_template_kwargs"
        and "polite" in error["hint"]
    )


def test_the_commands_tell_it_so_too(polite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ondevice.config.use import ChatConfig, GenerateConfig
    from ondevice.inference.chat import open_model

    def told(cfg: ChatConfig | GenerateConfig) -> dict[str, Any]:
        opened, _ = open_model(cfg)
        return opened.tokenizer.template_kwargs

    here = {"model": str(polite), "device": "cpu"}
    assert told(ChatConfig(**here)) == {"polite": True}  # type: ignore[arg-type]
    assert "as in training" in capsys.readouterr().err
    assert told(ChatConfig(**here, chat_template_kwargs="{}")) == {}  # type: ignore[arg-type]
    assert told(GenerateConfig(**here)) == {}, "a text that is continued has no template"  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
