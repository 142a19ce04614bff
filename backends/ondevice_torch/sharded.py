"""ZeRO-1 (Rajbhandari 2020): each of several processes keeps the optimizer's state of some tensors,
updates these, and gives them to the others. Of 16 bytes a parameter, 8 + 8 / processes are left.

Chosen: whole tensors, not slices of one long buffer: Muon's matrices are whole where they are
updated, and a checkpoint's state is by name, whoever had it. A gradient goes to its owner alone, so
that a step sends what it sends without: each gradient and each parameter once.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ondevice.seam.group import Group, chunks, deal
from ondevice.seam.protocols import OptimSettings

from .ops import TorchOps
from .optim import Optimizer

_TYPES = {torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8"}
_NAMED = {name: kind for kind, name in _TYPES.items()}


class ShardedOptimizer:
    """`params` are all tensors, the same in every process. The same steps as `Optimizer`'s."""

    def __init__(
        self, params: dict[str, Tensor], settings: OptimSettings, ops: TorchOps, group: Group
    ) -> None:
        self.params, self.settings, self.group = params, settings, group
        names = list(params)
        parts = deal([params[n].numel() for n in names], group.size)
        self.owned = [[names[i] for i in part] for part in parts]
        own = {n: params[n] for n in self.owned[group.rank]}
        self._device = next(iter(params.values())).device
        self.own = Optimizer(own, settings, ops)

    @property
    def steps(self) -> int:
        return self.own.steps

    @torch.no_grad()
    def update(self, lr: float) -> tuple[float, bool]:
        """Adds up the gradients, and updates by them. Returns the global norm and whether it was
        finite; if not, nothing changes."""
        self._reduce()
        norm = self._norm()
        done = self.own.update(lr, norm)
        if done[1]:
            self._share()
        return done

    def _reduce(self) -> None:
        """Each gradient's sum, at its owner; the others need it no more."""
        for owner, names in enumerate(self.owned):
            grads: dict[str, Any] = {}
            for n in names:
                p = self.params[n]
                if p.grad is None:
                    grads[n] = torch.zeros_like(p)
                else:
                    grads[n] = p.grad
                p.grad = None  # freed as the sum takes its place
            self.group.sum(grads, owner)
            if owner == self.group.rank:
                for n in names:
                    self.params[n].grad = grads[n]

    def _norm(self) -> float:
        """Of all gradients, as `Optimizer` takes it: of the tensors' norms in their order."""
        own = self.own.params
        found: list[float] = []
        if own:
            grads = [p.grad for p in own.values()]
            found = torch.stack(torch._foreach_norm(grads)).tolist()
        norms: dict[str, float] = {}
        for names, values in zip(self.owned, self.group.gather(found), strict=True):
            norms.update(zip(names, values, strict=True))
        return float(torch.linalg.vector_norm(torch.tensor([norms[n] for n in self.params])))

    def _share(self) -> None:
        """Each tensor, from its owner to all."""
        for owner, names in enumerate(self.owned):
            send_into({n: self.params[n] for n in names}, self.group, owner)

    # ---- files: tensor by tensor ------------------------------------------------------------------

    def save(self, file: Path | None) -> None:
        """Writes all processes' state into one file, as one process does; None: this process gives
        its part to the first one. No process ever has more than its part and one tensor."""
        state = self.own.state()
        kinds = {n: [_TYPES[t.dtype], list(t.shape)] for n, t in state.items()}
        places = self.group.gather(kinds)
        order = [
            (n, rank, *places[rank][n]) for rank in range(self.group.size) for n in places[rank]
        ]
        out = None if file is None else file.open("wb")
        try:
            if out is not None:
                out.write(_head(order, self.steps))
            for n, rank, kind, shape in order:
                tensor = self._from(rank, state.get(n), kind, shape)
                if out is not None:
                    out.write(tensor.cpu().contiguous().numpy().tobytes())
                del tensor  # before the next one comes
        finally:
            if out is not None:
                out.close()

    def load(self, file: Path) -> None:
        """The state in a file that the first process can read."""
        if not self.group.leader:
            self._load_from(None)
            return
        with safetensors.safe_open(file, "pt") as opened:
            self._load_from(opened)

    def _load_from(self, opened: Any) -> None:
        listed = None
        if opened is not None:
            tensors = {n: opened.get_slice(n) for n in opened.keys()}  # noqa: SIM118
            kinds = {n: [one.get_dtype(), one.get_shape()] for n, one in tensors.items()}
            listed = [int(opened.metadata()["steps"]), kinds]
        steps, kinds = self.group.tell(listed)
        wanted = self.own.state().keys()
        state = {}
        for n, (kind, shape) in kinds.items():
            if opened is None:
                own = None
            else:
                own = opened.get_tensor(n).to(self._device)
            tensor = self._from(0, own, kind, shape)
            if n in wanted:
                state[n] = tensor
            del own, tensor
        self.own.restore(state, steps)

    def _from(self, rank: int, own: Tensor | None, kind: str, shape: list[int]) -> Tensor:
        """One tensor of process `rank`."""
        if own is None or rank != self.group.rank:
            own = torch.empty(shape, dtype=_NAMED[kind], device=self._device)
        held: dict[str, Any] = {"": own}
        self.group.send(held, rank)
        tensor: Tensor = held[""]
        return tensor


@torch.no_grad()
def send_into(params: dict[str, Tensor], group: Group, source: int) -> None:
    """Process `source`'s numbers into the parameters of all, some at a time."""
    for names in chunks(params):  # type: ignore[arg-type]
        held: dict[str, Any] = {n: params[n].detach() for n in names}
        group.send(held, source)
        if source != group.rank:
            for n in names:
                params[n].copy_(held[n])


def _head(order: list[tuple[Any, ...]], steps: int) -> bytes:
    """The head of a safetensors file of tensors that follow in this order."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt", "steps": str(steps)}}
    end = 0
    for name, _, kind, shape in order:
        size = torch.Size(shape).numel() * _NAMED[kind].itemsize
        head[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
