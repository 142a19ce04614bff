"""Where a run's files lie: folders that go to a cloud, and disks that cannot do all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ondevice as od
import small_stages
from ondevice.common import atomic
from ondevice.common.disk import DiskFull
from ondevice.common.errors import UserError
from ondevice.runs import checkpoint, place, trash
from ondevice.runs.place import check_disk, cloud_of, cloud_warning
from ondevice.seam.select import load_backend
from test_disk_pause import pretraining
from test_full_disk import result

ICLOUD = "Library/Mobile Documents/com~apple~CloudDocs"


@pytest.mark.parametrize(
    ("path", "service", "system"),
    [
        (f"{ICLOUD}/runs/a", "iCloud Drive", "darwin"),
        ("Library/Mobile Documents/iCloud~md~app/x", "iCloud Drive", "darwin"),
        ("Library/CloudStorage/Dropbox/runs", "Dropbox", "darwin"),
        ("Library/CloudStorage/OneDrive-Company/runs", "OneDrive", "darwin"),
        ("Library/CloudStorage/GoogleDrive-me@a.b/My Drive", "Google Drive", "darwin"),
        ("Library/CloudStorage/Sync-me/runs", "Sync", "darwin"),
        ("library/cloudstorage/dropbox-home/runs", "Dropbox", "darwin"),
        ("Dropbox/runs/a", "Dropbox", "linux"),
        ("Dropbox (Personal)/runs", "Dropbox", "darwin"),
        ("OneDrive - Some Company/x", "OneDrive", "linux"),
        ("onedrive/x", "OneDrive", "linux"),
        ("Nextcloud/x", "Nextcloud", "linux"),
        ("Dropboxes/x", "", "linux"),
        ("work/Dropbox/x", "", "linux"),
        ("Documents/runs", "", "linux"),
        ("runs/a", "", "darwin"),
    ],
)
def test_folders_that_are_sent_elsewhere(
    path: str, service: str, system: str, tmp_path: Path
) -> None:
    assert cloud_of(tmp_path / path, tmp_path, system) == service
    (tmp_path / path).mkdir(parents=True)
    assert cloud_of(tmp_path / path, tmp_path, system) == service
    (tmp_path / "runs-link").symlink_to(tmp_path / path)
    assert cloud_of(tmp_path / "runs-link" / "b", tmp_path, system) == service
    assert cloud_of(Path("/srv/runs"), tmp_path, system) == ""


@pytest.mark.parametrize("name", ["Documents", "Desktop"])
def test_documents_and_desktop_where_icloud_holds_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "com.apple.FinderInfo\n"
    monkeypatch.setattr(place.processes, "output_of", lambda *words: said)
    run = tmp_path / name / "runs" / "a"
    assert cloud_of(run, tmp_path, "darwin") == ""
    said = "com.apple.FinderInfo\ncom.apple.file-provider-domain-id#PN\n"
    assert cloud_of(run, tmp_path, "darwin") == "iCloud Drive"
    said = ""
    (tmp_path / ICLOUD / name).mkdir(parents=True)
    assert cloud_of(run, tmp_path, "darwin") == "iCloud Drive"
    assert cloud_of(run, tmp_path, "linux") == ""

    def missing(*words: str) -> str:
        raise FileNotFoundError(words[0])

    shutil.rmtree(tmp_path / "Library")
    monkeypatch.setattr(place.processes, "output_of", missing)
    assert cloud_of(run, tmp_path, "darwin") == ""


def test_dropbox_anywhere_by_its_marks(tmp_path: Path) -> None:
    (tmp_path / "disk" / ".dropbox.cache").mkdir(parents=True)
    assert cloud_of(tmp_path / "disk" / "runs", tmp_path / "home") == ""
    (tmp_path / "disk" / ".dropbox").write_text("")
    assert cloud_of(tmp_path / "disk" / "runs", tmp_path / "home") == "Dropbox"
    assert "Dropbox" in cloud_warning(tmp_path, "Dropbox") and "--out" in cloud_warning(
        tmp_path, "Dropbox"
    )


def test_a_run_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("Anna eats red pears in Rome. " * 50)
    small = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "backend": "torch"}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    od.init(data=str(tmp_path / "a.txt"), out=str(tmp_path / "Dropbox" / "r"), **small)
    err = capsys.readouterr().err
    assert err.count("lies in Dropbox, which sends every checkpoint over the network") == 1


# what a disk can do


def test_this_disk_can_do_it_all(tmp_path: Path) -> None:
    said: list[str] = []
    check_disk(tmp_path, said.append)
    assert said == [] and os.listdir(tmp_path) == []


def _refuse(number: int) -> Any:
    def refuse(*given: Any, **how: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("where", "name", "instead", "said"),
    [
        (os, "replace", _refuse(errno.EEXIST), "put a file in the place of another one"),
        (os, "replace", lambda a, b: None, "put a file in the place of another one"),
        (os, "rename", _refuse(errno.EPERM), "rename a folder"),
        (fcntl, "flock", _refuse(errno.ENOLCK), "lock files"),
        (fcntl, "flock", lambda a, b: None, "lock files"),  # yes to everybody
        (Path, "read_bytes", lambda self: b"\x00one\n", "give back a file as it was written"),
    ],
    ids=[
        "no-rename-over",
        "rename-over-ignored",
        "no-rename",
        "no-flock",
        "flock-ignored",
        "bytes",
    ],
)
def test_a_disk_on_which_work_could_be_lost_is_refused_by_name(
    where: Any, name: str, instead: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, instead)
        with pytest.raises(UserError, match=f"this disk cannot {said}") as caught:
            check_disk(tmp_path, lambda text: None)
    assert "local disk" in caught.value.hint and os.listdir(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from ondevice.runs import place
place._links = lambda where: os.kill(os.getpid(), 9)
place.check_disk(Path(sys.argv[1]), print)
"""


def test_what_a_kill_leaves_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".probe-mine").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    check_disk(tmp_path, lambda text: None)
    assert os.listdir(tmp_path) == [".probe-mine"]


def test_a_full_disk_is_no_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", _refuse(errno.ENOSPC))
    with pytest.raises(DiskFull):
        check_disk(tmp_path, lambda text: None)


def test_without_links_best_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "symlink_to", _refuse(errno.EPERM))
    said: list[str] = []
    check_disk(tmp_path, said.append)
    assert "no symbolic links" in said[0]

    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "x").write_text("x")

    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, step, write, {"step": step, "sound": True}, keep=2, best=1)
    assert (tmp_path / "best").read_text() == "step-00000001\n"
    left = [path.name for path in checkpoint.steps(tmp_path)]
    assert left == ["step-00000001", "step-00000004", "step-00000005"]
    checkpoint.save(tmp_path, 6, write, {"step": 6, "sound": True}, keep=2, best=6)
    assert (tmp_path / "best").read_text() == "step-00000006\n"
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000005", "step-00000006"]
    checkpoint.clear(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_brings_folders_to_itself_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell a folder from a file")
    monkeypatch.setattr(os, "fsync", files_only)
    atomic.sync(tmp_path)
    (tmp_path / "file").write_text("x")
    atomic.sync(tmp_path / "file")


# real ones


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """An exFAT disk: no links of either kind, small letters are capitals."""
    programs = ("mkfs.exfat", "mount.exfat-fuse", "losetup")
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not all(map(shutil.which, programs)):
        pytest.skip(f"needs root and {', '.join(programs)}")
    image, where = tmp_path / "image", tmp_path / "exfat"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["mkfs.exfat", str(image)], **quiet)
    loop = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True
    ).stdout.strip()
    if not loop or subprocess.run(["mount.exfat-fuse", loop, str(where)]).returncode:
        pytest.skip("this machine lets nobody mount an image")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)
        subprocess.run(["losetup", "-d", loop], check=True)


@pytest.mark.slow
def test_a_whole_stage_on_exfat(
    exfat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers; names that differ by case alone write over nothing; the trash works."""
    files = small_stages.make(tmp_path / "files", load_backend("torch", "cpu", "float32"))
    lines = [f"Anna eats red pears in Rome with Ben number {n}." for n in range(400)]
    (files / "book.txt").write_text("\n\n".join(lines))
    od.pretrain(**pretraining(files, tmp_path / "r"))
    capsys.readouterr()
    od.pretrain(**pretraining(files, exfat / "r"))
    assert "no symbolic links" in capsys.readouterr().err
    assert result(exfat, "pretrain") == result(tmp_path, "pretrain")
    best = (exfat / "r" / "pretrain" / "checkpoints" / "best").read_text().strip()
    assert best.startswith("step-")
    with pytest.raises(UserError, match="complete"):
        od.pretrain(**{**pretraining(files, exfat / "R"), "steps": 4})
    assert result(exfat, "pretrain") == result(tmp_path, "pretrain")
    [moved] = od.remove_runs("r", "R", folder=exfat)
    assert not (exfat / "r").exists() and len(trash.entries(exfat)) == 1 and moved["bytes"] > 0
    od.restore_run("r", exfat)
    assert result(exfat, "pretrain") == result(tmp_path, "pretrain")
