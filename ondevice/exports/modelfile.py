"""Ollama's Modelfile beside a GGUF file. Ollama reads no Jinja: the chat template is found again as a Go template.

Where a chat is a lead, then each message between a prefix and a suffix of its role, then what opens the answer, it can
be written that way; the parts are read off what the template writes, and checked on further chats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ondevice.data.chat import render
from ondevice.data.formats import BadRow
from ondevice.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
_PARAMETERS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
               "repetition_penalty": "repeat_penalty"}
_MARK = "Xq7"
_CHATS = (("user",), ("system", "user"), ("user", "assistant", "user"),
          ("system", "user", "assistant", "user", "assistant", "user"))


@dataclass(frozen=True)
class Parts:
    """A chat template taken apart: role → (before, after) its content."""

    lead: str
    around: dict[str, tuple[str, str]]
    answer: str

    def write(self, roles: tuple[str, ...]) -> str:
        body = "".join(f"{self.around[role][0]}{_MARK}{n}.{self.around[role][1]}" for n, role in enumerate(roles))
        return self.lead + body + self.answer


def modelfile(file: str, tokenizer: Tokenizer, context: int, opens: bool,
              generation: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, bool]:
    """(the text, whether the chat template is in it). `opens`: llama.cpp puts the bos token before a text;
    `generation`: what generation_config.json says, of which Ollama's own parameters are written."""
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
    return "\n".join([*lines, f"PARAMETER num_ctx {context}", ""]), parts is not None or tokenizer.chat_template is None


def _parameters(generation: Mapping[str, Any]) -> list[str]:
    """How answers are drawn, where the model's folder says it."""
    found = {theirs: generation.get(ours) for ours, theirs in _PARAMETERS.items()}
    if generation.get("do_sample") is False:
        found |= {"temperature": 0, "top_k": None, "top_p": None, "min_p": None}
    if found["repeat_penalty"] not in (None, 1):
        found["repeat_last_n"] = -1  # the whole text, as transformers
    return [f"PARAMETER {name} {value}" for name, value in found.items()
            if isinstance(value, int | float) and not isinstance(value, bool)]


def parts_of(tokenizer: Tokenizer) -> Parts | None:
    """None where the template does more than to surround contents."""
    try:
        texts = [_rendered(tokenizer, roles) for roles in _CHATS]
        open_end = _rendered(tokenizer, ("user",), prompt=False)
    except BadRow:
        return None
    pieces = texts[3].split(_MARK)
    if len(pieces) != 7 or not texts[0].startswith(open_end):
        return None
    answer = texts[0][len(open_end):]
    between = [piece.split(".", 1)[-1] for piece in pieces]  # without the number of a mark
    user_end = open_end.partition(f"{_MARK}0.")[2]
    start = _common(texts[0].partition(_MARK)[0], pieces[0])
    # what stands between a user's and an assistant's content: the user's suffix, then the assistant's prefix
    user = (texts[0].partition(_MARK)[0][len(start):], user_end)
    assistant = (between[2].removeprefix(user_end), between[3].removesuffix(user[0]))
    system = (pieces[0][len(start):], between[1].removesuffix(user[0]))
    # prefixes may begin alike (<|im_start|>): what leads is then a part of each
    for extra in (len(start), 0):
        lead, common = start[:len(start) - extra], start[len(start) - extra:]
        fixed = Parts(lead, {"system": (common + system[0], system[1].removesuffix(common)),
                             "user": (common + user[0], user[1]),
                             "assistant": (assistant[0], assistant[1].removesuffix(common))}, answer)
        if all(fixed.write(roles) == text for roles, text in zip(_CHATS, texts, strict=True)):
            return fixed if not any(sign in fixed.write(ROLES) for sign in ("{{", '"""')) else None
    return None


def _rendered(tokenizer: Tokenizer, roles: tuple[str, ...], prompt: bool = True) -> str:
    chat = [{"role": role, "content": f"{_MARK}{n}."} for n, role in enumerate(roles)]
    return render(chat, tokenizer, prompt=prompt)


def _common(one: str, other: str) -> str:
    return os.path.commonprefix([one, other])


def _go(parts: Parts, lead: str) -> str:
    """No trimming dashes: they would take white space of the template along."""
    choices = "{{ else if ".join(f'eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
                                 for role, (before, after) in parts.around.items())
    return f"{lead}{{{{ range .Messages }}}}{{{{ if {choices}{{{{ end }}}}{{{{ end }}}}{parts.answer}"
