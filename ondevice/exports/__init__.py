"""Models in other programs' forms: `export.py` chooses and verifies, the other files write one form each."""
