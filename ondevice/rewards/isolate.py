"""Runs code that nobody has read, apart from this machine: on Linux in bubblewrap, on macOS in
sandbox-exec. Never without: where the isolator does not do what it should, `require` refuses.

Inside there is no network, no home, no folder that can be written, no other process and an empty
environment; the code has limits on time, memory, processes, threads, files and output
(isolated.py), and all of it ends with the isolator. What is asked of it is answered with plain
values, and judged outside: no verdict is made where the code runs.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ondevice.common import processes
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json
from ondevice.common.line_process import CallFailed, LineProcess
from ondevice.common.sanitize import sanitize
from ondevice.rewards import isolated

THREADS = 64
OUTPUT = 1 << 20  # bytes of one answer
START_S, GRACE_S = 30.0, 10.0
"""Seconds for the isolator to start, and beside what a test may take, on a machine that is busy."""
NOBODY = 65534
_INSIDE = "/isolated.py"
_FILTER = sys.platform == "linux"  # of system calls


@dataclass(frozen=True)
class Limits:
    """Of one test: `seconds` of processor time (twice that and one by the clock), `memory` in
    bytes."""

    seconds: float = 5.0
    memory: int = 512 << 20

    @property
    def answer(self) -> float:
        """Seconds by the clock after which no further test of an answer is begun."""
        return max(20 * self.seconds, 30.0)

    @property
    def wall(self) -> float:
        """Seconds by the clock after which a test is given up from outside."""
        return 2 * self.seconds + 1 + GRACE_S


class Isolated:
    """An isolator with one candidate's code in it; a context manager. Tests follow one another,
    each in a process of its own, which is begun anew.

    Raises CallFailed wherever the isolator is gone or does not answer.
    """

    def __init__(
        self,
        code: str,
        setup: str = "",
        limits: Limits | None = None,
        errors: IO[bytes] | int = subprocess.DEVNULL,
    ) -> None:
        self.limits = limits or Limits()
        self._process = start([], errors)
        job = {
            "code": code,
            "setup": setup,
            "limits": {
                "seconds": self.limits.seconds,
                "memory": self.limits.memory,
                "output": OUTPUT,
                "threads": THREADS,
                "locked": _FILTER,
            },
        }
        self._job, self._waiting = _line(job), b""
        self._ready = False

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.close()

    @property
    def pid(self) -> int:
        """Of the isolator itself, outside."""
        return self._process.process.pid

    def ready(self) -> None:
        """Waits until it has started, before any code runs in it. Raises CallFailed where it does
        not start: that is nothing that code has brought about."""
        if not self._ready:
            self._process.exchange(self._job, START_S)
            self._ready = True

    def begin(self) -> None:
        """Starts a test, whose calls follow."""
        self._waiting += _line({"test": "calls"})

    def call(self, name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """What the function gives for these plain values. Raises Wrong where it gives none, and
        TypeError or ValueError for arguments that are not plain, or too large."""
        room = [isolated.LARGEST]
        request = {
            "call": name,
            "arguments": [isolated.encode(value, room) for value in arguments],
            "keywords": {key: isolated.encode(value, room) for key, value in keywords.items()},
        }
        reply = self._ask(request)
        if "value" not in reply:
            raise Wrong(_told(reply))
        try:
            return isolated.decode(reply["value"])
        except (ValueError, RecursionError) as error:
            raise Wrong(f"gave what cannot be read: {error}") from error

    def program(self, text: str) -> str:
        """What the code writes as a program with this on its stdin. Raises Wrong where it does not
        end well."""
        reply = self._ask({"test": "program", "input": text})
        output = reply.get("output")
        if reply.get("ended") or not isinstance(output, str):
            raise Wrong(_told(reply))
        return output

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.ready()
        data, self._waiting = self._waiting + _line(request), b""
        line = self._process.exchange(data, self.limits.wall)
        try:
            reply = parse_json(line)
        except ValueError as error:
            raise Wrong("gave what cannot be read") from error
        return reply if isinstance(reply, dict) else {}


class Wrong(Exception):
    """A call gave no value; the text says why."""


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _told(reply: Mapping[str, Any]) -> str:
    for key in ("error", "ended"):
        if isinstance(reply.get(key), str) and reply[key]:
            return sanitize(reply[key], newlines=False)[:300]
    return "gave what is not an answer"


# ---------------------------------------------------------------- the isolators


def start(words: Sequence[str], errors: IO[bytes] | int = subprocess.DEVNULL) -> LineProcess:
    """An isolated Python that runs `words` (none: isolated.py); the isolator says on `errors` why it
    does not start. Raises UserError where there is no isolator."""
    process = processes.start(
        [*_isolator(), *_python(), *(words or _script())],
        processes.Access.REWARD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )
    return LineProcess(process, 8 * OUTPUT)


def _isolator() -> list[str]:
    """The command line before that of the Python inside."""
    if sys.platform == "linux":
        return _bubblewrap()
    if sys.platform == "darwin":
        return _sandbox_exec()
    raise UserError(
        f"code cannot be isolated on {platform.system()}",
        where="reward code",
        hint="run it on Linux (bubblewrap) or macOS (sandbox-exec)",
    )


def _python() -> list[str]:
    """The Python that this one is made of: nothing that is installed into an environment, no bytes
    written, none of the folders beside a script."""
    return [processes.base_python(), "-P", "-s", "-S", "-B"]


def _script() -> list[str]:
    return [_INSIDE if sys.platform == "linux" else os.path.realpath(isolated.__file__)]


def _bubblewrap() -> list[str]:
    """Own namespaces of all kinds, nobody's uid in them, and of the file system only libraries and
    Python, which cannot be written. There is no /proc, and no process but the code's, for pid 1 is
    isolated.py: when it ends the kernel ends all others."""
    program = shutil.which("bwrap")
    if program is None:
        raise UserError(
            "code is run only in bubblewrap, which is not installed",
            where="reward code",
            hint="apt-get install bubblewrap (dnf, pacman and zypper have it under the same name)",
        )
    words = [program]
    words += ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"]
    words += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "isolated"]
    words += ["--cap-drop", "ALL", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    for folder in ("/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache"):
        words += ["--ro-bind-try", folder, folder]
    for folder in ("/lib", "/lib64"):
        if os.path.islink(folder):
            words += ["--symlink", os.readlink(folder), folder]
        else:
            words += ["--ro-bind-try", folder, folder]
    for path in _python_files():
        words += ["--ro-bind", path, path]
    for path in _packages():
        words += ["--tmpfs", path, "--remount-ro", path]
    words += ["--ro-bind", os.path.realpath(isolated.__file__), _INSIDE]
    for device in ("/dev/null", "/dev/urandom"):
        words += ["--dev-bind", device, device]
    return [*words, "--remount-ro", "/", "--chdir", "/", "--"]


def _python_files() -> list[str]:
    """The interpreter, its standard library and what it is linked with, and no more: under a prefix
    that is a folder of its own all of it, under /usr the file itself (libraries are there)."""
    executable = processes.base_python()
    prefix = os.path.realpath(sys.base_prefix)
    home = os.path.realpath(os.path.expanduser("~"))
    if prefix == "/usr":
        return [executable]
    if prefix == "/" or (home + "/").startswith(prefix.rstrip("/") + "/"):
        raise UserError(
            f"this Python lies in {prefix}, which holds more than it: code would see all of that",
            where="reward code",
            hint="use a Python that is installed in a folder of its own",
        )
    paths = [prefix]
    for path in (executable, os.path.realpath(sysconfig.get_path("stdlib"))):
        if not path.startswith((prefix + "/", "/usr/lib")):
            paths.append(path)
    return paths


def _packages() -> list[str]:
    """Folders of packages that are installed into the Python inside: nothing in them is Python's own,
    and where this program is installed into it, it is in one of them."""
    found: set[str] = set()
    for prefix in {os.path.realpath(sys.base_prefix), "/usr"}:
        for pattern in ("lib*/python3*/site-packages", "lib*/python3*/dist-packages"):
            found.update(os.path.realpath(path) for path in glob.glob(f"{prefix}/{pattern}"))
    return sorted(path for path in found if os.path.isdir(path))


def _sandbox_exec() -> list[str]:
    """macOS: everything is denied but to read Python and the system's libraries. Written after
    Apple's profiles; nobody has run it yet, and `require` believes only what it finds to work."""
    program = "/usr/bin/sandbox-exec"
    if not os.path.exists(program):
        raise UserError("code is run only in sandbox-exec, which is not there", where="reward code")
    return [program, "-p", profile(), "/usr/bin/env", "-i", "PYTHONHASHSEED=0"]


def profile() -> str:
    """sandbox-exec's profile. One process may fork, isolated.py; a test's own is kept from it by a
    limit of one process, and ended by isolated.py."""
    readable = ["/usr/lib", "/System/Library", "/System/Volumes/Preboot/Cryptexes", "/dev/null"]
    readable += ["/dev/urandom", "/private/var/db/dyld", os.path.realpath(isolated.__file__)]
    readable += _python_files()
    paths = " ".join(f"(subpath {json.dumps(path)})" for path in readable)
    hidden = " ".join(f"(subpath {json.dumps(path)})" for path in _packages())
    programs = " ".join(
        f"(literal {json.dumps(path)})" for path in ("/usr/bin/env", processes.base_python())
    )
    return "\n".join(
        (
            "(version 1)",
            "(deny default)",
            "(deny network*)",
            f'(allow file-read* {paths} {programs} (literal "/"))',
            *([f"(deny file-read* {hidden})"] if hidden else []),
            f"(allow file-read* (literal {json.dumps(os.path.realpath(isolated.__file__))}))",
            "(allow file-read-metadata)",
            '(allow file-write-data (literal "/dev/null"))',
            f"(allow process-exec {programs})",
            "(allow process-fork)",
            "(allow signal (target same-sandbox))",
            "(allow process-info* (target same-sandbox))",
            "(allow sysctl-read)",
        )
    )


# ---------------------------------------------------------------- the probe


_PROBE = """
import os
def _try(act):
    try:
        return act()
    except BaseException as error:
        return [type(error).__name__, getattr(error, "errno", None)]
def connect(host, port):
    import socket
    with socket.create_connection((host, port), 2):
        return "connected"
def tried_to_connect(host, port):
    return _try(lambda: connect(host, port))
def read(path):
    return _try(lambda: "read %d" % len(open(path, "rb").read()))
def written():
    found = []
    for folder in ("/", "/tmp", "/dev", "/dev/shm", "/var/tmp", "/run", os.getcwd()):
        if _try(lambda: open(os.path.join(folder, "probe"), "w").close()) is None:
            found.append(folder)
    return found
def environment():
    return sorted(os.environ)
def parents():
    return [os.getpid(), os.getppid()]
def forked():
    pid = os.fork()
    if not pid:
        os._exit(0)
    return "forked"
def tried_to_fork():
    return _try(forked)
def executed():
    import sys
    return _try(lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]))
def allocated(size):
    return _try(lambda: "has %d" % len(b"x" * size))
def signalled(pid):
    return _try(lambda: os.kill(pid, 0))
"""


@functools.cache
def require() -> None:
    """Tries, once a process, whether the isolator here holds what this module's docstring says.
    Raises UserError with what does not hold, and what helps."""
    with (
        tempfile.TemporaryFile() as errors,
        Isolated(_PROBE, errors=errors) as inside,
        _listener() as port,
        _secret() as secret,
    ):
        for question, right in _questions(inside, port, secret):
            try:
                inside.begin()
                held = right()
            except (CallFailed, Wrong) as error:
                errors.seek(0)
                said = sanitize(errors.read(300).decode("utf-8", "replace"), newlines=False)
                raise UserError(
                    f"the isolator does not work: {said.strip() or error}",
                    where="reward code",
                    hint=_hint(),
                ) from error
            if not held:
                raise UserError(
                    f"the isolator does not hold: {question}",
                    where="reward code",
                    hint=_lies_within() or _hint(),
                )


def _questions(
    inside: Isolated, port: int, secret: Path
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What must hold, and whether it does."""

    def ask(name: str, *arguments: Any) -> Any:
        return inside.call(name, arguments, {})

    def fails(name: str, *arguments: Any) -> bool:
        reply = ask(name, *arguments)
        return isinstance(reply, list) and isinstance(reply[0], str)

    yield "its environment is empty", lambda: ask("environment") == []
    yield "it cannot connect to this machine", lambda: fails("tried_to_connect", "127.0.0.1", port)
    yield "it has no network", lambda: fails("tried_to_connect", "192.0.2.1", 80)
    yield "it cannot read files of yours", lambda: fails("read", str(secret))
    yield "it cannot read this program", lambda: fails("read", os.path.realpath(processes.__file__))
    yield "it cannot write files", lambda: ask("written") == []
    yield "it cannot start processes", lambda: fails("tried_to_fork")
    yield "it cannot run programs", lambda: fails("executed")
    yield "it cannot signal this process", lambda: fails("signalled", os.getpid())
    if sys.platform == "linux":
        yield "its processes are its own", lambda: ask("parents")[1] == 1
    yield "its memory is limited", lambda: _ended_or(lambda: fails("allocated", 10 << 30))


def _ended_or(held: Callable[[], bool]) -> bool:
    """Whether it held, or the process was ended for what it tried."""
    try:
        return held()
    except Wrong as error:
        return "memory" in str(error)


def _lies_within() -> str:
    """What helps where this program lies among what code must see of Python."""
    here = os.path.realpath(processes.__file__)
    for path in _python_files():
        if here.startswith(path + os.sep):
            return f"it lies in {path}, where Python is: install it into an environment (venv) of its own"
    return ""


def _hint() -> str:
    if sys.platform != "linux":
        return "leave the reward code out on this machine"
    return (
        "bubblewrap needs user namespaces (sysctl kernel.unprivileged_userns_clone=1; on Ubuntu "
        "kernel.apparmor_restrict_unprivileged_userns=0, or a profile for bwrap; containers: "
        "--security-opt seccomp=unconfined)"
    )


@contextmanager
def _listener() -> Iterator[int]:
    """The port of a server on the loopback device that takes whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def _secret() -> Iterator[Path]:
    """A file that this process can read, and code should not."""
    with tempfile.NamedTemporaryFile(prefix="ondevice-probe-") as file:
        file.write(b"secret")
        file.flush()
        yield Path(file.name)
