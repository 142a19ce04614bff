"""A run on the disk: folders and locks, events, logs, checkpoints, recovery, listing, and a stage's
context. `resolve` finds the model that a person means by a path.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
