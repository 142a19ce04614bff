"""Keeps the Hub's token out of every text that is written or shown."""

from __future__ import annotations

import os
import re
import sys

from ondevice.common.processes import TOKENS

_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{6,}")


def redacted(text: str) -> str:
    """`text` without a token: what looks like one, and the one that is in use, whatever it looks
    like.
    """
    for name in TOKENS:
        text = _without(text, os.environ.get(name, ""))
    client = sys.modules.get("huggingface_hub")  # not imported for this
    if client is not None:
        text = _without(text, client.get_token() or "")
    return _TOKEN.sub("hf_…", text)


def _without(text: str, token: str) -> str:
    if len(token.strip()) > 5:
        return text.replace(token, "hf_…")
    return text
