"""Using a model: continue a text, answer a message, hold a conversation; pieces are handed over as
they come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.sanitize import SanitizedStream, sanitize
from ondevice.config.template_kwargs import parse_template_kwargs
from ondevice.config.use import ChatConfig, GenerateConfig, SamplingConfig, UseConfig
from ondevice.data.chat_encoding import prompt_ids, with_template_kwargs
from ondevice.data.completion_batches import context_length
from ondevice.data.messages import BadRow
from ondevice.data.truncation import cut_where
from ondevice.inference import conversations
from ondevice.inference.beam_search import Search, beam_search
from ondevice.inference.external_generator import generator_of
from ondevice.inference.generator import Generator
from ondevice.inference.next_token import Sampling
from ondevice.inference.slots import Completion
from ondevice.models.generation_config import left_out, settings_of
from ondevice.models.load import load_generative
from ondevice.models.model import Model
from ondevice.runs.events import first_event
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend
from ondevice.seam.use_type import load_backend_for_use


def _on_stderr(who: str) -> Callable[[str], None]:
    def note(text: str) -> None:
        # values of a folder's files are in it
        print(sanitize(f"{who}: {text}", newlines=False), file=sys.stderr)

    return note


_FULL = "the context is full: the text ends there"


def silent(said: str) -> None:
    """For what somebody else says already."""


def open_model(cfg: UseConfig) -> tuple[Model, Backend]:
    backend = load_backend_for_use(cfg.backend, cfg.device, cfg.dtype)
    model = load_generative(find_model(cfg.model), backend)
    if not isinstance(cfg, SamplingConfig) or (isinstance(cfg, GenerateConfig) and not cfg.chat):
        return model, backend
    return with_kwargs(model, cfg.chat_template_kwargs), backend


def trained_kwargs(model: Model) -> str:
    """The setting `chat_template_kwargs` of the stage that made the model, as JSON; empty where it
    had none, and of a model that lies outside of a run folder: no other file says it. Raises
    UserError for a damaged one."""
    if model.tokenizer.chat_template is None:
        return ""
    folder = model.folder.absolute()
    stages = [folder.parent, *folder.parents[2:3]]  # STAGE/model, STAGE/checkpoints/step-7/model
    start: Mapping[str, Any] = {}
    try:
        for stage in stages:
            start = start or first_event(stage / "events.jsonl")
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror}): what its chat template was told in training stands there",
            where=str(error.filename),
            hint="--chat-template-kwargs '{}' asks for nothing of it",
        ) from error
    config = start.get("config")
    setting: Any = ""
    if isinstance(config, dict):
        setting = config.get("chat_template_kwargs")
    if isinstance(setting, str) and parse_template_kwargs(setting):
        return setting
    return ""


def with_kwargs(model: Model, setting: str, note: Callable[[str], None] | None = None) -> Model:
    """The model whose chat template is told what `setting` says (JSON), or, where that is empty,
    what it was told in training; then `note` is told so (by itself: stderr). Raises UserError for a
    name that the template does not read."""
    if not setting and (setting := trained_kwargs(model)):
        text = f"its chat template is told {setting}, as in training; --chat-template-kwargs '{{}}' tells it nothing"
        if note is None:
            note = _on_stderr(str(model.folder))
        note(text)
    return replace(model, tokenizer=with_template_kwargs(model.tokenizer, setting))


def sampling(
    cfg: SamplingConfig, model: Model, note: Callable[[str], None] = lambda said: None
) -> Sampling:
    """How answers are drawn: as the settings say, and the model's generation_config.json where they
    leave it open. `note` is told what that file asks for and does not get. Raises UserError for a
    value of the wrong kind in it."""
    file, said = settings_of(model.folder)
    penalty = cfg.repetition_penalty
    if penalty is None:
        penalty = said.get("repetition_penalty") or 1.0
        if not isinstance(penalty, int | float) or not 0.01 <= penalty <= 100:
            raise UserError(
                f"repetition_penalty is {penalty!r}", where=str(file), hint="leave it out"
            )
    if left := left_out(said, _LEFT_OUT):
        note(f"{file.name} asks for {', '.join(left)}: what is drawn here does without")
    differing = _differing(cfg, said)
    if differing:
        note(
            f"{file.name} asks for {', '.join(differing)}; here the settings decide: temperature {cfg.temperature:g}, "
            f"top_k {cfg.top_k}, top_p {cfg.top_p:g}"
        )
    return Sampling(
        cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.seed, float(penalty)
    )


def _differing(cfg: SamplingConfig, said: Mapping[str, Any]) -> list[str]:
    """What a model's folder says of drawing and the settings say otherwise."""
    if not cfg.temperature or not said.get("do_sample"):
        return []
    differing = []
    for name in ("temperature", "top_k", "top_p"):
        if said.get(name) not in (None, getattr(cfg, name)):
            differing.append(f"{name} {said[name]}")
    return differing


# Settings of generation_config.json that change what is drawn and that drawing does without, with
# what says nothing.
_LEFT_OUT: dict[str, Any] = {
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "stop_strings": None,
    "exponential_decay_length_penalty": None,
}


def generate(cfg: GenerateConfig, write: Callable[[str], None] | None = None) -> list[str]:
    """The continuations of the prompt, or the answers to it, without the prompt. `write` is told
    each piece of text as it comes, an empty line between samples; what a model writes is untrusted:
    make it inert before showing it."""
    cfg.check()
    prompt = read_input(lambda: cfg.prompt or sys.stdin.read())
    if not prompt.strip():
        raise UserError(
            "is empty", where="prompt", hint="write something after the model, or send it to stdin"
        )
    model, backend = open_model(cfg)
    if cfg.chat:
        ids = chat_ids([{"role": "user", "content": prompt}], model)
    else:
        ids = plain_ids(prompt, model)
    warn = _on_stderr("generate")
    note = silent if cfg.beams > 1 else warn
    generator = generator_of(model, backend, sampling(cfg, model, note))
    if generator.is_cut(ids):
        warn(truncation_note(ids, model))
    if cfg.beams > 1:
        texts = _searched(cfg, generator, model, ids)
        if write is not None:
            write("\n\n".join(texts))
        return texts
    if write is None:
        drawn = generator.run(model.params, [ids], samples=cfg.samples)
        if any(ended_by_context(model, len(ids), completion) for completion in drawn):
            warn(_FULL)
        return [model.tokenizer.decode(completion.ids) for completion in drawn]
    texts = []
    is_full = False
    for number in range(cfg.samples):
        if number:
            write("\n\n")
        text, full = _stream(generator, model, ids, write, number)
        texts.append(text)
        is_full = is_full or full
    if is_full:
        warn(_FULL)
    return texts


def _searched(
    cfg: GenerateConfig, generator: Generator, model: Model, ids: Sequence[int]
) -> list[str]:
    """The likeliest texts, by a search as the settings say, else as the model's folder says."""
    how = Search.of(model.folder, _on_stderr("generate"))
    if cfg.length_penalty is not None:
        how = replace(how, length_penalty=cfg.length_penalty)
    if cfg.repetition_penalty is not None:
        how = replace(how, repetition_penalty=cfg.repetition_penalty)
    best = beam_search(generator, model.params, ids, cfg.beams, how)[: cfg.samples]
    return [model.tokenizer.decode(one.completion.ids) for one in best]


def chat(cfg: ChatConfig, read: Callable[[str], str] = input) -> None:
    """A conversation in the terminal. The first turns are forgotten where the context is full, a
    message that alone is too long for it is refused, and both are said, as is an answer that the
    context ends. Raises UserError where the file that is to keep it holds something else, or cannot
    be written."""
    cfg.check()
    model, backend = open_model(cfg)
    if model.tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template",
            where=cfg.model,
            hint="ondevice sft teaches it to chat",
        )
    warn = _on_stderr("chat")
    generator = generator_of(model, backend, sampling(cfg, model, warn))
    first, turns = _begun(cfg)
    all_turns = [*first, *turns]
    asking = ""  # results alone go to a pipe
    if sys.stdin.isatty() and sys.stdout.isatty():
        asking = "> "
    print("An empty line or Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            message = read_input(lambda: read(asking)).strip()
        except EOFError:
            message = ""
        if not message:
            return
        asked = [*turns, {"role": "user", "content": message}]
        ids, kept = fitting_ids(first, asked, model, cfg.max_new_tokens)
        cut = generator.is_cut(ids)
        too_long = not cut and not _fits(len(ids), 1, model)
        if cut:
            warn(truncation_note(ids, model))
        elif asking and too_long:
            print(
                f"That is too long: {len(ids)} tokens, the context holds {model.cfg.max_position_embeddings}. Say it "
                "in fewer words.",
                file=sys.stderr,
            )
            continue  # as if it had not been said
        if len(kept) < len(asked) and not too_long:  # what is too long by itself is refused below
            print(
                f"The context is full: the first {len(asked) - len(kept)} turns are forgotten.",
                file=sys.stderr,
            )
        turns = kept
        text = _answer_on_stdout(generator, model, ids, len(turns))
        turns.append({"role": "assistant", "content": text})
        if cfg.save:
            all_turns += [asked[-1], turns[-1]]
            _save(cfg, all_turns, model)


def _answer_on_stdout(generator: Generator, model: Model, ids: Sequence[int], number: int) -> str:
    """Writes an answer as it comes, made inert, and returns it as it is."""
    shown = SanitizedStream()

    def write(piece: str) -> None:
        sys.stdout.write(shown.push(piece))
        sys.stdout.flush()

    text, full = _stream(generator, model, ids, write, number)
    print(shown.flush())
    if full:
        print("The context is full: the answer ends here.", file=sys.stderr)
    return text


def _begun(cfg: ChatConfig) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(the system message, the turns) that a conversation begins with: those of the file that keeps
    it, where it is there. Raises UserError for a file of another kind, or of other instructions."""
    first = []
    if cfg.system:
        first.append({"role": "system", "content": read_input(lambda: cfg.system)})
    if not cfg.save or not (file := Path(os.path.expanduser(cfg.save))).exists():
        return first, []
    turns = [dict(message) for message in conversations.load(file).messages]
    instructions = []
    if turns[0]["role"] == "system":
        instructions.append(turns.pop(0))
    if first and first != instructions:
        raise UserError(
            "has other instructions",
            where=cfg.save,
            hint="leave --system out, or name another file",
        )
    print(
        f"The conversation in {sanitize(cfg.save, newlines=False)} goes on, after {len(turns)} turns.",
        file=sys.stderr,
    )
    return instructions, turns


def _save(cfg: ChatConfig, turns: Sequence[dict[str, str]], model: Model) -> None:
    of_any_use = {field.name for field in fields(UseConfig)}
    settings = {}
    for field in fields(SamplingConfig):
        if field.name not in of_any_use:
            settings[field.name] = getattr(cfg, field.name)
    conversation = conversations.Conversation(
        turns, str(model.folder), settings, model.tokenizer.template_kwargs
    )
    conversations.save(Path(os.path.expanduser(cfg.save)), conversation)


def fitting_ids(
    first: Sequence[dict[str, str]], turns: Sequence[dict[str, str]], model: Model, longest: int
) -> tuple[list[int], list[dict[str, str]]]:
    """(ids of `first` and the turns, the turns kept): where the context is full, the first turns
    are forgotten. There is room for an answer of `longest` tokens, or of a quarter of the context
    where that is less."""
    kept = list(turns)
    room = max(1, min(longest, model.cfg.max_position_embeddings // 4))
    ids = chat_ids([*first, *kept], model)
    while not _fits(len(ids), room, model) and len(kept) > 2:
        kept = kept[2:]
        ids = chat_ids([*first, *kept], model)
    return ids, kept


def ended_by_context(model: Model, prompt: int, completion: Completion) -> bool:
    """Whether a text ends where the context does, after a prompt of so many tokens."""
    if completion.stopped:
        return False
    # A prompt that is read beside the text takes no place of it, and one that is too long was cut.
    if model.network.decoder_start_token_id is not None:
        prompt = min(prompt, model.cfg.max_position_embeddings)
    return not _fits(prompt, len(completion.ids) + 1, model)


def _fits(prompt: int, written: int, model: Model) -> bool:
    """Whether the context holds a prompt and a text of so many tokens."""
    length = context_length(prompt, written, model.network.decoder_start_token_id)
    return bool(length <= model.cfg.max_position_embeddings)


def plain_ids(prompt: str, model: Model) -> list[int]:
    """A text that the model goes on with, or reads."""
    if model.network.decoder_start_token_id is None:
        return model.tokenizer.encode_document(prompt)
    return model.tokenizer.encode_source(prompt)


def truncation_note(ids: Sequence[int], model: Model) -> str:
    """For people: what becomes of a prompt for which `Generator.is_cut` holds."""
    return (
        f"the prompt has {len(ids)} tokens and is cut {cut_where(model.tokenizer)}: the model reads "
        f"{model.cfg.max_position_embeddings}"
    )


def read_input(read: Callable[[], str]) -> str:
    """What a person or a pipe says. Raises UserError where its bytes are no UTF-8: on the command
    line they come as lone surrogates."""
    try:
        text = read()
        text.encode()
    except UnicodeError:
        raise UserError(
            "is not UTF-8 text", where="prompt", hint="convert it, for example with iconv"
        ) from None
    return text


def chat_ids(messages: Sequence[dict[str, Any]], model: Model) -> list[int]:
    """A conversation through the model's chat template. Raises UserError: it has none, or refuses
    the conversation.
    """
    if model.tokenizer.chat_template is None:
        raise UserError(
            "the model has no chat template", where=str(model.folder), hint="leave --chat out"
        )
    try:
        return prompt_ids(messages, model.tokenizer)
    except BadRow as error:
        raise UserError(str(error), where=str(model.folder)) from error


def _stream(
    generator: Generator,
    model: Model,
    ids: Sequence[int],
    write: Callable[[str], None],
    number: int,
) -> tuple[str, bool]:
    """(what is written, whether the context ended it)."""
    decoder = model.tokenizer.stream()
    pieces: list[str] = []

    def piece(text: str) -> None:
        pieces.append(text)
        if text:
            write(text)

    [completion] = generator.run(
        model.params, [ids], first=number, on_token=lambda _, token: piece(decoder.push(token))
    )
    piece(decoder.flush())
    return "".join(pieces), ended_by_context(model, len(ids), completion)
