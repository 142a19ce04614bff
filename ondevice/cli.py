"""The command `ondevice`: calls a verb's function of the Python API, and prints what it returns.

Thin on purpose: `config/verbs.py` has the table of verbs, `config/command_line.py` makes a verb's
config of its command line. tyro writes a verb's help from the same dataclass; it does not parse: its
errors are boxes of many lines, and here MODEL and DATA may stand without a flag.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 the person's input is at
fault, 1 ours, 130 interrupted with the work saved.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ondevice.common import allocator
from ondevice.common.disk import KEPT, DiskFull, as_full
from ondevice.common.errors import Interrupted, UserError, nearest
from ondevice.common.launcher import launched, leads
from ondevice.config.command_line import Line, make_config, take_apart
from ondevice.config.recipe import STAGES
from ondevice.config.verbs import ACTIONS, VERBS, Verb, usage
from ondevice.reports.report import report_text

TRACEBACK = "--traceback"
NO_TIME = "--no-time"  # of a plan: this machine is not measured
PROCESSES = "--processes"  # of a plan: how many train together


def command() -> int:
    """The command `ondevice` as a program of its own: `main` with its words."""
    verb = VERBS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if verb is not None and (verb.group == "Train" or verb.name == "bench"):
        allocator.restart()
    code = main()
    _close_streams()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command. `--traceback` among its words shows where a one-line error was
    raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[: words.index("--")] if "--" in words else words
    traced = TRACEBACK in flags
    if traced:
        words.remove(TRACEBACK)
    # a terminal or pipe of another encoding gets \\u2500, not a traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _command(words)
        _flush_stdout()
        return code
    except UserError as error:
        if traced:
            _ours()
        if _tells(error):
            _complain(str(error), always=True)
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
    except Exception as error:
        refused = _refused(error)
        if not refused:
            return _ours()
        if traced:
            _ours()
        _complain(refused)
        return 2


def _out(text: str, end: str = "\n") -> None:
    """A result on stdout, of the first process where there are several. Raises DiskFull where that
    goes to a file that has no room."""
    if not leads():
        return
    try:
        sys.stdout.write(text + end)
        if not end:
            sys.stdout.flush()
    except OSError as error:
        raise _named(error) from error


def _flush_stdout() -> None:
    """Raises DiskFull where what was printed has no room: half of a result counts as none."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _named(error) from error


def _named(error: OSError) -> Exception:
    """What went wrong with stdout, which the system does not name."""
    if as_full(error, _here()):
        return DiskFull(
            Path("standard output"), message=f"the disk is full; {KEPT}", hint="make room there"
        )
    return error


def _here() -> Path:
    """The working folder, for what does not name its file."""
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return Path("/")


def _close_streams() -> None:
    """What a full disk has refused is not tried once more at Python's exit, which would make it
    another exit code."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


# What a system or its disk refuses, with the path that it refused: nobody's mistake in the program.
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def _refused(error: Exception) -> str:
    """What a system or its disk has refused, in words; empty for any other error."""
    if full := as_full(error, _here()):
        return str(full)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}a file would be larger than its disk allows (FAT: 4 GB; ulimit -f)"
    if not isinstance(error, OSError) or error.errno not in _REFUSED or error.filename is None:
        return ""
    return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"


def _command(argv: list[str]) -> int:
    if not argv and sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty():
        return int(_load("ondevice_tui.app:main")())
    if not argv or argv[0] in ("-h", "--help", "help"):
        _out(help_text())
        return 0
    if argv[0] == "--version":
        from ondevice.common.distribution import own_version

        _out(f"ondevice {own_version()}")
        return 0
    verb = VERBS.get(argv[0])
    if verb is None:
        kind = "flag" if argv[0].startswith("-") else "command"
        raise UserError(f"unknown {kind} {argv[0]!r}", hint=nearest(argv[0], VERBS))
    if verb.name == "plan" and not {"-h", "--help"} & set(argv):
        _plan(verb, argv[1:])
        return 0
    verb = ACTIONS.get((verb.name, *argv[1:2]), verb)  # type: ignore[arg-type]
    together = verb.several or verb.group == "Train" or argv[:2] == ["runs", "resume"]
    if (by := launched()) is not None and not together:
        raise UserError(
            "works in one process", where=verb.name, hint=f"start it without {by.launcher}"
        )
    cls = _load(verb.config) if verb.config else None
    line = take_apart(verb, cls, argv[1:])
    if line.help:
        print_help(verb, cls)
        return 0
    config = None
    if cls is not None:
        config = make_config(verb, cls, line, _continued(verb, line))
    _perform(verb, config, line)
    return 0


def _continued(verb: Verb, line: Line) -> Mapping[str, Any]:
    """The settings of the finished stage that a command goes on from; empty where it names none."""
    named = line.values.get("continue_from")
    if not named:
        return {}
    from ondevice.stages.continued import settings_of  # half a second

    return settings_of(verb.name, str(named))


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


def print_help(verb: Verb, cls: type | None) -> None:
    """A verb's help on stdout: tyro's, with the words that need no flag and the options of every
    command.
    """
    prog = usage(verb)
    if cls is None:
        print(f"usage: {prog} [-h] [--json]\n\n{verb.help}")
        return
    import tyro  # 60 ms

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
    if verb.name == "plan":
        options.append(f"{NO_TIME}         do not measure this machine where it was not before")
        options.append(f"{PROCESSES} N     as each of N processes that train together needs it")
        options.append("STAGE MODEL DATA  one stage, with the options of its own command")
    options.append(f"{TRACEBACK}       where an error was raised, before its one line")
    print("\nalso:\n  " + "\n  ".join(options))


def _example(cls: type) -> str:
    """KEY=VALUE for a number that this verb has."""
    names = {f.name for f in dataclasses.fields(cls)}
    for name, value in (("steps", 100), ("limit", 100)):
        if name in names:
            return f"{name}={value}"
    assert "seed" in names, cls
    return "seed=1"


def _perform(verb: Verb, config: Any, line: Line) -> None:
    """Calls the verb's function and prints what it returns."""
    if verb.name == "runs":
        _runs(config, line)
        return
    function = _api(verb.function)
    if verb.name == "run":
        _print_run(function(cfg=config, sets=tuple(line.sets)), line)
    elif verb.name == "generate":
        _generate(function, config, line)
    elif verb.function == "show_data" and not line.json:
        from ondevice.datasets.preview import render

        # harmless already: only the colours are not text
        _out(render(function(cfg=config), config.color))
    else:
        result = function() if config is None else function(cfg=config)
        if line.json and isinstance(result, Path):
            result = {"model": str(result)}
        elif verb.render and not line.json:
            result = _load(verb.render)(result)
        _print(result, line)


def _plan(verb: Verb, argv: list[str]) -> None:
    """`plan` takes the words of the stage that it names, else those of `run`."""
    argv, processes = _processes(argv)
    words = [word for word in argv if word != NO_TIME]
    stage = words[0] if words and words[0] in STAGES else ""
    if stage == "rate":
        raise UserError("rating takes neither memory nor time", where="plan")
    own = VERBS[stage or "run"]
    cls = _load(own.config)
    line = take_apart(own, cls, words[1:] if stage else words)
    config = make_config(own, cls, line)
    result = _api("plan")(
        cfg=config, sets=tuple(line.sets), measure=NO_TIME not in argv, processes=processes
    )
    _print(result if line.json else _load(verb.render)(result), line)


def _processes(argv: list[str]) -> tuple[list[str], int]:
    """The words without `--processes N`, and N. Raises UserError for what is no number."""
    rest: list[str] = []
    count = 1
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != PROCESSES:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value.isdecimal():
            raise UserError(f"{value!r} is not a number", where="processes", hint="such as 8")
        count = int(value)
    return rest, count


def _runs(config: Any, line: Line) -> None:
    from ondevice.runs import commands, listing

    if config.action in commands.ACTIONS:
        result, text = commands.perform(config)
        _print(result if line.json else text, line)
        return
    if config.action in ("rm", "restore", "empty-trash"):
        _trash(config, line)
        return
    run = listing.find_run(config.run, config.folder)
    if config.action == "report":
        report = report_text(run)
        if line.json:
            _print({"run": str(run.path), "report": report}, line)
        else:
            _print(report.rstrip("\n"), line)
        return
    if not run.recipe.is_file():
        raise UserError(
            "was not made by a recipe",
            where=str(run.path),
            hint="its stage's own command takes --resume",
        )
    _print_run(_api("run")(str(run.recipe), out=str(run.path), resume=True), line)


def _trash(config: Any, line: Line) -> None:
    """Takes runs away, brings one back, or deletes what was taken away."""
    from ondevice.common.progress import size
    from ondevice.runs import trash

    if config.action == "rm":
        moved = trash.remove_runs([config.run, *config.also], config.folder, anyway=config.anyway)
        told = [
            f"{one['path']} is in the trash{_taking(one['bytes'])}: "
            f"ondevice runs restore {trash.as_word(one['run'])}{_elsewhere(one['path'], config.folder)} brings it "
            "back, runs empty-trash makes room"
            for one in moved
        ]
        _print(moved if line.json else "\n".join(told), line)
    elif config.action == "restore":
        back = trash.restore_run(config.run, config.folder)
        _print({"run": str(back)} if line.json else f"{back} is back", line)
    else:
        gone = trash.empty_trash(config.folder, agreed=None if config.yes else _agreed)
        told = [f"{len(gone['removed'])} runs deleted, {size(gone['bytes'])}"]
        _print(gone if line.json else "\n".join(told), line)


def _taking(count: int | None) -> str:
    """How much of the disk something takes, where that could be read."""
    from ondevice.common.progress import size

    return "" if count is None else f" ({size(count)})"


def _elsewhere(run: str, folder: str) -> str:
    """The flag that says where a run was, where that is not the usual place."""
    parent = Path(run).parent
    if parent == Path("runs").absolute():
        return ""
    return f" --folder {shlex.quote(folder if Path(folder).absolute() == parent else str(parent))}"


def _agreed(what: str) -> bool:
    """Whether the person at the terminal says yes. Raises UserError where nobody is there."""
    from ondevice.common.sanitize import sanitize

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError("nobody can be asked here", where="empty-trash", hint="--yes does not ask")
    sys.stderr.write(sanitize(f"delete for good: {what}? [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print_run(folder: Path, line: Line) -> None:
    """The ladder, then where everything is."""
    if not leads():
        return
    report = folder / "report.md"
    page = folder / "report.html"
    if line.json:
        found: dict[str, str | None] = {"run": str(folder), "report": None, "page": None}
        if report.is_file():
            found["report"] = str(report)
        if page.is_file():
            found["page"] = str(page)
        _print(found, line)
        return
    from ondevice.common.sanitize import sanitize
    from ondevice.reports.report import ladder
    from ondevice.runs.folder import RunFolder

    _out(sanitize(f"{ladder(RunFolder(folder))}\n\nreport: {report}\npage: {page}", limit=None))


def _generate(function: Any, config: Any, line: Line) -> None:
    if line.json:
        _print({"completions": list(function(cfg=config))}, line)
        return
    from ondevice.common.sanitize import SanitizedStream

    stream = SanitizedStream()

    def write(piece: str) -> None:
        _out(stream.push(piece), end="")

    function(cfg=config, write=write)
    _out(stream.flush())


def _print(result: Any, line: Line) -> None:
    """A result on stdout, as JSON where that was asked for; text is made harmless first, since it
    may be a model's.
    """
    if line.json:
        from ondevice.common.json_files import to_json

        _out(to_json(result, indent=2))
        return
    if result is None:
        return
    from ondevice.common.sanitize import sanitize

    if isinstance(result, Mapping):
        text = "\n".join(_flat(result))
    else:
        text = str(result)
    _out(sanitize(text, limit=None))


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


def _tells(error: UserError) -> bool:
    """Whether this process tells of an error, where there are several: the first one does, except of
    what it does not know of, or may be the one that is gone."""
    from ondevice.seam.group import NotJoined, PeerLost

    if isinstance(error, PeerLost):
        return error.tells()
    return leads() or isinstance(error, NotJoined)


def _complain(text: str, always: bool = False) -> None:
    if not (always or leads()):
        return
    from ondevice.common.redact import redacted
    from ondevice.common.sanitize import sanitize

    line = sanitize(redacted(" ".join(text.split())), newlines=False)
    try:
        sys.stderr.write(f"ondevice: {line}\n")
        sys.stderr.flush()
    except OSError:
        return  # the terminal is gone; the exit code still says it


def _api(name: str) -> Any:
    import ondevice

    return getattr(ondevice, name)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
