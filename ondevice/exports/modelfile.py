"""Ollama's Modelfile beside a GGUF file. Ollama reads no Jinja: the chat template is found again as
a Go template.

Where a chat is a lead, then each message between a prefix and a suffix of its role, then what opens
the answer, it can be written that way; the parts are read off what the template writes, and checked
on further chats, also such as do not alternate. Where no parts write all of them, there is no
template.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ondevice.data.chat_encoding import render
from ondevice.data.messages import BadRow
from ondevice.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_MARK = "Xq7"
_CHATS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
# Roles that do not alternate: a template may refuse them, else it has to write them as the parts
# do.
_OTHERS = (
    ("user", "user"),
    ("assistant", "user"),
    ("user", "assistant", "assistant", "user"),
    ("system", "system", "user"),
    ("user", "system", "user"),
    ("user", "assistant", "system"),
    ("system", "user", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class Parts:
    """A chat template taken apart: role → (before, after) its content."""

    lead: str
    around: dict[str, tuple[str, str]]
    answer: str

    def write(self, roles: tuple[str, ...]) -> str:
        body = "".join(
            f"{self.around[role][0]}{_MARK}{n}.{self.around[role][1]}"
            for n, role in enumerate(roles)
        )
        return self.lead + body + self.answer


def modelfile(
    file: str,
    tokenizer: Tokenizer,
    context: int,
    opens: bool,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, bool]:
    """(the text, whether the chat template is in it). `opens`: llama.cpp puts the bos token before
    a text; `generation`: what generation_config.json says, of which Ollama's own parameters are
    written."""
    lines = [f"FROM ./{file}"]
    parts = parts_of(tokenizer) if tokenizer.chat_template is not None else None
    if tokenizer.chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif parts is not None:
        bos = tokenizer.named.get("bos_token", "") if opens else ""
        lines.append(f'TEMPLATE """{_go(parts, parts.lead.removeprefix(bos))}"""')
    stops = [tokenizer.inner.id_to_token(i) for i in tokenizer.stop_ids]
    lines += [f'PARAMETER stop "{word}"' for word in stops if '"' not in word and "\n" not in word]
    lines += _parameters(generation)
    return "\n".join(
        [*lines, f"PARAMETER num_ctx {context}", ""]
    ), parts is not None or tokenizer.chat_template is None


def _parameters(generation: Mapping[str, Any]) -> list[str]:
    """How answers are drawn, where the model's folder says it."""
    found = {theirs: generation.get(ours) for ours, theirs in _PARAMETERS.items()}
    if generation.get("do_sample") is False:
        found |= {"temperature": 0, "top_k": None, "top_p": None, "min_p": None}
    if found["repeat_penalty"] not in (None, 1):
        found["repeat_last_n"] = -1  # the whole text, as transformers
    return [
        f"PARAMETER {name} {value}"
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def parts_of(tokenizer: Tokenizer) -> Parts | None:
    """None where the template does more than to surround contents."""
    try:
        texts = {roles: _rendered(tokenizer, roles) for roles in _CHATS}
        open_end = _rendered(tokenizer, ("user",), prompt=False)
    except BadRow:
        return None
    for roles in _OTHERS:
        with suppress(BadRow):  # it has no chat of these roles
            texts[roles] = _rendered(tokenizer, roles)
    longest = _CHATS[-1]
    pieces = texts[longest].split(_MARK)
    if len(pieces) != len(longest) + 1 or not texts[("user",)].startswith(open_end):
        return None
    answer = texts[("user",)][len(open_end) :]
    between = [piece.split(".", 1)[-1] for piece in pieces]  # without the number of a mark
    head, _, user_end = open_end.partition(f"{_MARK}0.")
    # where the lead ends and a message's prefix begins is not to be seen where all prefixes begin
    # alike: every cut is tried, and one is right that writes all chats
    for cut in range(len(os.path.commonprefix([head, pieces[0]])), -1, -1):
        user, system = head[cut:], pieces[0][cut:]
        if not (
            between[1].endswith(user)
            and between[3].endswith(user)
            and between[2].startswith(user_end)
        ):
            continue
        parts = Parts(
            head[:cut],
            {
                "system": (system, between[1].removesuffix(user)),
                "user": (user, user_end),
                "assistant": (between[2].removeprefix(user_end), between[3].removesuffix(user)),
            },
            answer,
        )
        if all(parts.write(roles) == text for roles, text in texts.items()):
            if not any(sign in parts.write(ROLES) for sign in ("{{", '"""')):
                return parts
            return None
    return None


def trims(tokenizer: Tokenizer) -> bool:
    """Whether the template takes white space off the ends of contents, which Ollama's templates
    cannot.
    """
    found = render([{"role": "user", "content": f" {_MARK} "}], tokenizer, prompt=True)
    return f" {_MARK} " not in found


def _rendered(tokenizer: Tokenizer, roles: tuple[str, ...], prompt: bool = True) -> str:
    chat = [{"role": role, "content": f"{_MARK}{n}."} for n, role in enumerate(roles)]
    return render(chat, tokenizer, prompt=prompt)


def _go(parts: Parts, lead: str) -> str:
    """No trimming dashes: they would take white space of the template along."""
    choices = "{{ else if ".join(
        f'eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for role, (before, after) in parts.around.items()
    )
    return (
        f"{lead}{{{{ range .Messages }}}}{{{{ if {choices}{{{{ end }}}}{{{{ end }}}}{parts.answer}"
    )
