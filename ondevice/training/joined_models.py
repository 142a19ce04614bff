"""The models that a stage trains together, as one dict of parameters: the stage's own under their
names, those beside it under `<part>.<name>` (PPO's value model: `value.…`).

Where all weights are trained, the start of the stage is of no use to anybody once training has
begun, and takes as much memory as the model. It is then taken out of the models, which have none
from then on, and loaded again where the stage goes back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ondevice.common.errors import UserError
from ondevice.models.load import read_trained
from ondevice.models.model import Model
from ondevice.models.save import write
from ondevice.models.state_dict import quantised
from ondevice.runs.checkpoint import Checkpoint
from ondevice.seam.ops import Params, sub
from ondevice.seam.protocols import Backend

OWN = "model"  # the part of a checkpoint that holds the stage's own model


class JoinedModels:
    """`model` is the stage's own, `beside` the others by the names of their parts. `restart` loads
    the parameters of the stage's start again; None: the models keep them.

    `trained`: the names of the tensors that training changes.
    """

    def __init__(
        self,
        model: Model,
        beside: Mapping[str, Model],
        restart: Callable[[], Params] | None,
        backend: Backend,
    ) -> None:
        self.model = model
        self.beside = beside
        self.backend = backend
        # beside an adapter the weights stay as they are: nothing is gained by loading them again
        self.restart = restart if model.adapter is None else None
        self._names = list(model.params)
        self.trained = {name for name in model.params if model.trains(name)}
        for part, other in beside.items():
            self.trained.update(f"{part}.{name}" for name in other.params if other.trains(name))
        self._check_trainable()

    def _check_trainable(self) -> None:
        """Raises UserError for quantised weights that are to be trained."""
        packed = [*quantised(self.model.params)]
        for other in self.beside.values():
            packed += quantised(other.params)
        if not self.trained or (self.model.adapter is None and packed):
            raise UserError(
                "quantised weights cannot be trained",
                where=str(self.model.folder),
                hint="take the folder with whole weights",
            )

    def start(self) -> Params:
        """The parameters of the stage's start."""
        if self.restart is None:
            others = {part: other.params for part, other in self.beside.items()}
            return {**self.model.params, **_prefixed(others)}
        if not self.model.params:
            return self.restart()
        return self.release()

    def release(self) -> Params:
        """The parameters of the stage's start, which no model holds from then on; where they cannot
        be loaded again, the models keep theirs.
        """
        if self.restart is None:
            return {}
        others = {part: other.release() for part, other in self.beside.items()}
        return {**self.model.release(), **_prefixed(others)}

    def read(self, saved: Checkpoint) -> Params:
        """The parameters of a checkpoint."""
        others = {}
        for part, model in self.beside.items():
            others[part] = read_trained(saved.path / part, model, self.backend)
        return {**read_trained(saved.model, self.model, self.backend), **_prefixed(others)}

    def write(self, folder: Path, params: Params) -> None:
        """Writes each model into a folder of its part's name."""
        for part, model in self._parts(params):
            (folder / part).mkdir()
            write(folder / part, self.backend, model)

    def _parts(self, params: Params) -> Iterator[tuple[str, Model]]:
        yield OWN, self.model.with_params({name: params[name] for name in self._names})
        for part, model in self.beside.items():
            yield part, model.with_params(sub(params, f"{part}."))


def _prefixed(parts: Mapping[str, Params]) -> Params:
    """The parameters of several models in one dict, each name after its model's."""
    joined: Params = {}
    for part, params in parts.items():
        for name, array in params.items():
            joined[f"{part}.{name}"] = array
    return joined
