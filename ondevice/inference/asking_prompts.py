"""What a model is asked for a question about a sentence, and for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ondevice.inference.answer_spans import HOW_MANY, WHERE, WHO, WHY, Span

WRITE = "{sentence}\nAsk for: {answer}"
ANSWER = "{passage}\n\nAnswer in a few words, with the text above: {question}"
WRITTEN = {
    WHO: (
        ("Clara Voss sold bread to 20 sailors of Hull in June.", "Clara Voss",
         "Who sold bread to 20 sailors of Hull in June?"),
        ("In spring, Peter walks to his father's mill and sells flour.", "Peter",
         "Who walks to his father's mill and sells flour in spring?"),
        ("Anna used to keep 12 geese behind the old church.", "Anna",
         "Who used to keep 12 geese behind the old church?"),
    ),
    HOW_MANY: (
        ("Peter Lang painted 14 doors on Monday and 9 windows on Friday.", "14",
         "How many doors did Peter Lang paint on Monday?"),
        ("A ticket for the ferry to Hull costs $12 in winter.", "$12",
         "How much does a ticket for the ferry to Hull cost in winter?"),
        ("There are 40 red roses in the garden of the mill.", "40",
         "How many red roses are in the garden of the mill?"),
    ),
    WHERE: (
        ("Anna Berg took her two brothers to Lisbon by train.", "Lisbon",
         "Where did Anna Berg take her two brothers by train?"),
        ("The first stone bridge was built in Hull by Clara Voss.", "Hull",
         "Where was the first stone bridge built by Clara Voss?"),
    ),
    WHY: (
        ("Anna sold the grey horse because the roof had to be mended.",
         "the roof had to be mended", "Why did Anna sell the grey horse?"),
        ("The town of Ull built a bridge because the ferry sank every winter.",
         "the ferry sank every winter", "Why did the town of Ull build a bridge?"),
    ),
}  # fmt: skip
"""Sentences, answers and questions of each kind that stand before what is asked: a small model does as
it sees."""
ANSWERED = (
    (
        "The stone bridge over the Ull was built by Clara Voss in 1873. Until then carts had crossed on a "
        "ferry, which sank every other winter. Voss asked for no pay but a house on the northern bank.",
        "Who built the stone bridge over the Ull in 1873?",
        "Clara Voss",
    ),
    (
        "Tom keeps 12 hens and 3 goats behind the mill. In spring he sells eggs in Hull for $4.",
        "How many goats does Tom keep behind the mill?",
        "3",
    ),
)
"""Passages, questions and answers that stand before a question."""


def to_write(span: Span) -> list[dict[str, Any]]:
    """What a model is asked for a question."""
    asked = []
    for sentence, answer, question in WRITTEN[span.kind]:
        asked.append((WRITE.format(sentence=sentence, answer=answer), question))
    return _turns(asked, WRITE.format(sentence=span.sentence, answer=span.answer))


def to_answer(passage: str, question: str) -> list[dict[str, Any]]:
    """What a model is asked for the answer."""
    asked = [
        (ANSWER.format(passage=text, question=question), answer)
        for text, question, answer in ANSWERED
    ]
    return _turns(asked, ANSWER.format(passage=passage, question=question))


def _turns(before: Sequence[tuple[str, str]], last: str) -> list[dict[str, Any]]:
    messages = []
    for user, assistant in before:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    return [*messages, {"role": "user", "content": last}]
