"""Settings: what commands, recipes and the Python API take, checked before anything is loaded;
the table of commands, and a command line taken apart.
Standard library only (and yaml, where a recipe is read), so that `--help` is instant.

May import: common.
"""
