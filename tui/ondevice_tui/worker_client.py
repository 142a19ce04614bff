"""A model in a process of its own: `ondevice worker`, spoken to in JSON lines from the app's event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ondevice.common import processes
from ondevice.common.json_files import parse_json, to_json
from ondevice.config.recipe import gives
from ondevice.config.use import SamplingConfig
from ondevice.runs.folder import RunFolder
from ondevice_tui import access, stage_processes

COMMAND = tuple(processes.command("ondevice", "worker"))
LINE = 1 << 24  # bytes of the longest event
PATIENCE_S = 2.0  # for a worker to leave by itself once its stdin is closed


class WorkerGone(Exception):
    """The worker's process has ended; the text is the end of what it said on stderr."""


class Refused(Exception):
    """The worker lives and has said why it does not do what was asked."""


@dataclass
class ModelProcess:
    """One worker. `ready` holds what it said of its model. One task at a time may ask."""

    path: str
    ready: dict[str, Any] = field(default_factory=dict)
    _process: asyncio.subprocess.Process | None = None
    _asked: int = 0
    _errors: list[str] = field(default_factory=list)
    _listening: asyncio.Task[None] | None = None

    async def open(self) -> dict[str, Any]:
        """Loads the model: seconds. Raises WorkerGone with the reason where that fails."""
        self._process = await processes.start_async(
            [*COMMAND, self.path],
            access.of_model(self.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE,
        )
        self._listening = asyncio.create_task(self._listen())
        self.ready = await self._next()
        return self.ready

    async def ask(
        self,
        sampling: Mapping[str, Any],
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        text: str | None = None,
        number: int = 0,
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer, "done" or "error" last. Raises WorkerGone."""
        async for event in self._answers(
            {
                "op": "generate",
                "messages": messages,
                "text": text,
                "sampling": dict(sampling),
                "number": number,
            }
        ):
            yield event

    async def write(
        self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any], number: int = 0
    ) -> dict[str, Any]:
        """The "done" of one answer, for who does not watch it come. Raises WorkerGone and Refused."""
        return await self._done(
            {"op": "generate", "messages": messages, "sampling": dict(sampling), "number": number}
        )

    async def score(
        self, messages: Sequence[Mapping[str, str]], responses: Sequence[str]
    ) -> list[float]:
        """What a reward model thinks of each response. Raises WorkerGone and Refused."""
        done = await self._done({"op": "score", "messages": messages, "responses": list(responses)})
        return [float(score) for score in done["scores"]]

    async def _done(self, request: Mapping[str, Any]) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for last in self._answers(request):
            if last.get("event") == "error":
                raise Refused(f"{last.get('message', '')} {last.get('hint', '')}".strip())
        return last

    async def _answers(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """What comes to one request, "done" or "error" last."""
        self._asked += 1
        name = str(self._asked)
        self._send({**request, "id": name})
        while True:
            event = await self._next()
            if event.get("id") != name:
                continue  # the end of an answer that nobody waits for any more
            yield event
            if event.get("event") in ("done", "error"):
                return

    def cancel(self) -> None:
        """Ends the answer that is being written; its "done" comes with what there is."""
        self._send({"op": "cancel", "id": str(self._asked)})

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        except TimeoutError:
            stage_processes.end(process)
            await process.wait()
        if self._listening is not None:
            await self._listening

    def kill(self) -> None:
        """At once, where nobody can wait: the app ends."""
        if self._process is not None:
            stage_processes.end(self._process)

    def _send(self, request: Mapping[str, Any]) -> None:
        if (
            self._process is not None
            and self._process.stdin is not None
            and not self._process.stdin.is_closing()
        ):
            self._process.stdin.write(to_json(request).encode() + b"\n")

    async def _next(self) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise WorkerGone("the model was closed")
        raw = await self._process.stdout.readline()
        if not raw:
            if self._listening is not None:
                await self._listening
            said = [line for line in self._errors if line.strip()]
            raise WorkerGone("\n".join(said[-3:]) or "the model's process ended without a word")
        with contextlib.suppress(ValueError):
            event = parse_json(raw)
            if isinstance(event, dict):
                return event
        raise WorkerGone("the model's process sent what is not an event")

    async def _listen(self) -> None:
        """Keeps the end of stderr, so that the pipe never fills."""
        if self._process is not None:
            stderr = self._process.stderr
        else:
            stderr = None
        while stderr is not None and (raw := await stderr.readline()):
            self._errors = [*self._errors[-20:], raw.decode("utf-8", "replace").rstrip()]


def models_in(runs: Sequence[Mapping[str, Any]], kind: str = "policy") -> list[tuple[str, str]]:
    """[(run · stage, model folder)] of every model of this kind (by itself: that can be talked to),
    the newest run and stage first."""
    found = []
    for run in runs:
        for stage in reversed(RunFolder(run["path"]).stages()):
            if gives(stage.name) == kind and stage.has_model:
                found.append((f"{run['run']} · {stage.name}", str(stage.model)))
    return found


def weight_bytes(folder: str) -> int:
    """Bytes of the weights in a model folder, of an adapter's base with them where that is a
    folder: what loading it takes at least."""
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    if not (base := access.base_of(folder)):
        return size  # no adapter
    return size + sum(file.stat().st_size for file in (Path(folder) / base).glob("*.safetensors"))


def memory_warning(folder: str) -> str:
    """Why a second model might not fit into this machine's memory; empty where it does or nothing
    is known.
    """
    from ondevice.common.physical_memory import available_memory

    # a cache, and the array library itself
    free, needs = (available_memory(), 2 * weight_bytes(folder) + (500 << 20))
    if free is None or needs <= free:
        return ""
    return f"{needs / 2**30:.1f} GB are wanted for this model, {free / 2**30:.1f} GB are free"


def sampling_defaults() -> dict[str, Any]:
    """The settings of an answer, by the names and defaults of the command line."""
    plain = SamplingConfig(model="-")
    return {
        name: getattr(plain, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "max_new_tokens",
            "seed",
            "chat_template_kwargs",
        )
    }
