"""The settings of what is not a stage: the whole road, and the ways to use a model. Standard
library only.

As in `stages`: a field's name is the flag's, the string under it is its help everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.config.drawing import check_temperature
from ondevice.config.effects import Effect, only, refuse_idle
from ondevice.config.stages import RowsConfig
from ondevice.config.template_kwargs import WithTemplateKwargs, parse_template_kwargs


def _one_of(field: str, *values: str) -> Callable[[Any], bool]:
    """Holds where the field is one of the values, or (a tuple) has one of them."""

    def holds(cfg: Any) -> bool:
        value = getattr(cfg, field)
        if isinstance(value, str):
            return bool({value} & set(values))
        return bool(set(value) & set(values))

    return holds


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All stages of a recipe, one after the other, and the ladder that compares them."""

    recipe: str = "minute"
    """A recipe that comes with the program (minute, tiny) or a YAML file."""
    arch: Literal["decoder", "encoder", "seq2seq"] = "decoder"
    """Architecture that walks the road: decoder (it goes on with a text), encoder (it understands
    one) or seq2seq (it reads one and writes another)."""
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
    """Go on with the run in --out: complete stages are kept, the unfinished one goes on from its
    newest checkpoint.
    """
    redo: tuple[str, ...] = ()
    """Stages to run again although they are complete."""
    preference: Literal["", "ppo", "dpo"] = ""
    """The way through preference fine-tuning: a reward model and ppo, or dpo instead of both.
    Unset: the recipe's.
    """

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if self.seed is not None and self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        if (self.resume or self.redo) and not self.out:
            raise UserError(
                "needs the run folder",
                where="resume" if self.resume else "redo",
                hint="give --out FOLDER",
            )


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


_NOTHING_DRAWN = "nothing is drawn, what is likeliest is taken"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(UseConfig, WithTemplateKwargs):
    """What every use that writes text has. A program sends these to the worker with each request:
    settings that stand, of which some wait for others (top_p for a temperature). The commands
    refuse what has no effect."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more varied."""
    top_k: int = only(0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Draw among this many likeliest tokens only; 0: among all."""
    top_p: float = only(1.0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Draw among the likeliest tokens that together have this probability."""
    repetition_penalty: float | None = None
    """More than 1 makes tokens that stand in the prompt or the answer already less likely. Empty:
    as the model's generation_config.json says, else 1, which changes nothing."""
    seed: int = only(0, lambda cfg: cfg.draws, _NOTHING_DRAWN)
    """Decides every draw."""
    chat_template_kwargs: str = ""
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'.
    Empty: what it was told in the stage that made the model; '{}': nothing. A row's own column of
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
            raise UserError(
                "nothing is left to draw from",
                where="top_p",
                hint="temperature 0 takes the likeliest",
            )
        parse_template_kwargs(self.chat_template_kwargs)

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.temperature > 0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Continue a text, or answer one message."""

    prompt: str = ""
    """Text to continue. Empty: read it from stdin."""
    samples: int = only(
        1,
        lambda cfg: cfg.draws or cfg.beams > 1,
        "without draws all answers are the same",
        "leave it out, or give a temperature above 0",
    )
    """Answers to the prompt, each with draws of its own."""
    chat: bool = False
    """Send the prompt as a user's message through the chat template."""
    beams: int = 1
    """More than 1: search for the likeliest text with so many beams, as the model's
    generation_config.json asks; the best `samples` of them are shown. Nothing is drawn then:
    temperature, top_k, top_p and seed say nothing."""
    length_penalty: float | None = only(
        None,
        lambda cfg: cfg.beams > 1,
        "it is for a search with beams",
        "give --beams 4, or leave it out",
    )
    """Of a search: more favours long texts. A finished text's log-probability is divided by its
    length to this power. Empty: as the model's generation_config.json says, else 1."""

    inherited_effects = {
        "temperature": Effect(
            lambda cfg: cfg.beams == 1 or cfg.temperature == 0,
            "a search with beams draws nothing",
            "leave it out, or leave beams out",
        ),
        "chat_template_kwargs": Effect(
            lambda cfg: cfg.chat, "a text that is continued has no chat template", "give --chat too"
        ),
    }

    @property
    def draws(self) -> bool:
        return super().draws and self.beams == 1

    def check(self) -> None:
        super().check()
        self._between(1, float("inf"), "samples", "beams")
        if self.beams > 1 and self.samples > self.beams:
            raise UserError(
                f"{self.samples} are more than the beams",
                where="samples",
                hint=f"give 1 to {self.beams}",
            )
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SamplingConfig):
    """Talk with a model; an empty line or Ctrl-D ends it."""

    system: str = ""
    """Instructions that stand before the conversation."""
    save: str = ""
    """File that keeps the conversation, as a row that sft reads. One that is there already goes on.
    """

    def check(self) -> None:
        super().check()
        refuse_idle(self)


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
        refuse_idle(self)
        self._between(0, float("inf"), "limit")
        for name in ("other", "prompts"):
            if not getattr(self, name):
                raise UserError(
                    "is missing", where=name, hint="ondevice compare MODEL OTHER PROMPTS"
                )


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(UseConfig):
    """A model behind JSON lines on stdin and stdout, for programs. Its answers' settings come with
    each request.
    """


# tasks of `eval` whose data serves no other
BY_ITSELF = ("problems", "preference", "win", "classes")
TOGETHER = ("text", "instructions", "reasoning")
_PROBLEMS = (
    _one_of("tasks", "problems"),
    "it is about problems",
    "give --tasks problems too, or leave it out",
)
_PREFERENCE = (
    _one_of("tasks", "preference"),
    "it is about pairs",
    "give --tasks preference too, or leave it out",
)
_WIN = _one_of("tasks", "win"), "it is about a win rate", "give --tasks win too, or leave it out"


def _of_classes(cfg: Any) -> bool:
    # a classifier is measured by classes without naming them
    return not cfg.tasks or "classes" in cfg.tasks


_CLASSES = _of_classes, "it is for a classifier's rows (classes)"


def _draws_problems(cfg: Any) -> bool:
    return "problems" in cfg.tasks and bool(cfg.tries or cfg.data.startswith("gym:"))


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RowsConfig, UseConfig, WithTemplateKwargs):
    """Measure a model on held-out data."""

    data: str = "builtin"
    """Held-out text, chats, problems, pairs or prompts: a file, a folder,
    hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT], builtin[:RECIPE], for problems gym:NAME too."""
    tasks: tuple[
        Literal["text", "instructions", "reasoning", "problems", "preference", "win", "classes"],
        ...,
    ] = ()
    """text: bits per byte and perplexity; instructions: exact match by kind; reasoning: problems
    solved, greedily and in 8 tries (both of the built-in corpus); problems: those of your data,
    rows of question and answer; preference: how often the chosen response of a pair is preferred;
    win: how often the answers to your prompts beat those of another model; classes: a classifier's,
    rows of text and label. None named: what the model is for and the data allows."""
    limit: int = 0
    """Examples of each task at most; 0: all."""
    text: str = only("text", *_CLASSES)
    """Column of the text (classes)."""
    pair: str = only("", *_CLASSES)
    """Column of a second text that is read beside the first (classes). Empty: none."""
    label: str = only("label", *_CLASSES)
    """Column of the class (classes)."""
    answer: str = only("number", *_PROBLEMS)
    """Where an answer to a problem stands: number, hash (####), boxed, tag (<answer>), last_number,
    whole; any: as hash, boxed, tag or last_number."""
    shots: int = only(0, *_PROBLEMS)
    """The first so many problems are shown with their answers before each of the others."""
    tries: int = only(0, *_PROBLEMS)
    """Answers to each problem at temperature 1 beside the greedy one, for pass@k; 0: none."""
    max_new_tokens: int = only(
        256,
        _one_of("tasks", "problems", "win"),
        "no answer is written whose length it bounds",
        "give --tasks problems or win too, or leave it out",
    )
    """Longest answer to a problem or prompt, in tokens."""
    system: str = only("", *_PROBLEMS)
    """Instructions that stand before each problem."""
    reference: str = only("", *_PREFERENCE)
    """preference: the model from which a policy was tuned; with it the policy is judged by DPO's
    implicit reward.
    """
    against: str = only("", *_WIN)
    """win: the other model."""
    judge: str = only("", *_WIN)
    """win: the reward model that says which answer is better."""
    seed: int = only(
        0,
        _draws_problems,
        "nothing is drawn",
        "give --tasks problems and --tries too, or leave it out",
    )
    """Decides the draws of `tries`, and a gym's problems."""
    chat_template_kwargs: str = only(
        "",
        lambda cfg: not cfg.tasks or bool(set(cfg.tasks) - {"text", "classes"}),
        "text and classes are measured without a chat template",
        "leave it out, or name other tasks",
    )
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'.
    Empty: what it was told in the stage that made the model; '{}': nothing. A row's own column of
    this name wins."""

    def check(self) -> None:
        super().check()
        self.check_rows()
        self._between(0, float("inf"), "limit", "shots", "tries", "seed")
        self._between(1, float("inf"), "max_new_tokens")
        parse_template_kwargs(self.chat_template_kwargs)
        if len(self.tasks) > 1 and set(BY_ITSELF) & set(self.tasks):
            raise UserError(
                "problems, preference, win and classes are measured by themselves",
                where="tasks",
                hint="name one task",
            )
        refuse_idle(self)


_LABELLED = (
    _one_of("form", "auto", "label"),
    "it names a column of rows of the form label",
    "give --form label, or leave it out",
)
_THROUGH_TEMPLATE = (
    _one_of("form", "auto", "chat", "preference", "judged", "prompt"),
    "text and label are read without a chat template",
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How fast this machine is in each stage: the standard cases, on random weights and data."""

    sizes: tuple[str, ...] = ("10M", "135M")
    """Models: 10M, 135M (the shape of SmolLM2-135M)."""
    seconds: float = 170.0
    """About how long all cases take together; none is left out, so that a slow machine takes longer."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto takes MLX on Apple Silicon, else torch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU, float32 on a CPU."""

    def check(self) -> None:
        """Raises UserError naming the field that is out of range."""
        known = ("10M", "135M")
        if not self.sizes or set(self.sizes) - set(known):
            raise UserError(
                f"{', '.join(self.sizes) or 'nothing'} is not a size of the benchmark",
                where="sizes",
                hint=f"known: {', '.join(known)}",
            )
        if not self.seconds > 0:
            raise UserError(
                f"{self.seconds:g} is too small", where="seconds", hint="give more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig, WithTemplateKwargs):
    """Data as a model will see it: examples with what is learned of them marked, and counts."""

    action: Literal["show"]
    """show: a few examples, and how many rows can be used."""
    data: str
    """A file, a folder, or hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]."""
    model: str = ""
    """The model that is to learn from it: its tokenizer and chat template decide what it sees."""
    validation: str = ""
    """What a stage is to measure on: rows that are in it are counted apart, as no stage learns from
    them. Empty: none are."""
    form: Literal["auto", "text", "label", "chat", "preference", "judged", "prompt"] = "auto"
    """What the rows are to be: text (pretrain), label (classify), chat (sft), preference (reward,
    dpo), judged (dpo with loss_type kto) or prompt (grpo, ppo). auto: what the first row of a known
    form is; for an encoder or a classifier text with a label is label."""
    text: str = only("text", *_LABELLED)
    """Column of the text (label)."""
    pair: str = only("", *_LABELLED)
    """Column of a second text that is read beside the first (label). Empty: none."""
    label: str = only("label", *_LABELLED)
    """Column of the class (label)."""
    examples: int = 3
    """Examples that are shown."""
    limit: int = 10_000
    """Rows that are counted at most; 0: all."""
    sequence_length: int = only(0, lambda cfg: cfg.form != "prompt", "prompts are not cut")
    """Tokens of a row, beyond which it is cut; 0: what the stage has by default."""
    chat_template: str = only("", *_THROUGH_TEMPLATE)
    """Name of a template for a model that has none: chatml, plain or bare."""
    separator: str = only(
        "",
        _one_of("form", "auto", "text"),
        "it ends documents of text",
        "leave it out, or give --form text",
    )
    """Text that ends a document, such as '<|endoftext|>': it becomes the end token, and is not
    learned as text.
    """
    chat_template_kwargs: str = only("", *_THROUGH_TEMPLATE)
    """What the chat template is told beside the messages, as JSON: '{"enable_thinking": false}'. A
    row's own column of this name wins."""
    color: Literal["auto", "always", "never"] = "auto"
    """Mark what is learned by colour. auto: on a terminal, unless NO_COLOR is set. Without colours:
    by brackets.
    """

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.data:
            raise UserError(
                "no data was named", where="data", hint="ondevice data show FILE --model MODEL"
            )
        if not self.model:
            raise UserError(
                "no model was named",
                where="model",
                hint="give the model that is to learn from this data",
            )
        parse_template_kwargs(self.chat_template_kwargs)
        self.check_rows()
        for name in ("examples", "limit", "sequence_length"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{getattr(self, name)} is too small", where=name, hint="give 0 or more"
                )
        refuse_idle(self)


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The runs in a folder: what they have done, their reports, going on with one."""

    action: Literal["list", "report", "resume"] = "list"
    """list: every run with its stages; report: print a run's ladder; resume: go on with a run."""
    run: str = only(
        "",
        lambda cfg: cfg.action != "list",
        "all runs are listed",
        "leave it out, or give report or resume before it",
    )
    """Name or path of the run (report, resume)."""
    folder: str = "runs"
    """Where the runs are."""

    def check(self) -> None:
        """Raises UserError where the run is missing, or named without need."""
        refuse_idle(self)
        if self.action != "list" and not self.run:
            raise UserError(
                "no run was named", where="run", hint=f"ondevice runs {self.action} RUN"
            )


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Say which of two to four answers is better, one prompt after the other. Every vote is saved
    at once.
    """

    ratings: str
    """File of ratings, or a run folder that holds a ratings.db."""
    rater: str = ""
    """Your name, so that several people can rate in one file. Empty: the login name."""
    batch: str = ""
    """Only what was queued under this name. Empty: everything."""
    repeat_share: float = 0.1
    """How often an earlier pair comes again, its sides swapped, as a share of your votes: it shows
    whether you agree with yourself. 0: never."""
    seed: int = only(
        0,
        lambda cfg: cfg.repeat_share > 0,
        "no pair comes again",
        "leave it out, or give a repeat-share",
    )
    """Decides when a pair comes again, and which."""

    def check(self) -> None:
        """Raises UserError naming the first field that is out of range."""
        if not self.ratings:
            raise UserError(
                "no ratings were named", where="ratings", hint="give a ratings.db or a run folder"
            )
        if not 0 <= self.repeat_share <= 0.5:
            raise UserError(
                f"{self.repeat_share} is out of range", where="repeat_share", hint="give 0 to 0.5"
            )
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        refuse_idle(self)


def _for(*actions: str) -> tuple[Callable[[Any], bool], str]:
    return _one_of("action", *actions), f"it is for {' and '.join(actions)}"


@dataclass(frozen=True, kw_only=True)
class RatingsConfig:
    """Ratings in and out of files, and what they are worth."""

    action: Literal["stats", "export", "import", "repair"]
    """stats: agreement, biases, strengths; export: votes to a file; import: pairs or votes from
    one; repair: a damaged database is made anew of what can be read."""
    ratings: str
    """File of ratings, or a run folder that holds a ratings.db. An import makes it where it is
    missing.
    """
    file: str = only("", *_for("export", "import"))
    """JSON lines to write (export; empty: stdout), or data to read (import)."""
    form: Literal["preference", "kto", "votes"] = only("preference", *_for("export"))
    """What to export. preference: prompt, chosen, rejected; kto: prompt, completion, label; votes:
    everything.
    """
    batch: str = only("", *_for("stats", "export", "import"))
    """Only what was queued under this name; for an import the name to queue under (empty: the
    file's).
    """
    raters: tuple[str, ...] = only(
        (),
        lambda cfg: cfg.action != "repair" and not (cfg.action == "import" and cfg.gold),
        "a repair keeps all raters, and gold has none",
    )
    """Count these raters only (separated by commas). For an import: who gave votes that come
    without a name.
    """
    gold: bool = only(False, *_for("import"))
    """Imported pairs whose votes all name the same answer are gold: the better answer is known.
    They come now and then among the others to measure raters, and nothing is learned from them."""
    simulated: bool = only(True, *_for("stats", "export"))
    """Count raters that are programs (their names begin with simulated:) too."""
    with_raters: bool = only(
        False,
        lambda cfg: cfg.action == "export" and cfg.form != "votes",
        "it is for exported pairs; votes name their raters anyway",
    )
    """Exported pairs say their item, raters, strength and sources too."""
    seed: int = only(0, *_for("stats", "import"))
    """Decides the sides of imported pairs, and the intervals of stats."""

    def check(self) -> None:
        """Raises UserError naming the first field that is missing or out of range."""
        if not self.ratings:
            raise UserError(
                "no ratings were named", where="ratings", hint="give a ratings.db or a run folder"
            )
        if self.action == "import" and not self.file:
            raise UserError(
                "nothing to import was named", where="file", hint="ondevice ratings import DB FILE"
            )
        if self.seed < 0:
            raise UserError(f"{self.seed} is too small", where="seed", hint="give 0 or more")
        refuse_idle(self)
