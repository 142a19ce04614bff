"""What the plain terminal shows of a pair, and its help."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ondevice.common.sanitize import sanitize
from ondevice.preferences.history import Entry, Filter
from ondevice.preferences.project import Project
from ondevice.preferences.votes import Item, brief

HELP = """\
  1 2 … ← →  that answer is the best
  < >        the first, the second is much better (shift ← →)
  213        with more than two answers: the best first, in order; Enter ends it
             (in lines from a file or a program: a b …, bac, A B much better)
  t  x       a tie: equally good; all are bad
  s          skip, it comes again last
  u  U       undo, as often as you like; redo
  N  f       note, then a line; flag, for someone to look at
  r  *       reasons of the next vote; scores of the answers, 1 to 5
  H  I       history: look at votes, change one; guidelines of this project
  ctrl+a     all that is asked now is left out: it comes at the end, another
             time; u takes that back
  ctrl+k     keys of your own
  q  ?       quit, all votes are saved; this help"""


def block(title: str, text: str, width: int) -> list[str]:
    """Untrusted text under its title, a bar before every line: nothing in it can look like another
    answer's title.
    """
    shown = sanitize(text) or "(nothing)"
    block = ["", sanitize(title, newlines=False, limit=40)]
    for line in shown.split("\n"):
        parts = [line]
        if width > 20:
            parts = textwrap.wrap(
                line, width - 2, replace_whitespace=False, drop_whitespace=False
            ) or [""]
        block += [f"│ {part}" for part in parts]
    return block


def pair_lines(item: Item, names: Sequence[str]) -> list[str]:
    """A prompt, whole, and its answers under `names`, as wide as the terminal is."""
    width = 0
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    lines = []
    for message in item.messages:
        lines += block(f"prompt · {message.get('role', 'user')}", message_text(message), width)
    for name, slot in zip(names, item.shown, strict=False):
        lines += block(f"[{name}]", item.responses[slot].text, width)
    return lines


def message_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return str(content)


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def guidelines(project: Project) -> str:
    """What the raters share, for people."""
    reasons = ", ".join(f"{n} {reason}" for n, reason in enumerate(project.reasons, 1))
    lines = block("guidelines", project.guidelines or "none yet", 0)
    scales = ""
    if project.rubric:
        scales = f"\nscales, 1 to 5 (*): {sanitize(', '.join(project.rubric), newlines=False)}"
    return "\n".join([*lines, "", f"reasons: {sanitize(reasons, newlines=False)}{scales}"])


def history_lines(
    entries: Sequence[Entry], rater: str, wanted: Filter, most: int, names: str
) -> str:
    """The newest entries, a line each, with the number to go there by and what this rater may see
    of what was said; `names`: of answers, in their order."""
    lines = []
    for entry in entries[:most]:
        votes = entry.told_to(rater, wanted)
        told = " / ".join(dict.fromkeys(brief(vote, names) for vote in votes)) or "–"
        marks = f"{_flagged(entry)}{'noted ' * bool(entry.note)}"
        question = sanitize(" ".join(entry.question.split()), newlines=False)[:60]
        lines.append(f"{entry.item:>6}  {told:<10} {marks}{question}")
    return "\n".join(lines)


def _flagged(entry: Entry) -> str:
    if not entry.flagged:
        return ""
    return sanitize(f"flagged by {', '.join(entry.flagged_by)}  ", newlines=False)
