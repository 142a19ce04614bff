"""Models by name on the Hub: out of the cache, offline, and with one line that says what is
missing. And shards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ondevice as od
import small_stages
from ondevice.common.errors import UserError
from ondevice.hub import snapshot
from ondevice.models import save as saving
from ondevice.models.load import load_model
from ondevice.models.save import write_model
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface-hub's cache with one model in it, as the client lays it out; offline."""
    from huggingface_hub import constants

    made = small_stages.write(
        tmp_path / "made", load_backend("torch", device="cpu"), small_stages.config()
    )
    repo = tmp_path / "hub" / "models--somebody--small-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(made, repo / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_model_in_the_cache_is_found_by_its_name(cache: Path, backend: Backend) -> None:
    found = snapshot.resolve("somebody/small-model")
    assert found == cache / "models--somebody--small-model" / "snapshots" / COMMIT
    assert load_model("somebody/small-model", backend).cfg.hidden_size == 32
    assert snapshot.name_of(found) == ("somebody/small-model", COMMIT)


def test_an_adapter_names_its_base_by_the_hubs_name(cache: Path, tmp_path: Path) -> None:
    from ondevice.models import peft

    files = small_stages.make(tmp_path / "files", load_backend("torch", device="cpu"))
    made = od.sft(
        "somebody/small-model",
        str(files / "chats.jsonl"),
        out=tmp_path / "run",
        backend="torch",
        device="cpu",
        steps=1,
        batch_size=2,
        sequence_length=48,
        adapter="lora",
    )
    config = json.loads((made / peft.CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "somebody/small-model",
        COMMIT,
    )
    record = json.loads((made.parent / "done.json").read_text())
    assert (record["base"]["repo"], record["base"]["commit"]) == ("somebody/small-model", COMMIT)
    assert "base_model: somebody/small-model" in (made / "README.md").read_text()
    assert load_model(made, load_backend("torch", device="cpu")).cfg.hidden_size == 32


def test_the_base_of_an_adapter_is_of_the_revision_that_it_names(
    cache: Path, tmp_path: Path
) -> None:
    """The newest one has other weights since."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    from ondevice.models import peft

    files = small_stages.make(tmp_path / "files", backend)
    made = od.sft(
        "somebody/small-model",
        str(files / "chats.jsonl"),
        out=tmp_path / "run",
        backend="torch",
        device="cpu",
        steps=1,
        batch_size=2,
        sequence_length=48,
        adapter="lora",
    )
    before = load_model(made, backend, merge=False).params
    repo, later = cache / "models--somebody--small-model", COMMIT[::-1]
    small_stages.write(repo / "snapshots" / later, backend, small_stages.config(), seed=9)
    (repo / "refs" / "main").write_text(later)
    assert snapshot.resolve("somebody/small-model").name == later
    again = load_model(made, backend, merge=False)
    assert again.adapter is not None and again.adapter.revision == COMMIT
    assert all(
        np.array_equal(backend.numpy(again.params[name]), backend.numpy(p))
        for name, p in before.items()
    )
    config = json.loads((made / peft.CONFIG).read_text())
    (made / peft.CONFIG).write_text(json.dumps({**config, "revision": "v9"}))
    with pytest.raises(UserError, match="no model of this name at v9.*--revision v9"):
        load_model(made, backend)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "somebody/other-model",
            "the Hub's cache has no model of this name (HF_HUB_OFFLINE is set)",
        ),
        ("nowhere/at/all", "there is no such folder"),
        ("alone", "there is no such folder"),
    ],
)
def test_what_is_not_there_is_named(name: str, said: str, cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(name, load_backend("torch", device="cpu"))
    assert said in str(caught.value) and name in str(caught.value)


def test_a_snapshot_that_is_not_whole_says_what_is_missing(cache: Path) -> None:
    (cache / "models--somebody--small-model" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model("somebody/small-model", load_backend("torch", device="cpu"))


def test_a_folder_of_that_name_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody" / "small-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert snapshot.resolve("somebody/small-model") == Path("somebody/small-model")


@pytest.mark.slow
def test_the_command_line_takes_a_name(cache: Path) -> None:
    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "ondevice",
                "generate",
                name,
                "red green",
                "--device",
                "cpu",
                "--max-new-tokens",
                "3",
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        )

    assert run("somebody/small-model").returncode == 0
    missing = run("somebody/other-model")
    assert (
        missing.returncode == 2
        and missing.stderr.count("\n") == 1
        and "Traceback" not in missing.stderr
    )


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    """A config that names code of its own: the family that we know is read by us, another one is
    refused.
    """
    backend = load_backend("torch", device="cpu")
    made = small_stages.write(tmp_path / "m", backend, small_stages.config())
    (made / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((made / "config.json").read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling.Model"}
    }
    (made / "config.json").write_text(json.dumps(config))
    load_model(made, backend)
    (made / "config.json").write_text(json.dumps({**config, "model_type": "their_own"}))
    with pytest.raises(UserError, match="unknown architecture 'their_own'.*not run"):
        load_model(made, backend)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_in_several_files(
    family: str, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in parts of a bounded size with their index, read again, and by transformers."""
    import models

    monkeypatch.setattr(saving, "SHARD_BYTES", 20_000)
    cfg = models.config(family, vocab_size=small_stages.small_tokenizer().vocab_size)
    weights = models.weights(cfg)
    write_model(
        tmp_path,
        backend,
        cfg,
        {n: backend.array(w) for n, w in weights.items()},
        small_stages.small_tokenizer(),
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files == sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert index["metadata"]["total_size"] == 4 * sum(w.size for w in weights.values())
    for file in files:
        assert (tmp_path / file).stat().st_size < 20_000 + 4 * max(w.size for w in weights.values())
    again = load_model(tmp_path, backend)
    assert all(np.array_equal(backend.numpy(again.params[n]), w) for n, w in weights.items())
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"{files[1]} is missing"):
        load_model(tmp_path, backend)


@pytest.mark.slow
def test_transformers_reads_our_parts(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(saving, "SHARD_BYTES", 20_000)
    small_stages.write(tmp_path / "m", backend, small_stages.config())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    ours = load_model(tmp_path / "m", backend)
    assert all(np.array_equal(theirs[n].numpy(), backend.numpy(p)) for n, p in ours.params.items())
