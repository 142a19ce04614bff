"""The tokenizer: text to ids and back, read from and written to an ordinary Hugging Face folder.

Only `encode_document` and `encode_source` add the tokens with which a text begins or ends. Text is
untrusted by default: `encode(text)` never yields a special token, however the text spells one; only
text that a chat template wrote is encoded with `special=True`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from ondevice.data.template_sandbox import names_read
from ondevice.data.tokenizer_files import read_inner, with_added_tokens
from ondevice.data.tokenizer_settings import with_settings

END_OF_TEXT, PADDING, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
# what stands for the hidden spans of a text, in T5's spelling
SENTINELS, SENTINEL = (32, "<extra_id_{}>")
OPENING, MASK = "<|open|>", "<|mask|>"  # an encoder's
ROLES = ("system", "user", "assistant")
SPECIAL = (END_OF_TEXT, PADDING, END_OF_TURN, *(f"<|{role}|>" for role in ROLES))

# One special token opens a turn and one closes it. With nothing but special tokens around a content
# no merge can cross its border, so the prompt's ids are always a prefix of the chat's, and a turn
# costs a small context two tokens.
OWN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# Contractions, words with their leading space, single digits, runs of signs, white space.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SINGLE_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What published folders leave to transformers' class of a tokenizer, by config.json's model_type.
_PIECES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_USUAL: dict[Any, dict[str, str]] = {
    "bert": {
        name: f"[{name.removesuffix('_token').upper()}]"
        for name in ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    },
    "t5": _PIECES,
    "mt5": _PIECES,
    "bart": {
        **_PIECES,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
}
# where transformers keeps the templates that are not the default
_MORE_TEMPLATES = "additional_chat_templates"
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
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
        self.inner = _flagged(
            inner,
            [
                *(_content(config.get(key)) for key in _NAMED),
                *(_added_word(inner, i) for i in self._stops),
            ],
        )
        # The largest id counts, not the number of words: some vocabularies have gaps.
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        self.named: dict[str, str] = {
            key: word for key in _NAMED if (word := _content(config.get(key))) is not None
        }
        sep, cls = self._named_id("sep_token"), self._named_id("cls_token")
        eos, pad = self._named_id("eos_token"), self._named_id("pad_token")
        eos = sep if eos is None else eos  # an encoder's texts end with its separator
        if eos is None and not stops:
            raise UserError(
                "the tokenizer has no end-of-text token",
                where="tokenizer_config.json",
                hint="give eos_token",
            )
        self.eos_id: int = self._stops[0] if eos is None else eos
        self.bos_id: int | None = self._named_id("bos_token")
        # What an encoder sees before and after a text, and in place of what it is to guess.
        self.sep_id: int = self.eos_id if sep is None else sep
        self.cls_id: int = next((i for i in (cls, self.bos_id) if i is not None), self.sep_id)
        self.mask_id: int | None = self._named_id("mask_token")
        # Padding is never a target and never seen by a target, so any id will do where none is
        # named.
        self.pad_id: int = self.eos_id if pad is None or pad >= (rows or self.vocab_size) else pad
        # What a template puts between contents is markup as well, whether or not the file calls it
        # special.
        self.inner = _flagged(self.inner, self._markup())

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
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
        told = [read_json(folder / name) for name in ("generation_config.json", "config.json")]
        inner = with_added_tokens(read_inner(folder, config, told[1]), folder, config)
        side = inner.truncation["direction"].lower() if inner.truncation else None
        inner.no_truncation()
        inner.no_padding()
        inner = with_settings(inner, config, told[1], str(folder / "tokenizer_config.json"))
        usual = _USUAL.get(told[1].get("model_type"), {}) or _told_by_ids(inner, config, told)
        config |= {
            name: word
            for name, word in usual.items()
            if config.get(name) is None and inner.token_to_id(word) is not None
        }
        if side not in (None, "right"):  # as transformers, which takes it from tokenizer.json
            config.setdefault("truncation_side", side)
        templates = _templates(folder, config.pop("chat_template", None))
        _need_tokens(inner, config, templates.values(), str(folder))
        template = templates.pop("default", None)
        stops: list[int] = []
        for ids in (one.get("eos_token_id") for one in told):
            stops += [ids] if isinstance(ids, int) else ids if isinstance(ids, list) else []
        return cls(
            inner,
            config,
            template,
            [i for i in dict.fromkeys(stops) if inner.id_to_token(i) is not None],
            more_templates=templates,
        )

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.inner.to_str(pretty=True), encoding="utf-8")
        config = dict(self.config)
        if self.more_templates:
            named = {
                **({} if self.chat_template is None else {"default": self.chat_template}),
                **self.more_templates,
            }
            config["chat_template"] = [
                {"name": name, "template": template} for name, template in named.items()
            ]
        elif self.chat_template is not None:
            config["chat_template"] = self.chat_template
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        # A template file from an earlier save would win over the one in tokenizer_config.json.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        for file in (folder / _MORE_TEMPLATES).glob("*.jinja"):
            file.unlink()

    def with_template(self, template: str, special: Sequence[str] = ()) -> Tokenizer:
        """A copy with another chat template and with the special tokens that it needs, added where
        missing.
        """
        inner = self.inner
        if missing := [word for word in special if inner.token_to_id(word) is None]:
            inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
            inner.add_special_tokens(
                [tokenizers.AddedToken(word, special=True, normalized=False) for word in missing]
            )
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
        return Tokenizer(
            self.inner,
            self.config,
            self.chat_template,
            self._stops,
            more_templates=self.more_templates,
            template_kwargs=self.template_kwargs,
            rows=rows,
        )

    @cached_property
    def beyond_rows(self) -> tuple[str, ...]:
        """Tokens that the model has no embedding for."""
        if self.rows is None:
            return ()
        return tuple(
            token.content
            for i, token in self.inner.get_added_tokens_decoder().items()
            if i >= self.rows
        )

    def _readable(self, ids: list[int]) -> list[int]:
        if self.rows is not None and (most := max(ids, default=0)) >= self.rows:
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
        if unread := sorted(set(kwargs) - self._names_read()):
            raise UserError(
                f"the chat template does not read {unread[0]!r}",
                where="chat_template_kwargs",
                hint=f"it reads: {', '.join(self.kwargs_read()) or 'nothing'}",
            )
        return Tokenizer(
            self.inner,
            self.config,
            self.chat_template,
            self._stops,
            more_templates=self.more_templates,
            template_kwargs={**self.template_kwargs, **kwargs},
            rows=self.rows,
        )

    def kwargs_read(self) -> list[str]:
        """Names that the chat template reads beside what every template is given. Raises UserError
        for a template that cannot be read."""
        return sorted(self._names_read() - set(_NAMED))

    def _names_read(self) -> set[str]:
        """Names that a setting may give the chat template."""
        sources = [t for t in (self.chat_template, *self.more_templates.values()) if t is not None]
        return set().union(*(names_read(source) for source in sources)) - set(TAKEN)

    def template_for(self, tools: bool) -> str | None:
        """The template of a chat with or without tools, as transformers chooses among named ones."""
        if tools:
            return self.more_templates.get("tool_use", self.chat_template)
        return self.chat_template

    def _markup(self) -> list[str]:
        """Added tokens that the chat template writes in a plain chat outside its contents, pairs of
        tags left out: `<think>` and `</think>` are what an assistant says."""
        added = [
            token.content
            for token in self.inner.get_added_tokens_decoder().values()
            if not token.special
        ]
        if added and self.chat_template is not None:
            return markup(self, added)
        return []

    def ending_as(self, base: Tokenizer) -> Tokenizer:
        """A copy that ends texts where `base` says so too: after its end of text, and all that its
        folder lists.
        """
        words = [base.inner.id_to_token(i) for i in (*base._stops, base.eos_id)]
        found = [self.inner.token_to_id(word) for word in words if word is not None]
        return Tokenizer(
            self.inner,
            self.config,
            self.chat_template,
            [*self._stops, *(i for i in found if i is not None)],
        )

    def with_eos(self, word: str) -> Tokenizer:
        """A copy whose end-of-text token is `word`; what ended texts before still does."""
        return Tokenizer(
            self.inner,
            {**self.config, "eos_token": word},
            self.chat_template,
            [*self._stops, self.eos_id],
        )

    def padded_apart(self) -> Tokenizer:
        """A copy that pads with a token which ends no text, where there is one. Whoever takes the
        last token that is no padding for a text's last one (transformers, for scores) would else
        pass over the token that ends it."""
        ends = {self.eos_id, *self.stop_ids}
        if self.pad_id not in ends:
            return self
        named = [self.named[key] for key in ("unk_token", "bos_token") if key in self.named]
        words = [
            word
            for word in [*named, *self.special]
            if self.inner.token_to_id(word) not in {*ends, None}
        ]
        if words:
            return Tokenizer(
                self.inner,
                {**self.config, "pad_token": words[0]},
                self.chat_template,
                self._stops,
                more_templates=self.more_templates,
                template_kwargs=self.template_kwargs,
                rows=self.rows,
            )
        return self

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`. special=False: a special token's name in the text stays text. Raises
        UserError, as all that encode do, for a token that the model has no row for."""
        inner = self.inner if special else self._text_only
        return self._readable(list(inner.encode(text, add_special_tokens=False).ids))

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
        at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        return tuple(whole[:at])

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
        return [
            self._readable(e.ids)
            for e in self._text_only.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_texts(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` of each text, without the tokens around it; special tokens are
        never recognised.
        """
        encodings: list[Any] = self._text_only.encode_batch(list(texts), add_special_tokens=False)
        return encodings

    def encode_spans(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` (ids, offsets in characters) of texts whose special tokens count as
        such.
        """
        encodings: list[Any] = self.inner.encode_batch(list(texts), add_special_tokens=False)
        return encodings

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Raises UserError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        for i in ids:
            self._check(i)
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
        parts += [
            json.dumps(more, sort_keys=True)
            for more in (self.more_templates, self.template_kwargs)
            if more
        ]
        parts += [f"before each text: {self.prefix_ids}"] if self.prefix_ids else []
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def token_bytes(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Number of UTF-8 bytes of text that each id stands for, same shape as `ids`; special
        tokens stand for none.
        """
        lengths: NDArray[np.int32] = self._byte_lengths[ids]
        return lengths

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which nothing is generated: end of text, the folder's own list, the template's
        end of a turn.
        """
        end = turn_end(self)
        return tuple(dict.fromkeys([self.eos_id, *self._stops, *([] if end is None else [end])]))

    @cached_property
    def special(self) -> dict[str, Any]:
        """Special tokens by content: `tokenizers.AddedToken` objects."""
        return {
            token.content: token
            for token in self.inner.get_added_tokens_decoder().values()
            if token.special
        }

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """Whether each id of the vocabulary is a special token, (vocab_size,)."""
        table = np.zeros(self.vocab_size, np.bool_)
        table[
            [i for i, token in self.inner.get_added_tokens_decoder().items() if token.special]
        ] = True
        return table

    @cached_property
    def continues(self) -> NDArray[np.bool_]:
        """Whether each id goes on with the word of the id before it, (vocab_size,): it begins with
        a letter or digit and with no space, or, in WordPiece's vocabularies, with ##."""
        table = np.zeros(self.vocab_size, np.bool_)
        pieces = json.loads(self.inner.to_str())["model"].get("type") == "WordPiece"
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            first = _spelt(word)[:1] if self.is_byte_level else word[:1].encode()[:1]
            table[i] = (
                word.startswith("##")
                if pieces
                else (not word.startswith("\u2581") and (first.isalnum() or first >= b"\x80"))
            )
        table[self.is_special] = False
        return table

    @cached_property
    def sentinels(self) -> NDArray[np.int32]:
        """Ids of the tokens that stand for hidden spans, in order; empty where there are none."""
        found: list[int] = []
        while (i := self.inner.token_to_id(SENTINEL.format(len(found)))) is not None:
            found.append(i)
        return np.array(found, np.int32)

    @cached_property
    def ends_sentence(self) -> NDArray[np.bool_]:
        """Whether each id ends a sentence, (vocab_size,): it ends with a full stop, a question
        mark, an exclamation mark or a line."""
        table = np.zeros(self.vocab_size, np.bool_)
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            text = _spelt(word) if self.is_byte_level else word.encode()
            table[i] = text.endswith((b".", b"?", b"!", b"\n"))
        table[self.is_special] = False
        return table

    @cached_property
    def is_stop(self) -> NDArray[np.bool_]:
        """Whether each id of the vocabulary is one of `stop_ids`, (vocab_size,)."""
        table = np.zeros(self.vocab_size, np.bool_)
        table[list(self.stop_ids)] = True
        return table

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether every token is spelt in the 256 characters that stand for bytes."""
        return '"ByteLevel"' in json.dumps(json.loads(self.inner.to_str()).get("decoder"))

    @cached_property
    def _text_only(self) -> Any:
        # A second copy, because the switch is a state of the object and threads may encode at once.
        raw = self.inner.to_str()
        if isinstance(self.inner.model, tokenizers.models.Unigram):
            raw = _pieces_of_text(raw)
        inner = tokenizers.Tokenizer.from_str(raw)
        inner.encode_special_tokens = True
        return inner

    @cached_property
    def _byte_lengths(self) -> NDArray[np.int32]:
        lengths = np.zeros(self.vocab_size, np.int32)
        added = self.inner.get_added_tokens_decoder()
        for word, i in self.inner.get_vocab(with_added_tokens=True).items():
            lengths[i] = (
                _spelt_bytes(word, self.is_byte_level) if i not in added else len(word.encode())
            )
        lengths[self.is_special] = 0
        return lengths

    def _check(self, i: int) -> None:
        if not 0 <= i < self.vocab_size:
            raise UserError(f"token id {i} is outside the vocabulary of {self.vocab_size}")

    def _named_id(self, key: str) -> int | None:
        found: int | None = self.inner.token_to_id(self.named[key]) if key in self.named else None
        return found


class StreamDecoder:
    """Text of ids that come one at a time; a character whose bytes are not all there yet is held
    back.

    The pieces from `push` and `flush`, joined, are what `Tokenizer.decode` makes of all the ids.
    (Where single bytes are tokens beside words, as in SentencePiece's vocabularies, a broken run of
    them may get fewer marks.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._last: list[
            int
        ] = []  # the id before, without which a decoder takes a word for the text's first
        self._shown = ""  # what that id alone decodes to

    def push(self, token: int) -> str:
        """What `token` adds to the text; empty while a character is incomplete."""
        tokenizer, token = self._tokenizer, int(token)
        tokenizer._check(token)
        word = tokenizer.inner.id_to_token(token)
        if word is None or word in tokenizer.special:
            return ""
        if tokenizer.is_byte_level:
            return self._bytes.decode(_spelt(word))
        if _SINGLE_BYTE.fullmatch(word):
            new = self._bytes.decode(bytes([int(word[3:5], 16)]))
        else:
            text = tokenizer.inner.decode([*self._last, token], skip_special_tokens=True)
            new = self.flush() + text[len(self._shown) :]
        self._last = [token]
        self._shown = tokenizer.inner.decode(self._last, skip_special_tokens=True)
        return new

    def flush(self) -> str:
        """What was held back, at the end of a text."""
        left = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return left


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, fills: bool = False, sentinels: int = 0
) -> Tokenizer:
    """Byte-level BPE with single digits, our special tokens and our chat template.

    The names of the text get one token with and one without a leading space where the vocabulary
    has room: copying a name from the context is then copying one token, wherever it stands. The
    vocabulary is smaller than asked where the text has no more pairs to merge. `fills`: for an
    encoder, with a token that opens a text and one that masks; `sentinels`: for a T5, so many
    tokens that stand for hidden spans, at the top of the vocabulary, the first highest. Raises
    UserError for a vocabulary that does not hold the bytes, or without text.
    """
    special = (*SPECIAL, *((OPENING, MASK) if fills else ()))
    least = 256 + len(special) + sentinels
    if vocab_size < least:
        raise UserError(
            f"{vocab_size} is too small",
            where="vocab_size",
            hint=f"the bytes and special tokens alone need {least}",
        )
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - sentinels,
        min_frequency=2,
        show_progress=False,
        # the mask takes the space before it along: it stands for a word with its space
        special_tokens=[
            tokenizers.AddedToken(word, special=True, normalized=False, lstrip=word == MASK)
            for word in special
        ],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    balanced = _Balanced(texts)
    inner.train_from_iterator(balanced, trainer=trainer)
    if not balanced.characters:
        raise UserError("no text to learn a tokenizer from", where="data")
    inner.add_special_tokens(
        [
            tokenizers.AddedToken(SENTINEL.format(n), special=True, normalized=False)
            for n in reversed(range(sentinels))
        ]
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "model_max_length": 10**30,
    }
    if fills:
        config |= {
            "cls_token": OPENING,
            "sep_token": END_OF_TEXT,
            "mask_token": MASK,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{OPENING} $A {END_OF_TEXT}",
            pair=f"{OPENING} $A {END_OF_TEXT} $B {END_OF_TEXT}",
            special_tokens=[(word, inner.token_to_id(word)) for word in (OPENING, END_OF_TEXT)],
        )
    return Tokenizer(inner, config, OWN_TEMPLATE)


class _Balanced:
    """The texts, then capitalised words once more, so that each is as frequent without its leading
    space as with it.

    BPE merges what is frequent. A name is frequent after a space and rare at the start of a line or
    after a quotation mark, and would be spelt out there.
    """

    _CAPITALISED = re.compile(r" ?\b[A-Z][a-z]+")

    def __init__(self, texts: Iterable[str], most: int = 400) -> None:
        self.texts, self.most, self.characters = texts, most, 0

    def __iter__(self) -> Iterator[str]:
        counts: Counter[str] = Counter()
        for text in self.texts:
            self.characters += len(text)
            counts.update(self._CAPITALISED.findall(text))
            yield text
        bare = {
            word: counts[word] + counts[" " + word] for word in {word.lstrip() for word in counts}
        }
        for word, _ in sorted(bare.items(), key=lambda item: (-item[1], item[0]))[: self.most]:
            lack = counts[" " + word] - counts[word]
            # Parts of a bounded size: a frequent word of a large corpus would make one huge string.
            unit, left = (word + "\n", lack) if lack > 0 else (" " + word, -lack)
            while left > 0:
                yield unit * min(left, 10_000)
                left -= 10_000


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level vocabularies use for the 256 bytes (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _spelt(word: str) -> bytes:
    """Bytes of a byte-level token; an added token is spelt as it is."""
    if all(letter in _BYTES for letter in word):
        return bytes(_BYTES[letter] for letter in word)
    return word.encode()


def _spelt_bytes(word: str, byte_level: bool) -> int:
    if byte_level:
        return len(_spelt(word))
    if _SINGLE_BYTE.fullmatch(word):
        return 1
    return len(word.replace("\u2581", " ").removeprefix("##").encode())


def _pieces_of_text(raw: str) -> str:
    """A Unigram's file in which a special token that is one of its pieces, and so found in a text
    that spells it, has a name that no text has."""
    config = json.loads(raw)
    special = {token["content"] for token in config["added_tokens"] if token["special"]}
    pieces: list[tuple[str, float]] = config["model"]["vocab"]
    hidden = {word for word, _ in pieces if word in special}
    config["model"]["vocab"] = [
        (f"\ufdd3 {word}" if word in hidden else word, score) for word, score in pieces
    ]
    config["added_tokens"] = [
        token for token in config["added_tokens"] if token["content"] not in hidden
    ]
    return json.dumps(config, ensure_ascii=False)


def _content(value: Any) -> str | None:
    """A named token is written as a string or as an object with `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    if isinstance(value, str):
        return value
    return None


def _templates(folder: Path, value: Any) -> dict[str, str]:
    """The chat templates by name, the only one as `default`: their own files first, then
    tokenizer_config.json (a string, or a list of named ones)."""
    value = read_json(folder / "chat_template.json").get("chat_template", value)
    if isinstance(value, list):
        value = {
            entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)
        }
    found = value if isinstance(value, dict) else {"default": value}
    files = {"default": folder / "chat_template.jinja"} | {
        file.stem: file for file in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))
    }
    found = found | {
        name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()
    }
    return {str(name): template for name, template in found.items() if isinstance(template, str)}


def _need_tokens(
    inner: Any, config: Mapping[str, Any], templates: Iterable[str], where: str
) -> None:
    """Raises UserError where the end of text, or a special token that a chat template writes, has a
    name and no id: its letters would be learned in its place."""
    more = [config.get(name) for name in ("additional_special_tokens", "extra_special_tokens")]
    listed = [
        _content(one)
        for some in more
        if some
        for one in (some.values() if isinstance(some, dict) else some)
    ]
    named = dict.fromkeys(filter(None, listed), "")
    named |= {word: name for name in _NAMED if (word := _content(config.get(name)))}
    known = inner.get_vocab(with_added_tokens=True)
    for word, name in named.items():
        if word in known:
            continue
        if name == "eos_token" or any(
            word in text or (name and name in text) for text in templates
        ):
            raise UserError(
                f"the special token {word!r} is named and has no id",
                where=where,
                hint="add it to tokenizer.json with transformers and give the model a row for it, or take "
                "the name out of tokenizer_config.json",
            )


def _told_by_ids(
    inner: Any, config: Mapping[str, Any], told: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The names of special tokens where a folder has their ids alone, as GPT-2's: all where the
    tokenizer's own files name none, else the end of text."""
    if any(_content(config.get(name)) for name in _NAMED):
        wanted: tuple[str, ...] = ("eos_token",)
    else:
        wanted = ("eos_token", "bos_token", "pad_token")
    found: dict[str, str] = {}
    for name in wanted:
        ids = [one.get(f"{name}_id") for one in told]
        first = next(
            (i[0] if isinstance(i, list) and i else i for i in ids if i is not None and i != []),
            None,
        )
        if (
            name not in config
            and isinstance(first, int)
            and (word := inner.id_to_token(first)) is not None
        ):
            found[name] = word
    return found


def _added_word(inner: Any, i: int) -> str | None:
    token = inner.get_added_tokens_decoder().get(i)
    if token is None:
        return None
    return str(token.content)


def _flagged(inner: Any, words: Collection[str | None]) -> Any:
    """The tokenizer with these words as special tokens at the ids that they have: what a folder
    names, stops at or puts around a message is special whatever its flag says, as in transformers,
    and no text becomes one."""
    added = {token.content: token for token in inner.get_added_tokens_decoder().values()}
    plain = [
        word
        for word in dict.fromkeys(words)
        if word is not None
        and (not added[word].special if word in added else inner.token_to_id(word) is not None)
    ]
    if not plain:
        return inner
    config = json.loads(inner.to_str())
    for token in config["added_tokens"]:
        token["special"] = token["special"] or token["content"] in plain
    made = tokenizers.Tokenizer.from_str(json.dumps(config, ensure_ascii=False))
    made.add_special_tokens(
        [
            tokenizers.AddedToken(word, special=True, normalized=False)
            for word in plain
            if word not in added
        ]
    )
    return made
