"""Using a model: continue a text, answer a message, hold a conversation; pieces are handed over as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondevice.backend import Backend, load_backend
from ondevice.beams import Search, beam_search, only_searched
from ondevice.config.use import ChatConfig, GenerateConfig, SamplingConfig, UseConfig
from ondevice.data.chat import prompt_ids, with_template_kwargs
from ondevice.data.completions import places
from ondevice.data.formats import BadRow
from ondevice.data.truncation import cut_where
from ondevice.decoding import Generator, Sampling, generator_of
from ondevice.errors import UserError
from ondevice.inert import InertStream
from ondevice.models import snapshot
from ondevice.models.folder import Model, labels, load_writer, whole_folder
from ondevice.runfolder import RunFolder, holds_model


def find_model(path: str) -> Path:
    """A model's or an adapter's folder, the newest model of a run folder or of a stage's folder, or the snapshot of a
    model on the Hub."""
    folder = snapshot.resolve(path)
    if holds_model(folder) or not folder.is_dir():
        return folder
    if holds_model(folder / "model"):
        return folder / "model"
    done = [s.model for s in RunFolder(folder).stages() if s.has_model]
    writers = [model for model in done if not labels(model)]
    return writers[-1] if writers else folder


def find_reward_model(path: str) -> Path:
    """A reward model's folder, or the newest one of a run folder."""
    return _newest(path, lambda scores: scores == 1)


def find_classifier(path: str) -> Path:
    """A classifier's folder, or the newest one of a run folder."""
    return _newest(path, lambda scores: scores > 1)


def _newest(path: str, wanted: Callable[[int], bool]) -> Path:
    """A model's folder, or of a run folder's that whose number of scores is wanted."""
    folder = snapshot.resolve(path)
    if holds_model(folder) or not folder.is_dir():
        return folder
    found = [s.model for s in RunFolder(folder).stages() if s.has_model and wanted(labels(s.model))]
    return found[-1] if found else find_model(path)


def open_model(cfg: UseConfig) -> tuple[Model, Backend]:
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
    model = load_writer(find_model(cfg.model), backend)
    kwargs = cfg.chat_template_kwargs if isinstance(cfg, SamplingConfig) else ""
    return replace(model, tokenizer=with_template_kwargs(model.tokenizer, kwargs)), backend


def sampling(cfg: SamplingConfig) -> Sampling:
    return Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.seed)


def generate(cfg: GenerateConfig, write: Callable[[str], None] | None = None) -> list[str]:
    """The continuations of the prompt, or the answers to it, without the prompt. `write` is told each piece of text as
    it comes, an empty line between samples; what a model writes is untrusted: make it inert before showing it."""
    cfg.check()
    prompt = given(lambda: cfg.prompt or sys.stdin.read())
    if not prompt.strip():
        raise UserError("is empty", where="prompt", hint="write something after the model, or send it to stdin")
    model, backend = open_model(cfg)
    ids = chat_ids([{"role": "user", "content": prompt}], model) if cfg.chat else plain_ids(prompt, model)
    generator = generator_of(model, backend, sampling(cfg))
    if generator.is_cut(ids):
        print(f"generate: {cut_note(ids, model)}", file=sys.stderr)
    if cfg.beams > 1:
        how = Search.of(whole_folder(model.folder), lambda said: print(f"generate: {said}", file=sys.stderr))
        if cfg.length_penalty is not None:
            how = replace(how, length_penalty=cfg.length_penalty)
        best = beam_search(generator, model.params, ids, cfg.beams, how)[:cfg.samples]
        found = [model.tokenizer.decode(one.completion.ids) for one in best]
        if write is not None:
            write("\n\n".join(found))
        return found
    if note := only_searched(whole_folder(model.folder)):
        print(f"generate: {note}", file=sys.stderr)
    if write is None:
        drawn = generator.run(model.params, [ids], samples=cfg.samples)
        return [model.tokenizer.decode(c.ids) for c in drawn]
    texts = []
    for number in range(cfg.samples):
        if number:
            write("\n\n")
        texts.append(_stream(generator, model, ids, write, number))
    return texts


def chat(cfg: ChatConfig, read: Callable[[str], str] = input) -> None:
    """A conversation in the terminal; the first turns are forgotten where the context is full."""
    cfg.check()
    model, backend = open_model(cfg)
    if model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=cfg.model, hint="ondevice sft teaches it to chat")
    generator = generator_of(model, backend, sampling(cfg))
    first = [{"role": "system", "content": given(lambda: cfg.system)}] if cfg.system else []
    # results alone go to a pipe
    asking = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    turns: list[dict[str, str]] = []
    print("An empty line or Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            said = given(lambda: read(asking)).strip()
        except EOFError:
            said = ""
        if not said:
            return
        turns.append({"role": "user", "content": said})
        ids, turns = fitting_ids(first, turns, model)
        if generator.is_cut(ids):
            print(f"chat: {cut_note(ids, model)}", file=sys.stderr)
        elif asking and places(len(ids), 1, model.network.start) > model.cfg.max_position_embeddings:
            print(f"That is too long: {len(ids)} tokens, the context holds {model.cfg.max_position_embeddings}. Say it "
                  "in fewer words.", file=sys.stderr)
            turns.pop()
            continue
        shown = InertStream()

        def write(piece: str, shown: InertStream = shown) -> None:
            sys.stdout.write(shown.push(piece))
            sys.stdout.flush()
        text = _stream(generator, model, ids, write, len(turns))
        print(shown.flush())
        turns.append({"role": "assistant", "content": text})


def fitting_ids(first: Sequence[dict[str, str]], turns: Sequence[dict[str, str]],
                model: Model) -> tuple[list[int], list[dict[str, str]]]:
    """(ids of `first` and the turns, the turns kept): where the context is full, the first turns are forgotten."""
    kept = list(turns)
    ids = chat_ids([*first, *kept], model)
    while places(len(ids), 16, model.network.start) > model.cfg.max_position_embeddings and len(kept) > 1:
        kept = kept[2:]
        ids = chat_ids([*first, *kept], model)
    return ids, kept


def plain_ids(prompt: str, model: Model) -> list[int]:
    """A text that the model goes on with, or reads."""
    return (model.tokenizer.encode_document if model.network.start is None else model.tokenizer.encode_source)(prompt)


def cut_note(ids: Sequence[int], model: Model) -> str:
    """For people: what becomes of a prompt for which `Generator.is_cut` holds."""
    return (f"the prompt has {len(ids)} tokens and is cut {cut_where(model.tokenizer)}: the model reads "
            f"{model.cfg.max_position_embeddings}")


def given(read: Callable[[], str]) -> str:
    """What a person or a pipe says. Raises UserError where its bytes are no UTF-8: on the command line they come as
    lone surrogates."""
    try:
        text = read()
        text.encode()
    except UnicodeError:
        raise UserError("is not UTF-8 text", where="prompt", hint="convert it, for example with iconv") from None
    return text


def chat_ids(messages: Sequence[dict[str, Any]], model: Model) -> list[int]:
    """A conversation through the model's chat template. Raises UserError: it has none, or refuses the conversation."""
    if model.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", where=str(model.folder), hint="leave --chat out")
    try:
        return prompt_ids(messages, model.tokenizer)
    except BadRow as error:
        raise UserError(str(error), where=str(model.folder)) from error


def _stream(generator: Generator, model: Model, ids: Sequence[int], write: Callable[[str], None], number: int) -> str:
    decoder = model.tokenizer.stream()
    pieces: list[str] = []

    def piece(text: str) -> None:
        pieces.append(text)
        if text:
            write(text)
    generator.run(model.params, [ids], first=number, on_token=lambda _, token: piece(decoder.push(token)))
    piece(decoder.flush())
    return "".join(pieces)
