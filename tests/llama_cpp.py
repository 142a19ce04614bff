"""llama.cpp itself, through the package xllamacpp, for the tests of GGUF files. No test by itself."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """A GGUF file behind llama.cpp's own server on this machine."""

    def __init__(self, file: Path, context: int = 128) -> None:
        library = pytest.importorskip(
            "xllamacpp", reason="xllamacpp, which brings llama.cpp, is not installed"
        )
        settings = library.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(file), context, 1
        settings.warmup, settings.use_jinja, settings.verbosity = False, True, 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        # exact sums: caches in float32, no flash attention
        settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = library.Server(settings)
        self._base = self._server.listening_address

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "parse_special": False, "add_special": False}
        return list(self._post("/tokenize", body)["tokens"])

    def template(self, messages: list[dict[str, str]]) -> str:
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def greedy(self, ids: list[int], tokens: int) -> tuple[list[int], list[tuple[int, float]]]:
        """(what follows, stop token included; those of them with their log-probabilities that the
        server tells: it leaves out tokens that end within a character)."""
        found = self._post(
            "/completion",
            {
                "prompt": ids,
                "n_predict": tokens,
                "temperature": 0,
                "samplers": ["temperature"],
                "return_tokens": True,
                "cache_prompt": False,
                "n_probs": 1,
            },
        )
        return list(found["tokens"]), [
            (int(place["id"]), float(place["logprob"]))
            for place in found["completion_probabilities"]
        ]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked = urllib.request.Request(
            self._base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
