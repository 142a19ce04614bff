"""Stands in for `ondevice.planning.measure`: the same, of fewer and smaller steps, in a second."""

from __future__ import annotations

from ondevice.planning import measure

measure.WIDTHS = (64, 128)
measure.SHAPES = measure.SHAPES[:1]
measure.BATCHES = measure.BATCHES[:2]
measure.WRITERS = ((1, 10), (4, 10))

if __name__ == "__main__":
    measure.main()
