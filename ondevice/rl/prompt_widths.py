"""How wide prompts are read over a stage of rollouts, and how much room its answers have.

Which prompts a step has is known when the stage begins, however long the answers will be: so their
rows have few widths (`data/few_shapes.py`), and the cache of keys and values, where it is small, has
one size from the start. Each further size would be a further trace for a compiler.
"""

from __future__ import annotations

from collections.abc import Callable

from ondevice.data.completion_batches import general_width
from ondevice.data.few_shapes import Widths
from ondevice.inference.generator import Generator
from ondevice.inference.slots import SMALL, places
from ondevice.rl.rollout import Sampler

STEPS = 256  # whose prompts are looked at


class PromptWidths:
    """Of rollouts of `group` answers to each of `prompts` prompts, of which there are `all_prompts`.
    `lengths_of` gives the tokens of each prompt of the step of a number."""

    def __init__(
        self,
        lengths_of: Callable[[int], list[int]],
        all_prompts: int,
        prompts: int,
        group: int,
    ) -> None:
        self._lengths_of = lengths_of
        self._prompts = prompts
        self._group = group
        self._steps = min(-(-all_prompts // prompts), STEPS)  # then they come again
        self._known: list[list[int]] = []
        self._widths: dict[tuple[int, int, float], Widths] = {}

    def together(self, count: int, instead: int = 1, spare: float = 0.0) -> Widths:
        """The widths of rows where `count` prompts of a step are read at once; the others as for
        `Widths`."""
        count = max(1, count)
        key = (count, instead, spare)
        if key not in self._widths:
            longest = []
            for lengths in self._lengths():
                for start in range(0, len(lengths), count):
                    longest.append(max(lengths[start : start + count]))
            self._widths[key] = Widths(longest, instead, spare)
        return self._widths[key]

    def _lengths(self) -> list[list[int]]:
        if not self._known:
            self._known = [self._lengths_of(number) for number in range(self._steps)]
        return self._known

    def scored(self, micro_batch: int) -> Widths:
        """Where answers are scored, two micro-batches at once: prompts are read less often than in
        micro-batches."""
        rows = min(2 * micro_batch, self._prompts * self._group)
        instead = self._reads(micro_batch) // self._reads(rows)
        return self.together(rows // self._group, max(1, instead))

    def learned(self, micro_batch: int, updates: int, with_scores: bool) -> Widths:
        """Where answers are learned: what scoring has saved may be taken here."""
        spare = 0.0
        if with_scores:
            saved = self.scored(micro_batch).saved
            spare = max(0.0, saved / (updates * self._reads(micro_batch)))
        return self.together(micro_batch // self._group, spare=spare)

    def _reads(self, rows: int) -> int:
        """How often a prompt is read where so many answers are computed at once."""
        return -(-self._group // rows)

    def set_up(self, sampler: Sampler, max_new_tokens: int) -> None:
        """For answers of up to so many tokens to the prompts of a step."""
        generator = sampler.generator
        # else like lengths are read together
        at_once = sampler.batch_size >= self._prompts * self._group
        if at_once:
            generator.width_of = self.together(self._prompts).of
        else:
            generator.width_of = general_width
        generator.room = whole_room(generator, max(map(max, self._lengths())), max_new_tokens)


def whole_room(generator: Generator, longest: int, max_new_tokens: int) -> int:
    """Places for such prompts and answers; 0 where these are more than a small cache has: it then
    grows with the answers."""
    taken = generator.network.prompt_width(general_width(longest))
    room = places(taken + max_new_tokens + 1)
    return room if room <= SMALL else 0
