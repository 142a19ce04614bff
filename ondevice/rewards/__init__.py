"""Verifiable rewards: what a completion earned, by rules that a person can read. `scorer` weighs
and adds a run's rewards; `process`, `host` and `judges` run functions that may hang or crash.

May import: every package that stands below it in the contract `house` of pyproject.toml.
Nothing is imported here: a helper process starts in a tenth of a second.
"""
