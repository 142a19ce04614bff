"""Nothing is deleted without proof that we made it and that its maker is dead; what is replaced is
the old or the new.

Real processes: killed at each file operation, beside each other, forked.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import ondevice
from hub_server import HubServer, environment
from ondevice.common import atomic
from ondevice.common.errors import UserError
from ondevice.common.files import whole_folder, write_file
from ondevice.data.token_cache import made_once

ODD = ["model", "a*b?c[d]", "-x", "näme\nof two lines", ".hidden", "a-0123456789abcdef"]


def fill(target: Path, text: str, **how: Any) -> None:
    with whole_folder(target, **how) as folder:
        (folder / "sub").mkdir()
        (folder / "a").write_text(text)
        (folder / "sub" / "b").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def began_by(code: str, *arguments: Any) -> subprocess.Popen[str]:
    """A process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


# ---- what is not ours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
def test_a_persons_files_and_folders_stay(tmp_path: Path, name: str) -> None:
    """Whatever their names begin with, and whatever stands in a name for many."""
    person = {
        f".old-{name}-2023",
        f".tmp-{name}-backup",
        f".tmp-{name}-12345",
        f".tmp-{name}-{'0' * 16}",
        ".tmp-abc",
        f".tmp-{name}-0123456789abcdeX",
        ".old-acd-1",
    }
    for mine in person:
        (tmp_path / mine).mkdir()
        (tmp_path / mine / "thesis").write_text("mine")
    (tmp_path / f".tmp-{name}-{'1' * 16}").write_text("a file")
    (tmp_path / f".tmp-{name}-{'2' * 16}").symlink_to(tmp_path / ".tmp-abc")
    before = contents(tmp_path)
    fill(tmp_path / name, "one")
    fill(tmp_path / name, "two")
    write_file(tmp_path / "done.json", "{}")
    made_once(tmp_path / "tokens", lambda part: part.mkdir())
    atomic.remove(tmp_path / "done.json")
    assert contents(tmp_path / name) == {"a": "two", "sub/b": "two"}
    assert {**before, f"{name}/a": "two", f"{name}/sub/b": "two"} == contents(tmp_path)
    assert (tmp_path / f".tmp-{name}-{'2' * 16}").is_symlink()


def test_without_replacing_what_came_meanwhile_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="there already"),
        whole_folder(tmp_path / "m", replacing=False) as folder,
    ):
        (folder / "a").write_text("ours")
        fill(tmp_path / "m", "theirs")
    assert contents(tmp_path) == {"m/a": "theirs", "m/sub/b": "theirs"} and names(tmp_path) == ["m"]
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "ours", replacing=False)
    assert contents(tmp_path / "empty") == {"a": "ours", "sub/b": "ours"}


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    fill(tmp_path / "disk" / "m", "theirs")
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    fill(tmp_path / "m", "ours")
    assert not (tmp_path / "m").is_symlink() and contents(tmp_path / "m")["a"] == "ours"
    assert contents(tmp_path / "disk" / "m")["a"] == "theirs"
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "m")
    atomic.remove(tmp_path / "link")
    atomic.remove(tmp_path / "link")  # nothing there is nothing to remove
    assert names(tmp_path) == ["disk", "m"] and contents(tmp_path / "disk" / "m")["a"] == "theirs"


# ---- who lives, and who is dead -------------------------------------------------------------------------------------

FILLS = """
    import sys
    from pathlib import Path
    from ondevice.runs.checkpoint import whole_folder
    with whole_folder(Path(sys.argv[1])) as folder:
        (folder / "a").write_text("theirs")
        print("filling", flush=True)
        sys.stdin.readline()
        (folder / "b").write_text("theirs")
"""


def test_the_folder_of_a_living_process_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    process = began_by(FILLS, tmp_path / "m")
    fill(tmp_path / "m", "ours")
    assert len(names(tmp_path)) == 2
    process.communicate("go on\n")
    assert contents(tmp_path) == {"m/a": "theirs", "m/b": "theirs"} and process.returncode == 0
    process = began_by(FILLS, tmp_path / "m")
    process.kill()
    process.communicate()
    assert len(names(tmp_path)) == 2
    fill(tmp_path / "other", "ours")  # whoever writes next to it
    assert names(tmp_path) == ["m", "other"] and contents(tmp_path / "m")["a"] == "theirs"


FORKS = """
    import os, sys, time
    from pathlib import Path
    from ondevice.runs.checkpoint import whole_folder
    with whole_folder(Path(sys.argv[1])) as folder:
        (folder / "a").write_text("theirs")
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
"""


def test_a_forked_child_does_not_keep_a_dead_parents_folder_alive(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FORKS), str(tmp_path / "m")],
        text=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        fill(tmp_path / "m", "ours")
        assert len(names(tmp_path)) == 2  # the parent lives
        process.kill()
        process.wait()
        fill(tmp_path / "m", "ours")
        assert names(tmp_path) == ["m"]
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_where_nothing_can_be_locked_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = began_by(FILLS, tmp_path / "m")
    process.kill()
    process.communicate()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    fill(tmp_path / "m", "ours")
    assert len(names(tmp_path)) == 2 and contents(tmp_path / "m")["a"] == "ours"


def test_a_folder_that_is_deleted_while_it_is_filled_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="was deleted while"),
        whole_folder(tmp_path / "m") as folder,
    ):
        shutil.rmtree(folder.parent)
        (folder / "a").write_text("ours")
    assert names(tmp_path) == []


def test_writers_beside_each_other_never_take_each_others_folders(tmp_path: Path) -> None:
    """Each removes what is abandoned before it begins: the moment before a marker is locked is
    there too.
    """
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                write_file(tmp_path / f"file-{number}", str(turn))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and contents(tmp_path) == {f"file-{n}": "59" for n in range(6)}


# ---- killed at any moment -------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    sys.path.insert(0, TESTS)
    from pathlib import Path
    from ondevice.common import atomic
    from ondevice.common.files import write_file
    from test_atomic import fill

    folder, deadly = Path(sys.argv[1]), 0
    while True:   # a child for each file operation, killed just before it
        deadly += 1
        place = folder / str(deadly)
        child = os.fork()
        if child == 0:
            seen = 0
            def hook(event, arguments):
                global seen
                if event.startswith(("os.", "open", "shutil.", "fcntl.")):
                    seen += 1
                    if seen == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)
            fill(place / "m", "old")
            write_file(place / "f", "old")
            fill(place / "gone", "old")
            sys.addaudithook(hook)
            fill(place / "m", "new")
            write_file(place / "f", "new")
            atomic.remove(place / "gone")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
    print(deadly)
"""


@pytest.mark.slow
def test_killed_at_any_file_operation_the_old_or_the_new_is_there_and_whole(tmp_path: Path) -> None:
    code = textwrap.dedent(KILLED).replace("TESTS", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last, put_back, seen = int(done.stdout), 0, set()
    assert last > 40, "the hook saw too few operations to mean anything"
    for deadly in range(1, last + 1):
        place, said = tmp_path / str(deadly), []
        missing = not (place / "m").exists()
        atomic.sweep(place, said.append)
        put_back += missing
        assert len(said) == missing and all("is back" in text for text in said), (deadly, said)
        there = {name.split("/")[0] for name in contents(place)}
        whole = {
            name: {text for path, text in contents(place).items() if path.split("/")[0] == name}
            for name in there
        }
        assert whole["m"] in ({"old"}, {"new"}) and whole["f"] in ({"old"}, {"new"}), (
            deadly,
            whole,
        )
        assert len([path for path in contents(place) if path.startswith("m/")]) == 2
        assert len([path for path in contents(place) if path.startswith("gone/")]) in (0, 2)
        assert not [name for name in names(place) if name.startswith(".")], (deadly, names(place))
        seen |= {(*whole["m"], *whole["f"])}
    assert put_back >= 1 and seen == {("old", "old"), ("new", "old"), ("new", "new")}


def test_what_was_being_replaced_stays_where_a_person_has_put_something_else_in_its_place(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "m", "old")
    code = """
        import os, sys
        from pathlib import Path
        from ondevice.runs.checkpoint import whole_folder
        rename = os.rename
        def killed(source, target):
            if str(source).endswith(".new"):
                os._exit(9)
            rename(source, target)
        os.rename = killed
        with whole_folder(Path(sys.argv[1])) as folder:
            (folder / "a").write_text("new")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m")])
    fill(tmp_path / "other", "x")
    assert contents(tmp_path / "m")["a"] == "old"  # put back; once more, and a person is quicker
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m")])
    (tmp_path / "m").mkdir()
    said: list[str] = []
    atomic.sweep(tmp_path, said.append)
    assert (
        "old" in contents(tmp_path).values()
        and len(said) == 1
        and "something else stands there" in said[0]
    )


# ---- pulls ----------------------------------------------------------------------------------------------------------

BIG = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 50_000,
    "sub/tokenizer.json": b"{}",
    "README.md": b"hi",
}


def pulling(server: HubServer, home: Path, repo: str, out: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ondevice", "pull", repo, "--out", out],
        cwd=home,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(server, home / "hf"),
    )


@pytest.mark.slow
def test_two_pulls_beside_each_other_are_both_whole(server: HubServer, tmp_path: Path) -> None:
    """The name of one begins with that of the other, and a person has folders that look like an
    unfinished one.
    """
    server.add("me/qwen-big", BIG)
    server.add("me/qwen", BIG)
    (tmp_path / ".old-qwen-2023").mkdir()
    (tmp_path / ".old-qwen-2023" / "thesis").write_text("mine")
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        go_on.wait(60)

    server.ask_for("HEAD", "/me/qwen-big/resolve/.*model.safetensors", "pass", then=wait)
    big = pulling(server, tmp_path, "me/qwen-big", "qwen-big")
    assert arrived.wait(60)
    small = pulling(server, tmp_path, "me/qwen", "qwen")
    go_on.set()
    assert (small.communicate()[1], small.returncode)[1] == 0
    _, said = big.communicate()
    assert big.returncode == 0, said
    for name in ("qwen", "qwen-big"):
        there = {
            p.relative_to(tmp_path / name).as_posix()
            for p in (tmp_path / name).rglob("*")
            if p.is_file()
        }
        assert there == {*BIG, ".pulled.json"}
    assert (tmp_path / ".old-qwen-2023" / "thesis").read_text() == "mine"
    assert names(tmp_path) == [".old-qwen-2023", "hf", "qwen", "qwen-big"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_pull_whose_files_vanish_is_no_half_model(
    server: HubServer, tmp_path: Path, what: str
) -> None:
    server.add("me/m", BIG)
    place = tmp_path / "here"
    place.mkdir()

    def tell(event: Any) -> None:
        [found] = place.glob(".tmp-*")
        if what == "folder":
            shutil.rmtree(found)
        elif event.get("path") == "config.json":
            (found / ".new" / "config.json").unlink()

    with pytest.raises(
        UserError, match="deleted while" if what == "folder" else "config.json changed while"
    ):
        ondevice.pull("me/m", out=place / "m", tell=tell)
    assert names(place) == []
