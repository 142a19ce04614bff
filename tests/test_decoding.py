"""Decoding: the cache changes nothing, neighbours change nothing, and draws follow the
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import models
from conftest import BACKENDS
from device import backend_of
from ondevice.common.errors import UserError
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import Completion
from ondevice.models.decoder_config import DecoderConfig
from ondevice.models.model import Model
from ondevice.seam.protocols import Backend

RNG = np.random.default_rng(11)
RAGGED = [RNG.integers(3, 97, n).tolist() for n in (5, 1, 17, 30, 2, 16, 9)]


def make(backend: Backend, cfg: DecoderConfig, stops: Sequence[int] = (), tokens: int = 0) -> Model:
    params = {n: backend.array(w) for n, w in models.weights(cfg).items()}
    return Model(
        cfg,
        params,
        cast(Any, SimpleNamespace(stop_ids=tuple(stops), vocab_size=tokens or cfg.vocab_size)),
        Path("."),
    )


def write(
    model: Model,
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    compile: str = "auto",
    **sampling: Any,
) -> list[Completion]:
    generator = Generator(
        model, backend, Sampling(**{"temperature": 0.0, **sampling}), compile=compile
    )
    return generator.run(model.params, prompts, batch_size=batch_size)


def logits(model: Model, backend: Backend, ids: Sequence[int]) -> np.ndarray:
    """(T, V) of the whole text in one forward: no cache."""
    batch = {
        "ids": backend.array(np.array([ids], np.int32)),
        "positions": backend.array(np.arange(len(ids), dtype=np.int32)[None]),
    }
    hidden = model.network.hidden(backend.ops, model.params, batch)
    head = backend.numpy(model.params[model.network.head.name])
    return np.asarray(backend.numpy(hidden)[0] @ head.T)


def write_without_cache(
    model: Model, backend: Backend, prompt: Sequence[int], tokens: int
) -> list[int]:
    """The whole text again for each token, padded to one length so that nothing else is new."""
    ids, stops = list(prompt), set(model.tokenizer.stop_ids)
    width = len(prompt) + tokens
    for _ in range(min(tokens, model.cfg.max_position_embeddings - len(prompt))):
        token = int(logits(model, backend, ids + [0] * (width - len(ids)))[len(ids) - 1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", models.FAMILIES)
def test_greedy_is_decoding_without_a_cache(backend: Backend, family: str) -> None:
    model = make(backend, models.config(family))
    got = write(model, backend, RAGGED[:4], max_new_tokens=20)
    want = [write_without_cache(model, backend, p, 20) for p in RAGGED[:4]]
    assert [c.ids for c in got] == want
    assert not any(c.stopped for c in got)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs both backends")
@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_backends_write_the_same(family: str) -> None:
    """Greedy and drawn, over more than one block of the cache."""
    written = []
    for name in BACKENDS:
        backend = backend_of(name)
        model = make(backend, models.config(family), stops=(7, 50))
        written.append(
            [
                write(model, backend, RAGGED, max_new_tokens=70),
                write(
                    model, backend, RAGGED, max_new_tokens=30, temperature=0.8, top_k=40, top_p=0.9
                ),
            ]
        )
    assert written[0] == written[1]


def stops_that_matter(backend: Backend, cfg: DecoderConfig) -> tuple[int, ...]:
    """Tokens that greedy texts hold at unlike places, so that rows leave one by one."""
    texts = write(make(backend, cfg), backend, RAGGED, max_new_tokens=40)
    return texts[0].ids[3], texts[2].ids[12], texts[3].ids[25]


@pytest.mark.parametrize("family", ["llama-gqa-tied", "mistral-window"])
def test_rows_leave_at_their_stop_token_and_the_others_go_on(backend: Backend, family: str) -> None:
    cfg = models.config(family)
    model = make(backend, cfg, stops_that_matter(backend, cfg))
    got = write(model, backend, RAGGED, max_new_tokens=40)
    assert [c.ids for c in got] == [write_without_cache(model, backend, p, 40) for p in RAGGED]
    assert len({len(c.ids) for c in got}) > 2
    for completion in got:
        assert completion.stopped == (len(completion.ids) < 40)
        assert not set(completion.ids) & set(model.tokenizer.stop_ids)


@pytest.mark.parametrize("compile", ["auto", pytest.param("never", marks=pytest.mark.slow)])
def test_the_batch_size_changes_nothing(backend: Backend, compile: str) -> None:
    cfg = models.config("qwen3")
    model = make(backend, cfg, stops_that_matter(backend, cfg))
    for sampling in ({}, {"temperature": 1.0}):
        runs = [
            write(
                model,
                backend,
                RAGGED,
                max_new_tokens=24,
                batch_size=size,
                compile=compile,
                **sampling,
            )
            for size in (1, 2, 3, 64)
        ]
        assert all(run == runs[0] for run in runs)


def test_a_rows_draws_do_not_depend_on_its_neighbours(backend: Backend) -> None:
    model = make(backend, models.config("llama"), stops=(5, 9, 33))
    alone = write(model, backend, [RAGGED[0]], max_new_tokens=30, temperature=1.0)
    among = write(model, backend, RAGGED, max_new_tokens=30, temperature=1.0)
    others = write(model, backend, [RAGGED[0], *RAGGED[:0:-1]], max_new_tokens=30, temperature=1.0)
    assert alone[0] == among[0] == others[0]
    twice = write(model, backend, [RAGGED[0]] * 4, max_new_tokens=30, temperature=1.0)
    assert len({tuple(c.ids) for c in twice}) == 4, (
        "rows of one prompt must draw numbers of their own"
    )
    again = write(model, backend, [RAGGED[0]], max_new_tokens=30, temperature=1.0, seed=1)
    assert again != alone


def test_tokens_are_told_as_they_come(backend: Backend) -> None:
    cfg = models.config("llama")
    model = make(backend, cfg, stops_that_matter(backend, cfg))
    told: dict[int, list[int]] = {i: [] for i in range(len(RAGGED))}
    generator = Generator(model, backend, Sampling(max_new_tokens=24, temperature=0.0))
    out = generator.run(model.params, RAGGED, on_token=lambda row, token: told[row].append(token))
    assert [told[i] for i in range(len(RAGGED))] == [c.ids for c in out]
    assert out == write(model, backend, RAGGED, max_new_tokens=24)


def draws(backend: Backend, u: np.ndarray, **sampling: Any) -> tuple[np.ndarray, np.ndarray]:
    """(tokens drawn at the uniforms `u`, the logits that they were drawn from): one hidden state,
    many rows.
    """
    model = make(backend, models.config("llama"))
    generator = Generator(model, backend, Sampling(**sampling))
    hidden = np.repeat(0.5 * RNG.standard_normal((1, 1, 32)).astype(np.float32), len(u), 0)
    got = generator._draw(
        backend.ops, model.params, backend.array(hidden), backend.array(u.astype(np.float32))
    )
    return backend.numpy(got), hidden[0, 0] @ backend.numpy(model.params["lm_head.weight"]).T


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max())
    return np.asarray(p / p.sum())


def kept(z: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """The distribution after the filters, in float64: first the likeliest k, then the fewest that
    reach p.
    """
    p = softmax(z.astype(np.float64) / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    enough = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    if top_p < 1:
        p[order[enough:]] = 0
    return p / p.sum()


FILTERS: dict[str, dict[str, Any]] = {
    "whole": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_k of one": {"top_k": 1},
    "top_k beyond": {"top_k": 500},
    "top_p": {"top_p": 0.7},
    "top_p tiny": {"top_p": 1e-6},
    "top_p almost whole": {"top_p": 0.999},
    "both": {"top_k": 20, "top_p": 0.8, "temperature": 1.3},
}


@pytest.mark.parametrize("which", FILTERS)
def test_draws_are_the_inverse_of_the_distribution(backend: Backend, which: str) -> None:
    """At evenly spread uniforms a token comes as often as its probability says, to one place at
    each border.
    """
    n = 4096
    tokens, z = draws(backend, (np.arange(n) + 0.5) / n, **FILTERS[which])
    p = kept(z, **FILTERS[which])
    counts = np.bincount(tokens, minlength=len(p))
    assert np.abs(counts - n * p).max() <= 1.5
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(p))


def test_top_p_keeps_the_token_that_reaches_it(backend: Backend) -> None:
    """Rounding must not drop the last token of the nucleus: it can hold a large part of what is
    kept.
    """
    model = make(backend, models.config("llama"))
    generator = Generator(model, backend, Sampling(temperature=0.9, top_k=30, top_p=0.6))
    rng = np.random.default_rng(12)
    hidden, u = (
        0.4 * rng.standard_normal((400, 1, 32)).astype(np.float32),
        rng.random(400).astype(np.float32),
    )
    got = backend.numpy(
        generator._draw(backend.ops, model.params, backend.array(hidden), backend.array(u))
    )
    z = hidden[:, 0] @ backend.numpy(model.params["lm_head.weight"]).T
    want = [
        np.searchsorted(np.cumsum(kept(row, 0.9, 30, 0.6)), x, side="right")
        for row, x in zip(z, u, strict=True)
    ]
    assert (got == want).sum() >= 399


def test_the_borders_of_the_uniforms(backend: Backend) -> None:
    last = np.nextafter(np.float32(1), np.float32(0))
    for filters in FILTERS.values():
        tokens, z = draws(backend, np.array([0.0, last]), **filters)
        assert kept(z, **filters)[tokens].min() > 0


def test_frequencies_of_draws(backend: Backend) -> None:
    """Chi-square of what rows really draw first, against softmax."""
    model = make(backend, models.config("llama"))
    n = 3000
    first = [
        c.ids[0]
        for c in write(
            model,
            backend,
            [RAGGED[4]] * n,
            max_new_tokens=1,
            temperature=2.0,
            batch_size=1000,
            seed=3,
        )
    ]
    expected = n * softmax(logits(model, backend, RAGGED[4])[-1].astype(np.float64) / 2.0)
    common = expected >= 5
    counts = np.bincount(first, minlength=len(expected))
    chi = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum()) - 1
    assert freedom > 20
    assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)


# ends and errors


@pytest.mark.parametrize("length", [120, 127, 1])
def test_generation_up_to_the_end_of_the_context(backend: Backend, length: int) -> None:
    model = make(backend, models.config("llama3-rope"))
    prompts = [RNG.integers(3, 97, length).tolist(), RAGGED[0]]
    got = write(model, backend, prompts, max_new_tokens=1000)
    assert [len(c.ids) for c in got] == [128 - length, 128 - len(RAGGED[0])]
    if length == 120:
        assert got[0].ids == write_without_cache(model, backend, prompts[0], 8)


def test_a_window_is_kept_to_while_decoding(backend: Backend) -> None:
    """Texts that differ only further back than the layers' windows reach are gone on with alike."""
    # its own: what other tests draw must not decide what this one sees
    rng = np.random.default_rng(0)
    cfg = models.config("mistral-window")
    reach = cfg.num_hidden_layers * (cfg.windows[0] - 1) + 1
    tail = rng.integers(3, 97, reach).tolist()
    model = make(backend, cfg)
    a, b = write(
        model,
        backend,
        [rng.integers(3, 97, 14).tolist() + tail for _ in range(2)],
        max_new_tokens=40,
    )
    assert a == b
    whole = make(backend, models.config("llama-gqa-tied"))
    a, b = write(
        whole,
        backend,
        [rng.integers(3, 97, 14).tolist() + tail for _ in range(2)],
        max_new_tokens=40,
    )
    assert a != b


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "is empty"),
        ([5] * 128, "context holds 128"),
        ([5] * 500, "context holds 128"),
        ([3, 97], "97 is outside"),
        ([-1, 4], "-1 is outside"),
        ([2**31], "outside the vocabulary"),
    ],
)
def test_prompts_that_cannot_be(backend: Backend, prompt: list[int], said: str) -> None:
    model = make(backend, models.config("llama"))
    with pytest.raises(UserError, match=said):
        write(model, backend, [RAGGED[0], prompt])


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_rows_of_the_head_that_are_no_tokens_are_never_written(
    backend: Backend, temperature: float
) -> None:
    """A vocabulary that was rounded up has ids that no tokenizer can say."""
    cfg = models.config("llama")
    got = write(
        make(backend, cfg, tokens=40),
        backend,
        RAGGED,
        max_new_tokens=30,
        temperature=temperature,
        seed=1,
    )
    assert max(max(c.ids) for c in got) < 40
    free = write(
        make(backend, cfg), backend, RAGGED, max_new_tokens=30, temperature=temperature, seed=1
    )
    assert max(max(c.ids) for c in free) >= 40


def test_no_prompts_no_completions(backend: Backend) -> None:
    assert write(make(backend, models.config("llama")), backend, []) == []


@pytest.mark.parametrize("top_p", [1e-7, 1e-9, 1e-30])
def test_top_p_never_drops_the_likeliest(backend: Backend, top_p: float) -> None:
    """Also where rounding leaves nothing above 1 - top_p."""
    model = make(backend, models.config("llama"))
    rng = np.random.default_rng(5)
    hidden = np.concatenate(
        [0.05 * rng.standard_normal((64, 1, 32)), 4 * rng.standard_normal((64, 1, 32))]
    )
    generator = Generator(model, backend, Sampling(top_p=top_p))
    got = generator._draw(
        backend.ops,
        model.params,
        backend.array(hidden.astype(np.float32)),
        backend.array(rng.random(128).astype(np.float32)),
    )
    z = hidden[:, 0].astype(np.float32) @ backend.numpy(model.params["lm_head.weight"]).T
    assert np.array_equal(backend.numpy(got), z.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-7, 1e-45, 1e7, float("inf"), float("nan"), -1.0])
def test_temperatures_that_cannot_be_computed_with_are_refused(temperature: float) -> None:
    from ondevice.config.preference import GRPOConfig
    from ondevice.config.use import GenerateConfig

    for make_ in (
        lambda: Sampling(temperature=temperature),
        lambda: GenerateConfig(model="m", prompt="p", temperature=temperature).check(),
        lambda: GRPOConfig(model="m", temperature=temperature).check(),
    ):
        with pytest.raises(UserError) as caught:
            make_()
        assert caught.value.where == "temperature"


def test_temperatures_just_within_draw(backend: Backend) -> None:
    u = np.linspace(0, 0.999, 50)
    assert len(set(draws(backend, u, temperature=1e-6)[0].tolist())) == 1
    assert len(set(draws(backend, u, temperature=1e6)[0].tolist())) == 50


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_a_repetition_penalty_is_transformers(
    family: str, penalty: float, backend: Backend
) -> None:
    """In greedy text, token by token; rows of other lengths and samples beside it change nothing."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ondevice.models.state_dict import to_file

    cfg = models.config(family) if family in models.FAMILIES else models.seq2seq_config(family)
    weights = models.weights(cfg)
    raw = {k: v for k, v in cfg.to_json().items() if v is not None and k != "architectures"}
    kind = (
        transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
    )
    theirs = kind.from_config(transformers.AutoConfig.for_model(**raw)).float().eval()
    named = {n if family != "gpt2" else f"transformer.{n}": w for n, w in to_file(weights).items()}
    theirs.load_state_dict(
        {n: torch.tensor(np.ascontiguousarray(w)) for n, w in named.items()}, strict=False
    )
    theirs.tie_weights()
    model = make(backend, cfg, stops=[2])
    prompts = [[5, 9, 40], [7, 7, 8, 30, 31, 5, 6], [11]]
    generator = Generator(
        model, backend, Sampling(max_new_tokens=20, temperature=0, repetition_penalty=penalty)
    )
    for prompt, done in zip(prompts, generator.run(model.params, prompts), strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]),
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=sorted(generator.stop_ids),
                pad_token_id=0,
            )
        want = out[0].tolist()[1 if family == "t5" else len(prompt) :]
        got = done.ids if done.stop is None else [*done.ids, done.stop]
        assert got == want
    plain = Generator(model, backend, Sampling(max_new_tokens=20, temperature=0)).run(
        model.params, prompts
    )
    assert [c.ids for c in plain] != [c.ids for c in generator.run(model.params, prompts)]
    drawn = Generator(
        model,
        backend,
        Sampling(max_new_tokens=12, temperature=1.2, repetition_penalty=penalty, seed=3),
    )
    together = drawn.run(model.params, prompts, samples=2)
    alone = [
        c
        for at, prompt in enumerate(prompts)
        for c in drawn.run(model.params, [prompt], samples=2, first=2 * at)
    ]
    assert [c.ids for c in together] == [c.ids for c in alone]


def test_a_search_keeps_the_repetition_penalty(backend: Backend) -> None:
    """As transformers' search does."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ondevice.inference.beam_search import Search, beam_search

    cfg = models.config("llama")
    model = make(backend, cfg, stops=[2])
    raw = {k: v for k, v in cfg.to_json().items() if v is not None and k != "architectures"}
    theirs = (
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
        .float()
        .eval()
    )
    theirs.load_state_dict({n: torch.tensor(w) for n, w in models.weights(cfg).items()})
    generator = Generator(model, backend, Sampling(max_new_tokens=12, temperature=0))
    prompt = [5, 9, 40, 5]
    best = beam_search(generator, model.params, prompt, 3, Search(repetition_penalty=1.5))[
        0
    ].completion
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            do_sample=False,
            num_beams=3,
            repetition_penalty=1.5,
            eos_token_id=2,
            pad_token_id=0,
        )[0].tolist()[4:]
    assert best.ids == [i for i in out if i != 2 and i != 0]
    assert best.ids != beam_search(generator, model.params, prompt, 3)[0].completion.ids
