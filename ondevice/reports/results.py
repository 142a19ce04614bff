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
    """(stage, done.json) of every complete stage in the order of their beginning."""
    found = []
    for stage in run.stages():
        if record := stage.done_record():
            found.append((sanitize(stage.name, newlines=False), record))
    return found


def sections(done: Done) -> list[Section]:
    """The ladder first; then what there is to tell."""
    found = [_kinds(done), _reasoning(done), _reward(done), _about(done)]
    return [_ladder(done), *(section for section in found if section.table or section.notes)]


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
            apart = [a - b for a, b in zip(own, rival, strict=True)]
            found[name] = (
                sum(d > 0 for d in apart),
                sum(d == 0 for d in apart),
                sum(d < 0 for d in apart),
            )
    return found


def kl_of(record: Mapping[str, Any]) -> float | None:
    """The distance of a stage's model to the stage's start."""
    marks = _marks(record)
    kl: float | None = (marks.get("held_out") or {}).get("kl", marks.get("kl"))
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
    """A row a stage; columns that no stage has are left out, but for what each stage cost."""
    records = [record for _, record in done]
    marks = [_marks(record) for record in records]
    reasoning = [m.get("reasoning") or {} for m in marks]
    outcomes = [record.get("outcome") or {} for record in records]
    own = all(m.get("bits_per_byte") is None for m in marks)
    tries = sorted({r["passes"] for r in reasoning if r})
    won = win_rates(done)
    share = {name: counts[0] / sum(counts) for name, counts in won.items()}
    measured = [
        ("held-out loss", [number(o.get("loss") if own else None, "{:.4f}") for o in outcomes]),
        (
            "bits/byte",
            [
                number((o if own else m).get("bits_per_byte"), "{:.3f}")
                for o, m in zip(outcomes, marks, strict=True)
            ],
        ),
        ("masked tokens", [number(m.get("masked_accuracy"), "{:.1%}") for m in marks]),
        ("classes", [number((m.get("classes") or {}).get("accuracy"), "{:.1%}") for m in marks]),
        ("exact match", [number(m.get("exact_match"), "{:.1%}") for m in marks]),
        ("reasoning", [number(r.get("accuracy"), "{:.1%}") for r in reasoning]),
        (
            f"pass@{tries[0]}" if len(tries) == 1 else "pass@k",
            [number(r.get("pass_at"), "{:.1%}") for r in reasoning],
        ),
        ("wins, simulated", [number(share.get(name), "{:.1%}") for name, _ in done]),
        ("KL", [number(kl_of(record), "{:.3f}") for record in records]),
    ]
    cost = [
        ("time", [number(r.get("seconds"), duration) for r in records]),
        ("CPU s", [number(r.get("cpu_seconds"), "{:,.0f}") for r in records]),
        ("memory", [number(r.get("peak_bytes"), _gigabytes) for r in records]),
    ]
    kept = [(head, cells) for head, cells in measured if any(cell != NOTHING for cell in cells)]
    columns = [("stage", [name for name, _ in done]), *kept, *cost]
    table = [
        [head for head, _ in columns],
        *map(list, zip(*(cells for _, cells in columns), strict=True)),
    ]
    if len(done) > 1:
        table.append(["together", *[NOTHING] * len(kept), *_together(records)])
    return Section(
        "The ladder", table, _ladder_notes([head for head, _ in kept], reasoning, won, tries)
    )


def _together(records: Sequence[Mapping[str, Any]]) -> list[str]:
    def known(name: str) -> list[float]:
        return [record[name] for record in records if record.get(name) is not None] or [0]

    return [
        duration(sum(known("seconds"))),
        f"{sum(known('cpu_seconds')):,.0f}",
        _gigabytes(max(known("peak_bytes"))),
    ]


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
        asked = max(r["asked"] for r in reasoning if r)
        k = "/".join(map(str, tries))
        notes.append(
            f"reasoning: {asked} held-out problems answered greedily; pass@{k}: solved by at least one of {k} "
            "answers at temperature 1."
        )
    if won:
        counts = "; ".join(
            f"{name}: {w} won, {t} tied, {n} lost" for name, (w, t, n) in won.items()
        )
        asked = sum(next(iter(won.values())))
        notes.append(
            f"wins, simulated: the share of {asked} held-out prompts where the answer has more points than "
            f"that of the stage {RIVAL}; ties count as lost. The points are a rule's, not a person's. "
            f"{counts}."
        )
    if "KL" in heads:
        notes.append(
            "KL: how far the model has moved from the stage's start, in nats a completion."
        )
    return notes


def _kinds(done: Done) -> Section:
    """Columns for the stages that answered questions."""
    by_stage = {name: counts for name, record in done if (counts := _marks(record).get("by_kind"))}
    kinds = sorted({kind for counts in by_stage.values() for kind in counts})
    table = [["kind", "questions", *by_stage]] if kinds else []
    for kind in kinds:
        asked = max(counts[kind][1] for counts in by_stage.values() if kind in counts)
        shares = [
            f"{counts[kind][0] / counts[kind][1]:.0%}" if kind in counts else NOTHING
            for counts in by_stage.values()
        ]
        table.append([sanitize(kind, newlines=False), str(asked), *shares])
    return Section("Exact match by kind of instruction", table)


def _reasoning(done: Done) -> Section:
    """Rows for the stages, so that one sees whether the digits became right, or the steps were
    written where they help."""
    by_stage = {
        name: found["by_kind"]
        for name, record in done
        if (found := _marks(record).get("reasoning"))
    }
    kinds = sorted({kind for counts in by_stage.values() for kind in counts})
    if not kinds:
        return Section("", [])
    asked = {
        kind: max(counts[kind][2] for counts in by_stage.values() if kind in counts)
        for kind in kinds
    }
    table = [
        [
            "stage",
            *(
                sanitize(f"{kind}: {what}", newlines=False)
                for kind in kinds
                for what in ("right", "steps written")
            ),
        ]
    ]
    for name, counts in by_stage.items():
        table.append(
            [
                name,
                *(
                    f"{counts[kind][i] / counts[kind][2]:.0%}" if kind in counts else NOTHING
                    for kind in kinds
                    for i in (0, 1)
                ),
            ]
        )
    told = ", ".join(f"{count} {sanitize(kind, newlines=False)}" for kind, count in asked.items())
    return Section(
        "Reasoning by kind of problem",
        table,
        [
            f"{told}; answered greedily. Steps written: the answer works the problem out before it says the "
            "result, rightly or not."
        ],
    )


def reward_shares(marks: Mapping[str, Any]) -> list[tuple[str, Share]]:
    """(pairs of what kind, share of them that the reward model ranked rightly with Wilson's 95 %
    interval): all held-out pairs, then style and correctness apart where it is known what tells a
    pair apart."""
    low, high = marks["interval"]
    everything = Share(
        marks["accuracy"] * marks["pairs"], marks["pairs"], marks["accuracy"], low, high
    )
    parts = sorted((marks.get("by_part") or {}).items())
    return [
        ("all", everything),
        *(
            (sanitize(PARTS.get(part, part), newlines=False), wilson(right, of))
            for part, (right, of) in parts
            if of
        ),
    ]


def _reward(done: Done) -> Section:
    found = [
        (name, record, marks) for name, record in done if "interval" in (marks := _marks(record))
    ]
    if not found:
        return Section("", [])
    table, notes = [["stage", "pairs apart by", "pairs", "ranked rightly", "95 % interval"]], []
    for name, record, marks in found:
        for kind, share in reward_shares(marks):
            table.append(
                [
                    name,
                    kind,
                    str(share.of),
                    number(share.share, "{:.1%}"),
                    f"{number(share.low, '{:.1%}')} to {number(share.high, '{:.1%}')}",
                ]
            )
        if _marks(record).get("simulated"):
            whose = " The ratings are simulated: a rule's, not a person's."
        else:
            whose = ""
        notes.append(
            f"{name}: mean margin {number(marks.get('margin'), '{:.2f}')}, calibration error "
            f"{number(marks.get('calibration_error'), '{:.3f}')}.{whose}"
        )
    if any(_marks(record).get("simulated") for _, record, _ in found):
        simulated = ", simulated"
    else:
        simulated = ""
    return Section("The reward model on held-out pairs" + simulated, table, notes)


def _about(done: Done) -> Section:
    """What has no column: what stages without a model did, held-out figures of their own, notes on
    who rated.
    """
    lines = []
    for name, record in done:
        marks, told = _marks(record), []
        if "queued" in marks:
            told.append(
                f"{marks['queued']:,} prompts with different answers, to be rated; {marks.get('alike') or 0:,} "
                "left out because all their answers were alike"
            )
        if "votes" in marks:
            rule = marks.get("simulated_votes") or 0
            if rule:
                whose = f"{rule:,} of them simulated: by a rule, not by a person"
            else:
                whose = "all by people"
            told.append(f"{marks['votes']:,} votes, {whose}; {marks['pairs']:,} usable pairs")
        if isinstance(marks.get("pairs"), Mapping):  # DPO and its family
            whose = " (rated by a simulated rater)" if _marks(record).get("simulated") else ""
            told.append(
                f"prefers the better answer in {marks['pairs']['accuracy']:.1%} of held-out pairs{whose}, mean "
                f"margin {marks['pairs']['margin']:.3f}"
            )
        if isinstance(marks.get("judged"), Mapping):  # KTO on single completions
            told.append(
                f"puts {marks['judged']['accuracy']:.1%} of held-out completions on the side of their label, "
                f"mean margin {marks['judged']['margin']:.3f}"
            )
        if found := marks.get("classes"):
            told.append(
                f"{found['accuracy']:.1%} of {found['texts']:,} held-out texts put into the right one of "
                f"{len(found['names'])} classes (95 % interval {found['low']:.1%} to {found['high']:.1%}; the "
                f"most frequent class alone: {found['most_frequent']:.1%})"
            )
        if found := achieved(record.get("outcome") or {}):
            told.append(f"held out: {found}")
        elif held := marks.get("held_out"):  # of an older version
            shown = {
                "score": "score {:.2f}",
                "accuracy": "accuracy {:.1%}",
                "reward": "reward {:.2f}",
                "completion_length": "{:.0f} tokens a completion",
            }
            told.append(
                "held out: "
                + ", ".join(
                    form.format(held[key])
                    for key, form in shown.items()
                    if held.get(key) is not None
                )
            )
        told += map(str, record.get("notes") or [])
        lines += [f"{name}: {sanitize(sentence, newlines=False)}" for sentence in told]
    return Section("About the stages", [], lines)
