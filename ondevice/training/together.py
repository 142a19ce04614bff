"""What the training loop does otherwise where several processes train one model: the first one reads
and writes checkpoints, and the others have from it what it has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ondevice.runs import recovery
from ondevice.runs.checkpoint import Checkpoint
from ondevice.runs.context import Context
from ondevice.runs.recovery import ResultRecord
from ondevice.seam.group import Group
from ondevice.seam.ops import Params
from ondevice.seam.protocols import Trainer
from ondevice.training.joined_models import JoinedModels
from ondevice.training.stage_result import StageWeights


def newest_checkpoint(ctx: Context) -> Checkpoint | None:
    """Where all processes go on from, as the first one finds it; None at a beginning. The files may
    be on the first one's disk alone."""
    if not ctx.group.several:
        return ctx.newest_checkpoint()
    if ctx.group.leader:
        found = ctx.newest_checkpoint()
    else:
        found = None
    return as_told(ctx.group.tell(to_tell(found)))


def sound_checkpoints(ctx: Context) -> Iterator[Checkpoint]:
    """`recovery.sound_checkpoints` of the first process, in all of them."""
    group = ctx.group
    if group.leader:
        for target in recovery.sound_checkpoints(ctx.folder.checkpoints, ctx.warn):
            group.tell(to_tell(target))
            yield target
        group.tell(None)
        return
    while (told := as_told(group.tell())) is not None:
        yield told


def to_tell(found: Checkpoint | None) -> dict[str, Any] | None:
    """A checkpoint, for the other processes."""
    if found is None:
        return None
    return {"path": str(found.path), "step": found.step, "record": found.record}


def as_told(told: dict[str, Any] | None) -> Checkpoint | None:
    """The checkpoint that `to_tell` told of."""
    if told is None:
        return None
    return Checkpoint(Path(told["path"]), told["step"], told["record"])


def read(found: Checkpoint, models: JoinedModels, group: Group) -> Params:
    """The parameters of a checkpoint; where the first process alone can read it, those of the
    stage's start, into which the trainer gets the first one's.
    """
    if group.leader:
        return models.read(found)
    return models.start()


def may_take(models: JoinedModels, read_anew: bool, group: Group) -> bool:
    """Whether the loaded parameters are nobody else's: not where they are those that the models
    keep."""
    return models.restart is not None or (read_anew and group.leader)


def sent(group: Group) -> dict[str, int]:
    """What a step's event tells of the bytes of arrays that this process has put on the wire since
    the last step; nothing where there is but one."""
    if not group.several:
        return {}
    told, group.sent = group.sent, 0
    return {"sent_bytes": told}


def follow_save(group: Group, trainer: Trainer) -> None:
    """What the others do while the first process saves."""
    group.follow(state=lambda: trainer.save_state(None))


def save_state(folder: Path, group: Group, trainer: Trainer) -> None:
    """The optimizer's state into a checkpoint's folder, of which each process may have a part. A
    full disk may have it written once more."""
    group.call("state")
    trainer.save_state(folder / "optimizer.safetensors")


def chosen(
    weights: StageWeights, take_best: bool, ctx: Context, models: JoinedModels
) -> Params | None:
    """`weights.choose` of the first process, in all of them."""
    group = ctx.group
    if not group.several:
        return weights.choose(take_best)
    params = weights.choose(take_best) if group.leader else None
    if ctx.taken is None:
        own = None
    else:
        own = [asdict(ctx.taken), params is not None]
    taken, others = group.tell(own)
    ctx.taken = ResultRecord(**taken)
    if not others:
        return None
    found = models.start() if params is None else params
    trained = {name: found[name] for name in sorted(models.trained)}
    group.send(trained)
    return {**found, **trained}
