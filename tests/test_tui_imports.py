"""One thread imports: two at the same time can wait for each other's module locks, and the app
would end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ondevice.preferences.database import Ratings
from ondevice.preferences.votes import Response
from ondevice_tui import imports
from tui_imports import looked_on
from tui_runs import a_run

pytestmark = pytest.mark.slow


def a_tour(tmp_path: Path, slow: float, wait: float) -> list[tuple[str, str]]:
    """What threads imported, in a process that has imported nothing yet."""
    run = a_run(tmp_path / "runs")
    with Ratings.open(run.path, create=True) as ratings:
        for n in range(5):
            ratings.add("a", f"Question {n}?", [Response("yes", "x"), Response("no", "y")], seed=n)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "a": "this one", "b": "that one"}) + "\n")
    script = Path(__file__).parent / "tui_imports.py"
    done = subprocess.run(
        [sys.executable, str(script), str(run.path.parent), str(file), str(slow), str(wait)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("slow", "wait"), [(0.0, 0.0), (0.02, 0.0), (0.02, 0.6)])
def test_no_thread_of_the_app_imports(tmp_path: Path, slow: float, wait: float) -> None:
    """Slow imports are what a busy machine or a cold disk makes of them; Rate is opened in the
    middle of them.
    """
    assert a_tour(tmp_path, slow, wait) == []


def test_the_onlooker_sees_an_import_in_a_thread() -> None:
    def work() -> None:
        import this_module_is_nowhere  # type: ignore[import-not-found]  # noqa: F401

    def quiet() -> None:
        try:
            work()
        except ImportError:
            return

    with looked_on() as onlooker:
        thread = threading.Thread(target=quiet, name="a worker")
        thread.start()
        thread.join()
        quiet()  # the main thread may
    assert onlooker.seen == [("this_module_is_nowhere", "a worker")]


def test_what_is_imported_ahead_is_there() -> None:
    imports.load_all()
    assert imports.waiting() == []
