"""The files of a tokenizer in a Hugging Face folder, as the `tokenizers` library's object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from ondevice.common import bounded
from ondevice.common.errors import UserError
from ondevice.common.json_files import parse_json, read_json
from ondevice.data.tokenizer_growth import check_growth

# Classes of a tokenizer whose vocab.json and merges.txt say all: byte-level BPE with GPT-2's words.
_GPT2 = {"GPT2Tokenizer", "GPT2TokenizerFast"}
# Files of tokenizers that transformers can make a tokenizer.json of.
_OTHER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
_SWITCHES = ("single_word", "lstrip", "rstrip", "normalized", "special")
# where transformers keeps the templates that are not the default
LARGEST_ID = 1 << 22
_MORE_TEMPLATES = "additional_chat_templates"


def read_inner(folder: Path, config: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    """The tokenizer of tokenizer.json, or of GPT-2's vocab.json and merges.txt. Raises UserError
    for a file that cannot be read, and where another form has to be converted first."""
    file = folder / "tokenizer.json"
    if file.is_file():
        with library_errors(str(file)):
            text = bounded.read_text(file)
            raw = parse_json(text)
            check_growth(raw, file)
            _check_ids(raw.get("model"), file)
            return tokenizers.Tokenizer.from_str(text)
    vocab = folder / "vocab.json"
    merges = folder / "merges.txt"
    if vocab.is_file() and merges.is_file() and _is_gpt2(config, model):
        return _gpt2(vocab, merges, prefix=config.get("add_prefix_space") is True)
    others = [name for name in _OTHER_FILES if (folder / name).is_file()]
    reason = "no tokenizer.json in this folder"
    hint = "give a folder in Hugging Face's form"
    if others:
        reason += f", only {','.join(others)}"
        hint = _conversion(folder)
    raise UserError(reason, where=str(folder), hint=hint)


@contextmanager
def library_errors(where: str, hint: str = "is the download whole?") -> Iterator[None]:
    """Raises UserError for whatever the library says of a tokenizer that it cannot read: it raises
    bare Exception, and where its Rust panics what is no Exception at all."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not _of_the_library(error):
            raise
        raise UserError(
            f"cannot be read as a tokenizer: {error}", where=where, hint=hint
        ) from error


def encoded(encode: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
    """What a method of the library's tokenizer makes of the texts. Raises UserError where its own
    rules fail on them: a pattern that tries too long, a vocabulary without its unknown token."""
    try:
        return encode(list(texts), add_special_tokens=False)
    except BaseException as error:
        if type(error) is not Exception and not _is_panic(error):
            raise
        raise UserError(
            f"the tokenizer cannot read a text: {str(error)[:200]}",
            where="tokenizer.json",
            hint="look at its rules, or take another model",
        ) from None


def _of_the_library(error: BaseException) -> bool:
    """Whether a file that is not a tokenizer's can be the cause: the library raises bare Exception,
    and PanicException, which is not one."""
    return isinstance(error, Exception) or _is_panic(error)


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _check_ids(model: Any, file: Path) -> None:
    """Raises UserError where two tokens have one id: the library keeps one of them, and fails later,
    at the first copy. And for an id beyond all vocabularies: the library counts up to it."""
    if isinstance(model, Mapping):
        vocab = model.get("vocab")
    else:
        vocab = None
    if not isinstance(vocab, Mapping):  # a Unigram's is a list
        return
    by_id: dict[Any, str] = {}
    for token, i in vocab.items():
        if isinstance(i, int) and i > LARGEST_ID:
            raise UserError(
                f"the token {token!r:.40} has the id {str(i)[:20]}, more than any vocabulary",
                where=str(file),
                hint="is the download whole?",
            )
        if isinstance(i, int) and by_id.setdefault(i, token) != token:
            raise UserError(
                f"the tokens {by_id[i]!r:.40} and {token!r:.40} have one id, {i}",
                where=str(file),
                hint="is the download whole?",
            )


def _is_gpt2(config: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    named = config.get("tokenizer_class")
    if named is not None:
        return named in _GPT2
    return model.get("model_type") == "gpt2"


def _gpt2(vocab: Path, merges: Path, *, prefix: bool) -> Any:
    _check_ids({"vocab": read_json(vocab)}, vocab)
    with library_errors(str(vocab.parent), "are vocab.json and merges.txt whole?"):
        inner = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    word = "<|endoftext|>"
    if inner.token_to_id(word) is not None:
        inner.add_special_tokens([tokenizers.AddedToken(word, special=True, normalized=False)])
    return inner


def _conversion(folder: Path) -> str:
    return (
        f'transformers makes one: python -c "from transformers import AutoTokenizer as A; '
        f'A.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
    )


def with_added_tokens(inner: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer with the tokens of added_tokens.json and of `added_tokens_decoder` in
    tokenizer_config.json, at the ids that they give. Raises UserError for an id that the token
    cannot have."""
    for i, (token, where) in sorted(_wanted(folder, config).items()):
        have = inner.token_to_id(token.content)
        if have == i and i in inner.get_added_tokens_decoder():
            continue
        if have is None or have == i:
            if token.special:
                inner.add_special_tokens([token])
            else:
                inner.add_tokens([token])
            have = inner.token_to_id(token.content)
        if have != i:
            raise UserError(
                f"gives {token.content!r} the id {i}, the tokenizer {have}",
                where=str(folder / where),
                hint="the files of one tokenizer belong together: fetch the folder anew",
            )
    return inner


def _wanted(folder: Path, config: Mapping[str, Any]) -> dict[int, tuple[Any, str]]:
    """(token, the file that names it) by its id."""
    found: dict[int, tuple[Any, str]] = {}
    for word, i in read_json(folder / "added_tokens.json").items():
        if isinstance(i, int):
            found[i] = (
                tokenizers.AddedToken(word, special=False, normalized=False),
                "added_tokens.json",
            )
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, Mapping):
        return found
    for number, entry in listed.items():
        if not (
            isinstance(entry, Mapping)
            and isinstance(entry.get("content"), str)
            and str(number).isdecimal()
        ):
            raise UserError(
                f"added_tokens_decoder has no token under {number!r}",
                where=str(folder / "tokenizer_config.json"),
                hint="is the download whole?",
            )
        switches = {name: entry[name] is True for name in _SWITCHES if name in entry}
        found[int(number)] = (
            tokenizers.AddedToken(entry["content"], **switches),
            "tokenizer_config.json",
        )
    return found


def read_templates(folder: Path, value: Any) -> dict[str, str]:
    """The chat templates by name, the only one as `default`: their own files first, then `value`,
    what tokenizer_config.json says (a string, or a list of named ones)."""
    value = read_json(folder / "chat_template.json").get("chat_template", value)
    found: dict[Any, Any] = {}
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict):
                found[entry.get("name")] = entry.get("template")
    elif isinstance(value, dict):
        found |= value
    else:
        found["default"] = value
    for name, file in _template_files(folder).items():
        if file.is_file():
            try:
                found[name] = bounded.read_text(file)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"cannot be read: {error}", where=str(file), hint="is the download whole?"
                ) from error
    return {str(name): template for name, template in found.items() if isinstance(template, str)}


def _template_files(folder: Path) -> dict[str, Path]:
    """Where a folder may have the template of each name in a file of its own."""
    files = {"default": folder / "chat_template.jinja"}
    for file in sorted((folder / _MORE_TEMPLATES).glob("*.jinja")):
        files[file.stem] = file
    return files


def remove_template_files(folder: Path) -> None:
    """Removes the template files of an earlier save, which would win over tokenizer_config.json."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for file in (folder / _MORE_TEMPLATES).glob("*.jinja"):
        file.unlink()
