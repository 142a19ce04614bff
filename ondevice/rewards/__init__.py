"""Verifiable rewards: what a completion earned, by rules that a person can read."""

from __future__ import annotations

from ondevice.rewards.answers import FORMS, Answer, final_answer, find_answer, same_answer
from ondevice.rewards.builtin import BUILTIN
from ondevice.rewards.rewards import Rewards, Scores

__all__ = ["BUILTIN", "FORMS", "Answer", "Rewards", "Scores", "final_answer", "find_answer", "same_answer"]
