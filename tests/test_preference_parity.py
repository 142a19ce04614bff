"""Preference and reasoning: both backends compute the same, and what transformers computes.

Losses, every gradient by name, optimizer steps, sampled text, scores; and what a stage begins with
is its reference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import ondevice as od
import small_stages
from data_samples import small_tokenizer
from gradients import by_name
from ondevice.config.preference import GRPOConfig, RewardConfig
from ondevice.data.completion_batches import Row, completion_batch, prompt_and_completion
from ondevice.data.packing import set_denominator
from ondevice.data.preference_batches import PairSource, TokenPair
from ondevice.data.tokenizer import Tokenizer
from ondevice.models.decoder import Decoder
from ondevice.models.load import load_model
from ondevice.models.model import Model
from ondevice.models.network import network
from ondevice.models.registry import ModelConfig
from ondevice.models.save import write_model
from ondevice.models.seq2seq_config import Seq2SeqConfig
from ondevice.rl.loss_scales import loss_scales
from ondevice.rl.micro_batches import micro_batches, repeat_per_token
from ondevice.rl.rollout import Sampled, Sampler
from ondevice.runs.events import read
from ondevice.seam.ops import sub
from ondevice.seam.protocols import Backend, OptimSettings
from ondevice.stages.dpo import pair_batch, sides_of
from ondevice.stages.reward import score_batch
from ondevice.training.losses import causal_lm_loss
from ondevice.training.losses_beside import with_losses_beside
from ondevice.training.policy_losses import grpo_loss, ppo_loss
from ondevice.training.preference_losses import preference_loss, reward_loss
from ondevice.training.sequence_logprobs import Scorer
from test_parity import MLX, TORCH, assert_close, everywhere_alive, host, rate

pytestmark = pytest.mark.slow
Weights = dict[str, np.ndarray]
CFG = models.config("qwen3", hidden_size=16, head_dim=4, num_labels=0)
JUDGE = replace(CFG, num_labels=1)


def on(backend: Backend, cfg: ModelConfig, weights: Weights) -> Model:
    return Model(
        cfg, {n: backend.array(w) for n, w in weights.items()}, small_tokenizer(), Path("nowhere")
    )


def near(weights: Weights) -> Weights:
    """What a few steps ago may have been: log-probabilities a few hundredths apart."""
    rng = np.random.default_rng(9)
    return {
        n: (w * (1 + 0.02 * rng.standard_normal(w.shape))).astype(np.float32)
        for n, w in weights.items()
    }


def rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        Row(
            *(
                rng.integers(3, CFG.vocab_size, rng.integers(*lengths))
                for lengths in ((2, 9), (1, 7))
            )
        )
        for _ in range(count)
    ]


def logps_of(weights: Weights, given: list[Row], cfg: ModelConfig = CFG) -> list[Any]:
    return Scorer(on(TORCH, cfg, weights), TORCH, batch_size=4).logprobs(
        on(TORCH, cfg, weights).params, given
    )


def pair_batches(make: Callable[[list[TokenPair]], Any], step: int) -> list[Weights]:
    found = rows(16, step)
    pairs = [
        TokenPair(c, Row(c.prompt, r.completion), 1 + n % 2)
        for n, (c, r) in enumerate(zip(found[:8], found[8:], strict=True))
    ]
    return PairSource(pairs, batch_size=8, seed=0, make=make(pairs)).batch(0, 4)


def reward_batches(step: int, reads: str = "last") -> list[Weights]:
    return pair_batches(
        lambda _: partial(score_batch, cfg=RewardConfig(strength_margin=0.3), reads=reads), step
    )


def dpo_batches(kind: str, step: int, cfg: ModelConfig = CFG) -> list[Weights]:
    def make(pairs: list[TokenPair]) -> Any:
        sides = sides_of(pairs)
        sums = [
            [part.sum() for part in logps_of(near(models.weights(cfg)), side, cfg)]
            for side in sides
        ]
        return partial(
            pair_batch,
            sides=sides,
            reference=np.array(sums, np.float32),
            start=network(cfg).decoder_start_token_id,
        )

    batches = pair_batches(make, step)
    if kind == "kto":
        return [{**batch, "drift": np.float32(0.1 * step)} for batch in batches]
    return batches


def sampled(step: int) -> tuple[list[Sampled], Any]:
    return [
        Sampled(r.prompt, r.completion.tolist(), True, "") for r in rows(8, step)
    ], np.random.default_rng(step)


def ppo_batches(step: int) -> list[Weights]:
    found, rng = sampled(step)
    old = logps_of(near(models.weights(CFG)), [s.row for s in found])
    values = [rng.normal(0, 0.1, len(o)).astype(np.float32) for o in old]
    tokens = {
        "old_logps": old,
        "old_values": values,
        "advantages": [rng.normal(size=len(o)) for o in old],
        "returns": [v + rng.normal(0, 0.5, len(v)) for v in values],
    }
    made = [batch for batch, _ in micro_batches(found, range(8), 4, tokens)]
    for batch in made:
        batch["denominator"] = np.float32(sum(b["weights"].sum() for b in made))
        chats = models.batch(CFG, rows=2, tokens=8, seed=step, segments=True)
        batch |= {f"sft.{n}": value for n, value in chats.items()}
    return made


def grpo_batches(step: int, cfg: ModelConfig = CFG) -> list[Weights]:
    found, rng = sampled(step)
    given, before = [s.row for s in found], near(models.weights(cfg))
    scale, denominator = loss_scales(GRPOConfig(), found, np.ones(8))
    tokens = {
        "advantages": repeat_per_token(rng.normal(size=8), found),
        "scale": repeat_per_token(scale, found),
        "old_logps": logps_of(before, given, cfg),
        "ref_logps": logps_of(near(before), given, cfg),
    }
    made = [
        batch
        for batch, _ in micro_batches(
            found, range(8), 4, tokens, network(cfg).decoder_start_token_id
        )
    ]
    return [{**batch, "denominator": np.float32(denominator)} for batch in made]


def with_beside(made: list[Weights], step: int) -> list[Weights]:
    """The batches with chats and pairs beside each."""
    pairs = dpo_batches("sigmoid", step)
    for number, batch in enumerate(made):
        chats = models.batch(CFG, rows=2, tokens=8, seed=step, segments=True)
        batch |= {f"sft.{n}": value for n, value in chats.items()}
        batch |= {f"pair.{n}": value for n, value in pairs[number].items()}
    return made


def both_models() -> Weights:
    judge = models.weights(JUDGE, seed=3)
    return {**models.weights(CFG), **{f"value.{n}": w for n, w in judge.items()}}


# name → (loss, weights, a step's micro-batches)
CASES: dict[
    str, tuple[Callable[..., Any], Callable[[], Weights], Callable[[int], list[Weights]]]
] = {
    "reward": (
        partial(reward_loss, model=Decoder(JUDGE), center=0.05),
        lambda: models.weights(JUDGE),
        reward_batches,
    ),
    "dpo": (
        partial(preference_loss, model=Decoder(CFG), kind="sigmoid", beta=0.3, smoothing=0.1),
        lambda: models.weights(CFG),
        partial(dpo_batches, "sigmoid"),
    ),
    "kto": (
        partial(preference_loss, model=Decoder(CFG), kind="kto", beta=0.3),
        lambda: models.weights(CFG),
        partial(dpo_batches, "kto"),
    ),
    "ppo": (
        with_losses_beside(
            partial(
                ppo_loss,
                model=Decoder(CFG),
                clip=0.05,
                value_clip=0.2,
                value_coef=0.3,
                temperature=0.9,
            ),
            model=Decoder(CFG),
            sft_coef=0.2,
        ),
        both_models,
        ppo_batches,
    ),
    "grpo": (
        partial(
            grpo_loss, model=Decoder(CFG), clip_low=0.05, clip_high=0.08, beta=0.1, temperature=0.9
        ),
        lambda: models.weights(CFG),
        grpo_batches,
    ),
    "grpo, with chats and pairs beside": (
        with_losses_beside(
            partial(grpo_loss, model=Decoder(CFG), clip_low=0.05, clip_high=0.08),
            model=Decoder(CFG),
            sft_coef=0.2,
            pair_coef=0.3,
            pair_beta=0.4,
        ),
        lambda: models.weights(CFG),
        lambda step: with_beside(grpo_batches(step), step),
    ),
}


def answer_batches(step: int, cfg: Seq2SeqConfig) -> list[Weights]:
    made = [
        completion_batch(rows(4, 2 * step + n), 4, start=cfg.decoder_start_token_id)
        for n in range(2)
    ]
    return set_denominator([{n: x for n, x in one.items() if n != "member"} for one in made])


def masked_batches(step: int) -> list[Weights]:
    return set_denominator([models.masked_batch(ENCODER, seed=2 * step + n) for n in range(2)])


# the other architectures, through the same losses
ENCODER = models.encoder_config("modernbert")
CASES["masked, modernbert"] = (
    partial(causal_lm_loss, model=network(ENCODER)),
    lambda: models.weights(ENCODER),
    masked_batches,
)
ENCODER_JUDGE = replace(ENCODER, num_labels=1)
CASES["reward, modernbert"] = (
    partial(reward_loss, model=network(ENCODER_JUDGE), center=0.05),
    lambda: models.weights(ENCODER_JUDGE),
    partial(reward_batches, reads="first"),
)
for family in ("t5-v1.1", "bart"):
    cfg = models.seq2seq_config(family)
    CASES[f"sft, {family}"] = (
        partial(causal_lm_loss, model=network(cfg)),
        partial(models.weights, cfg),
        partial(answer_batches, cfg=cfg),
    )
    CASES[f"dpo, {family}"] = (
        partial(preference_loss, model=network(cfg), kind="sigmoid", beta=0.3),
        partial(models.weights, cfg),
        partial(dpo_batches, "sigmoid", cfg=cfg),
    )
    CASES[f"grpo, {family}"] = (
        partial(
            grpo_loss, model=network(cfg), clip_low=0.05, clip_high=0.08, beta=0.1, temperature=0.9
        ),
        partial(models.weights, cfg),
        partial(grpo_batches, cfg=cfg),
    )


@lru_cache(maxsize=1)
def batches_of(name: str) -> list[list[Weights]]:
    return [CASES[name][2](step) for step in range(20)]


@pytest.mark.compiled
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name: str) -> None:
    """On both backends, as written and compiled, with and without checkpointing; PPO's are of both
    models together.
    """
    loss, make, _ = CASES[name]
    weights, batch = make(), batches_of(name)[0][0]
    value, grads = by_name(TORCH, lambda p, b: loss(TORCH.ops, p, b)[0], weights, batch)
    for backend, checkpoint, compiled in (
        (TORCH, True, False),
        (MLX, False, False),
        (MLX, True, False),
        (MLX, False, True),
    ):
        other, theirs = by_name(
            backend,
            lambda p, b, o=backend.ops, c=checkpoint: loss(o, p, b, checkpoint=c)[0],
            weights,
            batch,
            compiled=compiled,
        )
        assert abs(other - value) < 1e-5
        # where gains of both signs nearly cancel, a sum is smaller than the rounding of its parts
        # would have it
        kept = everywhere_alive(grads)
        assert len(grads) - len(kept) == sum(
            "bart" in name and n.endswith("k_proj.bias") for n in grads
        )
        assert_close({n: theirs[n] for n in kept}, kept, 2e-5 if name.startswith("grpo") else 1e-5)


@pytest.mark.compiled
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps(name: str) -> None:
    """Two micro-batches a step, through the trainers as a stage has them: compiled on MLX."""
    loss, make, _ = CASES[name]
    weights, ends, curves = make(), [], []
    for backend in (TORCH, MLX):
        trained = backend.trainer(
            loss, {n: backend.array(w) for n, w in weights.items()}, {}, OptimSettings()
        )
        outs = [trained.step(batches, rate(step)) for step, batches in enumerate(batches_of(name))]
        assert not any(o["skipped"] for o in outs)
        ends.append(host(backend, trained))
        curves.append([sorted(o.items()) for o in outs])
    for one, other in zip(*curves, strict=True):
        assert [n for n, _ in one] == [n for n, _ in other]
        np.testing.assert_allclose([x for _, x in other], [x for _, x in one], rtol=1e-4, atol=1e-4)
    # only rounding moves a bias of BART's keys: see everywhere_alive
    weights = {
        n: w for n, w in weights.items() if not ("bart" in name and n.endswith("k_proj.bias"))
    }
    for n in weights:
        np.testing.assert_allclose(ends[1][n], ends[0][n], rtol=0, atol=1e-4, err_msg=n)
    moved = {n: float(np.abs(ends[0][n] - w).max()) for n, w in weights.items()}
    assert min(moved.values()) > 3e-4  # all of them by more than they may differ


# ---- text and scores ------------------------------------------------------------------------------------------------


def test_both_backends_draw_the_same_text() -> None:
    """The same uniforms and weights. A draw falls on another token only where its uniform is within
    rounding (about 1e-6) of an edge of the distribution: expect less than one in 100,000, so at
    most one row of these may differ."""
    cfg = small_stages.config()
    prompts = [[int(x) for x in r.prompt] for r in rows(24, 0)]
    found = []
    for backend in (TORCH, MLX):
        model = on(backend, cfg, small_stages.weights(cfg))
        draw = Sampler(model, backend, temperature=0.8, max_new_tokens=12, seed=4, batch_size=40)
        found.append(draw.draw(model.params, prompts, 4, stage="test", step=3))
    tokens = sum(len(s.ids) for s in found[0])
    assert tokens > 300 and 0 < sum(s.stopped for s in found[0]) < len(found[0])
    assert sum(a != b for a, b in zip(*found, strict=True)) <= 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_scorer_gives_transformers_log_softmax(
    backend: Backend, tmp_path: Path, temperature: float
) -> None:
    """Of rows of several lengths, of which the longest fills the context."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cfg = small_stages.config()
    given = [*rows(6, 1), Row([5, 6, 7], list(range(3, small_stages.CONTEXT)))]
    small_stages.write(tmp_path / "m", backend, cfg)
    model = load_model(tmp_path / "m", backend)
    got = Scorer(model, backend, temperature=temperature, batch_size=3).logprobs(
        model.params, given
    )
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    for row, mine in zip(given, got, strict=True):
        text = prompt_and_completion(row)
        with torch.no_grad():
            logp = torch.log_softmax(
                peer(torch.tensor(text[None]).long()).logits[0] / temperature, -1
            ).numpy()
        want = [logp[t - 1, text[t]] for t in range(len(row.prompt), len(text))]
        np.testing.assert_allclose(mine, want, rtol=1e-6, atol=1e-5)


def texts() -> list[np.ndarray]:
    """Of several lengths, half of them with the stop token at the end as a judged response has it."""
    stop = small_tokenizer().stop_ids[-1]
    return [
        np.append(prompt_and_completion(r), stop).astype(np.int32)
        if n % 2
        else prompt_and_completion(r)
        for n, r in enumerate(rows(7, 2))
    ]


def peers_scores(folder: Path, given: list[np.ndarray]) -> np.ndarray:
    """transformers' scores of a whole batch, padded at the right with the folder's padding token."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert peer.config.num_labels == 1 and peer.config.pad_token_id == small_tokenizer().pad_id
    width = max(map(len, given))
    ids = np.stack(
        [np.pad(t, (0, width - len(t)), constant_values=peer.config.pad_token_id) for t in given]
    )
    mask = np.arange(width) < np.array([len(t) for t in given])[:, None]
    with torch.no_grad():
        out = peer(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits
    assert out.shape == (len(given), 1)
    return np.asarray(out[:, 0])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral-window"])
def test_a_reward_model_is_transformers(backend: Backend, tmp_path: Path, family: str) -> None:
    """Ours loads there and theirs loads here; both give the same scores."""
    transformers = pytest.importorskip("transformers")
    cfg = models.config(family, vocab_size=small_tokenizer().vocab_size, num_labels=1)
    (tmp_path / "ours").mkdir()
    write_model(
        tmp_path / "ours",
        backend,
        cfg,
        on(backend, cfg, models.weights(cfg)).params,
        small_tokenizer(),
    )
    given = texts()
    want = peers_scores(tmp_path / "ours", given)
    assert np.ptp(want) > 0.1
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    small_tokenizer().save(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        model = load_model(tmp_path / folder, backend)
        assert model.cfg.num_labels == 1
        got = Scorer(model, backend, batch_size=3).scores(model.params, given)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_reward_model_pads_with_no_token_that_ends_a_text(tmp_path: Path) -> None:
    """transformers scores the last token that is no padding, and many a model pads with its stop
    token (SmolLM2).
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    words = small_tokenizer()
    stop = words.inner.id_to_token(words.stop_ids[-1])
    words = Tokenizer(words.inner, {**words.config, "pad_token": stop}, words.chat_template)
    cfg = models.config("llama", vocab_size=words.vocab_size, num_labels=1)
    model = on(TORCH, cfg, models.weights(cfg))
    write_model(tmp_path, TORCH, cfg, model.params, words)
    text = np.append(rows(1, 2)[0].prompt, words.stop_ids[-1]).astype(np.int32)
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = float(peer(torch.tensor(text[None]).long()).logits)
    scorer = Scorer(model, TORCH, batch_size=1)
    np.testing.assert_allclose(scorer.scores(model.params, [text]), [want], rtol=0, atol=1e-5)
    assert abs(float(scorer.scores(model.params, [text[:-1]])[0]) - want) > 1e-2
    again = Tokenizer.load(tmp_path)
    assert again.pad_id == peer.config.pad_token_id not in again.stop_ids
    assert again.sha256() == words.padded_apart().sha256() == again.padded_apart().sha256()


def test_a_value_is_the_score_of_what_is_before_a_token(backend: Backend) -> None:
    cfg = small_stages.config(num_labels=1)
    model = on(backend, cfg, small_stages.weights(cfg))
    scorer, given = Scorer(model, backend, batch_size=4), rows(5, 3)
    for row, values in zip(given, scorer.values(model.params, given), strict=True):
        text, n = prompt_and_completion(row), len(row.prompt)
        before = [text[: n + t] for t in range(len(row.completion))]
        np.testing.assert_allclose(values, scorer.scores(model.params, before), rtol=0, atol=1e-5)


# ---- what a stage begins with ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_stages.make(tmp_path_factory.mktemp("files"), TORCH)


def steps(out: Path, stage: str) -> list[dict[str, Any]]:
    return [e for e in read(out / stage / "events.jsonl") if e["event"] == "step"]


def test_ppo_begins_at_its_reference_and_leaves_it(
    files: Path, tmp_path: Path, backend_name: str
) -> None:
    """The distance is exactly 0 at the first rollout, and not after. The value model begins from
    the reward model, and neither of the two that are frozen has moved."""
    kept = {name: (files / name / "model.safetensors").read_bytes() for name in ("policy", "judge")}
    od.ppo(**small_stages.settings(files, "ppo", tmp_path, backend_name, steps=3, eval_every=0))
    first, *others = steps(tmp_path, "ppo")
    assert first["kl"] == 0.0 and all(abs(e["kl"]) > 1e-4 for e in others)
    assert kept == {name: (files / name / "model.safetensors").read_bytes() for name in kept}
    want = peers_scores(tmp_path / "ppo" / "value_model", texts())
    model = load_model(tmp_path / "ppo" / "value_model", TORCH)
    np.testing.assert_allclose(
        Scorer(model, TORCH).scores(model.params, texts()), want, rtol=0, atol=1e-5
    )
    assert np.abs(want - peers_scores(files / "judge", texts())).max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"loss_type": "kto"}])
def test_dpo_begins_at_its_reference(
    files: Path, tmp_path: Path, backend_name: str, changes: dict[str, Any]
) -> None:
    """No margin, and a loss of log 2 (KTO: of 1/2 a completion)."""
    od.dpo(**small_stages.settings(files, "dpo", tmp_path, backend_name, steps=3, **changes))
    first, *others = steps(tmp_path, "dpo")
    assert first["loss"] == pytest.approx(0.5 if changes else math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert all(abs(e["margin"]) > 1e-3 for e in others)


@pytest.mark.parametrize("kind", ["robust", "hinge", "ipo", "simpo", "orpo"])
def test_every_other_kind_of_pair_loss_trains(files: Path, tmp_path: Path, kind: str) -> None:
    """As a stage: with or without a reference, the loss falls and the pairs come apart."""
    smoothed = {"label_smoothing": 0.1} if kind in ("robust", "simpo") else {}
    od.dpo(
        **small_stages.settings(
            files, "dpo", tmp_path, "torch", loss_type=kind, learning_rate=1e-2, **smoothed
        )
    )
    found = steps(tmp_path, "dpo")
    assert (
        found[-1]["loss"] < found[0]["loss"] - 0.05
        and found[-1]["margin"] > found[0]["margin"] + 0.05
    )
    cached = list((tmp_path / "dpo" / "data").glob("reference-*.npy"))
    assert len(cached) == (0 if kind in ("simpo", "orpo") else 2)


def test_grpo_begins_at_its_reference(files: Path, tmp_path: Path, backend_name: str) -> None:
    """Of one update a rollout, whose ratio is 1: nothing is cut, and the distance (k3) is 0 but for
    rounding.
    """
    od.grpo(**small_stages.settings(files, "grpo", tmp_path, backend_name, steps=3, updates=1))
    first, *others = steps(tmp_path, "grpo")
    assert (
        first["kl"] == pytest.approx(0, abs=1e-6)
        and first["clip_fraction"] == 0 == first["approx_kl"]
    )
    assert all(e["kl"] > 1e-4 for e in others)


def test_a_reward_model_that_was_trained_loads_elsewhere(files: Path, tmp_path: Path) -> None:
    od.reward(**small_stages.settings(files, "reward", tmp_path, "torch", steps=4))
    folder = tmp_path / "reward" / "model"
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    model = load_model(folder, TORCH)
    np.testing.assert_allclose(
        Scorer(model, TORCH).scores(model.params, texts()),
        peers_scores(folder, texts()),
        rtol=0,
        atol=1e-5,
    )


def test_the_tensors_of_the_value_model_are_its_own() -> None:
    """What PPO trains under `value.` is found again under the names of a folder."""
    assert sub(both_models(), "value.").keys() == models.weights(JUDGE).keys()  # type: ignore[arg-type]
