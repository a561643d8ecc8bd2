from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client.config import ClientConfig
from client.gateway.clients import MAX_OPENING, client_pool
from protocol.api_key import ApiKey, api_key_from_text, new_api_key
from protocol.errors import OverloadedError, UnauthenticatedError, UnreachableError
from protocol.running_beside import running_beside
from tests.support.coordinators import key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import whole_cluster


async def test_one_client_a_key_is_shared_and_makes_room_for_others(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster:
        first = api_key_from_text(key_of(cluster.coordinator, "client"))
        second = api_key_from_text((await cluster.new_key()).key)
        strange = new_api_key("client", first.ca_fingerprint)
        config = ClientConfig(url=cluster.coordinator.url, api_key=first, cache=tmp_path, connect_timeout_s=0.1)
        async with client_pool(config, max_clients=1) as pool:
            async with pool.lent(first) as one, pool.lent(first) as other:
                assert one is other
                with pytest.raises(OverloadedError, match="1 API keys are in use"):
                    async with pool.lent(second):
                        pass
            with pytest.raises(UnauthenticatedError):
                async with pool.lent(strange):
                    pass
            async with pool.lent(first) as again:
                assert again is one
            async with pool.lent(second) as theirs:
                assert theirs is not one
                assert len(pool) == 1
            await cluster.stop_coordinator()
            with pytest.raises(UnreachableError):
                async with pool.lent(first):
                    pass
            assert len(pool) == 1
        await eventually(lambda: len(pool) == 0)


async def test_keys_that_nobody_knows_yet_are_asked_about_a_few_at_a_time(tmp_path: Path) -> None:
    """Whoever goes away meanwhile makes no room: that would be as many questions as anybody likes."""
    asked = 0

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        keys = [new_api_key("client", "0" * 64) for _ in range(MAX_OPENING + 1)]
        config = ClientConfig(url=url, api_key=keys[0], cache=tmp_path)
        async with client_pool(config) as pool:

            async def use(key: ApiKey) -> None:
                async with pool.lent(key):
                    pass

            async with running_beside(**{key.key_id: use(key) for key in keys[:MAX_OPENING]}):
                await eventually(lambda: asked == MAX_OPENING)
            with pytest.raises(OverloadedError, match="being looked up"):
                await use(keys[MAX_OPENING])
        over.set()
