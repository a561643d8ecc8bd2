"""A model's small files in the form that a client without transformers needs.

    tokenizer.json           always, unless a model without a tokenizer is allowed
    tokenizer_config.json    special tokens and options; without the chat template
    chat_template.jinja      the chat template on its own, if there is one
    chat_template_tool_use.jinja   the one for chats with tools, if there is one for those alone
    config.json, generation_config.json, special_tokens_map.json

Nothing here runs code or templates from the source; keys that would make a loader run some (`auto_map`) are
dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from coordinator.packing.safetensors_source import checked_path, read_small_file
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES
from protocol.model_files.quick_gguf import make_gguf_quick

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOOL_TEMPLATE_FILE = "chat_template_tool_use.jinja"
_TOOL_TEMPLATE_FOLDER, _TOOL_TEMPLATE_NAME = "additional_chat_templates", "tool_use.jinja"
"""As transformers saves it."""
_VOCABULARIES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
_KEPT_AS_THEY_ARE = ("generation_config.json", "special_tokens_map.json")
_HERE_ONLY = (
    "name_or_path",
    "is_local",
    "local_files_only",
    "auto_map",
    "chat_template",
    "vocab_file",
    "tokenizer_file",
)
"""Keys of tokenizer_config.json that name code or this machine's paths, or that have a file of their own."""


def folder_files(folder: Path, *, link_root: Path) -> dict[str, bytes]:
    """Tokenizer and generation files of the model in `folder`, by name; no tokenizer.json if it has no tokenizer.

    Raises:
        UntrustedFileError: a file is too large, malformed or a link that leads elsewhere.
        InvalidRequestError: the vocabulary can't be turned into a tokenizer.json.
    """
    files: dict[str, bytes] = {}
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE, *_KEPT_AS_THEY_ARE):
        if (folder / name).exists():
            files[name] = _read(folder, name, link_root)
    if (folder / _TOOL_TEMPLATE_FOLDER / _TOOL_TEMPLATE_NAME).exists():
        files[TOOL_TEMPLATE_FILE] = _read(folder / _TOOL_TEMPLATE_FOLDER, _TOOL_TEMPLATE_NAME, link_root)
    if TOKENIZER_FILE not in files and any((folder / name).exists() for name in _VOCABULARIES):
        for name in _VOCABULARIES:
            if (folder / name).exists():
                checked_path(folder, name, link_root=link_root)
        files = _converted(str(folder)) | files
    return _separated(files)


def gguf_files(path: Path) -> dict[str, bytes]:
    """Tokenizer files made from the vocabulary in the GGUF file at `path`.

    Raises:
        InvalidRequestError: the vocabulary is of a kind that can't be turned into a tokenizer.json.
    """
    make_gguf_quick()
    return _separated(_converted(str(path.parent), gguf_file=path.name))


def generation_config(config: dict[str, Any]) -> bytes:
    """A generation_config.json with the special token ids of `config`, for sources that have none."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return canonical_json({name: config[name] for name in names if config.get(name) is not None})


def canonical_json(value: object) -> bytes:
    """JSON that is the same each time, since the model's revision depends on it.

    Raises:
        UntrustedFileError: a text in it is no Unicode: JSON can write half a character, UTF-8 can't.
    """
    return _utf8(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)) + b"\n"


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise UntrustedFileError(
            f"a JSON file of the model holds a lone surrogate, \\u{ord(text[exc.start]):04x}, which is no character"
        ) from exc


def _read(folder: Path, name: str, link_root: Path) -> bytes:
    return read_small_file(checked_path(folder, name, link_root=link_root), limit=MAX_AUXILIARY_FILE_BYTES)


def _converted(location: str, **options: str) -> dict[str, bytes]:
    """What transformers makes of a vocabulary that only it can read."""
    with TemporaryDirectory(prefix="brigade-tokenizer-") as scratch, _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                location, trust_remote_code=False, local_files_only=True, **options
            )
            tokenizer.save_pretrained(scratch)
        except Exception as exc:  # tokenizers raises bare Exception (from Rust), and conversions whatever they meet
            raise InvalidRequestError(
                f"the vocabulary can't be turned into a tokenizer.json: {type(exc).__name__}: {str(exc)[:300]}; "
                "add a tokenizer.json (save_pretrained() of a fast tokenizer) to the source"
            ) from exc
        found = {path.name: path.read_bytes() for path in Path(scratch).iterdir() if path.is_file()}
    if TOKENIZER_FILE not in found:
        raise InvalidRequestError("the vocabulary has no fast tokenizer; add a tokenizer.json to the source")
    wanted = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE, "special_tokens_map.json")
    return {name: data for name, data in found.items() if name in wanted}


def _separated(files: dict[str, bytes]) -> dict[str, bytes]:
    """Check the files, take the chat template out of tokenizer_config.json, and drop what names code or paths."""
    files = dict(files)
    for name in files.keys() - {TOKENIZER_FILE, CHAT_TEMPLATE_FILE, TOOL_TEMPLATE_FILE}:
        _json_object(name, files[name])
    if TOKENIZER_FILE in files:
        _json_object(TOKENIZER_FILE, files[TOKENIZER_FILE])
    if TOKENIZER_CONFIG_FILE in files:
        settings = _json_object(TOKENIZER_CONFIG_FILE, files[TOKENIZER_CONFIG_FILE])
        template = _default_template(settings.get("chat_template"))
        if template is not None:
            files.setdefault(CHAT_TEMPLATE_FILE, _utf8(template))
        tool_template = _named_templates(settings.get("chat_template")).get("tool_use")
        if isinstance(tool_template, str):
            files.setdefault(TOOL_TEMPLATE_FILE, _utf8(tool_template))
        kept = {key: value for key, value in settings.items() if key not in _HERE_ONLY}
        files[TOKENIZER_CONFIG_FILE] = canonical_json(kept)
    for name in files.keys() & {CHAT_TEMPLATE_FILE, TOOL_TEMPLATE_FILE}:
        try:
            files[name].decode()
        except UnicodeDecodeError as exc:
            raise UntrustedFileError(f"{name} is not UTF-8: {exc}") from exc
    return files


def _default_template(value: object) -> str | None:
    """The template to chat with: the only one, or of a list of named ones the one called `default`."""
    if isinstance(value, str):
        return value or None
    named = _named_templates(value)
    chosen = named.get("default", next(iter(named.values()), None))
    return chosen if isinstance(chosen, str) else None


def _named_templates(value: object) -> dict[str, object]:
    if not isinstance(value, list):
        return {}
    return {str(each.get("name")): each.get("template") for each in value if isinstance(each, dict)}


def _json_object(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise UntrustedFileError(f"{name} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise UntrustedFileError(f"{name} is not a JSON object")
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' remarks about classes and missing models off the operator's terminal."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
