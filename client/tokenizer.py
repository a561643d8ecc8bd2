"""A model's tokenizer and what its small files say about generating, without transformers.

Text to ids and back, conversations to ids by the chat template, the tokens that end an answer, and the sampling
that the model's authors recommend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from tokenizers import Tokenizer

from client.chat_template import ChatTemplate, Message
from client.decoding import TextStream
from client.model_files import ModelFiles
from client.options import SamplingDefaults
from protocol.errors import InvalidRequestError, TooLargeError, UntrustedFileError
from protocol.messages import MAX_STOP_TOKEN_IDS

MAX_PROMPT_CHARACTERS = 64 * 2**20
_MAX_REASON = 500
_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class ModelTokenizer:
    """What a client knows of one model. Made by `loaded_tokenizer`."""

    def __init__(self, files: ModelFiles) -> None:
        """Read the files. Blocks for up to a second: call it in a thread.

        Raises:
            UntrustedFileError: a file is malformed.
        """
        configs = {name: _json_object(files.contents, name) for name in _CONFIGS}
        self._special_tokens = _special_tokens(configs)
        self._tokenizer = _tokenizer(files.contents.get("tokenizer.json"))
        self._template = _template(files.contents, configs, self._special_tokens)
        self.vocab_size = files.manifest.vocab_size
        self.stop_token_ids = self._stop_tokens(configs)
        self.defaults = _defaults(configs["generation_config.json"])

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be encoded."""
        return self._template is not None

    async def encoded_text(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model wants around it (BOS).

        Raises:
            InvalidRequestError: empty, not valid Unicode, or the model has no tokenizer.
        """
        return await self._encoded(text, add_special_tokens=True)

    async def encoded_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the model's answer begins.

        Raises:
            InvalidRequestError: no messages, malformed ones, ones that the template refuses, or no template.
        """
        if self._template is None:
            raise InvalidRequestError("this model has no chat template: give a plain prompt (--raw)")
        _check_messages(messages)
        text = await self._template.rendered(messages)
        return await self._encoded(text, add_special_tokens=False)  # the template wrote them

    def checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        """Ids that the caller made.

        Raises:
            InvalidRequestError: none, or one that the model doesn't have.
        """
        if not token_ids:
            raise InvalidRequestError("the prompt is empty: at least one token is needed")
        for token_id in token_ids:
            is_id = isinstance(token_id, int)  # callers may have no types
            if not is_id or not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(f"token id {token_id} is not one of the model's {self.vocab_size}")
        return list(token_ids)

    def text_stream(self) -> TextStream | None:
        """For one generation's tokens; None for a model without a tokenizer."""
        return None if self._tokenizer is None else TextStream(self._tokenizer)

    async def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: give token ids instead of text")
        _check_text(text)
        return self.checked_ids(await asyncio.to_thread(_ids_of, self._tokenizer, text, add_special_tokens))

    def _stop_tokens(self, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
        found: dict[int, None] = {}
        for source in (configs["generation_config.json"], configs["config.json"], _text_part(configs)):
            found.update(dict.fromkeys(_ids(source.get("eos_token_id"))))
        eos = self._special_tokens.get("eos_token")
        if eos is not None and self._tokenizer is not None:
            found.update(dict.fromkeys(_ids(self._tokenizer.token_to_id(eos))))
        usable = tuple(token_id for token_id in found if 0 <= token_id < self.vocab_size)
        if len(usable) > MAX_STOP_TOKEN_IDS:
            raise UntrustedFileError(
                f"the model names {len(usable)} stop tokens; at most {MAX_STOP_TOKEN_IDS} work"
            )
        return usable


async def loaded_tokenizer(files: ModelFiles) -> ModelTokenizer:
    """The tokenizer of these files, made in a thread.

    Raises:
        UntrustedFileError: a file is malformed.
    """
    return await asyncio.to_thread(ModelTokenizer, files)


_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def _json_object(contents: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in contents:
        return {}
    try:
        return msgspec.json.decode(contents[name], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"the model's {name} is malformed: {exc}") from exc


def _tokenizer(data: bytes | None) -> Tokenizer | None:
    if data is None:
        return None
    with _untrusted("the model's tokenizer.json is malformed"):
        tokenizer = Tokenizer.from_buffer(data)
    # Left in some files from training; a prompt is never cut silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids_of(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:  # noqa: FBT001 - for a thread
    with _untrusted("the model's tokenizer can't do this text"):
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


@contextmanager
def _untrusted(what: str) -> Iterator[None]:
    """Blame the file for what its tokenizer does: the library raises bare Exception, and panics beyond that.

    It panics where a regular expression of the file backtracks for too long (it counts), which isn't an Exception.
    """
    try:
        yield
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        raise UntrustedFileError(f"{what}: {str(exc)[:_MAX_REASON]}") from exc


def _special_tokens(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Named special tokens; a token is text or an object with `content`."""
    found: dict[str, str] = {}
    for source in (configs["special_tokens_map.json"], configs["tokenizer_config.json"]):
        for name in _SPECIAL_TOKENS:
            token = source.get(name)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                found[name] = content
    return found


def _template(
    contents: Mapping[str, bytes], configs: Mapping[str, Mapping[str, Any]], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    source = configs["tokenizer_config.json"].get("chat_template")
    if "chat_template.jinja" in contents:
        try:
            source = contents["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as exc:
            raise UntrustedFileError(f"the model's chat template is not UTF-8: {exc}") from exc
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None


def _text_part(configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The language model's part of a config that describes other parts too."""
    part = configs["config.json"].get("text_config")
    return part if isinstance(part, dict) else {}


def _ids(value: Any) -> Iterator[int]:
    for item in value if isinstance(value, list) else [value]:
        if type(item) is int:
            yield item


def _defaults(config: Mapping[str, Any]) -> SamplingDefaults:
    def number(name: str, neutral: float) -> float:
        value = config.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else neutral

    # transformers applies the penalty to greedy decoding too
    penalty = number("repetition_penalty", 1.0)
    if config.get("do_sample") is not True:
        return SamplingDefaults(repetition_penalty=penalty)
    return SamplingDefaults(
        temperature=number("temperature", 1.0),
        top_p=number("top_p", 1.0),
        top_k=int(number("top_k", 0)),
        min_p=number("min_p", 0.0),
        repetition_penalty=penalty,
    )


def _check_text(text: str) -> None:
    if not text:
        raise InvalidRequestError("the prompt is empty: give some text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise TooLargeError(f"a prompt of {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequestError(
            f"the prompt is not valid Unicode at character {exc.start}: it must be UTF-8"
        ) from exc


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidRequestError("no messages: give at least one")
    for number, message in enumerate(messages):
        is_message = isinstance(message, Mapping)  # callers may have no types
        if not is_message or not isinstance(message.get("role"), str):
            raise InvalidRequestError(f"message {number} is not an object with a role")
        content = message.get("content")
        if isinstance(content, str):
            _check_unicode(number, content)


def _check_unicode(number: int, content: str) -> None:
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequestError(f"message {number} is not valid Unicode at character {exc.start}") from exc
