"""Stands in for `ondevice worker` where a test needs no model: it says the last message back, word
by word.

    slow …        one word, then it waits for a cancel
    crash         it ends with a complaint; crash later: after a word
    long, full    an answer that is cut: by the settings, where they allow three tokens, or by the context
    template      what a person has set for the chat template
    Question …    another answer to each number that is asked for
    \\x1b…         whatever is asked comes back as it is

As a reward model it gives every answer the same score where the prompt has a 3 in it, else the
first one 5 more.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    if "broken" in sys.argv[1]:
        sys.exit("ondevice: broken: is not a checkpoint")
    thinks = "sft" in sys.argv[1]
    tell(
        event="ready",
        model=sys.argv[1],
        parameters=10,
        context=64,
        chat="init" not in sys.argv[1],
        template_kwargs={"thinks": False} if thinks else {},
        template_reads=["thinks"] if thinks else [],
    )
    for raw in sys.stdin:
        request = json.loads(raw)
        if request["op"] == "cancel":
            continue
        name, messages = request["id"], request.get("messages")
        said = messages[-1]["content"] if messages else request["text"]
        if request["op"] == "score":
            first = 0.0 if "3" in said else 5.0
            tell(
                event="done",
                id=name,
                scores=[first] + [0.0] * (len(request["responses"]) - 1),
                seconds=0.1,
            )
            continue
        if said.startswith("crash"):
            if said != "crash":
                tell(event="token", id=name, text="half an answer")
            sys.exit("out of memory")
        if said == "refuse":
            told = "has 99 tokens, the model's context holds 64"
            tell(event="error", id=name, message=told, where="", hint="shorten it")
            continue
        cancelled = said.startswith("slow")
        seed, turns = request["sampling"]["seed"], len(messages or [])
        if said == "template":
            said = f"told {request['sampling']['chat_template_kwargs'] or 'nothing'}"
        if said.startswith("Question"):
            said = f"answer {request['number']} at {request['sampling']['temperature']}"
        words = ["slow"] if cancelled else [str(turns), *said.split(" "), str(seed)]
        for word in words:
            tell(event="token", id=name, text=word + " ")
        if cancelled:
            while json.loads(sys.stdin.readline())["op"] != "cancel":
                pass
        tell(
            event="done",
            id=name,
            text=" ".join(words),
            tokens=len(words),
            stopped=said not in ("long", "full"),
            prompt_tokens=64 - len(words) if said == "full" else 3,
            cancelled=cancelled,
            forgotten=2 if said == "forget" else 0,
            seconds=0.5,
        )


if __name__ == "__main__":
    main()
