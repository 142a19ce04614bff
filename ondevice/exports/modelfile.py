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

from ondevice.common.numbers import is_number
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
        body = ""
        for n, role in enumerate(roles):
            before, after = self.around[role]
            body += f"{before}{_MARK}{n}.{after}"
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
    template = _template(tokenizer, opens)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    for stop_id in tokenizer.stop_ids:
        word = tokenizer.inner.id_to_token(stop_id)
        if '"' not in word and "\n" not in word:
            lines.append(f'PARAMETER stop "{word}"')
    lines += _parameters(generation)
    lines += [f"PARAMETER num_ctx {context}", ""]
    return "\n".join(lines), template is not None


def _template(tokenizer: Tokenizer, opens: bool) -> str | None:
    """The chat template as a Go template; None where it cannot be written as one."""
    if tokenizer.chat_template is None:
        return "{{ .Prompt }}"
    parts = parts_of(tokenizer)
    if parts is None:
        return None
    lead = parts.lead
    if opens:
        lead = lead.removeprefix(tokenizer.named.get("bos_token", ""))
    return _go(parts, lead)


def _parameters(generation: Mapping[str, Any]) -> list[str]:
    """How answers are drawn, where the model's folder says it."""
    found = {theirs: generation.get(ours) for ours, theirs in _PARAMETERS.items()}
    if generation.get("do_sample") is False:
        found |= {"temperature": 0, "top_k": None, "top_p": None, "min_p": None}
    if found["repeat_penalty"] not in (None, 1):
        found["repeat_last_n"] = -1  # the whole text, as transformers
    lines = []
    for name, value in found.items():
        if is_number(value):
            lines.append(f"PARAMETER {name} {value}")
    return lines


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
            shown = parts.write(ROLES)
            if "{{" in shown or '"""' in shown:  # which Ollama would read as its own
                return None
            return parts
    return None


def trims(tokenizer: Tokenizer) -> bool:
    """Whether the template takes white space off the ends of contents, which Ollama's templates
    cannot.
    """
    text = render([{"role": "user", "content": f" {_MARK} "}], tokenizer, prompt=True)
    return f" {_MARK} " not in text


def _rendered(tokenizer: Tokenizer, roles: tuple[str, ...], prompt: bool = True) -> str:
    chat = [{"role": role, "content": f"{_MARK}{n}."} for n, role in enumerate(roles)]
    return render(chat, tokenizer, prompt=prompt)


def _go(parts: Parts, lead: str) -> str:
    """No trimming dashes: they would take white space of the template along."""
    branches = []
    for role, (before, after) in parts.around.items():
        branches.append(f'eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
    choices = "{{ else if ".join(branches)
    return (
        f"{lead}{{{{ range .Messages }}}}{{{{ if {choices}{{{{ end }}}}{{{{ end }}}}{parts.answer}"
    )
