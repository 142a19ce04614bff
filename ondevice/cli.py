"""The command `ondevice`: a table of verbs, each with one config dataclass and one function of the
Python API.

Thin on purpose: flags, YAML keys and fields are one and the same names, so that a verb's command
line becomes a mapping that `config.load` reads as it reads a recipe, with the same one-line errors.
tyro writes a verb's help from the same dataclass; it does not parse: its errors are boxes of many
lines, and here MODEL and DATA may stand without a flag.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 the person's input is at
fault, 1 ours, 130 interrupted with the work saved.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common.errors import Interrupted, UserError, nearest
from ondevice.reports.report import report_text


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


_PREFERENCE = "ondevice.config.preference"
_STAGES, _USE, _HUB = "ondevice.config.stages", "ondevice.config.use", "ondevice.config.hub"
VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "run",
            "Train",
            "all stages of a recipe, from random weights on",
            f"{_USE}:RunConfig",
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
            f"{_STAGES}:SFTConfig",
            ("model", "data"),
            "sft",
            recipe=True,
        ),
        Verb(
            "classify",
            "Train",
            "telling texts apart: one class a text",
            f"{_STAGES}:ClassifyConfig",
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
        Verb(
            "chat", "Use", "talk with a model", f"{_USE}:ChatConfig", ("model",), "chat", json=False
        ),
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
            f"{_USE}:EvalConfig",
            ("model", "data"),
            "evaluate",
        ),
        Verb(
            "rate",
            "Prefer",
            "say which of two answers is better",
            f"{_USE}:RateConfig",
            ("ratings",),
            "rate",
            json=False,
            render="ondevice.preferences.terminal:render",
        ),
        Verb(
            "ratings",
            "Prefer",
            "what the votes are worth; ratings export|import DB FILE, repair DB",
            f"{_USE}:RatingsConfig",
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
            "data",
            "Look",
            "data show FILE --model MODEL: examples as the model will see them, and counts",
            f"{_USE}:DataConfig",
            ("action", "data"),
            "show_data",
            sets=False,
        ),
        Verb(
            "runs",
            "Look",
            "list runs; runs report RUN, runs resume RUN",
            f"{_USE}:RunsConfig",
            ("action", "run"),
            sets=False,
        ),
        Verb(
            "doctor",
            "Look",
            "what this machine can do, and what would be chosen",
            "",
            (),
            "doctor",
            sets=False,
            render="ondevice.seam.doctor:render",
        ),
    )
}


@dataclass
class Line:
    """A verb's command line, taken apart."""

    values: dict[str, Any] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    recipe: str = ""
    json: bool = False
    help: bool = False


TRACEBACK = "--traceback"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command. `--traceback` among its words shows where a one-line error was
    raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[: words.index("--")] if "--" in words else words
    traced = TRACEBACK in flags
    if traced:
        words.remove(TRACEBACK)
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # a terminal or pipe of another encoding gets \\u2500, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        if traced:
            _ours()
        _complain(str(error))
        return 2
    except Interrupted as stop:
        _complain(str(stop) or "interrupted")
        return 130
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # who reads our stdout has left (as in `ondevice runs | head -1`); Python would complain
        # once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.errno not in _REFUSED or (error.filename is None and not full):
            return _ours()
        where = f"{error.filename}: " if error.filename is not None else ""
        _complain(
            f"{where}{(error.strerror or 'cannot be used').lower()}"
            + (" (make room)" if full else "")
        )
        return 2
    except Exception:
        return _ours()


# What a system or its disk refuses, with the path that it refused: nobody's mistake in the program.
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def _command(argv: list[str]) -> int:
    if not argv and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return int(_load("ondevice_tui.app:main")())
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        from ondevice.common.distribution import own_version

        print(f"ondevice {own_version()}")
        return 0
    verb = VERBS.get(argv[0])
    if verb is None:
        kind = "flag" if argv[0].startswith("-") else "command"
        raise UserError(f"unknown {kind} {argv[0]!r}", hint=nearest(argv[0], VERBS))
    cls = _load(verb.config) if verb.config else None
    line = take_apart(verb, cls, argv[1:])
    if line.help:
        print_help(verb, cls)
        return 0
    config = None if cls is None else make_config(verb, cls, line)
    _perform(verb, config, line)
    return 0


def help_text() -> str:
    """The table of verbs."""
    lines = [
        "usage: ondevice COMMAND [OPTIONS]",
        "",
        "Train a language model on this machine, from random weights to one that follows instructions.",
    ]
    group = ""
    for verb in VERBS.values():
        if verb.group != group:
            group = verb.group
            lines += ["", f"{group}:"]
        lines.append(f"  {verb.name:<10}{verb.help}")
    return "\n".join(
        [
            *lines,
            "",
            "ondevice COMMAND --help lists its options. First try: ondevice run minute",
            "Every command takes --traceback: where an error was raised, before its one line.",
            "In a terminal, ondevice alone opens the app: the same stages, curves and answers in one place.",
        ]
    )


def take_apart(verb: Verb, cls: type | None, argv: Sequence[str]) -> Line:
    """Flags (--a-b 1, --a_b=1, --on, --no-on) and words without a flag into values by field name,
    still text.

    Raises UserError: an unknown flag (naming the nearest), a flag without its value, a word too
    many.
    """
    kinds: dict[str, Any] = typing.get_type_hints(cls) if cls else {}
    line, words, rest = Line(), list(verb.positional), list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            for word in rest:
                _place(verb, line, words, word)
            break
        if token in ("-h", "--help"):
            line.help = True
        elif token.startswith("-") and len(token) > 1 and not _is_number(token):
            _take_flag(verb, kinds, line, token, rest)
        else:
            _place(verb, line, words, token)
    return line


def make_config(verb: Verb, cls: type, line: Line) -> Any:
    """The verb's config: defaults (or a recipe's, with --recipe), flags over them, --set over
    these.
    """
    from ondevice.config.load import apply_set, from_mapping, to_mapping

    values: dict[str, Any] = {}
    given = dict(line.values)
    if verb.name != "run":  # there the changes are the recipe's
        for assignment in line.sets:
            apply_set(given, assignment)
    if line.recipe:
        from ondevice.config.recipe import stage_defaults

        values = to_mapping(stage_defaults(verb.name, line.recipe))
    filled = set(values) - set(given)
    values.update(given)
    for f in dataclasses.fields(cls):
        if (
            f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in values
        ):
            name = f.name.upper() if f.name in verb.positional else _flag(f.name)
            raise UserError(f"{name} is missing", where=verb.name, hint=_usage(verb))
    try:
        return from_mapping(cls, values, filled=filled)
    except UserError as error:
        raise UserError(
            error.message, where=_flag(error.where) if error.where else "", hint=error.hint
        ) from None


def print_help(verb: Verb, cls: type | None) -> None:
    """A verb's help on stdout: tyro's, with the words that need no flag and the options of every
    command.
    """
    prog = _usage(verb)
    if cls is None:
        print(f"usage: {prog} [-h] [--json]\n\n{verb.help}")
        return
    import tyro

    try:
        tyro.cli(cls, prog=prog, args=["--help"], config=(tyro.conf.UseAppendAction,))
    except SystemExit:
        options = []  # tyro leaves the program when it has printed help
    if verb.sets:
        if verb.name == "run":
            what = "a field of the recipe (sft.steps=100)"
        else:
            what = f"a field ({_example(cls)})"
        options.append(f"--set KEY=VALUE   change {what}; may be repeated")
    if verb.recipe:
        options.append(
            "--recipe RECIPE   begin with this recipe's settings of the stage instead of the defaults"
        )
    if verb.json:
        options.append("--json            print the result as JSON")
    options.append(f"{TRACEBACK}       where an error was raised, before its one line")
    print("\nalso:\n  " + "\n  ".join(options))


def _example(cls: type) -> str:
    """KEY=VALUE for a number that this verb has."""
    names = {f.name for f in dataclasses.fields(cls)}
    return next(
        f"{name}={value}"
        for name, value in (("steps", 100), ("limit", 100), ("seed", 1))
        if name in names
    )


def _take_flag(
    verb: Verb, kinds: Mapping[str, Any], line: Line, token: str, rest: list[str]
) -> None:
    name, equals, text = token.partition("=")
    key = name.lstrip("-").replace("-", "_")
    given = text if equals else None
    switched_off = key.startswith("no_") and kinds.get(key[3:]) is bool
    if not name.startswith("--"):
        key = ""  # no short flags, and no field has an empty name
    if key == "json" and verb.json:
        line.json = True
    elif key == "set" and verb.sets:
        line.sets.append(_value(name, given, rest))
    elif key == "recipe" and verb.recipe:
        line.recipe = _value(name, given, rest)
    elif switched_off and given is None:
        line.values[key[3:]] = False
    elif kinds.get(key) is bool:
        if given is None and rest and rest[0].lower() in ("true", "false"):
            given = rest.pop(0)
        if given is not None and given.lower() not in ("true", "false"):
            raise UserError(f"expected true or false, got {given!r}", where=name)
        line.values[key] = given is None or given.lower() == "true"
    elif key in kinds:
        value = _value(name, given, rest)
        if typing.get_origin(kinds[key]) is tuple:
            line.values[key] = [
                *line.values.get(key, []),
                *(part for part in value.split(",") if part),
            ]
        else:
            line.values[key] = value
    else:
        raise UserError(
            f"unknown flag {name!r}", where=verb.name, hint=_near_flag(verb, kinds, key)
        )


def _near_flag(verb: Verb, kinds: Mapping[str, Any], key: str) -> str:
    """The flag that was meant: by its initials (lr), its beginning or a part of it, else the
    nearest in spelling.
    """
    common = (("json", verb.json), ("set", verb.sets), ("recipe", verb.recipe))
    known = [*kinds, *(name for name, there in common if there)]
    for name in known:
        words = name.split("_")
        if key and (
            key == "".join(word[0] for word in words) or name.startswith(key) or key in words
        ):
            return f"did you mean {_flag(name)!r}?"
    known += [f"no_{name}" for name, kind in kinds.items() if kind is bool]
    hint = nearest(_flag(key), map(_flag, known))
    if hint.startswith("did"):
        return hint
    return f"ondevice {verb.name} --help lists them"


def _value(name: str, given: str | None, rest: list[str]) -> str:
    if given is not None:
        return given
    if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
        raise UserError("needs a value", where=name)
    return rest.pop(0)


_NEEDED = ("model", "reward_model", "other", "prompts")


def _usage(verb: Verb) -> str:
    """A stage and what uses a model need one; every other word may be left out."""
    words = (word.upper() if word in _NEEDED else f"[{word.upper()}]" for word in verb.positional)
    return " ".join(["ondevice", verb.name, *words])


def _place(verb: Verb, line: Line, words: list[str], word: str) -> None:
    while words and words[0] in line.values:
        words.pop(0)  # given by its flag already
    if not words:
        raise UserError(f"{word!r} is one word too many", where=verb.name, hint=_usage(verb))
    line.values[words.pop(0)] = word


def _perform(verb: Verb, config: Any, line: Line) -> None:
    """Calls the verb's function and prints what it returns."""
    if verb.name == "runs":
        _runs(config, line)
        return
    function = _api(verb.function)
    if verb.name == "run":
        settings = {
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
            if f.name != "recipe"
        }
        _print_run(function(config.recipe, sets=tuple(line.sets), **settings), line)
    elif verb.name == "generate":
        _generate(function, config, line)
    elif verb.name == "data" and not line.json:
        from ondevice.datasets.preview import render

        # harmless already: only the colours are not text
        print(render(function(cfg=config), config.color))
    else:
        result = function() if config is None else function(cfg=config)
        if line.json and isinstance(result, Path):
            result = {"model": str(result)}
        elif verb.render and not line.json:
            result = _load(verb.render)(result)
        _print(result, line)


def _runs(config: Any, line: Line) -> None:
    from ondevice.runs import listing

    if config.action == "list":
        runs = listing.list_runs(config.folder)
        _print(
            runs if line.json else listing.runs_text(runs) or f"no runs in {config.folder}", line
        )
        return
    run = listing.find_run(config.run, config.folder)
    if config.action == "report":
        report = report_text(run)
        _print({"run": str(run.path), "report": report} if line.json else report.rstrip("\n"), line)
        return
    if not run.recipe.is_file():
        raise UserError(
            "was not made by a recipe",
            where=str(run.path),
            hint="its stage's own command takes --resume",
        )
    _print_run(_api("run")(str(run.recipe), out=str(run.path), resume=True), line)


def _print_run(folder: Path, line: Line) -> None:
    """The ladder, then where everything is."""
    report, page = folder / "report.md", folder / "report.html"
    if line.json:
        found = {
            name: str(file) if file.is_file() else None
            for name, file in (("report", report), ("page", page))
        }
        _print({"run": str(folder), **found}, line)
        return
    from ondevice.common.sanitize import sanitize
    from ondevice.reports.report import ladder
    from ondevice.runs.folder import RunFolder

    print(sanitize(f"{ladder(RunFolder(folder))}\n\nreport: {report}\npage: {page}", limit=None))


def _generate(function: Any, config: Any, line: Line) -> None:
    if line.json:
        _print({"completions": list(function(cfg=config))}, line)
        return
    from ondevice.common.sanitize import SanitizedStream

    stream = SanitizedStream()

    def write(piece: str) -> None:
        sys.stdout.write(stream.push(piece))
        sys.stdout.flush()

    function(cfg=config, write=write)
    print(stream.flush())


def _print(result: Any, line: Line) -> None:
    """A result on stdout, as JSON where that was asked for; text is made harmless first, since it
    may be a model's.
    """
    if line.json:
        from ondevice.common.json_files import to_json

        print(to_json(result, indent=2))
        return
    if result is None:
        return
    from ondevice.common.sanitize import sanitize

    text = "\n".join(_flat(result)) if isinstance(result, Mapping) else str(result)
    print(sanitize(text, limit=None))


def _flat(mapping: Mapping[str, Any], before: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{before}{key}.")
        else:
            lines.append(f"{before}{key}: {_figure(value)}")
    return lines


def _figure(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(part, float) for part in value):
        if len(value) == 2:
            return " to ".join(map(_figure, value))
        return ", ".join(map(_figure, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _ours() -> int:
    """Tells of the exception at hand, whose text may be a model's or a file's."""
    import traceback

    from ondevice.common.redact import redacted
    from ondevice.common.sanitize import sanitize

    sys.stderr.write(sanitize(redacted(traceback.format_exc()), limit=None))
    return 1


def _complain(text: str) -> None:
    from ondevice.common.redact import redacted
    from ondevice.common.sanitize import sanitize

    try:
        sys.stderr.write(
            f"ondevice: {sanitize(redacted(' '.join(text.split())), newlines=False)}\n"
        )
        sys.stderr.flush()
    except OSError:
        return  # the terminal is gone; the exit code still says it


def _api(name: str) -> Any:
    import ondevice

    return getattr(ondevice, name)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
