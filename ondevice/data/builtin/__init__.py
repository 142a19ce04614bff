"""The built-in corpus: a small world in plain English, made by rule from a seed. Nothing is
downloaded.
"""

from __future__ import annotations

from ondevice.data.builtin.corpus import Corpus, build
from ondevice.data.builtin.scoring import score

__all__ = ["Corpus", "build", "score"]
