"""The tokenizer: text to ids and back, read from and written to an ordinary Hugging Face folder.

Only `encode_document` and `encode_source` add the tokens with which a text begins or ends. Text is
untrusted by default: `encode(text)` never yields a special token, however the text spells one; only
text that a chat template wrote is encoded with `special=True`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ondevice.common.errors import UserError
from ondevice.common.json_files import read_json
from ondevice.config.template_kwargs import TAKEN
from ondevice.data.chat_template import markup, turn_end
from ondevice.data.special_tokens import (
    NAMED,
    add_special,
    added_word,
    flagged,
    named_tokens,
    need_tokens,
    stop_ids_of,
    unnamed_tokens,
    without_special_pieces,
)
from ondevice.data.stream_decoder import StreamDecoder
from ondevice.data.template_sandbox import names_read
from ondevice.data.tokenizer_files import (
    encoded,
    library_errors,
    read_inner,
    read_templates,
    remove_template_files,
    with_added_tokens,
)
from ondevice.data.tokenizer_settings import with_settings
from ondevice.data.vocabulary import Vocabulary


class Tokenizer(Vocabulary):
    """Wraps `tokenizers.Tokenizer` and what tokenizer_config.json says beside it.

    `config` holds tokenizer_config.json without the chat template; `stops` are ids that end a text
    according to generation_config.json or config.json. `rows`: how many tokens the model has
    embeddings for, where they are fewer.
    """

    def __init__(
        self,
        inner: Any,
        config: dict[str, Any],
        chat_template: str | None = None,
        stops: Sequence[int] = (),
        *,
        more_templates: Mapping[str, str] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        rows: int | None = None,
    ) -> None:
        self.config = config
        self.chat_template = chat_template
        self.more_templates = dict(more_templates or {})
        self.template_kwargs = dict(template_kwargs or {})
        self.rows = rows
        self._stops = tuple(stops)
        self.named: dict[str, str] = named_tokens(config)
        ending = [added_word(inner, i) for i in self._stops]
        self.inner = flagged(inner, [*self.named.values(), *ending])
        # The largest id counts, not the number of words: some vocabularies have gaps.
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        self._find_ids()
        # What a template puts between contents is markup as well, whether or not the file calls it
        # special.
        self.inner = flagged(self.inner, self._markup())

    def _find_ids(self) -> None:
        """The ids of the tokens that are named. Raises UserError where no text can be ended."""
        sep = self._named_id("sep_token")
        eos = self._named_id("eos_token")
        if eos is None:
            eos = sep  # an encoder's texts end with its separator
        if eos is None and not self._stops:
            raise UserError(
                "the tokenizer has no end-of-text token",
                where="tokenizer_config.json",
                hint="give eos_token",
            )
        if eos is None:
            self.eos_id: int = self._stops[0]
        else:
            self.eos_id = eos
        self.bos_id: int | None = self._named_id("bos_token")
        # What an encoder sees before and after a text, and in place of what it is to guess.
        if sep is None:
            self.sep_id: int = self.eos_id
        else:
            self.sep_id = sep
        cls = self._named_id("cls_token")
        if cls is None:
            cls = self.bos_id
        if cls is None:
            self.cls_id: int = self.sep_id
        else:
            self.cls_id = cls
        self.mask_id: int | None = self._named_id("mask_token")
        # Padding is never a target and never seen by a target, so any id will do where none is
        # named.
        pad = self._named_id("pad_token")
        if pad is None or pad >= (self.rows or self.vocab_size):
            pad = self.eos_id
        self.pad_id: int = pad

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and the chat template of a Hugging Face
        folder.

        Raises UserError where there is no tokenizer that can be read, and where two files
        contradict each other.
        """
        folder = Path(folder)
        # special_tokens_map.json is an older place for the names; tokenizer_config.json wins.
        config = {
            **read_json(folder / "special_tokens_map.json"),
            **read_json(folder / "tokenizer_config.json"),
        }
        model_config = read_json(folder / "config.json")
        model_configs = [read_json(folder / "generation_config.json"), model_config]
        inner = read_inner(folder, config, model_config)
        inner = with_added_tokens(inner, folder, config)
        side = _truncation_side(inner)
        inner.no_truncation()
        inner.no_padding()
        inner = with_settings(inner, config, model_config, str(folder / "tokenizer_config.json"))
        config |= unnamed_tokens(inner, config, model_configs)
        if side not in (None, "right"):  # as transformers, which takes it from tokenizer.json
            config.setdefault("truncation_side", side)
        templates = read_templates(folder, config.pop("chat_template", None))
        need_tokens(inner, config, templates.values(), str(folder))
        template = templates.pop("default", None)
        stops = stop_ids_of(inner, model_configs)
        return cls(inner, config, template, stops, more_templates=templates)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.inner.to_str(pretty=True), encoding="utf-8")
        config = dict(self.config)
        if self.more_templates:
            config["chat_template"] = self._listed_templates()
        elif self.chat_template is not None:
            config["chat_template"] = self.chat_template
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        remove_template_files(folder)

    def _listed_templates(self) -> list[dict[str, str]]:
        """All templates as tokenizer_config.json lists several."""
        named: dict[str, str] = {}
        if self.chat_template is not None:
            named["default"] = self.chat_template
        named |= self.more_templates
        return [{"name": name, "template": template} for name, template in named.items()]

    def _copy(self, **changes: Any) -> Tokenizer:
        """The same tokenizer with other arguments of the constructor."""
        arguments = {
            "inner": self.inner,
            "config": self.config,
            "chat_template": self.chat_template,
            "stops": self._stops,
            "more_templates": self.more_templates,
            "template_kwargs": self.template_kwargs,
            "rows": self.rows,
        }
        return Tokenizer(**{**arguments, **changes})

    def with_template(self, template: str, special: Sequence[str] = ()) -> Tokenizer:
        """A copy with another chat template and with the special tokens that it needs, added where
        missing.
        """
        inner = self.inner
        missing = [word for word in special if inner.token_to_id(word) is None]
        if missing:
            inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
            add_special(inner, missing)
        return Tokenizer(
            inner,
            self.config,
            template,
            self._stops,
            template_kwargs=self.template_kwargs,
            rows=None if missing else self.rows,
        )

    def for_rows(self, rows: int, folder: Path) -> Tokenizer:
        """The tokenizer beside a model with so many embeddings. Tokens added beyond them (an
        image's, a padding) are no fault until a text needs one. Raises UserError where its own
        words, or the end of text, are beyond them."""
        if self.vocab_size <= rows:
            return self
        own = max(self.inner.get_vocab(with_added_tokens=False).values(), default=0)
        if max(own, self.eos_id, *self._stops) >= rows:
            raise UserError(
                f"the tokenizer has {self.vocab_size} tokens, the model {rows}",
                where=str(folder),
                hint="they do not belong together",
            )
        return self._copy(rows=rows)

    @cached_property
    def beyond_rows(self) -> tuple[str, ...]:
        """Tokens that the model has no embedding for."""
        if self.rows is None:
            return ()
        added = self.inner.get_added_tokens_decoder()
        return tuple(token.content for i, token in added.items() if i >= self.rows)

    def _readable(self, ids: list[int]) -> list[int]:
        """The ids. Raises UserError for one that the model has no row for."""
        if self.rows is None:
            return ids
        most = max(ids, default=0)
        if most >= self.rows:
            raise UserError(
                f"the text needs {self.inner.id_to_token(most)!r}, a token that the model has no row for",
                where="tokenizer",
                hint="leave it out of the text",
            )
        return ids

    def with_kwargs(self, kwargs: Mapping[str, Any]) -> Tokenizer:
        """A copy whose template is given further names. Raises UserError for one that it does not
        read.
        """
        unread = sorted(set(kwargs) - self._names_read())
        if unread:
            raise UserError(
                f"the chat template does not read {unread[0]!r}",
                where="chat_template_kwargs",
                hint=f"it reads: {', '.join(self.kwargs_read()) or 'nothing'}",
            )
        return self._copy(template_kwargs={**self.template_kwargs, **kwargs})

    def kwargs_read(self) -> list[str]:
        """Names that the chat template reads beside what every template is given. Raises UserError
        for a template that cannot be read."""
        return sorted(self._names_read() - set(NAMED))

    def _names_read(self) -> set[str]:
        """Names that a setting may give the chat template."""
        names: set[str] = set()
        for template in (self.chat_template, *self.more_templates.values()):
            if template is not None:
                names |= names_read(template)
        return names - set(TAKEN)

    def template_for(self, tools: bool) -> str | None:
        """The template of a chat with or without tools, as transformers chooses among named ones."""
        if tools:
            return self.more_templates.get("tool_use", self.chat_template)
        return self.chat_template

    def _markup(self) -> list[str]:
        """Added tokens that the chat template writes in a plain chat outside its contents, pairs of
        tags left out: `<think>` and `</think>` are what an assistant says."""
        added: list[str] = []
        for token in self.inner.get_added_tokens_decoder().values():
            if not token.special:
                added.append(token.content)
        if added and self.chat_template is not None:
            return markup(self, added)
        return []

    def ending_as(self, base: Tokenizer) -> Tokenizer:
        """A copy that ends texts where `base` says so too: after its end of text, and all that its
        folder lists.
        """
        stops = list(self._stops)
        for theirs in (*base._stops, base.eos_id):
            word = base.inner.id_to_token(theirs)
            ours = None
            if word is not None:
                ours = self.inner.token_to_id(word)
            if ours is not None:
                stops.append(ours)
        return self._copy(stops=stops)

    def with_eos(self, word: str) -> Tokenizer:
        """A copy whose end-of-text token is `word`; what ended texts before still does."""
        config = {**self.config, "eos_token": word}
        return self._copy(config=config, stops=[*self._stops, self.eos_id])

    def padded_apart(self) -> Tokenizer:
        """A copy that pads with a token which ends no text, where there is one. Whoever takes the
        last token that is not padding for a text's last one (transformers, for scores) would
        otherwise pass over the token that ends it."""
        ends = {self.eos_id, *self.stop_ids}
        if self.pad_id not in ends:
            return self
        named = [self.named[key] for key in ("unk_token", "bos_token") if key in self.named]
        for word in [*named, *self.special]:
            if self.inner.token_to_id(word) not in {*ends, None}:
                return self._copy(config={**self.config, "pad_token": word})
        return self

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`. special=False: a special token's name in the text stays text. Raises
        UserError, as all that encode do, for a token that the model has no row for."""
        inner = self.inner if special else self._text_only
        return self._readable(list(encoded(inner.encode_batch, [text])[0].ids))

    def encode_document(self, text: str) -> list[int]:
        """Ids of a plain text from its beginning: `encode` with `prefix_ids` before it."""
        return [*self.prefix_ids, *self.encode(text)]

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text by itself, as Llama's and Gemma's do with
        `<bos>`; nothing where that is an encoder's token, which those who read with one put there
        themselves."""
        if "cls_token" in self.named:
            return ()
        bare = self.inner.encode("a", add_special_tokens=False).ids
        whole = self.inner.encode("a", add_special_tokens=True).ids
        for at in range(len(whole)):
            if whole[at : at + len(bare)] == bare:
                return tuple(whole[:at])
        return ()

    def encode_source(self, text: str) -> list[int]:
        """Ids of a text that an encoder-decoder reads: with the tokens that its tokenizer puts
        around one, at the least the token that ends it."""
        bare = self.encode(text)
        ids = list(self._text_only.encode(text, add_special_tokens=True).ids)
        if ids != bare:
            return ids
        return [*bare, self.eos_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, in parallel; special tokens are never recognised."""
        # The fast call leaves out offsets, which nobody asked for.
        encodings = encoded(self._text_only.encode_batch_fast, texts)
        return [self._readable(encoding.ids) for encoding in encodings]

    def encode_texts(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` of each text, without the tokens around it; special tokens are
        never recognised.
        """
        return encoded(self._text_only.encode_batch, texts)

    def encode_spans(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` (ids, offsets in characters) of texts whose special tokens count as
        such.
        """
        return encoded(self.inner.encode_batch, texts)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Raises UserError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        for i in ids:
            self.check_id(i)
        text: str = self.inner.decode(ids, skip_special_tokens=skip_special)
        return text

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self)

    def sha256(self) -> str:
        """Digest of everything that decides ids: the vocabulary, the rules, the template, the named
        tokens.
        """
        parts = [
            self.inner.to_str(),
            self.chat_template or "",
            json.dumps(self.named, sort_keys=True),
        ]
        for more in (self.more_templates, self.template_kwargs):
            if more:
                parts.append(json.dumps(more, sort_keys=True))
        if self.prefix_ids:
            parts.append(f"before each text: {self.prefix_ids}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which nothing is generated: end of text, the folder's own list, the template's
        end of a turn.
        """
        ids = [self.eos_id, *self._stops]
        end = turn_end(self)
        if end is not None:
            ids.append(end)
        return tuple(dict.fromkeys(ids))

    @cached_property
    def is_stop(self) -> NDArray[np.bool_]:
        """Whether each id of the vocabulary is one of `stop_ids`, (vocab_size,)."""
        table = np.zeros(self.vocab_size, np.bool_)
        table[list(self.stop_ids)] = True
        return table

    @cached_property
    def _text_only(self) -> Any:
        # A second copy, because the switch is a state of the object and threads may encode at once.
        raw = self.inner.to_str()
        if isinstance(self.inner.model, tokenizers.models.Unigram):
            raw = without_special_pieces(raw)
        with library_errors("tokenizer.json"):  # its parts may contradict each other
            inner = tokenizers.Tokenizer.from_str(raw)
        inner.encode_special_tokens = True
        return inner

    def _named_id(self, key: str) -> int | None:
        if key not in self.named:
            return None
        found: int | None = self.inner.token_to_id(self.named[key])
        return found


def _truncation_side(inner: Any) -> str | None:
    """The side at which tokenizer.json cuts a text that is too long; None where it says nothing."""
    if not inner.truncation:
        return None
    return str(inner.truncation["direction"].lower())
