"""Models in other programs' forms: GGUF, MLX and PEFT adapters, a Modelfile. `export` chooses and
verifies; `compare` holds the result against another library.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
