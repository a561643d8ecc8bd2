from __future__ import annotations

from pathlib import Path

import pytest

from client.config import ClientConfig
from client.gateway.clients import client_pool
from protocol.api_key import api_key_from_text, new_api_key
from protocol.errors import OverloadedError, UnauthenticatedError, UnreachableError
from tests.support.coordinators import eventually, key_of
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
