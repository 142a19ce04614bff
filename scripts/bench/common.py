"""What all sides of the benchmark share: sizes, one material for all, and the meter."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MARK = "BENCH "  # a result's line begins so; whatever else a library prints is passed over
SKIP = 2  # steps left out at the beginning: caches fill, compilers run
# pairs that are held out: they are measured at the ends of a stage, which is not timed
HELD_PAIRS = 8


@dataclass(frozen=True)
class Size:
    """A model and the batches it is given. `rows` × `length` tokens a step in pre-training."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool
    rows: int
    length: int
    chats: int  # a step, where a chat has a row of its own
    chat_words: tuple[int, int]
    pairs: int = 8  # a step
    prompts: int = 4  # a rollout of GRPO, `group` completions each; a rollout of PPO has prompts × group / 2 prompts
    group: int = 8
    new_tokens: int = 64  # of each completion, which nothing stops earlier

    @property
    def episodes(self) -> int:
        """Completions of a rollout of PPO."""
        return self.prompts * self.group // 2


SIZES = {
    "5M": Size(4096, 256, 688, 6, 8, 4, True, 8, 256, 16, (10, 90)),
    "1M": Size(1024, 128, 384, 4, 4, 4, False, 16, 128, 16, (4, 30)),
    # to see that all of it runs: its figures say nothing
    "tiny": Size(
        512, 32, 64, 2, 2, 1, True, 2, 32, 2, (2, 4), pairs=2, prompts=2, group=2, new_tokens=8
    ),
}
PUBLISHED = ("5M", "1M")  # the sizes of the tables in the documents


@dataclass(frozen=True)
class Job:
    """What one fresh process is to do. `work` holds the material."""

    what: str
    size: str
    work: str
    backend: str = "torch"
    dtype: str = "float32"
    steps: int = 8
    learning_rate: float = 1e-3
    clip_norm: float = 1.0

    @property
    def shape(self) -> Size:
        return SIZES[self.size]

    @property
    def model(self) -> Path:
        return Path(self.work) / self.size / "model"

    def file(self, name: str) -> Path:
        return Path(self.work) / self.size / name

    def chats(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file("chats.jsonl").read_text().splitlines()]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argv(cls) -> Job:
        return cls(**json.loads(sys.argv[1]))


# material


def words() -> list[str]:
    """Words of an invented language, the commonest first."""
    draw = random.Random(0)
    return list(
        dict.fromkeys(
            "".join(
                draw.choice("bdfgklmnprstvz") + draw.choice("aeiou")
                for _ in range(draw.randint(1, 4))
            )
            for _ in range(4000)
        )
    )


def sentences(seed: str, low: int, high: int) -> Iterator[str]:
    draw, known = random.Random(seed), words()
    while True:
        places = (
            min(int(draw.expovariate(1 / 300)), len(known) - 1)
            for _ in range(draw.randint(low, high))
        )
        yield " ".join(known[p] for p in places) + "."


def prepare(work: Path, size: str, backend_name: str, steps: int) -> None:
    """One Hugging Face folder of random weights, a stream of tokens, chats and prompts for a size."""
    from ondevice.config.stages import InitConfig
    from ondevice.data.batches import TextSource
    from ondevice.data.tokenizer_training import train_tokenizer
    from ondevice.models.save import write_model
    from ondevice.seam.select import load_backend
    from ondevice.stages.init import initial_weights, model_config

    shape, folder = SIZES[size], work / size
    (folder / "model").mkdir(parents=True)
    backend = load_backend(backend_name, "cpu")
    text = sentences("text", 20, 60)
    documents = [next(text) for _ in range(6000)]
    tokenizer = train_tokenizer(documents, shape.vocab_size)
    cfg = InitConfig(
        **{
            name: getattr(shape, name)
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "tie_word_embeddings",
            )
        },
        vocab_size=shape.vocab_size,
        max_position_embeddings=1024,
    )
    decoder = model_config(cfg, tokenizer)
    params = {n: backend.array(w) for n, w in initial_weights(cfg, decoder).items()}
    write_model(folder / "model", backend, decoder, params, tokenizer)

    ids = [
        t for document in tokenizer.encode_batch(documents) for t in [*document, tokenizer.eos_id]
    ]
    needed = steps * shape.rows * shape.length + 1
    stream = np.resize(np.array(ids, np.int32), needed)
    np.save(folder / "tokens.npy", stream)
    # the peers read rows in the order in which our source deals them
    source = TextSource(stream, sequence_length=shape.length, batch_size=shape.rows)
    rows = []
    for step in range(steps):
        batch = source.batch(step)[0]
        last = batch["targets"].reshape(batch["ids"].shape)[:, -1:]
        rows.append(np.concatenate([batch["ids"], last], 1))
    np.save(folder / "rows.npy", np.concatenate(rows))
    _write_chats(folder, shape, steps)
    prompts = [
        tokenizer.encode(document)[: 8 + i % 17] for i, document in enumerate(documents[:64])
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def _write_chats(folder: Path, shape: Size, steps: int) -> None:
    low, high = shape.chat_words
    asked, answered = sentences("asked", low, high), sentences("answered", low, high)
    with (folder / "chats.jsonl").open("w") as out:
        for _ in range(2 * steps * shape.chats):
            out.write(
                json.dumps(
                    {
                        "messages": [
                            {"role": "user", "content": next(asked)},
                            {"role": "assistant", "content": next(answered)},
                        ]
                    }
                )
                + "\n"
            )


REWARD = '''"""The reward of the benchmark: the share of vowels."""


def vowels(prompts, completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]
'''


def prepare_preference(work: Path, size: str, backend_name: str, steps: int) -> None:
    """Beside what `prepare` has made: a reward model, pairs, prompts to be answered, and a reward
    as a function.

    `pairs.json` has the same pairs as ids, in the order in which our source deals them.
    """
    from ondevice.common.rng import permutation
    from ondevice.data.chat_encoding import prompt_ids
    from ondevice.data.preference_batches import to_tokens
    from ondevice.models.load import load_model
    from ondevice.models.save import write_model
    from ondevice.models.score_head import with_head
    from ondevice.seam.select import load_backend

    shape, folder = SIZES[size], work / size
    backend = load_backend(backend_name, "cpu")
    model = load_model(folder / "model", backend)
    judge = with_head(model, backend, 0)
    (folder / "judge").mkdir()
    write_model(folder / "judge", backend, judge.cfg, judge.params, judge.tokenizer)
    asked, chosen, rejected = (
        sentences(name, *shape.chat_words) for name in ("asked", "chosen", "rejected")
    )
    pairs: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": next(asked)}],
            "chosen": next(chosen),
            "rejected": next(rejected),
        }
        for _ in range(steps * shape.pairs + HELD_PAIRS)
    ]
    # a prompt that is held out is not learned from
    pairs, held = (pairs[:-HELD_PAIRS], pairs[-HELD_PAIRS:])
    for name, some in (("pairs", pairs), ("held", held)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in some))
    tokens = [to_tokens(pairs[i], model.tokenizer) for i in permutation(0, "pairs", 0, len(pairs))]
    assert max(pair.length for pair in tokens) <= 256
    (folder / "pairs.json").write_text(
        json.dumps(
            [
                {
                    "prompt_ids": list(map(int, pair.chosen.prompt)),
                    "chosen_ids": list(map(int, pair.chosen.completion)),
                    "rejected_ids": list(map(int, pair.rejected.completion)),
                }
                for pair in tokens
            ]
        )
    )
    rows = [{"prompt": pair["prompt"][0]["content"], "answer": "0"} for pair in pairs[:64]]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "asked.json").write_text(
        json.dumps([prompt_ids(pair["prompt"], model.tokenizer) for pair in pairs[:64]])
    )
    (folder / "reward.py").write_text(REWARD)


# measuring


def peak_rss() -> float:
    """The process's largest resident set so far, in MB.

    On Linux getrusage counts from before the program was started: what the process that started it
    held is the least that it ever says. The kernel's own mark of the program's memory does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        marks = (line.split() for line in status.read_text().splitlines())
        return next(int(mark[1]) for mark in marks if mark[0] == "VmHWM:") * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e6 / 1024
    )


def resident() -> float:
    """What the process holds now, in MB; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    return (
        int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
        if statm.exists()
        else peak_rss()
    )


@dataclass
class Meter:
    """One process's measurements: CPU seconds of all threads, wall seconds, useful tokens, losses."""

    before: float = field(default_factory=resident)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: float = 0.0
    # CPU seconds so far, of what is timed by itself
    parts: dict[str, float] = field(default_factory=dict)
    parted: list[dict[str, float]] = field(default_factory=list)  # the same at the end of each step

    def start(self) -> None:
        """Just before training: what was read and imported by now is not the training's."""
        self.before = resident()

    def mark(self) -> None:
        """At the end of each step."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        self.parted.append(dict(self.parts))
        self.peak = peak_rss()

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, its CPU seconds added to a part of the step."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            out = fn(*args, **kwargs)
            self.parts[part] = self.parts.get(part, 0.0) + time.process_time() - began
            return out

        return run

    def report(self, **more: Any) -> None:
        """Prints the result. `tokens` has one entry a step, in the order of the steps; later ones
        are ignored.
        """
        useful = sum(self.tokens[SKIP : len(self.cpu)])
        cpu, wall = self.cpu[-1] - self.cpu[SKIP - 1], self.wall[-1] - self.wall[SKIP - 1]
        steps = len(self.cpu) - SKIP
        parts = {
            name: (total - self.parted[SKIP - 1].get(name, 0.0)) / steps
            for name, total in self.parted[-1].items()
        }
        result = {
            "tokens": useful,
            "cpu": cpu,
            "wall": wall,
            "rate": useful / cpu,
            "peak": self.peak,
            "grown": self.peak - self.before,
            "losses": self.losses,
            "cpu_step": cpu / steps,
            "wall_step": wall / steps,
            "parts": parts,
            **more,
        }
        print(MARK + json.dumps(result), flush=True)

    def report_rounds(
        self, rounds: list[tuple[float, float]], ids: list[list[int]], **more: Any
    ) -> None:
        """Decoding: the median round. `ids` are compared between the sides."""
        cpu, wall = sorted(rounds)[len(rounds) // 2]
        tokens = sum(len(row) for row in ids)
        result = {
            "tokens": tokens,
            "cpu": cpu,
            "wall": wall,
            "rate": tokens / cpu,
            "peak": self.peak,
            "grown": self.peak - self.before,
            "ids": ids,
            **more,
        }
        print(MARK + json.dumps(result), flush=True)
