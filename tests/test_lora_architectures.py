"""Adapters of encoders and encoder-decoders: trained by the stages, read again, merged, read by
PEFT.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from data_samples import small_tokenizer
from gradients import on_device
from ondevice.common.errors import UserError
from ondevice.data.completion_batches import Row, completion_batch
from ondevice.models import peft
from ondevice.models.convert import merge, quantize
from ondevice.models.load import load_model
from ondevice.models.lora import INHERITED, adapted_modules
from ondevice.models.model import Model
from ondevice.models.registry import ModelConfig
from ondevice.models.save import write_model
from ondevice.publishing.model_card import run_card
from ondevice.runs.folder import RunFolder
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend
from ondevice.training.sequence_logprobs import Scorer
from small_stages import settings

LORA = {"adapter": "lora", "lora_rank": 3, "lora_alpha": 6.0}
ENCODERS, SEQ2SEQ = ("bert", "modernbert-biases"), ("t5", "t5-v1.1", "bart")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(
        tmp_path_factory.mktemp("files"), load_backend("torch", device="cpu", dtype="float32")
    )


def base(family: str, folder: Path, **changes: Any) -> Path:
    """A folder with random weights."""
    backend = load_backend("torch", device="cpu", dtype="float32")
    make: Any = models.encoder_config if family in ENCODERS else models.seq2seq_config
    cfg: ModelConfig = replace(make(family, vocab_size=small_tokenizer().vocab_size), **changes)
    folder.mkdir()
    write_model(folder, backend, cfg, on_device(backend, models.weights(cfg)), small_tokenizer())
    return folder


def logits(model: Model, backend: Backend) -> np.ndarray:
    """(N, V) of an answer's tokens."""
    rows = [Row([9, 30, 77, 12], [5, 6, 7]), Row([40, 8], [11, 2])]
    batch = on_device(
        backend, completion_batch(rows, 2, start=model.network.decoder_start_token_id)
    )
    head = model.network.head
    hidden = model.network.hidden(backend.ops, model.params, batch, at=batch["index"])
    return np.array(backend.numpy(head.logits(backend.ops, head.params(model.params), hidden)))


def trained_writer(family: str, files: Path, out: Path, backend: str, **fields: Any) -> Path:
    return od.sft(
        base(family, out / "base"),
        str(files / "chats.jsonl"),
        out=out / "run",
        backend=backend,
        device="cpu",
        steps=3,
        batch_size=4,
        sequence_length=48,
        learning_rate=1e-2,
        eval_every=0,
        **LORA,
        **fields,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_decoders_adapter(
    family: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    """It has learned, stands beside its base, goes into it, and PEFT computes the same with it."""
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    folder = trained_writer(family, files, tmp_path, backend.name)
    config = json.loads((folder / peft.CONFIG).read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM" and config["modules_to_save"] is None
    beside = load_model(folder, backend, merge=False)
    assert adapted_modules(beside.params, INHERITED) and beside.adapter is not None
    got = logits(beside, backend)
    assert np.abs(got - logits(load_model(tmp_path / "base", backend), backend)).max() > 1e-2
    np.testing.assert_allclose(
        logits(load_model(folder, backend), backend), got, rtol=1e-4, atol=1e-4
    )
    whole = load_model(merge(folder, tmp_path / "whole", backend=backend), backend)
    np.testing.assert_allclose(logits(whole, backend), got, rtol=1e-4, atol=1e-4)
    model = theirs.PeftModel.from_pretrained(
        transformers.AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / "base", attn_implementation="eager"
        ),
        folder,
    ).eval()
    with torch.no_grad():
        want = (
            model(
                input_ids=torch.tensor([[9, 30, 77, 12]]),
                decoder_input_ids=torch.tensor([[beside.network.decoder_start_token_id, 5, 6]]),
            )
            .logits[0]
            .numpy()
        )
    np.testing.assert_allclose(got[:3], want, rtol=1e-4, atol=1e-4)
    assert od.generate(
        model=folder, prompt="Anna red", max_new_tokens=4, backend=backend.name, device="cpu"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_adapter_judges(
    family: str, files: Path, tmp_path: Path, backend: Backend
) -> None:
    """With its head, and what stands before that, whole beside it; PPO takes it for a policy of
    another kind.
    """
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    start = base(family, tmp_path / "base")
    judge = od.reward(
        **settings(files, "reward", tmp_path / "run", backend.name, **LORA, model=start, steps=3)
    )
    config = json.loads((judge / peft.CONFIG).read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == (
        ["bert.pooler.dense", "classifier"] if family == "bert" else ["classifier"]
    )
    text = [5, 6, 7, 8, 9]
    model = load_model(judge, backend, merge=False)
    got = Scorer(model, backend).scores(model.params, [text])[0]
    merged = load_model(judge, backend)
    assert Scorer(merged, backend).scores(merged.params, [text])[0] == pytest.approx(got, abs=1e-4)
    loaded = theirs.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(start, num_labels=1), judge
    ).eval()
    with torch.no_grad():
        assert got == pytest.approx(loaded(input_ids=torch.tensor([text])).logits.item(), abs=1e-4)
    made = od.ppo(
        **settings(
            files, "ppo", tmp_path / "run", backend.name, **LORA, reward_model=judge, steps=2
        )
    )
    assert (made / peft.CONFIG).is_file() and (made.parent / "value_model" / peft.CONFIG).is_file()


@pytest.mark.slow
def test_the_cards_of_an_adapter(files: Path, tmp_path: Path) -> None:
    """What lies beside it, and what goes to the Hub, say what it is; folders are nobody's business."""
    folder = trained_writer("t5", files, tmp_path, "torch")
    for card in (
        (folder / "README.md").read_text(),
        run_card(RunFolder(tmp_path / "run"), "sft", "me/mine").text,
    ):
        assert "library_name: peft" in card and "An adapter (LoRA, in PEFT's format)" in card
        assert str(tmp_path) not in card
        assert "## Use" not in card  # nobody else has its base
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "me/base"}))
    card = run_card(RunFolder(tmp_path / "run"), "sft", "me/mine").text
    assert (
        'base = AutoModelForSeq2SeqLM.from_pretrained("me/base")' in card and "mlx_lm" not in card
    )
    assert 'PeftModel.from_pretrained(base, "me/mine")' in card and "base_model: me/base" in card
    assert "ondevice generate" in card and "0 tokens" not in card


def test_what_is_not_known_of_them_is_one_line(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embeddings of a t5 model"):
        trained_writer("t5", files, tmp_path, "torch", lora_whole=("shared",))
    with pytest.raises(UserError, match="whose base is a folder of this machine"):
        od.sft(
            files / "policy",
            str(files / "chats.jsonl"),
            out=tmp_path / "pushed",
            backend="torch",
            device="cpu",
            steps=1,
            batch_size=2,
            sequence_length=48,
            push_every=1,
            push_to="me/mine",
            **LORA,
        )
    with pytest.raises(UserError, match="a t5 model cannot be quantised"):
        quantize(tmp_path / "base", tmp_path / "packed")
    file = tmp_path / "base" / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization": {"bits": 4, "group_size": 32}})
    )
    with pytest.raises(UserError, match="quantised weights of a t5 model"):
        load_model(tmp_path / "base", load_backend("torch", device="cpu"))
