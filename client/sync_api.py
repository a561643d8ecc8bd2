"""`SyncClient`: the client for programs without asyncio. The same calls; a thread of its own runs the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from client.api import Client, Prompt, TokenStream
from client.chat_calls import answered, checked_messages, first_messages, user_message
from client.chat_template import Message
from client.config import ClientConfig
from client.model_files import ModelFiles
from client.results import Generation, TokenPiece
from protocol.errors import ConfigError
from protocol.rest import ModelInfo

if TYPE_CHECKING:
    from client.embedding import Embeddings
    from client.states_attempt import Rows

T = TypeVar("T")

_ENDING_S = 10.0
"""How long an interrupted call is waited for, so that workers hear of its end before the program goes on."""


class SyncTokenStream(Iterator[TokenPiece]):
    """The pieces of one generation, and its result."""

    def __init__(self, client: SyncClient, stream: TokenStream) -> None:
        self._client = client
        self._stream = stream

    @property
    def result(self) -> Generation:
        """What was generated, or as far as it came."""
        return self._stream.result

    def __iter__(self) -> SyncTokenStream:
        return self

    def __next__(self) -> TokenPiece:
        piece = self._client.run(self._next())
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """End the generation on all workers if it isn't over."""
        self._client.run(self._stream.aclose())

    def __enter__(self) -> SyncTokenStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def _next(self) -> TokenPiece | None:
        return await anext(self._stream, None)


class SyncChatSession:
    """As `client.chat_calls.ChatSession`, for a plain `with`. Made by `SyncClient.chat_session`."""

    def __init__(
        self, client: SyncClient, model: str | ModelInfo, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> None:
        self.messages: tuple[Message, ...] = tuple(messages)
        """All that was said so far; may be replaced between turns."""
        self._client = client
        self._model = model
        self._options = dict(options)

    def say(self, text: str, **options: Any) -> Generation:
        """The answer to `text`, whole; `options` change the session's own for this turn."""
        with self.stream(text, **options) as pieces:
            for _ in pieces:
                pass
        return pieces.result

    @contextmanager
    def stream(self, text: str, **options: Any) -> Iterator[SyncTokenStream]:
        """The answer to `text` as it comes; what came of it by the end of the context is kept."""
        asked = (*self.messages, user_message(text))
        with self._client.stream(self._model, asked, **(self._options | options)) as pieces:
            yield pieces
        self.messages = answered(self.messages, asked, pieces.result)


class SyncClient:
    """As `client.api.Client`, for a plain `with`."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        config: ClientConfig | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self._client = Client(url, api_key, config=config, prefix_cache=prefix_cache)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Event | None = None
        self._opened: Future[None] = Future()
        self._lock = threading.Lock()
        self._calls: set[_Call[Any]] | None = set()
        """Those that wait for an answer, whatever their thread; None once there can be no more answers."""
        self._thread = threading.Thread(target=self._run_loop, name="brigade-client", daemon=True)

    def __enter__(self) -> SyncClient:
        if self._thread.ident is not None:
            raise ConfigError("this client was opened before: make another one")
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            if not self._opened.cancel():
                self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def on_loop(self) -> Client:
        """The client that runs on the loop, for coroutines of the caller's own that are given to `run`."""
        return self._client

    def models(self) -> tuple[ModelInfo, ...]:
        """All models of the cluster, and whether they can be used now."""
        return self.run(self._client.models())

    def model(self, name: str) -> ModelInfo:
        """One model. NotFoundError if there is none of this name."""
        return self.run(self._client.model(name))

    def stream(self, model: str | ModelInfo, prompt: Prompt, **options: Any) -> SyncTokenStream:
        """Begin a generation; as `Client.stream`, whose `on_notice` is called in the client's own thread."""

        async def begun() -> TokenStream:
            return self._client.stream(model, prompt, **options)

        return SyncTokenStream(self, self.run(begun()))

    def generate(self, model: str | ModelInfo, prompt: Prompt, **options: Any) -> Generation:
        """Generate to the end; as `Client.generate`."""
        return self.run(self._client.generate(model, prompt, **options))

    def chat(self, model: str | ModelInfo, messages: Sequence[Message], **options: Any) -> Generation:
        """The model's next message in a conversation; as `Client.chat`."""
        return self.generate(model, checked_messages(messages), **options)

    def chat_session(
        self,
        model: str | ModelInfo,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        **options: Any,
    ) -> SyncChatSession:
        """A conversation that keeps what was said; as `Client.chat_session`."""
        return SyncChatSession(self, model, first_messages(system, messages), options)

    def encoded(self, model: str | ModelInfo, prompt: Prompt) -> list[int]:
        """The token ids that a prompt is for this model; as `Client.encoded`."""
        return self.run(self._client.encoded(model, prompt))

    def count_tokens(self, model: str | ModelInfo, prompt: Prompt) -> int:
        """How many tokens a prompt is; as `Client.count_tokens`."""
        return self.run(self._client.count_tokens(model, prompt))

    def model_files(self, model: str | ModelInfo) -> ModelFiles:
        """The model's config and tokenizer files; as `Client.model_files`."""
        return self.run(self._client.model_files(model))

    def embed(self, model: str | ModelInfo, inputs: Sequence[str | Sequence[int]], **options: Any) -> Embeddings:
        """Vectors of texts; as `Client.embed`."""
        return self.run(self._client.embed(model, inputs, **options))

    def hidden_states(self, model: str | ModelInfo, prompt: Prompt, *, block: int, **options: Any) -> Rows:
        """The hidden states of a text after a block; as `Client.hidden_states`."""
        return self.run(self._client.hidden_states(model, prompt, block=block, **options))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the client's loop; interrupting the wait (Ctrl-C) ends it there before that goes on.

        Raises:
            ConfigError: the client isn't open, is closed meanwhile, or is asked by what runs on its own loop.
        """
        call = _Call(work)
        loop = self._begin(call)
        try:
            return call.answer.result()
        except CancelledError as exc:
            raise ConfigError("the client was closed before this call had its answer") from exc
        finally:
            if not call.answer.done():
                with suppress(RuntimeError):  # closed meanwhile, which ends calls too
                    loop.call_soon_threadsafe(call.cancel)
                wait([call.answer], _ENDING_S)
            with self._lock:
                if self._calls is not None:
                    self._calls.discard(call)

    def _begin(self, call: _Call[Any]) -> asyncio.AbstractEventLoop:
        if threading.current_thread() is self._thread:
            call.work.close()
            raise ConfigError(
                "a callback on the client's own thread would wait for itself: await calls of `on_loop`"
            )
        with self._lock:
            if self._calls is None or self._loop is None or not self._thread.is_alive():
                call.work.close()
                raise ConfigError("the client is not open: use it inside `with SyncClient(...) as client`")
            self._calls.add(call)
            self._loop.call_soon_threadsafe(call.begin)
            return self._loop

    def _close(self) -> None:
        if self._loop is not None and self._leaving is not None:
            with suppress(RuntimeError):  # it is closed already
                self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._hold_open())
        finally:
            with self._lock:
                calls, self._calls = self._calls or (), None
            for call in calls:
                call.answer.cancel()

    async def _hold_open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        try:
            async with self._client:
                if not self._opened.set_running_or_notify_cancel():
                    return  # nobody waits for it any more
                self._opened.set_result(None)
                await self._leaving.wait()
                await self._end_calls()
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that opens the client
            if not self._opened.done():
                self._opened.set_exception(exc)

    async def _end_calls(self) -> None:
        """Before the connections that they use are closed; there can be no more from now on."""
        with self._lock:
            calls, self._calls = self._calls or (), None
        await asyncio.sleep(0)  # all that were asked for begin
        ending = [task for call in calls if (task := call.cancel()) is not None]
        if ending:
            await asyncio.wait(ending, timeout=_ENDING_S)


class _Call(Generic[T]):
    """Work on the loop that another thread waits for."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.work = work
        self.answer: Future[T] = Future()
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """On the loop, at once after it was asked for."""
        self._task = asyncio.get_running_loop().create_task(self.work)
        self._task.add_done_callback(self._settle)

    def cancel(self) -> asyncio.Task[T] | None:
        """On the loop, after `begin`: the answer is there when the work has ended."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.answer.cancel()
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())
