"""What one program makes of a real model's folder: logits of a chat, greedy answers, CPU seconds.
Run once for each.

WHO: torch, mlx (ours), transformers, mlx-lm; FOLDER: a causal model's folder. Writes OUT/WHO.npz
(ids and float32 logits of the first prompt) and OUT/WHO.json (answers); `compare OUT` says how far
the programs that are there are apart. float32 on the CPU, so that the numbers can be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 12 + 30?",
    "Name three colours.",
    "Explain in one sentence what a computer does.",
]
# ids, logits, answers, CPU seconds
Measured = tuple[np.ndarray, np.ndarray, list[str], dict[str, float]]


def ours(backend_name: str, folder: str, tokens: int) -> Measured:
    from ondevice.data.chat_encoding import prompt_ids
    from ondevice.inference.generator import Generator
    from ondevice.inference.next_token import Sampling
    from ondevice.models.load import load_model
    from ondevice.seam.select import load_backend

    backend = load_backend(backend_name, device="cpu", dtype="float32")
    began = time.process_time()
    model = load_model(folder, backend)
    loaded = time.process_time()
    prompts = [prompt_ids([{"role": "user", "content": p}], model.tokenizer) for p in PROMPTS]
    ids = np.array(prompts[:1], np.int32)
    batch = {
        "ids": backend.array(ids),
        "positions": backend.array(np.arange(ids.shape[1], dtype=np.int32)[None]),
    }
    head = model.network.head
    hidden = model.network.hidden(backend.ops, model.params, batch)
    logits = np.array(backend.numpy(head.logits(backend.ops, head.params(model.params), hidden)))
    read = time.process_time()
    found = Generator(model, backend, Sampling(max_new_tokens=tokens, temperature=0.0)).run(
        model.params, prompts
    )
    spent = {
        "load": loaded - began,
        "answers": time.process_time() - read,
        "tokens": sum(len(c.ids) for c in found),
    }
    return ids, logits, [model.tokenizer.decode(c.ids) for c in found], spent


def theirs(folder: str, tokens: int) -> Measured:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [
        words.apply_chat_template(
            [{"role": "user", "content": p}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        for p in PROMPTS
    ]
    with torch.no_grad():
        logits = model(prompts[0]).logits.numpy()
        began = time.process_time()
        made = [
            model.generate(
                ids, do_sample=False, max_new_tokens=tokens, attention_mask=torch.ones_like(ids)
            )[0, ids.shape[1] :]
            for ids in prompts
        ]
    spent = {"answers": time.process_time() - began, "tokens": sum(len(m) for m in made)}
    return (
        prompts[0].numpy(),
        logits,
        [words.decode(m, skip_special_tokens=True) for m in made],
        spent,
    )


def mlx_lms(folder: str, tokens: int) -> Measured:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    mx.set_default_device(mx.cpu)
    model, words = load(folder)[:2]
    model.set_dtype(mx.float32)
    prompts = [
        words.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True)
        for p in PROMPTS
    ]
    logits = np.array(model(mx.array(prompts[:1])))
    began = time.process_time()
    made: list[list[int]] = []
    for ids in prompts:
        made.append([])
        for token, _ in generate_step(mx.array(ids), model, max_tokens=tokens):
            if int(token) in words.eos_token_ids:
                break
            made[-1].append(int(token))
    spent = {"answers": time.process_time() - began, "tokens": sum(map(len, made))}
    return np.array(prompts[:1]), logits, [words.decode(m) for m in made], spent


PROGRAMS: dict[str, Callable[[str, int], Measured]] = {
    "torch": partial(ours, "torch"),
    "mlx": partial(ours, "mlx"),
    "transformers": theirs,
    "mlx-lm": mlx_lms,
}


def compare(out: Path) -> None:
    names = sorted(file.stem for file in out.glob("*.npz"))
    held = {name: np.load(out / f"{name}.npz") for name in names}
    said = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            assert np.array_equal(held[one]["ids"], held[other]["ids"])
            off = float(np.abs(held[one]["logits"] - held[other]["logits"]).max())
            print(
                f"{one} and {other}: logits differ by at most {off:.1e}, answers "
                f"{'the same' if said[one]['answers'] == said[other]['answers'] else 'DIFFERENT'}"
            )
    for name in names:
        print(name, said[name]["spent"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("who", choices=[*PROGRAMS, "compare"])
    parser.add_argument(
        "place", metavar="FOLDER", help="the model's; OUT of the others for compare"
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("smollm2"))
    parser.add_argument("--tokens", type=int, default=40, help="of each answer, at most")
    given = parser.parse_args()
    who, out = given.who, given.out
    if who == "compare":
        compare(Path(given.place))
        return
    out.mkdir(parents=True, exist_ok=True)
    ids, logits, answers, spent = PROGRAMS[who](given.place, given.tokens)
    np.savez(out / f"{who}.npz", ids=ids, logits=logits.astype(np.float32))
    (out / f"{who}.json").write_text(json.dumps({"answers": answers, "spent": spent}, indent=1))


if __name__ == "__main__":
    main()
