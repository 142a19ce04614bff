"""The settings of what is not a stage: the whole road, and the ways to use a model. Standard library only.

As in `stages`: a field's name is the flag's, the string under it is its help everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ondevice.config.drawing import check_temperature
from ondevice.config.stages import RowsConfig
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All stages of a recipe, one after the other, and the ladder that compares them."""

    recipe: str = "minute"
    """A recipe that comes with the program (minute, tiny) or a YAML file."""
    arch: Literal["decoder", "encoder", "seq2seq"] = "decoder"
    """Architecture that walks the road: decoder (it goes on with a text), encoder (it understands one) or seq2seq (it
    reads one and writes another)."""
    out: str = ""
    """Run folder. Empty: runs/<recipe>-<date and time>."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; master weights stay float32. auto: bfloat16 on a GPU, float32 on a CPU."""
    seed: int | None = None
    """Decides initial weights, the order of the data and every draw. Unset: the recipe's."""
    resume: bool = False
    """Go on with the run in --out: complete stages are kept, the unfinished one goes on from its newest checkpoint."""
    redo: tuple[str, ...] = ()
    """Stages to run again although they are complete."""
    preference: Literal["", "ppo", "dpo"] = ""
    """The way through preference fine-tuning: a reward model and ppo, or dpo instead of both. Unset: the recipe's."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if self.seed is not None and self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        if (self.resume or self.redo) and not self.out:
            raise UserError("needs the run folder", where="resume" if self.resume else "redo", hint="give --out FOLDER")


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """What every use of a model has."""

    model: str
    """Folder of a model, or a run folder: its last stage's model."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU, float32 on a CPU."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.model:
            raise UserError("no model was named", where="model", hint="give the folder of a model")

    def _between(self, low: float, high: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"give {low} or more" if high == float("inf") else f"give {low} to {high}"
                raise UserError(f"{value} is out of range", where=name, hint=limit)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(UseConfig):
    """What every use that writes text has."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more varied."""
    top_k: int = 0
    """Draw among this many likeliest tokens only; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    repetition_penalty: float | None = None
    """More than 1 makes tokens that stand in the prompt or the answer already less likely. Empty: as the model's
    generation_config.json says, else 1, which changes nothing."""
    seed: int = 0
    """Decides every draw."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'. A row's own column of
    this name wins."""

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "max_new_tokens")
        self._between(0, float("inf"), "top_k", "seed")
        check_temperature(self.temperature)
        if self.repetition_penalty is not None:
            self._between(0.01, 100, "repetition_penalty")
        self._between(0, 1, "top_p")
        if self.top_p == 0:
            raise UserError("nothing is left to draw from", where="top_p", hint="temperature 0 takes the likeliest")
        parse_template_kwargs(self.chat_template_kwargs)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Continue a text, or answer one message."""

    prompt: str = ""
    """Text to continue. Empty: read it from stdin."""
    samples: int = 1
    """Answers to the prompt, each with draws of its own."""
    chat: bool = False
    """Send the prompt as a user's message through the chat template."""
    beams: int = 1
    """More than 1: search for the likeliest text with so many beams, as the model's generation_config.json asks; the
    best `samples` of them are shown. Nothing is drawn then: temperature, top_k, top_p and seed say nothing."""
    length_penalty: float | None = None
    """Of a search: more favours long texts. A finished text's log-probability is divided by its length to this power.
    Empty: as the model's generation_config.json says, else 1."""

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "samples", "beams")
        if self.beams > 1 and self.samples > self.beams:
            raise UserError(f"{self.samples} are more than the beams", where="samples", hint=f"give 1 to {self.beams}")
        drawn = [name for name in ("temperature", "top_k", "top_p", "seed")
                 if getattr(self, name) not in (getattr(SamplingConfig, name), 0)]
        if self.beams > 1 and drawn:
            raise UserError("means nothing for a search with beams, which draws nothing", where=drawn[0],
                            hint="leave it out, or leave beams out")
        if self.beams == 1 and self.length_penalty is not None:
            raise UserError("is for a search with beams", where="length_penalty",
                            hint="give --beams 4, or leave it out")
        if self.chat_template_kwargs and not self.chat:
            raise UserError("a text that is continued has no chat template", where="chat_template_kwargs",
                            hint="give --chat too")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingConfig):
    """Talk with a model; an empty line or Ctrl-D ends it."""

    system: str = ""
    """Instructions that stand before the conversation."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(UseConfig):
    """What every use that reads one text has."""

    text: str = ""
    """The text. Empty: read it from stdin."""
    top: int = 5
    """Likeliest answers shown."""

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "top")


@dataclass(frozen=True, kw_only=True)
class LabelConfig(TextConfig):
    """Tell which class a text is of."""

    pair: str = ""
    """A second text that is read beside it, for a classifier of two texts. Empty: none."""
    top: int = 5
    """Likeliest classes shown."""


@dataclass(frozen=True, kw_only=True)
class FillConfig(TextConfig):
    """Guess what is hidden in a text."""

    text: str = ""
    """The text, with [MASK] where something is to be guessed. Empty: read it from stdin."""
    top: int = 5
    """Likeliest tokens (an encoder-decoder: pieces of text) shown for each."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(RowsConfig, SamplingConfig):
    """The same prompts answered by two models, side by side."""

    other: str
    """Folder of the second model, or a run folder."""
    prompts: str
    """What both are asked: a file of prompts, questions or chats."""
    limit: int = 0
    """Prompts at most; 0: all."""
    temperature: float = 0.0
    """0 always takes the likeliest token; higher is more varied."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._between(0, float("inf"), "limit")
        for name in ("other", "prompts"):
            if not getattr(self, name):
                raise UserError("is missing", where=name, hint="ondevice compare MODEL OTHER PROMPTS")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(UseConfig):
    """A model behind JSON lines on stdin and stdout, for programs. Its answers' settings come with each request."""


BY_ITSELF = ("problems", "preference", "win", "classes")  # tasks of `eval` whose data serves no other


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RowsConfig, UseConfig):
    """Measure a model on held-out data."""

    data: str = "builtin"
    """Held-out text, chats, problems, pairs or prompts: a file, a folder,
    hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT], builtin[:RECIPE], for problems gym:NAME too."""
    tasks: tuple[Literal["text", "instructions", "reasoning", "problems", "preference", "win", "classes"], ...] = ()
    """text: bits per byte and perplexity; instructions: exact match by kind; reasoning: problems solved, greedily and
    in 8 tries (both of the built-in corpus); problems: those of your data, rows of question and answer; preference: how
    often the chosen response of a pair is preferred; win: how often the answers to your prompts beat those of another
    model; classes: a classifier's, rows of text and label. None named: what the model is for and the data allows."""
    limit: int = 0
    """Examples of each task at most; 0: all."""
    text: str = "text"
    """Column of the text (classes)."""
    pair: str = ""
    """Column of a second text that is read beside the first (classes). Empty: none."""
    label: str = "label"
    """Column of the class (classes)."""
    answer: str = "number"
    """Where an answer to a problem stands: number, hash (####), boxed, tag (<answer>), last_number, whole; any: as
    hash, boxed, tag or last_number."""
    shots: int = 0
    """The first so many problems are shown with their answers before each of the others."""
    tries: int = 0
    """Answers to each problem at temperature 1 beside the greedy one, for pass@k; 0: none."""
    max_new_tokens: int = 256
    """Longest answer to a problem or prompt, in tokens."""
    system: str = ""
    """Instructions that stand before each problem."""
    reference: str = ""
    """preference: the model from which a policy was tuned; with it the policy is judged by DPO's implicit reward."""
    against: str = ""
    """win: the other model."""
    judge: str = ""
    """win: the reward model that says which answer is better."""
    seed: int = 0
    """Decides the draws of `tries`, and a gym's problems."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'. A row's own column of
    this name wins."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._between(0, float("inf"), "limit", "shots", "tries", "seed")
        self._between(1, float("inf"), "max_new_tokens")
        parse_template_kwargs(self.chat_template_kwargs)
        if self.chat_template_kwargs and set(self.tasks) & {"text", "classes"}:
            raise UserError("text and classes are measured without a chat template", where="chat_template_kwargs",
                            hint="leave it out, or name other tasks")
        if len(self.tasks) > 1 and set(BY_ITSELF) & set(self.tasks):
            raise UserError("problems, preference, win and classes are measured by themselves", where="tasks",
                            hint="name one task")


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """Data as a model will see it: examples with what is learned of them marked, and counts."""

    action: Literal["show"]
    """show: a few examples, and how many rows can be used."""
    data: str
    """A file, a folder, or hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]."""
    model: str = ""
    """The model that is to learn from it: its tokenizer and chat template decide what it sees."""
    form: Literal["auto", "text", "label", "chat", "preference", "judged", "prompt"] = "auto"
    """What the rows are to be: text (pretrain), label (classify), chat (sft), preference (reward, dpo), judged (dpo
    with loss_type kto) or prompt (grpo, ppo). auto: what the first row of a known form is; for an encoder or a
    classifier text with a label is label."""
    text: str = "text"
    """Column of the text (label)."""
    pair: str = ""
    """Column of a second text that is read beside the first (label). Empty: none."""
    label: str = "label"
    """Column of the class (label)."""
    examples: int = 3
    """Examples that are shown."""
    limit: int = 10_000
    """Rows that are counted at most; 0: all."""
    sequence_length: int = 0
    """Tokens of a row, beyond which it is cut; 0: what the stage has by default."""
    chat_template: str = ""
    """Name of a template for a model that has none: chatml, plain or bare."""
    separator: str = ""
    """Text that ends a document, such as '<|endoftext|>': it becomes the end token, and is not learned as text."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'. A row's own column of
    this name wins."""
    color: Literal["auto", "always", "never"] = "auto"
    """Mark what is learned by colour. auto: on a terminal, unless NO_COLOR is set. Without colours: by brackets."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.data:
            raise UserError("no data was named", where="data", hint="ondevice data show FILE --model MODEL")
        if not self.model:
            raise UserError("no model was named", where="model", hint="give the model that is to learn from this data")
        parse_template_kwargs(self.chat_template_kwargs)
        self.check_rows()
        for name in ("examples", "limit", "sequence_length"):
            if getattr(self, name) < 0:
                raise UserError(f"{getattr(self, name)} is too small", where=name, hint="give 0 or more")


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The runs in a folder: what they have done, their reports, going on with one."""

    action: Literal["list", "report", "resume"] = "list"
    """list: every run with its stages; report: print a run's ladder; resume: go on with a run."""
    run: str = ""
    """Name or path of the run (report, resume)."""
    folder: str = "runs"
    """Where the runs are."""

    def check(self) -> None:
        """Raises UserError where the run is missing."""
        if self.action != "list" and not self.run:
            raise UserError("no run was named", where="run", hint=f"ondevice runs {self.action} RUN")


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Say which of two to four answers is better, one prompt after the other. Every vote is saved at once."""

    ratings: str
    """File of ratings, or a run folder that holds a ratings.db."""
    rater: str = ""
    """Your name, so that several people can rate in one file. Empty: the login name."""
    batch: str = ""
    """Only what was queued under this name. Empty: everything."""
    repeat_share: float = 0.1
    """How often an earlier pair comes again, its sides swapped, as a share of your votes: it shows whether you agree
    with yourself. 0: never."""
    seed: int = 0
    """Decides when a pair comes again, and which."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.ratings:
            raise UserError("no ratings were named", where="ratings", hint="give a ratings.db or a run folder")
        if not 0 <= self.repeat_share <= 0.5:
            raise UserError(f"{self.repeat_share} is out of range", where="repeat_share", hint="give 0 to 0.5")
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")


@dataclass(frozen=True, kw_only=True)
class RatingsConfig:
    """Ratings in and out of files, and what they are worth."""

    action: Literal["stats", "export", "import", "repair"]
    """stats: agreement, biases, strengths; export: votes to a file; import: pairs or votes from one; repair: a damaged
    database is made anew of what can be read."""
    ratings: str
    """File of ratings, or a run folder that holds a ratings.db. An import makes it where it is missing."""
    file: str = ""
    """JSON lines to write (export; empty: stdout), or data to read (import)."""
    form: Literal["preference", "kto", "votes"] = "preference"
    """What to export. preference: prompt, chosen, rejected; kto: prompt, completion, label; votes: everything."""
    batch: str = ""
    """Only what was queued under this name; for an import the name to queue under (empty: the file's)."""
    raters: tuple[str, ...] = ()
    """Count these raters only (separated by commas). For an import: who gave votes that come without a name."""
    gold: bool = False
    """Imported pairs with one vote each are gold: the better answer is known. They come now and then among the others
    to measure raters, and nothing is learned from them."""
    simulated: bool = True
    """Count raters that are programs (their names begin with simulated:) too."""
    with_raters: bool = False
    """Exported pairs say their item, raters, strength and sources too."""
    seed: int = 0
    """Decides the sides of imported pairs, and the intervals of stats."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.ratings:
            raise UserError("no ratings were named", where="ratings", hint="give a ratings.db or a run folder")
        if self.action == "import" and not self.file:
            raise UserError("nothing to import was named", where="file", hint="ondevice ratings import DB FILE")
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
