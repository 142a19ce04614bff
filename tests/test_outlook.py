"""What this machine could do, in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ondevice.common import user_cache
from ondevice.planning import calibration, outlook
from ondevice.planning.calibration import Calibration, Rates, Speeds
from ondevice.planning.outlook import next_words, words
from test_dial import MACHINE, RATES, SPEEDS


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return outlook.outlook(replace(MACHINE, budget=2_300_000_000))


def test_it_says_how_fast_models_learn_and_which_fit(told: dict[str, Any]) -> None:
    json.dumps(told)
    speeds = [row["tokens_per_second"] for row in told["pretraining"]]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] > 0
    memory = [row["memory"] for row in told["tuning"]]
    assert memory == sorted(memory)
    assert [row["fits"] for row in told["tuning"]] == ["yes", "tight", "no"]
    text = "\n".join(words({**told, "power": "battery"}))
    assert "power       on its battery" in text
    assert "one hour makes a model of" in text and "ondevice run laptop --time 1h" in text
    assert "SFT with LoRA of 135 M at 4 bits: fits (" in text
    assert "SFT with LoRA of 8 B at 4 bits: does not fit (" in text


def test_more_memory_and_speed_show(told: dict[str, Any]) -> None:
    fast = replace(SPEEDS, products=((64.0, 1e13), (512.0, 4e13)), learning=Rates(1.2, 1e-12, 1e-6))
    found = outlook.outlook(replace(MACHINE, budget=64 << 30, speeds=fast))
    assert {row["fits"] for row in found["tuning"]} == {"yes"}
    assert found["hour"]["parameters"] > 3 * told["hour"]["parameters"]
    assert found["hour"]["tokens"] > 3 * told["hour"]["tokens"]


def test_a_machine_that_is_not_measured_says_how_it_is() -> None:
    found = outlook.outlook(replace(MACHINE, speeds=None))
    assert found["hour"] is None and not found["calibrated"]
    assert "not measured yet: ondevice plan minute measures it" in "\n".join(words(found))
    assert next_words(found, []) == []


def test_what_could_be_done_next_names_recipes_that_are_there(told: dict[str, Any]) -> None:
    story = "one hour makes a storyteller: ondevice run stories --time 1h"
    assert next_words(told, ["minute", "stories"])[0] == story
    assert story not in next_words(told, ["minute"])
    assert "ondevice run laptop --time 1h" in "\n".join(next_words(told, ["laptop"]))


def test_the_end_of_the_quickstart(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(user_cache.FOLDER, str(tmp_path))
    key = calibration.key_of("auto", "auto", "auto")
    assert RATES.products
    speeds: Speeds = SPEEDS
    calibration.save(Calibration(key, "cpu", "float32", 16 << 30, 200 << 20, speeds))
    outlook.main()
    assert "ondevice run laptop --time 1h" in capsys.readouterr().out
