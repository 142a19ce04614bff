"""GRPO from one's own rewards: which weights are the best, and what a run says of rewards that
teach nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.preference import GRPOConfig
from ondevice.data.chat_encoding import prompt_ids
from ondevice.datasets.prompts import Prompt, thought_opening
from ondevice.rewards import isolate
from ondevice.rewards.golds import attainable
from ondevice.rewards.scorer import Rewards, Scores
from ondevice.rl.rollout import Sampled
from ondevice.rl.rollout_log import to_records
from ondevice.rl.rollout_rewards import accuracy
from ondevice.runs.events import read
from ondevice.seam.select import load_backend
from ondevice.stages.grpo import GRPOFeed
from ondevice.stages.no_signal import NoSignal


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("grpo"), load_backend("torch", "cpu", "float32")
    )


def grpo(files: Path, out: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a small run, and its done.json."""
    od.grpo(
        **{
            **small_stages.settings(files, "grpo", out, "torch"),
            "steps": 2,
            "updates": 1,
            "beta": 0.0,
            **changes,
        }
    )
    return list(read(out / "grpo" / "events.jsonl")), json.loads(
        (out / "grpo" / "done.json").read_text()
    )


@pytest.mark.parametrize("rewards", ["code", "nosuch"])
def test_rewards_that_cannot_judge_are_refused_before_anything_is_made(
    rewards: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise UserError("the isolator does not work", where="reward code")

    monkeypatch.setattr(isolate, "require", refuse)
    with pytest.raises(UserError, match="isolator does not work|no reward 'nosuch'"):
        grpo(files, tmp_path / "out", rewards=(rewards,))
    assert not (tmp_path / "out").exists()


def test_accuracy_is_of_the_reward_that_says_what_is_right_alone() -> None:
    total, right = np.array([1.0, 1.0, 0.3, 0.0]), np.array([1.0, np.nan, 0.0, 0.5])
    assert accuracy(Scores(total, {"length": total}, [None] * 4, [])) == {}
    assert accuracy(Scores(total, {"length": total, "correct": right}, [None] * 4, [])) == {
        "accuracy": 1 / 3
    }
    nothing = accuracy(Scores(total, {"correct": np.full(4, np.nan)}, [None] * 4, []))
    assert np.isnan(nothing["accuracy"])


def test_without_correct_the_best_is_best_by_reward(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out rewards of 0.1, 0.2, 0.3 …, which never come to 1: the last is the best, and
    patience ends nothing.
    """
    given = iter(np.arange(1, 100) / 10)
    monkeypatch.setattr(GRPOFeed, "watch", lambda self, params: {"reward": float(next(given))})
    events, done = grpo(files, tmp_path / "r", steps=4, eval_every=1, take_best=True, patience=1)
    for event in events:
        if event["event"] == "step":  # where the step's time went
            parts = [event[f"{part}_seconds"] for part in ("sampling", "rewards", "update")]
            assert min(parts) >= 0 and sum(parts) <= event["seconds"]
    assert not any("accuracy" in event for event in events)
    assert done["outcome"]["figure"] == "reward" and done["outcome"]["measured"] == 4


# ---- a generation prompt that opens the thought ---------------------------------------------------------------------


def opens(text: str) -> str:
    """A template whose generation prompt ends in `text`."""
    return (
        "{%- for m in messages -%}{{ '<u>' + m['content'] }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<a>" + text + "' }}{%- endif -%}"
    )


OPENS = opens("<think>\\n")
ASKED = [{"role": "user", "content": "What does <think> open?"}]


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        (OPENS, "<think>\n"),
        (opens("<think>"), "<think>"),
        (opens("<think>\\n\\n</think>\\n\\n"), ""),
        (opens(""), ""),
    ],
)
def test_what_the_prompt_opens(template: str, opened: str) -> None:
    tokenizer = small_tokenizer().with_template(template)
    assert thought_opening(prompt_ids(ASKED, tokenizer), tokenizer) == opened


def test_a_turn_is_judged_with_what_the_prompt_has_opened_of_it() -> None:
    """A finished thought earns `think`; a number in an unfinished one is no answer, and no other
    form finds one.
    """
    said = ["2 + 2 is 4\n</think>\n4", "so 4", "</think>\n4", "a</think>so 5"]
    columns = {
        "answer": ["4"] * 4,
        "truncated": [False] * 4,
        "completion_ids": [[1]] * 4,
        "max_new_tokens": 9,
    }
    with Rewards(("think", "correct", "format", "exact")) as rewards:
        scores = rewards.score(["?"] * 4, said, columns, ["<think>\n"] * 4)
        alone = rewards.score(["?"] * 4, ["<think>\n" + text for text in said], columns)
        plain = rewards.score(["?"] * 4, said, columns)
    np.testing.assert_equal(scores.by_name["think"], [1, 0, 0, 1])
    np.testing.assert_equal(scores.by_name["correct"], [1, 0, 1, 0])
    np.testing.assert_equal(scores.by_name["format"], [1, 0, 1, 1])
    assert scores.parsed == alone.parsed == ["4", None, "4", "5"]
    for name in ("think", "correct", "format"):
        np.testing.assert_equal(scores.by_name[name], alone.by_name[name])
    # of what the model wrote
    np.testing.assert_equal(scores.by_name["exact"], plain.by_name["exact"])


def test_places_of_answers_are_those_in_what_was_written() -> None:
    tokenizer = small_tokenizer().with_template(OPENS)
    ids = prompt_ids(ASKED, tokenizer)
    text = "well\n</think>\nso 42"
    [group] = to_records(
        [Prompt(ASKED, ids)], [Sampled(ids, [1], True, text)], {}, [1.0], [0.0], "number", tokenizer
    )
    [one] = group["completions"]
    assert one["parsed"] == "42" and text[slice(*one["span"])] == "42"


# ---- rewards that teach nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "form", "readable"),
    [
        ("42", "number", True),
        ("1,000", "number", True),
        ("42.0", "number", True),
        ("-4", "number", False),
        ("3.5", "number", False),
        ("Paris", "number", False),
        ("-4", "last_number", True),
        ("1/2", "last_number", True),
        ("Paris", "last_number", False),
        ("Paris", "hash", True),
        ("two\nlines", "hash", False),
        (r"x^2", "boxed", True),
        ("{", "boxed", False),
        ("Paris", "tag", True),
        ("<answer>", "tag", False),
        ("two\nlines", "whole", True),
        ("", "whole", False),
        ("x" * 2000, "tag", False),
    ],
)
def test_what_a_completion_can_be(right: str, form: str, readable: bool) -> None:
    assert attainable(right, form) is readable


def test_right_answers_that_nothing_reads_are_counted_before_the_run(
    files: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Anna {n}", "answer": "Paris" if n % 3 else str(n)} for n in range(30)]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "none.jsonl").write_text(
        "\n".join(json.dumps({**row, "answer": "Paris"}) for row in rows)
    )
    with pytest.raises(
        UserError,
        match="'number' can be any of the 30 right answers, the first of which is 'Paris'",
    ):
        grpo(
            files,
            tmp_path / "none",
            data=str(tmp_path / "none.jsonl"),
            rewards=("correct",),
            answer="number",
        )
    assert not list((tmp_path / "none" / "grpo").glob("checkpoints/*"))
    events, _ = grpo(
        files,
        tmp_path / "some",
        data=str(tmp_path / "some.jsonl"),
        rewards=("correct", "length"),
        answer="number",
    )
    said = [e["message"] for e in events if e["event"] == "warning"]
    assert any(
        m.startswith("20 of 30 right answers can be given by no completion in the form 'number'")
        for m in said
    )
    grpo(
        files,
        tmp_path / "tag",
        data=str(tmp_path / "none.jsonl"),
        rewards=("correct", "length"),
        answer="tag",
    )


def test_a_run_without_rewards_says_so_at_its_first_step(files: Path, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def mute(completions, **columns): return [None] * len(completions)\n")
    events, _ = grpo(files, tmp_path / "r", rewards=(), reward_file=str(file), steps=3)
    said = [(e.get("step"), e["message"]) for e in events if e["event"] == "warning"]
    assert (1, "the reward mute said nothing of any of 12 completions") in said
    assert (1, "no completion has a reward: nothing is learned") in said
    assert any("none of the 3 steps taught anything" in message for _, message in said)


def test_each_reason_is_said_once_and_again_later() -> None:
    said: list[tuple[int, str]] = []
    look = NoSignal(lambda text, step: said.append((step, text))).look
    one, nothing = np.ones(4), np.zeros(4)
    for step in range(1, 12):
        look(step, {"a": one}, one, nothing, one)  # all alike
    assert [step for step, _ in said] == [
        3,
        10,
    ] and "in no group of 3 steps do rewards differ" in said[0][1]
    said.clear()
    look(12, {"a": one}, one, one, nothing)  # all left out
    assert [(step, text[:23]) for step, text in said] == [(12, "all completions were cu")]
    said.clear()
    for step in range(13, 24):  # one of two says nothing, which is no reason to learn nothing
        look(step, {"a": one, "b": np.full(4, np.nan)}, one, np.arange(4.0), one)
    assert [step for step, _ in said] == [13, 22] and all(
        "the reward b said nothing" in text for _, text in said
    )


def test_answers_in_another_form_are_told_of_once() -> None:
    said: list[tuple[int, str]] = []
    look = NoSignal(lambda text, step: said.append((step, text))).look_at_answers
    texts = ["The sum of 6 and 7 is 6 + 7 = 13.", "It is 12.", "Paris"]
    look(1, "number", texts, [None, None, None])
    look(2, "number", [*texts, "11"], ["13", "13", "13", "13"])  # one has that form, and is wrong
    look(3, "number", ["Who knows?", "Paris"], ["13", "13"])  # right in no form
    assert not said
    for step in (4, 5):
        look(step, "number", texts, ["13", "13", None])
    look(5, "boxed", texts, ["13", "13", "Paris"])
    assert said == [
        (
            4,
            "none of 2 completions has its answer in the form number; in the form last_number 1 are "
            "right: --answer last_number rewards them",
        )
    ]


# ---- a person's own rewards -----------------------------------------------------------------------------------------

SAID = ["Anna", "", "<think>x</think>\\boxed{4}", "so 42"]
OWN = """
def reads_messages(prompts, completions, **columns):
    return [len(c[0]["content"]) + 10 * len(p[-1]["content"]) for p, c in zip(prompts, completions)]

def reads_text(completions, **columns):
    return [len(c) + (c[0] == "A") + (c[:1] == "A") + sum(x == "o" for x in c) for c in completions]

def reads_either(completions, **columns):
    said = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [float(m.get("role") == "assistant" and "content" in m and m["content"] == s)
            for m, s in zip((c[-1] for c in completions), said)]

def helper(text):
    return text
"""


def judged(file: Path, **columns: list[Any]) -> dict[str, list[float]]:
    with Rewards((), user_file=str(file)) as rewards:
        found = rewards.score(["four"] * len(SAID), SAID, columns)
        assert not found.warnings
        return {name: values.tolist() for name, values in found.by_name.items()}


def test_a_reward_reads_texts_or_messages(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(OWN)
    found = judged(tmp_path / "reward.py")
    assert found["reads_messages"] == [40 + len(text) for text in SAID]
    assert found["reads_text"] == [len(t) + 2 * (t[:1] == "A") + t.count("o") for t in SAID]
    assert found["reads_either"] == [1.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize("imported", [True, False])
def test_trls_own_functions_work_as_they_are(tmp_path: Path, imported: bool) -> None:
    """Imported by a file that does nothing else, or called by functions of its own; the values are
    those in TRL.
    """
    trl = pytest.importorskip("trl.rewards", reason="TRL is the oracle")
    names = ("accuracy_reward", "think_format_reward", "reasoning_accuracy_reward")
    code = f"from trl.rewards import {', '.join(names)}\n"
    if not imported:
        code += "\n".join(
            f"def my_{name}(completions, **columns): return {name}(completions, **columns)"
            for name in names
        )
    (tmp_path / "reward.py").write_text(code)
    found = judged(tmp_path / "reward.py", solution=["$4$"] * 4)
    messages = [[{"role": "assistant", "content": text}] for text in SAID]
    for name in names:
        theirs = getattr(trl, name)(messages, solution=["$4$"] * 4)
        np.testing.assert_equal(
            found[name if imported else f"my_{name}"], [np.nan if v is None else v for v in theirs]
        )
    assert len(found) == 3


def test_every_reward_is_told_with_its_weight_before_the_first_step(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of one's own counts alone, as in TRL, unless others are named; what of it is no reward
    is said.
    """
    (tmp_path / "reward.py").write_text(OWN)
    own = "reads_messages × 1, reads_text × 1, reads_either × 1"
    events, _ = grpo(
        files,
        tmp_path / "own",
        rewards=(),
        reward_file=str(tmp_path / "reward.py"),
        steps=1,
        warmup_steps=0,
    )
    assert f"grpo: rewards {own}\n" in capsys.readouterr().err
    names = [e["event"] for e in events]
    [data] = [e for e in events if e["event"] == "data"]
    assert names.index("data") < names.index("step")
    assert data["rewards"] == {"reads_messages": 1.0, "reads_text": 1.0, "reads_either": 1.0}
    assert any(
        e.get("message", "").startswith("helper of ") for e in events if e["event"] == "warning"
    )
    assert GRPOConfig().judges() == ("correct", "format", "truncated")
    assert GRPOConfig(reward_file="reward.py", rewards=("correct",)).judges() == ("correct",)
    with Rewards(("correct",), user_file=f"{tmp_path / 'reward.py'}:reads_text") as both:
        assert both.told() == "correct × 1, reads_text × 1" and both.unused == ()


@pytest.mark.slow
def test_accuracy_is_told_with_correct_alone(files: Path, tmp_path: Path) -> None:
    without, done = grpo(files, tmp_path / "without", rewards=("length",))
    assert (
        not any("accuracy" in event for event in without)
        and "accuracy" not in done["marks"]["held_out"]
    )
    together, done = grpo(files, tmp_path / "with", rewards=("length", "correct"))
    assert all("accuracy" in event for event in together if event["event"] in ("step", "eval"))
    assert done["outcome"]["figure"] == "accuracy"
