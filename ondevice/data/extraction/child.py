"""The process in which text is taken out of documents that others wrote: what hangs is given up, what
takes too much memory fails, and what crashes takes nothing else with it.

    python -m ondevice.data.extraction.child PARENT MEMORY

JSON lines on stdin and stdout: for each {"file", "kind", "out"} the text is written to `out`, and the
answer is {"characters", "pages", "without_text", "repeated"} or {"reason"}. It ends when its stdin
ends, its parent is gone, or it takes more than MEMORY bytes.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ondevice.common.json_files import parse_json
from ondevice.data.extraction.account import Account, Reader, Unreadable

MODULES = {
    ".pdf": "pdf_pages",
    ".docx": "word_document",
    ".html": "web_page",
    ".htm": "web_page",
    ".xhtml": "web_page",
    ".epub": "epub_book",
    ".ipynb": "notebook",
}
MOST_TEXT = 256 << 20
LOOK_S = 0.5
_NOT_WRITTEN = dict.fromkeys((0, 0xFEFF))  # NUL, and a mark that would be taken for a file's first
TOO_MUCH = "needs too much memory to be read"


def main() -> None:
    """Serves until stdin ends."""
    parent, memory = int(sys.argv[1]), int(sys.argv[2])
    _limit(memory)
    threading.Thread(target=_watch, args=(parent, memory), daemon=True).start()
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in requests:
        replies.write(json.dumps(answer(parse_json(line))) + "\n")
        replies.flush()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What one file gives."""
    account = Account()
    file, out = Path(request["file"]), Path(request["out"])
    try:
        characters = _write(file, reader_of(request["kind"]), account, out)
    except Unreadable as error:
        return {"reason": _line(str(error))}
    except MemoryError:
        return {"reason": TOO_MUCH}
    except RecursionError:
        return {"reason": "is nested too deep to be read"}
    except OSError as error:
        return {"reason": f"cannot be read: {error.strerror or error}"}
    except Exception as error:  # of a library, on a file that somebody else has written
        return {"reason": _line(f"is damaged: {type(error).__name__}: {error}")}
    if not characters:
        return {"reason": "holds no text"}
    return {"characters": characters, **asdict(account)}


def reader_of(kind: str) -> Reader:
    """What reads documents of this kind."""
    module = importlib.import_module(f"ondevice.data.extraction.{MODULES[kind]}")
    reader: Reader = module.read
    return reader


def _write(file: Path, read: Reader, account: Account, out: Path) -> int:
    """Writes the blocks with an empty line between them, but between a list's entries; how many
    characters these are."""
    size = 0
    in_list = False
    with out.open("w", encoding="utf-8", errors="replace", newline="\n") as written:
        for block in read(file, account):
            clean = block.translate(_NOT_WRITTEN).replace("\r", "\n").strip("\n")
            if not clean.strip():
                continue
            if size:
                written.write("\n" if in_list and clean.startswith("- ") else "\n\n")
            in_list = clean.startswith("- ")
            written.write(clean)
            size += len(clean)
            if size > MOST_TEXT:
                raise Unreadable(f"holds more than {MOST_TEXT >> 20} MB of text")
        written.write("\n")
    return size


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _limit(memory: int) -> None:
    """Limits of the system, as far as it has them: macOS has none of memory that it keeps to, and
    `_watch` looks there."""
    limits = {"RLIMIT_AS": memory, "RLIMIT_FSIZE": 4 * MOST_TEXT + 1, "RLIMIT_CORE": 0}
    for name, most in limits.items():
        with suppress(ValueError, OSError):  # a lower one holds already
            resource.setrlimit(getattr(resource, name), (most, most))


def _watch(parent: int, memory: int) -> None:
    while os.getppid() == parent:
        # bytes there; on Linux it begins with what the parent has taken
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform == "darwin" and peak > memory:
            break
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
