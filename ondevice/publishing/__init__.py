"""What goes to the Hub and to other people: plans of pushes, uploads, pushes while training, model
cards. Nothing leaves with a path or a token in it.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
