"""A model behind JSON lines: one request a line on stdin, one event a line on stdout. One model,
one thread.

    {"op": "generate", "id": "1", "messages": [{"role": "user", "content": "Hello"}],   or "text": "Once upon"
     "sampling": {"temperature": 0.8, "max_new_tokens": 64, "seed": 7}, "number": 0}    both may be left out
    {"op": "score", "id": "2", "messages": [{"role": "user", "content": "Hello"}], "responses": ["Hi.", "No."]}
    {"op": "cancel", "id": "1"}

    {"event": "ready", "model": "…", "parameters": 1100000, "context": 512, "chat": true, "judges": false,
     "template_kwargs": {"enable_thinking": false}, "template_reads": ["enable_thinking"]}
    {"event": "token", "id": "1", "text": "Hel"}
    {"event": "done", "id": "1", "text": "Hello.", "tokens": 3, "prompt_tokens": 9, "stopped": true,
     "cancelled": false, "forgotten": 0, "full": false, "cut": false,
     "seconds": 0.1}
    {"event": "done", "id": "2", "scores": [1.2, -0.4], "seconds": 0.1}
    {"event": "error", "id": "1", "message": "…", "where": "…", "hint": "…"}

A model that writes answers `generate`, a reward model (`judges`) `score`: a number for each
response to the messages. `template_kwargs` is what the chat template was told when the model was
trained, and is told where a request's sampling has no `chat_template_kwargs` (JSON, as in the
command line; "{}": nothing); `template_reads` names what it may be told. Requests are answered in
turn; a cancel is heeded between two tokens, also for a request that still waits. `stopped` is false
where the limit came before the stop token, `forgotten` counts turns that the context had no room
for, `full` says that the context ended the answer, and `cut` that an encoder-decoder has read a
part of the prompt. The text is a model's: make it inert before showing it. The process ends when
its stdin does and all is answered, and at once when its parent dies.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from ondevice.common.clock import ticks
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json, to_json
from ondevice.config.load import from_mapping
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.config.use import SamplingConfig, WorkerConfig
from ondevice.data.completion_batches import prompt_and_completion
from ondevice.data.preference_batches import completion_row
from ondevice.inference.chat import (
    ended_by_context,
    fitting_ids,
    plain_ids,
    sampling,
    silent,
    trained_kwargs,
    with_kwargs,
)
from ondevice.inference.external_generator import generator_of
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.load import load_for_use
from ondevice.models.model import Model, require_generative
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend
from ondevice.seam.use_type import load_backend_for_use
from ondevice.training.sequence_logprobs import Scorer

PARENT_EVERY_S = 0.2  # between two looks at whether the parent lives, once stdin has ended
SCORED = 8  # rows of one scoring batch: a request has few responses, and every batch is filled up to this


class _Cancelled(Exception):
    """Thrown out of decoding: nobody waits for the rest."""


class Requests:
    """What was asked on stdin, read by a thread of its own so that a cancel is heard while the
    model writes.
    """

    def __init__(self, source: BinaryIO, *, mind_parent: bool) -> None:
        self.cancelled: set[str] = set()
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._parent = os.getppid() if mind_parent else None
        threading.Thread(target=self._read, args=(source,), daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """The next request; None when there will be no more."""
        return self._waiting.get()

    def _read(self, source: BinaryIO) -> None:
        for raw in source:
            try:
                request = parse_json(raw)
            except (ValueError, RecursionError):
                request = None
            if not isinstance(request, dict):
                request = {"op": "no request"}
            if request.get("op") == "cancel":
                self.cancelled.add(str(request.get("id")))
            else:
                self._waiting.put(request)
        self._waiting.put(None)
        if self._parent is None:
            return
        # what was asked is still answered, for as long as somebody listens
        while os.getppid() == self._parent:
            time.sleep(PARENT_EVERY_S)
        os._exit(0)


def serve(cfg: WorkerConfig, source: BinaryIO | None = None, sink: BinaryIO | None = None) -> None:
    """Answers until stdin ends. Raises UserError where the model cannot be opened."""
    cfg.check()
    requests = Requests(source or sys.stdin.buffer, mind_parent=source is None)
    worker = _Worker(cfg, requests, sink or _own_stdout())
    while (request := requests.next()) is not None:
        worker.answer(request)


class _Worker:
    def __init__(self, cfg: WorkerConfig, requests: Requests, sink: BinaryIO) -> None:
        self.cfg, self.requests, self.sink = cfg, requests, sink
        self.backend: Backend = load_backend_for_use(cfg.backend, cfg.device, cfg.dtype)
        self.model: Model = load_for_use(find_model(cfg.model), self.backend)
        self._made: tuple[Sampling, Generator] | None = None
        self._scorer: Any = None
        self.tell(
            "ready",
            model=cfg.model,
            parameters=self.model.size,
            context=self.model.cfg.max_position_embeddings,
            chat=self.model.tokenizer.chat_template is not None,
            judges=self.model.cfg.num_labels == 1,
            **self._template(),
        )

    def _template(self) -> dict[str, Any]:
        """What the chat template was told in training, and what it may be told."""
        try:
            return {
                "template_kwargs": parse_template_kwargs(trained_kwargs(self.model)),
                "template_reads": self.model.tokenizer.kwargs_read(),
            }
        except UserError:  # every chat will say why; what needs no template can still be asked
            return {"template_kwargs": {}, "template_reads": []}

    def tell(self, event: str, **fields: Any) -> None:
        self.sink.write(to_json({"event": event, **fields}).encode() + b"\n")
        self.sink.flush()

    def answer(self, request: Mapping[str, Any]) -> None:
        """One request, whatever it holds: what is wrong with it is told, and the next one is taken."""
        name = str(request.get("id", ""))
        try:
            if request.get("op") == "generate":
                self._generate(name, request)
            elif request.get("op") == "score":
                self._score(name, request)
            else:
                raise UserError(
                    f"unknown request {str(request.get('op'))[:40]!r}",
                    hint="known: generate, score, cancel",
                )
        except UserError as error:
            self.tell("error", id=name, message=error.message, where=error.where, hint=error.hint)
        self.requests.cancelled.discard(name)

    def _generate(self, name: str, request: Mapping[str, Any]) -> None:
        require_generative(self.model)
        wanted = request.get("sampling") or {}
        if not isinstance(wanted, Mapping):
            raise UserError("expected keys and values", where="sampling")
        settings = from_mapping(SamplingConfig, {**wanted, "model": self.cfg.model}, "sampling")
        number = request.get("number", 0)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise UserError("expected a whole number", where="number")
        ids, forgotten = self._prompt(request, settings)
        generator = self._generator(sampling(settings, self.model))
        decoder = self.model.tokenizer.stream()
        pieces: list[str] = []
        count = 0

        def on_token(_: int, token: int) -> None:
            nonlocal count
            if name in self.requests.cancelled:
                raise _Cancelled
            count += 1
            self._piece(name, pieces, decoder.push(token))

        began, stopped, full, cancelled = ticks(), False, False, name in self.requests.cancelled
        if not cancelled:
            try:
                (made,) = generator.run(self.model.params, [ids], first=number, on_token=on_token)
                stopped, full = made.stopped, ended_by_context(self.model, len(ids), made)
            except _Cancelled:
                cancelled = True
        self._piece(name, pieces, decoder.flush())
        self.tell(
            "done",
            id=name,
            text="".join(pieces),
            tokens=count,
            prompt_tokens=len(ids),
            stopped=stopped,
            cancelled=cancelled,
            forgotten=forgotten,
            full=full,
            cut=generator.is_cut(ids),
            seconds=round(ticks() - began, 4),
        )

    def _score(self, name: str, request: Mapping[str, Any]) -> None:
        """What the reward model thinks of each response to the messages."""
        if self.model.cfg.num_labels != 1:
            raise UserError(
                "gives no scores: it is not a reward model",
                where=self.cfg.model,
                hint="take the folder of a reward model",
            )
        turns, responses = _turns(request), _responses(request)
        began = ticks()
        rows = []
        for response in responses:
            row = completion_row(turns, response, self.model.tokenizer)
            rows.append(prompt_and_completion(row))
        longest, room = max(map(len, rows)), self.model.cfg.max_position_embeddings
        if longest > room:
            raise UserError(
                f"has {longest} tokens, the model's context holds {room}", where="responses"
            )
        if self._scorer is None:
            self._scorer = Scorer(self.model, self.backend, batch_size=SCORED)
        scores = self._scorer.scores(self.model.params, rows)
        self.tell(
            "done",
            id=name,
            scores=[float(score) for score in scores],
            seconds=round(ticks() - began, 4),
        )

    def _piece(self, name: str, pieces: list[str], text: str) -> None:
        if text:
            pieces.append(text)
            self.tell("token", id=name, text=text)

    def _prompt(
        self, request: Mapping[str, Any], settings: SamplingConfig
    ) -> tuple[list[int], int]:
        """(ids, turns forgotten) of a request's messages or text, with room for the answer."""
        text, kwargs = request.get("text"), settings.chat_template_kwargs
        if isinstance(text, str):
            if kwargs:
                raise UserError(
                    "has no effect: a text that is continued has no chat template",
                    where="sampling.chat_template_kwargs",
                    hint="leave it out, or give messages",
                )
            return plain_ids(_whole(text), self.model), 0
        turns = _turns(request)
        first = []
        if turns[0]["role"] == "system":
            first.append(turns.pop(0))
        model = with_kwargs(self.model, settings.chat_template_kwargs, silent)
        ids, kept = fitting_ids(first, turns, model, settings.max_new_tokens)
        return ids, len(turns) - len(kept)

    def _generator(self, settings: Sampling) -> Generator:
        """The one before where the settings are the same: it has compiled its step."""
        if self._made is None or self._made[0] != settings:
            self._made = settings, generator_of(self.model, self.backend, settings)
        return self._made[1]


def _turns(request: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError("asks nothing", where=str(request.get("op")), hint="give messages or text")
    return [_turn(message) for message in messages]


def _responses(request: Mapping[str, Any]) -> list[str]:
    responses = request.get("responses")
    if not isinstance(responses, list) or not responses:
        raise UserError("expected a list of texts", where="responses")
    if not all(isinstance(response, str) for response in responses):
        raise UserError("expected a list of texts", where="responses")
    return list(map(_whole, responses))


def _turn(message: Any) -> dict[str, str]:
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": _whole(content)}
    raise UserError("expected a role and a content, both text", where="messages")


def _whole(text: str) -> str:
    """JSON can carry halves of characters (\\ud800), which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _own_stdout() -> BinaryIO:
    """Our stdout alone: whatever a library prints goes to stderr from now on."""
    sys.stdout.flush()
    mine = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return mine
