"""A person's talk with a model: the conversation so far, and what answers it. Knows no commands and no keyboard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from client.api import Client, TokenStream
from client.options import GenerationOptions
from client.results import Generation
from client.terminal.conversation import Conversation
from client.terminal.figures import Totals, answer_line
from client.terminal.fitting import too_long_error
from client.terminal.sampling_settings import settings_of, with_settings
from client.terminal.saved_conversation import SavedConversation, saved
from client.terminal.screen import Screen
from protocol.errors import ContextExceededError, InvalidRequestError
from protocol.rest import ModelInfo


class Talk:
    """What a chat's commands change, and what its next answer is made of."""

    def __init__(
        self,
        client: Client,
        screen: Screen,
        *,
        model: ModelInfo,
        options: GenerationOptions,
        conversation: Conversation,
        file: Path | None = None,
    ) -> None:
        check_chats(model)
        self._client = client
        self._screen = screen
        self.model = model
        self.options = options
        self.conversation = conversation
        self.file = file
        """Where the conversation was saved last, or came from."""
        self.unanswered: str | None = None
        """The latest message, if nothing of an answer to it came: it is no part of the conversation."""
        self.latest: Generation | None = None
        self.totals = Totals()

    async def say(self, text: str) -> None:
        """Send a message and show the answer. What came of it is kept, whatever ends it.

        Raises:
            ContextExceededError: the conversation has become too long; says what would help.
            BrigadeError: whatever else ends a generation.
        """
        self.unanswered = text
        stream = self._client.stream(
            self.model.name,  # by its name: another revision may have been put in its place since the last answer
            self.conversation.messages(text),
            on_notice=self._screen.notice,
            **asdict(self.options),
        )
        try:
            async with stream:
                async for piece in stream:
                    await self._screen.text(piece.text)
        except ContextExceededError as exc:
            if stream.result.text:
                raise
            raise await self._too_long(text) from exc
        finally:
            self._keep(text, stream)

    async def retry(self) -> None:
        """Answer the latest message once more; the earlier answer stays if nothing comes in its place.

        Raises:
            InvalidRequestError: there is no message yet.
        """
        unanswered = self.unanswered
        if unanswered is not None:
            await self.say(unanswered)
        elif self.conversation.turns:
            await self._say_latest_again()
        else:
            raise InvalidRequestError("there is no message yet that could be answered once more")

    async def _say_latest_again(self) -> None:
        before = self.conversation
        self.conversation = before.without_latest()
        try:
            await self.say(before.turns[-1].said)
        finally:
            if self.unanswered is not None:
                self.conversation, self.unanswered = before, None

    async def chat_model(self, name: str) -> ModelInfo:
        """Another model that may go on.

        Raises:
            NotFoundError: there is none of this name.
            InvalidRequestError: it is no chat model.
        """
        model = await self._client.model(name)
        check_chats(model)
        return model

    def saved(self) -> SavedConversation:
        """The conversation as a file holds it."""
        return saved(self.conversation, model=self.model.name, settings=settings_of(self.options))

    def replace_by(self, what: SavedConversation, conversation: Conversation, file: Path, model: ModelInfo) -> None:
        """Go on with a saved conversation, and as its answers were sampled."""
        self.options = with_settings(self.options, what.settings)
        self.conversation, self.file, self.model, self.unanswered = conversation, file, model, None

    def _keep(self, said: str, stream: TokenStream) -> None:
        result = stream.result
        if not result.text and result.finish_reason == "cancelled":
            return
        self.unanswered = None
        self.conversation = self.conversation.with_turn(said, result.text)
        self.latest, self.totals = result, self.totals.plus(result)
        self._screen.end_answer(result)
        self._screen.aside(answer_line(result, self.model.context_length))
        if result.finish_reason == "length":
            self._screen.notice(self._why_cut(result))

    def _why_cut(self, result: Generation) -> str:
        n_tokens, context = result.completion_tokens, self.model.context_length
        if n_tokens < self.options.n_wanted:
            return (
                f"the answer was cut after {n_tokens} tokens, as the context of {context} is full: /drop N forgets "
                "the N oldest turns, /clear all"
            )
        return f"the answer was cut after {n_tokens} tokens, as max_tokens says: /set max_tokens allows more"

    async def _too_long(self, text: str) -> ContextExceededError:
        self.model = await self._client.model(self.model.name)

        async def n_tokens(conversation: Conversation) -> int:
            return await self._client.count_tokens(self.model, conversation.messages(text))

        return await too_long_error(self.conversation, self.model, self.options, n_tokens)


def check_chats(model: ModelInfo) -> None:
    """Refuse a model that can't chat.

    Raises:
        InvalidRequestError: it has no chat template.
    """
    if not model.is_chat:
        other = "client embed" if model.kind == "encoder" else "client generate"
        raise InvalidRequestError(f"{model.name} is no chat model (it has no chat template): use `{other}`")


def with_file_settings(options: GenerationOptions, what: SavedConversation) -> GenerationOptions:
    """The options with a file's settings where the command line says nothing."""
    return with_settings(options, what.settings | settings_of(options))
