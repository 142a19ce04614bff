"""The table of verbs: each command of `ondevice`, its config dataclass and its function of the Python
API. Names only, so that to read the table imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One command. `function` is the Python API's, `positional` fields need no flag, `render` words
    a result.
    """

    name: str
    group: str
    help: str
    config: str
    positional: tuple[str, ...] = ()
    function: str = ""
    sets: bool = True
    recipe: bool = False
    json: bool = True
    render: str = ""
    several: bool = False  # whether processes that a launcher starts do it together


_RUNS = "ondevice.config.runs"
_STAGES = "ondevice.config.stages"
_FINETUNING = "ondevice.config.finetuning"
_PREFERENCE = "ondevice.config.preference"
_USE = "ondevice.config.use"
_EVALUATION = "ondevice.config.evaluation"
_RATINGS = "ondevice.config.ratings"
_ROUNDS = "ondevice.config.rounds"
_DATA = "ondevice.config.data"
_ASKING = "ondevice.config.asking"
_BENCHMARK = "ondevice.config.benchmark"
_HUB = "ondevice.config.hub"
_TABLE = (
    Verb(
        "run",
        "Train",
        "all stages of a recipe, from random weights on",
        f"{_RUNS}:RunConfig",
        ("recipe",),
        "run",
    ),
    Verb(
        "init",
        "Train",
        "a tokenizer and a model of random weights",
        f"{_STAGES}:InitConfig",
        ("data",),
        "init",
        recipe=True,
    ),
    Verb(
        "pretrain",
        "Train",
        "learning from plain text: the next token, or what is hidden",
        f"{_STAGES}:PretrainConfig",
        ("model", "data"),
        "pretrain",
        recipe=True,
    ),
    Verb(
        "sft",
        "Train",
        "instruction tuning on chats",
        f"{_FINETUNING}:SFTConfig",
        ("model", "data"),
        "sft",
        recipe=True,
    ),
    Verb(
        "classify",
        "Train",
        "telling texts apart: one class a text",
        f"{_FINETUNING}:ClassifyConfig",
        ("model", "data"),
        "classify",
        recipe=True,
    ),
    Verb(
        "sample",
        "Train",
        "several responses to each prompt, to be rated",
        f"{_PREFERENCE}:SampleConfig",
        ("model", "data"),
        "sample",
        recipe=True,
    ),
    Verb(
        "reward",
        "Train",
        "a reward model from rated pairs",
        f"{_PREFERENCE}:RewardConfig",
        ("model", "data"),
        "reward",
        recipe=True,
    ),
    Verb(
        "ppo",
        "Train",
        "preference tuning by a reward model",
        f"{_PREFERENCE}:PPOConfig",
        ("model", "reward_model"),
        "ppo",
        recipe=True,
    ),
    Verb(
        "dpo",
        "Train",
        "preference tuning on rated pairs directly",
        f"{_PREFERENCE}:DPOConfig",
        ("model", "data"),
        "dpo",
        recipe=True,
    ),
    Verb(
        "grpo",
        "Train",
        "reasoning from verifiable rewards",
        f"{_PREFERENCE}:GRPOConfig",
        ("model", "data"),
        "grpo",
        recipe=True,
    ),
    Verb("chat", "Use", "talk with a model", f"{_USE}:ChatConfig", ("model",), "chat", json=False),
    Verb(
        "generate",
        "Use",
        "continue a text or answer one message",
        f"{_USE}:GenerateConfig",
        ("model", "prompt"),
        "generate",
    ),
    Verb(
        "fill",
        "Use",
        'guess what is hidden in a text: "The [MASK] bird"',
        f"{_USE}:FillConfig",
        ("model", "text"),
        "fill",
        sets=False,
        render="ondevice.inference.fill_mask:render",
    ),
    Verb(
        "label",
        "Use",
        "tell which class a text is of",
        f"{_USE}:LabelConfig",
        ("model", "text"),
        "label",
        sets=False,
        render="ondevice.inference.label:render",
    ),
    Verb(
        "compare",
        "Use",
        "the same prompts answered by two models, side by side",
        f"{_USE}:CompareConfig",
        ("model", "other", "prompts"),
        "compare",
        sets=False,
        render="ondevice.inference.side_by_side:render",
    ),
    Verb(
        "worker",
        "Use",
        "a model behind JSON lines on stdin and stdout, for programs",
        f"{_USE}:WorkerConfig",
        ("model",),
        "serve",
        sets=False,
        json=False,
    ),
    Verb(
        "eval",
        "Use",
        "measure a model on held-out data",
        f"{_EVALUATION}:EvalConfig",
        ("model", "data"),
        "evaluate",
        several=True,
    ),
    Verb(
        "rate",
        "Prefer",
        "say which of two answers is better",
        f"{_RATINGS}:RateConfig",
        ("ratings",),
        "rate",
        json=False,
        render="ondevice.preferences.terminal:render",
    ),
    Verb(
        "rounds",
        "Prefer",
        "rate while the model learns: a new version after every so many votes",
        f"{_ROUNDS}:RoundsConfig",
        ("run",),
        "rounds",
        sets=False,
        render="ondevice.rating_rounds.standing:render",
    ),
    Verb(
        "ratings",
        "Prefer",
        "what the votes are worth; ratings export|import DB FILE, repair DB",
        f"{_RATINGS}:RatingsConfig",
        ("action", "ratings", "file"),
        "manage_ratings",
        render="ondevice.preferences.import_export:render",
    ),
    Verb(
        "push",
        "Share",
        "send a model, a run or its ratings to the Hugging Face Hub",
        f"{_HUB}:PushConfig",
        ("model", "repo_id"),
        "push",
        sets=False,
        render="ondevice.publishing.push:render",
    ),
    Verb(
        "pull",
        "Share",
        "get a model or a data set from the Hub, verified",
        f"{_HUB}:PullConfig",
        ("repo_id",),
        "pull",
        sets=False,
        render="ondevice.hub.pull:render",
    ),
    Verb(
        "export",
        "Share",
        "write a model for llama.cpp, Ollama, mlx-lm or transformers, verified",
        f"{_HUB}:ExportConfig",
        ("model",),
        "export",
        sets=False,
        render="ondevice.exports.export:render",
    ),
    Verb(
        "plan",
        "Look",
        "what a recipe or a stage takes before it runs: plan RECIPE, plan STAGE MODEL DATA",
        f"{_RUNS}:RunConfig",
        ("recipe",),
        "plan",
        sets=False,
        render="ondevice.planning.report:render",
    ),
    Verb(
        "data",
        "Look",
        "data show FILE [--model MODEL], data ask FOLDER --model MODEL, data review FILE",
        f"{_DATA}:DataConfig",
        ("action", "data"),
        "show_data",
        sets=False,
    ),
    Verb(
        "runs",
        "Look",
        "list runs; runs report|resume|rm|restore|note|tag|rename|diff|export RUN, empty-trash",
        f"{_RUNS}:RunsConfig",
        ("action", "run", "also"),
        sets=False,
    ),
    Verb(
        "bench",
        "Look",
        "how fast this machine is in each stage, as a block to paste",
        f"{_BENCHMARK}:BenchConfig",
        (),
        "bench",
        sets=False,
        render="ondevice.benchmark.standard:render",
    ),
    Verb(
        "doctor",
        "Look",
        "what this machine can do, and what would be chosen",
        "",
        (),
        "doctor",
        sets=False,
        render="ondevice.planning.outlook:render",
    ),
)
VERBS = {verb.name: verb for verb in _TABLE}
ACTIONS = {
    ("data", "ask"): Verb(
        "data",
        "Look",
        "questions about documents and their answers, written by a model: rows for sft",
        f"{_ASKING}:AskConfig",
        ("action", "data"),
        "ask",
        sets=False,
        render="ondevice.inference.ask_documents:render",
    ),
    ("data", "review"): Verb(
        "data",
        "Look",
        "keep or drop rows that a model wrote, one key each",
        f"{_ASKING}:ReviewConfig",
        ("action", "data"),
        "review",
        sets=False,
        render="ondevice.preferences.review_terminal:render",
    ),
}
"""Actions of a verb that have settings of their own: by its name and its first word."""
_NEEDED = ("model", "reward_model", "other", "prompts")


def usage(verb: Verb) -> str:
    """A stage and what uses a model need one; every other word may be left out."""
    words = ["ondevice", verb.name]
    for word in verb.positional:
        if word in _NEEDED:
            words.append(word.upper())
        else:
            words.append(f"[{word.upper()}]")
    return " ".join(words)
