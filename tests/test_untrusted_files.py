"""Files that somebody else may have written: one door to each kind, within limits. The source is
walked for a second door."""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import source
from ondevice.common import bounded, json_files, yaml_files
from ondevice.common.errors import UserError
from ondevice.config.load import parse_yaml, read_yaml
from ondevice.data.json_arrays import rows_in
from ondevice.data.readers import READERS, BadRecord
from ondevice.models.tensor_files import shapes_in

ROOT = Path(__file__).parent.parent

# What reads → the modules that may, each with its reason.
DOORS: dict[str, dict[str, str]] = {
    "json.load": {},
    "json.loads": {
        "ondevice/common/json_files.py": "the door",
        "ondevice/rewards/isolated.py": "inside the isolator, where the door is not",
    },
    "json.JSONDecoder": {},
    "yaml.load": {"ondevice/common/yaml_files.py": "the door"},
    "yaml.safe_load": {},
    "yaml.full_load": {},
    "yaml.unsafe_load": {},
    "yaml.load_all": {},
    "pickle.load": {},
    "pickle.loads": {"ondevice/rewards/judges.py": "what gym.py pickled in the process that asks"},
    "pickle.Unpickler": {},
    "marshal.loads": {},
    "tomllib.load": {},
    "tomllib.loads": {},
    "csv.reader": {},
    "csv.DictReader": {"ondevice/data/readers.py": "the door"},
    "parquet.ParquetFile": {
        "ondevice/data/parquet_process.py": "in a process of its own",
    },
    "gzip.open": {
        "ondevice/data/plain_text.py": "the door: its readers are bounded",
        "ondevice/planning/row_sample.py": "as far as a sample goes",
    },
    "gzip.decompress": {},
    "zlib.decompress": {},
    "zipfile.ZipFile": {"ondevice/data/extraction/zip_limits.py": "the door"},
    "tarfile.open": {},
    "struct.unpack": {"ondevice/models/tensor_files.py": "the length of a head, which is bounded"},
    "np.load": {"ondevice/stages/dpo.py": "a cache, checked before"},
    "np.memmap": {
        "ondevice/data/token_cache.py": "a cache, checked before",
        "ondevice/data/batches.py": "a cache, checked before",
    },
    "np.fromfile": {},
    "torch.load": {},
    "safetensors.safe_open": {
        "backends/ondevice_torch/backend.py": "asked by tensor_files.py",
        "backends/ondevice_torch/sharded.py": "a checkpoint's own state, whose hash was compared",
    },
    "mx.load": {
        "backends/ondevice_mlx/backend.py": "asked by tensor_files.py",
        "backends/ondevice_mlx/libraries.py": "a file that was read by then",
    },
    "jinja2.Template": {"ondevice/data/template_sandbox.py": "a type"},
    "jinja2.Environment": {"ondevice/data/template_sandbox.py": "parses, and renders nothing"},
}
METHODS: dict[str, dict[str, str]] = {
    "from_file": {"ondevice/data/tokenizer_files.py": "vocab.json and merges.txt"},
    "from_string": {"ondevice/data/template_sandbox.py": "the door"},
    "read_bytes": {
        "ondevice/common/bounded.py": "the door",
        "ondevice/runs/place.py": "what it has just written",
    },
    "read_text": {
        "ondevice/common/bounded.py": "the door",
        "ondevice/common/physical_memory.py": "of the system",
        "ondevice/common/power.py": "of the system",
        "ondevice/common/processor.py": "of the system",
        "ondevice/runs/place.py": "what it has just written",
        "ondevice/planning/calibration.py": "of the system",
        "ondevice/planning/measure.py": "of the system",
        "ondevice/config/recipe.py": "of this program",
        "ondevice/seam/doctor.py": "of the system",
    },
    "readlines": {},
}
# a file's whole content: `read()` without a number
WHOLE: dict[str, str] = {
    "ondevice/common/physical_memory.py": "of the system",
    "ondevice/inference/chat.py": "what a person pipes in",
    "ondevice/inference/fill_mask.py": "what a person pipes in",
    "ondevice/inference/label.py": "what a person pipes in",
    "ondevice/publishing/background.py": "the end of our own log",
    "ondevice/publishing/push_files.py": "a small file, of the size that was planned",
    "ondevice/runs/logs.py": "the end of our own log",
    "tui/ondevice_tui/push_process.py": "our own log, from where it was read to",
    "tui/ondevice_tui/event_reader.py": "its own method of that name",
    "tui/ondevice_tui/screens/push.py": "a method of that name",
}


def sources() -> Iterator[tuple[str, ast.AST]]:
    for file in source.files():
        name = source.named(file)
        for node in source.nodes(file):
            yield name, node


LAST_NAMES = {door.rpartition(".")[2] for door in DOORS}


def doors_of(node: ast.AST) -> list[str]:
    """Every name in DOORS that a node is, called or handed on."""
    if isinstance(node, ast.Attribute) and node.attr in LAST_NAMES:
        return [ast.unparse(node)] if ast.unparse(node) in DOORS else []
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{n.name}" for n in node.names if f"{node.module}.{n.name}" in DOORS]
    return []


def test_every_kind_of_file_has_one_door() -> None:
    wrong = []
    for name, node in sources():
        for door in doors_of(node):
            if name not in DOORS[door]:
                wrong.append(f"{name}:{getattr(node, 'lineno', 0)}: {door}")
    assert not sorted(set(wrong)), (
        "read it by ondevice/common/json_files.py, yaml_files.py, bounded.py"
    )


@pytest.mark.slow
def test_no_file_is_read_as_a_whole_elsewhere() -> None:
    wrong = []
    for name, node in sources():
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        method = node.func.attr
        if method not in METHODS and method != "read":
            continue
        of = ast.unparse(node.func.value)
        if method in METHODS and of != "bounded" and name not in METHODS[method]:
            wrong.append(f"{name}:{node.lineno}: {of}.{method}")
        if method == "read" and not node.args and name not in WHOLE:
            wrong.append(f"{name}:{node.lineno}: {of}.read()")
    assert not wrong, "read it by ondevice/common/bounded.py"


def test_the_rule_finds_a_new_door() -> None:
    tree = ast.parse("import json\nfrom json import loads\nx = map(json.loads, [])\n")
    found = [door for node in ast.walk(tree) for door in doors_of(node)]
    assert found == ["json.loads", "json.loads"]


def test_what_is_wrong_is_said_in_a_line_of_bounded_length() -> None:
    """Libraries quote whole lines of a file."""
    assert str(UserError("x" * 9000, where="a.json")) == "a.json: " + "x" * 2000 + " …"


DEEP = "[" * 5000 + "]" * 5000
BAD_JSON = {
    "bytes": b"\xff\xfe",
    "empty": b"",
    "deep": DEEP.encode(),
    "deep enough": b"[" * 150 + b"]" * 150,
    "digits": b"9" * 5000,
    "list": b"[]",
    "half a character": b'{"a": "\\ud800"}',
    "cut": b'{"a": ',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_cannot_be_used_names_its_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(BAD_JSON[kind])
    with pytest.raises(UserError) as caught:
        json_files.read_object(file)
    assert caught.value.where == str(file)
    if kind not in ("list", "half a character"):
        with pytest.raises(ValueError):
            json_files.load_json(file)


def test_json_of_any_other_kind_of_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(bounded.LARGEST + 1)
    for name in ("pipe", "folder", "huge", "missing"):
        with pytest.raises(UserError, match="cannot be read"):
            json_files.read_object(tmp_path / name)
    assert json_files.read_json(tmp_path / "missing") == {}


BAD_YAML = {
    "bomb": "a: &a [1, 2]\n" + "".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]\n" for n in range(1, 40)),
    "holds itself": "a: &a [*a]\n",
    "deep": "a: " + DEEP,
    "digits": "a: " + "9" * 5000,
    "a date": "a: 2026-99-99",
    "key twice": "a: 1\na: 2",
    "a list for a key": "[1]: 2\n? [a]\n: 3",
    "long": "a: '" + "x" * (yaml_files.LARGEST + 1) + "'",
    "a tag": "a: !!python/object/apply:os.system [ls]",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_YAML)
def test_yaml_that_cannot_be_used_is_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BAD_YAML[kind])
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "r.yaml")
    assert "r.yaml" in caught.value.where and len(str(caught.value)) < 500


def test_yaml_with_aliases_is_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "x") == {
        "a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]",
     (9).to_bytes(8, "little") + b'{"a": {}}'],
)  # fmt: skip
def test_the_head_of_no_tensors(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(head)
    with pytest.raises(UserError, match="cannot be read"):
        shapes_in(tmp_path / "model.safetensors")


# rows

ARRAYS: dict[str, tuple[str, list[Any]]] = {
    "list": ('[{"a": 1}, {"a": "]},{"}]', [{"a": 1}, {"a": "]},{"}]),
    "escapes": (r'[{"a": "\"\\"}, {"a\\": [1, {"b": "\\\""}]}]', [{"a": '"\\'}, {"a\\": [1, {"b": '\\"'}]}]),
    "data": ('{"x": [{"b": 1}], "rows": [{"c": 1}], "data": [{"a": 1}]}', [{"a": 1}]),
    "rows": ('{"n": {"data": [1]}, "rows": [{"c": [1]}, {"c": [2]}]}', [{"c": [1]}, {"c": [2]}]),
    "one": ('{"a": [1], "b": {"data": []}}', [{"a": [1], "b": {"data": []}}]),
    "empty": ("[]", []),
    "spaces": (' \n [ {"a": 1 } ,\n{"a":2} ] \n', [{"a": 1}, {"a": 2}]),
    "data that is none": ('{"data": 5, "a": 1}', [{"data": 5, "a": 1}]),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ARRAYS)
def test_the_rows_of_a_list_are_found_without_parsing_it(
    kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, rows = ARRAYS[kind]
    file = tmp_path / ("a.json.gz" if packed else "a.json")
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    for size in (1, 2, 3, 7, 1 << 16):
        monkeypatch.setattr("ondevice.data.json_arrays._CHUNK", size)
        assert [row for row, _ in READERS[".json"](file)] == rows


@pytest.mark.parametrize(
    "text", ["", "5", "[1", '{"a": 1', '[{}] {"a": 1}', '{"a": 1}\n{"a": 2}', '{"data": [1']
)
def test_json_that_is_no_list_of_rows(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="JSON"):
        list(READERS[".json"](tmp_path / "a.json"))


def test_a_bad_row_of_a_list_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": oops}, 5, {"a": 2}]')
    found = [row for row, _ in READERS[".json"](tmp_path / "a.json")]
    assert [isinstance(row, BadRecord) for row in found] == [False, True, True, False]


def test_rows_that_are_too_long_are_bad_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.data.json_arrays.LARGEST", 1000)
    monkeypatch.setattr("ondevice.data.json_arrays._CHUNK", 100)
    long = json.dumps({"a": 'x\\"' * 3000})
    (tmp_path / "a.json").write_text(f'[{{"a": 1}}, {long}, {{"a": 2}}]')
    assert [row is None for row in rows_in(tmp_path / "a.json", lambda file: file.open("rb"))] == [
        False, True, False,
    ]  # fmt: skip


LONG = 80 << 20
CHILD = """
import json, resource, sys
from pathlib import Path
from ondevice.data import row_process
from ondevice.data.readers import READERS, BadRecord
kind, file = sys.argv[1], Path(sys.argv[2])
if kind == ".parquet":
    import pyarrow.parquet
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            own = int(line.split()[1]) << 10
    return own + (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
def close():
    while row_process._idle:
        row_process._idle.pop().close()
if kind == ".parquet":  # what the process that unpacks takes for a small file is not measured
    import pyarrow, pyarrow.parquet
    small = file.with_name("small.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"a": ["b"]}), small)
    list(READERS[kind](small))
    close()
before = peak()
try:
    rows = [(isinstance(row, BadRecord), where) for row, where in READERS[kind](file)]
    said = [len(rows), sum(bad for bad, _ in rows)]
except Exception as error:
    said = [type(error).__name__, str(error)[:200]]
close()
print(json.dumps([said, peak() - before]))
"""


def write_large(folder: Path, kind: str) -> Path:
    """A file with a row, a page or a size that no reader may take at once."""
    file = folder / f"a{kind.partition(' ')[2] or kind}"
    good = '{"a": 1}\n'
    if kind in (".jsonl", ".jsonl many"):
        file = folder / "a.jsonl"
        many = "[" + "[]," * (20 << 20) + "0]"
        row = many if kind != ".jsonl" else '"' + "x" * LONG + '"'
        file.write_text(good + '{"a": ' + row + "}\n" + good)
    elif kind == ".jsonl sparse":
        file = folder / "a.jsonl"
        with file.open("wb") as out:
            out.truncate(2 << 30)
    elif kind == ".json":
        file.write_text('[{"a": 1}, {"a": "' + "x" * LONG + '"}, {"a": 2}]')
    elif kind == ".json rows":
        file = folder / "a.json"
        with file.open("w") as out:
            out.write("[" + '{"a": "' + "y" * 1000 + '"}')
            for _ in range(300):
                out.write((',{"a": "' + "y" * 1000 + '"}') * 1000)
            out.write("]")
    elif kind == ".csv":
        file.write_text("a,b\n1,2\n" + "x" * LONG + ",3\n4,5\n")
    elif kind == ".csv many":
        file = folder / "a.csv"
        file.write_text("a,b\n1,2\n" + "xy," * (20 << 20) + ",3\n4,5\n")
    else:
        _write_parquet(file := folder / "a.parquet", kind)
    return file


def _write_parquet(file: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet dictionary":
        column = pa.DictionaryArray.from_arrays(
            pa.array([0] * 200_000, pa.int32()), ["x" * 100_000]
        )
        pq.write_table(pa.table({"a": column}), file)
    elif kind == ".parquet page":
        pq.write_table(pa.table({"a": ["x" * (70 << 20)]}), file, compression="gzip")
    else:
        pq.write_table(pa.table({"a": [f"{n} " * 20 for n in range(200_000)]}), file)


LARGE = {
    ".jsonl": [3, 1],
    ".jsonl many": [3, 1],
    ".jsonl sparse": [1, 1],
    ".json": [3, 1],
    ".json rows": [300_001, 0],
    ".csv": [3, 1],
    ".csv many": [3, 1],
    ".parquet": [200_000, 0],
    ".parquet dictionary": [200_000, 0],
    ".parquet page": [1, 1],
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
@pytest.mark.parametrize("kind", LARGE)
def test_no_file_takes_more_than_256_mb(kind: str, tmp_path: Path) -> None:
    file = write_large(tmp_path, kind)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind.partition(" ")[0], str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said, grown = json.loads(done.stdout)
    assert said == LARGE[kind]
    assert grown < 256 << 20, f"{grown >> 20} MB"
