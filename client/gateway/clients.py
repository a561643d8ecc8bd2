"""One `Client` for each API key that comes by: opened once, shared by all its requests, closed when long unused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from client.api import Client
from client.config import ClientConfig
from protocol.api_key import ApiKey
from protocol.errors import BrigadeError, OverloadedError
from protocol.running_beside import running_beside
from protocol.spans import NO_SPANS, SpanSink

log = structlog.get_logger(__name__)

MAX_CLIENTS = 32
"""Each has connections of its own to the workers, and tokenizers."""
MAX_OPENING = 16
"""Keys that the coordinator is asked about at once: anybody may bring any."""
IDLE_S = 600.0
"""A conversation that goes on within this finds the index of its caches."""
SWEEP_S = 30.0
RETRY_S = 5.0


class _Kept:
    """One key's client and who uses it. Its task opens and closes it."""

    def __init__(self, now_s: float) -> None:
        self.client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self.is_unwanted = asyncio.Event()
        self.n_users = 0
        self.used_at_s = now_s
        self.opening: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the coordinator has said that the key counts."""
        return self.client.done()


class ClientPool:
    """Made by `client_pool`. Whoever lends a client gives it back by leaving the context."""

    def __init__(
        self,
        cluster: ClientConfig,
        tasks: asyncio.TaskGroup,
        *,
        max_clients: int = MAX_CLIENTS,
        spans: SpanSink = NO_SPANS,
    ) -> None:
        self._cluster = cluster
        self._spans = spans
        self._tasks = tasks
        self._max_clients = max_clients
        self._kept: OrderedDict[ApiKey, _Kept] = OrderedDict()
        """The one used longest ago first."""

    def __len__(self) -> int:
        return len(self._kept)

    @asynccontextmanager
    async def lent(self, key: ApiKey) -> AsyncIterator[Client]:
        """The key's client.

        Raises:
            UnauthenticatedError: the cluster doesn't know the key.
            UnreachableError: the coordinator is away.
            OverloadedError: clients of too many keys are in use.
        """
        kept = self._kept.get(key) or self._begun(key)
        self._kept.move_to_end(key)
        kept.n_users += 1
        try:
            yield await asyncio.shield(kept.client)
        finally:
            kept.n_users -= 1
            kept.used_at_s = _now_s()

    async def close_idle_forever(self, *, idle_s: float = IDLE_S) -> None:
        """Close what nobody has used for so long, again and again."""
        while True:
            await asyncio.sleep(min(SWEEP_S, idle_s))
            for key, kept in tuple(self._kept.items()):
                if kept.n_users == 0 and kept.used_at_s + idle_s <= _now_s():
                    self._let_go(key, kept)

    def close_all(self) -> None:
        """At the end: nothing is lent any more."""
        for key, kept in tuple(self._kept.items()):
            self._let_go(key, kept)

    def _begun(self, key: ApiKey) -> _Kept:
        n_opening = sum(not kept.is_open for kept in self._kept.values())
        if n_opening >= MAX_OPENING:
            raise OverloadedError(
                f"{n_opening} other API keys are being looked up by this gateway just now: try again soon",
                retry_after_s=RETRY_S,
            )
        n_in_use = sum(kept.n_users > 0 and kept.is_open for kept in self._kept.values())
        if n_in_use >= self._max_clients:
            raise OverloadedError(
                f"{n_in_use} API keys are in use at this gateway, as many as it serves at once: try again soon",
                retry_after_s=RETRY_S,
            )
        kept = self._kept[key] = _Kept(_now_s())
        kept.opening = self._tasks.create_task(self._keep(key, kept), name=f"client-{key.key_id}")
        return kept

    def _make_room(self) -> None:
        """Let go of whom nobody uses, the one used longest ago first, until there are no more than may be."""
        unused = [(key, kept) for key, kept in self._kept.items() if kept.n_users == 0]
        for key, kept in unused[: max(0, len(self._kept) - self._max_clients)]:
            self._let_go(key, kept)

    def _let_go(self, key: ApiKey, kept: _Kept) -> None:
        if self._kept.get(key) is kept:
            del self._kept[key]
        kept.is_unwanted.set()
        if kept.opening is not None and not kept.is_open:
            kept.opening.cancel()

    async def _keep(self, key: ApiKey, kept: _Kept) -> None:
        """Hold the client open in one task, since what is in it ends in the task that began it."""
        try:
            async with Client(config=replace(self._cluster, api_key=key), spans=self._spans) as client:
                await client.models()
                kept.client.set_result(client)
                self._make_room()  # and only now: whoever has no key of the cluster displaces nobody
                await kept.is_unwanted.wait()
        except BrigadeError as error:
            if kept.is_open:
                log.warning("client_lost", key_id=key.key_id, code=error.code)
            else:
                kept.client.set_exception(error)
                kept.client.exception()  # whoever asked may have gone: it is looked at here once
            self._let_go(key, kept)
        finally:
            if not kept.client.done():
                kept.client.cancel()


@asynccontextmanager
async def client_pool(
    cluster: ClientConfig, *, max_clients: int = MAX_CLIENTS, spans: SpanSink = NO_SPANS
) -> AsyncIterator[ClientPool]:
    """Clients of one cluster's keys; all are closed at the end."""
    async with running_beside() as tasks:
        pool = ClientPool(cluster, tasks, max_clients=max_clients, spans=spans)
        try:
            async with running_beside(idle=pool.close_idle_forever()):
                yield pool
        finally:
            pool.close_all()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
