"""Runs in words and pictures: tables of results, curves, the report and its page.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
