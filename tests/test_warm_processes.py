"""Processes that are forked with torch imported are processes like others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warm_processes import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="they are plain processes there"),
]
TELL = (
    "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), "
    "sorted(os.listdir('/proc/self/fd')), 'torch' in sys.modules, sys.path[0]]))"
)


def test_words_folder_environment_and_handles_are_a_plain_processs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_WORD_OF_THIS_TEST", "ü")
    words = ("-c", TELL, "one", "--two")
    plain = json.loads(subprocess.check_output([sys.executable, *words], env=dict(os.environ)))
    found = json.loads(start(*words).communicate()[0])
    assert found[4] and not plain[4]
    del found[4], plain[4]
    for one, other in zip(found, plain, strict=True):
        assert one == other


def test_how_one_ends_is_told() -> None:
    process = start("-c", "import sys; print('out'); sys.exit('err')")
    assert process.communicate() == ("out\n", "err\n") and process.returncode == 1
    assert start("-m", "ondevice", "nothing").communicate()[1].startswith("ondevice: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_hears_signals(number: signal.Signals, tmp_path: Path) -> None:
    code = "import time; from pathlib import Path; Path('there').touch(); time.sleep(60)"
    with contextlib.chdir(tmp_path):
        process = start("-c", code)
    while not (tmp_path / "there").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGINT:
        assert err.endswith("KeyboardInterrupt\n")
    else:
        assert process.returncode == -number
