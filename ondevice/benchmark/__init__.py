"""How fast this machine is in each stage: the standard cases, and the block to paste.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
