"""What `--data` means to a stage: sources named, rows converted, bad ones recorded, held-out ones
split off. `preview` is `ondevice data show`, through the same code, and
`preview_forms` counts its rows.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
