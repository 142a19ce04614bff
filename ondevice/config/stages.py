"""What the settings of all stages have, and those of `init` and `pretrain`: frozen dataclasses.
Standard library only. Further stages are in `finetuning` and `preference`.

A field's name is the flag's and the YAML key's name; the string under it is its help everywhere
(command line, forms). `check()` answers a value out of range with a `UserError` that names the
field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ondevice.common.errors import UserError
from ondevice.config.auto import AUTO, AutoBool, AutoFloat, AutoInt, auto, is_auto
from ondevice.config.effects import only, refuse_idle
from ondevice.config.hub import check_repo_id
from ondevice.config.lists import prompts_of, prompts_text
from ondevice.config.rows import RowsConfig
from ondevice.config.sizes import parse_memory

Family = Literal["llama", "mistral", "qwen2", "qwen3", "bert", "modernbert", "t5", "bart"]
RowsAtOnce = Literal["auto"] | int
"""How many rows the device works on at once: a number, or as many as suit the machine."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage has."""

    out: str = ""
    """Run folder. Empty: runs/<stage>-<date and time>."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; master weights stay float32. auto: bfloat16 on a GPU, float32 on a CPU."""
    seed: int = 0
    """Decides initial weights, the order of the data and every draw."""
    resume: bool = False
    """Go on from the newest complete checkpoint of this run."""
    memory: str = ""
    """Memory that the stage may take at most, such as 8GB. Empty: what this machine has left now,
    less a margin for other programs."""
    anyway: bool = False
    """Start although the plan says that memory or disk do not suffice."""
    keep_awake: bool = True
    """Keep the machine from falling asleep while the stage works (caffeinate on macOS, systemd-inhibit on
    Linux)."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Write the figures with another program's writer too, as training goes on. On this machine alone:
    wandb is offline unless WANDB_MODE says otherwise."""

    gives = "policy"  # what the next stages find under its name: a model that writes, a reward model, or ratings
    without_effect = dict[str, str]()  # fields of its bases that this stage has no use for, and why
    gone = dict[str, str]()  # fields of earlier versions, and what to give in their place

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range, or that has no effect
        beside the others.
        """
        self._at_least(0, "seed")
        parse_memory(self.memory)
        refuse_idle(self)

    def _at_least(self, low: float, *names: str) -> None:
        for name, value in self._given(*names):
            if value < low:
                raise UserError(f"{value} is too small", where=name, hint=f"give {low} or more")

    def _given(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Those of these settings that are not left at auto, with their values."""
        for name in names:
            if not is_auto(self, name):
                yield name, getattr(self, name)

    def _check_rows_at_once(self, name: str) -> None:
        for _, value in self._given(name):
            if value < 1:
                raise UserError(f"{value} is too small", where=name, hint="give auto, or 1 or more")

    def _above(self, low: float, *names: str) -> None:
        for name, value in self._given(*names):
            if not value > low:
                raise UserError(f"{value} is too small", where=name, hint=f"give more than {low}")

    def _between(self, low: float, high: float, *names: str) -> None:
        for name, value in self._given(*names):
            if not low <= value <= high:
                raise UserError(
                    f"{value} is out of range", where=name, hint=f"give {low} to {high}"
                )


def _measured_often(cfg: Any) -> bool:
    """Whether there are measurements before the end."""
    return bool(cfg.eval_every)


def _ends_in_time(cfg: Any) -> bool:
    """Whether the warm-up ends within the steps, as far as both are known."""
    if is_auto(cfg, "warmup_steps") or is_auto(cfg, "steps"):
        return True
    return bool(cfg.warmup_steps <= cfg.steps)


STEPS: tuple[Callable[[Any], bool], str, str] = (
    lambda cfg: is_auto(cfg, cfg.epochs_field),
    "how often the data is gone through says how many steps there are",
    "give one of the two",
)
"""When `steps` has an effect, for `only`."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RowsConfig, StageConfig):
    """What every stage that trains has: the optimizer, the schedule and the loop."""

    steps: AutoInt = only(AUTO, *STEPS)
    """Optimizer steps. auto: as many as epochs needs; 1,000 on the built-in corpus, which has no
    end."""
    epochs: AutoFloat = only(
        AUTO, lambda cfg: is_auto(cfg, "steps"), "steps says it", "give one of the two"
    )
    """Times that the data is gone through, in place of steps. auto: once."""
    continue_from: str = ""
    """A finished stage of the same kind, or its run (also --continue): its weights and its
    optimizer's state go on here for further steps, with a schedule of their own."""
    limit: int = 0
    """Rows read of each source of the data at most, the first ones; 0: all."""
    batch_size: AutoInt = auto()
    """Rows that one optimizer step learns from. auto: 16, and fewer of few rows, so that there are
    about 100 steps; of running text more short ones."""
    micro_batch: RowsAtOnce = "auto"
    """Rows whose gradient is computed at once; those of one step are added up. Fewer take less
    memory, and the result is the same within rounding. auto: as many as suit the machine. Halved
    where memory runs out.
    """
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit: AdamW whose moments take one byte a number, so that training all weights takes
    10 to 11 bytes a parameter in place of 16 to 19. muon: Muon for the blocks' matrices, AdamW for
    everything else."""
    shard: Literal["none", "state"] = "none"
    """state: of several processes (torchrun) each keeps the optimizer's state of some tensors, in
    place of all of it. The result is the same."""
    learning_rate: AutoFloat = auto()
    """Peak rate of AdamW. auto: what is published for the stage and the model's size, ten times
    that for an adapter."""
    muon_learning_rate: AutoFloat = only(
        AUTO,
        lambda cfg: cfg.optimizer == "muon",
        "the optimizer is not muon",
        "give --optimizer muon too",
    )
    """Peak rate of Muon. auto: 0.02 for random weights, for others less as learning_rate is less."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """Decoupled decay, on matrices only."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the rate falls after the warm-up; wsd: constant, then linear over the last part."""
    warmup_steps: AutoInt = only(
        AUTO,
        _ends_in_time,
        "so long a warm-up never ends in this run",
        "give no more than --steps",
    )
    """Steps over which the rate rises from 0. auto: 3 % of the steps of pretrain and sft, 10 % of
    those of the other stages."""
    decay_fraction: float = only(
        0.2, lambda cfg: cfg.schedule == "wsd", "the schedule is not wsd", "give --schedule wsd too"
    )
    """Part of the steps over which wsd decays."""
    final_lr_fraction: float = only(
        0.0,
        lambda cfg: (
            cfg.schedule != "constant" and not (cfg.schedule == "wsd" and cfg.decay_fraction == 0)
        ),
        "the rate stays constant",
        "give --schedule cosine, linear or wsd too",
    )
    """The rate at the end, as a part of the peak."""
    checkpointing: AutoBool = auto()
    """Recompute each block in the backward pass: less memory, a third more time. auto: where one
    row would not fit this machine's memory without."""
    compile: Literal["auto", "always", "never"] = "auto"
    """auto: compile the step on MLX and CUDA; always: on torch's CPU too, which needs a C++
    compiler.
    """
    eval_every: AutoInt = auto()
    """Steps between measurements on held-out data; 0: only at the end. auto: ten measurements."""
    eval_batches: int = 20
    """Batches of held-out data a measurement reads at most."""
    sample_every: int = 0
    """Steps between answers to the fixed prompts; 0: only at the end."""
    sample_prompts: str = ""
    """The fixed prompts, 20 at most: several with | between them, as a JSON list (["one", "two"]), or a
    file with one a line; one that ends in … is continued. Empty: the recipe's, else the first three of
    what is held out."""
    save_every: AutoInt = auto()
    """Steps between checkpoints; 0: only at the end and at a stop. auto: at every second
    measurement. A save measures nothing."""
    keep: int = 2
    """Newest checkpoints kept, beside the best one."""
    push_every: int = 0
    """Steps between pushes of a finished checkpoint to the Hugging Face Hub, from a process of its
    own; 0: none.
    """
    push_to: str = only(
        "", lambda cfg: cfg.push_every, "nothing is pushed", "give --push-every too"
    )
    """Repository that checkpoints are pushed to: NAME or OWNER/NAME; it is private."""
    patience: int = only(
        0, _measured_often, "it is measured at the end alone", "give --eval-every too"
    )
    """Early stopping: measurements that were not the best so far before the stage ends; 0: off."""
    take_best: bool = only(
        False, _measured_often, "it is measured at the end alone", "give --eval-every too"
    )
    """The stage's result is the best checkpoint on held-out data, not the last."""

    reads: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"sample_prompts": prompts_text}
    epochs_field = "epochs"  # the setting that says how often the data is gone through
    gone = {"accumulate": "give --batch-size, rows per step, and --micro-batch, rows at once"}

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._at_least(1, "steps", "batch_size", "eval_batches")
        self._above(0, self.epochs_field)
        self._check_rows_at_once("micro_batch")
        self._at_least(2, "keep")
        prompts_of(self.sample_prompts)
        self._at_least(
            0,
            "limit",
            "warmup_steps",
            "eval_every",
            "save_every",
            "sample_every",
            "push_every",
            "patience",
            "clip_norm",
            "weight_decay",
        )
        self._above(0, "learning_rate", "muon_learning_rate", "eps")
        self._between(0, 1, "beta1", "beta2", "decay_fraction", "final_lr_fraction")
        if self.push_every and not self.push_to:
            raise UserError("needs a repository", where="push_every", hint="give push_to: NAME")
        if self.push_to:
            check_repo_id(self.push_to, "push_to")


@dataclass(frozen=True, kw_only=True)
class InitConfig(RowsConfig, StageConfig):
    """Stage 0: a tokenizer and a model of random weights."""

    data: str = only(
        "builtin", lambda cfg: not cfg.tokenizer, "the tokenizer is ready: no text is read"
    )
    """Text that the tokenizer learns from: a file, a folder, builtin[:RECIPE], or several as for
    pretrain.
    """
    limit: int = only(0, lambda cfg: not cfg.tokenizer, "the tokenizer is ready: no text is read")
    """Documents read of each source at most, the first ones; 0: all."""
    tokenizer: str = ""
    """Folder of a ready tokenizer; empty: train one on the data."""
    vocab_size: int = only(1024, lambda cfg: not cfg.tokenizer, "the tokenizer is ready")
    """Tokens of the tokenizer that is trained, special ones included."""
    family: Family = "llama"
    """Architecture, in Hugging Face's names."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 384
    """Width of the feed-forward part."""
    num_hidden_layers: int = 4
    """Number of blocks."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int = 4
    """Key and value heads; fewer than the query heads is grouped-query attention."""
    head_dim: int = 0
    """Width of one head; 0: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 1024
    """Longest context in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Epsilon of the norms."""
    tie_word_embeddings: bool = False
    """Share the head's weights with the embeddings; bart always does."""
    sliding_window: int = 0
    """Window of attention in tokens (mistral; modernbert: of two layers in three, both sides
    together); 0: whole context."""
    init: Literal["fan_in", "normal"] = "fan_in"
    """fan_in: linear layers at 1/sqrt(inputs), outputs of blocks also divided by sqrt(2 layers).
    normal: GPT-2's.
    """
    initializer_range: float = 0.02
    """Standard deviation of the head, and of everything where init is normal."""
    embedding_std: float = only(
        0.5,
        lambda cfg: cfg.init == "fan_in" and not cfg.tie_word_embeddings and cfg.family != "bart",
        "the embeddings are as the head, or all is normal",
        "leave it out, or untie them and give --init fan_in",
    )
    """Standard deviation of the embeddings where init is fan_in and the head is untied."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._at_least(
            1,
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
        self._at_least(0, "limit", "head_dim", "sliding_window")
        self._at_least(300, "vocab_size")
        self._above(0, "rope_theta", "rms_norm_eps", "initializer_range", "embedding_std")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                "must divide num_attention_heads",
                where="num_key_value_heads",
                hint=f"{self.num_attention_heads} query heads were asked for",
            )
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise UserError(
                "must divide hidden_size", where="num_attention_heads", hint="or give head_dim"
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            raise UserError("heads must have an even width for rotary positions", where="head_dim")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Stage 1: a model learns from plain text: to predict the next token, or to guess what is
    hidden.
    """

    model: str = ""
    """The folder to start from: any decoder of the Llama kind, BERT, ModernBERT, T5 or BART."""
    data: str = "builtin"
    """Text: a file, a folder, builtin[:RECIPE], or several with their shares of the tokens:
    a.txt:2,b.jsonl:1.
    """
    validation: str = ""
    """Held-out text; empty: the last part of the data (builtin has its own)."""
    limit: AutoInt = 0
    """Documents read of each source of the data at most, the first ones; 0: all. auto: as many as
    the steps read once (steps, batch_size and sequence_length are then numbers): of a large data
    set no more is read, or fetched."""
    separator: str = ""
    """Text that ends a document, such as '<|endoftext|>': it becomes the end token, and is not
    learned as text.
    """
    sequence_length: AutoInt = auto()
    """Tokens of a row. auto: what 99 % of the documents need, up to 1,024 and to the model's
    context."""
    isolate_documents: bool = False
    """Keep attention inside each document of a row (an encoder always does)."""
    objective: Literal["auto", "causal", "masked", "spans", "infilling"] = "auto"
    """causal: predict the next token. masked: guess hidden tokens from both sides. spans: write
    what hidden spans held (T5). infilling: write the whole text, whose spans are hidden and
    sentences shuffled (BART). auto: what the architecture is made for."""
    mask_share: float = 0.0
    """Part of the tokens that is hidden. 0: the family's own, 0.15, or 0.3 for ModernBERT and BART.
    """
    mean_span: float = 3.0
    """Mean length of a hidden span in tokens (spans, infilling)."""
    whole_words: bool = False
    """Hide all tokens of a word together."""

    def check(self) -> None:
        super().check()
        if is_auto(self, "limit"):
            for name in ("steps", "batch_size", "sequence_length"):
                if is_auto(self, name):
                    raise UserError(
                        f"auto follows from {name}, which is auto too",
                        where="limit",
                        hint=f"give {name} a number, or limit",
                    )
        if self.separator and self.data.partition(":")[0] == "builtin" and "," not in self.data:
            raise UserError("the built-in corpus has none", where="separator", hint="leave it out")
        self._at_least(2, "sequence_length")
        self._between(0, 0.9, "mask_share")
        self._at_least(1, "mean_span")

    @property
    def most_tokens(self) -> int:
        """Tokens of each source of the data that are read at most; 0: as many as its rows have."""
        if not is_auto(self, "limit"):
            return 0
        return self.steps * self.batch_size * self.sequence_length + 1
