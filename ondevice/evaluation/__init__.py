"""What a model is worth: held-out loss, problems solved, win rate, reward-model accuracy.
`held_out` is measured around every stage; `evaluate` is the command `eval`.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
