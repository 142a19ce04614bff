"""What a stage takes before it runs: memory, time, disk, from headers, a sample of the data and a
calibration of this machine.

Pure functions, each of its own step: shapes and settings → work (`work`) → bytes (`memory`), seconds
(`seconds`); `plan` puts them together, `verdict` compares with the machine. No array library is
imported here; `measure` alone loads a backend, in a process of its own.
May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
