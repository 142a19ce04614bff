"""Problems of a task that a GRPO run has neither learned from nor held out, as JSON lines of prompt
and answer.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from ondevice.config.corpus import CorpusConfig
from ondevice.rewards.problems import problems
from ondevice.rl.problem_prompts import HELD


def main() -> None:
    """`TASK RUN COUNT --seed N`; what the run has learned from stands in its groups, what it holds
    out follows from its seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="gym:NAME?key=value, as the run was given it")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, required=True, help="another than the run's")
    given = parser.parse_args()
    if not (given.run / "grpo" / "done.json").is_file():
        parser.error(f"{given.run} has no complete stage grpo")
    cfg = json.loads((given.run / "grpo" / "done.json").read_text())["fingerprint"]
    known = {
        p.prompt for p in problems(given.task, "validation", HELD, cfg["seed"], CorpusConfig())
    }
    for line in (given.run / "grpo" / "groups.jsonl").read_text(encoding="utf-8").splitlines():
        known |= {group["prompt"] for group in json.loads(line).get("groups", ())}
    drawn = (
        p
        for p in problems(given.task, "all", 0, given.seed, CorpusConfig())
        if p.prompt not in known
    )
    found = [
        json.dumps({"prompt": p.prompt, "answer": p.answer}) for p in islice(drawn, given.count)
    ]
    if len(found) < given.count:
        parser.exit(1, f"{len(found)} are all that there are\n")
    print("\n".join(found))


if __name__ == "__main__":
    main()
