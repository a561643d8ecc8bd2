"""A model's tokenizer and what its small files say about generating, without transformers.

Text to ids and back, conversations to ids by the chat template, the tokens that end an answer, and the sampling
that the model's authors recommend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from tokenizers import Tokenizer

from client.chat_template import ChatTemplate, Message
from client.decoding import TextStream
from client.model_files import TOOL_TEMPLATE_FILE, ModelFiles
from client.options import SamplingDefaults
from client.token_bytes import TokenBytes
from client.token_ids import check_text, first_ids_of, ids_of, read_tokenizer
from protocol.embedding_settings import EMBEDDING_FILE, decode_embedding_settings
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.messages import MAX_STOP_TOKEN_IDS

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
        self.special_tokens = _special_tokens(configs)
        """Texts by name: `bos_token`, `eos_token`, `pad_token`..."""
        self._tokenizer = read_tokenizer(files.contents.get("tokenizer.json"))
        self.token_bytes = None if self._tokenizer is None else TokenBytes(self._tokenizer)
        self._special_ids = _special_ids(self._tokenizer)
        self._template = _template(files.contents, configs, self.special_tokens)
        self._tool_template = _tool_template(files.contents, self.special_tokens)
        self.vocab_size, self.hidden_size = files.manifest.vocab_size, files.manifest.hidden_size
        self._context_length = files.manifest.context_length
        self.embedding_settings = (
            decode_embedding_settings(files.contents[EMBEDDING_FILE]) if EMBEDDING_FILE in files.contents else None
        )
        self.stop_token_ids = self._stop_tokens(configs)
        self.defaults = _defaults(configs["generation_config.json"])

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be encoded."""
        return self._template is not None

    @property
    def chat_template(self) -> ChatTemplate | None:
        """What lays conversations out."""
        return self._template

    async def encoded_text(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model wants around it (BOS).

        Raises:
            InvalidRequestError: empty, not valid Unicode, or the model has no tokenizer.
        """
        return await self._encoded(text, add_special_tokens=True)

    async def truncated_text(self, text: str, n_tokens: int) -> list[int]:
        """The ids of as much of a text's beginning as makes `n_tokens`, with the special tokens around that.

        Raises:
            InvalidRequestError: as `encoded_text`, or there is no room for the special tokens.
        """
        return self.checked_ids(await asyncio.to_thread(first_ids_of, self._for_text(text), text, n_tokens))

    @property
    def tool_template(self) -> ChatTemplate | None:
        """What lays conversations out in which tools are used: some models have a template for that alone."""
        return self._tool_template or self._template

    async def encoded_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template: ChatTemplate | None = None,
    ) -> list[int]:
        """Ids of a conversation, up to where the model's answer begins; by `template` if it isn't the usual one.

        Raises:
            InvalidRequestError: no messages, malformed ones, ones that the template refuses, or no template.
        """
        template = template or self._template
        if template is None:
            raise InvalidRequestError("this model has no chat template: give a plain prompt (--raw)")
        _check_messages(messages)
        text = await template.rendered(messages, tools=tools)
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

    def text_stream(self, shown_specials: Sequence[str] = ()) -> TextStream | None:
        """For one generation's tokens; None for a model without a tokenizer.

        Special tokens have no text there, but for those whose text is in `shown_specials`.
        """
        if self._tokenizer is None:
            return None
        shown = {token_id: text for text, token_id in self.special_ids(shown_specials).items()}
        return TextStream(self._tokenizer, shown)

    def special_ids(self, texts: Sequence[str]) -> dict[str, int]:
        """The ids of those of these texts that are special tokens of the model."""
        return {text: self._special_ids[text] for text in texts if text in self._special_ids}

    async def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer = self._for_text(text)
        encode = partial(
            ids_of, tokenizer, text, add_special_tokens=add_special_tokens, context_length=self._context_length
        )
        return self.checked_ids(await asyncio.to_thread(encode))

    def _for_text(self, text: str) -> Tokenizer:
        """The tokenizer, for a text that it can be given."""
        if self._tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: give token ids instead of text")
        check_text(text)
        return self._tokenizer

    def _stop_tokens(self, configs: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
        found: dict[int, None] = {}
        for source in (configs["generation_config.json"], configs["config.json"], _text_part(configs)):
            found.update(dict.fromkeys(_ids(source.get("eos_token_id"))))
        eos = self.special_tokens.get("eos_token")
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
        source = _utf8(contents["chat_template.jinja"])
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None


def _tool_template(contents: Mapping[str, bytes], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    source = contents.get(TOOL_TEMPLATE_FILE)
    return None if source is None else ChatTemplate(_utf8(source), special_tokens)


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UntrustedFileError(f"the model's chat template is not UTF-8: {exc}") from exc


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special}


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
