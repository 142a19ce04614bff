"""Settings: what commands, recipes and the Python API take, checked before anything is loaded.
Standard library only (and yaml, where a recipe is read), so that `--help` is instant.

May import: common.
"""
