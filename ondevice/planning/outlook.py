"""What this machine could do, in words, from its calibration: how fast it learns at some sizes, what an
hour makes, which models can be tuned on it. Nothing is run.

`python -m ondevice.planning.outlook` says what could be done next, and measures the machine for it
where it was not measured before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.power import power_state
from ondevice.common.progress import size
from ondevice.common.sanitize import to_stderr
from ondevice.config.finetuning import SFTConfig
from ondevice.config.recipe import recipe_names
from ondevice.config.stages import PretrainConfig, TrainingConfig
from ondevice.data.tokenizer_training import train_tokenizer
from ondevice.models.model import Model
from ondevice.models.registry import parse_config
from ondevice.planning import calibration
from ondevice.planning.dial import laws
from ondevice.planning.dial.shapes import SHAPES, Shape, step_tokens, text_length
from ondevice.planning.dimensions import dimensions
from ondevice.planning.machine import Machine, planned_machine
from ondevice.planning.memory import Bytes, bytes_of_stage
from ondevice.planning.model_facts import ModelFacts
from ondevice.planning.seconds import step_seconds
from ondevice.planning.trained import trained_by
from ondevice.planning.verdict import TIGHT
from ondevice.planning.work import Pass, Work
from ondevice.runs.device_batch import cache_bytes
from ondevice.seam import doctor

HOUR_S = 3600.0
_FROM_RANDOM = (1e6, 10e6, 30e6, 125e6)
"""Parameters of models that are pre-trained."""
_TUNED: tuple[tuple[str, Mapping[str, int]], ...] = (
    (
        "135 M",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "heads": 9,
            "kv": 3,
        },
    ),
    (
        "1.7 B",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "heads": 32,
            "kv": 32,
        },
    ),
    (
        "8 B",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "heads": 32,
            "kv": 8,
        },
    ),
)
"""Shapes of SmolLM2 and of Llama 3.1."""
_VOCABULARY = {"135 M": 49_152, "1.7 B": 49_152, "8 B": 128_256}
_BITS = 4.5  # of a number that is packed in 4, with its part of a scale and a bias
_CHAT, _CHATS = 512, 4  # tokens of a row of chats, rows of a step
_WORTH = 50  # tokens a second, below which tuning is not proposed


def outlook(machine: Machine | None = None) -> dict[str, Any]:
    """What the machine could do, as JSON values: {"power", "calibrated", "pretraining": [{"parameters",
    "tokens_per_second"}], "hour": {"parameters", "tokens"}, "tuning": [{"model", "fits", "memory",
    "tokens_per_second"}]}; the lists are empty, and `hour` is None, where it is not measured."""
    machine = machine or _machine()
    found: dict[str, Any] = {
        "power": power_state(),
        "calibrated": machine is not None and machine.speeds is not None,
        "pretraining": [],
        "hour": None,
        "tuning": [],
    }
    if machine is None or machine.speeds is None:
        return found
    for parameters in _FROM_RANDOM:
        shape = min(SHAPES, key=lambda one: abs(one.parameters(4096, tied=True) - parameters))
        speed = 1 / token_seconds(shape, machine)
        row = {"parameters": shape.parameters(4096, tied=True), "tokens_per_second": round(speed)}
        found["pretraining"].append(row)
    found["hour"] = _best(HOUR_S, machine)
    for name, sizes in _TUNED:
        found["tuning"].append(_tuning(name, sizes, machine))
    return found


def _machine() -> Machine | None:
    """This machine with its calibration; None where no backend is here."""
    try:
        known = calibration.load("auto", "auto", "auto")
        return planned_machine("auto", "auto", "auto", "", known)
    except UserError:
        return None


def _best(seconds: float, machine: Machine) -> dict[str, Any]:
    """The size of model that text enough makes best in so many seconds, and the tokens that it
    reads."""
    best: tuple[float, Shape, float] | None = None
    for shape in SHAPES:
        tokens = seconds / token_seconds(shape, machine)
        loss = laws.loss(shape.parameters(0, tied=True), tokens, tokens)
        if best is None or loss < best[0]:
            best = (loss, shape, tokens)
    assert best is not None
    _, shape, tokens = best
    return {"parameters": shape.parameters(4096, tied=True), "tokens": round(tokens)}


def token_seconds(shape: Shape, machine: Machine) -> float:
    """Of learning from a token of running text, from random weights."""
    length = text_length(shape.parameters(0, tied=True))
    rows = max(1, step_tokens(1e7) // length)
    sizes = {name: value for name, value in shape.settings.items() if name != "head_dim"}
    facts = _facts({**sizes, "vocab_size": 4096})
    cfg = PretrainConfig(checkpointing=False)
    work = Work([_pass(rows, length)], updates=1)
    return _seconds(cfg, facts, work, machine) / (rows * length)


def _tuning(name: str, sizes: Mapping[str, int], machine: Machine) -> dict[str, Any]:
    """Instruction tuning of an adapter beside a model that is packed in 4 bits."""
    raw = {key: value for key, value in sizes.items() if key not in ("heads", "kv")}
    raw |= {
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "vocab_size": _VOCABULARY[name],
    }
    facts = replace(_facts(raw), bits=_BITS)
    row: dict[str, Any] = {"model": name}
    for again in (False, True):
        cfg = SFTConfig(adapter="lora", checkpointing=again)
        work = Work([_pass(1, _CHAT, times=float(_CHATS))], updates=1, micro_batch=1)
        memory = machine.process + _bytes(cfg, facts, work, machine).grown
        speed = _CHATS * _CHAT / _seconds(cfg, facts, work, machine)
        fits = _fits(memory, machine)
        row |= {"fits": fits, "memory": round(memory), "tokens_per_second": round(speed)}
        if fits == "yes":
            break
    return row


def _fits(memory: float, machine: Machine) -> str:
    if machine.budget is None or memory <= TIGHT * machine.budget:
        return "yes"
    return "tight" if memory <= machine.budget else "no"


def _facts(raw: Mapping[str, Any]) -> ModelFacts:
    cfg = parse_config(
        {
            "model_type": "llama",
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            **raw,
        }
    )
    return ModelFacts(Model(cfg, {}, train_tokenizer(["one two three"] * 3, 300), Path("outlook")))


def _pass(rows: int, length: int, times: float = 1.0) -> Pass:
    return Pass(float(rows * length), float(length), float(rows * length), rows, times=times)


def _seconds(cfg: TrainingConfig, facts: ModelFacts, work: Work, machine: Machine) -> float:
    assert machine.speeds is not None
    return step_seconds(
        work,
        cfg,
        trained_by(cfg, facts, machine.dtype),
        dimensions(facts.cfg),
        costs=machine.costs,
        speeds=machine.speeds,
        size=2 if machine.dtype == "bfloat16" else 4,
    )


def _bytes(cfg: TrainingConfig, facts: ModelFacts, work: Work, machine: Machine) -> Bytes:
    return bytes_of_stage(
        cfg,
        trained_by(cfg, facts, machine.dtype),
        dimensions(facts.cfg),
        work,
        Work(),
        costs=machine.costs,
        dtype=machine.dtype,
        cache_bytes=cache_bytes(facts.model, machine.dtype),
    )


# ---- in words -------------------------------------------------------------------------------------


def report() -> dict[str, Any]:
    """What `ondevice doctor` says: of `seam/doctor.py`, and `outlook` beside it."""
    return {**doctor.doctor(), "outlook": outlook()}


def render(found: dict[str, Any]) -> str:
    """The report as lines for a person."""
    told = found["outlook"]
    lines = [doctor.render(found), "", *words(told)]
    return "\n".join(lines)


def words(told: Mapping[str, Any]) -> list[str]:
    """The outlook in lines."""
    power = {"battery": "on its battery", "mains": "on the mains"}.get(told["power"], told["power"])
    lines = [] if power == "unknown" else [f"  {'power':<12}{power}"]
    if not told["calibrated"]:
        how = "ondevice plan minute measures it, once, some ten seconds"
        return [*lines, f"  {'speed':<12}this machine is not measured yet: {how}"]
    for row in told["pretraining"]:
        read = row["tokens_per_second"] * HOUR_S
        lines.append(
            f"  pre-training {short(row['parameters'])}: {row['tokens_per_second']:,} tokens/s, one "
            f"hour reads {short(read)} tokens"
        )
    lines.append(f"  {hour_words(told['hour'])}: ondevice run laptop --time 1h")
    for row in told["tuning"]:
        fits = {"yes": "fits", "tight": "fits tightly", "no": "does not fit"}[row["fits"]]
        speed = "" if row["fits"] == "no" else f", {row['tokens_per_second']:,} tokens/s"
        lines.append(
            f"  SFT with LoRA of {row['model']} at 4 bits: {fits} ({size(row['memory'])}){speed}"
        )
    return lines


def hour_words(hour: Mapping[str, Any]) -> str:
    """ "one hour makes a model of 5 M parameters that has read 100 M tokens"."""
    return (
        f"one hour makes a model of {short(hour['parameters'])} parameters that has read "
        f"{short(hour['tokens'])} tokens"
    )


def short(count: float) -> str:
    """30 M, 1.1 M, 640 K."""
    for unit, much in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= much:
            return (
                f"{count / much:.2g} {unit}" if count < 100 * much else f"{count / much:.0f} {unit}"
            )
    return f"{count:g}"


def next_words(told: Mapping[str, Any], known: list[str]) -> list[str]:
    """What could be done next on this machine, with the command for it; `known`: recipes."""
    lines = []
    if "stories" in known:
        lines.append("one hour makes a storyteller: ondevice run stories --time 1h")
    if told["hour"] is not None:
        lines.append(f"{hour_words(told['hour'])}: ondevice run laptop --time 1h")
    for row in reversed(told["tuning"]):
        if row["fits"] == "yes" and row["tokens_per_second"] >= _WORTH:
            lines.append(
                f"a model of {row['model']} at 4 bits can be tuned on chats of yours, "
                f"{row['tokens_per_second']:,} tokens/s: ondevice sft MODEL DATA --adapter lora"
            )
            break
    return lines


def main(tell: Callable[[str], None] = to_stderr) -> None:
    """What could be done next, a line each on stdout; why it cannot be known, where this machine
    cannot be measured."""
    try:
        found = calibration.calibrated("auto", "auto", "auto", tell)
    except UserError as error:
        tell(str(error))
        return
    machine = planned_machine("auto", "auto", "auto", "", found)
    for line in next_words(outlook(machine), recipe_names()):
        sys.stdout.write(f"  {line}\n")


if __name__ == "__main__":
    main()
