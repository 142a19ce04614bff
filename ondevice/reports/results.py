"""What the stages of a run achieved, as tables of words, read from their done.json:
`reports/report.py` sets them for a terminal and as Markdown, `reports/html_report.py` as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondevice.common.intervals import Share, wilson
from ondevice.common.progress import duration
from ondevice.common.sanitize import sanitize
from ondevice.reports.achieved import achieved
from ondevice.runs.folder import RunFolder

Table = list[list[str]]
# kind of question → how many answers are right, …, and at the end how many questions there were
Counts = Mapping[str, Sequence[int]]
Done = Sequence[tuple[str, Mapping[str, Any]]]  # (stage, what its done.json holds)
NOTHING = "–"
RIVAL = "sft"  # the stage whose answers the others' are held against
PARTS = {"courtesy": "style (courtesy)", "right": "correctness (right)"}


@dataclass(frozen=True)
class Section:
    """A table and the sentences that explain it; either may be empty. The texts are inert single
    lines.
    """

    title: str
    table: Table
    notes: Sequence[str] = ()


def done_records(run: RunFolder) -> list[tuple[str, dict[str, Any]]]:
    """(stage, done.json) of every complete stage in the run's order."""
    found = []
    for stage in run.stages():
        record = stage.done_record()
        if record:
            found.append((sanitize(stage.name, newlines=False), record))
    return found


def sections(done: Done) -> list[Section]:
    """The ladder first; then what there is to tell."""
    found = [_ladder(done)]
    for section in (_rewards(done), _kinds(done), _reasoning(done), _reward(done), _about(done)):
        if section.table or section.notes:
            found.append(section)
    return found


def answers(done: Done) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(prompt, [(stage, answer)])], as they are: nothing is made harmless yet."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, record in done:
        for pair in record.get("answers") or []:
            found.setdefault(pair["prompt"], []).append((name, pair["answer"]))
    return list(found.items())


def win_rates(done: Done) -> dict[str, tuple[int, int, int]]:
    """Stage → prompts (won, tied, lost) against the stage sft: whose answer has more points by the
    rater's rule. Only of stages that answered as many prompts as sft did."""
    points = {name: _marks(record).get("points") or [] for name, record in done}
    rival = points.pop(RIVAL, [])
    found = {}
    for name, own in points.items():
        if rival and len(own) == len(rival):
            found[name] = _compared(own, rival)
    return found


def _compared(own: Sequence[float], rival: Sequence[float]) -> tuple[int, int, int]:
    """How many prompts are (won, tied, lost), of the points of two stages' answers to each."""
    won = tied = lost = 0
    for one, other in zip(own, rival, strict=True):
        apart = one - other
        if apart > 0:
            won += 1
        elif apart < 0:
            lost += 1
        elif apart == 0:
            tied += 1
    return won, tied, lost


def kl_of(record: Mapping[str, Any]) -> float | None:
    """The distance of a stage's model to the stage's start."""
    marks = _marks(record)
    held_out = marks.get("held_out") or {}
    kl: float | None = held_out.get("kl", marks.get("kl"))
    return kl


def number(value: float | None, form: str | Callable[[float], str]) -> str:
    """A figure in words; – where there is none."""
    if value is None:
        return NOTHING
    if isinstance(form, str):
        return form.format(value)
    return form(value)


def _marks(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record.get("marks") or {}


def _ladder(done: Done) -> Section:
    """A row per stage; columns that no stage has are left out, except what each stage cost."""
    records = [record for _, record in done]
    reasoning = _reasoning_marks(records)
    tries = sorted({marks["passes"] for marks in reasoning})
    pass_head = "pass@k"
    if len(tries) == 1:
        pass_head = f"pass@{tries[0]}"
    own = all(_marks(record).get("bits_per_byte") is None for record in records)
    won = win_rates(done)
    figures = [_figures(record, won.get(name), own, pass_head) for name, record in done]
    rows = _with_changes(figures, () if own else _COMPARED)
    heads = _heads_with_figures(rows)
    table = [["stage", *heads, "time", "CPU s", "memory"]]
    for (name, record), row in zip(done, rows, strict=True):
        table.append([name, *(row[head] for head in heads), *_cost(record)])
    if len(done) > 1:
        table.append(["together", *[NOTHING] * len(heads), *_together(records)])
    notes = _ladder_notes(heads, reasoning, won, tries)
    if any(" " in row[head] for row in rows for head in heads):
        notes.insert(0, _CHANGES)
    return Section("The ladder", table, notes)


def _reasoning_marks(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the stages that were given problems made of them."""
    found = []
    for record in records:
        marks = _marks(record).get("reasoning")
        if marks:
            found.append(marks)
    return found


def _figures(
    record: Mapping[str, Any], won: tuple[int, int, int] | None, own: bool, pass_head: str
) -> dict[str, tuple[float | None, str]]:
    """A stage's figures and their forms, by the heads of their columns. `won` counts its wins, ties and losses;
    `own`: losses are told, each on the stage's own data, since no stage took the exam on the corpus.
    """
    marks = _marks(record)
    outcome = record.get("outcome") or {}
    reasoning = marks.get("reasoning") or {}
    classes = marks.get("classes") or {}
    loss = None
    bits = marks.get("bits_per_byte")
    if own:
        loss = outcome.get("loss")
        bits = outcome.get("bits_per_byte")
    share = None
    if won is not None:
        share = won[0] / sum(won)
    return {
        "held-out loss": (loss, "{:.4f}"),
        "bits/byte": (bits, "{:.3f}"),
        "masked tokens": (marks.get("masked_accuracy"), "{:.1%}"),
        "classes": (classes.get("accuracy"), "{:.1%}"),
        "exact match": (marks.get("exact_match"), "{:.1%}"),
        "reasoning": (reasoning.get("accuracy"), "{:.1%}"),
        pass_head: (reasoning.get("pass_at"), "{:.1%}"),
        "reward": (_reward_mean(marks), "{:.3f}"),
        "wins, simulated": (share, "{:.1%}"),
        "KL": (kl_of(record), "{:.3f}"),
    }


_COMPARED = ("bits/byte", "exact match", "reasoning", "reward", "wins, simulated")
"""Figures of one exam that all stages take. (pass@k moves with reasoning, KL is of a stage's own
start.)"""
_CHANGES = (
    "behind a figure: what the stage gained or cost beside the one before, in points of a hundred "
    "where it is a share."
)


def _change(change: float, form: str) -> str:
    """Points of a hundred of a share, whole ones from ten on; two digits of another figure."""
    if form.endswith("%}"):
        said = f"{100 * change:+.0f}" if abs(change) >= 0.0995 else f"{100 * change:+.1f}"
    else:
        said = f"{change:+.2f}"
    return said.replace("-", "−")


def _with_changes(
    figures: Sequence[Mapping[str, tuple[float | None, str]]], compared: Sequence[str]
) -> list[dict[str, str]]:
    """The figures in words, each with what the stage gained or cost: what it was after the newest
    stage before that has it. Points of a hundred where it is a share."""
    before: dict[str, float] = {}
    rows = []
    for figure in figures:
        row = {}
        for head, (value, form) in figure.items():
            row[head] = number(value, form)
            if value is None or head not in compared:
                continue
            if head in before:
                row[head] += f" {_change(value - before[head], form)}"
            before[head] = value
        rows.append(row)
    return rows


def _reward_mean(marks: Mapping[str, Any]) -> float | None:
    """The mean of what rewards give the answers to an exam's own prompts."""
    points = marks.get("points")
    if not points or "rewards" not in marks:
        return None
    return float(sum(points) / len(points))


def _heads_with_figures(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The heads of the columns in which a row has a figure."""
    if not rows:
        return []
    heads = []
    for head in rows[0]:
        if any(row[head] != NOTHING for row in rows):
            heads.append(head)
    return heads


def _cost(record: Mapping[str, Any]) -> list[str]:
    return [
        number(record.get("seconds"), duration),
        number(record.get("cpu_seconds"), "{:,.0f}"),
        number(record.get("peak_bytes"), _gigabytes),
    ]


def _together(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the stages cost together; the most memory is that of one of them."""
    seconds = sum(_known(records, "seconds"))
    cpu_seconds = sum(_known(records, "cpu_seconds"))
    most_memory = max(_known(records, "peak_bytes"))
    return [duration(seconds), f"{cpu_seconds:,.0f}", _gigabytes(most_memory)]


def _known(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A cost of every stage that has it; 0 where none has."""
    return [record[name] for record in records if record.get(name) is not None] or [0]


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _ladder_notes(
    heads: Sequence[str],
    reasoning: Sequence[Mapping[str, Any]],
    won: Mapping[str, tuple[int, int, int]],
    tries: Sequence[int],
) -> list[str]:
    notes = []
    if "held-out loss" in heads:
        notes.append(
            "held-out loss, bits/byte: each stage on the held-out part of its own data; they compare with the "
            "same stage of another run, not with the rows above and below."
        )
    if "reasoning" in heads:
        asked = max(marks["asked"] for marks in reasoning)
        k = "/".join(map(str, tries))
        notes.append(
            f"reasoning: {asked} held-out problems answered greedily; pass@{k}: solved by at least one of {k} "
            "answers at temperature 1."
        )
    if "reward" in heads:
        notes.append(
            "reward: what the rewards of the exam give one answer at temperature 1 to each of its "
            "held-out prompts, weighted and on average."
        )
    if won:
        counts = []
        for name, (wins, ties, losses) in won.items():
            counts.append(f"{name}: {wins} won, {ties} tied, {losses} lost")
        asked = sum(next(iter(won.values())))
        notes.append(
            f"wins, simulated: the share of {asked} held-out prompts where the answer has more points than "
            f"that of the stage {RIVAL}; ties count as lost. The points are a rule's, not a person's. "
            f"{'; '.join(counts)}."
        )
    if "KL" in heads:
        notes.append(
            "KL: how far the model has moved from the stage's start, in nats a completion."
        )
    return notes


def _rewards(done: Done) -> Section:
    """A row for each reward of an exam on data of its own, a column for each stage that took it."""
    by_stage = {
        name: _marks(record)["rewards"] for name, record in done if "rewards" in _marks(record)
    }
    table = []
    for reward in dict.fromkeys(reward for means in by_stage.values() for reward in means):
        figures = [number(means.get(reward), "{:.3f}") for means in by_stage.values()]
        table.append([sanitize(reward, newlines=False), *figures])
    if table:
        table.insert(0, ["reward", *by_stage])
    return Section("Rewards of the answers to held-out prompts", table)


def _kinds(done: Done) -> Section:
    """Columns for the stages that answered questions."""
    by_stage = {}
    for name, record in done:
        counts = _marks(record).get("by_kind")
        if counts:
            by_stage[name] = counts
    kinds = _kinds_in(by_stage)
    table = []
    if kinds:
        table.append(["kind", "questions", *by_stage])
    for kind in kinds:
        shares = [_share(counts, kind, 0) for counts in by_stage.values()]
        asked = _most_asked(by_stage, kind)
        table.append([sanitize(kind, newlines=False), str(asked), *shares])
    return Section("Exact match by kind of instruction", table)


def _reasoning(done: Done) -> Section:
    """Rows for the stages, so that one sees whether the digits became right, or the steps were
    written where they help."""
    by_stage = {}
    for name, record in done:
        marks = _marks(record).get("reasoning")
        if marks:
            by_stage[name] = marks["by_kind"]
    kinds = _kinds_in(by_stage)
    if not kinds:
        return Section("", [])
    heads = ["stage"]
    asked = []
    for kind in kinds:
        heads.append(sanitize(f"{kind}: right", newlines=False))
        heads.append(sanitize(f"{kind}: steps written", newlines=False))
        asked.append(f"{_most_asked(by_stage, kind)} {sanitize(kind, newlines=False)}")
    table = [heads]
    for name, counts in by_stage.items():
        row = [name]
        for kind in kinds:
            row.append(_share(counts, kind, 0))
            row.append(_share(counts, kind, 1))
        table.append(row)
    return Section(
        "Reasoning by kind of problem",
        table,
        [
            f"{', '.join(asked)}; answered greedily. Steps written: the answer works the problem out "
            "before it says the result, rightly or not."
        ],
    )


def _kinds_in(by_stage: Mapping[str, Counts]) -> list[str]:
    """The kinds of question that a stage was asked, in order."""
    return sorted({kind for counts in by_stage.values() for kind in counts})


def _most_asked(by_stage: Mapping[str, Counts], kind: str) -> int:
    """The most questions of this kind that a stage was asked."""
    return max(counts[kind][-1] for counts in by_stage.values() if kind in counts)


def _share(counts: Counts, kind: str, place: int) -> str:
    """One of the counts of a kind as a share of the questions; – where none of them was asked."""
    if kind not in counts:
        return NOTHING
    return f"{counts[kind][place] / counts[kind][-1]:.0%}"


def reward_shares(marks: Mapping[str, Any]) -> list[tuple[str, Share]]:
    """(pairs of what kind, share of them that the reward model ranked rightly with Wilson's 95 %
    interval): all held-out pairs, then style and correctness apart where it is known what tells a
    pair apart."""
    low, high = marks["interval"]
    everything = Share(
        marks["accuracy"] * marks["pairs"], marks["pairs"], marks["accuracy"], low, high
    )
    shares = [("all", everything)]
    for part, (right, of) in sorted((marks.get("by_part") or {}).items()):
        if of:
            shares.append((sanitize(PARTS.get(part, part), newlines=False), wilson(right, of)))
    return shares


def _reward(done: Done) -> Section:
    """A row for each kind of pairs that a reward model was asked to rank."""
    table = [["stage", "pairs apart by", "pairs", "ranked rightly", "95 % interval"]]
    notes = []
    title = "The reward model on held-out pairs"
    for name, record in done:
        marks = _marks(record)
        if "interval" not in marks:
            continue
        for kind, share in reward_shares(marks):
            interval = f"{number(share.low, '{:.1%}')} to {number(share.high, '{:.1%}')}"
            table.append([name, kind, str(share.of), number(share.share, "{:.1%}"), interval])
        whose = ""
        if marks.get("simulated"):
            title = "The reward model on held-out pairs, simulated"
            whose = " The ratings are simulated: a rule's, not a person's."
        notes.append(
            f"{name}: mean margin {number(marks.get('margin'), '{:.2f}')}, calibration error "
            f"{number(marks.get('calibration_error'), '{:.3f}')}.{whose}"
        )
    if not notes:
        return Section("", [])
    return Section(title, table, notes)


def _about(done: Done) -> Section:
    """What has no column: what stages without a model did, held-out figures of their own, notes on
    who rated.
    """
    lines = []
    for name, record in done:
        sentences = [*_about_ratings(_marks(record)), *_about_held_out(record)]
        sentences += map(str, record.get("notes") or [])
        for sentence in sentences:
            lines.append(f"{name}: {sanitize(sentence, newlines=False)}")
    return Section("About the stages", [], lines)


def _about_ratings(marks: Mapping[str, Any]) -> list[str]:
    """Sentences on the prompts that were sampled and the votes that were cast."""
    sentences = []
    if "queued" in marks:
        sentences.append(
            f"{marks['queued']:,} prompts with different answers, to be rated; {marks.get('alike') or 0:,} "
            "left out because all their answers were alike"
        )
    if "votes" in marks:
        rule = marks.get("simulated_votes") or 0
        if rule:
            whose = f"{rule:,} of them simulated: by a rule, not by a person"
        else:
            whose = "all by people"
        sentences.append(f"{marks['votes']:,} votes, {whose}; {marks['pairs']:,} usable pairs")
    return sentences


def _about_held_out(record: Mapping[str, Any]) -> list[str]:
    """Sentences on what a stage's model does with its own held-out data."""
    marks = _marks(record)
    sentences = []
    if isinstance(marks.get("pairs"), Mapping):  # DPO and its family
        whose = " (rated by a simulated rater)" if marks.get("simulated") else ""
        sentences.append(
            f"prefers the better answer in {marks['pairs']['accuracy']:.1%} of held-out pairs{whose}, mean "
            f"margin {marks['pairs']['margin']:.3f}"
        )
    if isinstance(marks.get("judged"), Mapping):  # KTO on single completions
        sentences.append(
            f"puts {marks['judged']['accuracy']:.1%} of held-out completions on the side of their label, "
            f"mean margin {marks['judged']['margin']:.3f}"
        )
    classes = marks.get("classes")
    if classes:
        sentences.append(
            f"{classes['accuracy']:.1%} of {classes['texts']:,} held-out texts put into the right one of "
            f"{len(classes['names'])} classes (95 % interval {classes['low']:.1%} to {classes['high']:.1%}; the "
            f"most frequent class alone: {classes['most_frequent']:.1%})"
        )
    outcome = achieved(record.get("outcome") or {})
    if outcome:
        sentences.append(f"held out: {outcome}")
    elif marks.get("held_out"):  # of an older version
        sentences.append(f"held out: {_older_figures(marks['held_out'])}")
    return sentences


def _older_figures(held: Mapping[str, Any]) -> str:
    """The held-out figures of a stage that an older version made, as words."""
    forms = {
        "score": "score {:.2f}",
        "accuracy": "accuracy {:.1%}",
        "reward": "reward {:.2f}",
        "completion_length": "{:.0f} tokens a completion",
    }
    sentences = []
    for name, form in forms.items():
        if held.get(name) is not None:
            sentences.append(form.format(held[name]))
    return ", ".join(sentences)
