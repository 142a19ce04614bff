"""One of several processes of `many.py`: does all jobs, and writes down what became of each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import ondevice as od
from ondevice.common.errors import Interrupted, UserError

if os.environ.get("MANY_FOLDER"):  # so that relative paths mean files of this process's own
    os.chdir(os.environ["MANY_FOLDER"])
# lets a test change something in one of the processes: a module that is imported first
if os.environ.get("MANY_FIRST"):
    sys.path.insert(0, str(Path(__file__).parent))
    __import__(os.environ["MANY_FIRST"])


def main() -> None:
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    outcome = []
    own = json.loads(os.environ.get("MANY_OWN", "{}"))  # what this process gives in a job otherwise
    for number, (name, fields) in enumerate(json.loads((folder / "jobs.json").read_text())):
        os.environ["MANY_JOB"] = str(number)
        fields.update(own.get(str(number), {}))
        try:
            outcome.append({"result": str(getattr(od, name)(**fields))})
        except (UserError, Interrupted) as error:
            outcome.append({"error": str(error), "kind": type(error).__name__})
        except BaseException as error:
            traceback.print_exc()
            outcome.append({"error": str(error), "kind": type(error).__name__})
        (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))


main()
