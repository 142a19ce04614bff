"""What the reasoning stage's rewards are worth: the same start trained on the same problems' right
answers instead.

`python scripts/control.py RUN [--steps N]` takes a complete run of a recipe with the stage grpo,
trains grpo's start by instruction tuning on the problems with their answers, for as many tokens as
grpo's completions had (or N steps), and measures both on the held-out problems. Writes RUN/control.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import ondevice as od
from ondevice.config.recipe import load_recipe
from ondevice.data.builtin.corpus import build
from ondevice.evaluation.held_out import builtin_exam, reasoning
from ondevice.models.load import load_model
from ondevice.runs import events
from ondevice.seam.select import load_backend

ROWS, WIDTH = 16, 128


def main(run: Path, steps: int) -> None:
    recipe = load_recipe(str(run))
    start = Path(recipe.stages["grpo"].model or run / "ppo" / "model")  # type: ignore[attr-defined]
    if not start.is_dir():
        start = run / "dpo" / "model"
    if not (run / "grpo" / "model").is_dir():
        sys.exit(f"{run} has no complete stage grpo")
    tokens = max(
        e["tokens"] for e in events.read(run / "grpo" / "events.jsonl") if e["event"] == "step"
    )
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        answers.write_text(
            "".join(
                json.dumps({"prompt": p["prompt"], "completion": f"{p['answer']}."}) + "\n"
                for p in build(recipe.corpus).problems("train")
            ),
            encoding="utf-8",
        )
        od.sft(
            str(start),
            str(answers),
            out=str(run / "control"),
            steps=steps or max(1, round(tokens / ROWS / WIDTH)),
            batch_size=ROWS,
            sequence_length=WIDTH,
            learning_rate=2e-4,
            warmup_steps=0,
            schedule="constant",
            backend="torch",
            device="cpu",
        )
    backend = load_backend("torch", "cpu")
    exam = builtin_exam(recipe.corpus, WIDTH, recipe.exam)
    print(
        f"{tokens:,} tokens; {len(exam.problems)} held-out problems, greedily; kinds: right, with steps, asked"
    )
    models = {
        "start": start,
        "grpo": run / "grpo" / "model",
        "control": run / "control" / "sft" / "model",
    }
    for name, model in models.items():
        found = reasoning(load_model(model, backend), backend, exam)
        print(
            f"{name:8} {found.accuracy:6.1%}  pass@{found.passes} {found.pass_at:.1%}  {found.by_kind}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--steps", type=int, default=0, help="0: as many as grpo's tokens are worth"
    )
    given = parser.parse_args()
    main(given.run, given.steps)
