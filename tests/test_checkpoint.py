"""Checkpoints are whole or not there: a process killed at any file operation, damaged files, full
disks.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ondevice.common.errors import UserError
from ondevice.common.files import write_file
from ondevice.runs import checkpoint


def write(step: int) -> Any:
    def files(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_text(f"weights of {step}" * 100)
        (folder / "optimizer.safetensors").write_text(f"moments of {step}" * 100)

    return files


def save(folder: Path, *numbers: int, keep: int = 2, best: int | None = None) -> None:
    for step in numbers:
        checkpoint.save(
            folder, step, write(step), {"step": step, "tokens": 7 * step}, keep=keep, best=best
        )


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def newest(folder: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = checkpoint.newest(folder, said.append)
    return (found.step if found else None), said


def best(checkpoints: Path) -> checkpoint.Checkpoint | None:
    """What the link `best` points to, if it is whole."""
    path = checkpoints / "best"
    return (
        checkpoint.load(path.resolve())
        if path.is_dir() and checkpoint.find_damage(path) is None
        else None
    )


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, best=None)
    save(tmp_path, 30, 40, 50, best=30)
    assert names(tmp_path) == ["best", "step-00000030", "step-00000040", "step-00000050"]
    # relative: the run folder may be moved
    assert os.readlink(tmp_path / "best") == "step-00000030"
    found = best(tmp_path)
    assert found is not None and (found.step, found.record["tokens"]) == (30, 210)
    save(tmp_path, 60, best=60)
    assert names(tmp_path) == ["best", "step-00000050", "step-00000060"]


def test_the_best_stays_while_a_better_one_was_measured_but_never_saved(tmp_path: Path) -> None:
    save(tmp_path, 10, best=10)
    save(tmp_path, 20, 30, 40, best=None)
    found = best(tmp_path)
    assert found is not None and found.step == 10
    assert names(tmp_path) == ["best", "step-00000010", "step-00000030", "step-00000040"]


def test_the_newest_sound_one_and_its_best_stay_as_a_way_back(tmp_path: Path) -> None:
    """However many come after it whose gradient or figure was not finite."""
    for step, sound in ((10, True), (20, True), (30, False), (40, False), (50, False)):
        record = {"step": step, "sound": sound, "best_saved_step": 10, "score": float("nan")}
        checkpoint.save(tmp_path, step, write(step), record, keep=2, best=40 if step > 30 else 10)
    assert names(tmp_path) == ["best", *(f"step-000000{n}" for n in (10, 20, 40, 50))]
    assert "NaN" not in (tmp_path / "step-00000050" / "trainer.json").read_text()
    checkpoint.drop_after(tmp_path, 20)
    checkpoint.prune(tmp_path, 20, keep=2, best=10)
    assert names(tmp_path) == ["best", "step-00000010", "step-00000020"]
    assert os.readlink(tmp_path / "best") == "step-00000010"


def test_no_link_points_to_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, 10, best=5)
    assert names(tmp_path) == ["step-00000010"]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = checkpoint.newest(tmp_path, print)
    assert found is not None and found.record == {"step": 3, "tokens": 21}
    assert (found.model / "model.safetensors").read_text() == "weights of 3" * 100
    assert found.optimizer.read_text() == "moments of 3" * 100


DAMAGE = {
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-8]),
    "one bit": lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]),
    "gone": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "optimizer.safetensors", "trainer.json", "MANIFEST.json"]
)
def test_damage_is_seen_and_the_one_before_is_taken(tmp_path: Path, file: str, how: str) -> None:
    save(tmp_path, 1, 2)
    DAMAGE[how](tmp_path / "step-00000002" / file)
    step, said = newest(tmp_path)
    assert step == 1
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]
    assert ("manifest" in said[0]) == (file == "MANIFEST.json") or how == "one bit"
    save(tmp_path, 3)
    assert newest(tmp_path) == (3, [])


def test_nothing_whole_is_nothing(tmp_path: Path) -> None:
    assert newest(tmp_path / "never") == (None, [])
    save(tmp_path, 1, best=1)
    (tmp_path / "step-00000001" / "trainer.json").unlink()
    assert newest(tmp_path)[0] is None
    assert best(tmp_path) is None


def test_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step-00000001" / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    assert newest(tmp_path) == (None, ["step-00000001 is damaged (format 99); going back one"])


def test_an_error_while_writing_leaves_what_stood_there(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def broken(folder: Path) -> None:
        write(2)(folder)
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        checkpoint.save(tmp_path, 2, broken, {"step": 2}, keep=2, best=None)
    assert names(tmp_path) == ["step-00000001"]
    assert newest(tmp_path) == (1, [])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space left"),
        OSError(errno.EDQUOT, "quota exceeded"),
        Exception(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),  # safetensors'
        RuntimeError(
            f"[write] Unable to write {1 << 62} bytes to file."
        ),  # MLX's: more than there can be room for
    ],
    ids=["full", "quota", "safetensors", "mlx"],
)
def test_a_full_disk_is_said_in_one_line_and_costs_nothing(
    tmp_path: Path, error: Exception
) -> None:
    save(tmp_path, 1)

    def full(folder: Path) -> None:
        write(2)(folder)
        raise error

    with pytest.raises(UserError, match="(disk is full|quota).*--resume"):
        checkpoint.save(tmp_path, 2, full, {"step": 2}, keep=2, best=None)
    assert names(tmp_path) == ["step-00000001"]


def test_what_mlx_could_not_write_for_another_reason_is_no_full_disk(tmp_path: Path) -> None:
    def refused(folder: Path) -> None:
        raise RuntimeError("[write] Unable to write 10 bytes to file.")

    with pytest.raises(RuntimeError, match="10 bytes"):
        checkpoint.save(tmp_path, 2, refused, {"step": 2}, keep=2, best=None)
    assert names(tmp_path) == []


def test_a_best_that_is_a_folder_is_moved_aside_and_told_of(tmp_path: Path) -> None:
    """As a copy of the run that follows links has made it."""
    save(tmp_path / "run", 10, best=10)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)
    said: list[str] = []
    for step in (20, 30):
        checkpoint.save(
            tmp_path / "copy", step, write(step), {"step": step}, keep=2, best=step, say=said.append
        )
    assert names(tmp_path / "copy") == ["best", "best-copy-1", "step-00000020", "step-00000030"]
    assert os.readlink(tmp_path / "copy" / "best") == "step-00000030"
    assert checkpoint.find_damage(tmp_path / "copy" / "best-copy-1") is None
    assert len(said) == 1 and "best-copy-1" in said[0]


def test_what_only_begins_like_a_checkpoint_is_nobodys_to_remove(tmp_path: Path) -> None:
    (tmp_path / "step-by-step").mkdir()
    (tmp_path / "step-by-step" / "thesis").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    save(tmp_path / "run", 1)
    shutil.copytree(tmp_path / "step-by-step", tmp_path / "run" / "step-by-step")
    (tmp_path / "run" / "step-00000001").rename(elsewhere)
    # a person has moved it to another disk
    (tmp_path / "run" / "step-00000001").symlink_to(elsewhere)
    save(tmp_path / "run", 2, 3, 4)
    assert names(tmp_path / "run") == ["step-00000003", "step-00000004", "step-by-step"]
    assert checkpoint.find_damage(elsewhere) is None


@pytest.mark.parametrize(
    "manifest",
    [
        '{"format": 1, "files": [1]}',
        '{"format": 1, "files": {"a": 5}}',
        "[" * 9999,
        '{"format": 1, "files": {"a": {"size": 3}}}',
        "5",
    ],
)
def test_a_manifest_of_another_form_is_damage(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "MANIFEST.json").write_text(manifest)
    assert newest(tmp_path) == (1, ["step-00000002 is damaged (no manifest); going back one"])


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_a_file_size_limit_stands_for_a_real_full_disk(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_checkpoint import save
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = Path({str(tmp_path)!r})
        save(folder, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            save(folder, 2)
        except OSError as error:
            print(error.errno)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(errno.EFBIG)], done.stderr
    assert newest(tmp_path) == (1, [])


KILLED = """
    import os, sys
    sys.path.insert(0, TESTS)
    from pathlib import Path
    from test_checkpoint import save

    folder, deadly = Path(sys.argv[1]), 0
    while True:   # a child for each file operation, killed just before it
        deadly += 1
        place = folder / str(deadly)
        child = os.fork()
        if child == 0:
            seen = 0
            def hook(event, arguments):
                global seen
                if event.startswith(("os.", "open", "shutil.")):
                    seen += 1
                    if seen == deadly:
                        os._exit(9)
            save(place, 1, 2, 3, best=1)
            (place / "told").write_text("3")
            sys.addaudithook(hook)
            for step in (4, 5):
                save(place, step, best=step)
                descriptor = os.open(place / "told", os.O_WRONLY)
                os.write(descriptor, str(step).encode())
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
    print(deadly)
"""


@pytest.mark.slow
def test_killed_at_any_file_operation_a_whole_checkpoint_stands(tmp_path: Path) -> None:
    """What `save` has returned for is never lost; the best is whole or the one before; the next
    save tidies up.
    """
    code = textwrap.dedent(KILLED).replace("TESTS", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 40, "the hook saw too few operations to mean anything"
    left_behind = 0
    for deadly in range(1, last + 1):
        place = tmp_path / str(deadly)
        told = int((place / "told").read_text())
        left_behind += any(name.startswith(".") for name in names(place))
        step, said = newest(place)
        assert step is not None and told <= step <= told + 1, (deadly, names(place))
        assert said == []  # a step-… folder is whole from the moment it has its name
        pointed = best(place)
        assert pointed is not None and pointed.step in (1, 4, 5), (deadly, names(place))
        save(place, 6, 7, best=6)
        assert names(place) == ["best", "step-00000006", "step-00000007", "told"]
    assert left_behind > 10


def test_a_small_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "done.json", "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_file(tmp_path / "done.json", "new")
    assert (tmp_path / "done.json").read_text() == "old"
