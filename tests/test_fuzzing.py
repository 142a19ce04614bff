"""Every reader of others' files on spoilt samples and on anything at all: a value, or a UserError that
names the file. `ONDEVICE_FUZZ_CASES` says how many cases each gets; scripts/fuzz.py tries more, faster.
"""

from __future__ import annotations

import ast
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import source
from fuzz_cases import Fault, Reader, spoil, try_case
from fuzz_readers import READERS_OF
from ondevice.common.errors import UserError

ROOT = Path(__file__).parent.parent
CASES = int(os.environ.get("ONDEVICE_FUZZ_CASES", "20"))
FEWER = 4
"""A part of the cases, of readers that take milliseconds for one."""

OWN = "what this program wrote, read back as it was written"
ASKED = "a process of this program, which answers in lines"
HANDED = "handed on to a reader that is listed: "
READ_BY: Mapping[str, tuple[str, ...] | str] = {
    "backends/ondevice_torch/sharded.py": OWN + "; between its processes",
    "ondevice/datasets/chats_beside.py": HANDED + "run: recipe",
    "ondevice/inference/fixed_prompts.py": ("prompts of a stage",),
    "ondevice/preferences/project.py": ("project",),
    "ondevice/rating_rounds/command.py": HANDED + "rounds: settings",
    "ondevice/rating_rounds/places.py": ("rounds: settings", "rounds: v001/failed.json"),
    "ondevice/rating_rounds/standing.py": ("rounds: start.json", "rounds: v001/votes.jsonl"),
    "ondevice/rating_rounds/trainer.py": HANDED + "rounds: v001/failed.json",
    "ondevice/seam/group.py": ASKED,
    "tui/ondevice_tui/group_places.py": ("places of groups",),
    "tui/ondevice_tui/problems.py": ("problems",),
    "backends/ondevice_mlx/backend.py": ("tensors",),
    "backends/ondevice_mlx/libraries.py": HANDED + "tensors",
    "backends/ondevice_torch/backend.py": ("tensors",),
    "ondevice/common/json_files.py": ("JSON", "events", "rows .jsonl"),
    "ondevice/config/lists.py": ("recipe",),
    "ondevice/config/load.py": ("YAML", "YAML of a form"),
    "ondevice/config/recipe.py": ("recipe",),
    "ondevice/config/template_kwargs.py": "a setting that a person types",
    "ondevice/data/chat_template.py": ("forms of rows",),
    "ondevice/data/extraction/asking.py": ASKED,
    "ondevice/data/extraction/child.py": (
        "document .pdf",
        "document .docx",
        "document .html",
        "document .epub",
        "document .ipynb",
    ),
    "ondevice/data/extraction/notebook.py": ("document .ipynb",),
    "ondevice/data/extraction/store.py": OWN + "; its sums are compared (test_documents)",
    "ondevice/data/extraction/survey.py": OWN + "; its sums are compared (test_documents)",
    "ondevice/data/extraction/web_page.py": ("document .html", "document .epub"),
    "ondevice/data/messages.py": ("forms of rows",),
    "ondevice/data/preference_batches.py": OWN,
    "ondevice/data/readers.py": (
        "rows .jsonl",
        "rows .jsonl.gz",
        "rows .json",
        "rows .csv",
        "rows .txt",
        "rows .parquet",
    ),
    "ondevice/data/rows.py": ("rows .jsonl.gz", "forms of rows"),
    "ondevice/data/special_tokens.py": HANDED + "tokenizer.json",
    "ondevice/data/token_cache.py": OWN + "; its sums are compared (test_caches)",
    "ondevice/data/tokenizer.py": ("tokenizer_config.json", "special_tokens_map.json"),
    "ondevice/data/tokenizer_files.py": (
        "tokenizer.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat template",
    ),
    "ondevice/data/tokenizer_settings.py": HANDED + "tokenizer.json",
    "ondevice/data/vocabulary.py": HANDED + "tokenizer.json",
    "ondevice/datasets/preference_pairs.py": OWN,
    "ondevice/datasets/spec.py": OWN,
    "ondevice/exports/compare.py": HANDED + "config.json",
    "ondevice/exports/gguf_file.py": OWN,
    "ondevice/exports/gguf_words.py": HANDED + "tokenizer.json",
    "ondevice/exports/mlx_adapter.py": ("adapter of mlx-lm",),
    "ondevice/hub/client.py": ("Hub: a file",),
    "ondevice/hub/pull.py": ("Hub: a folder",),
    "ondevice/inference/asking_journal.py": OWN
    + "; a line that was cut off is taken away (test_ask)",
    "ondevice/inference/conversations.py": ("conversation",),
    "ondevice/inference/pair_sampling.py": OWN,
    "ondevice/inference/worker.py": ASKED,
    "ondevice/models/generation_config.py": ("generation_config.json",),
    "ondevice/models/load.py": ("model", "tensors"),
    "ondevice/models/model_folder.py": ("index of weights",),
    "ondevice/models/peft.py": ("adapter_config.json", "adapter's weights"),
    "ondevice/models/registry.py": ("config.json",),
    "ondevice/models/rope.py": "a setting that a person types",
    "ondevice/models/tensor_files.py": ("safetensors", "tensors"),
    "ondevice/planning/calibration.py": ("calibration",),
    "ondevice/planning/dial/record.py": HANDED + "any value of it is tried in test_dial.py",
    "ondevice/planning/model_facts.py": ("facts of a model", "safetensors"),
    "ondevice/data/hub_datasets.py": OWN + ", as JSON from the process of hub_stream.py",
    "ondevice/data/hub_stream.py": ASKED,
    "ondevice/data/parquet_process.py": ("rows .parquet",),
    "ondevice/data/parquet_rows.py": ("rows .parquet",),
    "ondevice/preferences/backups.py": ("ratings.db",),
    "ondevice/preferences/repair.py": ("ratings.db",),
    "ondevice/preferences/review.py": ("rows to review", "verdicts"),
    "ondevice/preferences/sqlite_store.py": ("ratings.db",),
    "ondevice/preferences/votes.py": ("ratings.db",),
    "ondevice/publishing/history.py": ("history of a run",),
    "ondevice/publishing/model_card.py": HANDED + "a text, taken as it is",
    "ondevice/publishing/plan.py": OWN,
    "ondevice/publishing/push_files.py": HANDED + "JSON",
    "ondevice/publishing/usage.py": HANDED + "adapter_config.json",
    "ondevice/reports/html_report.py": HANDED + "a text, taken as it is",
    "ondevice/reports/report.py": HANDED + "a text, taken as it is",
    "ondevice/seam/use_type.py": OWN + "; what is no such file is not believed (test_use_type)",
    "ondevice/rewards/gym.py": "a setting that a person types",
    "ondevice/rewards/host.py": ASKED,
    "ondevice/rewards/isolate.py": ("isolated values",),
    "ondevice/rewards/isolated.py": ASKED,
    "ondevice/rewards/judges.py": HANDED + "a text that is judged, in a process of its own",
    "ondevice/rewards/process.py": ASKED,
    "ondevice/rewards/unit_tests.py": ("unit tests",),
    "ondevice/rl/rollout_log.py": ("groups",),
    "ondevice/reports/trackers.py": OWN + "; a damaged one is made anew (test_trackers)",
    "ondevice/runs/checkpoint.py": ("checkpoint",),
    "ondevice/runs/contents.py": ("run: plan",),
    "ondevice/runs/dependents.py": ("run: events", "adapter that another run needs"),
    "ondevice/runs/events.py": ("events", "run: events"),
    "ondevice/runs/folder.py": ("run: done.json",),
    "ondevice/runs/labels.py": ("labels.json",),
    "ondevice/runs/order.py": ("run: recipe",),
    "ondevice/stages/dpo.py": OWN,
    "ondevice/stages/fingerprint.py": OWN,
    "tui/ondevice_tui/access.py": ("adapter_config.json", "YAML"),
    "tui/ondevice_tui/event_reader.py": ("events", "groups"),
    "tui/ondevice_tui/fields.py": ("YAML of a form",),
    "tui/ondevice_tui/push_process.py": ASKED,
    "ondevice/common/remembered.py": ("remembered",),
    "tui/ondevice_tui/stage_processes.py": ("recipe",),
    "tui/ondevice_tui/worker_client.py": ASKED,
}
"""Every module that parses what it did not make → the readers above, or why it is in none."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[bytes]]]:
    """Folders that were made so far, and their samples."""
    return {"": (tmp_path_factory.mktemp("fuzzing"), [])}


def place(places: dict[str, tuple[Path, list[bytes]]], name: str) -> tuple[Path, list[bytes]]:
    if name not in places:
        folder = places[""][0] / str(len(places)) / "case"
        folder.mkdir(parents=True)
        READERS_OF[name].folder(folder)
        places[name] = folder, READERS_OF[name].samples(folder)
    return places[name]


@pytest.mark.parametrize("name", READERS_OF)
def test_a_value_or_one_line_that_names_the_file(
    name: str, places: dict[str, tuple[Path, list[bytes]]]
) -> None:
    reader = READERS_OF[name]
    folder, samples = place(places, name)
    spoilt = st.integers(0, 2**64).map(lambda seed: spoil(random.Random(seed), samples))
    anything = st.binary(max_size=200) | st.text(max_size=80).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )

    @settings(
        max_examples=max(CASES // (FEWER if reader.slow else 1), 5),
        deadline=None,
        database=None,
        derandomize=CASES < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(spoilt, spoilt, spoilt, anything))
    def tried(data: bytes) -> None:
        try_case(reader, folder, data)

    tried()


@pytest.mark.parametrize("name", READERS_OF)
def test_the_samples_are_good(name: str, places: dict[str, tuple[Path, list[bytes]]]) -> None:
    """A reader that refuses what it begins from is tried on nothing."""
    folder, samples = place(places, name)
    refused = [try_case(READERS_OF[name], folder, sample) for sample in samples]
    assert not all(refused), name


def test_a_fault_is_found(tmp_path: Path) -> None:
    def fails(file: Path) -> None:
        data = file.read_bytes()
        if data == b"told":
            raise UserError("cannot be read", where=str(file))
        if data == b"nameless":
            raise UserError("cannot be read")
        raise KeyError(data)

    reader = Reader("a.json", lambda folder: [], fails)
    assert try_case(reader, tmp_path, b"told")
    for data in (b"nameless", b"other"):
        with pytest.raises(Fault):
            try_case(reader, tmp_path, data)


# ---------------------------------------------------------------- none is left out

NAMES = {
    "parse_json",
    "load_json",
    "json_lines",
    "read_json",
    "read_object",
    "parse_yaml",
    "read_yaml",
    "rows_in",
    "shapes_in",
    "read_tensors",
    "safe_open",
}
CALLS = {
    "bounded.read_bytes",
    "bounded.read_text",
    "bounded.open_plain",
    "bounded.lines",
    "yaml_files.parse",
    "json.loads",
    "json_text.loads",
    "csv.DictReader",
    "parquet.ParquetFile",
    "sqlite3.connect",
    "gguf.GGUFReader",
    "tokenizers.Tokenizer.from_str",
    "mx.load",
    "np.load",
    "safetensors.safe_open",
}


def door_users() -> Iterator[str]:
    ends = {call.rpartition(".")[2] for call in CALLS}
    for file in source.files():
        for node in source.nodes(file):
            named = isinstance(node, ast.Name) and node.id in NAMES
            if named or (
                isinstance(node, ast.Attribute) and node.attr in ends and ast.unparse(node) in CALLS
            ):
                yield source.named(file)
                break


def test_every_module_that_reads_is_listed() -> None:
    """A new one gets a reader in tests/fuzz_readers.py, or a reason here."""
    users = set(door_users())
    assert sorted(users - set(READ_BY)) == []
    assert sorted(set(READ_BY) - users) == []


def test_the_readers_that_are_named_are_there() -> None:
    named = {name for names in READ_BY.values() if not isinstance(names, str) for name in names}
    assert sorted(named - set(READERS_OF)) == []
