"""Ways to spoil a file, and to try a reader on it. A reader gives a value, or a UserError that names
the file: whatever else comes out of it, a slow case and a hang included, is a fault.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError

SLOW_S = 20
"""Seconds after which a case is a hang."""


class Fault(AssertionError):
    """A reader did something else than to give a value or a UserError that names its file."""


@dataclass(frozen=True)
class Reader:
    """`read` takes the file of a case, which lies in a folder that `folder` has made. `samples` are
    what that file may hold before it is spoilt. `names`: its errors name the file, or else
    nothing raises."""

    file: str
    samples: Callable[[Path], list[bytes]]
    read: Callable[[Path], Any]
    folder: Callable[[Path], None] = lambda folder: None
    names: bool = True
    slow: bool = False
    """A case takes milliseconds: fewer in CI."""


# ---------------------------------------------------------------- how a sample is spoilt

_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -1e308, 1e308, "", "x", "0",
    "null", "\ud800", "\x00", "../../etc", "a" * 300, [], {}, [[]], [None], {"": {}}, [1, "a", {}],
    float("nan"), float("inf"), ["x"] * 50, {"a": {"b": {"c": []}}},
]  # fmt: skip
_WORDS = [
    b"null", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"[" * 200, b"{\"a\":" * 120, b"\xff\xfe",
    b"\xef\xbb\xbf", b"\x00", b"\\ud800", b"\r\n", b"\n\n", b"\"", b"'", b",", b":", b"]", b"}", b"\t", b"{{", b"}}",
    b"{%", b"%}", b"&a [*a]", b"!!python/name:os.system", b"? ", b"- ", b"2026-99-99", b"<<: *a", b"\x1b[2J",
    "🙂".encode(),
    "\u202e".encode(), b"\xf0\x9f", b"PAR1", b"GGUF", b"\x7f" * 9,
]  # fmt: skip


def spoil(draw: random.Random, samples: list[bytes]) -> bytes:
    """One case: a sample that was changed, in its values where it is JSON or in its bytes."""
    kind = draw.random()
    if kind < 0.03:
        return draw.randbytes(draw.choice((0, 1, 8, 100, 3000)))
    data = draw.choice(samples)
    if kind < 0.5:
        changed = _other_values(draw, data)
        if changed is not None:
            return changed
    for _ in range(draw.choice((1, 1, 1, 2, 4, 9))):
        data = _other_bytes(draw, data, samples)
    return data


def _other_values(draw: random.Random, data: bytes) -> bytes | None:
    """The same JSON, or lines of it, with other values in a few places; None for what is neither."""
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        many = True
    except ValueError:
        try:
            lines, many = [json.loads(data)], False
        except ValueError:
            return None
    for _ in range(draw.choice((1, 1, 2, 5))):
        if lines:
            at = draw.randrange(len(lines))
            lines[at] = _changed(draw, lines[at])
    texts = [json.dumps(line) for line in lines]
    return ("\n".join(texts) if many else texts[0]).encode()


def _changed(draw: random.Random, value: Any) -> Any:
    """A value with something else somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        change = draw.random()
        if change < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if change < 0.15:
            return {**value, draw.choice(("", "a", "\ud800", key + key)): value[key]}
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        change = draw.random()
        if change < 0.1:
            return value[:at] + value[at + 1 :]
        if change < 0.2:
            return value[:at] + [value[at]] * draw.choice((2, 30)) + value[at + 1 :]
        return value[:at] + [_changed(draw, value[at])] + value[at + 1 :]
    if isinstance(value, (int, float)) and draw.random() < 0.4:
        near = float(value) if abs(value) < 1e300 else 0.0
        return draw.choice((-value, value + 1, value * 1000, near, str(value)))
    return draw.choice(_ODD)


def _other_bytes(draw: random.Random, data: bytes, samples: list[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    end = min(at + draw.choice((1, 1, 4, 20, 300)), len(data))
    change = draw.randrange(8)
    if change == 0:
        return data[:at]
    if change == 1:
        return data[:at] + data[end:]
    if change == 2:
        return data[:end] + data[at:end] * draw.choice((1, 1, 40)) + data[end:]
    if change == 3:
        return data[:at] + draw.randbytes(end - at) + data[end:]
    if change == 4 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if change == 5:
        other = draw.choice(samples)
        cut = draw.randrange(len(other) + 1)
        return data[:at] + other[cut : cut + 400] + data[end:]
    if change == 6 and end - at >= 1:
        number = draw.choice((0, 1, 255, 2**31 - 1, 2**31, 2**63, 2**64 - 1))
        return data[:at] + number.to_bytes(8, "little")[: draw.choice((4, 8))] + data[at + 8 :]
    return data[:at] + draw.choice(_WORDS) + data[draw.choice((at, end)) :]


# ---------------------------------------------------------------- trying one


def try_case(reader: Reader, folder: Path, data: bytes) -> bool:
    """Reads a case; whether it was refused. Raises Fault."""
    file = folder / reader.file
    file.write_bytes(data)
    try:
        with _within(SLOW_S):
            reader.read(file)
        return False
    except UserError as error:
        told = str(error)
        # a template is parsed where it is used, and named by what it is
        there = [str(folder), "chat_template: ", *(one.name for one in folder.iterdir())]
        if reader.names and not any(part in told for part in there):
            raise Fault(f"names no file: {told[:300]}") from error
        if len(told) > 3000:
            raise Fault(f"is too long: {told[:300]!r}") from error
        return True
    except (Fault, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise Fault(f"{type(error).__name__}: {str(error)[:300]}") from error


class _Slow(BaseException):
    pass


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raises Fault where it takes longer."""

    def late(*given: Any) -> None:
        raise _Slow

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    except _Slow:
        raise Fault(f"takes more than {seconds} seconds") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
