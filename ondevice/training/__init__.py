"""The training loop, learning-rate schedules, Muon, and every loss. A loss is a sum over targets
divided by a denominator that the data gives; it runs on any backend.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
