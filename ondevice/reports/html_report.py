"""report.html: the ladder, the curves, what was answered and how long it took, as one page that
fetches nothing.

No script and nothing from elsewhere; a policy in its head says so to the browser. Every text of a
model or a file goes through `sanitize_html`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ondevice.common.progress import duration
from ondevice.common.sanitize import sanitize_html
from ondevice.reports.curves import curves, svg
from ondevice.reports.results import Done, Section, Table, answers, reward_shares, sections
from ondevice.reports.style import STYLE
from ondevice.runs import events
from ondevice.runs.folder import RunFolder, StageFolder

ANSWER = 600  # characters of an answer that are shown
COMPLETIONS, GROUPS = 8, 2  # of a group, of a step
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
        *_asked(done),
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
    last = (done[-1][1].get("versions") or {}) if done else {}
    where = ", ".join(str(last[key]) for key in ("backend", "device", "dtype") if last.get(key))
    time = duration(sum(record.get("seconds") or 0 for _, record in done))
    return (
        f'<header><p class="mark">ondevice</p><h1>{title}</h1><p class="way">{way}</p>'
        f'<p class="dim">{sanitize_html(where)}{" · " if where else ""}{time} in all</p></header>'
    )


def _sections(done: Done) -> Iterator[str]:
    for section in sections(done):
        parts = [f"<h2>{sanitize_html(section.title)}</h2>"]
        if section.title.startswith("The reward model"):
            parts += [
                _intervals(name, record["marks"])
                for name, record in done
                if "interval" in (record.get("marks") or {})
            ]
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
        cells = "".join(f"<td>{sanitize_html(cell)}{_bar(cell)}</td>" for cell in row[1:])
        kind = ' class="sum"' if row[0] == "together" else ""
        rows.append(f'<tr{kind}><th scope="row">{sanitize_html(row[0])}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0">'  # so that the keyboard reaches what lies beside the screen
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(cell: str) -> str:
    """A share as a bar under its number."""
    try:
        share = float(cell.removesuffix("%")) if cell.endswith("%") else -1.0
    except ValueError:
        return ""
    if 0 <= share <= 100:
        return f'<i class="bar"><i style="width:{share:.1f}%"></i></i>'
    return ""


def _intervals(stage: str, marks: Mapping[str, Any]) -> str:
    """Shares of held-out pairs ranked rightly with their 95 % intervals, beside the half that a
    coin would rank.
    """
    rows = [
        (f"{kind}, {share.of}", share.share, share.low, share.high)
        for kind, share in reward_shares(marks)
        if share.share is not None and share.low is not None and share.high is not None
    ]
    left, width, height = 190, 620, 28 * len(rows) + 34

    def x(share: float) -> float:
        return left + share * (width - left - 60)

    drawn = [
        f'<path class="grid" d="M{x(s):.1f} 6V{height - 22}"/><text class="tick" x="{x(s):.1f}" y="{height - 8}" '
        f'text-anchor="middle">{s:.0%}{" (a coin)" if s == 0.5 else ""}</text>'
        for s in (0, 0.25, 0.5, 0.75, 1)
    ]
    for i, (name, share, below, above) in enumerate(rows):
        y = 20 + 28 * i
        drawn.append(
            f'<text class="label" x="{left - 14}" y="{y + 4}" text-anchor="end">{sanitize_html(name)}</text>'
            f'<path class="whisker" d="M{x(below):.1f} {y}H{x(above):.1f}M{x(below):.1f} {y - 4}v8'
            f'M{x(above):.1f} {y - 4}v8"/><circle class="held" cx="{x(share):.1f}" cy="{y}" r="4.5"/>'
            f'<text class="label" x="{width - 48}" y="{y + 4}">{share:.0%}</text>'
        )
    told = "; ".join(
        f"{name}: {share:.1%}, {below:.1%} to {above:.1%}" for name, share, below, above in rows
    )
    return (
        f'<svg class="wide" role="img" viewBox="0 0 {width} {height}"><title>{sanitize_html(stage)}, held-out pairs '
        f"ranked rightly: {sanitize_html(told)}</title>{''.join(drawn)}</svg>"
    )


def _curves(stages: Sequence[tuple[str, StageFolder]]) -> Iterator[str]:
    figures = "".join(
        f"<figure><figcaption>{sanitize_html(name)} <span>{sanitize_html(curve.title)}</span></figcaption>"
        f"{svg(curve, name)}</figure>"
        for name, stage in stages
        for curve in curves(stage.events)
    )
    if figures:
        yield (
            '<section><h2>Curves</h2><p class="legend"><span class="key raw">each training step</span> '
            '<span class="key mean">their mean over a window</span> '
            f'<span class="key dot">held-out data</span></p><div class="grid3">{figures}</div></section>'
        )


def _asked(done: Done) -> Iterator[str]:
    cards = []
    for prompt, said in answers(done):
        rows = "".join(
            f"<dt>{sanitize_html(stage)}</dt><dd>{sanitize_html(text.strip(), limit=ANSWER) or '(nothing)'}</dd>"
            for stage, text in said
        )
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
        found = [
            (step, groups)
            for step, groups in _ends(stage)
            if any(len(g["completions"]) > 1 for g in groups)
        ]
        parts = [
            f'<h3>step {step}</h3><div class="grid2">{"".join(map(_group, groups[:GROUPS]))}</div>'
            for step, groups in found
        ]
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
    told = [
        event
        for event in events.read(stage.events)
        if event.get("event") == "step" and "groups" in event
    ]
    out: list[tuple[int, list[dict[str, Any]]]] = []
    for event in told[:1] + told[-1:]:
        try:
            line = events.read_at(stage.groups, int(event["groups"]))
        except (ValueError, OSError):
            continue  # the file was cut or edited: there is nothing to show of this step
        if line.get("step") == event.get("step") and line["step"] not in [step for step, _ in out]:
            out.append((int(line["step"]), list(line.get("groups") or [])))
    return out


def _group(group: Mapping[str, Any]) -> str:
    shown = "".join(map(_completion, group["completions"][:COMPLETIONS]))
    more = len(group["completions"]) - COMPLETIONS
    rest = f'<p class="dim">and {more} more</p>' if more > 0 else ""
    known = group.get("answer")
    if known:
        known = f' <span class="dim">answer: {sanitize_html(str(known), limit=200)}</span>'
    else:
        known = ""
    return (
        f'<article><p class="prompt">{sanitize_html(group["prompt"], limit=ANSWER)}{known}</p>'
        f'<ul class="group">{shown}</ul>{rest}</article>'
    )


def _completion(one: Mapping[str, Any]) -> str:
    correct = (one.get("rewards") or {}).get("correct")
    sign = "" if correct is None else "✓" if correct == 1 else "✗"
    kind = {"✓": "right", "✗": "wrong"}.get(sign, "")
    word = f'<span class="sign" role="img" aria-label="{kind}">{sign}</span>' if sign else ""
    reward = one.get("reward")
    earned = "" if reward is None else f'<span class="earned">{reward:.2f}</span>'
    cut = ' <span class="dim">(cut off)</span>' if one.get("truncated") else ""
    return f'<li class="{kind}">{word}<span class="text">{_marked(one)}{cut}</span>{earned}</li>'


def _marked(one: Mapping[str, Any]) -> str:
    """A completion, what was read as its answer marked."""
    text, span = str(one["text"]), one.get("span")
    begin, end = span if isinstance(span, list) else (0, 0)
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
        table = [
            ["stage", "time", "share of the time"],
            *([name, duration(seconds), f"{seconds / whole:.1%}"] for name, seconds in spent),
        ]
        yield f'<section class="time"><h2>Where the time went</h2>{_table(table)}</section>'


def _settings(run: RunFolder, done: Done) -> Iterator[str]:
    parts = []
    if run.recipe.is_file():
        text = run.recipe.read_text(encoding="utf-8", errors="replace")
        parts.append(
            f"<details><summary>The recipe</summary><pre>{sanitize_html(text)}</pre></details>"
        )
    for name, record in done:
        told = {**(record.get("versions") or {}), **(record.get("fingerprint") or {})}
        text = "\n".join(
            f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
            for key, value in told.items()
        )
        parts.append(
            f"<details><summary>{sanitize_html(name)}: versions, and the settings that its result follows from"
            f"</summary><pre>{sanitize_html(text)}</pre></details>"
        )
    if parts:
        yield f"<section><h2>Settings and versions</h2>{''.join(parts)}</section>"
