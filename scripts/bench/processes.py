"""Fresh processes for the sides of a row, one after the other, all with the same threads."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import Job
from meter import MARK
from rows import Peer

from ondevice.common import allocator

HERE = Path(__file__).parent
Result = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """`folders`: where peers lie that want other versions of libraries than ours."""

    threads: int
    folders: dict[str, Path]

    def missing(self, peer: Peer) -> str:
        """Why the peer cannot run here; empty where it can."""
        if peer.folder and peer.folder not in self.folders:
            option = "--" + peer.folder.replace("_", "-")
            return f"pip install --no-deps --target DIR {peer.package}, then {option} DIR"
        for module in peer.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return ""

    def run(self, script: str, job: Job | str, folder: str = "") -> Result:
        """The result that the script prints. Ends the program where it fails."""
        argument = job if isinstance(job, str) else job.to_json()
        done = subprocess.run(
            [sys.executable, str(HERE / f"{script}.py"), argument],
            env=self._environment(script, folder),
            capture_output=True,
            text=True,
        )
        found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not found:
            sys.exit(f"{script} failed on {argument}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        result: Result = json.loads(found[-1].removeprefix(MARK))
        return result

    def _environment(self, script: str, folder: str) -> dict[str, str]:
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        if folder:
            paths.insert(0, str(self.folders[folder]))
        threads = str(self.threads)
        # as our command starts itself; a peer has what its users have
        ours = allocator.settings(os.environ) if script.startswith("ours") else {}
        return {
            **os.environ,
            **ours,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
