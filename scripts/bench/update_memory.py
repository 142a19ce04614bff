"""The peak of memory of an update: a model of as many blocks as `layers` says, AdamW, a few steps of
`tokens` tokens each. What it is to do comes as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from job import Job, Size
from material import init_config
from meter import device_peak, peak_rss, print_result
from ours import backend_of, batch_settings

from ondevice.config.stages import PretrainConfig
from ondevice.data.batches import TextSource
from ondevice.models.network import network
from ondevice.models.registry import ModelConfig, parse_config
from ondevice.stages.init import initial_weights
from ondevice.training.losses import causal_lm_loss
from ondevice.training.optimizer_settings import optim_settings

BLOCKS = Size(4096, 576, 1536, 1, 9, 3)
SMALL = Size(512, 36, 64, 1, 9, 3)
ROW = 64


def main() -> None:
    given = json.loads(sys.argv[1])
    shape = replace(SMALL if given["small"] else BLOCKS, num_hidden_layers=given["layers"])
    job = Job("slope", "5M", "", given["backend"], given["device"], "float32")
    backend = backend_of(job)
    cfg = _config(shape)
    params = {n: backend.array(w) for n, w in initial_weights(init_config(shape), cfg).items()}
    count = sum(int(np.prod(p.shape)) for p in params.values())
    loss = partial(causal_lm_loss, model=network(cfg))
    trainer = backend.trainer(loss, params, {}, optim_settings(PretrainConfig(), params))
    del params  # the trainer's own are left
    stream = np.random.default_rng(0).integers(0, shape.vocab_size, given["tokens"] + 1)
    rows = batch_settings(given["tokens"] // ROW)
    source = TextSource(stream.astype(np.int32), sequence_length=ROW, **rows)
    for step in range(3):
        trainer.step(source.batch(step), 1e-4)
    print_result(parameters=count, peak=peak_rss(), **device_peak(job))


def _config(shape: Size) -> ModelConfig:
    raw: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }
    return parse_config(raw)


if __name__ == "__main__":
    main()
