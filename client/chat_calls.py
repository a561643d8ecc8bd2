"""What clients ask about conversations: `Client.chat`, `Client.chat_session` and `Client.count_tokens`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from client.chat_template import Message
from client.generation_request import Prompt
from client.results import Generation
from protocol.errors import InvalidRequestError
from protocol.rest import ModelInfo

if TYPE_CHECKING:
    from client.api import TokenStream


class ChatCalls(ABC):
    """The part of `client.api.Client` that knows messages."""

    @abstractmethod
    def stream(self, model: str | ModelInfo, prompt: Prompt, **options: Any) -> TokenStream:
        """Begin a generation."""

    @abstractmethod
    async def generate(self, model: str | ModelInfo, prompt: Prompt, **options: Any) -> Generation:
        """Generate to the end."""

    @abstractmethod
    async def encoded(self, model: str | ModelInfo, prompt: Prompt) -> list[int]:
        """The token ids that a prompt is."""

    async def chat(self, model: str | ModelInfo, messages: Sequence[Message], **options: Any) -> Generation:
        """The model's next message in a conversation, as the result's `text`.

        `messages` are `{"role": "user", "content": "..."}`, laid out by the model's own chat template; `options`
        are the fields of `GenerationOptions`.

        Raises:
            InvalidRequestError: these are no messages, the model has no chat template or its template refuses them,
                or an option is out of its range.
            BrigadeError: as `Client.stream`.
        """
        return await self.generate(model, checked_messages(messages), **options)

    def chat_session(
        self,
        model: str | ModelInfo,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        **options: Any,
    ) -> ChatSession:
        """A conversation that keeps what was said, begun with `system` and then `messages`.

        `options` are the fields of `GenerationOptions` for all its turns.
        """
        return ChatSession(self, model, first_messages(system, messages), options)

    async def count_tokens(self, model: str | ModelInfo, prompt: Prompt) -> int:
        """How many tokens a text is for this model, or a conversation up to where the answer begins.

        Nothing is sent to workers, and nothing counts against a quota.

        Raises:
            InvalidRequestError: the prompt is none.
            ContextExceededError: it is far too long for the model's context.
        """
        return len(await self.encoded(model, prompt))


class ChatSession:
    """A conversation with one model, one turn at a time. Made by `Client.chat_session`.

    A turn that fails leaves it as it was; one that is left early keeps what came of the answer.
    """

    def __init__(
        self, client: ChatCalls, model: str | ModelInfo, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> None:
        self.messages: tuple[Message, ...] = tuple(messages)
        """All that was said so far; may be replaced between turns."""
        self._client = client
        self._model = model
        self._options = dict(options)

    async def say(self, text: str, **options: Any) -> Generation:
        """The answer to `text`, whole; `options` change the session's own for this turn.

        Raises:
            BrigadeError: as `Client.chat`.
        """
        async with self.stream(text, **options) as pieces:
            async for _ in pieces:
                pass
        return pieces.result

    @asynccontextmanager
    async def stream(self, text: str, **options: Any) -> AsyncIterator[TokenStream]:
        """The answer to `text` as it comes; what came of it by the end of the context is kept.

        Raises:
            BrigadeError: as `Client.chat`.
        """
        asked = (*self.messages, user_message(text))
        async with self._client.stream(self._model, asked, **(self._options | options)) as pieces:
            yield pieces
        self.messages = answered(self.messages, asked, pieces.result)


def checked_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Refuse what a model would be given as text or as token ids.

    Raises:
        InvalidRequestError: these are no messages.
    """
    given: Any = messages  # callers may have no types
    if isinstance(given, str) or not all(isinstance(message, Mapping) for message in given):
        raise InvalidRequestError(
            'a chat takes messages, [{"role": "user", "content": "..."}]; for a text or token ids use generate'
        )
    return messages


def first_messages(system: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """What a conversation begins with."""
    checked = tuple(checked_messages(messages))
    return checked if system is None else ({"role": "system", "content": system}, *checked)


def user_message(text: str) -> Message:
    """What a person says."""
    return {"role": "user", "content": text}


def answered(before: tuple[Message, ...], asked: tuple[Message, ...], result: Generation) -> tuple[Message, ...]:
    """The conversation after a turn; as `before` if nothing of the answer came."""
    return (*asked, {"role": "assistant", "content": result.text}) if result.token_ids else before
