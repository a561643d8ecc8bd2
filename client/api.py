"""The client as a Python library: `Client` for asyncio, `SyncClient` for everybody else.

    async with Client(url="https://host:7400", api_key=key) as client:
        async with client.stream("smollm2", "The capital of France is", max_tokens=32) as pieces:
            async for piece in pieces:
                print(piece.text, end="")
        print(pieces.result.tokens_per_s)

A prompt is text (used as it is), messages (laid out by the model's chat template) or token ids. Whoever stops early
leaves the `async with`, which ends the generation on all workers at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from client.chat_calls import ChatCalls
from client.config import ClientConfig
from client.deadline import Deadline
from client.failover import RESTART_GRACE_S, backoff_s
from client.generation import GenerationRequest, generated_pieces
from client.generation_request import Prompt as Prompt
from client.generation_request import checked_options, encoded_prompt, generation_request
from client.generation_spans import noted_generation
from client.model_files import FileCache, ModelFiles, fetched_model
from client.options import GenerationOptions
from client.prefix_index import PrefixIndex
from client.private_ends import PrivateEnds, private_ends
from client.results import Generation, Progress, TokenPiece
from client.tokenizer import ModelTokenizer, loaded_tokenizer
from client.transport import ConnectionPool, connection_pool
from client.vector_calls import VectorCalls
from protocol.errors import ConfigError, DrainingError, UnreachableError
from protocol.ids import Revision, checked_model_name
from protocol.key_limits import RateLeft
from protocol.pinned_http import CoordinatorSession, pinned_session
from protocol.rest import ModelInfo, ModelList
from protocol.span_export import span_export
from protocol.spans import NO_SPANS, SpanSink

T = TypeVar("T")

_MAX_TOKENIZERS = 4
"""Tokenizers kept in memory: up to 100 MB each."""


class TokenStream:
    """The pieces of one generation, and its result. Nothing happens before the first is asked for."""

    def __init__(
        self,
        pieces: Callable[[Progress], AsyncGenerator[TokenPiece, None]],
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._progress = Progress(asyncio.get_running_loop().time(), on_notice)
        self._pieces = pieces(self._progress)

    @property
    def result(self) -> Generation:
        """What was generated; as far as it came, with the reason `cancelled`, if it isn't over."""
        return self._progress.generation()

    @property
    def rates(self) -> tuple[RateLeft, ...]:
        """What is left of the key's limits, as `Generation.rates`; nothing before there is a route."""
        return self._progress.rates

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenPiece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """End the generation on all workers if it isn't over. Repeating it does no harm."""
        await self._pieces.aclose()

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()


class Client(ChatCalls, VectorCalls):
    """One cluster, as its users see it. Connections are made once and kept until the context ends.

    A generation survives workers that go away, and a coordinator that is away meanwhile: it goes on by another
    route with the same tokens, as long as its `timeout_s` allows. `url` may name several coordinators, separated by
    commas.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        config: ClientConfig | None = None,
        on_notice: Callable[[str], None] | None = None,
        prefix_cache: bool = True,
        spans: SpanSink | None = None,
    ) -> None:
        """Without arguments: as the environment says.

        With `prefix_cache` a prompt that begins as an earlier one of this client (a chat's next turn, another
        question about the same text) isn't run again as far as workers still have it. The answers are the same.

        `on_notice` is called with a line for people when the coordinator is away while the client is opened; it is
        tried again for `config.connect_timeout_s`.

        `spans`: where those of generations go; None: where OpenTelemetry's variables say, if they do.

        Raises:
            ConfigError: no address or no key.
            UnauthenticatedError: the key doesn't have the form of one.
        """
        self._config = config or ClientConfig.from_env(url=url, api_key=api_key)
        self._cache = FileCache(self._config.cache, max_bytes=self._config.max_cache_bytes)
        self._on_notice = on_notice or (lambda _notice: None)
        self._rng = random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._tokenizers: OrderedDict[Revision, ModelTokenizer] = OrderedDict()
        self._loading = asyncio.Lock()
        self._prefixes = PrefixIndex() if prefix_cache else None
        self._given_spans = spans
        self._spans: SpanSink = spans or NO_SPANS
        self._open = AsyncExitStack()
        self._parts: tuple[CoordinatorSession, ConnectionPool, PrivateEnds] | None = None

    async def __aenter__(self) -> Client:
        async with AsyncExitStack() as opening:
            coordinator = await self._patiently(
                lambda: opening.enter_async_context(pinned_session(self._config.url, self._config.api_key)),
                self._config.connect_timeout_s,
                lambda reason: self._on_notice(f"coordinator away, trying again: {reason}"),
            )
            pool = await opening.enter_async_context(connection_pool(coordinator.ca_pem))
            if self._given_spans is None:
                self._spans = await opening.enter_async_context(span_export("client"))
            ends = await opening.enter_async_context(private_ends(self._config, coordinator, self._cache))
            self._parts = (coordinator, pool, ends)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._parts = None
        await self._open.__aexit__(kind, exc, traceback)

    async def models(self) -> tuple[ModelInfo, ...]:
        """All models of the cluster, and whether they can be used now."""
        return (await self._connected()[0].get("/v1/models", ModelList)).models

    async def model(self, name: str) -> ModelInfo:
        """One model. NotFoundError if there is none of this name."""
        return await self._connected()[0].get(f"/v1/models/{quote(checked_model_name(name))}", ModelInfo)

    def stream(
        self,
        model: str | ModelInfo,
        prompt: Prompt,
        *,
        on_notice: Callable[[str], None] | None = None,
        **options: Any,
    ) -> TokenStream:
        """Begin a generation; `options` are the fields of `GenerationOptions`.

        `on_notice` is called, on the loop, with a line for people when a route fails and another is gone on with,
        and when the generation begins to wait for one.

        Raises:
            InvalidRequestError: an option is out of its range. All else is raised as pieces are asked for, this too
                where the prompt is none or the model can't do what is asked.
            ContextExceededError: prompt and answer don't fit the model's context.
            NotFoundError: there is no such model.
            QuotaExceededError: a limit of the key is used up; `retry_after_s` says for how long.
            ModelUnavailableError: no workers have the whole model, and none is about to.
            DeadlineExceededError: it took longer than `timeout_s`.
            UnreachableError: the coordinator, or all workers for this model, can't be reached.
        """
        checked = checked_options(options)
        return TokenStream(lambda progress: self._generated(model, prompt, checked, progress), on_notice)

    async def generate(self, model: str | ModelInfo, prompt: Prompt, **options: Any) -> Generation:
        """Generate to the end; `options` and what is raised as `stream`."""
        async with self.stream(model, prompt, **options) as pieces:
            async for _ in pieces:
                pass
            return pieces.result

    async def encoded(self, model: str | ModelInfo, prompt: Prompt) -> list[int]:
        """The token ids that a prompt is for this model."""
        info = model if isinstance(model, ModelInfo) else await self.model(model)
        return await encoded_prompt(await self.tokenizer(info.revision), prompt)

    async def model_files(self, model: str | ModelInfo) -> ModelFiles:
        """The model's config and tokenizer files as they were packed, each verified by its hash.

        Raises:
            NotFoundError: there is no such model.
            UntrustedFileError: a file isn't what the model's revision says.
        """
        info = model if isinstance(model, ModelInfo) else await self.model(model)
        return await fetched_model(self._connected()[0], info.revision, self._cache)

    async def _generated(
        self, model: str | ModelInfo, prompt: Prompt, options: GenerationOptions, progress: Progress
    ) -> AsyncGenerator[TokenPiece, None]:
        coordinator, pool, ends = self._connected()
        timeout_s = options.timeout_s
        deadline = Deadline(at_s=asyncio.get_running_loop().time() + timeout_s, timeout_s=timeout_s)
        async with deadline.applied():
            info = model if isinstance(model, ModelInfo) else await self._model_soon(model, progress)
            tokenizer = await self.tokenizer(info.revision)
            token_ids = await encoded_prompt(tokenizer, prompt)
        request = generation_request(info, tokenizer, token_ids, options)
        if self._prefixes is not None and not options.private:
            request = replace(request, prefix=self._prefixes.shared(info.revision, request.prompt))
        progress.n_prompt_tokens, progress.seed = len(token_ids), request.sampling.seed
        pieces = generated_pieces(
            request,
            coordinator=coordinator,
            pool=pool,
            ends=ends,
            text=tokenizer.text_stream(options.shown_specials),
            progress=progress,
            deadline=deadline,
        )
        try:
            with noted_generation(self._spans, request.model, progress):
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
        finally:
            self._remember(request, progress)

    def _remember(self, request: GenerationRequest, progress: Progress) -> None:
        """Note the text that workers now have, and what they turned out not to have."""
        if self._prefixes is None or progress.session_id is None or request.between is not None:
            return
        if request.prefix is not None and progress.n_cached == 0:
            self._prefixes.forget(request.prefix.session_id)
        ran = (*request.prompt, *progress.token_ids)[:-1]  # the last token of all is never run
        self._prefixes.add(request.revision, progress.session_id, ran)

    async def _model_soon(self, name: str, progress: Progress) -> ModelInfo:
        """As `model`, with patience for a coordinator that is being restarted: it has answered before."""
        return await self._patiently(
            lambda: self.model(name), RESTART_GRACE_S, lambda reason: progress.tell(f"waiting: {reason}")
        )

    async def _patiently(
        self, ask: Callable[[], Awaitable[T]], grace_s: float, on_reason: Callable[[str], None]
    ) -> T:
        """What the coordinator answers, asked again while it is away, for so long; every new reason is told."""
        now_s = asyncio.get_running_loop().time
        until_s, n_failures, told = now_s() + grace_s, 0, ""
        while True:
            try:
                return await ask()
            except (UnreachableError, DrainingError) as exc:
                if now_s() >= until_s:
                    raise
                if exc.message != told:
                    told = exc.message
                    on_reason(told)
            n_failures += 1
            await asyncio.sleep(min(backoff_s(n_failures, self._rng), max(0.0, until_s - now_s())))

    async def tokenizer(self, revision: Revision) -> ModelTokenizer:
        """What turns text into tokens and back, for this revision of a model (`ModelInfo.revision`)."""
        async with self._loading:  # of many generations that begin at once, one loads it
            if revision not in self._tokenizers:
                files = await fetched_model(self._connected()[0], revision, self._cache)
                self._tokenizers[revision] = await loaded_tokenizer(files)
        self._tokenizers.move_to_end(revision)
        tokenizer = self._tokenizers[revision]
        while len(self._tokenizers) > _MAX_TOKENIZERS:
            self._tokenizers.popitem(last=False)
        return tokenizer

    def _connected(self) -> tuple[CoordinatorSession, ConnectionPool, PrivateEnds]:
        if self._parts is None:
            raise ConfigError("the client is not open: use it inside `async with Client(...) as client`")
        return self._parts
