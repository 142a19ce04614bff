"""What every other package uses: errors for people, random numbers, clocks, whole-or-nothing
files, JSON, progress, text made safe for a terminal, processes and their environment.

May import: nothing of ours.
"""
