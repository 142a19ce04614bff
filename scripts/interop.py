#!/usr/bin/env python3
"""Writes docs/interop.md: other programs load what `ondevice export` writes, and their numbers are
compared with ours.

    scripts/interop.py MODEL [--out docs/interop.md] [--only PACKAGE …] [--tokens 48]

MODEL is a decoder with a chat template. Compared are logits on the fixed prompt of `ondevice
export` and 48 greedy tokens after a chat's prompt, our own in float32 on torch. A program that is
not installed is said not to have been run. With --only, these packages' rows are run and the page
keeps the others as they are: some stand in environments of their own.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import ondevice as od  # noqa: E402
from ondevice.common.rng import normal  # noqa: E402
from ondevice.data.chat_encoding import encode_chat, prompt_ids  # noqa: E402
from ondevice.exports.compare import logits, prompt_of  # noqa: E402
from ondevice.inference.generator import Generator  # noqa: E402
from ondevice.inference.next_token import Sampling  # noqa: E402
from ondevice.models.load import load_model  # noqa: E402
from ondevice.models.lora import INHERITED, Pair, lora_tensors  # noqa: E402
from ondevice.models.model import Adapter, Model  # noqa: E402
from ondevice.models.save import write, write_model  # noqa: E402
from ondevice.models.score_head import with_head  # noqa: E402
from ondevice.models.shapes import matrices  # noqa: E402
from ondevice.seam.protocols import Backend  # noqa: E402
from ondevice.seam.select import load_backend  # noqa: E402
from ondevice.training.sequence_logprobs import Scorer  # noqa: E402

ASKED = ("What is 12 + 30?", "Tell me a short story about a cat.", "Where does Anna live?")
MISSING = "–"


@dataclass
class Case:
    """The model, its folder, and where forms of it are written."""

    model: Model
    folder: Path
    room: Path
    backend: Backend
    tokens: int  # of a greedy answer

    def prompts(self) -> list[list[int]]:
        return [
            prompt_ids([{"role": "user", "content": text}], self.model.tokenizer) for text in ASKED
        ]

    def written(self, model: Model) -> list[list[int]]:
        found = Generator(
            model, self.backend, Sampling(max_new_tokens=self.tokens, temperature=0.0)
        ).run(model.params, self.prompts())
        return [list(c.ids) for c in found]


def transformers_hf(case: Case) -> str:
    import transformers

    od.export(case.folder, "hf", dtype="float32", out=case.room / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(case.room / "hf", dtype="float32")
    return _transformers(case, theirs, case.model)


def transformers_gguf(case: Case) -> str:
    import transformers

    found = od.export(case.folder, "gguf", dtype="f16", out=case.room / "gguf")
    name = next(name for name in found["files"] if name.endswith(".gguf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        case.room / "gguf", gguf_file=name, dtype="float32"
    )
    return _transformers(case, theirs, case.model)


def transformers_judge(case: Case) -> str:
    """A reward model: the scores of the pipeline for text classification."""
    import transformers

    judge = with_head(case.model, case.backend, 0)
    (case.room / "judge").mkdir()
    write_model(case.room / "judge", case.backend, judge.cfg, judge.params, judge.tokenizer)
    od.export(case.room / "judge", "hf", dtype="float32", out=case.room / "judge-hf")
    pipeline = transformers.pipeline(
        "text-classification", str(case.room / "judge-hf"), function_to_apply="none"
    )
    ids = judge.tokenizer.encode(ASKED[0])
    mine = float(logits(judge, case.backend, ids)[-1, 0])
    return f"{abs(pipeline(ASKED[0])[0]['score'] - mine):.1e} of the score"


def trl_judge(case: Case) -> str:
    """A reward model: the scores that TRL's GRPO, which loads it by its folder, gives to chats."""
    import datasets
    import trl

    judge = with_head(case.model, case.backend, 0)
    (case.room / "trl").mkdir()
    write_model(case.room / "trl", case.backend, judge.cfg, judge.params, judge.tokenizer)
    od.export(case.room / "trl", "hf", dtype="float32", out=case.room / "trl-hf")
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "I do not know."}]
        for text in ASKED
    ]
    config = trl.GRPOConfig(
        str(case.room / "grpo"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        num_generations=2,
        per_device_train_batch_size=2,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = trl.GRPOTrainer(
        str(case.folder),
        str(case.room / "trl-hf"),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": chat[:1]} for chat in chats]),
    )
    theirs = trainer._calculate_rewards(
        [{}] * 3, [c[:1] for c in chats], [c[1:] for c in chats], [[1]] * 3
    )[:, 0]
    texts = [encode_chat(chat, judge.tokenizer)[0].ids for chat in chats]
    mine = Scorer(judge, case.backend).scores(judge.params, texts)
    return f"{np.abs(theirs.numpy() - mine).max():.1e} of the score of a chat"


def lm_eval_hf(case: Case) -> str:
    """Log-probabilities of answers after questions, as its tasks of choices take them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    od.export(case.folder, "hf", dtype="float32", out=case.room / "lm-eval")
    pairs = [(question, answer) for question in ASKED for answer in (" 42", " Yes, it is.")]
    theirs = HFLM(
        pretrained=str(case.room / "lm-eval"), device="cpu", dtype="float32", batch_size=1
    ).loglikelihood(
        [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    )
    far = 0.0
    for (question, answer), (found, _) in zip(pairs, theirs, strict=True):
        before, ids = (case.model.tokenizer.encode(text) for text in (question, question + answer))
        z = logits(case.model, case.backend, ids)[len(before) - 1 : -1].astype(np.float64)
        z -= np.logaddexp.reduce(z, axis=-1, keepdims=True)
        far = max(
            far, abs(found - sum(row[i] for row, i in zip(z, ids[len(before) :], strict=True)))
        )
    return f"{far:.1e} of an answer's log-probability"


def peft_adapter(case: Case) -> str:
    import peft
    import transformers

    folder, mine = _adapter(case)
    od.export(folder, "peft", out=case.room / "peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(case.folder, dtype="float32")
    return _transformers(case, peft.PeftModel.from_pretrained(base, case.room / "peft"), mine)


def mlx_hf(case: Case) -> str:
    od.export(case.folder, "hf", dtype="float32", out=case.room / "mlx-hf")
    return _mlx(case, case.room / "mlx-hf", None, case.model)


def mlx_bits(bits: int) -> Callable[[Case], str]:
    def run(case: Case) -> str:
        out = case.room / f"mlx-{bits}"
        found = od.export(case.folder, "mlx", bits=bits, out=out)
        said = _mlx(case, out, None, load_model(out, case.backend))
        return (
            f"{said}; perplexity {found['perplexity_before']:.4g} → {found['perplexity_after']:.4g}"
        )

    return run


def mlx_adapter(case: Case) -> str:
    folder, mine = _adapter(case)
    od.export(folder, "mlx-adapter", out=case.room / "mlx-adapter")
    return _mlx(case, case.folder, case.room / "mlx-adapter", mine)


def llama_cpp(dtype: str) -> Callable[[Case], str]:
    def run(case: Case) -> str:
        from llama_cpp import LlamaCpp
        from ondevice.exports import gguf_file

        out = case.room / f"llama-{dtype}"
        found = od.export(case.folder, "gguf", dtype=dtype, out=out)
        file = out / next(name for name in found["files"] if name.endswith(".gguf"))
        program, mine = LlamaCpp(file, 512), gguf_file.read(file, case.model, case.backend)
        prompts = case.prompts()
        tokens = [program.greedy(p, case.tokens)[0] for p in prompts]
        likeliest = [
            int((logits(mine, case.backend, [*p, *t])[len(p) - 1 : -1].argmax(-1) == t).sum())
            for p, t in zip(prompts, tokens, strict=True)
        ]
        return (
            f"{_same(tokens, case.written(mine))}, {sum(likeliest)} of its {sum(map(len, tokens))} are the "
            f"likeliest to us after the same text; perplexity {found['perplexity_before']:.4g} → "
            f"{found['perplexity_after']:.4g}"
        )

    return run


ROWS: tuple[tuple[str, str, str, Callable[[Case], str] | None], ...] = (
    ("transformers", "transformers", "hf float32", transformers_hf),
    ("transformers, pipeline", "transformers", "hf float32, reward model", transformers_judge),
    ("TRL, GRPO", "trl", "hf float32, reward model", trl_judge),
    ("lm-eval", "lm-eval", "hf float32", lm_eval_hf),
    ("transformers, gguf_file", "transformers", "gguf f16", transformers_gguf),
    ("peft", "peft", "peft", peft_adapter),
    ("mlx-lm", "mlx-lm", "hf float32", mlx_hf),
    ("mlx-lm", "mlx-lm", "mlx, 8 bits", mlx_bits(8)),
    ("mlx-lm", "mlx-lm", "mlx, 4 bits", mlx_bits(4)),
    ("mlx-lm", "mlx-lm", "mlx-adapter", mlx_adapter),
    ("llama.cpp (xllamacpp)", "xllamacpp", "gguf f16", llama_cpp("f16")),
    ("llama.cpp (xllamacpp)", "xllamacpp", "gguf q8_0", llama_cpp("q8_0")),
    ("vLLM", "", "hf", None),
    ("Ollama", "", "gguf, Modelfile", None),
    ("LM Studio", "", "gguf, mlx", None),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--out", default=str(ROOT / "docs" / "interop.md"))
    parser.add_argument("--only", nargs="+", default=[], metavar="PACKAGE")
    parser.add_argument("--tokens", type=int, default=48, help="of each greedy answer")
    chosen = parser.parse_args()
    page = Path(chosen.out)
    kept = _rows(page) if chosen.only and page.exists() else {}
    backend = load_backend("torch", "cpu", "float32")
    model = load_model(chosen.model, backend)
    lines = []
    with tempfile.TemporaryDirectory() as room:
        for program, package, form, run in ROWS:
            said, found = "not run", _version(package)
            if chosen.only and package not in chosen.only:
                found, said = kept.get((program, form), (MISSING, said))
            elif run is not None and found != MISSING:
                said = run(Case(model, model.folder.resolve(), Path(room), backend, chosen.tokens))
            lines.append(f"| {program} | {found} | {form} | {said} |")
            print(lines[-1], flush=True)
            gc.collect()
    page.write_text(
        PAGE.format(
            tokens=chosen.tokens,
            model=f"{Path(chosen.model).name} ({model.cfg.model_type}, {model.size / 1e6:.0f} million weights)",
            rows="\n".join(lines),
            here=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
            f"torch {version('torch')}, gguf {version('gguf')}",
        ),
        encoding="utf-8",
    )


PAGE = """# What other programs compute with our folders

Written by `scripts/interop.py`. Model: {model}. Here: {here}.

Logits are compared on the fixed prompt of `ondevice export`, ours in float32 on torch, with what that file holds;
tokens are {tokens} greedy ones after each of three chats' prompts. "Not run": not here, or not by this
script; nothing is claimed.

| program | version | form | largest difference |
| --- | --- | --- | --- |
{rows}

llama.cpp rounds what it multiplies to float16 (f16) or to 8 bits (q8_0): where two tokens are nearly as likely, it may
take the other one, after which the two texts are not the same. Perplexities are ours, of what was read back.
"""


def _transformers(case: Case, theirs: Any, mine: Model) -> str:
    import torch

    ids = prompt_of(case.model)
    theirs = theirs.eval()
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits[0].float().numpy()
        tokens = [
            theirs.generate(
                input_ids=torch.tensor([p]),
                max_new_tokens=case.tokens,
                do_sample=False,
                eos_token_id=list(case.model.tokenizer.stop_ids),
            )[0, len(p) :].tolist()
            for p in case.prompts()
        ]
    return _told(found, tokens, mine, case)


def _mlx(case: Case, folder: Path, adapter: Path | None, mine: Model) -> str:
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step

    theirs = mlx_lm.load(str(folder), adapter_path=str(adapter) if adapter else None)[0]
    theirs.set_dtype(mx.float32)
    found = np.array(theirs(mx.array([prompt_of(case.model)]))[0].astype(mx.float32))
    tokens = [
        [int(t) for t, _ in generate_step(mx.array(p), theirs, max_tokens=case.tokens)]
        for p in case.prompts()
    ]
    return _told(found, tokens, mine, case)


def _told(found: np.ndarray, tokens: list[list[int]], mine: Model, case: Case) -> str:
    far = float(np.abs(found - logits(mine, case.backend, prompt_of(case.model))).max())
    return f"{far:.1e} of a logit; {_same(tokens, case.written(mine))}"


def _same(theirs: list[list[int]], ours: list[list[int]]) -> str:
    """Ours end before a stop token, theirs may go on."""
    same = sum(
        a == b
        for one, two in zip(theirs, ours, strict=True)
        for a, b in zip(one, two, strict=False)
    )
    return f"{same} of {sum(map(len, ours))} greedy tokens the same"


def _adapter(case: Case) -> tuple[Path, Model]:
    """A random adapter of the queries and the last matrices, as PEFT's folder, and the model with
    it.
    """
    folder, params = case.room / "adapter", dict(case.model.params)
    for name, (outputs, inputs) in matrices(case.model.cfg).items():
        if name.endswith(("q_proj", "down_proj")):
            a, b = (
                normal(0, f"{name} a", (4, inputs), inputs**-0.5),
                normal(0, f"{name} b", (outputs, 4), 0.02),
            )
            pair = Pair(a, b, 2.0)
            params |= lora_tensors(name, pair, INHERITED, case.backend)
    model = replace(case.model, params=params, adapter=Adapter(str(case.folder)))
    if not folder.exists():
        folder.mkdir()
        write(folder, case.backend, model)
    return folder, model


def _rows(page: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(program, form) → (version, what was found) of each row of the page as it is."""
    rows = [
        line.strip("| ").split(" | ")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    return {(program, form): (version, said) for program, version, form, said in rows}


def _version(package: str) -> str:
    return (
        version(package)
        if package and importlib.util.find_spec(package.replace("-", "_"))
        else MISSING
    )


if __name__ == "__main__":
    main()
