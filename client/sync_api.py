"""`SyncClient`: the client for programs without asyncio. The same calls; a thread of its own runs the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from client.api import Client, Prompt, TokenStream
from client.config import ClientConfig
from client.results import Generation, TokenPiece
from protocol.errors import ConfigError
from protocol.rest import ModelInfo

if TYPE_CHECKING:
    from client.embedding import Embeddings
    from client.states_attempt import Rows

T = TypeVar("T")


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
        self._thread = threading.Thread(target=self._run_loop, name="brigade-client", daemon=True)

    def __enter__(self) -> SyncClient:
        self._thread.start()
        self._opened.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._leaving is not None:
            self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()

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

    def embed(self, model: str | ModelInfo, inputs: Sequence[str | Sequence[int]], **options: Any) -> Embeddings:
        """Vectors of texts; as `Client.embed`."""
        return self.run(self._client.embed(model, inputs, **options))

    def hidden_states(self, model: str | ModelInfo, prompt: Prompt, *, block: int, **options: Any) -> Rows:
        """The hidden states of a text after a block; as `Client.hidden_states`."""
        return self.run(self._client.hidden_states(model, prompt, block=block, **options))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the client's loop; interrupting the wait (Ctrl-C) cancels it there."""
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise ConfigError("the client is not open: use it inside `with SyncClient(...) as client`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def _run_loop(self) -> None:
        asyncio.run(self._hold_open())

    async def _hold_open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        try:
            async with self._client:
                self._opened.set_result(None)
                await self._leaving.wait()
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that opens the client
            if not self._opened.done():
                self._opened.set_exception(exc)
