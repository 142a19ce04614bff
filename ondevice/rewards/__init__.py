"""Verifiable rewards: what a completion earned, by rules that a person can read.

`answers` what the final answer is · `builtin` the rewards by name · `scorer` a run's rewards, weighed and added ·
`problems` problems with right answers · `gym` those of reasoning-gym · `process`, `host`, `judges` functions that may
hang or crash, in processes of their own. Nothing is imported here: a helper process starts in a tenth of a second.
"""
