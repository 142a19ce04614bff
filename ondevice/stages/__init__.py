"""The stages, a file each, with what runs them: `runner` one, `pipeline` a recipe. A stage brings
a loss and a source of batches; `run(cfg, ctx)` returns the model that it made.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
