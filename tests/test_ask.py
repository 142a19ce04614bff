"""Questions about documents that a model writes: passages, checks, and a journal that survives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice import cli
from ondevice.common.errors import Interrupted, UserError
from ondevice.data.passages import passages
from ondevice.data.plain_text import Part
from ondevice.inference import ask_documents
from ondevice.inference.answer_spans import spans
from ondevice.inference.generator import Generator
from ondevice.inference.question_checks import Repeats, first_question, question_fault
from ondevice.seam.select import load_backend


def test_passages_are_whole_paragraphs_of_a_bounded_length() -> None:
    paragraphs = [" ".join(f"word{n}" for n in range(30))] * 3
    long = ". ".join(" ".join(f"w{n}" for n in range(20)) for _ in range(10))
    text = "\n\n".join([*paragraphs, long, "too short"])

    def length(words: str) -> int:
        return len(words.split())

    found = list(passages([text[:50], text[50:]], length, 70))
    assert found[0] == "\n\n".join(paragraphs[:2])
    assert found[1].startswith("w0 w1")
    assert all(length(one) <= 70 for one in found)
    assert list(passages(["too short"], length, 70)) == []
    one_word = list(passages(["x" * 500 + " y" * 50], len, 60))
    assert all(len(one) <= 60 for one in one_word)


PASSAGE = """CLARA:
Over the years Clara Voss has built two stone bridges over the Ull. Dr. Voss sold 14 boats in Hull for $300.
The ferry sank because it had been old for many years. Yesterday, she rowed 9 miles. How many miles did
Voss row? She rowed 3*3 = 9 miles. In 1873 they met in Paris. "Voss knows 5 songs," said the miller of Hull."""


def test_what_can_be_asked_for_stands_in_sentences_that_say_it_by_themselves() -> None:
    found = {(span.kind, span.answer, span.opener) for span in spans(PASSAGE)}
    assert found == {
        ("how many", "two", "How many stone bridges"),
        ("who", "Dr. Voss", "Who"),
        ("how many", "14", "How many boats"),
        ("where", "Hull", "Where"),
        ("how many", "$300", "How much"),
    }
    assert all(span.answer in span.sentence for span in spans(PASSAGE))
    every = (
        "Anna keeps 12 hens and 3 goats. Near the mill lives Bert with 4 cats. "
        "Many know Anna well. In Hull the Line 7 trams are few."
    )
    assert [span.answer for span in spans(every)] == ["Anna", "4", "12", "3"]


SENTENCE = "Clara Voss built the stone bridge over the Ull for 40 families in 1873."


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("Who built the stone bridge over the Ull for 40 families?", ""),
        ("Who built the stone bridge for 40 families of her town in 1873?", ""),
        ("Who built the bridge?", "says too little"),
        ("Who had Clara Voss build the stone bridge for 40 families?", "says its answer"),
        ("Who built Clara Voss's stone bridge over the Ull in 1873?", "says its answer"),
        ("What does the author say of the stone bridge?", "asks about the text"),
        ("According to the text, who built the stone bridge?", "asks about the text"),
        ("Who built the stone bridge over the Ull for Napoleon?", "asks what its sentence"),
        ("Who built the stone bridge over the Ull in 1999?", "asks what its sentence"),
        ("Who is the most famous and beautiful mayor of Ull?", "asks what its sentence"),
        ("When had he built the stone bridge for 40 families?", "cannot be understood"),
        ("Who built?", "is no question"),
        ("", "is no question"),
    ],
)
def test_questions_are_checked(question: str, fault: str) -> None:
    found = question_fault(question, SENTENCE, "Clara Voss")
    assert found.startswith(fault) and bool(found) == bool(fault), found


def test_one_question_is_taken_out_of_what_was_written() -> None:
    assert first_question(' 1. "Who built\nthe bridge? And when?') == "Who built the bridge?"
    assert first_question("No question here.") == ""


def test_nothing_is_asked_twice() -> None:
    repeats = Repeats()
    bridge = "Who built the stone bridge over the Ull?"
    assert not repeats.seen(bridge, [])
    assert repeats.seen("Who was it that built the old stone bridges over the Ull?", ["", bridge])
    assert repeats.seen("Over the Ull, who built the bridge of stone?", [])
    assert not repeats.seen("When did carts cross on a ferry?", [bridge])


class Written(Generator):
    """A model that asks well; it is stopped at the call `ends`."""

    calls = 0
    ends = -1

    def run(self, params: Any, prompts: Sequence[Sequence[int]], **how: Any) -> list[Any]:
        Written.calls += 1
        if Written.calls == Written.ends:
            raise Interrupted("stopped")
        said = []
        for prompt in prompts:
            before, _, behind = self._tokenizer.decode(list(prompt)).rpartition("Ask for: ")
            answer, noun = re.findall(r"(.+?)(?:Who|How many( \w+))$", behind)[0]
            rest = before.rpartition("?")[2].partition(answer)[2].rstrip().removeprefix(noun)
            said.append(SimpleNamespace(ids=list(self._tokenizer.encode(f"{rest[:-1]}?"))))
        return said


def choose(self: object, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """The right answers to what `Written` asks."""
    said = []
    for passage, question, answers in asked:
        words = question.removeprefix("Who ").removeprefix("How many ").removesuffix("?")
        before = passage.partition(f" {words}")[0].split()[-1]
        assert before in answers
        said.append(before)
    return said


@pytest.fixture
def _writes_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_documents, "generator_of", lambda m, b, how: Written(m, b, how))
    monkeypatch.setattr(ask_documents.Answerer, "choose", choose)


def text_of(town: int) -> str:
    house = (
        f"Anna{town} lives in a town with {town + 21} houses and {town + 31} mills beside a river."
    )
    return f"{house} Many people here know Anna{town} well and like Anna{town} a lot. " * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.write(
        tmp_path_factory.mktemp("ask") / "model",
        load_backend("torch", "cpu"),
        replace(small_stages.config(), max_position_embeddings=4096),
    )


def _documents(folder: Path) -> Path:
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.md").write_text(text_of(n))
    return folder


COMMON: dict[str, Any] = {"backend": "torch", "device": "cpu", "questions": 1, "batch_size": 1}


@pytest.mark.usefixtures("_writes_well")
def test_what_was_asked_survives_a_stop_at_any_point(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each call of the model in turn, and within a line of the journal, it ends with the
    rows of a run that was not stopped, in the form that sft reads."""
    folder = _documents(tmp_path / "documents")
    monkeypatch.setattr(Written, "calls", 0)
    whole = od.ask(folder, model, out=tmp_path / "whole.jsonl", **COMMON)
    calls, expected = Written.calls, (tmp_path / "whole.jsonl").read_text()
    assert whole["kept"] >= 3 and whole["passages"] >= 4 and whole["written"] == whole["passages"]
    row = json.loads(expected.splitlines()[0])
    assert row["messages"][1]["content"] == "Anna0" and row["source"].endswith("0.md")
    assert row["messages"][0]["content"].startswith("Who lives in a town with 21 houses")
    assert "Anna0 lives" in row["asked_of"]
    out = tmp_path / "stopped.jsonl"
    for _ in range(calls + 1):
        Written.calls, Written.ends = 0, 2
        try:
            od.ask(folder, model, out=out, **COMMON)
            break
        except Interrupted:
            with ask_documents.journal_of(out).open("ab") as journal:
                journal.write(b'{"number": 99, "asked": [')  # cut off within a line
    Written.ends = -1
    told = od.ask(folder, model, out=out, **COMMON)
    assert out.read_text() == expected and told["kept"] == whole["kept"]
    with pytest.raises(UserError, match="was asked with passage_tokens 256, not 300"):
        od.ask(folder, model, out=out, **COMMON, passage_tokens=300)
    anew = od.ask(folder, model, out=out, again=True, **COMMON, passage_tokens=300)
    assert anew["written"] == anew["passages"] and anew["gone"] == 0


@pytest.mark.usefixtures("_writes_well")
def test_more_is_asked_beside_what_was_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger limit, more questions and more documents go on: what is there stays, and no passage is
    asked again."""
    folder, out = _documents(tmp_path / "documents"), tmp_path / "chats.jsonl"
    asked: list[int] = []

    class Counted(Written):
        def run(self, params: Any, prompts: Sequence[Sequence[int]], **how: Any) -> list[Any]:
            if how["stage"] == "ask":
                asked.extend(how["numbers"])
            return super().run(params, prompts, **how)

    monkeypatch.setattr(ask_documents, "generator_of", lambda m, b, how: Counted(m, b, how))
    few = od.ask(folder, model, out=out, **COMMON, limit=2)
    rows = out.read_text()
    assert few["passages"] == few["written"] == 2 and len(asked) == 2
    more = od.ask(folder, model, out=out, **COMMON, limit=4)
    assert more["passages"] == 4 and out.read_text().startswith(rows) and len(asked) == 4
    twice = od.ask(folder, model, out=out, **{**COMMON, "questions": 2, "batch_size": 4}, limit=4)
    assert twice["passages"] == 4 and twice["written"] == 8
    new = text_of(77)
    for n in range(2):  # a passage that two documents hold is asked about once
        (folder / f"new{n}.md").write_text(f"{new}\n\n" + f"Other words of {n} stand here. " * 40)
    every = od.ask(folder, model, out=out, **COMMON)
    assert every["passages"] > 4 and len(asked) == len(set(asked)) == every["written"]
    assert "Anna77" in out.read_text() and out.read_text().startswith(rows)
    less = od.ask(folder, model, out=out, **COMMON, limit=1)
    assert less == every
    (folder / "new0.md").unlink()
    (folder / "new1.md").unlink()
    without = od.ask(folder, model, out=out, **COMMON)
    assert without["gone"] and "Anna77" not in out.read_text()
    assert f"{without['gone']:,} more were asked before" in ask_documents.render(without)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.md").write_text(text_of(99))
    with pytest.raises(UserError, match="was asked of other documents"):
        od.ask(tmp_path / "others", model, out=out, **COMMON)


def test_no_file_of_a_person_is_written_over(model: Path, tmp_path: Path) -> None:
    """Nor do the rows come to stand among the documents, which then would be read no more."""
    folder = _documents(tmp_path / "documents")
    mine = tmp_path / "chats.jsonl"
    mine.write_text('{"messages": []}\n')
    for out, reason in (
        (mine, "is there already"),
        (folder / "chats.jsonl", "stands among the documents"),
        (folder / "more" / "chats.jsonl", "stands among the documents"),
    ):
        for again in (False, True):
            with pytest.raises(UserError, match=reason):
                od.ask(folder, model, out=out, again=again, **COMMON)
    with pytest.raises(UserError, match="is there already"):
        od.ask(mine, model, out=mine, **COMMON)
    assert mine.read_text() == '{"messages": []}\n' and len(list(folder.iterdir())) == 4


def test_a_long_document_is_never_in_memory_whole() -> None:
    """Its parts are asked for one after the other, with paragraphs or without."""
    parts = iter([Part.of("a b\n" * (1 << 18), n < 49) for n in range(50)])
    taken = 0

    def rows() -> Iterator[tuple[str, str]]:
        nonlocal taken
        for part in parts:
            taken += 1
            yield "a.txt", part
        yield "b.txt", "other"

    found = ask_documents._documents(rows())
    place, inside = next(found)
    assert place == "a.txt" and len(next(passages(inside, len, 1000))) > 400 and taken <= 3
    assert sum(1 for _ in inside) >= 47
    assert [(place, list(inside)) for place, inside in found] == [("b.txt", ["other"])]


def test_the_command_and_what_it_refuses(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights: nothing passes the checks, and all of it is counted."""
    folder = _documents(tmp_path / "documents")
    out = tmp_path / "chats.jsonl"
    words = ["data", "ask", str(folder), "--model", str(model), "--out", str(out)]
    words += ["--backend", "torch", "--device", "cpu", "--limit", "2", "--max-new-tokens", "8"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "2 passages, 4 questions written, 0 kept by the checks" in told and out.read_text() == ""
    assert "is empty: a larger model" in told and "look through" not in told
    for more, reason in (
        (["--again", "--passage-tokens", "9999"], "do not fit its context"),
        (["--again", "--questions", "0"], "questions"),
        (["--out", "chats.csv"], "is no .jsonl file"),
    ):
        assert cli.main([*words, *more]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["data", "ask", "--help"]) == 0
    assert "passage-tokens" in capsys.readouterr().out
