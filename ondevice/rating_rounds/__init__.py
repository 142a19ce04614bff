"""Rating and training in turns: pairs of the newest version are rated, a process in the background
trains the next one on all votes, and blind pairs against the start say whether it got better.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
