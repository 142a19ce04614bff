"""What has gone wrong in other trainers: rewards that are missing or raise, rollouts without an
end, prompts too long, scores that are no numbers. A stage goes on or says in one line why not, and
no weight becomes NaN."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ondevice as od
import small_stages
from data_samples import small_tokenizer
from ondevice.common.errors import UserError
from ondevice.config.preference import DPOConfig, PPOConfig
from ondevice.data.completion_batches import Row
from ondevice.data.preference_batches import TokenPair
from ondevice.data.preference_formats import to_pair
from ondevice.datasets.preference_pairs import sha_of
from ondevice.models.save import write_model
from ondevice.models.shapes import SCORE
from ondevice.preferences.pairs import held_out
from ondevice.rewards.scorer import Scores
from ondevice.rl.rollout_rewards import reward_metrics
from ondevice.runs.events import read
from ondevice.seam.select import load_backend
from ondevice.stages.dpo import crossed_rows, sides_of
from small_stages import settings

TORCH = load_backend("torch", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(tmp_path_factory.mktemp("files"), TORCH)


def events(out: Path, stage: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in read(out / stage / "events.jsonl") if e["event"] == kind]


def warned(out: Path, stage: str) -> str:
    return "\n".join(e["message"] for e in events(out, stage, "warning"))


def weights(out: Path, stage: str) -> dict[str, np.ndarray]:
    return load_file(out / stage / "model" / "model.safetensors")


def finite(out: Path, stage: str) -> bool:
    return all(np.isfinite(w).all() for w in weights(out, stage).values())


def own_rewards(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "reward.py").write_text(text)
    return {"reward_file": str(tmp_path / "reward.py"), "rewards": ()}


# ---- rewards --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_group_without_any_reward_teaches_nothing(files: Path, tmp_path: Path) -> None:
    """Two of three prompts have none: their completions' advantages are 0, and the others' are as
    without them.
    """
    own = own_rewards(
        tmp_path,
        "def some(prompts, completions, **columns):\n"
        "    return [float(len(c)) if int(p.split()[-1]) % 3 == 0 else None\n"
        "            for p, c in zip(prompts, completions)]\n",
    )
    od.grpo(**settings(files, "grpo", tmp_path / "r", "torch", steps=4, **own))
    seen = set()
    for line in (tmp_path / "r" / "grpo" / "groups.jsonl").read_text().splitlines():
        for group in json.loads(line)["groups"]:
            there = int(group["prompt"].split()[-1]) % 3 == 0
            seen.add(there)
            for one in group["completions"]:
                assert (one["reward"] is not None) == there
                assert one["advantage"] == 0.0 or there
    assert seen == {True, False}
    assert finite(tmp_path / "r", "grpo")


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_rewards_that_are_all_missing_change_no_weight(files: Path, tmp_path: Path) -> None:
    own = own_rewards(
        tmp_path,
        "def none(prompts, completions, **columns):\n    return [None] * len(completions)\n",
    )
    fields = settings(
        files, "grpo", tmp_path / "r", "torch", steps=2, beta=0.0, weight_decay=0.0, **own
    )
    od.grpo(**small_stages.alone(fields))
    for event in events(tmp_path / "r", "grpo", "step"):
        assert event["reward"] is None and event["zero_spread"] == 1.0 and event["loss"] == 0.0
    before, after = (
        load_file(files / "policy" / "model.safetensors"),
        weights(tmp_path / "r", "grpo"),
    )
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_figures_of_rewards_some_of_which_are_missing() -> None:
    """A group of one reward has no spread; no warning of numpy's is printed."""
    nan = float("nan")
    totals = np.array([[1.0, 3.0, nan], [nan, nan, nan], [2.0, nan, nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = reward_metrics(
            Scores(totals.reshape(-1), {"own": totals.reshape(-1)}, [], []), totals
        )
        nothing = reward_metrics(Scores(np.full(4, nan), {}, [], []), np.full((2, 2), nan))
    assert told == {
        "reward": 2.0,
        "reward_std": pytest.approx(2**0.5),
        "zero_spread": pytest.approx(2 / 3),
        "reward/own": 2.0,
    }
    assert (
        np.isnan(nothing["reward"])
        and np.isnan(nothing["reward_std"])
        and nothing["zero_spread"] == 1.0
    )


@pytest.mark.slow
def test_a_reward_that_raises_now_and_then_does_not_stop_the_training(
    files: Path, tmp_path: Path
) -> None:
    """In the middle of the training, at every second call, the first of which measures before it;
    what it said is told once."""
    own = own_rewards(
        tmp_path,
        "calls = []\n"
        "def moody(prompts, completions, **columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) % 2 == 0:\n"
        "        raise RuntimeError('not today')\n"
        "    return [float(len(c)) for c in completions]\n",
    )
    od.grpo(**settings(files, "grpo", tmp_path / "r", "torch", steps=5, save_every=0, **own))
    rewards = [e["reward"] for e in events(tmp_path / "r", "grpo", "step")]
    assert [r is None for r in rewards] == [True, False, True, False, True]
    assert warned(tmp_path / "r", "grpo").count("not today") == 1
    assert finite(tmp_path / "r", "grpo")


@pytest.mark.slow
def test_a_reward_that_always_raises_ends_the_training_in_one_line(
    files: Path, tmp_path: Path
) -> None:
    own = own_rewards(
        tmp_path,
        "def never(prompts, completions, **columns):\n    raise RuntimeError('not ever')\n",
    )
    with pytest.raises(UserError, match="never"):
        od.grpo(**settings(files, "grpo", tmp_path / "r", "torch", steps=30, save_every=0, **own))
    assert len(events(tmp_path / "r", "grpo", "step")) < 10


# ---- completions without an end, prompts without room ----------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that never stops: its stop tokens' logits are far below all others."""
    folder = tmp_path_factory.mktemp("endless") / "policy"
    folder.mkdir()
    cfg = small_stages.config()
    made = small_stages.weights(cfg)
    made["model.embed_tokens.weight"][:, 0] = 30.0  # one feature is large in every state
    made["lm_head.weight"][:, 0] = 0.0
    for stop in small_tokenizer().stop_ids:
        made["lm_head.weight"][stop] = 0.0
        made["lm_head.weight"][stop, 0] = -50.0
    write_model(folder, TORCH, cfg, {n: TORCH.array(w) for n, w in made.items()}, small_tokenizer())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dapo", "grpo", "bnpo", "dr_grpo", "gspo"])
def test_a_rollout_of_masked_truncated_completions_changes_nothing(
    files: Path, endless: Path, tmp_path: Path, kind: str
) -> None:
    fields = {
        **settings(
            files,
            "grpo",
            tmp_path / "r",
            "torch",
            steps=2,
            beta=0.1,
            mask_truncated=True,
            weight_decay=0.0,
            loss_type=kind,
            rewards=("length", "truncated"),
            eval_every=0,
            save_every=0,
        ),
        "model": str(endless),
    }
    od.grpo(**small_stages.alone(fields))
    for event in events(tmp_path / "r", "grpo", "step"):
        assert event["truncated"] == 1.0 and event["grad_norm"] == 0.0
    assert warned(tmp_path / "r", "grpo").splitlines() == [
        "all completions were cut at max_new_tokens and mask_truncated leaves them out: nothing is learned; raise "
        "max_new_tokens",
        "none of the 2 steps taught anything",
    ]
    before, after = load_file(endless / "model.safetensors"), weights(tmp_path / "r", "grpo")
    assert all(np.array_equal(before[n], after[n]) for n in before)


@pytest.mark.slow
def test_ppo_charges_completions_without_an_end(files: Path, endless: Path, tmp_path: Path) -> None:
    """The penalty is in the score that is told, of every completion."""
    scores = []
    for penalty in (0.0, 3.0):
        out = tmp_path / str(penalty)
        od.ppo(
            **{
                **settings(
                    files, "ppo", out, "torch", steps=1, warmup_steps=0, missing_eos_penalty=penalty
                ),
                "model": str(endless),
            }
        )
        scores.append(events(out, "ppo", "step")[0]["reward"])
    assert scores[0] - scores[1] == pytest.approx(3.0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_prompt_longer_than_the_room_is_left_out_and_counted(
    files: Path, tmp_path: Path, stage: str
) -> None:
    rows = [json.loads(line) for line in (files / "prompts.jsonl").read_text().splitlines()]
    rows[2]["prompt"] = rows[7]["prompt"] = "Anna lives in Rome. " * 20
    rows[7]["prompt"] += "?"
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = settings(
        files, stage, tmp_path / "r", "torch", steps=8, data=str(tmp_path / "asked.jsonl")
    )
    getattr(od, stage)(**fields)
    assert "2 of " in warned(tmp_path / "r", stage) and "no room" in warned(tmp_path / "r", stage)
    told = (tmp_path / "r" / stage / "groups.jsonl").read_text()
    assert "Anna lives in Rome. Anna" not in told
    assert finite(tmp_path / "r", stage)
    with pytest.raises(UserError, match="none of .* prompts leaves room"):
        getattr(od, stage)(
            **{**fields, "max_new_tokens": small_stages.CONTEXT, "out": str(tmp_path / "none")}
        )


def test_ktos_mismatched_completion_is_of_another_prompt() -> None:
    pairs = [TokenPair(Row([ask], [n]), Row([ask], [9])) for n, ask in enumerate([1, 1, 2, 1, 1])]
    assert [row.completion for row in crossed_rows(pairs)] == [[2], [2], [3], [2], [2]]
    alike = [TokenPair(Row([1], [n]), Row([1], [9])) for n in range(3)]  # nothing else is to be had
    assert [row.completion for row in crossed_rows(alike)] == [[1], [2], [0]]


def test_of_few_pairs_one_prompts_are_held_out_and_of_one_prompt_none(
    files: Path, tmp_path: Path
) -> None:
    """Ten votes are enough to begin with; what was too little is read anew once there is more."""
    rows = (files / "pairs.jsonl").read_text().splitlines()
    alone = [row for row in rows if not held_out(sha_of(to_pair(json.loads(row))), 0.1)]
    few = tmp_path / "few.jsonl"
    fields = settings(
        files, "reward", tmp_path / "r", "torch", steps=1, warmup_steps=0, data=str(few)
    )
    few.write_text(alone[0] + "\n")
    with pytest.raises(UserError, match="0 pairs to learn from and 1 held out"):
        od.reward(**fields)
    few.write_text("\n".join(alone[:9]) + "\n")
    od.reward(**{**fields, "resume": True})
    found = events(tmp_path / "r", "reward", "data")[-1]
    assert found["held_pairs"] >= 1 and found["pairs"] + found["held_pairs"] == 9


def test_what_ktos_mismatched_rows_hold_is_no_longer_than_the_longest_pair() -> None:
    """The longest prompt with the longest completion would not fit into the context."""
    pairs = [
        TokenPair(Row([1] * 50, [2] * 3), Row([1] * 50, [2] * 2)),
        TokenPair(Row([1], [2] * 40), Row([1], [3])),
    ]
    crossed = crossed_rows(pairs)
    assert [row.length for row in crossed] == [53, 4]
    assert crossed[0].prompt == [1] * 50 and crossed[1].completion == [2] * 3
    assert len(sides_of(pairs)) == 2


# ---- numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reward_model_whose_scores_are_no_numbers_is_named(files: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    for file in (files / "judge").iterdir():
        (judge / file.name).write_bytes(file.read_bytes())
    broken = load_file(judge / "model.safetensors")
    broken["score.weight"][0, 0] = np.nan
    save_file(broken, judge / "model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        od.ppo(**{**settings(files, "ppo", tmp_path / "r", "torch"), "reward_model": str(judge)})
    assert not events(tmp_path / "r", "ppo", "step")
    assert not list((tmp_path / "r" / "ppo").glob("checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo", "grpo"])
def test_a_gradient_that_is_not_finite_leaves_the_weights(
    files: Path, tmp_path: Path, stage: str
) -> None:
    """A rate so high that everything overflows: the stage ends in one line. Its checkpoints hold
    numbers; where none does, the line says that only its start is left."""
    fields = settings(
        files,
        stage,
        tmp_path / "r",
        "torch",
        learning_rate=1e30,
        steps=30,
        warmup_steps=0,
        save_every=1,
    )
    with pytest.raises(UserError, match="not finite") as error:
        getattr(od, stage)(**fields)
    kept = list((tmp_path / "r" / stage / "checkpoints").glob("step-*/model/model.safetensors"))
    assert bool(kept) != ("the stage's start is the newest" in str(error.value))
    assert all(np.isfinite(w).all() for file in kept for w in load_file(file).values())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="minibatches"):
        PPOConfig(prompts=2, minibatches=3).check()
    PPOConfig(prompts=3, minibatches=3).check()
    with pytest.raises(UserError, match="label_smoothing"):
        DPOConfig(label_smoothing=0.5).check()  # robust divides by 1 − 2·0.5


def test_a_reward_model_that_gives_one_score_is_told_of(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = load_backend("torch", "cpu", "float32")
    judge = shutil.copytree(files / "judge", tmp_path / "judge")
    params = backend.load(judge / "model.safetensors")
    backend.save(judge / "model.safetensors", {**params, SCORE: params[SCORE] * 0}, {})
    settings = small_stages.settings(
        files,
        "ppo",
        tmp_path / "run",
        "torch",
        reward_model=str(judge),
        steps=4,
        missing_eos_penalty=0,
        save_every=0,
    )
    od.ppo(**settings)
    assert capsys.readouterr().err.count("gives all completions of 3 steps the same score") == 1
