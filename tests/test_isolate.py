"""What code can do that is run to be judged: each thing that it could try, tried in the isolator."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ondevice.common.errors import UserError
from ondevice.rewards import isolate, isolated
from ondevice.rewards.code_judge import Verdict, judge_one
from ondevice.rewards.isolate import Isolated, Limits, Wrong
from ondevice.rewards.unit_tests import of_row

CI = os.environ.get("CI") == "true" and sys.platform == "linux"
"""There a missing isolator fails the tests: a skipped one would show nothing."""
pytestmark = pytest.mark.skipif(
    not (CI or shutil.which("bwrap") or sys.platform == "darwin"), reason="bubblewrap is missing"
)
QUICK = Limits(seconds=1)  # for what never ends
ROOMY = Limits()  # for what does, however busy the machine is


def gives(code: str, name: str, *arguments: Any, limits: Limits = ROOMY) -> Any:
    """What a function of isolated code gives."""
    with Isolated(code, limits=limits) as inside:
        inside.begin()
        return inside.call(name, arguments, {})


def verdict(code: str, *asserts: str) -> Verdict:
    tests = of_row({"tests": list(asserts)})
    assert tests is not None
    return judge_one(code, tests, ROOMY)


def test_it_is_probed_and_holds() -> None:
    isolate.require()


@pytest.mark.parametrize("place", ["home", "file", "repository", "passwords"])
def test_files_are_not_there(place: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")
    path = {
        "home": str(Path.home() / ".profile"),
        "file": str(file),
        "repository": __file__,
        "passwords": "/etc/passwd",
    }[place]
    with pytest.raises(Wrong, match="FileNotFoundError"):
        gives("def f(path): return open(path).read()", "f", path)


def test_of_the_home_nothing_is_seen_but_what_leads_to_python() -> None:
    listed = "import os\ndef f(path): return os.listdir(path) if os.path.exists(path) else []"
    found = gives(listed, "f", str(Path.home()))
    leads = Path(os.path.realpath(sys.base_prefix))
    assert all((Path.home() / name) in (leads, *leads.parents) for name in found)


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ONDEVICE_REWARD_ENV", "HF_TOKEN")
    assert gives("import os\ndef f(): return dict(os.environ)", "f") == {}
    kept = "import ctypes\ndef f(): return ctypes.CDLL(None).getenv(b'HF_TOKEN')"
    assert gives(kept, "f") == 0


def test_loopback_cannot_be_reached() -> None:
    code = "import socket\ndef f(port):\n    socket.create_connection(('127.0.0.1', port), 1)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(Wrong, match="Error"):
            gives(code, "f", server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
def test_the_network_is_another_one_without_the_filter_too(raw: Callable[[str], bytes]) -> None:
    """Two walls: the namespace has no way out, and the filter has no sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = raw(
            "import socket, os\n"
            "s = socket.socket()\n"
            f"print(s.connect_ex(('127.0.0.1', {port})), s.connect_ex(('192.0.2.1', 80)),\n"
            "      [name for _, name in socket.if_nameindex()], flush=True)"
        )
    refused, unreachable, names = said.decode().strip().split(" ", 2)
    assert int(refused) and int(unreachable)
    assert names == "['lo']"


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
def test_its_namespaces_are_its_own() -> None:
    with Isolated("def f(): return 1") as inside:
        inside.begin()
        assert inside.call("f", [], {}) == 1
        [server] = children(inside.pid)
        for kind in ("user", "pid", "net", "ipc", "uts", "mnt"):
            assert os.readlink(f"/proc/{server}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


@pytest.mark.parametrize(
    "bomb",
    [
        "while True: os.fork()",
        "while True: os.posix_spawn(sys.executable, [sys.executable], {})",
        "import subprocess\n    while True: subprocess.Popen([sys.executable])",
        "import multiprocessing\n    multiprocessing.Process(target=f).start()",
    ],
)
def test_a_fork_bomb_starts_nothing(bomb: str) -> None:
    with Isolated(f"import os, sys\ndef f():\n    {bomb}", limits=QUICK) as inside:
        inside.begin()
        with pytest.raises(Wrong, match="PermissionError|BlockingIOError"):
            inside.call("f", [], {})
        if sys.platform == "linux":
            [server] = children(inside.pid)
            assert len(children(server)) <= 1


def test_threads_are_limited() -> None:
    code = (
        "import threading\ndef f():\n    threading.stack_size(1 << 20)\n    n = 0\n"
        "    stop = threading.Event()\n    try:\n        while True:\n"
        "            threading.Thread(target=stop.wait, daemon=True).start()\n            n += 1\n"
        "    except BaseException:\n        return n"
    )
    assert 0 < gives(code, "f", limits=Limits(5)) < 600


@pytest.mark.parametrize(
    "grab",
    [
        "bytearray(10 << 30)",
        "[bytes(1 << 20) for _ in range(10 << 10)]",
        "mmap.mmap(-1, 10 << 30)",
        "[open('/dev/null') for _ in range(10 ** 6)]",
    ],
)
def test_ten_gigabytes_are_not_there(grab: str) -> None:
    with pytest.raises(Wrong, match="MemoryError|OSError|took too long"):
        gives(f"import mmap\ndef f():\n    return len({grab})", "f")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")
def test_memory_that_no_limit_counts_is_refused() -> None:
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def f():\n    said = [libc.shmget(0, 1 << 20, 0o1600), libc.memfd_create(b'x', 0)]\n"
        "    return [said, ctypes.get_errno()]"
    )
    assert gives(code, "f") == [[-1, -1], 1]


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_of_a_function_goes_nowhere(stream: str) -> None:
    code = f"import sys\ndef f():\n    while True: sys.{stream}.write('x' * 100000)"
    with pytest.raises(Wrong, match="took too long"):
        gives(code, "f", limits=QUICK)


def test_endless_output_of_a_program_ends_it() -> None:
    with Isolated("while True: print('x' * 1000)", limits=QUICK) as inside:
        with pytest.raises(Wrong, match="wrote too much"):
            inside.program("")
        with pytest.raises(Wrong, match="wrote too much"):
            inside.program("")


@pytest.mark.slow
def test_an_answer_without_end_ends_it() -> None:
    with pytest.raises(Wrong, match="wrote too much|MemoryError"):
        gives("def f(): return 'x' * (8 << 20)", "f")
    with pytest.raises(Wrong, match="took too long|MemoryError"):
        gives("import itertools\ndef f(): return itertools.count()", "f", limits=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["while True: pass", "import time; time.sleep(1000)"])
def test_what_takes_too_long_is_ended_and_the_next_test_is_asked(wait: str) -> None:
    code = f"def f(x):\n    if x:\n        {wait.replace('; ', chr(10) + '        ')}\n    return 7"
    if "while" in wait:
        code = "def f(x):\n    while x: pass\n    return 7"
    with Isolated(code, limits=QUICK) as inside:
        inside.begin()
        with pytest.raises(Wrong, match="took too long"):
            inside.call("f", [1], {})
        inside.begin()
        assert inside.call("f", [0], {}) == 7


@pytest.mark.parametrize("target", ["os.getppid()", "-1", "1", "0", "outside"])
def test_signals_reach_nobody_else(target: str) -> None:
    """Neither this process, nor the one inside that asks: the next test passes."""
    target = target.replace("outside", str(os.getpid()))
    code = (
        "import os, signal\ndef f(x):\n    if x:\n        for sign in (15, 9):\n"
        f"            try:\n                os.kill({target}, sign)\n"
        "            except OSError:\n                pass\n    return 7"
    )
    with Isolated(code, limits=ROOMY) as inside:
        inside.begin()
        try:
            assert inside.call("f", [1], {}) == 7
        except Wrong as error:
            assert "signal" in str(error)  # it hit itself
        inside.begin()
        assert inside.call("f", [0], {}) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")
@pytest.mark.parametrize(
    "act",
    [
        "[os.kill(1, s) for s in signal.valid_signals()]",
        "[tried(resource.prlimit, 1, r, (0, 0)) for r in range(16)]",
        "[tried(os.setpriority, os.PRIO_PROCESS, 1, 19), tried(os.sched_setaffinity, 1, {0})]",
        "[tried(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))]",
    ],
)
def test_code_does_not_end_its_judge(act: str) -> None:
    code = (
        "import os, resource, signal\ndef tried(do, *given):\n    try:\n        do(*given)\n"
        "    except PermissionError:\n        return\n    raise ValueError(given)\n"
        f"def f(x):\n    {act}\n    return x"
    )
    assert verdict(code, "assert f(1) == 1", "assert f(2) == 2").all_passed


def test_a_candidate_has_the_usual_signals_and_its_own_limits() -> None:
    code = (
        "import os, resource, signal\ndef f():\n"
        "    resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        return str(signal.getsignal(signal.SIGTERM))"
    )
    assert "DFL" in gives(code, "f") or gives(code, "f") == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_an_isolator_that_ends_while_code_is_in_it_is_no_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever code may find to bring it about, it has failed then; once is forgiven."""
    calls = []
    asked = Isolated.call

    def call(inside: Isolated, *given: Any) -> Any:
        calls.append(given)
        if len(calls) in ended:
            [server] = children(inside.pid)
            os.kill(int(server), signal.SIGKILL)
        return asked(inside, *given)

    monkeypatch.setattr(Isolated, "call", call)
    ended = {1}
    assert verdict(RIGHT, "assert f(1) == 4").all_passed
    ended = {3, 4}
    found = verdict(RIGHT, "assert f(1) == 4")
    assert found.passed == 0 and "ended its isolator" in found.why and len(calls) == 4


def test_an_answer_has_a_budget_and_ends_at_the_first_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asserts = ["assert f(0) == 1", "assert f(1) == 4", "assert f(2) == 5"]
    assert verdict(RIGHT, *asserts).passed == 0
    tests = of_row({"tests": asserts})
    assert tests is not None
    assert judge_one(RIGHT, tests, ROOMY, every=True).passed == 2
    monkeypatch.setattr(Limits, "answer", 0.0)
    found = judge_one(RIGHT, tests, ROOMY, every=True)
    assert (found.passed, found.why) == (0, "test 1: the answer took too long")


def test_a_program_ends_as_python_does() -> None:
    code = (
        "import threading, time, atexit\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    )
    with Isolated(code, limits=ROOMY) as inside:
        assert inside.program("") == "thread\nlast\n"


def test_no_packages_are_there_but_pythons_own() -> None:
    """Though code says where they are."""
    folders = isolate._packages()
    assert any(Path(folder, "pip").exists() for folder in folders)
    listed = "import os\ndef f(paths): return [os.listdir(p) for p in paths if os.path.isdir(p)]"
    assert not any(gives(listed, "f", folders))
    written = "def f(path): open(path + '/x', 'w')"
    with pytest.raises(Wrong, match="OSError"):
        gives(written, "f", folders[0])
    found = "import sys\ndef f(paths):\n    sys.path += paths\n    import pip"
    with pytest.raises(Wrong, match="ModuleNotFoundError"):
        gives(found, "f", folders)


def test_a_program_that_lies_within_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    within = os.path.join(os.path.realpath(sys.base_prefix), "src", "processes.py")
    monkeypatch.setattr(isolate.processes, "__file__", within)
    assert "environment (venv) of its own" in isolate._lies_within()
    monkeypatch.undo()
    assert isolate._lies_within() == ""


def test_files_cannot_be_written() -> None:
    code = (
        "import os\ndef f(folder):\n    try:\n        open(os.path.join(folder, 'x'), 'w')\n"
        "    except OSError as error:\n        return error.errno"
    )
    for folder in ("/", "/tmp", "/dev", "/dev/shm", "/usr/lib", ".", os.path.dirname(os.__file__)):
        assert gives(code, "f", folder), folder


def test_a_program_cannot_be_run() -> None:
    code = "import os, sys\ndef f(): os.execv(sys.executable, [sys.executable, '-c', 'pass'])"
    with pytest.raises(Wrong, match="PermissionError"):
        gives(code, "f")


# ---------------------------------------------------------------- what outlives what


@pytest.fixture
def raw() -> Callable[[str], bytes]:
    """The first line of what Python code writes in the isolator, without the filter of calls."""

    def run(code: str) -> bytes:
        process = isolate.start(["-c", code])
        try:
            return process.exchange(b"", 30)
        finally:
            process.close()

    return run


def children(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def named(token: str) -> list[int]:
    """Processes whose command line holds this."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and token.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def gone(token: str) -> bool:
    for _ in range(2400):
        if not named(token):
            return True
        time.sleep(0.05)
    return False


DAEMON = (
    "import os, signal, time  # {token}\n"
    "for number in (1, 2, 13, 15): signal.signal(number, signal.SIG_IGN)\n"
    "if not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(600)\n"
    "    os._exit(0)\n"
    "time.sleep(0.3)\nprint('started', flush=True)\ntime.sleep(600)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
def test_a_daemon_ends_with_the_isolator(raw: Callable[[str], bytes]) -> None:
    token = uuid.uuid4().hex
    assert raw(DAEMON.format(token=token)) == b"started"
    assert gone(token)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
@pytest.mark.parametrize("whom", ["isolator", "caller"])
def test_it_ends_with_whoever_started_it(whom: str) -> None:
    token = uuid.uuid4().hex
    code = DAEMON.format(token=token)
    program = (
        "import sys, time\nfrom ondevice.rewards import isolate\n"
        "process = isolate.start(['-c', sys.stdin.read()])\n"
        "print(process.exchange(b'', 300), process.process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdin is not None and caller.stdout is not None
        caller.stdin.write(code)
        caller.stdin.close()
        said = caller.stdout.readline().split()
        assert said[0] == "b'started'" and len(named(token)) >= 2
        os.kill(int(said[1]) if whom == "isolator" else caller.pid, signal.SIGKILL)
        assert gone(token)
        caller.kill()


# ---------------------------------------------------------------- verdicts


RIGHT = "def f(x):\n    return x + 3\n"


def test_a_right_answer_passes_and_a_wrong_one_does_not() -> None:
    assert verdict(RIGHT, "assert f(1) == 4", "assert f(2) == 5").all_passed
    wrong = verdict("def f(x):\n    return 4\n", "assert f(1) == 4", "assert f(2) == 5")
    assert (wrong.passed, wrong.tests, wrong.why) == (1, 2, "test 2: gave another value")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def f(x):\n    import sys; sys.exit(0)",
        "def f(x):\n    import os; os._exit(0)",
        "def f(x):\n    raise KeyboardInterrupt",
        "import atexit\nf = lambda x: 1 / 0",
    ],
)
def test_an_exit_is_not_a_pass(code: str) -> None:
    assert verdict(code, "assert f(1) == 4").passed == 0


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return A()",
        "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "class A(str):\n    def __eq__(self, other): return True\ndef f(x): return A('x')",
        "class A(list):\n    def __eq__(self, other): return True\n    def __iter__(self): return iter([4])"
        "\ndef f(x): return A()",
        "class A(float):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False"
        "\ndef f(x): return A()",
        "import builtins, json, operator\noperator.eq = lambda a, b: True\nbuiltins.bool = lambda x: True\n"
        "json.dumps = lambda *a, **k: 'true'\nf = lambda x: True",
        "class M(type):\n    def __instancecheck__(c, o): return True\nclass A(metaclass=M):\n"
        "    __class__ = int\n    def __eq__(self, o): return True\ndef f(x): return A()",
    ],
)
def test_a_value_that_says_that_it_is_equal_is_not(code: str) -> None:
    assert verdict(code, "assert f(1) == 4").passed == 0


@pytest.mark.parametrize(
    "said",
    [
        "passed",
        '{"verdict": 1}',
        '{"passed": 1, "tests": 1}',
        '{"value": true}',
        '{"error": null}',
        "[4]",
        "\\xff\\n" * 9,
    ],
)
def test_a_printed_verdict_counts_nothing(said: str) -> None:
    code = (
        f"import os\nsaid = {said!r}.encode() + b'\\n'\ndef f(x):\n    for number in range(64):\n"
        "        for _ in range(3):\n            try:\n                os.write(number, said)\n"
        "            except OSError:\n                pass\n    return 5\n"
    )
    assert verdict(code, "assert f(1) == 4", "assert f(1) == 4").passed == 0


def test_what_is_expected_is_not_where_the_code_is() -> None:
    code = (
        "import gc, sys, os\n"
        "def look():\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        yield repr(frame.f_locals); yield repr(frame.f_globals); frame = frame.f_back\n"
        "    for one in gc.get_objects(): yield repr(one)[:100000]\n"
        "    for folder in ('/', '/proc/self', '/proc/1', '/tmp', '/dev/fd'):\n"
        "        for name in (os.listdir(folder) if os.path.isdir(folder) else ()):\n"
        "            try: yield open(os.path.join(folder, name), errors='replace').read()\n"
        "            except Exception: pass\n"
        "def f(x):\n"
        "    return sum('nacilep' in text[::-1] for text in look())\n"
    )
    assert verdict(code, "assert f(1) in ('pelican', 0)").passed == 1


def test_a_test_sees_nothing_of_the_one_before() -> None:
    frames = (
        "import sys\ndef f(x):\n    frame, found = sys._getframe(), ''\n    while frame:\n"
        "        found += repr(frame.f_locals)[:10000]\n        frame = frame.f_back\n"
        "    return ['z' * 8, 'z' * 8 in found]"
    )
    assert verdict(frames, "assert f(0) == ['z' * 8, False]", "assert f(1)[1] == False").all_passed
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n"
    assert (
        verdict(code, "assert f(1) == 1", "assert f(2) == 1", "assert f(3) + f(4) == 3").passed == 3
    )


def test_a_program_is_judged_by_what_it_writes() -> None:
    row = {"tests": [{"input": "1 2\n", "output": "3"}, {"input": "5 6\n", "output": "11\n"}]}
    tests = of_row(row)
    assert tests is not None
    right = "a, b = map(int, input().split())\nprint(a + b)\n"
    assert judge_one(right, tests, ROOMY).all_passed
    assert judge_one(right + "import sys; sys.exit(0)", tests, ROOMY).all_passed
    assert judge_one(right + "raise ValueError", tests, ROOMY).passed == 0
    assert judge_one("if __name__ == '__main__':\n    print(3)", tests, ROOMY).passed == 1


# ---------------------------------------------------------------- never without


def test_without_an_isolator_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(isolate.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        isolate.require.__wrapped__()
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        verdict(RIGHT, "assert f(1) == 4")


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap's words")
@pytest.mark.parametrize("weaker", ["nothing", "network", "processes", "files", "fails"])
def test_an_isolator_that_does_not_hold_is_refused(
    weaker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there and starts, and lets something through."""
    words = isolate._isolator()
    if weaker in ("network", "processes"):
        monkeypatch.setattr(isolate, "_FILTER", False)
    if weaker == "nothing":
        words = ["/usr/bin/env", "-i"]
        monkeypatch.setattr(isolate, "_INSIDE", os.path.realpath(isolated.__file__))
    elif weaker == "network":
        words.remove("--unshare-net")
    elif weaker == "files":
        at = words.index("--remount-ro")
        words[at:at] = ["--ro-bind", tempfile.gettempdir(), tempfile.gettempdir()]
    elif weaker == "fails":
        words = ["/bin/sh", "-c", "echo no such luck >&2; exit 1"]
    monkeypatch.setattr(isolate, "_isolator", lambda: words)
    said = {
        "nothing": "does not hold: it cannot read files of yours",
        "network": "does not hold: it cannot connect",
        "processes": "does not (hold: it cannot start processes|work)",
        "files": "does not hold: it cannot read files of yours",
        "fails": "does not work: no such luck",
    }
    with pytest.raises(UserError, match=said[weaker]):
        isolate.require.__wrapped__()


def test_the_profile_of_macos_lets_nothing_through_but_python() -> None:
    """What it says; whether macOS does it, `require` finds out there."""
    text = isolate.profile()
    assert text.splitlines()[:3] == ["(version 1)", "(deny default)", "(deny network*)"]
    assert text.count("(") == text.count(")")
    assert str(Path.home()) not in text.replace(os.path.realpath(sys.base_prefix), "").replace(
        os.path.realpath(isolated.__file__), ""
    )
    assert "file-write-data (literal" in text and "file-write*" not in text
