"""The rows of the comparison: what both sides do, on which model, and who the other side is."""

from __future__ import annotations

from dataclasses import dataclass

from job import Job


@dataclass(frozen=True)
class Peer:
    """The other side: a script, what must be installed for it, and the folder's option where it
    wants other versions of libraries than ours."""

    script: str
    name: str
    modules: tuple[str, ...]
    package: str = ""
    folder: str = ""


PLAIN = Peer("peer_plain", "a plain torch loop", ("torch",))
TRANSFORMERS = Peer("peer_transformers", "transformers", ("transformers",))
TRL_SFT = Peer("peer_trl", "TRL", ("trl", "peft"))
TRL = Peer("peer_trl_preference", "TRL", ("trl",))
TRL_PPO = Peer("peer_trl_ppo", "TRL 1.12", ("trl",), "trl==1.12.0", "trl112")
MLX_LM = Peer("peer_mlx_lm", "mlx-lm", ("mlx_lm",))
MLX_LM_LORA = Peer("peer_mlx_lm_lora", "mlx-lm-lora", ("mlx_lm",), "mlx-lm-lora", "mlx_lm_lora")
DECODERS = {"torch": TRANSFORMERS, "mlx": MLX_LM}
OURS = Peer("ours_stage", "our own step, every group with a spread", ())


@dataclass(frozen=True)
class Row:
    group: str  # what the command line calls it
    title: str
    backend: str
    peer: Peer | None
    what: str
    size: str = "5M"
    ours: str = "ours_stage"
    dtype: str = "float32"
    compile: str = "auto"
    steps: int = 8
    skipped: int = 2
    learning_rate: float = 1e-4
    clip_norm: float = 1.0
    seconds: str = "wall"  # what is compared: the whole step, or its "update"
    peer_what: str = ""  # where the peer is to do another thing

    @property
    def key(self) -> str:
        return f"{self.title} ({self.backend})"

    def is_named(self, name: str) -> bool:
        """Whether GROUP or GROUP:WORDS means this row."""
        group, _, words = name.partition(":")
        return group == self.group and words in self.title

    def job(self, work: str, device: str, small: bool, peer: bool = False) -> Job:
        what = self.peer_what if peer and self.peer_what else self.what
        return Job(
            what,
            self.size,
            work,
            self.backend,
            device,
            self.dtype,
            self.compile,
            min(self.steps, 3) if small else self.steps,
            min(self.skipped, 1) if small else self.skipped,
            self.learning_rate,
            self.clip_norm,
            small,
        )


def _train(
    group: str,
    title: str,
    backend: str,
    peer: Peer,
    what: str,
    compile: str = "auto",
    clip_norm: float = 1.0,
) -> Row:
    return Row(
        group,
        title,
        backend,
        peer,
        what,
        ours="ours_train",
        compile=compile,
        learning_rate=1e-3,
        clip_norm=clip_norm,
    )


def _decode(
    group: str,
    title: str,
    backend: str,
    peer: Peer,
    what: str,
    size: str = "5M",
    dtype: str = "float32",
) -> Row:
    return Row(group, title, backend, peer, what, size, "ours_decode", dtype)


def _memory(group: str, title: str, backend: str, peer: Peer | None, what: str, size: str) -> Row:
    """Rows of large models: few steps, and no step is left out but the first."""
    return Row(group, title, backend, peer, what, size, steps=2, skipped=1)


ROWS = (
    _train("pretrain", "pre-training, eager", "torch", PLAIN, "text", "never"),
    _train("pretrain", "pre-training, compiled", "torch", PLAIN, "text", "always"),
    _train("pretrain", "pre-training, against its Trainer", "torch", TRANSFORMERS, "text"),
    _train("pretrain", "all weights on full rows", "mlx", MLX_LM, "text", clip_norm=0.0),
    _train("pretrain", "blocks alone on full rows", "mlx", MLX_LM, "blocks", clip_norm=0.0),
    _train("sft", "chats, one per row", "torch", TRL_SFT, "chats"),
    _train("sft", "chats, packed", "torch", TRL_SFT, "chats-packed"),
    _train("sft", "chats, packed (theirs padded)", "mlx", MLX_LM, "chats-packed", clip_norm=0.0),
    Row("reward", "reward model", "torch", TRL, "reward"),
    Row("dpo", "DPO, both with the reference computed beforehand", "torch", TRL, "dpo"),
    Row("dpo", "DPO, TRL's reference beside it (its default)", "torch", TRL, "dpo-live"),
    Row("dpo", "DPO, prompts of 400 tokens", "torch", TRL, "dpo", "long"),
    Row("dpo", "DPO (their reference beside it)", "mlx", MLX_LM_LORA, "dpo", clip_norm=0.0),
    Row("ppo", "PPO, 4 epochs", "torch", TRL_PPO, "ppo", clip_norm=0.0),
    Row("grpo", "GRPO", "torch", TRL, "grpo"),
    Row(
        "grpo",
        "GRPO, half of the groups without spread",
        "torch",
        OURS,
        "grpo-half",
        peer_what="grpo",
    ),
    Row("grpo", "GRPO, prompts of 400 tokens, 8 answers of 64: step", "torch", TRL, "grpo", "long"),
    Row(
        "grpo",
        "GRPO, prompts of 400 tokens, 8 answers of 64: update alone",
        "torch",
        TRL,
        "grpo",
        "long",
        seconds="update",
    ),
    Row("grpo", "GRPO with a reference", "mlx", MLX_LM_LORA, "grpo", clip_norm=0.0),
    Row(
        "grpo",
        "GRPO with a reference (theirs made to decode all rows at once)",
        "mlx",
        MLX_LM_LORA,
        "grpo-wide",
        clip_norm=0.0,
    ),
    _decode("generate", "64 rows equally long, greedy", "torch", TRANSFORMERS, "even"),
    _decode("generate", "64 rows equally long, greedy", "mlx", MLX_LM, "even"),
    _decode("generate", "256 prompts, geometric lengths", "torch", TRANSFORMERS, "geometric"),
    _decode("generate", "256 prompts, geometric lengths", "mlx", MLX_LM, "geometric"),
    *(
        _decode("chat", f"chat, one row, {dtype}", backend, peer, "chat", "smollm2", dtype)
        for backend, peer in (("torch", TRANSFORMERS), ("mlx", MLX_LM))
        for dtype in ("float32", "bfloat16")
    ),
    _memory("lora", "SFT with LoRA, 4,096 tokens per step", "torch", TRL_SFT, "lora", "smollm2"),
    _memory("lora", "SFT with LoRA, 4,096 tokens per step", "mlx", MLX_LM, "lora", "smollm2"),
    Row(
        "qlora",
        "SFT with LoRA on a 4-bit base, 1,024 tokens per step",
        "mlx",
        MLX_LM,
        "quantised",
        "quantised",
        steps=4,
        skipped=1,
    ),
    _memory("sums", "GRPO of smollm2.md", "torch", None, "sums", "smollm2"),
    _memory("sums", "GRPO of smollm2.md", "mlx", None, "sums", "smollm2"),
    _memory(
        "vocabulary",
        "SFT, 152,000 tokens of vocabulary, rows of 2,048",
        "torch",
        TRL_SFT,
        "vocabulary",
        "vocabulary",
    ),
    _memory(
        "vocabulary",
        "SFT, 152,000 tokens of vocabulary, rows of 2,048",
        "mlx",
        MLX_LM,
        "vocabulary",
        "vocabulary",
    ),
)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
