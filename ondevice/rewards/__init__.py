"""Verifiable rewards: what a completion earned, by rules that a person can read.
`answers` the final answer; `builtin` rewards by name; `scorer` a run's rewards, weighed and added; `problems` with right
answers; `gym` those of reasoning-gym; `process`, `host`, `judges` functions that may hang or crash, in processes of
their own.
May import: every package that stands below it in the contract `house` of pyproject.toml.
Nothing is imported here: a helper process starts in a tenth of a second.
"""
