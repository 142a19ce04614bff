"""Processes that we start: nothing from the working folder runs in them, and each is told what it
needs alone.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import source
from hub_models import write_model, write_run
from ondevice.common.launch import PACKAGES, OwnPackages
from ondevice.common.processes import Access, environment
from ondevice.publishing import background
from ondevice.rewards.process import Host
from ondevice_tui import access, push_process, stage_processes, worker_client
from ondevice_tui.app import OndeviceApp

ROOT = Path(__file__).parent.parent
TOKEN = "hf_0123456789"
HOSTILE = (
    "yaml",
    "huggingface_hub",
    "datasets",
    "numpy",
    "tyro",
    "textual",
    "safetensors",
    "tokenizers",
    "jinja2",
    "sitecustomize",
    "usercustomize",
    "ondevice_torch",
)

# one place alone

STARTS = {
    "subprocess": {
        "Popen",
        "run",
        "call",
        "check_call",
        "check_output",
        "getoutput",
        "getstatusoutput",
    },
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "asyncio.subprocess": {"create_subprocess_exec", "create_subprocess_shell"},
    "pty": {"spawn", "fork"},
}
WHOLE = {"multiprocessing", "concurrent.futures.process", "webbrowser"}
OF_OS = ("exec", "spawn", "posix_spawn", "fork", "system", "popen", "startfile")


def started_in(nodes: Sequence[ast.AST]) -> list[str]:
    """What in a source starts a process, by the names under which it was imported; `sys.executable`
    in any place.
    """
    names, found = dict[str, str](), []
    for node in nodes:
        if isinstance(node, ast.Import):
            for one in node.names:
                names[one.asname or one.name.partition(".")[0]] = (
                    one.name if one.asname else one.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}

    def whole(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return names.get(node.id, "")
        return f"{whole(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""

    # subprocess.Popen[bytes]
    types = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", "") or ""
            used = [module, *(f"{module}.{one.name}".strip(".") for one in node.names)]
            found += [
                name for name in used if any(name == w or name.startswith(f"{w}.") for w in WHOLE)
            ]
        elif isinstance(node, ast.Attribute | ast.Name):
            module, _, name = whole(node).rpartition(".")
            called = f"{module}.{name}"
            if (
                name in STARTS.get(module, ())
                or (module == "os" and name.startswith(OF_OS))
                or called in ("sys.executable", "concurrent.futures.ProcessPoolExecutor")
            ):
                found += [] if id(node) in types else [called]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("subprocess_exec", "subprocess_shell")
        ):
            found.append(node.func.attr)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nsubprocess.run(['x'])",
        "import subprocess as sp\nsp.Popen(['x'])",
        "from subprocess import Popen as P\nP(['x'])",
        "import asyncio\nasyncio.create_subprocess_exec('x')",
        "from asyncio import subprocess\nsubprocess.create_subprocess_shell('x')",
        "import os\nos.execv('x', [])",
        "import os\nos.posix_spawn('x', [], {})",
        "from os import fork\nfork()",
        "import os\nf = os.system",
        "import multiprocessing",
        "from multiprocessing import get_context",
        "import multiprocessing.pool as p",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()",
        "import webbrowser",
        "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
        "import sys\nx = [sys.executable]",
        "loop.subprocess_exec(x)",
        "import pty\npty.spawn('x')",
    ],
)
def test_the_search_finds_every_way(text: str) -> None:
    assert started_in(list(ast.walk(ast.parse(text))))


def test_the_search_lets_types_and_constants_be() -> None:
    text = (
        "import subprocess, asyncio, os\nx: subprocess.Popen[bytes]\ny = subprocess.DEVNULL\n"
        "z: asyncio.subprocess.Process\nw = os.path.join('a', 'b')\n"
    )
    assert not started_in(list(ast.walk(ast.parse(text))))


def test_processes_are_started_in_one_place_alone() -> None:
    files = list(source.files())
    assert len(files) > 150
    found = {source.named(file): started_in(source.nodes(file)) for file in files}
    found = {name: calls for name, calls in found.items() if calls}
    # a hint names it, and nothing is started
    assert found.pop("ondevice/common/distribution.py") == ["sys.executable"]
    # this program once more in its own process, with the words and the environment that it has
    assert "os.execve" in found.pop("ondevice/common/allocator.py")
    # inside the isolator, where nothing else of this program is: a test of code in a process
    assert found.pop("ondevice/rewards/isolated.py") == ["os.fork"]
    assert set(found) == {"ondevice/common/processes.py"}, found


# what is passed on

GIVEN = {
    "PATH": "/bin",
    "HOME": "/home/a",
    "LC_ALL": "C",
    "LANG": "C",
    "TMPDIR": "/t",
    "LD_LIBRARY_PATH": "/l",
    "DYLD_FALLBACK_LIBRARY_PATH": "/d",
    "HF_TOKEN": "hf_x",
    "HUGGING_FACE_HUB_TOKEN": "hf_y",
    "HF_HOME": "/hf",
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": "http://h",
    "HF_TOKEN_PATH": "/hf/t",
    "HTTPS_PROXY": "http://p",
    "no_proxy": "x",
    "CUDA_VISIBLE_DEVICES": "1",
    "MLX_METAL_JIT": "1",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "LD_PRELOAD": "/o.so",
    "XDG_CACHE_HOME": "/c",
    "VIRTUAL_ENV": "/v",
    "TERM": "xterm",
    "TEXTUAL_THEME": "nord",
    "NO_COLOR": "1",
    "COLUMNS": "80",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_CUDA_ALLOC_CONF": "x",
    "TORCHINDUCTOR_CACHE_DIR": "/i",
    "SSL_CERT_FILE": "/s",
    "CC": "gcc",
    "ONDEVICE_X": "1",
    "ONDEVICE_API_KEY": "k",
    "TORCH_SECRET": "s",
    "OPENAI_API_KEY": "k",
    "AWS_SECRET_ACCESS_KEY": "k",
    "AWS_SESSION_TOKEN": "t",
    "GITHUB_TOKEN": "t",
    "WANDB_API_KEY": "k",
    "DATABASE_URL": "p://u:w@h",
    "X_PASSWORD": "p",
    "SSH_AUTH_SOCK": "/a",
    "PYTHONPATH": "/work:.::relative",
    "PYTHONSTARTUP": "/x.py",
    "PYTHONINSPECT": "1",
    "PYTHONBREAKPOINT": "x.y",
    "PYTHONWARNINGS": "error::x.Y",
    "PYTHONUTF8": "1",
    "BASH_ENV": "/b",
    "GIT_ASKPASS": "/g",
}
START = {
    "PATH",
    "HOME",
    "LC_ALL",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH",
    "PYTHONUTF8",
    "PYTHONSAFEPATH",
}
OWN = START | {
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HTTPS_PROXY",
    "no_proxy",
    "CUDA_VISIBLE_DEVICES",
    "MLX_METAL_JIT",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "LD_PRELOAD",
    "XDG_CACHE_HOME",
    "VIRTUAL_ENV",
    "TERM",
    "TEXTUAL_THEME",
    "NO_COLOR",
    "COLUMNS",
    "TOKENIZERS_PARALLELISM",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_CACHE_DIR",
    "SSL_CERT_FILE",
    "CC",
    "ONDEVICE_X",
}


@pytest.mark.parametrize(
    "access, kept",
    [
        (Access.REWARD, START),
        (Access.OWN, OWN),
        (Access.HUB, OWN | {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"}),
    ],
)
def test_what_a_process_is_told(access: Access, kept: set[str]) -> None:
    told = environment(access, GIVEN)
    assert set(told) == kept and all(
        told[name] == GIVEN[name] for name in kept - {"PYTHONSAFEPATH"}
    )


def test_a_person_names_more() -> None:
    given = {
        **GIVEN,
        "ONDEVICE_KEEP_ENV": "DATABASE_URL, X_PASSWORD",
        "ONDEVICE_REWARD_ENV": "OPENAI_API_KEY",
    }
    assert environment(Access.OWN, given).keys() >= {"DATABASE_URL", "X_PASSWORD"}
    assert "OPENAI_API_KEY" not in environment(Access.OWN, given)
    assert environment(Access.REWARD, given).keys() == START | {"OPENAI_API_KEY"}


def test_of_a_search_path_only_installed_packages_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cluster" / "numpy-2.0.dist-info").mkdir(parents=True)
    (tmp_path / "loose").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"PYTHONPATH": f"{tmp_path}/loose:{tmp_path}/cluster:cluster:"}
    for kind in Access:
        assert environment(kind, given)["PYTHONPATH"] == f"{tmp_path}/cluster"


@pytest.mark.parametrize(
    "fields, said",
    [
        (None, Access.OWN),
        ({"base_model_name_or_path": "/somewhere/base"}, Access.OWN),
        ({"base_model_name_or_path": "owner/gated"}, Access.HUB),
    ],
)
def test_a_worker_has_a_token_only_to_fetch(tmp_path: Path, fields: Any, said: Access) -> None:
    if fields is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    assert access.of_model(str(tmp_path)) is said
    assert access.of_model("owner/gated") is Access.HUB


@pytest.mark.parametrize(
    "words, recipe, said",
    [
        (["sft", "there", "x.jsonl", "--out=new/run"], None, Access.OWN),
        (["sft", "owner/model", "x.jsonl"], None, Access.HUB),
        (["sft", "there", "x.jsonl", "--data=hub:me/x"], None, Access.HUB),
        (["sft", "there", "a.jsonl:2,hub:me/x:1"], None, Access.HUB),
        (["sft", "adapter", "x.jsonl"], None, Access.HUB),
        (["sft", "there", "x.jsonl", "--push-every=100"], None, Access.HUB),
        (["sft", "there", "x.jsonl", "--push_every=0"], None, Access.OWN),
        (["push", "there", "m"], None, Access.HUB),
        (["run", "minute"], None, Access.OWN),
        (["runs", "resume", "new/run"], "stages: {sft: {steps: 3}}", Access.OWN),
        (["runs", "resume", "new/run"], "stages: {sft: {data: 'hub:me/x'}}", Access.HUB),
        (["runs", "resume", "new/run"], "stages: {sft: {push_every: 5}}", Access.HUB),
        (["runs", "resume", "new/run"], "stages: [", Access.OWN),
    ],
)
def test_a_stage_has_a_token_only_to_push_or_pull(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    recipe: str | None,
    said: Access,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there", "adapter", "new/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "owner/gated"}'
    )
    if recipe is not None:
        (tmp_path / "new" / "run" / "recipe.yaml").write_text(recipe)
    assert access.of_command(words, tmp_path / "new" / "run") is said


# each kind, started in a folder of hostile files


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A working folder whose files say that they ran, and an environment that leads there; what
    ran.
    """
    folder, ran = tmp_path / "working folder", tmp_path / "ran"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r} + '\\n')\n")
    monkeypatch.chdir(folder)
    for name, value in {
        "HF_TOKEN": TOKEN,
        "OPENAI_API_KEY": "sk-1",
        "PYTHONPATH": f"{folder}{os.pathsep}.",
        "PYTHONSTARTUP": str(folder / "yaml.py"),
        "HF_HOME": str(tmp_path / "hf"),
    }.items():
        monkeypatch.setenv(name, value)
    return lambda: ran.read_text().split() if ran.is_file() else []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environment of each process that is started, as the system gives it, else as it was
    passed.
    """
    found: list[dict[str, str]] = []

    def look(pid: int, given: Mapping[str, str]) -> None:
        raw = b""
        # empty for a moment, until the program has replaced its parent's image
        for _ in range(6000):
            try:
                raw = raw or Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:  # not Linux
                raw = "\0".join(f"{name}={value}" for name, value in given.items()).encode()
            if raw:
                break
            time.sleep(0.01)
        found.append(
            dict(entry.split("=", 1) for entry in raw.decode().split("\0") if "=" in entry)
        )

    popen = subprocess.Popen

    def opened(words: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        assert words[1] == "-P"
        process = popen(words, **how)
        look(process.pid, how["env"])
        return process

    monkeypatch.setattr(subprocess, "Popen", opened)  # asyncio's processes come by here as well
    return found


def test_the_hostile_folder_is_hostile(hostile: Callable[[], list[str]]) -> None:
    """Without our care all of it runs: what the others check can fail."""
    subprocess.run([sys.executable, "-c", "import yaml, huggingface_hub, datasets"], check=True)
    assert {"sitecustomize", "yaml", "huggingface_hub", "datasets"} <= set(hostile())


def test_a_reward(
    hostile: Callable[[], list[str]], seen: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(
        "import json, os\ndef reward(prompts, completions, **columns):\n    import numpy, yaml\n"
        f"    open({str(tmp_path / 'env')!r}, 'w').write(json.dumps(dict(os.environ)))\n    return [1.0]\n"
    )
    host = Host(tmp_path / "reward.py", timeout=60)
    try:
        host.start()
        assert host.call("reward", {"prompts": ["p"], "completions": ["c"]}) == [1.0]
    finally:
        host.close()
    told = json.loads((tmp_path / "env").read_text())
    allowed = START | {
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHOME",
        "PYTHONUSERBASE",
        "PYTHONNOUSERSITE",
        "PYTHONIOENCODING",
        "TZ",
        "LANGUAGE",
    }
    assert {name for name in told if not name.startswith(("LC_", "DYLD_", "__CF"))} <= allowed
    assert told["PATH"] == os.environ["PATH"] and TOKEN not in json.dumps(seen) and hostile() == []


@pytest.mark.slow
def test_a_push_beside_training(
    hostile: Callable[[], list[str]], seen: list[dict[str, str]], tmp_path: Path
) -> None:
    stage = write_run(tmp_path / "run").stage("sft")
    process = background.start(stage, "me/m")
    assert process.wait(60) == 2, (stage.path / "push.log").read_text()  # HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE is set" in background.last_words(stage)
    assert seen[0]["HF_TOKEN"] == TOKEN and "OPENAI_API_KEY" not in seen[0] and hostile() == []


def run_async(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.slow
def test_the_app_s_doctor(hostile: Callable[[], list[str]], seen: list[dict[str, str]]) -> None:
    lines: list[str] = []
    app: Any = SimpleNamespace(post_message=lambda message: lines.append(message.line))
    run_async(lambda: OndeviceApp._ask_doctor(app))
    assert "cores" in lines[0] and TOKEN not in json.dumps(seen) and hostile() == []


@pytest.mark.slow
def test_the_app_s_worker(
    hostile: Callable[[], list[str]], seen: list[dict[str, str]], tmp_path: Path
) -> None:
    async def work() -> Any:
        process = worker_client.ModelProcess(str(write_model(tmp_path / "m")))
        try:
            return await process.open()
        finally:
            await process.close()

    assert run_async(work)["event"] == "ready"
    assert TOKEN not in json.dumps(seen) and "OPENAI_API_KEY" not in seen[0] and hostile() == []


@pytest.mark.slow
def test_the_app_s_push_and_its_stages(
    hostile: Callable[[], list[str]], seen: list[dict[str, str]], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    told = run_async(lambda: push_process.ask_plan(push_process.settings(run, "sft", "me/m")))
    assert told["repo"] == "me/m"
    child = stage_processes.start(
        ["sft", str(tmp_path / "nothing"), "x.jsonl", "--out", str(run.path)], run.path
    )
    assert child.process.wait(60) == 2, child.log.read_text()
    # what asks the Hub about a push has the token, a stage on folders and files of this machine has
    # not
    assert [one.get("HF_TOKEN") for one in seen] == [TOKEN, None]
    assert (
        not any("OPENAI_API_KEY" in one or "PYTHONPATH" in one for one in seen) and hostile() == []
    )


@pytest.mark.slow
def test_python_m_leaves_the_working_folder(
    hostile: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")  # that one is asked for by whoever starts it
    done = subprocess.run(
        [sys.executable, "-m", "ondevice", "doctor", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and hostile() == [], done.stderr


# a checkout that is not installed


def test_own_packages_are_found_beside_this_one() -> None:
    for name in PACKAGES:
        spec = OwnPackages.find_spec(name)
        assert (
            spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(ROOT)
        )
    assert OwnPackages.find_spec("yaml") is None and OwnPackages.find_spec("tests") is None


def test_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """With -S no .pth names the checkout; its other files are still not imported."""
    shutil.copytree(
        ROOT / "ondevice", tmp_path / "ondevice", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "yaml.py").write_text("raise SystemExit('yaml.py ran')")
    (tmp_path / "probe.py").write_text("")
    reward = tmp_path / "r.py"
    reward.write_text(
        "import json, ondevice, yaml\ndef r(completions):\n"
        "    raise ValueError(ondevice.__file__ + ' ' + yaml.__file__)\n"
    )
    installed = os.pathsep.join(
        dict.fromkeys(
            [*(p for p in sys.path if "-packages" in p), sysconfig.get_paths()["purelib"]]
        )
    )
    request = json.dumps({"call": "r", "arguments": {"completions": ["c"]}}) + "\n"
    launcher = tmp_path / "ondevice" / "common" / "launch.py"
    words = [
        sys.executable,
        "-S",
        "-P",
        str(launcher),
        "ondevice.rewards.host",
        str(reward),
        str(os.getpid()),
    ]
    (tmp_path / "reward").mkdir()
    reward.rename(tmp_path / "reward" / "r.py")
    words[-2] = str(tmp_path / "reward" / "r.py")
    done = subprocess.run(
        words,
        input=request,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": installed},
        timeout=60,
    )
    ready, said = map(json.loads, done.stdout.splitlines())
    assert ready["ready"] == [{"name": "r", "needs": ["completions"]}], done.stderr
    assert (
        f"{tmp_path / 'ondevice' / '__init__.py'} " in said["error"]
        and "-packages/yaml" in said["error"]
    )
