"""How fast this machine is in each stage: the standard cases, and the block to paste.

May import every package below it.
"""
