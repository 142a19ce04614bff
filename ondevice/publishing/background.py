"""Pushes finished checkpoints while training goes on: from a process of its own, so that it neither
waits nor fails.

    <stage>/push/step-00000200/    hard links to a checkpoint's model, which may be pruned meanwhile
    <stage>/push.log               what that process said

The process sends what lies there, the oldest first, each as one commit with the tag
<stage>-step-<n>, and removes what has arrived. What has not arrived stays, and is tried again with
the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondevice.common import atomic, disk, processes
from ondevice.common.errors import UserError
from ondevice.common.files import whole_folder
from ondevice.common.redact import redacted
from ondevice.common.sanitize import sanitize
from ondevice.hub.client import Conflict, Hub, with_retries
from ondevice.hub.snapshot import is_name
from ondevice.models.model import Model
from ondevice.publishing.model_card import run_card
from ondevice.publishing.plan import CARD, PENDING, Plan, PlannedFile, model_files, pending
from ondevice.publishing.public_names import own_name
from ondevice.publishing.push import send
from ondevice.publishing.push_files import real_file
from ondevice.runs import checkpoint
from ondevice.runs.checkpoint import Checkpoint
from ondevice.runs.folder import RunFolder, StageFolder

FOLDER, LOG = "push", "push.log"
WAITING = 3  # checkpoints that may wait; the oldest gives way
_LOG_END = 2000  # bytes


class BackgroundPusher:
    """A callback of the loop: pushes a stage's checkpoints to `repo`, at most one every `every`
    steps.

    `warn` tells what went wrong.
    """

    def __init__(
        self, stage: StageFolder, repo: str, every: int, warn: Callable[[str], None]
    ) -> None:
        self.stage, self.repo, self.every, self.warn = stage, repo, every, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._offered = 0

    def on_train_begin(self, model: Model, step: int) -> None:
        """What was saved up to `step` has been offered before. Raises UserError where nobody else
        could use what is pushed."""
        if model.adapter is not None and not is_name(model.adapter.base):
            raise UserError(
                "checkpoints are adapters whose base is a folder of this machine: nobody else has it",
                where="push_every",
                hint="take a base by its name on the Hub, or train all weights",
            )
        self._offered = step

    def on_save(self, saved: Checkpoint, *, last: bool) -> None:
        """Sends the checkpoint where it is time, or where it is the last."""
        if not last and saved.step // self.every == self._offered // self.every:
            return
        self._offered = saved.step
        try:
            self._tell_of_failure()
            keep(self.stage, saved)
            # the last one waits its turn behind the one that is under way
            if self._process is None or last:
                self._process = start(self.stage, self.repo)
        except (OSError, UserError) as error:
            self.warn(f"step {saved.step} was not pushed: {error}")

    def _tell_of_failure(self) -> None:
        if self._process is None:
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if code:
            self.warn(
                f"a push to {self.repo} did not arrive: {last_words(self.stage)}. It is tried again"
            )


def keep(stage: StageFolder, saved: Checkpoint) -> Path:
    """The checkpoint's model, linked to where the pushing process finds it; the oldest that wait
    give way.
    """
    root = stage.path / FOLDER
    target = root / saved.path.name

    def fill() -> None:
        with whole_folder(target) as folder:
            for file in sorted(saved.model.iterdir()):
                if file.is_symlink():
                    raise UserError("is a link, and is not sent", where=str(file))
                try:
                    os.link(file, folder / file.name)
                except OSError as error:  # a disk without links
                    if disk.is_full(error, folder):
                        raise
                    shutil.copyfile(file, folder / file.name)

    disk.until_written(target, fill)
    waiting = [path for path in checkpoint.steps(root) if not (path / PENDING).is_file()]
    for old in waiting[:-WAITING]:
        atomic.remove(old)
    for old in checkpoint.steps(root)[: -2 * WAITING]:  # pushes that were begun, and never arrived
        atomic.remove(old)
    return target


def start(stage: StageFolder, repo: str) -> subprocess.Popen[bytes]:
    """The pushing process: its output goes to push.log; it outlives this one."""
    with disk.naming(stage.path / LOG), open(stage.path / LOG, "ab") as log:
        return processes.start(
            processes.command("ondevice.publishing.background", str(stage.path.absolute()), repo),
            processes.Access.HUB,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def last_words(stage: StageFolder) -> str:
    """The last line of push.log."""
    try:
        with open(stage.path / LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_END))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    if lines:
        return sanitize(lines[-1], newlines=False, limit=300)
    return "it said nothing"


def drain(stage: StageFolder, repo: str, client: Hub) -> int:
    """Sends everything that waits, one push of a run at a time; returns how many have arrived.
    Raises UserError where one does not: it and what comes after it stay."""
    count = 0
    with _turn(stage):
        account = with_retries(client.account, repo)
        if "/" not in repo:
            repo = f"{account.name}/{repo}"
        while waiting := checkpoint.steps(stage.path / FOLDER):
            folder = waiting[0]
            real_file(folder / PENDING, stage.path)
            if (folder / PENDING).is_file():
                plan = pending(folder)
            else:
                plan = plan_checkpoint(stage, folder, repo)
            try:
                send(plan, client, lambda event: None)
                message = f"pushed to {repo}, tag {plan.tag}"
            except Conflict as taken:  # a stage that is run again comes by the same steps
                message = f"pushed to {repo}; {taken.message}"
            atomic.remove(folder)
            print(f"{folder.name}: {message}", flush=True)
            count += 1
    return count


def plan_checkpoint(stage: StageFolder, folder: Path, repo: str) -> Plan:
    """The plan of one checkpoint's push: private, with a tag of its stage and step."""
    run, step = RunFolder(stage.path.parent), int(folder.name.removeprefix("step-"))
    card = run_card(run, stage.name, repo, model=folder, step=step)
    texts = {CARD: card.text, **card.pictures}
    written = []
    for path, text in texts.items():
        written.append(PlannedFile(path, len(text.encode()), text=text))
    message = sanitize(
        f"Push {own_name(run.path.resolve())}: {stage.name}, step {step}", newlines=False, limit=200
    )
    return Plan(
        repo,
        "model",
        False,
        str(folder),
        message,
        (*model_files(folder, folder), *written),
        f"{stage.name}-step-{step}",
    )


@contextmanager
def _turn(stage: StageFolder) -> Iterator[None]:
    """One process of a run pushes at a time, so that two stages do not stand in each other's way."""
    descriptor = os.open(stage.path.parent / ".push.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # a disk without locks: two pushes at once end in a conflict, and are tried again
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(argv: list[str]) -> int:
    """The process: STAGE_FOLDER REPO_ID."""
    try:
        drain(StageFolder(Path(argv[0])), argv[1], Hub())
        return 0
    except UserError as error:
        print(sanitize(redacted(str(error)), newlines=False), flush=True)
        return 2
    except Exception:
        # a fault of ours: told in full, except what may stand in the client's request
        print(sanitize(redacted(traceback.format_exc()), limit=None), flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
