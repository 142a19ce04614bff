"""What every test stands on: a quiet environment, hypothesis' settings, the backends.

Mark a test `slow` where it takes more than about a second (training, building, another library's
models): the fast core, `pytest -m "not slow"`, is run at every save. A test that holds for every
backend takes `backend_name` (or `backend`, already loaded) and runs once for each that is
installed.
"""

from __future__ import annotations

import gc
import glob
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator

# Before any array library is imported. Threads that wait must not spin: the cores are shared with
# other workers.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What a person has set must not decide what a test sees.
for name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "NO_COLOR",
    "FORCE_COLOR",
    "TEXTUAL_THEME",
    "COLUMNS",
    "LINES",
):
    os.environ.pop(name, None)

# What the app remembers of a person's choices neither comes into a test nor out of it.
_CONFIG = tempfile.TemporaryDirectory(prefix="ondevice-config-")
os.environ["XDG_CONFIG_HOME"] = _CONFIG.name
# Nor does what was measured of this machine: plans in tests have no times, unless a test gives some.
_CACHE = tempfile.TemporaryDirectory(prefix="ondevice-cache-")
os.environ["ONDEVICE_CACHE"] = _CACHE.name

# A shell starts what it puts in the background deaf to Ctrl-C, and so is all that this starts in
# turn: what a test starts is to hear it.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

import mlx_compiler  # noqa: E402
import nightly  # noqa: E402
from hub_client import server  # noqa: E402, F401
from ondevice.seam.protocols import Backend  # noqa: E402
from ondevice.seam.select import load_backend  # noqa: E402

# No deadline: a shared machine is slow now and then. The same examples every time: a failure can be
# seen again.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")

# Whoever opens a ratings database outside SQLite, even to read its first bytes, drops the process's
# locks on it.
_OWN = tuple(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), part, "")
    for part in ("ondevice", "tui", "backends")
)
_opened: list[str] = []


def _watch_ratings(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and str(args[0]).endswith(
        ("ratings.db", "ratings.db-wal", "ratings.db-shm")
    ):
        caller = sys._getframe(1)
        while caller is not None:
            if caller.f_code.co_filename.startswith(_OWN):
                _opened.append(f"{caller.f_code.co_filename}:{caller.f_lineno} opened {args[0]}")
                return
            caller = caller.f_back  # type: ignore[assignment]


sys.addaudithook(_watch_ratings)


@pytest.fixture(autouse=True)
def only_sqlite_opens_ratings() -> Iterator[None]:
    """No code of ours opens a ratings database but through SQLite (whose own opening raises no such
    event).
    """
    _opened.clear()
    yield
    assert not _opened, _opened


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Each test begins as a person does who has never opened the app, on a machine that was never
    measured: in which type a model is used would follow from what else it did meanwhile."""
    yield
    for file in glob.glob(os.path.join(_CACHE.name, "**", "use-type-*.json"), recursive=True):
        os.remove(file)
    for name in ("app.json", "app.json.damaged"):
        path = os.path.join(_CONFIG.name, "ondevice", name)
        if os.path.lexists(path):
            os.remove(path)


BACKENDS = tuple(name for name in ("torch", "mlx") if importlib.util.find_spec(name))


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each installed backend's name in turn."""
    name: str = request.param
    return name


def pytest_addoption(parser: pytest.Parser) -> None:
    mlx_compiler.add_option(parser)
    parser.addoption(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="where tests that hold for every device run; gpu: Metal or CUDA, in float32",
    )
    parser.addoption(
        "--writes",
        type=int,
        default=2,
        help="test_full_disk: at how many of each command's operations the disk is full",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["ONDEVICE_TEST_DEVICE"] = config.getoption("--device")
    mlx_compiler.configure(config)


def pytest_runtest_setup(item: pytest.Item) -> None:
    mlx_compiler.set_for(item)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: the collector of cycles does not look at it
    again and again. And it looks less often than by default, at every 700 objects: a form of the
    app makes hundreds of thousands, and spent a third of its time in it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()


@pytest.fixture
def backend(backend_name: str) -> Backend:
    """Each installed backend in turn, in float32: where results can be compared."""
    return load_backend(backend_name, device=os.environ["ONDEVICE_TEST_DEVICE"], dtype="float32")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is nightly, and puts what takes long first: no worker is left with it at the end."""
    for item in items:
        if nightly.reason(item.path.name, item.name):
            item.add_marker(pytest.mark.nightly)
    items[:] = in_parts(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


def in_parts(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests file by file, in as many parts as there are workers, of which each begins with its
    part: whole recipes, then files with slow tests, then the others."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path.name, []).append(item)

    def first(name: str) -> tuple[bool, int]:
        slow = sum(item.get_closest_marker("slow") is not None for item in files[name])
        return name not in ("test_minute.py", "test_arch_roads.py"), -slow

    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for at, name in enumerate(sorted(files, key=first)):
        parts[at % workers] += files[name]
    return [item for part in parts for item in part]
