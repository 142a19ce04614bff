"""A plain torch loop, as one writes it by hand: Llama of this shape with torch's fused attention,
fused AdamW, whole logits; compiled or not. bfloat16 is autocast over float32 weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from job import Job
from meter import Meter, torch_device
from safetensors.torch import load_file
from torch import Tensor, nn

from ondevice.models.registry import load_config


class Block(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.heads = cfg.num_attention_heads
        self.kv_heads = cfg.num_key_value_heads
        self.width = cfg.hidden_size // self.heads
        width, kv_width = cfg.hidden_size, self.kv_heads * self.width
        self.input_layernorm = nn.RMSNorm(width, cfg.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(width, cfg.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width, bias=False),
                "k_proj": nn.Linear(width, kv_width, bias=False),
                "v_proj": nn.Linear(width, kv_width, bias=False),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, cfg.intermediate_size, bias=False),
                "up_proj": nn.Linear(width, cfg.intermediate_size, bias=False),
                "down_proj": nn.Linear(cfg.intermediate_size, width, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, D); cos, sin (T, head width)."""
        rows, length, _ = x.shape
        h = self.input_layernorm(x)
        heads = []
        for name in ("q_proj", "k_proj", "v_proj"):
            heads.append(self.self_attn[name](h).view(rows, length, -1, self.width).transpose(1, 2))
        q, k, v = heads
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        grouped = self.heads != self.kv_heads
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.self_attn["o_proj"](h.transpose(1, 2).reshape(rows, length, -1))
        h = self.post_attention_layernorm(x)
        gate = F.silu(self.mlp["gate_proj"](h))
        down: Tensor = self.mlp["down_proj"](gate * self.mlp["up_proj"](h))
        return x + down


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.width = cfg.hidden_size // cfg.num_attention_heads
        self.theta = cfg.rope_theta

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T + 1) → the mean loss of the B × T targets."""
        even = torch.arange(0, self.width, 2, device=ids.device).float()
        steps = torch.arange(ids.shape[1] - 1, device=ids.device).float()
        angles = torch.outer(steps, self.theta ** (-even / self.width)).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed_tokens(ids[:, :-1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _weights(job: Job) -> Mapping[str, Tensor]:
    held = load_file(job.model / "model.safetensors")
    return {name.removeprefix("model."): weight.float() for name, weight in held.items()}


def main() -> None:
    job = Job.from_argv()
    meter = Meter(job)
    assert job.shape.tie_word_embeddings
    device = torch_device(job)
    model = Llama(load_config(job.model))
    model.load_state_dict(_weights(job))
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=job.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        fused=True,
    )
    rows = torch.from_numpy(np.load(job.file("rows.npy")).astype(np.int64)).to(device)
    run = torch.compile(model) if job.compile == "always" else model
    compute: Any = contextlib.nullcontext()
    if job.dtype == "bfloat16":
        compute = torch.autocast(device, torch.bfloat16)
    meter.start()
    for batch in torch.split(rows, job.shape.rows):
        with compute:
            loss = run(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), job.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.losses.append(float(loss))
        meter.tokens.append(batch.numel() - len(batch))
        meter.mark()
    meter.report()


if __name__ == "__main__":
    main()
