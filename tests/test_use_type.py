"""`dtype: auto` of whatever only uses a model: the type that was measured to be the faster one."""

from __future__ import annotations

from pathlib import Path

import pytest

import small_stages
from ondevice.common.user_cache import FOLDER
from ondevice.config.use import ChatConfig
from ondevice.inference.chat import open_model
from ondevice.seam import use_type
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.seam.use_type import load_backend_for_use


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def auto(backend: Backend) -> str:
    return load_backend_for_use(backend.name, "cpu").dtype


def test_the_faster_type_is_taken_where_it_was_measured(backend: Backend, tmp_path: Path) -> None:
    assert auto(backend) == "float32", "nothing was measured"
    use_type.keep(backend, {"float32": 1.0, "bfloat16": 0.95})
    assert auto(backend) == "float32", "hardly faster"
    use_type.keep(backend, {"float32": 1.0, "bfloat16": 0.5})
    assert auto(backend) == "bfloat16"
    assert load_backend_for_use(backend.name, "cpu", "float32").dtype == "float32", "asked for"
    assert load_backend(backend.name, "cpu").dtype == "float32", "training is as it was"

    folder = small_stages.write(tmp_path / "model", backend, small_stages.config())
    chat = ChatConfig(model=str(folder), backend=backend.name, device="cpu")  # type: ignore[arg-type]
    model, used = open_model(chat)
    assert used.dtype == "bfloat16"
    assert {str(p.dtype).split(".")[-1] for p in model.params.values()} == {"bfloat16"}


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[]",
        "{",
        '{"seconds": {"float32": 1, "bfloat16": 0.1}}',
        '{"key": {}, "seconds": {"float32": 1, "bfloat16": 0.1}}',
        '{"key": KEY, "seconds": {"float32": 1, "bfloat16": -1}}',
        '{"key": KEY, "seconds": {"float32": NaN, "bfloat16": 0.1}}',
        '{"key": KEY, "seconds": {"float32": 1}}',
    ],
)
def test_what_cannot_be_believed_is_not(backend: Backend, damaged: str) -> None:
    file = use_type.keep(backend, {"float32": 1.0, "bfloat16": 0.5})
    kept = file.read_text()
    key = kept[kept.index("{", 1) : kept.index("}") + 1]
    file.write_text(damaged.replace("KEY", key))
    assert auto(backend) == "float32"


def test_another_librarys_figures_are_not_believed(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_type.keep(backend, {"float32": 1.0, "bfloat16": 0.5})
    monkeypatch.setattr(use_type, "available", lambda: {backend.name: "99.0"})
    assert auto(backend) == "float32"
