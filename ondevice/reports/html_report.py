"""report.html: the ladder, the curves, what was answered and how long it took, as one page that
fetches nothing.

No script and nothing from elsewhere; a policy in its head says so to the browser. Every text of a
model or a file goes through `sanitize_html`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ondevice.common import bounded
from ondevice.common.progress import duration
from ondevice.common.sanitize import sanitize_html
from ondevice.reports.curves import curves, svg
from ondevice.reports.results import Done, Section, Table, answers, reward_shares, sections
from ondevice.reports.style import STYLE
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder

ANSWER = 600  # characters of an answer that are shown
COMPLETIONS, GROUPS = 8, 2  # of a group, of a step
_LEFT, _WIDTH = 190, 620  # of the picture of intervals: where shares begin, and the whole
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(run: RunFolder, done: Done) -> str:
    """The whole page. `done` is what `figures.done_records` found."""
    title = sanitize_html(run.path.resolve().name, newlines=False)
    stages = {stage.name: stage for stage in run.stages()}
    trained = [(name, stages[name]) for name, _ in done if name in stages]
    parts = [
        _head(title, done),
        *_sections(done),
        *_curves(trained),
        *_answers(done),
        *_groups(trained),
        *_time(done),
        *_settings(run, done),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – ondevice</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(title: str, done: Done) -> str:
    way = " → ".join(sanitize_html(name) for name, _ in done)
    cost = duration(sum(record.get("seconds") or 0 for _, record in done)) + " in all"
    machine = _machine(done)
    if machine:
        cost = f"{sanitize_html(machine)} · {cost}"
    return (
        f'<header><p class="mark">ondevice</p><h1>{title}</h1><p class="way">{way}</p>'
        f'<p class="dim">{cost}</p></header>'
    )


def _machine(done: Done) -> str:
    """On what the last stage ran: "torch, cuda, bfloat16"."""
    if not done:
        return ""
    _, record = done[-1]
    versions = record.get("versions") or {}
    parts = []
    for key in ("backend", "device", "dtype"):
        if versions.get(key):
            parts.append(str(versions[key]))
    return ", ".join(parts)


def _sections(done: Done) -> Iterator[str]:
    for section in sections(done):
        parts = [f"<h2>{sanitize_html(section.title)}</h2>"]
        if section.title.startswith("The reward model"):
            for name, record in done:
                if "interval" in (record.get("marks") or {}):
                    parts.append(_intervals(name, record["marks"]))
        if section.table:
            parts.append(_table(section.table))
        parts.append(_notes(section))
        yield f"<section>{''.join(parts)}</section>"


def _notes(section: Section) -> str:
    notes = "".join(f"<li>{sanitize_html(note)}</li>" for note in section.notes)
    if notes:
        return f'<ul class="notes">{notes}</ul>'
    return ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{sanitize_html(cell)}</th>' for cell in table[0])
    rows = []
    for row in table[1:]:
        name, *figures = row
        cells = "".join(f"<td>{sanitize_html(cell)}{_bar(cell)}</td>" for cell in figures)
        kind = ""
        if name == "together":
            kind = ' class="sum"'
        rows.append(f'<tr{kind}><th scope="row">{sanitize_html(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0">'  # so that the keyboard reaches what lies beside the screen
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(cell: str) -> str:
    """A share as a bar under its number; what a stage gained or cost may stand behind it."""
    figure = cell.split(" ")[0]
    if not figure.endswith("%"):
        return ""
    try:
        share = float(figure.removesuffix("%"))
    except ValueError:
        return ""
    if 0 <= share <= 100:
        return f'<i class="bar"><i style="width:{share:.1f}%"></i></i>'
    return ""


def _intervals(stage: str, marks: Mapping[str, Any]) -> str:
    """Shares of held-out pairs ranked rightly with their 95 % intervals, beside the half that a
    coin would rank.
    """
    rows = _known_intervals(marks)
    height = 28 * len(rows) + 34
    drawn = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        drawn.append(_share_line(share, height))
    for i, row in enumerate(rows):
        drawn.append(_whisker(row, y=20 + 28 * i))
    words = "; ".join(
        f"{row.name}: {row.share:.1%}, {row.low:.1%} to {row.high:.1%}" for row in rows
    )
    return (
        f'<svg class="wide" role="img" viewBox="0 0 {_WIDTH} {height}"><title>{sanitize_html(stage)}, held-out pairs '
        f"ranked rightly: {sanitize_html(words)}</title>{''.join(drawn)}</svg>"
    )


class _Interval(NamedTuple):
    """A share with its 95 % interval, and the pairs that it is of."""

    name: str
    share: float
    low: float
    high: float


def _known_intervals(marks: Mapping[str, Any]) -> list[_Interval]:
    intervals = []
    for kind, share in reward_shares(marks):
        if share.share is not None and share.low is not None and share.high is not None:
            name = f"{kind}, {share.of}"
            intervals.append(_Interval(name, share.share, share.low, share.high))
    return intervals


def _across(share: float) -> float:
    """Where a share stands from left to right."""
    return _LEFT + share * (_WIDTH - _LEFT - 60)


def _share_line(share: float, height: int) -> str:
    """An upright line with its share under it."""
    x = f"{_across(share):.1f}"
    label = f"{share:.0%}"
    if share == 0.5:
        label += " (a coin)"
    return (
        f'<path class="grid" d="M{x} 6V{height - 22}"/><text class="tick" x="{x}" y="{height - 8}" '
        f'text-anchor="middle">{label}</text>'
    )


def _whisker(row: _Interval, y: int) -> str:
    """A share as a dot on its interval, between its name and its number."""
    low, high = f"{_across(row.low):.1f}", f"{_across(row.high):.1f}"
    return (
        f'<text class="label" x="{_LEFT - 14}" y="{y + 4}" text-anchor="end">{sanitize_html(row.name)}</text>'
        f'<path class="whisker" d="M{low} {y}H{high}M{low} {y - 4}v8'
        f'M{high} {y - 4}v8"/><circle class="held" cx="{_across(row.share):.1f}" cy="{y}" r="4.5"/>'
        f'<text class="label" x="{_WIDTH - 48}" y="{y + 4}">{row.share:.0%}</text>'
    )


def _curves(stages: Sequence[tuple[str, StageFolder]]) -> Iterator[str]:
    figures = ""
    for name, stage in stages:
        for curve in curves(stage.events):
            caption = f"{sanitize_html(name)} <span>{sanitize_html(curve.title)}</span>"
            figures += f"<figure><figcaption>{caption}</figcaption>{svg(curve, name)}</figure>"
    if figures:
        yield (
            '<section><h2>Curves</h2><p class="legend"><span class="key raw">each training step</span> '
            '<span class="key mean">their mean over a window</span> '
            f'<span class="key dot">held-out data</span></p><div class="grid3">{figures}</div></section>'
        )


def _answers(done: Done) -> Iterator[str]:
    cards = []
    for prompt, replies in answers(done):
        rows = ""
        for stage, text in replies:
            answer = sanitize_html(text.strip(), limit=ANSWER) or "(nothing)"
            rows += f"<dt>{sanitize_html(stage)}</dt><dd>{answer}</dd>"
        cards.append(
            f'<article><p class="prompt">{sanitize_html(prompt, limit=ANSWER)}</p><dl>{rows}</dl></article>'
        )
    if cards:
        yield (
            "<section><h2>The same prompts, asked after every stage</h2>"
            f'<div class="grid2">{"".join(cards)}</div></section>'
        )


def _groups(stages: Sequence[tuple[str, StageFolder]]) -> Iterator[str]:
    """The first groups of the first and of the last step of a stage that compares completions of
    one prompt.
    """
    for name, stage in stages:
        parts = []
        for step, groups in _ends(stage):
            if any(len(group["completions"]) > 1 for group in groups):
                cards = "".join(map(_group, groups[:GROUPS]))
                parts.append(f'<h3>step {step}</h3><div class="grid2">{cards}</div>')
        if parts:
            yield (
                f"<section><h2>Groups of completions: {sanitize_html(name)}</h2>"
                f'<p class="dim">The first {GROUPS} prompts of the first and of the last step. ✓ right, ✗ wrong; '
                f"what was read as the answer is underlined; the number is the reward.</p>"
                f"{''.join(parts)}</section>"
            )


def _ends(stage: StageFolder) -> list[tuple[int, list[dict[str, Any]]]]:
    """(step, groups) of the first and the last step: a step's event says where in groups.jsonl its
    line begins, which holds after a resume too."""
    if not stage.groups.is_file():
        return []
    steps = []
    for event in events.read(stage.events):
        if event.get("event") == "step" and "groups" in event:
            steps.append(event)
    ends: dict[int, list[dict[str, Any]]] = {}
    for event in steps[:1] + steps[-1:]:
        try:
            line = events.read_at(stage.groups, int(event["groups"]))
        except (ValueError, OSError):
            continue  # the file was cut or edited: there is nothing to show of this step
        step = line.get("step")
        if step == event.get("step") and step not in ends:
            ends[int(line["step"])] = list(line.get("groups") or [])
    return list(ends.items())


def _group(group: Mapping[str, Any]) -> str:
    shown = "".join(map(_completion, group["completions"][:COMPLETIONS]))
    more = len(group["completions"]) - COMPLETIONS
    rest = ""
    if more > 0:
        rest = f'<p class="dim">and {more} more</p>'
    answer = ""
    if group.get("answer"):
        words = sanitize_html(str(group["answer"]), limit=200)
        answer = f' <span class="dim">answer: {words}</span>'
    return (
        f'<article><p class="prompt">{sanitize_html(group["prompt"], limit=ANSWER)}{answer}</p>'
        f'<ul class="group">{shown}</ul>{rest}</article>'
    )


def _completion(completion: Mapping[str, Any]) -> str:
    kind, sign = _verdict(completion)
    text = _marked(completion)
    if completion.get("truncated"):
        text += ' <span class="dim">(cut off)</span>'
    reward = completion.get("reward")
    earned = ""
    if reward is not None:
        earned = f'<span class="earned">{reward:.2f}</span>'
    return f'<li class="{kind}">{sign}<span class="text">{text}</span>{earned}</li>'


def _verdict(completion: Mapping[str, Any]) -> tuple[str, str]:
    """(class, sign) of a completion that was right or wrong; empty where that is not known."""
    correct = (completion.get("rewards") or {}).get("correct")
    if correct is None:
        return "", ""
    kind, sign = "wrong", "✗"
    if correct == 1:
        kind, sign = "right", "✓"
    return kind, f'<span class="sign" role="img" aria-label="{kind}">{sign}</span>'


def _marked(completion: Mapping[str, Any]) -> str:
    """A completion, what was read as its answer marked."""
    text, span = str(completion["text"]), completion.get("span")
    begin, end = 0, 0
    if isinstance(span, list):
        begin, end = span
    if not 0 <= begin < end <= min(len(text), ANSWER):
        return sanitize_html(text, limit=ANSWER)
    return (
        f"{sanitize_html(text[:begin])}<mark>{sanitize_html(text[begin:end])}</mark>"
        f"{sanitize_html(text[end:], limit=ANSWER)}"
    )


def _time(done: Done) -> Iterator[str]:
    spent = [(name, float(record.get("seconds") or 0)) for name, record in done]
    whole = sum(seconds for _, seconds in spent)
    if whole:
        table = [["stage", "time", "share of the time"]]
        for name, seconds in spent:
            table.append([name, duration(seconds), f"{seconds / whole:.1%}"])
        yield f'<section class="time"><h2>Where the time went</h2>{_table(table)}</section>'


def _settings(run: RunFolder, done: Done) -> Iterator[str]:
    parts = []
    if run.recipe.is_file():
        text = bounded.read_text(run.recipe, errors="replace")
        parts.append(
            f"<details><summary>The recipe</summary><pre>{sanitize_html(text)}</pre></details>"
        )
    for name, record in done:
        text = _settings_text(record)
        parts.append(
            f"<details><summary>{sanitize_html(name)}: versions, and the settings that its result follows from"
            f"</summary><pre>{sanitize_html(text)}</pre></details>"
        )
    if parts:
        yield f"<section><h2>Settings and versions</h2>{''.join(parts)}</section>"


def _settings_text(record: Mapping[str, Any]) -> str:
    """A line for each version and each part of the fingerprint."""
    settings = {**(record.get("versions") or {}), **(record.get("fingerprint") or {})}
    lines = []
    for key, value in settings.items():
        if not isinstance(value, str):
            value = json.dumps(value)
        lines.append(f"{key}: {value}")
    return "\n".join(lines)
