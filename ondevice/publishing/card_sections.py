"""The sections of a model card, each from what the stages of a run have left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ondevice.common.progress import duration, size
from ondevice.common.sanitize import sanitize
from ondevice.publishing.history import (
    RATINGS,
    StageRecord,
    commits,
    data_names,
    data_read,
    licences,
    lineage,
    made_with,
    notes,
    parameters,
    raters,
    start_of,
)
from ondevice.publishing.public_names import CORPUS, own_name, plain_values, sources_value
from ondevice.publishing.usage import WRITES, WRITES_ANEW, Subject
from ondevice.reports.curves import curves, picture
from ondevice.reports.report import cell, markdown
from ondevice.reports.results import sections

WHAT: Mapping[str, str] = {
    "init": "random weights",
    "pretrain": "learning from plain text",
    "sft": "instruction tuning on chats",
    "sample": "responses to be rated",
    "rate": "rating",
    "classify": "a classifier: it tells texts apart, and writes none",
    "reward": "a reward model: it scores a whole conversation, and writes no text",
    "value_model": "the value model beside it: it scores an answer that has begun, and writes no text",
    "dpo": "preference tuning on pairs, without a reward model",
    "ppo": "preference tuning by a reward model (PPO)",
    "grpo": "reasoning, from verifiable rewards (GRPO)",
}
_LEFT_OUT = {
    "out",
    "resume",
    "backend",
    "device",
    "dtype",
    "model",
    "reward_model",
    "keep",
    "save_every",
    "sample_every",
    "sample_prompts",
    "push_every",
    "push_to",
    "track",
    "ratings",
}
_SOURCES = {"data", "validation", "replay", "sft_data"}
_FOLDERS = {"tokenizer", "reward_file", "other", "chat_template"}
"""Settings that name files and folders: where these lie is not told."""
_COUNTED = {
    "tokens": "tokens",
    "chats": "chats",
    "pairs": "pairs",
    "problems": "problems",
    "prompts": "prompts",
    "votes": "votes",
    "replayed": "chats of plain text",
}


def about(pasts: Sequence[StageRecord], subject: Subject, folder: Path) -> str:
    """What the model is, what it began from, and its stages."""
    past = pasts[-1]
    chain = lineage(list(pasts))
    # what was sampled and rated in between belongs to the way; a model that it did not begin from
    # does not
    stages = []
    for one in pasts:
        if one in chain or not one.makes_policy:
            stages.append(one.name)
    way = " → ".join(stages)
    count = f"{parameters(folder):,} parameters"
    what = f"A {subject.config.get('model_type', 'a')} model of {count}"
    if subject.adapter:
        what = (
            f"An adapter (LoRA, in PEFT's format) of {count} beside {subject.base_name}, "
            "which it needs"
        )
    half = ""
    if not past.record:
        half = f" This is a checkpoint of a stage that has not ended: step {past.step:,}."
    return (
        f"{cell(what)}, trained with ondevice. It began from {cell(start_of(chain[0]))}; its stages: "
        f"{cell(way)}. The last one, {cell(past.name)}: {WHAT.get(past.name, 'a stage')}.{half}\n"
    )


def stage_folders(folders: Sequence[str], repo: str) -> list[str]:
    """The folders of the stages whose models stand beside this one; empty where there are none."""
    if not folders:
        return []
    names = ", ".join(f"`{name}`" for name in folders)
    return [
        "## Every stage\n",
        f"Each stage's model is in a folder of its name: {names}; "
        f'`from_pretrained("{repo}", subfolder="{folders[0]}")` opens one.\n',
    ]


def how_made(pasts: Sequence[StageRecord]) -> list[str]:
    """A table with a row per stage: its data, its steps and its time."""
    table = [
        ["stage", "what", "began from", "data (hash)", "amount", "steps", "tokens trained", "time"]
    ]
    table += map(_stage_row, pasts)
    return ["## How it was made\n", *markdown(table), "", *_licences(pasts)]


def _stage_row(past: StageRecord) -> list[str]:
    steps: int | None = past.step
    if past.record:
        steps = past.outcome.get("steps")
    start = ""
    if "model" in past.config:
        start = start_of(past)
    time = ""
    seconds = past.record.get("seconds")
    if seconds is not None:
        time = duration(seconds)
    return [
        past.name,
        WHAT.get(past.name, ""),
        start,
        _data(past),
        _amount(past),
        _count(steps),
        _count(past.outcome.get("tokens")),
        time,
    ]


def _count(value: int | None) -> str:
    """A number with its thousands apart; empty where there is none."""
    if not value:
        return ""
    return f"{value:,}"


def _data(past: StageRecord) -> str:
    """The data that a stage has read, with the Hub's commits and hashes where they are known."""
    at = {name: f"{name} at {commit[:12]}" for name, commit in commits(past).items()}
    sources = []
    for names, mark in data_read(past):
        text = " + ".join(at.get(name, name) for name in names)
        if mark:
            text += f" ({mark})"
        sources.append(text)
    return ", ".join(sources)


def _amount(past: StageRecord) -> str:
    """How much data a stage has read."""
    amounts = []
    for key, word in _COUNTED.items():
        if isinstance(past.data.get(key), int):
            amounts.append(f"{past.data[key]:,} {word}")
    return ", ".join(amounts)


def _licences(pasts: Sequence[StageRecord]) -> list[str]:
    """A paragraph on the licences of the data; none where no data was read."""
    names: set[str] = set()
    stated: dict[str, str] = {}
    for past in pasts:
        names.update(data_names(past))
        stated.update(licences(past))
    sentences = []
    if CORPUS in names:
        sentences.append(
            "The built-in corpus is generated by ondevice (Apache-2.0): small invented worlds, sums and "
            "chats."
        )
    for name, licence in stated.items():
        sentences.append(f"The licence of {cell(name)} is {cell(licence)}, as its card states.")
    if names - {CORPUS, RATINGS, *stated}:
        sentences.append("Licences of the other data are not recorded.")
    if sentences:
        return [" ".join(sentences) + "\n"]
    return []


def held_out_results(pasts: Sequence[StageRecord]) -> list[str]:
    """The ladder and what belongs to it, up to this stage."""
    done = []
    for past in pasts:
        if past.record:
            done.append((past.name, {**past.record, "notes": notes(past)}))
    if not done:
        return []
    lines = ["## Held-out results\n"]
    for number, section in enumerate(sections(done)):
        if number and section.title:
            lines.append(f"### {cell(section.title)}\n")
        if section.table:
            lines += [*markdown(section.table), ""]
        if section.notes:
            lines += [f"- {cell(note)}" for note in section.notes]
            lines.append("")
    return lines


def curve_pictures(pasts: Iterable[StageRecord]) -> dict[str, str]:
    """Path → SVG of every curve."""
    pictures = {}
    for past in pasts:
        for curve in curves(past.folder.events):
            name = _plain_name(f"{past.name}-{curve.title}")
            pictures[f"curves/{name}.svg"] = picture(curve, past.name)
    return pictures


def _plain_name(text: str) -> str:
    """A file's name without a sign that a path or Markdown reads otherwise."""
    name = ""
    for sign in text.lower():
        if sign.isalnum() and sign.isascii():
            name += sign
        else:
            name += "-"
    return name


def curve_links(pictures: Mapping[str, str]) -> list[str]:
    """Links to the curves' pictures."""
    if not pictures:
        return []
    lines = ["## Curves\n"]
    for path in pictures:
        title = path.removeprefix("curves/").removesuffix(".svg").replace("-", " ")
        lines.append(f"![{title}]({path})")
    lines.append("")
    return lines


def who_rated(pasts: Sequence[StageRecord]) -> list[str]:
    """Who rated the pairs that stages learned from; empty where nobody did."""
    lines = []
    for past in pasts:
        counts = raters(past)
        if counts is None:
            continue
        pairs, people, programs = counts
        lines.append(
            f"- {cell(past.name)} learned from {pairs:,} pairs, rated by "
            f"{_raters_in_words(people, programs)}."
        )
    if not lines:
        return []
    return ["## Ratings\n", *lines, ""]


def _raters_in_words(people: int, programs: int) -> str:
    kinds = []
    if people == 1:
        kinds.append("1 person")
    elif people:
        kinds.append(f"{people} people")
    if programs:
        plural = "s" if programs > 1 else ""
        kinds.append(f"{programs} simulated rater{plural} (a rule, not a person)")
    return " and ".join(kinds)


def cost(pasts: Sequence[StageRecord]) -> list[str]:
    """Time, tokens and memory of all stages, and what they ran on."""
    seconds = sum(past.record.get("seconds") or 0 for past in pasts)
    cpu = sum(past.record.get("cpu_seconds") or 0 for past in pasts)
    tokens = sum(past.outcome.get("tokens") or 0 for past in pasts)
    peak = max((past.record.get("peak_bytes") or 0 for past in pasts), default=0)
    lines = [
        "## What it took\n",
        f"- time: {duration(seconds)} ({cpu:,.0f} CPU seconds)",
        f"- tokens trained on: {tokens:,}",
        f"- memory at most: {size(peak)}",
    ]
    machines = dict.fromkeys(made_with(past) for past in pasts if past.versions)
    for machine in machines:
        lines.append(f"- on: {cell(machine)}")
    lines.append("")
    return lines


def limits(pasts: Sequence[StageRecord], subject: Subject) -> list[str]:
    """What is known of what the model cannot do."""
    output = "What it answers"
    if subject.task in (WRITES, WRITES_ANEW):
        output = "What it writes"
    sentences = []
    context = subject.config.get("max_position_embeddings") or subject.config.get("n_positions")
    if context:
        vocabulary = subject.config.get("vocab_size", 0)
        sentences.append(f"Its context holds {context:,} tokens, its vocabulary {vocabulary:,}.")
    sentences.append(
        f"{output} was checked by the measurements above and by nothing else: neither for truth nor for harm."
    )
    if _corpus_alone(pasts):
        sentences.append(
            "It has read the built-in corpus alone: an invented world and its sums. Of the real one it knows "
            "nothing."
        )
    if any(_simulated(past) for past in pasts):
        sentences.append(
            "Its simulated ratings say what a rule prefers, and nothing of what people do."
        )
    return ["## Limits\n", *(f"- {sentence}" for sentence in sentences), ""]


def _simulated(past: StageRecord) -> bool:
    """Whether simulated raters have rated what a stage learned from."""
    counts = raters(past)
    if counts is None:
        return False
    _, _, programs = counts
    return programs > 0


def _corpus_alone(pasts: Sequence[StageRecord]) -> bool:
    """Whether every source of every stage is the built-in corpus, or a rule's ratings of what the
    run's own models wrote, and no weights came from elsewhere. People rate chats and imported pairs
    as well."""
    names: set[str] = set()
    for past in pasts:
        read = data_names(past)
        names.update(read)
        if RATINGS not in read:
            continue
        counts = raters(past)
        if counts is None:
            return False
        _, people, _ = counts
        if people != 0:
            return False
    if not names or not names <= {CORPUS, RATINGS}:
        return False
    if RATINGS in names and not any(_samples_own_model(past) for past in pasts):
        return False
    return start_of(lineage(list(pasts))[0]) == "random weights"


def _samples_own_model(past: StageRecord) -> bool:
    return past.name == "sample" and not past.config.get("other")


def all_settings(pasts: Sequence[StageRecord]) -> list[str]:
    """Every stage's settings, folded."""
    lines = ["## Settings\n"]
    for past in pasts:
        lines += [
            f"<details><summary>{past.name}</summary>\n",
            *settings_table(past.config),
            "\n</details>\n",
        ]
    return lines


def settings_table(config: Mapping[str, Any]) -> list[str]:
    """Settings that say how a model was made, without the folders of this machine."""
    table = [["setting", "value"]]
    for name, value in config.items():
        if name in _LEFT_OUT or value in ("", None, [], ()):
            continue
        if isinstance(value, str):
            if name in _SOURCES:
                value = sources_value(value)
            elif name in _FOLDERS:
                value = own_name(value)
        table.append([name, str(plain_values(value))])
    return markdown(table)


def example_prompt(pasts: Sequence[StageRecord]) -> str:
    """One that the run asked its stages, to be asked again."""
    for past in reversed(pasts):
        for answer in past.record.get("answers") or ():
            prompt = str(answer["prompt"])
            if _plain(prompt):
                return prompt
    return "Hello"


def _plain(text: str) -> bool:
    """Whether it can stand in a line of code on a page."""
    return (
        0 < len(text) <= 200
        and text == sanitize(text, newlines=False)
        and not set(text) & set("`<>\\\n")
    )
