"""The keys of the Rate screen. `ondevice rate` has the same (`ondevice/preferences/terminal_answers.py`): a
test compares them. The ids are those of `ondevice/preferences/own_keys.py`: what a person may give
another key.
"""

from __future__ import annotations

from textual.binding import Binding, BindingType

VOTES: list[BindingType] = [
    Binding(
        "left,1",
        "pick(0)",
        "better",
        key_display="← →",
        tooltip="The first (left) answer is better",
        id="left",
    ),
    Binding(
        "right,2",
        "pick(1)",
        "second",
        show=False,
        tooltip="The second (right) answer is better",
        id="right",
    ),
    Binding(
        "3",
        "pick(2)",
        "third",
        key_display="3 4",
        tooltip="The third answer is better, where there is one",
        id="third",
    ),
    Binding(
        "4",
        "pick(3)",
        "fourth",
        show=False,
        tooltip="The fourth answer is better, where there is one",
        id="fourth",
    ),
    Binding("enter", "enter", "end", tooltip="End a ranking of three or four early"),
    Binding(
        "shift+left,less_than_sign",
        "pick(0, 2)",
        "much",
        key_display="⇧",
        tooltip="The first is much better",
        id="much_left",
    ),
    Binding(
        "shift+right,greater_than_sign",
        "pick(1, 2)",
        "much better",
        show=False,
        tooltip="The second is much better",
        id="much_right",
    ),
    Binding("5", "elsewhere('ladder')", show=False),
    Binding("6", "elsewhere('chat')", show=False),
    Binding("7", "elsewhere('push')", show=False),
    Binding("t", "outcome('tie')", "tie", tooltip="Equally good", id="tie"),
    Binding("x", "outcome('all_bad')", "all bad", tooltip="All of them are bad", id="all_bad"),
    Binding("s", "skip", "skip", tooltip="Not now: it comes again at the end", id="skip"),
    Binding(
        "ctrl+a",
        "leave_out",
        "skip all",
        show=False,
        tooltip="Leave out all that is asked now, of / or of a list of H: they come at the end",
        id="leave_out",
    ),
    Binding(
        "u,backspace",
        "undo",
        "undo",
        tooltip="Take the newest vote back, as often as you like",
        id="undo",
    ),
    Binding(
        "U",
        "redo",
        "redo",
        show=False,
        tooltip="Store a vote again that u has taken back",
        id="redo",
    ),
]
READING: list[BindingType] = [
    Binding("space,pagedown", "page(1)", "page", tooltip="All boxes a page down", id="page"),
    Binding("pageup", "page(-1)", "page up", show=False, tooltip="All boxes a page up"),
    Binding("end", "read_all", "read all", show=False, tooltip="All boxes to their end"),
    Binding("home", "page(-1000)", "top", show=False, tooltip="All boxes to their beginning"),
    Binding(
        "j,down",
        "scroll(1)",
        "scroll",
        key_display="j k",
        show=False,
        tooltip="Scroll the answers down",
        id="down",
    ),
    Binding("k,up", "scroll(-1)", "up", show=False, tooltip="Scroll the answers up", id="up"),
    Binding(
        "J",
        "scroll_one(1)",
        "one box",
        key_display="J K",
        tooltip="Scroll one box down: the question, or the one that tab chooses",
        id="box_down",
    ),
    Binding(
        "K", "scroll_one(-1)", "one box up", show=False, tooltip="Scroll one box up", id="box_up"
    ),
    Binding("tab", "turn_on", "box", show=False, tooltip="Another box for J and K"),
    Binding(
        "c", "context", "context", tooltip="The whole conversation before the answers", id="context"
    ),
    Binding("d", "diff", "diff", tooltip="Mark the words in which two answers differ", id="diff"),
    Binding(
        "w",
        "side",
        "layout",
        show=False,
        tooltip="Answers side by side or under each other",
        id="layout",
    ),
    Binding(
        "V",
        "verbatim",
        "source",
        show=False,
        tooltip="Markdown drawn, or as it is written",
        id="source",
    ),
]
MARKS: list[BindingType] = [
    Binding(
        "H",
        "history",
        "history",
        tooltip="All votes so far: look, filter, change, settle",
        id="history",
    ),
    Binding("r", "reasons", "reasons", tooltip="Reasons for the next vote", id="reasons"),
    Binding(
        "asterisk",
        "scores",
        "scores",
        key_display="*",
        tooltip="Scores of the answers, 1 to 5, on the scales of this project",
        id="scores",
    ),
    Binding(
        "f",
        "flag",
        "flag",
        tooltip="Mark this pair for someone to look at; again: no more",
        id="flag",
    ),
    Binding(
        "N",
        "note",
        "note",
        tooltip="A note on this pair, or another text for the one there is",
        id="note",
    ),
    Binding(
        "E",
        "own_answer",
        "own answer",
        show=False,
        tooltip="Write a better answer, from the first or the one that tab chose: a row for sft",
        id="own_answer",
    ),
    Binding(
        "I",
        "guidelines",
        "guide",
        tooltip="Guidelines and reasons of this project",
        id="guidelines",
    ),
]
PROJECT: list[BindingType] = [
    Binding(
        "slash", "wanted", "only", key_display="/", tooltip="What is asked, and a goal", id="only"
    ),
    Binding("i", "rater", "rater", tooltip="Who rates: a name for each person", id="rater"),
    Binding("S", "statistics", "figures", tooltip="What the votes are worth so far", id="figures"),
    Binding("Y", "why", "why", show=False, tooltip="Why this pair is shown and no other", id="why"),
    Binding(
        "m",
        "more",
        "more",
        tooltip="Further pairs: sampled while you rate, or from a file",
        id="more",
    ),
    Binding("M", "generate", "many", tooltip="Many pairs at once, by the stage sample", id="many"),
    Binding(
        "v", "rounds", "rounds", tooltip="Rate while the model learns: versions, live", id="rounds"
    ),
    Binding(
        "P", "learn('dpo')", "dpo", tooltip="Train by DPO on these votes: the filled form", id="dpo"
    ),
    Binding(
        "W", "learn('reward')", "reward", tooltip="Train a reward model on these votes", id="reward"
    ),
    Binding(
        "ctrl+k",
        "own_keys",
        "keys",
        show=False,
        tooltip="Keys of your own for all this",
        id="own_keys",
    ),
    # what these keys are elsewhere, or once were here: said, and nothing done
    Binding("a,b,A,B,g,G,n,p", "letter", "", show=False),
]
# Two deeds that stand as one in the foot.
PAIRS = {
    "left": "right",
    "third": "fourth",
    "much_left": "much_right",
    "down": "up",
    "box_down": "box_up",
}
KEYS: list[BindingType] = [*VOTES, *READING, *MARKS, *PROJECT]
AT_THE_END = (
    "learn('dpo')",
    "learn('reward')",
    "generate",
)  # in the foot; the keys are always there
SEVERAL = ("pick(2)", "enter")  # for three and four answers alone
