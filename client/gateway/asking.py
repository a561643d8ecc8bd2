"""What a handler begins with: the caller's client, and the model that is asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from client.api import Client
from client.embedding import Embeddings
from client.gateway.callers import caller_key
from client.gateway.faults import ModelNotFoundError
from client.gateway.keys import CLIENTS, CONFIG, METRICS
from client.gateway.metrics import Operation
from client.gateway.openai_shapes import TokenBytesOf
from client.gateway.rates import note_rates
from client.gateway.turns import TurnEvent
from protocol.error_forms import repeated
from protocol.errors import InvalidRequestError, NotFoundError
from protocol.ids import checked_model_name
from protocol.rest import ModelInfo


@asynccontextmanager
async def asking_client(request: web.Request) -> AsyncIterator[Client]:
    """The client of the key that the request shows, for as long as the request is answered.

    Raises:
        UnauthenticatedError: it shows none, or one that doesn't count.
    """
    async with request.app[CLIENTS].lent(caller_key(request.headers, request.app[CONFIG])) as client:
        yield client


async def found_model(client: Client, name: str) -> ModelInfo:
    """The model of this name.

    Raises:
        ModelNotFoundError: there is none; says which there are.
    """
    try:
        return await client.model(checked_model_name(name))
    except (InvalidRequestError, NotFoundError) as exc:
        names = ", ".join(model.name for model in await client.models()) or "none yet"
        raise ModelNotFoundError(f"there is no model {repeated(name)}; there are: {names}") from exc


def observed(
    request: web.Request, operation: Operation, model: ModelInfo, events: AsyncGenerator[TurnEvent, None]
) -> AsyncGenerator[TurnEvent, None]:
    """The same events, counted among the gateway's metrics."""
    return request.app[METRICS].observed(operation, model, events)


async def embedded(
    request: web.Request, client: Client, model: ModelInfo, texts: Sequence[str | Sequence[int]], **options: Any
) -> Embeddings:
    """The texts as vectors, counted likewise; `options` are those of `Client.embed`. Raises as that."""
    metrics = request.app[METRICS]
    with metrics.timed("embeddings", model):
        found = await client.embed(model, texts, timeout_s=request.app[CONFIG].timeout_s, **options)
    note_rates(found)
    metrics.used("embeddings", model, n_prompt_tokens=found.n_tokens)
    return found


async def token_bytes(client: Client, model: ModelInfo) -> TokenBytesOf:
    """What single tokens of the model stand for."""
    found = (await client.tokenizer(model.revision)).token_bytes
    return (lambda _token_id: b"") if found is None else found.of
