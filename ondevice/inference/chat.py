"""Using a model: continue a text, answer a message, hold a conversation; pieces are handed over as
they come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
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
from ondevice.inference.generator import Completion, Generator
from ondevice.inference.next_token import Sampling
from ondevice.models.generation_config import left_out, settings_of
from ondevice.models.load import load_generative
from ondevice.models.model import Model
from ondevice.runs.folder import first_event
from ondevice.runs.resolve import find_model
from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend


def _told(who: str) -> Callable[[str], None]:
    # values of a folder's files are in it
    return lambda said: print(sanitize(f"{who}: {said}", newlines=False), file=sys.stderr)


_FULL = "the context is full: the text ends there"


def silent(said: str) -> None:
    """For what somebody else says already."""


def open_model(cfg: UseConfig) -> tuple[Model, Backend]:
    backend = load_backend(cfg.backend, cfg.device, cfg.dtype)
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
    try:
        start = next(
            (found for stage in stages if (found := first_event(stage / "events.jsonl"))), {}
        )
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror}): what its chat template was told in training stands there",
            where=str(error.filename),
            hint="--chat-template-kwargs '{}' asks for nothing of it",
        ) from error
    config = start.get("config")
    setting = config.get("chat_template_kwargs") if isinstance(config, dict) else ""
    if isinstance(setting, str) and parse_template_kwargs(setting):
        return setting
    return ""


def with_kwargs(model: Model, setting: str, note: Callable[[str], None] | None = None) -> Model:
    """The model whose chat template is told what `setting` says (JSON), or, where that is empty,
    what it was told in training; then `note` is told so (by itself: stderr). Raises UserError for a
    name that the template does not read."""
    if not setting and (setting := trained_kwargs(model)):
        said = f"its chat template is told {setting}, as in training; --chat-template-kwargs '{{}}' tells it nothing"
        (note or _told(str(model.folder)))(said)
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
    other = [
        f"{name} {said[name]}"
        for name in ("temperature", "top_k", "top_p")
        if cfg.temperature
        and said.get("do_sample")
        and said.get(name) not in (None, getattr(cfg, name))
    ]
    if other:
        note(
            f"{file.name} asks for {', '.join(other)}; here the settings decide: temperature {cfg.temperature:g}, "
            f"top_k {cfg.top_k}, top_p {cfg.top_p:g}"
        )
    return Sampling(
        cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.seed, float(penalty)
    )


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
    generator = generator_of(
        model, backend, sampling(cfg, model, silent if cfg.beams > 1 else _told("generate"))
    )
    if generator.is_cut(ids):
        _told("generate")(truncation_note(ids, model))
    if cfg.beams > 1:
        how = Search.of(model.folder, _told("generate"))
        if cfg.length_penalty is not None:
            how = replace(how, length_penalty=cfg.length_penalty)
        if cfg.repetition_penalty is not None:
            how = replace(how, repetition_penalty=cfg.repetition_penalty)
        best = beam_search(generator, model.params, ids, cfg.beams, how)[: cfg.samples]
        found = [model.tokenizer.decode(one.completion.ids) for one in best]
        if write is not None:
            write("\n\n".join(found))
        return found
    if write is None:
        drawn = generator.run(model.params, [ids], samples=cfg.samples)
        if any(ended_by_context(model, len(ids), c) for c in drawn):
            _told("generate")(_FULL)
        return [model.tokenizer.decode(c.ids) for c in drawn]
    texts = []
    for number in range(cfg.samples):
        if number:
            write("\n\n")
        texts.append(_stream(generator, model, ids, write, number))
    if any(full for _, full in texts):
        _told("generate")(_FULL)
    return [text for text, _ in texts]


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
    generator = generator_of(model, backend, sampling(cfg, model, _told("chat")))
    first, turns = _begun(cfg)
    all_turns = [*first, *turns]
    # results alone go to a pipe
    asking = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    print("An empty line or Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            said = read_input(lambda: read(asking)).strip()
        except EOFError:
            said = ""
        if not said:
            return
        asked = [*turns, {"role": "user", "content": said}]
        ids, kept = fitting_ids(first, asked, model, cfg.max_new_tokens)
        cut = generator.is_cut(ids)
        too_long = (
            not cut
            and context_length(len(ids), 1, model.network.decoder_start_token_id)
            > model.cfg.max_position_embeddings
        )
        if cut:
            _told("chat")(truncation_note(ids, model))
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
        shown = SanitizedStream()

        def write(piece: str, shown: SanitizedStream = shown) -> None:
            sys.stdout.write(shown.push(piece))
            sys.stdout.flush()

        text, full = _stream(generator, model, ids, write, len(turns))
        print(shown.flush())
        if full:
            print("The context is full: the answer ends here.", file=sys.stderr)
        turns.append({"role": "assistant", "content": text})
        if cfg.save:
            all_turns += [asked[-1], turns[-1]]
            _save(cfg, all_turns, model)


def _begun(cfg: ChatConfig) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(the system message, the turns) that a conversation begins with: those of the file that keeps
    it, where it is there. Raises UserError for a file of another kind, or of other instructions."""
    first = [{"role": "system", "content": read_input(lambda: cfg.system)}] if cfg.system else []
    if not cfg.save or not (file := Path(os.path.expanduser(cfg.save))).exists():
        return first, []
    before = [dict(message) for message in conversations.load(file).messages]
    told = before[:1] if before[0]["role"] == "system" else []
    if first and first != told:
        raise UserError(
            "has other instructions",
            where=cfg.save,
            hint="leave --system out, or name another file",
        )
    print(
        f"The conversation in {sanitize(cfg.save, newlines=False)} goes on, after {len(before) - len(told)} turns.",
        file=sys.stderr,
    )
    return told, before[len(told) :]


def _save(cfg: ChatConfig, turns: Sequence[dict[str, str]], model: Model) -> None:
    names = [
        field.name
        for field in fields(SamplingConfig)
        if field.name not in {f.name for f in fields(UseConfig)}
    ]
    conversations.save(
        Path(os.path.expanduser(cfg.save)),
        conversations.Conversation(
            turns,
            str(model.folder),
            {name: getattr(cfg, name) for name in names},
            model.tokenizer.template_kwargs,
        ),
    )


def fitting_ids(
    first: Sequence[dict[str, str]], turns: Sequence[dict[str, str]], model: Model, longest: int
) -> tuple[list[int], list[dict[str, str]]]:
    """(ids of `first` and the turns, the turns kept): where the context is full, the first turns
    are forgotten. There is room for an answer of `longest` tokens, or of a quarter of the context
    where that is less."""
    kept, context = list(turns), model.cfg.max_position_embeddings
    room = max(1, min(longest, context // 4))
    ids = chat_ids([*first, *kept], model)
    while (
        context_length(len(ids), room, model.network.decoder_start_token_id) > context
        and len(kept) > 2
    ):
        kept = kept[2:]
        ids = chat_ids([*first, *kept], model)
    return ids, kept


def ended_by_context(model: Model, prompt: int, completion: Completion) -> bool:
    """Whether a text ends where the context does, after a prompt of so many tokens."""
    most = model.cfg.max_position_embeddings
    # A prompt that is read beside the text takes no place of it, and one that is too long was cut.
    read = prompt if model.network.decoder_start_token_id is None else min(prompt, most)
    return (
        not completion.stopped
        and context_length(read, len(completion.ids) + 1, model.network.decoder_start_token_id)
        > most
    )


def plain_ids(prompt: str, model: Model) -> list[int]:
    """A text that the model goes on with, or reads."""
    return (
        model.tokenizer.encode_document
        if model.network.decoder_start_token_id is None
        else model.tokenizer.encode_source
    )(prompt)


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

    made = generator.run(
        model.params, [ids], first=number, on_token=lambda _, token: piece(decoder.push(token))
    )
    piece(decoder.flush())
    return "".join(pieces), ended_by_context(model, len(ids), made[0])
