"""Bytes that a stage takes at its peak, above the process before it reads a model.

Weights, gradients and the optimizer's moments stand from the first step on. On top of them comes,
one after the other, what the largest micro-batch keeps for its backward pass, what an update needs,
what is written at a save, the keys and values of rows that are decoded: the largest of these counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ondevice.config.stages import StageConfig, TrainingConfig
from ondevice.inference.slots import BLOCKS, LOOK, SMALL, places
from ondevice.planning.dimensions import Dimensions
from ondevice.planning.trained import Trained
from ondevice.planning.work import Decode, Pass, Work
from ondevice.seam.costs import Costs
from ondevice.training.logprobs import CHUNK_ELEMENTS, KEEP_ELEMENTS

_FLOAT = 4


@dataclass(frozen=True)
class Bytes:
    """`weights` of all models, `gradients`, `moments` of the optimizer, `learning`: what a
    micro-batch keeps, `update`, `saving`, `writing`: the cache of rows that are decoded, `reading`:
    a batch without a backward pass, `data`, `begun`: what the library takes once, `ending`: what is
    written after the last step, where that finds no room in what training has left.
    """

    weights: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0
    learning: float = 0.0
    update: float = 0.0
    saving: float = 0.0
    writing: float = 0.0
    reading: float = 0.0
    data: float = 0.0
    begun: float = 0.0
    ending: float = 0.0

    @property
    def grown(self) -> float:
        """At the peak."""
        largest = max(
            self.learning,
            self.gradients + self.update,
            self.saving,
            self.writing,
            self.reading,
        )
        return self.weights + self.moments + self.data + self.begun + largest + self.ending

    def mapping(self) -> dict[str, int]:
        return {name: round(value) for name, value in asdict(self).items()}


def bytes_of_stage(
    cfg: StageConfig,
    trained: Trained,
    dims: Dimensions,
    work: Work,
    measured: Work,
    *,
    costs: Costs,
    dtype: str,
    cache_bytes: int,
    processes: int = 1,
) -> Bytes:
    """`cache_bytes`: of the keys and values of one token. `processes`: how many share the work."""
    size = 2 if dtype == "bfloat16" else _FLOAT
    checkpointing = getattr(cfg, "checkpointing", False)
    writing = 0.0
    for decode in (*work.decodes, *measured.decodes):
        writing = max(writing, decode_bytes(decode, dims, costs, cache_bytes))
    reading = 0.0
    for one in (*work.read, *work.judged, *measured.read, *measured.judged):
        reading = max(reading, read_bytes(one, dims, costs, size))
    found = Bytes(weights=trained.weight_bytes, begun=costs.begun, writing=writing, reading=reading)
    if not isinstance(cfg, TrainingConfig):
        return found
    learning = 0.0
    for one in work.learned:
        learning = max(learning, learn_bytes(one, dims, costs, size, checkpointing))
    gradients = float(_FLOAT * trained.numbers)
    parts = work.micro_batch is not None and sum(one.times for one in work.learned) > work.updates
    if parts or costs.gradients_beside:
        learning += gradients  # of the micro-batches before; where a heap has no room between
    moments = moment_bytes(cfg, trained)
    if cfg.shard == "state":
        moments /= processes
    ending = 0.0
    for decode in work.ends:
        # in a heap with holes the smaller cache, from which it grows, finds room
        alone = replace(costs, grows=0.0) if costs.heap else costs
        ending = max(ending, decode_bytes(decode, dims, alone, cache_bytes))
    if costs.heap:
        # the cache itself is too large for them: only where the moments were it finds room
        ending = max(0.0, ending - moments - gradients)
    else:
        writing = max(writing, ending)
        ending = 0.0
    return replace(
        found,
        gradients=gradients,
        moments=moments,
        learning=learning,
        writing=writing,
        ending=ending,
        update=costs.update * trained.numbers,
        saving=costs.saving * max(moments, _FLOAT * trained.numbers),
    )


def moment_bytes(cfg: TrainingConfig, trained: Trained) -> float:
    """Of the optimizer's state: two floats a number in AdamW, two bytes and a scale for each 256 of
    them in 8 bits, one float in Muon for the blocks' matrices."""
    if cfg.optimizer == "adamw8bit":
        return trained.numbers * (2 + 2 * _FLOAT / 256)
    if cfg.optimizer == "muon":
        return _FLOAT * trained.matrices + 2 * _FLOAT * (trained.numbers - trained.matrices)
    return float(2 * _FLOAT * trained.numbers)


def sent_bytes(cfg: StageConfig, trained: Trained, work: Work, processes: int) -> float:
    """That each of several processes sends in a step, by a ring: of each gradient's sum all but its
    own part, twice (Patarasuk 2009); with the optimizer's state in parts as much."""
    if not isinstance(cfg, TrainingConfig):
        return 0.0
    return work.updates * 2 * (processes - 1) / processes * _FLOAT * trained.numbers


def learn_bytes(one: Pass, dims: Dimensions, costs: Costs, size: int, checkpointing: bool) -> float:
    """What a batch keeps until its backward pass is through."""
    kept = []
    passing = 0.0
    inner = costs.kept + (costs.exact if dims.encoder else 0.0)
    each = costs.shared if one.shared else costs.scores
    if dims.biased:
        each = costs.biased
    for block in dims.blocks:
        places, attended = one.places, one.attended
        if block.source:
            places, attended = one.sources, one.source_width
        scores = each * _FLOAT * dims.heads * attended
        kept.append(places * (inner * size * block.inside + scores))
        passing = max(passing, costs.passing * places * size * block.inside)
    if checkpointing and kept:
        stream = size * dims.hidden * (one.places + one.sources)
        inside = min(costs.again * max(kept) + stream * len(kept), sum(kept))
    else:
        inside = sum(kept) + passing
    return one.models * inside + logit_bytes(one, dims, costs)


def logit_bytes(one: Pass, dims: Dimensions, costs: Costs) -> float:
    """Of the scores over the vocabulary, which are computed in chunks where they are many."""
    if dims.labels:
        return 0.0
    elements = one.targets * dims.vocabulary
    if elements > KEEP_ELEMENTS:
        elements = min(elements, max(64 * dims.vocabulary, CHUNK_ELEMENTS))
    return costs.logits * _FLOAT * elements


def read_bytes(one: Pass, dims: Dimensions, costs: Costs, size: int) -> float:
    """What a batch takes that only goes forward: one block at a time."""
    largest = max((block.inside for block in dims.blocks), default=0.0)
    places = max(one.places, one.sources)
    return places * size * largest + logit_bytes(one, dims, costs)


def decode_bytes(decode: Decode, dims: Dimensions, costs: Costs, cache_bytes: int) -> float:
    """Keys and values of the rows, and their logits. A cache that has grown stood beside the smaller
    one that it was copied from."""
    most = places(decode.longest + LOOK)
    first = places(round(decode.prompt) + LOOK + 1)
    before = most - BLOCKS[most > SMALL] if most > first else 0
    context = most + costs.grows * before
    logits = costs.logits * _FLOAT * decode.at_once * dims.vocabulary
    return decode.at_once * context * cache_bytes + logits


def checkpoint_bytes(cfg: StageConfig, trained: Trained) -> float:
    """Of one checkpoint on the disk: what is trained, and the optimizer's state."""
    if not isinstance(cfg, TrainingConfig):
        return 0.0
    return _FLOAT * trained.numbers + moment_bytes(cfg, trained)


def disk_bytes(cfg: StageConfig, trained: Trained, result: float) -> float:
    """That a stage leaves and needs at most on the disk: the checkpoints that are kept, the best one,
    one that is being written, and its result."""
    if not isinstance(cfg, TrainingConfig):
        return result
    saves = cfg.steps // cfg.save_every if cfg.save_every else 0
    kept = min(cfg.keep + 2, saves + 2)
    return kept * checkpoint_bytes(cfg, trained) + result
