"""The ladder's figures against ones worked by hand, on run folders made up here; the page is whole,
small and inert.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ondevice.reports.curves import MOST, curves, decimate, smooth, svg
from ondevice.reports.report import html_of, ladder, write_report
from ondevice.reports.results import done_records, sections, win_rates
from ondevice.runs.folder import RunFolder

HOSTILE = "</dd><script src=//x.y>a</script>\x1b[2J\u202e|`*_[a](b)&lt;<img src=x onerror=y>\r\n# \u200b$x$"
VOID = {"meta", "path", "circle", "img"}


class Made:
    """A run folder; each stage begins a second after the one before."""

    def __init__(self, path: Path) -> None:
        self.run, self.count = RunFolder(path), 0

    def stage(
        self, name: str, marks: dict[str, Any], *events: dict[str, Any], **record: Any
    ) -> Made:
        folder = self.run.stage(name).create()
        self.count += 1
        lines = [{"t": float(self.count), "event": "start", "step": 0}, *events]
        folder.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        spent = {"seconds": 10.0, "cpu_seconds": 7.0, "peak_bytes": 1_000_000_000 * self.count}
        folder.done.write_text(
            json.dumps({"fingerprint": {}, "marks": marks, "notes": [], **spent, **record})
        )
        return self

    def rows(self) -> list[list[str]]:
        return sections(done_records(self.run))[0].table

    def column(self, head: str) -> dict[str, str]:
        """Stage → cell of the ladder."""
        heads, *rows = self.rows()
        return {row[0]: row[heads.index(head)] for row in rows}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r")


REASONING = {
    "accuracy": 0.25,
    "pass_at": 0.5,
    "passes": 8,
    "asked": 4,
    "by_kind": {"quick": [0, 1, 2], "sum": [1, 2, 2]},
}
REWARD = {
    "accuracy": 0.75,
    "interval": [0.5, 0.9],
    "pairs": 8,
    "by_part": {"courtesy": [4, 4], "right": [2, 4]},
    "margin": 1.25,
    "calibration_error": 0.125,
}
VOTES = {"votes": 20, "simulated_votes": 20, "pairs": 8}
GROUP = {
    "prompt": "1+1?",
    "answer": "2",
    "completions": [
        {
            "text": "so 2.",
            "truncated": False,
            "rewards": {"correct": 1.0},
            "reward": 1.1,
            "span": [3, 4],
        },
        {
            "text": "3",
            "truncated": True,
            "rewards": {"correct": 0.0},
            "reward": 0.1,
            "span": [0, 1],
        },
    ],
}


def test_a_tie_is_no_win(made: Made) -> None:
    made.stage("pretrain", {"points": [0, 0, 0, 0, 0]}).stage("sft", {"points": [1, 1, 1, 0, 0]})
    made.stage("ppo", {"points": [2.5, 1, 0, 1, 1], "held_out": {"kl": 0.5}})
    assert win_rates(done_records(made.run)) == {"pretrain": (0, 2, 3), "ppo": (3, 1, 1)}
    assert made.column("wins, simulated") == {
        "pretrain": "0.0%",
        "sft": "–",
        "ppo": "60.0%",
        "together": "–",
    }
    assert "ppo: 3 won, 1 tied, 1 lost" in " ".join(ladder(made.run).split())
    assert made.column("KL")["ppo"] == "0.500"


@pytest.mark.parametrize("points", [None, [1, 1]])
def test_without_the_same_prompts_there_is_no_duel(made: Made, points: list[float] | None) -> None:
    """Neither against a stage sft that answered none, nor against one that was asked other ones."""
    made.stage("sft", {"points": points} if points else {}).stage("ppo", {"points": [1, 2, 3]})
    assert "wins, simulated" not in made.rows()[0] and "simulated" not in ladder(made.run)


def test_columns_are_there_where_a_stage_has_them(made: Made) -> None:
    made.stage("sft", {"bits_per_byte": 0.5, "exact_match": 0.125})
    assert made.rows() == [
        ["stage", "bits/byte", "exact match", "time", "CPU s", "memory"],
        ["sft", "0.500", "12.5%", "0:10", "7", "1.00 GB"],
    ]
    made.stage("grpo", {"bits_per_byte": 0.75, "reasoning": REASONING})
    assert made.rows()[1:] == [
        ["sft", "0.500", "12.5%", "–", "–", "0:10", "7", "1.00 GB"],
        ["grpo", "0.750 +0.25", "–", "25.0%", "50.0%", "0:10", "7", "2.00 GB"],
        ["together", "–", "–", "–", "–", "0:20", "14", "2.00 GB"],
    ]
    assert made.rows()[0][3:5] == ["reasoning", "pass@8"]


def test_what_a_stage_gained_and_cost_stands_behind_its_figures(made: Made) -> None:
    """Beside the newest stage before that has the figure; in points of a hundred for shares."""
    made.stage("sft", {"bits_per_byte": 0.5, "exact_match": 0.5, "reasoning": REASONING})
    made.stage("sample", {"queued": 5})
    worse = {**REASONING, "accuracy": 0.2}
    made.stage("dpo", {"bits_per_byte": 0.52, "exact_match": 0.75, "reasoning": worse})
    rows = {row[0]: row[1:4] for row in made.rows()}
    assert rows["sft"] == ["0.500", "50.0%", "25.0%"]
    assert rows["dpo"] == ["0.520 +0.02", "75.0% +25", "20.0% −5.0"]
    assert "behind a figure" in ladder(made.run)
    write_report(made.run)
    assert "width:75.0%" in html_of(made.run).read_text()  # a bar all the same


def test_nothing_is_said_of_a_run_without_stages(made: Made) -> None:
    made.run.create()
    assert ladder(made.run).splitlines()[0] == "stage  time  CPU s  memory"
    write_report(made.run)
    assert well_formed(html_of(made.run).read_text()).tags["h1"] == 1


def test_own_data_shows_the_held_out_loss(made: Made) -> None:
    made.stage("init", {}, outcome={"loss": None, "bits_per_byte": None})
    made.stage("pretrain", {}, outcome={"loss": 1.5, "bits_per_byte": 0.75})
    made.stage(
        "dpo",
        {"pairs": {"accuracy": 0.625, "margin": 0.5}, "simulated": 0},
        outcome={"loss": 0.25, "bits_per_byte": None},
    )
    assert made.column("held-out loss") == {
        "init": "–",
        "pretrain": "1.5000",
        "dpo": "0.2500",
        "together": "–",
    }
    assert made.column("bits/byte")["pretrain"] == "0.750"
    assert "exact match" not in made.rows()[0]
    assert "dpo: prefers the better answer in 62.5% of held-out pairs, mean margin 0.500" in ladder(
        made.run
    )
    assert "simulated" not in ladder(made.run)


def test_with_an_exam_the_losses_stay_out(made: Made) -> None:
    made.stage("sft", {"bits_per_byte": 0.5}, outcome={"loss": 1.5, "bits_per_byte": 0.75})
    assert made.rows()[0][1] == "bits/byte" and made.column("bits/byte") == {"sft": "0.500"}


def test_stages_without_a_model_have_no_column_of_answers(made: Made) -> None:
    made.stage("sft", {"by_kind": {"sum": [1, 4], "facts": [1, 2]}}).stage(
        "sample", {"queued": 5, "alike": 1}
    )
    made.stage("rate", VOTES).stage("ppo", {"by_kind": {"sum": [3, 4]}})
    kinds = next(s for s in sections(done_records(made.run)) if s.title.startswith("Exact match"))
    assert kinds.table == [
        ["kind", "questions", "sft", "ppo"],
        ["facts", "2", "50%", "–"],
        ["sum", "4", "25%", "75%"],
    ]
    assert [row[0] for row in made.rows()] == ["stage", "sft", "sample", "rate", "ppo", "together"]
    assert (
        "rate: 20 votes, 20 of them simulated: by a rule, not by a person; 8 usable pairs"
        in ladder(made.run)
    )


def test_people_s_votes_are_not_called_simulated(made: Made) -> None:
    made.stage("rate", {**VOTES, "simulated_votes": 0}).stage("reward", {**REWARD, "simulated": 0})
    assert "rate: 20 votes, all by people" in ladder(made.run)
    write_report(made.run)
    assert (
        "simulated"
        not in ladder(made.run) + made.run.report.read_text() + html_of(made.run).read_text()
    )


def test_steps_and_digits_are_told_apart(made: Made) -> None:
    made.stage("grpo", {"reasoning": REASONING})
    found = next(s for s in sections(done_records(made.run)) if s.title.startswith("Reasoning"))
    assert found.table == [
        ["stage", "quick: right", "quick: steps written", "sum: right", "sum: steps written"],
        ["grpo", "0%", "50%", "50%", "100%"],
    ]


def test_the_reward_model_is_told_by_parts_and_as_simulated(made: Made) -> None:
    made.stage("reward", {**REWARD, "simulated": 8})
    found = next(
        s for s in sections(done_records(made.run)) if s.title.startswith("The reward model")
    )
    assert found.title.endswith("simulated")
    # Wilson's intervals: 4 of 4 reaches 1 and begins at 1 / (1 + z²/4); 2 of 4 lies about a half
    assert found.table == [
        ["stage", "pairs apart by", "pairs", "ranked rightly", "95 % interval"],
        ["reward", "all", "8", "75.0%", "50.0% to 90.0%"],
        ["reward", "style (courtesy)", "4", "100.0%", "51.0% to 100.0%"],
        ["reward", "correctness (right)", "4", "50.0%", "15.0% to 85.0%"],
    ]
    made.stage("sft", {})
    # whichever was begun first
    assert [row[0] for row in made.rows()] == ["stage", "sft", "reward", "together"]


def test_the_whole_road_fits_a_hundred_columns(made: Made) -> None:
    scores = {
        "bits_per_byte": 0.5,
        "exact_match": 0.5,
        "reasoning": REASONING,
        "points": [1, 2],
        "by_kind": {"sum": [1, 2]},
    }
    for name in ("init", "pretrain", "sft"):
        made.stage(name, scores)
    made.stage("sample", {"queued": 5}).stage("rate", VOTES).stage("reward", REWARD)
    made.stage("ppo", {**scores, "held_out": {"kl": 0.5}}).stage(
        "grpo", scores, notes=["rewards: " + "correct " * 40]
    )
    assert max(map(len, ladder(made.run).splitlines())) <= 100


def test_a_torn_stage_is_left_out(made: Made) -> None:
    made.stage("sft", {"exact_match": 0.5})
    (made.run.stage("ppo").create().path / "lock").write_text("")
    assert [row[0] for row in made.rows()] == ["stage", "sft"]


class Page(HTMLParser):
    """Counts tags, and sees that what is opened is closed, that nothing is fetched and that
    pictures have titles.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.text = ""
        self.titled: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        names = dict(attributes)
        assert not {"src", "href", "xlink:href", "srcset", "action", "data"} & set(names)
        assert not any(name.startswith("on") for name in names)
        assert tag not in ("script", "img", "link", "iframe", "object", "base", "a")
        if tag == "svg":
            assert names["role"] == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-2:] == ["svg", "title"]:
            self.titled.append(data)


def well_formed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def read_markdown(text: str) -> tuple[set[str], str]:
    """The kinds of things in a Markdown text, but for the insides of tables and lists, and all its
    words.
    """
    kinds, words = set(), ""
    for block in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        for token in block.children or [block]:
            kind = re.sub("_(open|close)$", "", token.type)
            kinds |= {kind} - {"inline", "thead", "tbody", "tr", "th", "td", "list_item"}
            words += token.content
    return kinds, words


def test_hostile_text_stays_text_everywhere(made: Made) -> None:
    group = json.loads(json.dumps(GROUP).replace("1+1?", json.dumps(HOSTILE)[1:-1]))
    group["completions"][0] |= {"text": HOSTILE, "span": [2, 12]}
    made.stage(
        "sft",
        {"by_kind": {HOSTILE: [1, 2]}, "reasoning": {**REASONING, "by_kind": {HOSTILE: [1, 1, 2]}}},
        answers=[{"prompt": HOSTILE, "answer": HOSTILE}, {"prompt": "p", "answer": " "}],
        versions={"backend": HOSTILE},
        fingerprint={HOSTILE: HOSTILE},
    )
    made.stage("reward", {**REWARD, "by_part": {HOSTILE: [1, 2]}}, notes=[HOSTILE])
    made.stage("grpo", {}, {"event": "step", "step": 1, "lr": 1.0, "reward": 1.0, "groups": 0})
    made.run.stage("grpo").groups.write_text(json.dumps({"step": 1, "groups": [group]}) + "\n")
    made.run.recipe.write_text(HOSTILE, encoding="utf-8")
    write_report(made.run)
    plain, marked, page = (
        ladder(made.run),
        made.run.report.read_text(),
        html_of(made.run).read_text(),
    )
    for text in (plain, marked, page):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u200b]", text)
    assert "(nothing)" in plain and "(nothing)" in marked and "(nothing)" in page
    kinds, words = read_markdown(marked)
    assert kinds == {"heading", "table", "paragraph", "bullet_list", "text", "strong"}
    found = well_formed(page)
    shown = (
        HOSTILE.replace("\x1b", "␛")
        .replace("\r", "␍")
        .replace("\u202e", "\\u202e")
        .replace("\u200b", "\\u200b")
    )
    assert found.text.count(shown) >= 3  # the answer, the recipe, a completion in three pieces
    assert shown.replace("\n", "␊") in words and shown.replace("\n", "␊") in plain
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_the_page_shows_curves_groups_and_intervals(made: Made) -> None:
    steps = [
        {
            "event": "step",
            "step": n,
            "lr": 1.0,
            "loss": 9.0,
            "reward": n / 10,
            "accuracy": 0.5,
            "kl": 0.1 * n,
            "completion_length": 5.0,
            "groups": None,
        }
        for n in range(1, 51)
    ]
    lines = [
        json.dumps({"step": n, "groups": [{**GROUP, "prompt": f"at {n}?"}] * 3}) + "\n"
        for n in (1, 2, 50)
    ]
    steps[0]["groups"], steps[-1]["groups"] = 0, len(lines[0] + lines[1])
    steps = [{k: v for k, v in step.items() if v is not None} for step in steps]
    made.stage("reward", {**REWARD, "simulated": 8})
    made.stage("grpo", {}, *steps, {"event": "eval", "step": 50, "reward": 0.75, "accuracy": 0.25})
    made.run.stage("grpo").groups.write_text("".join(lines))
    write_report(made.run)
    page = well_formed(html_of(made.run).read_text())
    assert page.tags["svg"] == 5 and len(page.titled) == 5  # the intervals and four curves
    assert (
        "grpo: reward over 50 steps, from 0.100 at step 1 to 5.000 at step 50; held out 0.750 at step 50"
        in page.titled
    )
    assert "style (courtesy), 4: 100.0%, 51.0% to 100.0%" in page.titled[0]
    assert (
        page.text.count("at 1?") == 2
        and page.text.count("at 50?") == 2
        and "at 2?" not in page.text
    )
    assert page.text.count("✓") == 4 + 1 and page.text.count("✗") == 4 + 1  # and the key
    assert page.text.count("step") > 5 and page.tags["mark"] == 8


def test_the_groups_of_an_edited_file_are_left_out(made: Made) -> None:
    made.stage("grpo", {}, {"event": "step", "step": 1, "lr": 1.0, "reward": 1.0, "groups": 7})
    made.run.stage("grpo").groups.write_text(json.dumps({"step": 1, "groups": [GROUP]}) + "\n")
    write_report(made.run)
    assert "1+1?" not in html_of(made.run).read_text()


def test_a_resume_counts_once_and_odd_numbers_are_left_out(made: Made) -> None:
    told = [
        {"event": "step", "step": n, "lr": 1.0, "loss": loss} for n, loss in ((1, 4.0), (2, 9.0))
    ]
    made.stage(
        "sft",
        {},
        *told,
        {"event": "resume", "step": 1},
        {"event": "step", "step": 2, "lr": 1.0, "loss": 3.0},
        {"event": "step", "step": 3, "lr": 1.0, "loss": None},
        {"event": "eval", "step": 2, "loss": 3.5},
    )
    (curve,) = curves(made.run.stage("sft").events)
    assert (curve.title, curve.steps, curve.held) == (
        "loss",
        [(1.0, 4.0), (2.0, 3.0)],
        [(2.0, 3.5)],
    )


@pytest.mark.parametrize(
    ("stage", "title"), [("classify", "classes found"), ("reward", "pairs ranked rightly")]
)
def test_a_curve_of_right_answers_says_what_is_right(made: Made, stage: str, title: str) -> None:
    made.stage(
        stage,
        {},
        {"event": "start", "step": 0, "stage": stage},
        {"event": "step", "step": 1, "lr": 1.0, "loss": 4.0, "accuracy": 0.5},
    )
    assert [curve.title for curve in curves(made.run.stage(stage).events)] == ["loss", title]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [1e-323, 0.0], [-1e199, 1e199], [5.0, 5.0 + 1e-15]]
)
def test_any_numbers_can_be_drawn(made: Made, values: list[float]) -> None:
    made.stage(
        "sft",
        {},
        *({"event": "step", "step": n, "lr": 1.0, "loss": v} for n, v in enumerate(values)),
    )
    (curve,) = curves(made.run.stage("sft").events)
    drawn = svg(curve, "sft")
    assert "nan" not in drawn and "inf" not in drawn


def test_curves_are_decimated_and_keep_their_spikes(made: Made) -> None:
    points = [(float(n), 1.0 + n % 7 / 100) for n in range(10_000)]
    points[4321], points[8765] = (4321.0, 9.0), (8765.0, -3.0)
    kept = decimate(points)
    assert len(kept) <= MOST and kept == sorted(kept)
    assert {points[4321], points[8765], points[0], points[-1]} <= set(kept)
    assert decimate(points[:MOST]) == points[:MOST]
    made.stage(
        "sft", {}, *({"event": "step", "step": int(x), "lr": 1.0, "loss": y} for x, y in points)
    )
    (curve,) = curves(made.run.stage("sft").events)
    paths = re.findall(r'class="(?:raw|mean)" d="(M[^"]+)"', svg(curve, "sft"))
    assert len(paths) == 2 and all(path.count("L") < MOST for path in paths)
    write_report(made.run)
    assert html_of(made.run).stat().st_size < 30_000


def test_the_mean_is_over_a_window_about_each_point() -> None:
    line = [(float(n), 2.0 * n) for n in range(100)]
    assert smooth(line) == line  # symmetric up to the ends: a straight line stays one
    spike = [(float(n), 5.0 if n == 50 else 0.0) for n in range(100)]
    assert [y for _, y in smooth(spike)][47:54] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
