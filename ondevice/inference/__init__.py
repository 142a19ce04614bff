"""A model in use: the generator, beam search, chat, filling masks and gaps, labels, the app's
worker. `generator` decodes with a cache; everything else asks it.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
