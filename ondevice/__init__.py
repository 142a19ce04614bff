"""ondevice: every stage of a language model's life, on the machine in front of you.

    import ondevice as od

    base = od.init(data="book.txt", out="runs/mine")
    base = od.pretrain(base, "book.txt", out="runs/mine", epochs=4)
    model = od.sft(base, "chats.jsonl", out="runs/mine")
    print(od.generate(model=model, prompt="Once upon a time", max_new_tokens=40)[0])

Fields are those of the command line and of recipes (`ondevice.config`). Stages return the folder of
the model that they made, an ordinary Hugging Face folder. What the input is at fault for raises
`od.UserError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ondevice.common.errors import UserError

if TYPE_CHECKING:
    from ondevice.config.asking import AskConfig, ReviewConfig
    from ondevice.config.benchmark import BenchConfig
    from ondevice.config.data import DataConfig
    from ondevice.config.evaluation import EvalConfig
    from ondevice.config.finetuning import ClassifyConfig, SFTConfig
    from ondevice.config.hub import ExportConfig, PullConfig, PushConfig
    from ondevice.config.preference import (
        DPOConfig,
        GRPOConfig,
        PPOConfig,
        RewardConfig,
        SampleConfig,
    )
    from ondevice.config.ratings import RateConfig, RatingsConfig
    from ondevice.config.rounds import RoundsConfig
    from ondevice.config.runs import RunConfig
    from ondevice.config.stages import InitConfig, PretrainConfig, StageConfig
    from ondevice.config.use import (
        ChatConfig,
        CompareConfig,
        FillConfig,
        GenerateConfig,
        LabelConfig,
        WorkerConfig,
    )
    from ondevice.publishing.push import Tell

__all__ = [
    "UserError",
    "batches",
    "chat",
    "classify",
    "compare",
    "diff_runs",
    "doctor",
    "dpo",
    "empty_trash",
    "evaluate",
    "export",
    "export_run",
    "fill",
    "generate",
    "grpo",
    "init",
    "label",
    "list_runs",
    "manage_ratings",
    "merge",
    "note_run",
    "plan",
    "ppo",
    "pretrain",
    "pull",
    "push",
    "quantize",
    "rate",
    "remove_runs",
    "rename_run",
    "restore_run",
    "reward",
    "rounds",
    "run",
    "sample",
    "serve",
    "sft",
    "show_data",
    "tag_run",
]


def run(
    recipe: str | Path = "minute",
    *,
    cfg: RunConfig | None = None,
    sets: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """All stages of a recipe (fields of `RunConfig`); `sets` are changes of the recipe such as
    "sft.steps=5". Returns the run folder. See `ondevice.stages.pipeline.run`."""
    from ondevice.config.runs import RunConfig
    from ondevice.stages.pipeline import run as function

    return function(_made(RunConfig, {"recipe": str(recipe), **fields}, cfg), sets)


def init(data: str = "builtin", *, cfg: InitConfig | None = None, **fields: Any) -> Path:
    """Stage 0: a tokenizer and a model of random weights. Returns the model's folder."""
    from ondevice.config.stages import InitConfig

    return _stage("init", cfg, InitConfig, {"data": data, **fields})


def pretrain(
    model: str | Path = "",
    data: str = "builtin",
    *,
    cfg: PretrainConfig | None = None,
    **fields: Any,
) -> Path:
    """Stage 1: learning from plain text, by the next token or by what is hidden. Returns the
    model's folder.
    """
    from ondevice.config.stages import PretrainConfig

    return _stage("pretrain", cfg, PretrainConfig, {"model": str(model), "data": data, **fields})


def sft(
    model: str | Path = "", data: str = "builtin", *, cfg: SFTConfig | None = None, **fields: Any
) -> Path:
    """Stage 2: instruction tuning on chats. Returns the model's folder."""
    from ondevice.config.finetuning import SFTConfig

    return _stage("sft", cfg, SFTConfig, {"model": str(model), "data": data, **fields})


def classify(
    model: str | Path = "",
    data: str = "builtin",
    *,
    cfg: ClassifyConfig | None = None,
    **fields: Any,
) -> Path:
    """Fine-tuning to tell texts apart. Returns the classifier's folder."""
    from ondevice.config.finetuning import ClassifyConfig

    return _stage("classify", cfg, ClassifyConfig, {"model": str(model), "data": data, **fields})


def sample(
    model: str | Path = "", data: str = "builtin", *, cfg: SampleConfig | None = None, **fields: Any
) -> Path:
    """Stage 3, first step: responses to be rated. Returns the ratings database."""
    from ondevice.config.preference import SampleConfig

    return _stage("sample", cfg, SampleConfig, {"model": str(model), "data": data, **fields})


def reward(
    model: str | Path = "", data: str = "", *, cfg: RewardConfig | None = None, **fields: Any
) -> Path:
    """Stage 3: a reward model from rated pairs. Returns the reward model's folder."""
    from ondevice.config.preference import RewardConfig

    return _stage("reward", cfg, RewardConfig, {"model": str(model), "data": data, **fields})


def ppo(
    model: str | Path = "",
    reward_model: str | Path = "",
    *,
    cfg: PPOConfig | None = None,
    **fields: Any,
) -> Path:
    """Stage 3: preference tuning by a reward model. Returns the policy's folder."""
    from ondevice.config.preference import PPOConfig

    return _stage(
        "ppo", cfg, PPOConfig, {"model": str(model), "reward_model": str(reward_model), **fields}
    )


def dpo(
    model: str | Path = "", data: str = "", *, cfg: DPOConfig | None = None, **fields: Any
) -> Path:
    """Stage 3: preference tuning on rated pairs directly. Returns the policy's folder."""
    from ondevice.config.preference import DPOConfig

    return _stage("dpo", cfg, DPOConfig, {"model": str(model), "data": data, **fields})


def grpo(
    model: str | Path = "", data: str = "builtin", *, cfg: GRPOConfig | None = None, **fields: Any
) -> Path:
    """Stage 4: reasoning from verifiable rewards. Returns the policy's folder."""
    from ondevice.config.preference import GRPOConfig

    return _stage("grpo", cfg, GRPOConfig, {"model": str(model), "data": data, **fields})


def plan(
    what: str | Path = "minute",
    model: str | Path = "",
    data: str | Path = "",
    *,
    cfg: RunConfig | StageConfig | None = None,
    sets: Sequence[str] = (),
    measure: bool = True,
    tell: Callable[[str], None] | None = None,
    processes: int = 1,
    **fields: Any,
) -> dict[str, Any]:
    """What a recipe (fields of `RunConfig`) or a stage (its own fields) takes before it runs:
    {"machine", "stages": [{"stage", "memory", "seconds", "fits", "change", …}], "seconds", "disk",
    "fits"}. `measure`: this machine, where it was not before, which takes some seconds once.
    `processes`: how many train together (`docs/scale.md`). See `ondevice.planning.command`."""
    from ondevice.config.recipe import STAGES
    from ondevice.config.runs import RunConfig
    from ondevice.planning.command import plan as function

    given = dict(fields)
    if model:
        given["model"] = str(model)
    if data:
        given["data"] = str(data)
    if cfg is not None:
        names = {cls: name for name, cls in STAGES.items()}
        made = _made(type(cfg) if type(cfg) in names else RunConfig, {**given, "what": what}, cfg)
        name = names.get(type(made), "")
        return function(name, made, sets, measure=measure, tell=tell, processes=processes)
    cls: type = STAGES.get(str(what), RunConfig)
    if cls is RunConfig:
        given["recipe"] = str(what)
    made = _made(cls, given)
    return function(str(what), made, sets, measure=measure, tell=tell, processes=processes)


def batches(
    stage: str,
    model: str | Path = "",
    data: str = "builtin",
    *,
    number: int = 0,
    **fields: Any,
) -> list[dict[str, Any]]:
    """What the loss of `pretrain` or `sft` gets at a step (fields of that stage): its batches,
    arrays by name. No run folder is made. See `ondevice.stages.batches`."""
    from ondevice.config.recipe import STAGES
    from ondevice.stages.batches import batches as function
    from ondevice.stages.batches import check_stage

    check_stage(stage)
    given = {"model": str(model), "data": data, **fields}
    return function(stage, _made(STAGES[stage], given), number)


def quantize(model: str | Path, out: str | Path, bits: int = 4, group_size: int = 64) -> Path:
    """A model's folder with its matrices quantised to 4 or 8 bits in mlx-community's format.
    Returns `out`.
    """
    from ondevice.models.convert import quantize as function

    return function(model, out, bits, group_size)


def merge(adapter: str | Path, out: str | Path) -> Path:
    """An adapter and its base as whole weights. Returns `out`."""
    from ondevice.models.convert import merge as function

    return function(adapter, out)


def generate(
    *, cfg: GenerateConfig | None = None, write: Callable[[str], None] | None = None, **fields: Any
) -> list[str]:
    """Continuations of a prompt (fields of `GenerateConfig`). Make it inert before showing it."""
    from ondevice.config.use import GenerateConfig
    from ondevice.inference.chat import generate as function

    return function(_made(GenerateConfig, fields, cfg), write)


def chat(*, cfg: ChatConfig | None = None, **fields: Any) -> None:
    """A conversation in the terminal (fields of `ChatConfig`)."""
    from ondevice.config.use import ChatConfig
    from ondevice.inference.chat import chat as function

    function(_made(ChatConfig, fields, cfg))


def fill(*, cfg: FillConfig | None = None, **fields: Any) -> dict[str, Any]:
    """What may stand in place of each [MASK] of a text (fields of `FillConfig`).

    See `ondevice.inference.fill_mask.fill`.
    """
    from ondevice.config.use import FillConfig
    from ondevice.inference.fill_mask import fill as function

    return function(_made(FillConfig, fields, cfg))


def label(*, cfg: LabelConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Which class a text is of (fields of `LabelConfig`). See `ondevice.inference.label.label`."""
    from ondevice.config.use import LabelConfig
    from ondevice.inference.label import label as function

    return function(_made(LabelConfig, fields, cfg))


def compare(*, cfg: CompareConfig | None = None, **fields: Any) -> dict[str, Any]:
    """The same prompts answered by two models (fields of `CompareConfig`).

    See `ondevice.inference.side_by_side.compare`.
    """
    from ondevice.config.use import CompareConfig
    from ondevice.inference.side_by_side import compare as function

    return function(_made(CompareConfig, fields, cfg))


def serve(*, cfg: WorkerConfig | None = None, **fields: Any) -> None:
    """A model behind JSON lines on stdin and stdout (fields of `WorkerConfig`). See
    `ondevice.inference.worker`.
    """
    from ondevice.config.use import WorkerConfig
    from ondevice.inference.worker import serve as function

    function(_made(WorkerConfig, fields, cfg))


def evaluate(*, cfg: EvalConfig | None = None, **fields: Any) -> dict[str, Any]:
    """What a model is worth on held-out data (fields of `EvalConfig`). See
    `ondevice.evaluation.evaluate.evaluate`.
    """
    from ondevice.config.evaluation import EvalConfig
    from ondevice.evaluation.evaluate import evaluate as function

    return function(_made(EvalConfig, fields, cfg))


def show_data(
    data: str | Path = "", model: str | Path = "", *, cfg: DataConfig | None = None, **fields: Any
) -> dict[str, Any]:
    """Examples of some data as a model will see them, and counts (fields of `DataConfig`): {"form",
    "rows", "used", "cut", "skipped", "tokens", "learned", "examples", …}. See
    `ondevice.datasets.preview.show`."""
    from ondevice.config.data import DataConfig
    from ondevice.datasets.preview import show as function

    given = {"action": "show", "data": str(data), "model": str(model), **fields}
    return function(_made(DataConfig, given, cfg))


def ask(
    data: str | Path = "", model: str | Path = "", *, cfg: AskConfig | None = None, **fields: Any
) -> dict[str, Any]:
    """Questions about documents and their answers, written by a model into a file of rows for `sft`
    (fields of `AskConfig`): {"out", "passages", "written", "kept", "rejected", "examples"}. See
    `ondevice.inference.ask_documents.ask`."""
    from ondevice.config.asking import AskConfig
    from ondevice.inference.ask_documents import ask as function

    given = {"action": "ask", "data": str(data), "model": str(model), **fields}
    return function(_made(AskConfig, given, cfg))


def review(
    data: str | Path = "", *, cfg: ReviewConfig | None = None, **fields: Any
) -> dict[str, Any]:
    """Keeping or dropping such rows in the terminal (fields of `ReviewConfig`): {"rows", "kept",
    "dropped", "left", "out"}. The verdicts themselves are `ondevice.preferences.review.Review`."""
    from ondevice.config.asking import ReviewConfig
    from ondevice.preferences.review_terminal import review as function

    given = {"action": "review", "data": str(data), **fields}
    return function(_made(ReviewConfig, given, cfg))


def rate(*, cfg: RateConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Rating in the terminal (fields of `RateConfig`); returns how far the rater is. The database
    itself is `ondevice.preferences.database.Ratings`."""
    from ondevice.config.ratings import RateConfig
    from ondevice.preferences.terminal import rate as function

    return function(_made(RateConfig, fields, cfg))


def rounds(
    run: str | Path = "",
    *,
    cfg: RoundsConfig | None = None,
    tell: Callable[[str], None] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Rating while the model learns (fields of `RoundsConfig`): in the terminal, or with `headless`
    the loop behind other raters. Returns how the versions stand. See `ondevice.rating_rounds.command`."""
    from ondevice.config.rounds import RoundsConfig
    from ondevice.rating_rounds.command import rounds as function

    return function(_made(RoundsConfig, {"run": str(run), **fields}, cfg), tell)


def manage_ratings(*, cfg: RatingsConfig | None = None, **fields: Any) -> dict[str, Any]:
    """Statistics of votes, their export and import (fields of `RatingsConfig`): the command
    `ratings`, which cannot give its name to a function beside the module
    `ondevice.preferences.database`."""
    from ondevice.config.ratings import RatingsConfig
    from ondevice.preferences.import_export import manage as function

    return function(_made(RatingsConfig, fields, cfg))


def push(
    model: str | Path = "",
    repo_id: str = "",
    *,
    cfg: PushConfig | None = None,
    tell: Tell | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Sends a model, a run or its ratings to the Hub in one commit (fields of `PushConfig`);
    private unless `public`. `tell` hears each step. Returns {"repo", "url", "commit", …}, of a dry
    run what would be sent."""
    from ondevice.config.hub import PushConfig
    from ondevice.publishing.push import push as function

    return function(
        _made(PushConfig, {"model": str(model), "repo_id": repo_id, "yes": True, **fields}, cfg),
        tell,
    )


def pull(
    repo_id: str = "", *, cfg: PullConfig | None = None, tell: Tell | None = None, **fields: Any
) -> dict[str, Any]:
    """Gets a model, an adapter or a data set from the Hub (fields of `PullConfig`), verified.
    Returns {"path", …}.
    """
    from ondevice.config.hub import PullConfig
    from ondevice.hub.pull import pull as function

    return function(_made(PullConfig, {"repo_id": repo_id, **fields}, cfg), tell)


def export(
    model: str | Path = "", to: str = "", *, cfg: ExportConfig | None = None, **fields: Any
) -> dict[str, Any]:
    """Writes a model for other programs and compares what was written with it (fields of
    `ExportConfig`). Returns {"path", "largest_difference", …}; see
    `ondevice.exports.export.export`."""
    from ondevice.config.hub import ExportConfig
    from ondevice.exports.export import export as function

    return function(_made(ExportConfig, {"model": str(model), "to": to, **fields}, cfg))


def bench(
    *, cfg: BenchConfig | None = None, tell: Callable[[str], None] | None = None, **fields: Any
) -> dict[str, Any]:
    """Tokens per second of each stage on this machine (fields of `BenchConfig`). `tell` hears each
    figure. See `ondevice.benchmark.standard.bench`."""
    from ondevice.benchmark.standard import bench as function
    from ondevice.config.benchmark import BenchConfig

    return function(_made(BenchConfig, fields, cfg), tell)


def list_runs(
    folder: str | Path = "runs", *, search: str = "", sort: str = "", reverse: bool = False
) -> list[dict[str, Any]]:
    """Every run that a search holds of, with its stages, state, figures, note, tags, and the "bytes"
    that it takes of the disk (None: not readable); the oldest first, or in an order of
    `ondevice.runs.table.SORTS`. See `ondevice.runs.commands.listed`."""
    from ondevice.runs.commands import listed as function

    return function(folder, search=search, sort=sort, reverse=reverse)


def note_run(run: str, note: str, *, folder: str | Path = "runs") -> None:
    """Writes a note on a run in place of the one before; an empty one takes it away."""
    from ondevice.runs.labels import set_note
    from ondevice.runs.listing import find_run

    set_note(find_run(run, folder).path, note)


def tag_run(
    run: str, *tags: str, remove: Sequence[str] = (), folder: str | Path = "runs"
) -> tuple[str, ...]:
    """Adds tags to a run and takes away those of `remove`. Returns the tags that it has then."""
    from ondevice.runs.labels import add_tags, remove_tags
    from ondevice.runs.listing import find_run

    path = find_run(run, folder).path
    found = add_tags(path, tags)
    if remove:
        found = remove_tags(path, remove)
    return found.tags


def rename_run(run: str, new: str, *, folder: str | Path = "runs") -> Path:
    """Gives a run another name; its older one goes on leading to it. Returns its folder. See
    `ondevice.runs.rename.rename_run`."""
    from ondevice.runs.rename import rename_run as function

    return function(run, new, folder)


def diff_runs(
    *runs: str, folder: str | Path = "runs", everything: bool = False
) -> dict[str, tuple[str, ...]]:
    """Setting → what it is in each of the runs, of those in which they differ (with `everything`: of
    all). See `ondevice.runs.differences.differences`."""
    from ondevice.runs.differences import differences, find_all

    return dict(differences(find_all(runs, folder), everything=everything))


def export_run(
    run: str, out: str | Path, *, to: Literal["csv", "parquet"] = "csv", folder: str | Path = "runs"
) -> dict[str, Any]:
    """Writes what a run's stages have emitted as a table: {"run", "file", "rows", "columns"}. See
    `ondevice.runs.export_events.export_run`."""
    from ondevice.runs.export_events import export_run as function
    from ondevice.runs.listing import find_run

    return function(find_run(run, folder).path, to, Path(out))


def remove_runs(
    *names: str, folder: str | Path = "runs", anyway: bool = False
) -> list[dict[str, Any]]:
    """Moves runs to the trash beside them; one that another run needs only with `anyway`. See
    `ondevice.runs.trash.remove_runs`."""
    from ondevice.runs.trash import remove_runs as function

    return function(names, folder, anyway=anyway)


def restore_run(name: str, folder: str | Path = "runs") -> Path:
    """Brings a run back from the trash. See `ondevice.runs.trash.restore_run`."""
    from ondevice.runs.trash import restore_run as function

    return function(name, folder)


def empty_trash(folder: str | Path = "runs") -> dict[str, Any]:
    """Deletes what lies in the trash: {"removed": [names], "bytes"}. Nobody is asked."""
    from ondevice.runs.trash import empty_trash as function

    return function(folder)


def doctor() -> dict[str, Any]:
    """Backends, device, memory, what would be chosen, and what this machine could do (`outlook`)."""
    from ondevice.planning.outlook import report as function

    return function()


def _stage(name: str, cfg: StageConfig | None, cls: type, fields: dict[str, Any]) -> Path:
    from ondevice.stages.pipeline import run_one

    return run_one(name, _made(cls, fields, cfg))


_UNSAID: dict[str, tuple[Any, ...]] = {
    "recipe": ("minute",),
    "run": ("",),
    "what": ("minute",),
    "model": ("",),
    "reward_model": ("",),
    "data": ("", "builtin"),
    "repo_id": ("",),
    "to": ("",),
    "action": ("show", "ask", "review"),
    "yes": (True,),
}
"""What arguments are where nobody has given them."""


def _made(cls: type, fields: dict[str, Any], cfg: Any = None) -> Any:
    """The settings: `cfg` where it is given, which then says all. Raises UserError for a field
    beside it.
    """
    from ondevice.common.errors import UserError
    from ondevice.config.load import from_mapping

    plain = {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}
    if cfg is None:
        return from_mapping(cls, plain)
    if said := [name for name, value in plain.items() if value not in _UNSAID.get(name, ())]:
        raise UserError(
            "has no effect: cfg says all settings",
            where=said[0],
            hint="give the fields, or cfg alone; dataclasses.replace(cfg, …) changes one",
        )
    if not isinstance(cfg, cls):
        raise UserError(f"is a {type(cfg).__name__}, not a {cls.__name__}", where="cfg")
    return cfg
