"""Many prompts answered by all processes of a run: each writes the completions of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ondevice.inference.generator import Generator
from ondevice.inference.slots import Completion
from ondevice.seam.group import deal
from ondevice.seam.ops import Params


def write_together(
    generator: Generator,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    **how: Any,
) -> list[Completion]:
    """As `generator.run` with `how`, the completions of all prompts in every process. A prompt's
    are written by one process, the longest prompts dealt out first; what a row draws follows from
    its number, so that the texts are those of one process: ids alone are sent."""
    group = generator.backend.group
    parts = deal([len(prompt) for prompt in prompts], group.size)
    own = parts[group.rank]
    completions = generator.run(
        params, [prompts[i] for i in own], samples=samples, numbers=own, **how
    )
    if not group.several:
        return completions
    found: dict[int, Completion] = {}
    told = group.gather([[one.ids, one.stop] for one in completions])
    for numbers, of_one in zip(parts, told, strict=True):
        for n, (ids, stop) in enumerate(of_one):
            found[numbers[n // samples] * samples + n % samples] = Completion(ids, stop)
    return [found[place] for place in sorted(found)]
