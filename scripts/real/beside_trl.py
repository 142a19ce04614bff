"""Ours and TRL's on one model: the same weights, adapter, rows, order, batches and schedule, a
fresh process each.

    python scripts/real/beside_trl.py sft MODEL chats.jsonl OUT
    python scripts/real/beside_trl.py reward MODEL pairs.jsonl OUT
    python scripts/real/beside_trl.py dpo MODEL pairs.jsonl OUT

MODEL is the folder of a decoder with a chat template; rows longer than --longest tokens are left
out. The adapter that our stage begins with is written in PEFT's format, and TRL begins from that
folder. float32 on the CPU. OUT keeps what both were given and what they gave (JSON); a side whose
result is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ondevice.common.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from meter import peak_rss  # noqa: E402

SKIP = 2  # steps left out of the rate: caches fill
FIELDS = {
    "sft": ("loss",),
    "reward": ("loss", "margin", "accuracy"),
    "dpo": ("loss", "margin", "accuracy"),
}


@dataclass(frozen=True)
class Job:
    """What both sides are to do. `held` rows are measured before and after `steps` steps of `rows`
    rows (or pairs).
    """

    stage: str
    model: str
    data: str
    out: str
    steps: int = 30
    rows: int = 2
    longest: int = 96
    held: int = 32
    learning_rate: float = 2e-4
    rank: int = 8
    beta: float = 0.1
    seed: int = 0

    def file(self, name: str) -> Path:
        return Path(self.out) / f"{self.stage}-{name}"

    def config(self) -> Any:
        """Our stage's settings."""
        own: dict[str, Any] = {
            "sft": {"packing": False},
            "reward": {"center": 0.0},
            "dpo": {"beta": self.beta},
        }
        where = import_module(
            f"ondevice.config.{'finetuning' if self.stage == 'sft' else 'preference'}"
        )
        return getattr(
            where, {"sft": "SFTConfig", "reward": "RewardConfig", "dpo": "DPOConfig"}[self.stage]
        )(
            model=self.model,
            data=str(self.file("train.jsonl")),
            validation=str(self.file("held.jsonl")),
            steps=self.steps,
            batch_size=self.rows,
            sequence_length=self.longest,
            learning_rate=self.learning_rate,
            schedule="linear",
            eval_every=0,
            eval_batches=10**6,
            save_every=0,
            adapter="lora",
            lora_rank=self.rank,
            lora_alpha=2.0 * self.rank,
            seed=self.seed,
            backend="torch",
            device="cpu",
            dtype="float32",
            **own[self.stage],
        )


@dataclass
class Meter:
    """One side's result: figures of each step, held-out figures before and after, CPU seconds, peak
    memory in MB.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0

    def mark(self) -> None:
        self.cpu.append(time.process_time())
        self.peak = peak_rss()

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class Done(Exception):
    """All is measured: what a stage does after its last measurement, the other side does not."""


# ---- ours -----------------------------------------------------------------------------------------------------------
def context(job: Job, emit: Callable[..., None]) -> Any:
    """Surroundings of our stage, whose events go to `emit`."""
    from ondevice.runs.context import Context, RunSettings
    from ondevice.runs.events import EventWriter
    from ondevice.runs.folder import RunFolder, StopRequest
    from ondevice.seam.select import load_backend

    class Listening(EventWriter):
        def emit(self, event: str, step: int | None = None, **fields: Any) -> None:
            emit(event, step, **fields)

    stage = RunFolder(job.file("run")).create().stage(job.stage).create()
    return Context(
        stage,
        load_backend("torch", "cpu", "float32"),
        Listening(stage.events),
        shared=RunSettings(StopRequest()),
    )


def prepare(job: Job) -> None:
    """Rows that are short enough, what our stage makes of them in the order in which it deals them,
    and its adapter.
    """
    from ondevice.common.rng import permutation
    from ondevice.data.rows import read
    from ondevice.models.model import require_generative
    from ondevice.models.save import write
    from ondevice.models.score_head import with_head
    from ondevice.stages.tuning import load_start, with_adapter

    ctx, cfg = context(job, lambda *args, **fields: None), job.config()
    model = require_generative(load_start(job.model, cfg, ctx.backend))
    rows, count = [row for row, _ in read(job.data)], job.steps * job.rows
    each = (
        (rows[i], encoded(job, rows[i], model.tokenizer))
        for i in permutation(job.seed, "beside", 0, len(rows))
    )
    found = list(islice(((row, ids) for row, ids in each if ids), count + job.held))
    if len(found) < count + job.held:
        raise SystemExit(
            f"{len(found)} rows have at most {job.longest} tokens: {count + job.held} are needed"
        )
    train, held = found[:count], found[count:]
    for name, part in (("train", train), ("held", held)):
        job.file(f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row, _ in part), encoding="utf-8"
        )
    order = permutation(job.seed, "chat rows" if job.stage == "sft" else "pairs", 0, count)
    job.file("ids.json").write_text(
        json.dumps({"train": [train[i][1] for i in order], "held": [i for _, i in held]})
    )
    start = job.file("start")
    start.mkdir()
    headed = with_head(model, ctx.backend, job.seed) if job.stage == "reward" else model
    write(start, ctx.backend, with_adapter(headed, cfg, ctx))


def encoded(job: Job, row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]] | None:
    """A row's ids by TRL's names; None for one that is too long or cannot be read."""
    from ondevice.data.chat_encoding import encode_chat
    from ondevice.data.formats import to_chat
    from ondevice.data.messages import BadRow
    from ondevice.data.preference_batches import to_tokens
    from ondevice.data.preference_formats import to_pair

    try:
        if job.stage == "sft":
            (ids, mask), *more = encode_chat(to_chat(row)["messages"], tokenizer)
            end = int(mask.nonzero()[0][-1]) + 1  # what follows is read by neither side
            made = {
                "input_ids": ids[:end].tolist(),
                "completion_mask": mask[:end].astype(int).tolist(),
            }
            return made if not more and end <= job.longest else None
        pair = to_tokens(to_pair(row), tokenizer)
    except BadRow:
        return None
    if pair.length > job.longest or not np.array_equal(pair.chosen.prompt, pair.rejected.prompt):
        return None
    parts = {
        "prompt": pair.chosen.prompt,
        "chosen": pair.chosen.completion,
        "rejected": pair.rejected.completion,
    }
    return {f"{name}_ids": list(map(int, ids)) for name, ids in parts.items()}


def ours(job: Job) -> Meter:
    """Our stage as it is, until it has measured after its last step."""
    from ondevice.training.heldout_metrics import heldout_metrics

    meter = Meter()
    stage: Any = import_module(f"ondevice.stages.{job.stage}")
    fit = stage.fit

    def emit(event: str, step: int | None = None, **fields: Any) -> None:
        if event == "step":
            meter.mark()
            meter.steps.append({name: float(fields[name]) for name in FIELDS[job.stage]})
        elif event == "eval":
            meter.after = {name: float(fields[name]) for name in FIELDS[job.stage]}
            raise Done

    def measured_first(
        model: Any, loss: Any, source: Any, held: Any, ctx: Any, cfg: Any, **more: Any
    ) -> Any:
        measure = held if callable(held) else heldout_metrics(model.network, loss, held, ctx, cfg)
        found = measure(model.params)
        meter.before = {name: found[name] for name in FIELDS[job.stage]}
        return fit(model, loss, source, held, ctx, cfg, **more)

    stage.fit = measured_first
    with suppress(Done):
        stage.run(job.config(), context(job, emit))
    return meter


# ---- TRL's ----------------------------------------------------------------------------------------------------------
def theirs(job: Job) -> Meter:
    """TRL's trainer on the ids, its adapter read by PEFT from the folder that ours has written."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    words, ids = (
        AutoTokenizer.from_pretrained(job.model),
        json.loads(job.file("ids.json").read_text()),
    )
    if job.stage == "reward":
        # transformers scores the last token that is no padding, and the stop token is many a
        # model's padding
        words.pad_token = next(
            token for token in words.all_special_tokens if token != words.eos_token
        )
        base = AutoModelForSequenceClassification.from_pretrained(
            job.model, num_labels=1, dtype=torch.float32, pad_token_id=words.pad_token_id
        )
        ids = {
            part: [
                {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}
                for row in rows
            ]
            for part, rows in ids.items()
        }
    else:
        base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, job.file("start"), is_trainable=True)
    meter = Meter(before=held_out(job, model, ids["held"]))
    trainer(job, meter, model, Dataset.from_list(ids["train"]), words).train()
    meter.after = held_out(job, model.eval(), ids["held"])
    return meter


def trainer(job: Job, meter: Meter, model: Any, data: Any, words: Any) -> Any:
    import trl
    from transformers import TrainerCallback

    names = {
        "loss": "loss",
        "margin": "margin",
        "accuracy": "accuracy",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
    }

    class Marking(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.mark()

        def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                meter.steps.append(
                    {names[name]: float(value) for name, value in logs.items() if name in names}
                )

    own: dict[str, Any] = {
        "sft": {"completion_only_loss": True, "packing": False},
        "reward": {},
        "dpo": {"beta": job.beta, "precompute_ref_log_probs": True},
    }
    kind = {"sft": "SFT", "reward": "Reward", "dpo": "DPO"}[job.stage]
    args = getattr(trl, f"{kind}Config")(
        output_dir=str(job.file("trl")),
        max_steps=job.steps,
        per_device_train_batch_size=job.rows,
        learning_rate=job.learning_rate,
        lr_scheduler_type="linear",
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        max_length=job.longest,
        **own[job.stage],
    )
    cls = getattr(trl, f"{kind}Trainer")
    if job.stage == "dpo":
        cls._prepare_dataset = lambda self, dataset, *others: dataset  # ids already
    return cls(
        model=model, args=args, train_dataset=data, processing_class=words, callbacks=[Marking()]
    )


def held_out(job: Job, model: Any, rows: Sequence[dict[str, list[int]]]) -> dict[str, float]:
    """transformers' own forward on each held-out row, and the loss by its definition."""
    import torch
    from torch.nn.functional import logsigmoid

    def logps(ids: list[int]) -> Any:
        logits = model(torch.tensor([ids])).logits[0, :-1]
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def answered(row: dict[str, list[int]], side: str) -> float:
        return float(logps(row["prompt_ids"] + row[side])[len(row["prompt_ids"]) - 1 :].sum())

    sides = ("chosen_ids", "rejected_ids")
    with torch.no_grad():
        if job.stage == "sft":
            masks = [torch.tensor(row["completion_mask"][1:]) for row in rows]
            total = sum(
                float((logps(row["input_ids"]) * mask).sum())
                for row, mask in zip(rows, masks, strict=True)
            )
            return {"loss": -total / float(sum(mask.sum() for mask in masks))}
        if job.stage == "reward":
            scores = [
                [float(model(torch.tensor([row[side]])).logits) for side in sides] for row in rows
            ]
        else:
            with model.disable_adapter():
                start = [[answered(row, side) for side in sides] for row in rows]
            scores = [
                [
                    job.beta * (answered(row, side) - was)
                    for side, was in zip(sides, old, strict=True)
                ]
                for row, old in zip(rows, start, strict=True)
            ]
    apart = torch.tensor([chosen - rejected for chosen, rejected in scores])
    return {
        "loss": float(-logsigmoid(apart).mean()),
        "margin": float(apart.mean()),
        "accuracy": float((apart > 0).float().mean()),
    }


# ---- the table ------------------------------------------------------------------------------------------------------
def table(job: Job) -> str:
    from ondevice.common.intervals import wilson

    mine, other = (json.loads(job.file(f"{who}.json").read_text()) for who in ("ours", "trl"))
    names = FIELDS[job.stage]
    lines = [
        "| step | " + " | ".join(f"{name}: ours | TRL" for name in names) + " |",
        "| --- " * (1 + 2 * len(names)) + "|",
    ]
    for n, (a, b) in enumerate(zip(mine["steps"], other["steps"], strict=True), 1):
        lines.append(
            f"| {n} | " + " | ".join(f"{a[name]:.5f} | {b[name]:.5f}" for name in names) + " |"
        )
    for name in names:
        off = [abs(a[name] - b[name]) for a, b in zip(mine["steps"], other["steps"], strict=True)]
        lines.append(
            f"largest difference of the {name} of a step: {max(off):.1e}, at step {off.index(max(off)) + 1}"
        )
    lines += ["", "| | ours | TRL |", "| --- | --- | --- |"]
    for when in ("before", "after"):
        for name in names:
            told = []
            for side in (mine, other):
                value = side[when].get(name, math.nan)
                share = wilson(round(value * job.held), job.held) if name == "accuracy" else None
                told.append(
                    f"{value:.4f}" + (f" [{share.low:.3f}, {share.high:.3f}]" if share else "")
                )
            lines.append(f"| held-out {name} {when} | {told[0]} | {told[1]} |")
    tokens = [count(row) for row in json.loads(job.file("ids.json").read_text())["train"]]
    rates = [
        sum(tokens[SKIP * job.rows :]) / (side["cpu"][-1] - side["cpu"][SKIP - 1])
        for side in (mine, other)
    ]
    lines.append(f"| tokens a CPU second | {rates[0]:.0f} | {rates[1]:.0f} |")
    lines.append(f"| peak memory, MB | {mine['peak']:.0f} | {other['peak']:.0f} |")
    return "\n".join(lines)


def count(row: dict[str, list[int]]) -> int:
    """Tokens that a model reads of a row, of both sides of a pair."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("stage", choices=list(FIELDS))
    for name in ("model", "data", "out"):
        asked.add_argument(name)
    for name in ("steps", "rows", "longest", "held", "learning_rate", "rank", "beta", "seed"):
        default = getattr(Job, name)
        asked.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    asked.add_argument("--who", choices=["ours", "trl"], help=argparse.SUPPRESS)
    given = vars(asked.parse_args())
    who = given.pop("who")
    job = Job(**given)
    if who:
        {"ours": ours, "trl": theirs}[who](job).save(job.file(f"{who}.json"))
        return
    Path(job.out).mkdir(parents=True, exist_ok=True)
    if not job.file("start").exists():
        try:
            prepare(job)
        except UserError as error:
            raise SystemExit(str(error)) from None
    for side in ("ours", "trl"):
        if not job.file(f"{side}.json").exists():
            ended = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--who", side]
            ).returncode
            if ended:
                raise SystemExit(ended)
    print(table(job))


if __name__ == "__main__":
    main()
