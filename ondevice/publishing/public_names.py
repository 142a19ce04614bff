"""What leaves this machine calls files and folders by their own names: never by where they lie, nor
by whose they are.

Cards, configs and records that are pushed go through here. A mixture of sources is told source by
source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ondevice.data.mixture import WEIGHT, DataSource, is_file, is_there, ordered

CORPUS = "built-in corpus"
_NAMED = ("builtin", "hub:", "gym:", "orders:")
"""How sources begin that are no paths, or of which something is made."""
_ENDS = re.compile(r"\.\w{1,8}$")
_ABSOLUTE = re.compile(r"(?:file://)?(?:~[\w.-]*/|/|[A-Za-z]:[\\/]|\\\\)")
"""How a path begins that says where something lies."""
_IN_TEXT = re.compile(r"(?<![\w:/.~<\\-])(?:file://)?(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+/?")
"""A path of two parts or more in a sentence; not an address, nor half a word."""


def parts(data: str) -> list[DataSource]:
    """The sources that `data` names, also where their files are gone by now or are relative to
    another folder.
    """
    plain = data.strip().rstrip(", ")
    if is_file(plain):
        return [DataSource(plain)]
    weighted = list(WEIGHT.finditer(plain))
    if weighted and "".join(match.group() for match in weighted) == plain:
        return [DataSource(match[1], float(match[2])) for match in weighted]
    names = [name.strip() for name in plain.split(",")]
    found = names[:1]
    for name in names[1:]:  # a comma parts two sources, or is part of one's name
        if _begins(name) or _ended(found[-1]):
            found.append(name)
        else:
            found[-1] += f",{name}"
    return [DataSource(name) for name in found]


def _begins(name: str) -> bool:
    return name.startswith(_NAMED) or bool(_ABSOLUTE.match(name))


def _ended(name: str) -> bool:
    return name.startswith(_NAMED) or bool(_ENDS.search(name)) or is_there(name)


def source_names(data: str) -> list[str]:
    """Of each source: built-in corpus, its id on the Hub, or a file's or folder's own name."""
    names = [source_name(source.data) for source in parts(data)]
    return list(dict.fromkeys(names))


def source_name(data: str) -> str:
    """The same of one source."""
    prefix, texts = ordered(data)
    if prefix:
        return f"orders of {source_name(texts)}"
    if data.partition(":")[0] == "builtin":
        return CORPUS
    if data.startswith(("hub:", "gym:")):
        if _ABSOLUTE.match(data[4:]):
            return own_name(data.partition(":")[2])
        return data.removeprefix("hub:")
    return own_name(data)


def sources_value(data: str) -> str:
    """A setting's value as it was given, with its weights, every path by its last part."""
    sources = []
    for name, weight in parts(data):
        shown = _source_value(name)
        if weight is not None:
            shown += f":{weight:g}"
        sources.append(shown)
    return ",".join(sources)


def _source_value(name: str) -> str:
    """One source as it was given, its path by its last part."""
    prefix, texts = ordered(name)
    if prefix:
        return prefix + _source_value(texts)
    kind, colon, rest = name.partition(":")
    if colon and kind in ("builtin", "hub", "gym"):
        if kind != "builtin" and not _ABSOLUTE.match(rest):
            return name
        return f"{kind}:{own_name(rest)}"
    if name == "builtin":
        return name
    return own_name(name)


def own_name(path: str | Path) -> str:
    """A file's or folder's own name; a home's is a person's, and is not told."""
    text = str(path)
    if re.match(r"[A-Za-z]:\\|\\\\", text):  # a path of Windows
        text = text.replace("\\", "/")
    name = Path(text).name
    if name in ("", "..", "~", Path.home().name):
        return "a folder"
    return name


def short_name(path: str) -> str:
    """The stage that a model's folder belongs to, else the folder's own name."""
    if not path:
        return ""
    folder = Path(path)
    if folder.name == "model" and folder.parent.name:
        return own_name(folder.parent)
    return own_name(folder)


def without_places(text: str, known: Iterable[str] = ()) -> str:
    """A sentence in which every path, and each of the `known` ones, is told by its own name."""
    paths = {path for path in known if "/" in path}
    for path in sorted(paths, key=len, reverse=True):  # one may begin another
        text = text.replace(path, short_name(path))
    return _IN_TEXT.sub(_last_part, without_home(text))


def _last_part(match: re.Match[str]) -> str:
    path = match.group().rstrip("./")
    return own_name(path) + "." * match.group().endswith(".")  # a sentence's end


def without_home(text: str) -> str:
    """A text of a person's own, in which their home folder is `~`."""
    home = str(Path.home())
    if len(home) > 1:
        return re.sub(rf"{re.escape(home)}(?![\w-]|\.\w)", "~", text)
    return text


def plain_values(value: Any) -> Any:
    """A JSON value in which no string is a path of this machine: each is told by its last part, and
    in keys too.
    """
    if isinstance(value, Mapping):
        plain = {}
        for key, one in value.items():
            plain[str(plain_values(key))] = plain_values(one)
        return plain
    if isinstance(value, list | tuple):
        return [plain_values(one) for one in value]
    if isinstance(value, str):
        return _plain(value)
    return value


def _plain(value: str) -> str:
    if "\n" in value or "/" not in value and "\\" not in value:
        return value
    deep = any(_is_deep_path(source.data) for source in parts(value))
    if deep or value.startswith("file:"):
        return sources_value(value)
    return value


def _is_deep_path(source: str) -> bool:
    """Whether a source says where something lies, by two folders or more; a home counts as one."""
    source = ordered(source)[1]
    if source.startswith(("builtin:", "hub:", "gym:")):
        source = source.partition(":")[2]
    if not _ABSOLUTE.match(source):
        return False
    steps = len(re.findall(r"[\\/]+[^\\/]", source))
    if source.startswith("~"):
        steps += 1
    return steps > 1
